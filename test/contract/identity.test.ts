import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { chmodSync, readFileSync } from "node:fs";
import process from "node:process";
import { abiOf } from "../../src/c/abi.ts";
import { allocate } from "../../src/c/bytes.ts";
import {
  type Ancillary,
  cmsgSpace,
  type ControlMessage,
  credentialsMessage,
  decodeAncillary,
  encodeControl,
  rightsMessage,
} from "../../src/c/cmsg.ts";
import { errnoOf } from "../../src/c/errno.ts";
import { Msghdr } from "../../src/c/msghdr.ts";
import { checked } from "../../src/errors.ts";
import type { Runtime } from "../../src/runtime.ts";
import { OwnedDescriptor } from "../../src/sockets/descriptors.ts";
import {
  passCredentials,
  passPidfd,
  passSecurity,
  peerCredentials,
  peerGroups,
  peerPidfd,
  peerSecurityContext,
  peerUser,
} from "../../src/sockets/identity.ts";
import { bindListener, connectPath } from "../../src/sockets/listener.ts";
import { bindSocket, connectSocket, integerOption, localAddress, openSocket } from "../../src/sockets/socket.ts";
import { binaries } from "../support/binaries.mjs";
import { type Ended, run, TemporaryFolder } from "../unit/children.ts";
import { openNull, runtime, socketPair, takeoverError, test, until } from "./support.ts";

const { abi, libc } = runtime;
const own = { pid: libc.getpid(), uid: libc.geteuid(), gid: libc.getegid() };
const nobody = 65_534;
const neverOpen = 1_048_575;

const onLinux = { skip: abi.platform === "linux" ? false : "only Linux tells more than the user" };
const asRoot = { skip: onLinux.skip || (own.uid === 0 ? false : "only root can connect as another user") };
const hasPython = spawnSync("python3", ["--version"]).status === 0;
const withPython = { skip: onLinux.skip || (hasPython ? false : "python3 is not installed") };

/** Everything that asks who is at the other end. */
const questions = [peerCredentials, peerUser, peerPidfd, peerSecurityContext, peerGroups];
const switches = [passCredentials, passPidfd, passSecurity];

/** Linux's options that the switches set. */
const SO_PASSCRED = 16;
const SO_PASSSEC = 34;
const SO_PASSPIDFD = 76;
const SO_PEERCRED = 17;

/** Of which process a pidfd is; -1 when that one has been waited for. */
function pidOf(pidfd: OwnedDescriptor): number {
  return Number(/^Pid:\t(-?\d+)$/m.exec(readFileSync(`/proc/self/fdinfo/${pidfd.number}`, "utf8"))![1]);
}

/** This process's groups, as the kernel has them. */
function ownGroups(): number[] {
  const [, groups] = /^Groups:\t(.*)$/m.exec(readFileSync("/proc/self/status", "utf8"))!;
  return groups!.split(" ").filter((group) => group !== "").map(Number);
}

/** The labels that a security module may give for this process: none, or its own. */
function ownLabels(): (string | null)[] {
  try {
    return [null, readFileSync("/proc/self/attr/current", "utf8").replace(/[\0\n]+$/, "")];
  } catch {
    return [null];
  }
}

/** A listener to which any user can connect. */
function openListener(folder: TemporaryFolder): OwnedDescriptor {
  chmodSync(folder.path, 0o755);
  return bindListener(runtime, pathIn(folder), { ...pathIn(folder), mode: 0o777 });
}

function pathIn(folder: TemporaryFolder): { family: "unix"; path: string } {
  return { family: "unix", path: folder.file("x") };
}

async function acceptOn(listener: OwnedDescriptor): Promise<OwnedDescriptor> {
  let connection = -1;
  await until(() => (connection = libc.accept4(listener.number, null, null, 0o2004000)) >= 0, "a connection");
  return new OwnedDescriptor(runtime, connection);
}

/**
 * Looks at the connection of another process, which says its pid and stays
 * until the connection is closed.
 *
 * @param program What it does first.
 * @returns Its pid.
 */
async function withPeer(program: string, use: (connection: OwnedDescriptor) => void): Promise<number> {
  using folder = new TemporaryFolder();
  using listener = openListener(folder);
  const connect = `console.log(process.pid); require("node:net").connect(process.argv[1]).resume()`;
  const peer = run([binaries.node26, "-e", `${program}; ${connect}`, folder.file("x")]);
  {
    using connection = await acceptOn(listener);
    use(connection);
  }
  return pidFrom(await peer);
}

function pidFrom({ status, stdout, stderr }: Ended): number {
  assert.equal(status, 0, stderr);
  return Number(stdout);
}

