/** Where native objects are opened before they have their sockets: paths that have no room beside them. */

import assert from "node:assert/strict";
import { mkdirSync, readdirSync } from "node:fs";
import { adoptListener } from "../../src/natives/adopt.ts";
import { connectionPlaceholder, datagramPlaceholder, listenerPlaceholder } from "../../src/natives/placeholder.ts";
import { bindListener } from "../../src/sockets/listener.ts";
import { TemporaryFolder } from "../unit/children.ts";
import { bunListen, bunServe, denoListen, denoServe, type Native, nodeHttp, nodeNet } from "./natives.ts";
import { onBun, onDeno, runtime, test } from "./support.ts";

/** The longest path of a Unix socket (unix(7)): `sun_path` without its NUL. */
const mostSize = runtime.abi.sockaddr.un.path.size - 1;

/** A folder in which there is room for a name of so many bytes. */
function longFolder(folder: TemporaryFolder, nameSize: number): string {
  const path = folder.file("x".repeat(mostSize - nameSize - 2 - folder.path.length));
  mkdirSync(path);
  return path;
}

/** A server at the longest path that there is, which answers. */
async function answersAtLongPath<T>(native: Native<T>): Promise<void> {
  using folder = new TemporaryFolder();
  const long = longFolder(folder, 1);
  const path = `${long}/s`;
  const socket = bindListener(runtime, { family: "unix", path }, { path });
  const server = await adoptListener(runtime, socket, native.open) as T;
  try {
    assert.match(await native.ask({ path }), /hello/);
    assert.deepEqual(readdirSync(long), ["s"]);
  } finally {
    await native.close(server);
  }
}

test("adoptListener puts a listener at the longest path into node:net", () => answersAtLongPath(nodeNet));

test("adoptListener puts a listener at the longest path into node:http", () => answersAtLongPath(nodeHttp));

onDeno("adoptListener puts a listener at the longest path into Deno.serve", () => answersAtLongPath(denoServe));

onDeno("adoptListener puts a listener at the longest path into Deno.listen", () => answersAtLongPath(denoListen));

onBun("adoptListener puts a listener at the longest path into Bun.serve", () => answersAtLongPath(bunServe));

onBun("adoptListener puts a listener at the longest path into Bun.listen", () => answersAtLongPath(bunListen));

test("listenerPlaceholder is beside the listener's path wherever its name fits", () => {
  using folder = new TemporaryFolder();
  const long = longFolder(folder, 8);
  for (const parent of [folder.path, long]) {
    using placeholder = listenerPlaceholder(runtime, { family: "unix", path: `${parent}/s` });
    const { path } = placeholder.at as { path: string };
    assert.equal(path.slice(0, path.lastIndexOf("/")), parent);
    assert.ok(path.length <= mostSize, `${path.length} bytes`);
  }
});

test("connectionPlaceholder and datagramPlaceholder take /tmp when there is no room in TMPDIR", () => {
  using folder = new TemporaryFolder();
  const long = longFolder(folder, 1);
  const crowded = { ...runtime, env: () => long };
  using connection = connectionPlaceholder(crowded, "unix");
  using datagram = datagramPlaceholder(crowded, "unix");
  for (const { at } of [connection, datagram]) assert.match(at.path as string, /^\/tmp\/\.[0-9a-z]{1,7}$/);
});
