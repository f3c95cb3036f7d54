import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";
import process from "node:process";
import { allocate, type Bytes, viewOf } from "../../src/c/bytes.ts";
import { cString, OwnedDescriptor } from "../../src/sockets/descriptors.ts";
import { errnoName } from "../../src/c/errno.ts";
import { type FunctionName, functions } from "../../src/c/libc.ts";
import { Msghdr } from "../../src/c/msghdr.ts";
import { TemporaryFolder } from "../unit/children.ts";
import { openNull, runtime, socketPair, test } from "./support.ts";

const { abi, libc } = runtime;
const { constants } = abi;

const missing = cString("/tmp/takeover-test-missing/file");
const message = new Msghdr(abi, (bytes) => runtime.addressOf(bytes), allocate(1), allocate(64));
message.aim(0, 1, 0);

/** Calls that fail, and the errno that each of them fails with. */
const failing: Readonly<Partial<Record<FunctionName, readonly [() => number, string]>>> = {
  socket: [() => libc.socket(-1, constants.SOCK_STREAM, 0), "EAFNOSUPPORT"],
  bind: [() => libc.bind(-1, allocate(16), 16), "EBADF"],
  listen: [() => libc.listen(-1, 1), "EBADF"],
  accept: [() => libc.accept(-1, null, null), "EBADF"],
  accept4: [() => libc.accept4(-1, null, null, 0), "EBADF"],
  shutdown: [() => libc.shutdown(-1, 2), "EBADF"],
  connect: [() => libc.connect(-1, allocate(16), 16), "EBADF"],
  socketpair: [() => libc.socketpair(constants.AF_INET, constants.SOCK_STREAM, 0, allocate(8)), "EOPNOTSUPP"],
  getsockname: [() => libc.getsockname(-1, allocate(128), allocate(4)), "EBADF"],
  getpeername: [() => libc.getpeername(-1, allocate(128), allocate(4)), "EBADF"],
  getsockopt: [() => libc.getsockopt(-1, constants.SOL_SOCKET, constants.SO_TYPE, allocate(4), allocate(4)), "EBADF"],
  setsockopt: [() => libc.setsockopt(-1, constants.SOL_SOCKET, constants.SO_REUSEADDR, allocate(4), 4), "EBADF"],
  sendmsg: [() => libc.sendmsg(-1, message.bytes, 0), "EBADF"],
  recvmsg: [() => libc.recvmsg(-1, message.bytes, 0), "EBADF"],
  close: [() => libc.close(-1), "EBADF"],
  dup2: [() => libc.dup2(-1, 500), "EBADF"],
  dup3: [() => libc.dup3(0, 0, 0), "EINVAL"],
  fcntl: [() => libc.fcntl(-1, constants.F_GETFD, 0), "EBADF"],
  open: [() => libc.open(missing, constants.O_RDONLY, 0), "ENOENT"],
  read: [() => libc.read(-1, allocate(1), 1), "EBADF"],
  write: [() => libc.write(-1, allocate(1), 1), "EBADF"],
  readlink: [() => libc.readlink(cString("/"), allocate(16), 16), "EINVAL"],
  unlink: [() => libc.unlink(missing), "ENOENT"],
  fchmod: [() => libc.fchmod(-1, 0o600), "EBADF"],
  chmod: [() => libc.chmod(missing, 0o600), "ENOENT"],
  flock: [() => libc.flock(-1, constants.LOCK_EX), "EBADF"],
  getrlimit: [() => libc.getrlimit(-1, allocate(16)), "EINVAL"],
  unsetenv: [() => libc.unsetenv(cString("A=B")), "EINVAL"],
  clock_gettime: [() => libc.clock_gettime(4_711, allocate(16)), "EINVAL"],
  kill: [() => libc.kill(libc.getpid(), 4_711), "EINVAL"],
  syscall: [() => libc.syscall(436, 9, 8, 0, 0), "EINVAL"],
  getpeereid: [() => libc.getpeereid(-1, allocate(4), allocate(4)), abi.platform === "linux" ? "ENOSYS" : "EBADF"],
  getdents64: [() => libc.getdents64(-1, allocate(1_024), 1_024), "EBADF"],
  statx: [() => libc.statx(-100, missing, 0, 0x7ff, allocate(256)), "ENOENT"],
  poll: [() => libc.poll(null, 1, 0), "EFAULT"],
  epoll_create1: [() => libc.epoll_create1(-1), "EINVAL"],
  epoll_wait: [() => libc.epoll_wait(-1, allocate(abi.epollEvent.size), 1, 0), "EBADF"],
  epoll_ctl: [() => libc.epoll_ctl(-1, 1, 0, allocate(abi.epollEvent.size)), "EBADF"],
  ioctl: [() => libc.ioctl(-1, 0x541b, allocate(4)), "EBADF"],
};