/** A connection whose other end is gone, and the pid that it had. */
async function acceptDead(command: readonly string[]): Promise<{ connection: OwnedDescriptor; pid: number }> {
  using folder = new TemporaryFolder();
  using listener = openListener(folder);
  const pid = pidFrom(await run([...command, folder.file("x")]));
  return { connection: await acceptOn(listener), pid };
}

const dying = [
  binaries.node26,
  "-e",
  'console.log(process.pid); require("node:net").connect(process.argv[1], () => process.exit())',
];

test("peerCredentials gives this process for both ends of its own pair", onLinux, () => {
  const [left, right] = socketPair();
  using _left = left;
  using _right = right;
  assert.deepEqual([left, right].map(({ number }) => peerCredentials(runtime, number)), [own, own]);
});

test("peerCredentials gives the process that listens, to the one that connects and of the listener", onLinux, () => {
  using folder = new TemporaryFolder();
  using listener = openListener(folder);
  using connection = connectPath(runtime, folder.file("x"))!;
  assert.deepEqual(peerCredentials(runtime, connection.number), own);
  assert.deepEqual(peerCredentials(runtime, listener.number), own);
});

test("peerCredentials gives the process that connected", onLinux, async () => {
  let found;
  const pid = await withPeer("", ({ number }) => found = peerCredentials(runtime, number));
  assert.notEqual(pid, own.pid);
  assert.deepEqual(found, { ...own, pid });
});

test("peerCredentials and peerGroups give another user, its group and its further groups", asRoot, async () => {
  let found;
  const become = `process.setgroups([7, 5, 4711]); process.setgid(${nobody}); process.setuid(${nobody})`;
  const pid = await withPeer(become, ({ number }) => {
    found = [peerCredentials(runtime, number), peerUser(runtime, number), peerGroups(runtime, number)];
  });
  assert.deepEqual(found, [{ pid, uid: nobody, gid: nobody }, nobody, [5, 7, 4_711]]);
});

test("peerCredentials gives who connected, whatever user that process has become since", asRoot, async () => {
  using folder = new TemporaryFolder();
  using listener = openListener(folder);
  const program = `const socket = require("node:net").connect(process.argv[1], () => {
    process.setgid(${nobody}); process.setuid(${nobody}); socket.resume().write("changed");
  })`;
  const peer = run([binaries.node26, "-e", program, folder.file("x")]);
  {
    using connection = await acceptOn(listener);
    await until(() => libc.read(connection.number, allocate(16), 16) > 0, "the other user");
    assert.equal(peerCredentials(runtime, connection.number).uid, 0);
  }
  assert.equal((await peer).status, 0);
});

test("peerCredentials and peerGroups still tell of a process that has died", onLinux, async () => {
  const dead = await acceptDead(dying);
  using connection = dead.connection;
  assert.deepEqual(peerCredentials(runtime, connection.number), { ...own, pid: dead.pid });
  assert.deepEqual(peerGroups(runtime, connection.number), ownGroups());
});

test("peerGroups gives this process's groups for its own pair", onLinux, () => {
  const [left, right] = socketPair();
  using _left = left;
  using _right = right;
  assert.deepEqual(peerGroups(runtime, right.number), ownGroups());
});

test("peerGroups gives no groups of a process that has none, and 1,000 of one that has so many", asRoot, async () => {
  const groups = Array.from({ length: 1_000 }, (_, index) => 5_000 + index);
  const found: number[][] = [];
  for (const wanted of [[], groups]) {
    const become = `process.setgroups(${JSON.stringify(wanted)})`;
    await withPeer(become, ({ number }) => found.push(peerGroups(runtime, number)));
  }
  assert.deepEqual(found, [[], groups]);
});

test("peerPidfd gives the process that connected, close-on-exec", onLinux, async () => {
  let found = -1;
  let flags = -1;
  const pid = await withPeer("", ({ number }) => {
    using pidfd = peerPidfd(runtime, number);
    found = pidOf(pidfd);
    flags = libc.fcntl(pidfd.number, abi.constants.F_GETFD, 0);
  });
  assert.deepEqual([found, flags], [pid, abi.constants.FD_CLOEXEC]);
});

test("peerPidfd gives no other process once that one has ended", onLinux, async () => {
  let kept: OwnedDescriptor | null = null;
  await withPeer("", ({ number }) => kept = peerPidfd(runtime, number));
  using pidfd = kept!;
  assert.equal(pidOf(pidfd), -1);
});

