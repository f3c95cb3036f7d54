import assert from "node:assert/strict";
import { chmodSync, statSync } from "node:fs";
import { checkPeerUser, peerUser } from "../../src/sockets/identity.ts";
import { bindListener, connectPath } from "../../src/sockets/listener.ts";
import type { ControlStream } from "../../src/runtime.ts";
import { binaries } from "../support/binaries.mjs";
import { run, TemporaryFolder } from "../unit/children.ts";
import { openNull, runtime, socketPair, takeoverError, test } from "./support.ts";

const { libc } = runtime;
const own = libc.geteuid();
const nobody = 65_534;
const asRoot = { skip: own === 0 ? false : "only root can connect as another user" };

test("peerUser gives this process's user for both ends of its own pair", () => {
  const [left, right] = socketPair();
  using _left = left;
  using _right = right;
  assert.equal(peerUser(runtime, left.number), own);
  assert.equal(peerUser(runtime, right.number), own);
});

test("peerUser gives the user of the process that listens", () => {
  using folder = new TemporaryFolder();
  const address = { family: "unix", path: folder.file("x") } as const;
  using _listener = bindListener(runtime, address, address);
  using connection = connectPath(runtime, address.path)!;
  assert.equal(peerUser(runtime, connection.number), own);
});

test("peerUser throws a SystemError for what is no Unix connection", () => {
  using file = openNull();
  assert.throws(() => peerUser(runtime, file.number), { name: "SystemError", code: "ENOTSOCK" });
});

test("checkPeerUser lets this process's own user through", () => {
  const [left, right] = socketPair();
  using _left = left;
  using _right = right;
  checkPeerUser(runtime, left.number, [], "successor");
});

/** What checkPeerUser makes of a process of another user that connects. */
async function checkNobody(check: (stream: ControlStream) => void): Promise<void> {
  using folder = new TemporaryFolder();
  chmodSync(folder.path, 0o755);
  const address = { family: "unix", path: folder.file("x") } as const;
  using socket = bindListener(runtime, address, { ...address });
  chmodSync(address.path, 0o777);
  let failure: unknown = new Error("nobody connected");
  const listener = await runtime.adoptListener(socket.take(), (stream) => {
    try {
      check(stream);
      failure = null;
    } catch (error) {
      failure = error;
    }
    stream.destroy();
  });
  const connect = `process.setgroups([]); process.setgid(${nobody}); process.setuid(${nobody});
    require("node:net").connect(${JSON.stringify(address.path)}).on("error", () => {}).resume()`;
  const { status, stderr } = await run([binaries.node26, "-e", connect]);
  listener.close();
  assert.equal(status, 0, stderr);
  if (failure !== null) throw failure;
}

test("checkPeerUser refuses another user, and names both", asRoot, async () => {
  await assert.rejects(checkNobody(({ descriptor }) => checkPeerUser(runtime, descriptor, [], "successor")), {
    ...takeoverError("ERR_TAKEOVER_USER"),
    message: /^Cannot trust the successor: it runs as user 65534, expected 0;/,
  });
});

test("checkPeerUser lets a user through that the application named", asRoot, async () => {
  await checkNobody(({ descriptor }) => {
    assert.equal(peerUser(runtime, descriptor), nobody);
    checkPeerUser(runtime, descriptor, [4_711, nobody], "successor");
  });
});

test("libc.geteuid gives the user that new files belong to", () => {
  using folder = new TemporaryFolder();
  assert.equal(statSync(folder.path).uid, own);
});
