/** Paths that are removed by whoever bound them, and by nobody else. */

import assert from "node:assert/strict";
import { existsSync, renameSync, rmSync, statSync, symlinkSync, writeFileSync } from "node:fs";
import { inodeAt, unlinkIfSame } from "../../src/channels/unix_path.ts";
import { bindListener } from "../../src/sockets/listener.ts";
import { TemporaryFolder } from "../unit/children.ts";
import { runtime, test } from "./support.ts";

test("inodeAt gives the inode of a path, and null where there is none", () => {
  using folder = new TemporaryFolder();
  const path = folder.file("s");
  for (const each of ["", "\0name", path, `${path}/below`]) assert.equal(inodeAt(runtime, each), null, each);
  using _socket = bindListener(runtime, { family: "unix", path }, { path });
  assert.equal(inodeAt(runtime, path), statSync(path).ino);
  assert.equal(inodeAt(runtime, `${path}/below`), null);
});

test("unlinkIfSame removes the path of a socket, wherever it was renamed from", () => {
  using folder = new TemporaryFolder();
  const [path, renamed] = [folder.file("s"), folder.file("t")];
  using _socket = bindListener(runtime, { family: "unix", path }, { path });
  const inode = inodeAt(runtime, path);
  renameSync(path, renamed);
  unlinkIfSame(runtime, path, inode);
  assert.ok(existsSync(renamed));
  unlinkIfSame(runtime, renamed, inode);
  assert.ok(!existsSync(renamed));
});

test("unlinkIfSame leaves another socket, a link to the socket, and a file at its path", () => {
  using folder = new TemporaryFolder();
  const [path, renamed] = [folder.file("s"), folder.file("t")];
  using _socket = bindListener(runtime, { family: "unix", path }, { path });
  const inode = inodeAt(runtime, path);
  const isLeft = (): boolean => (unlinkIfSame(runtime, path, inode), existsSync(path));
  renameSync(path, renamed);
  symlinkSync(renamed, path);
  assert.ok(isLeft());
  rmSync(path);
  writeFileSync(path, "");
  assert.ok(isLeft());
  rmSync(path);
  using _other = bindListener(runtime, { family: "unix", path }, { path });
  assert.ok(isLeft());
});

test("unlinkIfSame leaves what came to a path after nothing was there", () => {
  using folder = new TemporaryFolder();
  const path = folder.file("s");
  const inode = inodeAt(runtime, path);
  writeFileSync(path, "");
  unlinkIfSame(runtime, path, inode);
  assert.ok(existsSync(path));
});