/** From Linux 6.16 on there is a pidfd, which names no process; before that there is none. */
function assertGone(connection: OwnedDescriptor): void {
  try {
    using pidfd = peerPidfd(runtime, connection.number);
    assert.equal(pidOf(pidfd), -1);
  } catch (error) {
    assert.equal((error as { code?: string }).code, "ERR_TAKEOVER_PROCESS", String(error));
  }
}

test("peerPidfd gives no running process for one that has died", onLinux, async () => {
  const dead = await acceptDead(dying);
  using connection = dead.connection;
  assertGone(connection);
});

test("peerCredentials and peerPidfd tell of a dead process, not of the child that is there", withPython, async () => {
  const program = `import os, socket, sys
connection = socket.socket(socket.AF_UNIX)
connection.connect(sys.argv[1])
print(os.getpid(), flush=True)
if os.fork() == 0:
    os.dup2(os.open(os.devnull, os.O_RDWR), 1), os.dup2(1, 2)
    connection.send(b"alive")
    connection.recv(1)`;
  const dead = await acceptDead(["python3", "-c", program]);
  using connection = dead.connection;
  await until(() => libc.read(connection.number, allocate(16), 16) === 5, "the child");
  assert.equal(peerCredentials(runtime, connection.number).pid, dead.pid);
  assertGone(connection);
});

test("peerCredentials gives an heir of the listener once that has called listen itself", withPython, async () => {
  using folder = new TemporaryFolder();
  const program = `import os, socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.settimeout(60)
listener.bind(sys.argv[1])
listener.listen()
print(os.getpid(), flush=True)
successor = os.fork()
if successor:
    print(successor, flush=True)
    os._exit(0)
os.dup2(os.open(os.devnull, os.O_RDWR), 1), os.dup2(1, 2)
connection, _ = listener.accept()
listener.listen()
connection.send(b"listening")
listener.accept()`;
  const { status, stdout, stderr } = await run(["python3", "-c", program, folder.file("x")]);
  assert.equal(status, 0, stderr);
  using before = connectPath(runtime, folder.file("x"))!;
  await until(() => libc.read(before.number, allocate(16), 16) > 0, "the second listen");
  using after = connectPath(runtime, folder.file("x"))!;
  const found = [before, after].map(({ number }) => peerCredentials(runtime, number).pid);
  assert.deepEqual(found, stdout.trim().split("\n").map(Number));
});

test("peerPidfd throws ERR_TAKEOVER_PROCESS where the kernel has none of an ended process", onLinux, () => {
  for (const errno of ["ESRCH", "EINVAL"]) {
    assert.throws(() => askOlderKernel(errno, peerPidfd), {
      ...takeoverError("ERR_TAKEOVER_PROCESS"),
      message: /^Cannot open a pidfd of the process at the other end: expected it to run, process \d+ has ended;/,
    });
  }
});

test("peerPidfd and peerGroups throw ERR_TAKEOVER_UNSUPPORTED on a kernel without the option", onLinux, () => {
  for (const question of [peerPidfd, peerGroups]) {
    assert.throws(() => askOlderKernel("ENOPROTOOPT", question), {
      ...takeoverError("ERR_TAKEOVER_UNSUPPORTED"),
      message: /^Cannot tell who is at the other end on this kernel: expected Linux 4/,
    });
  }
});

test("peerPidfd gives an error of the kernel as it is", onLinux, () => {
  assert.throws(() => askOlderKernel("EMFILE", peerPidfd), { name: "SystemError", code: "EMFILE" });
});

/** Asks on a pair, with the answer that another kernel has to all options but SO_PEERCRED. */
function askOlderKernel(errno: string, question: (runtime: Runtime, descriptor: number) => unknown): void {
  const getsockopt: typeof libc.getsockopt = (descriptor, level, name, value, size) =>
    name === SO_PEERCRED ? libc.getsockopt(descriptor, level, name, value, size) : -errnoOf(abi.platform, errno);
  const [left, right] = socketPair();
  using _left = left;
  using _right = right;
  question({ ...runtime, libc: { ...libc, getsockopt } }, left.number);
}

test("peerSecurityContext gives the label that the security module has for this process, or null", onLinux, () => {
  const [left, right] = socketPair();
  using _left = left;
  using _right = right;
  const label = peerSecurityContext(runtime, left.number);
  assert.ok(ownLabels().includes(label), String(label));
});

