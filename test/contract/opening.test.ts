/** Opening an endpoint fails: its socket is there for the next try, unless nobody is left to try. */

import assert from "node:assert/strict";
import net from "node:net";
import { ForeignSockets } from "../../src/handover/foreign_sockets.ts";
import { openEndpoint, type Opened, type Sources } from "../../src/handover/opening.ts";
import { OwnPaths } from "../../src/handover/own_paths.ts";
import { randomHex, Succession } from "../../src/handover/successor.ts";
import { Takeover } from "../../src/handover/takeover.ts";
import { defaultLimits } from "../../src/limits.ts";
import type { TcpOpening } from "../../src/sockets/address.ts";
import { bindListener, connectPath } from "../../src/sockets/listener.ts";
import { identify } from "../../src/sockets/socket.ts";
import { TemporaryFolder } from "../unit/children.ts";
import { runtime, test } from "./support.ts";
import { loopback } from "./served.ts";

const anyPort = { hostname: "127.0.0.1", port: 0, reusePort: true };
const failure = new RangeError("no server today");
const limits = defaultLimits;

const open = (at: TcpOpening) => net.createServer().listen(at);

const ended = (server: net.Server) => new Promise((resolve) => server.close(resolve));

/** Opens "web" as an application does; `before` is called first, and throws where it should fail. */
function openWeb(sources: Pick<Sources, "succession" | "foreign">, before: () => void): Promise<Opened<net.Server>> {
  const at = (address: TcpOpening) => {
    before();
    return open(address);
  };
  const all = { runtime, limits, paths: new OwnPaths(runtime), ...sources };
  return openEndpoint(all, "listener", "web", loopback, anyPort, at);
}

const fail = () => {
  throw failure;
};

/** What a successor has of a process that listens as "web". */
async function inheriting(use: (succession: Succession, cookie: string) => Promise<void>): Promise<void> {
  using folder = new TemporaryFolder();
  const path = folder.file("control.sock");
  const takeover = await Takeover.begin(runtime, path, { notify: false });
  const server = await takeover.listen("web", { ...anyPort, hostname: "127.83.79.68" }, open);
  await takeover.ready();
  const order = { runtime, limits, path, instance: randomHex(), allowUsers: [], require: [] };
  const succession = await Succession.begin(connectPath(runtime, path)!, order);
  try {
    await use(succession, succession.endpoints.get("web")!.identity.cookie);
  } finally {
    succession.abort(new Error("enough"));
    await takeover.close();
    await ended(server);
  }
}

test("openEndpoint opens what the incumbent has when the first try has failed", () =>
  inheriting(async (succession, cookie) => {
    using foreign = new ForeignSockets(runtime, [], false);
    await assert.rejects(openWeb({ succession, foreign }, fail), failure);
    assert.deepEqual([...succession.endpoints.keys()], ["web"]);
    const { endpoint, native, isNew } = await openWeb({ succession, foreign }, () => {});
    assert.deepEqual([isNew, endpoint.identity.cookie], [false, cookie]);
    assert.equal(succession.endpoints.size, 0);
    endpoint.release();
    await ended(native);
  }));

test("openEndpoint closes what the incumbent has when the successor has been closed meanwhile", () =>
  inheriting(async (succession) => {
    using foreign = new ForeignSockets(runtime, [], false);
    const closing = () => {
      succession[Symbol.dispose]();
      fail();
    };
    await assert.rejects(openWeb({ succession, foreign }, closing), failure);
    assert.equal(succession.endpoints.size, 0);
  }));

test("openEndpoint opens what a service manager passed when the first try has failed, and closes it after the end", async () => {
  const descriptor = bindListener(runtime, loopback, { port: 0 });
  const identity = identify(runtime, descriptor.number)!;
  const passed = { name: "web", source: "systemd", descriptor, identity, isSupervised: true } as const;
  using foreign = new ForeignSockets(runtime, [passed], false);
  await assert.rejects(openWeb({ succession: null, foreign }, fail), failure);
  assert.deepEqual(foreign.names, ["web"]);
  const closing = () => {
    foreign[Symbol.dispose]();
    fail();
  };
  await assert.rejects(openWeb({ succession: null, foreign }, closing), failure);
  assert.deepEqual([foreign.names, descriptor.number], [[], -1]);
});