/** These cannot fail. */
const infallible: readonly FunctionName[] = ["getpid", "geteuid", "getegid"];

function integer(value: number): Bytes {
  const bytes = allocate(4);
  viewOf(bytes).setInt32(0, value, true);
  return bytes;
}

test("libc has a call here for every function of its table", () => {
  assert.deepEqual([...Object.keys(failing), ...infallible].toSorted(), Object.keys(functions).toSorted());
});

test("libc gives -errno for a call of every function that fails", () => {
  const expected = Object.entries(failing).map(([name, [, code]]) => `${name} ${code}`);
  const found = Object.entries(failing).map(([name, [call]]) => `${name} ${errnoName(abi.platform, -call())}`);
  assert.deepEqual(found, expected);
});

test("libc gives the right errno 2,000 times in a row, while the function and the errno change", () => {
  const calls = Object.values(failing);
  let wrong = 0;
  for (let count = 0; count < 2_000; count++) {
    const [call, code] = calls[count % calls.length]!;
    if (errnoName(abi.platform, -call()) !== code) wrong++;
  }
  assert.equal(wrong, 0);
});

test("libc gives the right errno after each of 2,000 turns of the event loop", async () => {
  let wrong = 0;
  for (let count = 0; count < 2_000; count++) {
    await new Promise((resolve) => setImmediate(resolve));
    if (errnoName(abi.platform, -libc.open(missing, constants.O_RDONLY, 0)) !== "ENOENT") wrong++;
  }
  assert.equal(wrong, 0);
});

test("libc gives results as numbers", () => {
  assert.equal(typeof libc.read(-1, null, 0), "number");
  assert.equal(typeof libc.geteuid(), "number");
});

test("libc passes null as NULL", () => {
  assert.equal(errnoName(abi.platform, -libc.open(null, constants.O_RDONLY, 0)), "EFAULT");
});

test("libc.getpid gives the id of this process", () => {
  assert.equal(libc.getpid(), process.pid);
});

test("libc.kill with signal 0 finds this process", () => {
  assert.equal(libc.kill(process.pid, 0), 0);
});

test("libc.open, read and close read a file, and the mode is what was passed after the fixed arguments", () => {
  using folder = new TemporaryFolder();
  const path = cString(folder.file("made"));
  using made = new OwnedDescriptor(runtime, libc.open(path, constants.O_RDWR | constants.O_CREAT, 0o640));
  assert.ok(made.number >= 0);
  writeFileSync(folder.file("made"), "content");
  const bytes = allocate(16);
  assert.equal(libc.read(made.number, bytes, 16), 7);
  assert.equal(new TextDecoder().decode(bytes.subarray(0, 7)), "content");
  const status = allocate(abi.statx.size);
  assert.equal(libc.statx(-100, path, 0, 0x7ff, status), 0);
  assert.equal(viewOf(status).getUint16(abi.statx.mode.offset, true) & 0o7777, 0o640);
});

test("libc.fchmod and chmod take a mode", () => {
  using folder = new TemporaryFolder();
  const path = folder.file("file");
  writeFileSync(path, "");
  const mode = () => {
    const status = allocate(abi.statx.size);
    libc.statx(-100, cString(path), 0, 0x7ff, status);
    return viewOf(status).getUint16(abi.statx.mode.offset, true) & 0o7777;
  };
  assert.equal(libc.chmod(cString(path), 0o604), 0);
  assert.equal(mode(), 0o604);
  using file = new OwnedDescriptor(runtime, libc.open(cString(path), constants.O_RDONLY | constants.O_CLOEXEC, 0));
  assert.equal(libc.fchmod(file.number, 0o600), 0);
  assert.equal(mode(), 0o600);
});