test("peerCredentials, and all that asks likewise, throws ENOTCONN for what is not connected", onLinux, () => {
  using folder = new TemporaryFolder();
  using stream = new OwnedDescriptor(runtime, openSocket(runtime, "unix", "stream"));
  using datagrams = new OwnedDescriptor(runtime, openSocket(runtime, "unix", "dgram"));
  using bound = new OwnedDescriptor(runtime, openSocket(runtime, "unix", "stream"));
  bindSocket(runtime, bound.number, pathIn(folder));
  for (const { number } of [stream, datagrams, bound]) {
    for (const question of questions) {
      assert.throws(() => question(runtime, number), { name: "SystemError", code: "ENOTCONN" }, question.name);
    }
  }
});

test("peerCredentials, and all that asks likewise, throws ENOTCONN for a TCP connection", onLinux, () => {
  const address = { family: "inet", hostname: "127.0.0.1", port: 0 } as const;
  using listener = bindListener(runtime, address, address);
  using connection = new OwnedDescriptor(runtime, openSocket(runtime, "inet", "stream"));
  try {
    connectSocket(runtime, connection.number, localAddress(runtime, listener.number)!);
  } catch (error) {
    assert.equal((error as { code?: string }).code, "EINPROGRESS");
  }
  for (const question of questions) {
    assert.throws(() => question(runtime, connection.number), { name: "SystemError", code: "ENOTCONN" }, question.name);
  }
});

test("peerCredentials, and all that asks or switches likewise, throws ENOTSOCK for what is no socket", onLinux, () => {
  using file = openNull();
  const expected = { name: "SystemError", code: "ENOTSOCK" };
  for (const question of questions) assert.throws(() => question(runtime, file.number), expected, question.name);
  for (const set of switches) assert.throws(() => set(runtime, file.number, true), expected, set.name);
});

test("peerCredentials, and all that asks or switches likewise, throws EBADF for a closed descriptor", onLinux, () => {
  const expected = { name: "SystemError", code: "EBADF" };
  for (const closed of [-1, neverOpen]) {
    for (const question of questions) assert.throws(() => question(runtime, closed), expected, question.name);
    for (const set of switches) assert.throws(() => set(runtime, closed, true), expected, set.name);
  }
});

test("peerCredentials, and all but peerUser, throws ERR_TAKEOVER_UNSUPPORTED on macOS", () => {
  const elsewhere: Runtime = { ...runtime, abi: abiOf("darwin", "arm64") };
  const expected = takeoverError("ERR_TAKEOVER_UNSUPPORTED");
  for (const question of questions.filter((each) => each !== peerUser)) {
    assert.throws(() => question(elsewhere, -1), expected, question.name);
  }
  for (const set of switches) assert.throws(() => set(elsewhere, -1, true), expected, set.name);
});

/** What one message brought; the descriptors are owned. */
interface Brought extends Disposable {
  readonly ancillary: Ancillary;
  readonly isTruncated: boolean;
}

/** Room for all that the kernel can add, and some descriptors. */
const ampleSize = 4_096;

function send({ number }: OwnedDescriptor, ...messages: ControlMessage[]): number {
  const control = encodeControl(abi, messages);
  const message = new Msghdr(abi, (bytes) => runtime.addressOf(bytes), allocate(1), allocate(control.length));
  message.control.set(control);
  message.aim(0, 1, control.length);
  return libc.sendmsg(number, message.bytes, abi.constants.MSG_DONTWAIT | abi.constants.MSG_NOSIGNAL);
}

function receive({ number }: OwnedDescriptor, controlSize: number = ampleSize): Brought {
  const message = new Msghdr(abi, (bytes) => runtime.addressOf(bytes), allocate(1), allocate(controlSize));
  message.aim(0, 1, controlSize);
  const { MSG_DONTWAIT, MSG_CMSG_CLOEXEC, MSG_CTRUNC } = abi.constants;
  checked(abi, "recvmsg", libc.recvmsg(number, message.bytes, MSG_DONTWAIT | MSG_CMSG_CLOEXEC));
  const ancillary = decodeAncillary(abi, message.received);
  const owned = [...ancillary.descriptors, ...(ancillary.pidfd === null ? [] : [ancillary.pidfd])]
    .map((each) => new OwnedDescriptor(runtime, each));
  return {
    ancillary,
    isTruncated: (message.flags & MSG_CTRUNC) !== 0,
    [Symbol.dispose]: () => owned.forEach((each) => each[Symbol.dispose]()),
  };
}

/** Sends one message from end to end of a pair, set up first. */
function pass(prepare: (to: number) => void, controlSize: number, ...messages: ControlMessage[]): Brought {
  const [from, to] = socketPair();
  using _from = from;
  using _to = to;
  prepare(to.number);
  assert.equal(send(from, ...messages), 1);
  return receive(to, controlSize);
}

