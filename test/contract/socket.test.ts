import assert from "node:assert/strict";
import { OwnedDescriptor } from "../../src/sockets/descriptors.ts";
import { bindListener } from "../../src/sockets/listener.ts";
import type { SocketAddress } from "../../src/c/sockaddr.ts";
import {
  bindSocket,
  connectSocket,
  cookieOf,
  duplicateOver,
  identify,
  integerOption,
  isListening,
  localAddress,
  openSocket,
  peerAddress,
  setCloseOnExec,
  setIntegerOption,
  setNonBlocking,
} from "../../src/sockets/socket.ts";
import { TemporaryFolder } from "../unit/children.ts";
import { openNull, runtime, socketPair, test } from "./support.ts";

const { abi, libc } = runtime;
const { constants } = abi;
const anyPort: SocketAddress = { family: "inet", hostname: "127.0.0.1", port: 0 };

function open(family: SocketAddress["family"], type: "stream" | "dgram" = "stream"): OwnedDescriptor {
  return new OwnedDescriptor(runtime, openSocket(runtime, family, type));
}

/** O_NONBLOCK, and FD_CLOEXEC. */
function flagsOf({ number }: OwnedDescriptor): { nonBlocking: boolean; closeOnExec: boolean } {
  return {
    nonBlocking: (libc.fcntl(number, constants.F_GETFL, 0) & constants.O_NONBLOCK) !== 0,
    closeOnExec: libc.fcntl(number, constants.F_GETFD, 0) === constants.FD_CLOEXEC,
  };
}

test("openSocket makes a non-blocking, close-on-exec socket of every family and type", () => {
  for (const family of ["inet", "inet6", "unix"] as const) {
    for (const type of ["stream", "dgram"] as const) {
      using socket = open(family, type);
      assert.deepEqual(flagsOf(socket), { nonBlocking: true, closeOnExec: true });
      const expected = type === "stream" ? constants.SOCK_STREAM : constants.SOCK_DGRAM;
      assert.equal(integerOption(runtime, socket.number, constants.SO_TYPE), expected);
      assert.equal(localAddress(runtime, socket.number)?.family, family);
    }
  }
});

test("bindSocket binds to a port, and localAddress gives the one that the kernel chose", () => {
  using socket = open("inet");
  bindSocket(runtime, socket.number, anyPort);
  const address = localAddress(runtime, socket.number) as { hostname: string; port: number };
  assert.equal(address.hostname, "127.0.0.1");
  assert.ok(address.port > 0);
});

test("bindSocket throws a SystemError that names the call and the address", () => {
  using first = bindListener(runtime, anyPort, { port: 0 });
  const address = localAddress(runtime, first.number) as SocketAddress & { port: number };
  using second = open("inet");
  assert.throws(() => bindSocket(runtime, second.number, address), {
    name: "SystemError",
    code: "EADDRINUSE",
    syscall: "bind",
    message: `bind EADDRINUSE 127.0.0.1:${address.port}`,
  });
});

test("localAddress gives IPv6 addresses, Unix paths, and the abstract name that the kernel chose", () => {
  using folder = new TemporaryFolder();
  using inet6 = open("inet6");
  bindSocket(runtime, inet6.number, { family: "inet6", hostname: "::1", port: 0 });
  assert.equal((localAddress(runtime, inet6.number) as { hostname: string }).hostname, "::1");
  using unix = open("unix");
  assert.deepEqual(localAddress(runtime, unix.number), { family: "unix", path: "" });
  bindSocket(runtime, unix.number, { family: "unix", path: folder.file("é") });
  assert.deepEqual(localAddress(runtime, unix.number), { family: "unix", path: folder.file("é") });
  using named = open("unix");
  bindSocket(runtime, named.number, { family: "unix", path: "" });
  assert.match((localAddress(runtime, named.number) as { path: string }).path, /^\0[0-9a-f]{5}$/);
});

test("localAddress gives back a Unix path of 107 bytes", () => {
  using folder = new TemporaryFolder();
  const path = folder.file("a").padEnd(107, "a");
  using unix = open("unix");
  bindSocket(runtime, unix.number, { family: "unix", path });
  assert.deepEqual(localAddress(runtime, unix.number), { family: "unix", path });
});

test("localAddress and peerAddress give null for what is no socket", () => {
  using file = openNull();
  assert.equal(localAddress(runtime, file.number), null);
  assert.equal(peerAddress(runtime, file.number), null);
  assert.equal(localAddress(runtime, -1), null);
});

test("peerAddress gives where a connection goes, and null before there is one", () => {
  using listener = bindListener(runtime, anyPort, { port: 0 });
  const address = localAddress(runtime, listener.number)!;
  using client = open("inet");
  assert.equal(peerAddress(runtime, client.number), null);
  // Loopback completes the handshake within the call, and says in progress nevertheless.
  assert.throws(() => connectSocket(runtime, client.number, address), { code: "EINPROGRESS", syscall: "connect" });
  assert.deepEqual(peerAddress(runtime, client.number), address);
  assert.equal(peerAddress(runtime, listener.number), null);
});