test("libc.unlink removes a file", () => {
  using folder = new TemporaryFolder();
  writeFileSync(folder.file("file"), "");
  assert.equal(libc.unlink(cString(folder.file("file"))), 0);
  assert.throws(() => readFileSync(folder.file("file")), { code: "ENOENT" });
});

test("libc.flock holds a file against another descriptor", () => {
  using folder = new TemporaryFolder();
  const path = cString(folder.file("lock"));
  const open = () => new OwnedDescriptor(runtime, libc.open(path, constants.O_RDWR | constants.O_CREAT, 0o600));
  using first = open();
  using second = open();
  const exclusive = constants.LOCK_EX | constants.LOCK_NB;
  assert.equal(libc.flock(first.number, exclusive), 0);
  assert.equal(errnoName(abi.platform, -libc.flock(second.number, exclusive)), "EAGAIN");
});

test("libc.fcntl sets and gets flags, which come after the fixed arguments", () => {
  using file = openNull();
  assert.equal(libc.fcntl(file.number, constants.F_GETFD, 0), constants.FD_CLOEXEC);
  assert.equal(libc.fcntl(file.number, constants.F_SETFD, 0), 0);
  assert.equal(libc.fcntl(file.number, constants.F_GETFD, 0), 0);
});

test("libc.dup2 and dup3 put a copy under a number", () => {
  using from = openNull();
  using to = openNull();
  assert.equal(libc.dup2(from.number, to.number), to.number);
  assert.equal(libc.fcntl(to.number, constants.F_GETFD, 0), 0);
  assert.equal(libc.dup3(from.number, to.number, constants.O_CLOEXEC), to.number);
  assert.equal(libc.fcntl(to.number, constants.F_GETFD, 0), constants.FD_CLOEXEC);
});

test("libc.setsockopt and getsockopt take an option by its level and name", () => {
  using socket = new OwnedDescriptor(runtime, libc.socket(constants.AF_INET, constants.SOCK_STREAM, 0));
  const { SOL_SOCKET, SO_REUSEADDR } = constants;
  const value = allocate(4);
  assert.equal(libc.setsockopt(socket.number, SOL_SOCKET, SO_REUSEADDR, integer(1), 4), 0);
  assert.equal(libc.getsockopt(socket.number, SOL_SOCKET, SO_REUSEADDR, value, integer(4)), 0);
  assert.equal(viewOf(value).getInt32(0, true), 1);
});

test("libc.sendmsg and recvmsg give the size of what they moved", () => {
  const [left, right] = socketPair();
  using _left = left;
  using _right = right;
  message.data.set([42]);
  message.aim(0, 1, 0);
  assert.equal(libc.sendmsg(left.number, message.bytes, constants.MSG_DONTWAIT), 1);
  message.data.set([0]);
  assert.equal(libc.recvmsg(right.number, message.bytes, constants.MSG_DONTWAIT), 1);
  assert.equal(message.data[0], 42);
});

test("libc.getrlimit gives the soft limit and the hard", () => {
  const limit = allocate(16);
  assert.equal(libc.getrlimit(constants.RLIMIT_NOFILE, limit), 0);
  const [soft, hard] = [0, 8].map((at) => viewOf(limit).getBigUint64(at, true));
  assert.ok(soft! > 0n && soft! <= hard!);
});

test("Runtime.addressOf gives an address, and the same one again", () => {
  const bytes = allocate(64);
  const address = runtime.addressOf(bytes);
  assert.equal(typeof address, "bigint");
  assert.ok(address > 0n);
  assert.equal(runtime.addressOf(bytes), address);
});

test("Runtime names itself, its version and its FFI", () => {
  const { versions } = process as { versions: Record<string, string | undefined> };
  assert.equal(runtime.version, versions[runtime.name]);
  const ffis = { deno: ["Deno.dlopen"], bun: ["bun:ffi"], node: [process.env.SEAM_FFI ?? "koffi"] };
  assert.ok(ffis[runtime.name].includes(runtime.ffi), runtime.ffi);
});