test("passCredentials makes messages tell who sent them, until it is switched off", onLinux, () => {
  const [from, to] = socketPair();
  using _from = from;
  using _to = to;
  const told: unknown[] = [];
  for (const isOn of [true, false]) {
    passCredentials(runtime, to.number, isOn);
    assert.equal(integerOption(runtime, to.number, SO_PASSCRED), Number(isOn));
    send(from);
    using brought = receive(to);
    told.push(brought.ancillary.credentials);
  }
  assert.deepEqual(told, [own, null]);
});

test("passPidfd makes messages bring their sender, until it is switched off", onLinux, () => {
  const [from, to] = socketPair();
  using _from = from;
  using _to = to;
  passPidfd(runtime, to.number, true);
  send(from);
  {
    using brought = receive(to);
    const { pidfd } = brought.ancillary;
    const info = readFileSync(`/proc/self/fdinfo/${pidfd}`, "utf8");
    assert.match(info, new RegExp(`^Pid:\\t${process.pid}$`, "m"));
  }
  passPidfd(runtime, to.number, false);
  assert.equal(integerOption(runtime, to.number, SO_PASSPIDFD), 0);
  send(from);
  using brought = receive(to);
  assert.equal(brought.ancillary.pidfd, null);
});

test("passSecurity makes messages bring their sender's label, where there is one", onLinux, () => {
  using brought = pass((to) => {
    passSecurity(runtime, to, true);
    assert.equal(integerOption(runtime, to, SO_PASSSEC), 1);
  }, ampleSize);
  const { securityContext } = brought.ancillary;
  assert.ok(ownLabels().includes(securityContext), String(securityContext));
});

test("passCredentials of a listener holds for what it accepts", onLinux, async () => {
  using folder = new TemporaryFolder();
  using listener = openListener(folder);
  passCredentials(runtime, listener.number, true);
  using _client = connectPath(runtime, folder.file("x"))!;
  using connection = await acceptOn(listener);
  assert.equal(integerOption(runtime, connection.number, SO_PASSCRED), 1);
});

test("passCredentials and passPidfd let decodeAncillary find the sender beside the descriptors", onLinux, () => {
  using file = openNull();
  using brought = pass((to) => {
    passCredentials(runtime, to, true);
    passPidfd(runtime, to, true);
  }, ampleSize, rightsMessage(abi, [file.number, file.number]));
  const { descriptors, credentials, pidfd } = brought.ancillary;
  assert.deepEqual([descriptors.length, credentials, brought.isTruncated], [2, own, false]);
  assert.ok(pidfd !== null && !descriptors.includes(pidfd));
});

test("passCredentials takes room that the descriptors then lack", onLinux, () => {
  using file = openNull();
  const rights = rightsMessage(abi, [file.number]);
  const switchOn = (to: number) => passCredentials(runtime, to, true);
  using tight = pass(switchOn, cmsgSpace(abi, 4), rights);
  assert.deepEqual([tight.ancillary.descriptors, tight.ancillary.credentials, tight.isTruncated], [[], null, true]);
  using ample = pass(switchOn, cmsgSpace(abi, 12) + cmsgSpace(abi, 4), rights);
  assert.deepEqual([ample.ancillary.descriptors.length, ample.ancillary.credentials], [1, own]);
  assert.equal(ample.isTruncated, false);
});

test("credentialsMessage of root is passed on as it is", asRoot, () => {
  const claimed = { pid: own.pid, uid: nobody, gid: 4_711 };
  using brought = pass((to) => passCredentials(runtime, to, true), ampleSize, credentialsMessage(abi, claimed));
  assert.deepEqual(brought.ancillary.credentials, claimed);
});

test("credentialsMessage of this process itself is passed on beside descriptors", onLinux, () => {
  using file = openNull();
  const messages = [credentialsMessage(abi, own), rightsMessage(abi, [file.number])];
  using brought = pass((to) => passCredentials(runtime, to, true), ampleSize, ...messages);
  assert.deepEqual([brought.ancillary.credentials, brought.ancillary.descriptors.length], [own, 1]);
});

test("rightsMessage twice in one buffer brings all descriptors, up to 253 together", onLinux, () => {
  using file = openNull();
  const rights = (count: number) => rightsMessage(abi, new Array<number>(count).fill(file.number));
  using brought = pass(() => {}, ampleSize, rights(250), rights(3));
  assert.equal(brought.ancillary.descriptors.length, 253);
  const [from, to] = socketPair();
  using _from = from;
  using _to = to;
  assert.equal(send(from, rights(250), rights(4)), -errnoOf(abi.platform, "EINVAL"));
});
