import assert from "node:assert/strict";
import { chmodSync, existsSync, mkdirSync, statSync, symlinkSync, writeFileSync } from "node:fs";
import process from "node:process";
import { allocate } from "../../src/c/bytes.ts";
import { disposeAll, OwnedDescriptor } from "../../src/sockets/descriptors.ts";
import { bindListener, connectPath, statusOf, statusOfDescriptor, unlinkPath } from "../../src/sockets/listener.ts";
import type { SocketAddress, UnixAddress } from "../../src/c/sockaddr.ts";
import { identify, localAddress, openSocket } from "../../src/sockets/socket.ts";
import { TemporaryFolder } from "../unit/children.ts";
import { openNull, runtime, test } from "./support.ts";

const { abi, libc } = runtime;
const { constants } = abi;
const inet = (port: number): SocketAddress => ({ family: "inet", hostname: "127.0.0.1", port });

function unixIn(folder: TemporaryFolder): UnixAddress {
  return { family: "unix", path: folder.file("x") };
}

function portOf(socket: OwnedDescriptor): number {
  return (localAddress(runtime, socket.number) as { port: number }).port;
}

test("bindListener makes a listening, non-blocking, close-on-exec socket of every family", () => {
  using folder = new TemporaryFolder();
  for (const address of [inet(0), { family: "inet6", hostname: "::1", port: 0 } as const, unixIn(folder)]) {
    using socket = bindListener(runtime, address, { port: 0 });
    const { family, type, listening } = identify(runtime, socket.number)!;
    assert.deepEqual({ family, type, listening }, { family: address.family, type: "stream", listening: true });
    assert.ok(libc.fcntl(socket.number, constants.F_GETFL, 0) & constants.O_NONBLOCK);
    assert.equal(libc.fcntl(socket.number, constants.F_GETFD, 0), constants.FD_CLOEXEC);
  }
});

test("bindListener binds to the port that it is given", () => {
  using first = bindListener(runtime, inet(0), { port: 0 });
  const port = portOf(first);
  first[Symbol.dispose]();
  using second = bindListener(runtime, inet(port), { port });
  assert.equal(portOf(second), port);
});

test("bindListener throws a SystemError, and closes its socket, when the address is in use", () => {
  using first = bindListener(runtime, inet(0), { port: 0 });
  assert.throws(() => bindListener(runtime, inet(portOf(first)), { port: 0 }), {
    code: "EADDRINUSE",
    syscall: "bind",
  });
});

/** IPV6_V6ONLY of a socket. */
function isIpv6Only({ number }: OwnedDescriptor): boolean {
  const value = allocate(4);
  const size = Uint8Array.of(4, 0, 0, 0);
  assert.equal(libc.getsockopt(number, constants.IPPROTO_IPV6, constants.IPV6_V6ONLY, value, size), 0);
  return value[0] === 1;
}

test("bindListener on :: takes IPv4 too, unless ipv6Only says no", () => {
  const everywhere = { family: "inet6", hostname: "::", port: 0 } as const;
  using dual = bindListener(runtime, everywhere, { port: 0 });
  using alsoDual = bindListener(runtime, everywhere, { port: 0, ipv6Only: false });
  using only = bindListener(runtime, everywhere, { port: 0, ipv6Only: true });
  assert.deepEqual([dual, alsoDual, only].map(isIpv6Only), [false, false, true]);
});

test("bindListener gives a Unix path the mode of the application, whatever the umask", () => {
  for (const [mode, umask] of [[0o600, 0o022], [0o660, 0o022], [0o666, 0o077], [0o700, 0]] as const) {
    using folder = new TemporaryFolder();
    const address = unixIn(folder);
    const before = process.umask(umask);
    try {
      using _socket = bindListener(runtime, address, { path: address.path, mode });
      assert.equal(statSync(address.path).mode & 0o777, mode);
    } finally {
      process.umask(before);
    }
  }
});

test("bindListener leaves the mode of a Unix path to the umask when there is none", () => {
  using folder = new TemporaryFolder();
  const address = unixIn(folder);
  const before = process.umask(0o027);
  try {
    using _socket = bindListener(runtime, address, { path: address.path });
    assert.equal(statSync(address.path).mode & 0o777, 0o750);
  } finally {
    process.umask(before);
  }
});

test("bindListener takes a Unix path whose options say undefined for the mode", () => {
  using folder = new TemporaryFolder();
  const address = unixIn(folder);
  using socket = bindListener(
    runtime,
    address,
    { path: address.path, mode: undefined } as unknown as { path: string },
  );
  assert.notEqual(statSync(address.path).mode & 0o777, 0);
  assert.equal(identify(runtime, socket.number)!.listening, true);
});