test("connectSocket on a Unix socket is done on return, or has failed", () => {
  using folder = new TemporaryFolder();
  const address = { family: "unix", path: folder.file("x") } as const;
  using refused = open("unix");
  assert.throws(() => connectSocket(runtime, refused.number, address), { code: "ENOENT", syscall: "connect" });
  using _listener = bindListener(runtime, address, address);
  using client = open("unix");
  connectSocket(runtime, client.number, address);
  assert.deepEqual(peerAddress(runtime, client.number), address);
});

test("isListening is true after listen and false before", () => {
  using socket = open("inet");
  bindSocket(runtime, socket.number, anyPort);
  assert.equal(isListening(runtime, socket.number), false);
  assert.equal(libc.listen(socket.number, 1), 0);
  assert.equal(isListening(runtime, socket.number), true);
});

test("isListening is false for what is no socket", () => {
  using file = openNull();
  assert.equal(isListening(runtime, file.number), false);
  assert.equal(isListening(runtime, -1), false);
});

test("identify says family, type, listening, address and cookie", () => {
  using listener = bindListener(runtime, anyPort, { port: 0 });
  const address = localAddress(runtime, listener.number)!;
  const cookie = cookieOf(runtime, listener.number);
  assert.deepEqual(identify(runtime, listener.number), {
    family: "inet",
    type: "stream",
    listening: true,
    address,
    cookie,
  });
});

test("identify tells a datagram socket and a sequenced one from a stream", () => {
  const sequenced = 5;
  using dgram = open("inet6", "dgram");
  assert.equal(identify(runtime, dgram.number)!.type, "dgram");
  using seqpacket = new OwnedDescriptor(runtime, libc.socket(constants.AF_UNIX, sequenced, 0));
  assert.equal(identify(runtime, seqpacket.number)!.type, "other");
});

test("identify gives null for what is no IP or Unix socket", () => {
  using file = openNull();
  assert.equal(identify(runtime, file.number), null);
  assert.equal(identify(runtime, 100_000), null);
});

test("cookieOf gives 16 digits that every copy of a socket shares, and no other socket has", () => {
  using first = open("inet");
  using second = open("inet");
  using copy = openNull();
  const cookie = cookieOf(runtime, first.number);
  assert.match(cookie, /^[0-9a-f]{16}$/);
  assert.notEqual(cookieOf(runtime, second.number), cookie);
  duplicateOver(runtime, first.number, copy.number);
  assert.equal(cookieOf(runtime, copy.number), cookie);
});

test("cookieOf gives an empty text for what is no socket", () => {
  using file = openNull();
  assert.equal(cookieOf(runtime, file.number), "");
});

test("integerOption gives -errno when there is no such option", () => {
  using file = openNull();
  assert.equal(integerOption(runtime, file.number, constants.SO_TYPE), -88);
  using socket = open("inet");
  assert.equal(integerOption(runtime, socket.number, 4_711), -92);
});

test("setIntegerOption sets what integerOption gets, and throws a SystemError otherwise", () => {
  using socket = open("inet");
  const { SOL_SOCKET, SO_REUSEADDR } = constants;
  assert.equal(integerOption(runtime, socket.number, SO_REUSEADDR), 0);
  setIntegerOption(runtime, socket.number, SOL_SOCKET, SO_REUSEADDR, 1);
  assert.equal(integerOption(runtime, socket.number, SO_REUSEADDR), 1);
  assert.throws(() => setIntegerOption(runtime, -1, SOL_SOCKET, SO_REUSEADDR, 1), {
    code: "EBADF",
    syscall: "setsockopt",
  });
});

test("setNonBlocking holds for every copy of a socket, and twice does no harm", () => {
  using socket = new OwnedDescriptor(runtime, libc.socket(constants.AF_INET, constants.SOCK_STREAM, 0));
  using copy = openNull();
  duplicateOver(runtime, socket.number, copy.number);
  assert.equal(flagsOf(copy).nonBlocking, false);
  setNonBlocking(runtime, socket.number);
  setNonBlocking(runtime, socket.number);
  assert.equal(flagsOf(copy).nonBlocking, true);
  assert.throws(() => setNonBlocking(runtime, -1), { code: "EBADF", syscall: "fcntl" });
});

test("setCloseOnExec holds for one descriptor and not for its copies", () => {
  using socket = new OwnedDescriptor(runtime, libc.socket(constants.AF_INET, constants.SOCK_STREAM, 0));
  using copy = openNull();
  libc.dup2(socket.number, copy.number);
  setCloseOnExec(runtime, socket.number);
  assert.equal(flagsOf(socket).closeOnExec, true);
  assert.equal(flagsOf(copy).closeOnExec, false);
});

test("duplicateOver closes what was there, and the copy is close-on-exec", () => {
  using socket = open("inet");
  const [left, right] = socketPair();
  using _left = left;
  using _right = right;
  duplicateOver(runtime, socket.number, left.number);
  assert.equal(cookieOf(runtime, left.number), cookieOf(runtime, socket.number));
  assert.equal(flagsOf(left).closeOnExec, true);
  // The other end of the pair learns that nobody has its peer any more.
  assert.equal(
    libc.sendmsg(right.number, new Uint8Array(new ArrayBuffer(abi.msghdr.size)), constants.MSG_NOSIGNAL),
    -32,
  );
});

test("duplicateOver throws a SystemError when there is nothing to copy", () => {
  using target = openNull();
  assert.throws(() => duplicateOver(runtime, 100_000, target.number), { code: "EBADF", syscall: "dup3" });
});