test("bindListener leaves the path behind when its socket is closed", () => {
  using folder = new TemporaryFolder();
  const address = unixIn(folder);
  bindListener(runtime, address, address)[Symbol.dispose]();
  assert.equal(existsSync(address.path), true);
  assert.throws(() => bindListener(runtime, address, address), { code: "EADDRINUSE", syscall: "bind" });
});

test("bindListener takes as many connections as the backlog says, and one more", () => {
  using folder = new TemporaryFolder();
  const address = unixIn(folder);
  using _socket = bindListener(runtime, address, { path: address.path, backlog: 2 });
  const connections = [1, 2, 3].map(() => connectPath(runtime, address.path)!);
  try {
    assert.throws(() => connectPath(runtime, address.path), { code: "EAGAIN", syscall: "connect" });
  } finally {
    disposeAll(connections);
  }
});

test("connectPath gives a connection to whoever listens", () => {
  using folder = new TemporaryFolder();
  const address = unixIn(folder);
  using _socket = bindListener(runtime, address, address);
  using connection = connectPath(runtime, address.path)!;
  assert.equal(identify(runtime, connection.number)!.type, "stream");
});

test("connectPath gives null for a missing path and for a stale one", () => {
  using folder = new TemporaryFolder();
  const address = unixIn(folder);
  assert.equal(connectPath(runtime, address.path), null);
  bindListener(runtime, address, address)[Symbol.dispose]();
  assert.equal(connectPath(runtime, address.path), null);
});

test("connectPath throws a SystemError when it cannot tell", () => {
  using folder = new TemporaryFolder();
  writeFileSync(folder.file("file"), "");
  assert.throws(() => connectPath(runtime, folder.file("file/x")), { code: "ENOTDIR", syscall: "connect" });
});

test("unlinkPath removes a path, and one that is gone is fine", () => {
  using folder = new TemporaryFolder();
  const address = unixIn(folder);
  using _socket = bindListener(runtime, address, address);
  unlinkPath(runtime, address.path);
  assert.equal(existsSync(address.path), false);
  unlinkPath(runtime, address.path);
});

test("unlinkPath throws a SystemError for a folder", () => {
  using folder = new TemporaryFolder();
  assert.throws(() => unlinkPath(runtime, folder.path), { code: "EISDIR", syscall: "unlink" });
});

test("statusOf tells a socket, a folder, a file and a symbolic link apart", () => {
  using folder = new TemporaryFolder();
  const address = unixIn(folder);
  using _socket = bindListener(runtime, address, address);
  mkdirSync(folder.file("folder"));
  writeFileSync(folder.file("file"), "");
  symlinkSync(address.path, folder.file("link"));
  const kinds = ["x", "folder", "file", "link"].map((name) => {
    const { kind, symbolicLink } = statusOf(runtime, folder.file(name))!;
    return `${kind} ${symbolicLink}`;
  });
  assert.deepEqual(kinds, ["socket false", "folder false", "other false", "other true"]);
});

test("statusOf follows a symbolic link when it is told to", () => {
  using folder = new TemporaryFolder();
  symlinkSync(folder.path, folder.file("link"));
  const { kind, symbolicLink, inode } = statusOf(runtime, folder.file("link"), true)!;
  assert.deepEqual({ kind, symbolicLink, inode }, {
    kind: "folder",
    symbolicLink: false,
    inode: statSync(folder.path).ino,
  });
});

test("statusOf gives the mode, the user and the inode", () => {
  using folder = new TemporaryFolder();
  chmodSync(folder.path, 0o1751);
  const { mode, uid, inode } = statusOf(runtime, folder.path)!;
  assert.deepEqual({ mode, uid, inode }, { mode: 0o1751, uid: libc.geteuid(), inode: statSync(folder.path).ino });
});

test("statusOf gives null for a missing path, and throws a SystemError when it cannot tell", () => {
  using folder = new TemporaryFolder();
  assert.equal(statusOf(runtime, folder.file("missing")), null);
  writeFileSync(folder.file("file"), "");
  assert.throws(() => statusOf(runtime, folder.file("file/x")), { code: "ENOTDIR", syscall: "statx" });
});

test("statusOfDescriptor gives the status of what is open", () => {
  using file = openNull();
  assert.equal(statusOfDescriptor(runtime, file.number)!.kind, "other");
  assert.equal(statusOfDescriptor(runtime, file.number)!.inode, statusOf(runtime, "/dev/null")!.inode);
  using socket = new OwnedDescriptor(runtime, openSocket(runtime, "inet", "stream"));
  assert.equal(statusOfDescriptor(runtime, socket.number)!.kind, "socket");
});
