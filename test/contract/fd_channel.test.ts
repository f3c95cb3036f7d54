/** What FdChannel sends, what it receives, and how it ends. */

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { credentialsMessage, rightsMessage } from "../../src/c/cmsg.ts";
import { disposeAll, OwnedDescriptor, readFile } from "../../src/sockets/descriptors.ts";
import type { FdMessage } from "../../src/channels/fd_message.ts";
import { peerPidfd } from "../../src/sockets/identity.ts";
import { bindChannel, connectChannel, listenChannel } from "../../src/channels/fd_listener.ts";
import type { SocketType } from "../../src/sockets/socket.ts";
import { run, TemporaryFolder } from "../unit/children.ts";
import { asRoot } from "./fd_children.ts";
import {
  controlOf,
  cookie,
  numbered,
  numberIn,
  numbersIn,
  pairOf,
  received,
  receiveRaw,
  sendRaw,
  upTo,
} from "./raw.ts";
import { openNull, runtime, takeoverError, test } from "./support.ts";

const { abi, libc } = runtime;
const { constants } = abi;
const word = new TextEncoder().encode("word");
const own = { pid: libc.getpid(), uid: libc.geteuid(), gid: libc.getegid() };

/** Sends that many descriptors, each with a content of its own, and compares what comes. */
async function passes(type: SocketType, count: number): Promise<void> {
  using pair = pairOf(type);
  const sent = numbered(count);
  try {
    await pair.left.send(word, sent);
    const { bytes, fds, truncated } = await received(pair.right);
    assert.deepEqual([[...bytes], numbersIn(fds), truncated], [[...word], upTo(count), false]);
    assert.ok(sent.every(({ number }) => number >= 0), "the sender's descriptors stay its own");
  } finally {
    disposeAll(sent);
  }
}

test("FdChannel passes one descriptor over a stream", () => passes("stream", 1));

test("FdChannel passes two descriptors over a stream, in order", () => passes("stream", 2));

test("FdChannel passes 253 descriptors over a stream, in order", () => passes("stream", 253));

test("FdChannel passes one descriptor and 253 in a packet", async () => {
  await passes("seqpacket", 1);
  await passes("seqpacket", 253);
});

test("FdChannel passes one descriptor and 253 in a datagram", async () => {
  await passes("dgram", 1);
  await passes("dgram", 253);
});

/** Three messages with different bytes and descriptors, received one by one. */
async function keepsApart(type: SocketType): Promise<void> {
  using pair = pairOf(type);
  const sent = numbered(3);
  try {
    await pair.left.send(Uint8Array.of(1), sent.slice(0, 1));
    await pair.left.send(Uint8Array.of(2, 2), sent.slice(1));
    await pair.left.send(Uint8Array.of(3));
    const found: unknown[] = [];
    for (let count = 0; count < 3; count++) {
      const { bytes, fds } = await received(pair.right);
      found.push([[...bytes], numbersIn(fds)]);
    }
    assert.deepEqual(found, [[[1], [0]], [[2, 2], [1, 2]], [[3], []]]);
  } finally {
    disposeAll(sent);
  }
}

test("FdChannel keeps the descriptors of separate messages apart on a stream", () => keepsApart("stream"));

test("FdChannel keeps the descriptors of separate messages apart in packets", () => keepsApart("seqpacket"));

test("FdChannel keeps the descriptors of separate messages apart in datagrams", () => keepsApart("dgram"));

test("FdChannel.receive on a stream takes plain bytes with the descriptors behind them, and no more", async () => {
  using pair = pairOf();
  using file = openNull();
  await pair.left.send(Uint8Array.of(1));
  await pair.left.send(Uint8Array.of(2), [file]);
  await pair.left.send(Uint8Array.of(3));
  using first = await received(pair.right);
  using second = await received(pair.right);
  assert.deepEqual([[...first.bytes], first.fds.length], [[1, 2], 1]);
  assert.deepEqual([[...second.bytes], second.fds.length], [[3], 0]);
});

test("FdChannel.receive of one byte brings all the descriptors that were sent with it", async () => {
  using pair = pairOf();
  using file = openNull();
  await pair.left.send(word, [file, file]);
  using first = await received(pair.right, { maxBytes: 1 });
  using second = await received(pair.right);
  assert.deepEqual([[...first.bytes], first.fds.length], [[...word.slice(0, 1)], 2]);
  assert.deepEqual([[...second.bytes], second.fds.length], [[...word.slice(1)], 0]);
});

test("FdChannel.receive gives a copy of the bytes", async () => {
  using pair = pairOf();
  await pair.left.send(Uint8Array.of(1));
  const { bytes } = await received(pair.right);
  await pair.left.send(Uint8Array.of(2));
  await received(pair.right);
  assert.deepEqual([...bytes], [1]);
});

test("FdChannel.receive gives the very socket that was sent, close-on-exec whatever the sender's copy is", async () => {
  using pair = pairOf();
  const { descriptor } = pair.left;
  assert.equal(libc.fcntl(descriptor, constants.F_SETFD, 0), 0);
  await pair.left.send(word, [descriptor]);
  using message = await received(pair.right);
  const [{ number }] = message.fds as [OwnedDescriptor];
  assert.notEqual(number, descriptor);
  assert.equal(cookie(number), cookie(descriptor));
  assert.equal(libc.fcntl(number, constants.F_GETFD, 0), constants.FD_CLOEXEC);
});

test("FdChannel.send takes numbers and owned descriptors alike", async () => {
  using pair = pairOf();
  const [first, second] = numbered(2) as [OwnedDescriptor, OwnedDescriptor];
  using _first = first;
  using _second = second;
  await pair.left.send(word, [first.number, second]);
  assert.deepEqual(numbersIn((await received(pair.right)).fds), [0, 1]);
});

/** What a foreign sender's control data become. */
async function receivedFrom(control: Uint8Array, options = {}): Promise<FdMessage> {
  using pair = pairOf("stream", options);
  assert.equal(sendRaw(pair.left.descriptor, word, control), "sent 4");
  return await received(pair.right);
}

test("FdChannel.receive joins the descriptors of several control messages, in order", async () => {
  const sent = numbered(5);
  const numbers = sent.map(({ number }) => number);
  const control = controlOf(
    ...[[0, 1], [1, 3], [3, 5]].map(([from, to]) => rightsMessage(abi, numbers.slice(from, to))),
  );
  const message = await receivedFrom(control);
  disposeAll(sent);
  assert.deepEqual(numbersIn(message.fds), upTo(5));
});

test("FdChannel.receive gives rights beside credentials, in either order", async () => {
  using file = openNull();
  const messages = [rightsMessage(abi, [file.number]), credentialsMessage(abi, own)];
  for (const control of [controlOf(...messages), controlOf(...messages.toReversed())]) {
    using plain = await receivedFrom(control);
    assert.deepEqual([plain.fds.length, plain.credentials], [1, undefined]);
    using told = await receivedFrom(control, { passCredentials: true });
    assert.deepEqual([told.fds.length, told.credentials], [1, own]);
  }
});

test("FdChannel.receive takes an array of no descriptors for none", async () => {
  using message = await receivedFrom(controlOf(rightsMessage(abi, [])));
  assert.deepEqual([[...message.bytes], message.fds], [[...word], []]);
});

test("FdChannel.receive gives the whole descriptors of an array that a sender cut inside an int", async () => {
  using file = openNull();
  const { data, level, type } = rightsMessage(abi, [file.number, file.number]);
  using message = await receivedFrom(controlOf({ level, type, data: data.subarray(0, 6) }));
  assert.equal(message.fds.length, 1);
});

test("FdChannel.send passes an empty list of descriptors as none", async () => {
  using pair = pairOf();
  await pair.left.send(word, []);
  const { size, flags, descriptors } = receiveRaw(pair.right.descriptor, 16, 64);
  assert.deepEqual([size, flags, descriptors], [4, 0, []]);
});

test("FdChannel.send of 1,000 descriptors on a stream puts 253 with each first byte, then the rest", async () => {
  using pair = pairOf();
  using file = openNull();
  const bytes = Uint8Array.from(upTo(10));
  await pair.left.send(bytes, new Array(1_000).fill(file));
  const found: unknown[] = [];
  for (let count = 0; count < 4; count++) {
    const { bytes, descriptors } = receiveRaw(pair.right.descriptor, 64, 2_048);
    found.push([bytes, descriptors.length]);
    disposeAll(descriptors);
  }
  assert.deepEqual(found, [[[0], 253], [[1], 253], [[2], 253], [upTo(7, 3), 241]]);
});

test("FdChannel passes 254 descriptors in one send on a stream, in order", async () => {
  using pair = pairOf();
  const sent = numbered(254);
  await pair.left.send(Uint8Array.of(1, 2), sent);
  disposeAll(sent);
  const first = await received(pair.right);
  const second = await received(pair.right);
  assert.deepEqual([...first.bytes, ...second.bytes], [1, 2]);
  assert.deepEqual([first, second].map(({ fds }) => fds.length), [253, 1]);
  assert.deepEqual(numbersIn([...first.fds, ...second.fds]), upTo(254));
});

test("FdChannel passes descriptors without a byte in packets and datagrams", async () => {
  for (const type of ["seqpacket", "dgram"] as const) {
    using pair = pairOf(type);
    using file = openNull();
    await pair.left.send(new Uint8Array(0), [file]);
    using message = await received(pair.right);
    assert.deepEqual([message.bytes.length, message.fds.length], [0, 1]);
  }
});

test("FdChannel.receive takes an empty packet for a message, and not for the end", async () => {
  using pair = pairOf("seqpacket", { passPidfd: true });
  await pair.left.send(new Uint8Array(0));
  await pair.left.send(new Uint8Array(0));
  await pair.left.send(word);
  for (const size of [0, 0, 4]) {
    using message = await received(pair.right);
    assert.equal(message.bytes.length, size);
    assert.ok(message.pidfd!.number >= 0);
  }
});

test("FdChannel.receive takes an empty datagram for a message", async () => {
  using pair = pairOf("dgram");
  await pair.left.send(new Uint8Array(0));
  assert.equal((await received(pair.right)).bytes.length, 0);
});

test("FdChannel.receive says that a packet was longer than maxBytes, and has its descriptors", async () => {
  for (const type of ["seqpacket", "dgram"] as const) {
    using pair = pairOf(type);
    using file = openNull();
    await pair.left.send(word, [file]);
    await pair.left.send(word, [file]);
    using cut = await received(pair.right, { maxBytes: 3 });
    using whole = await received(pair.right, { maxBytes: 4 });
    assert.deepEqual([[...cut.bytes], cut.fds.length, cut.truncated], [[...word.slice(0, 3)], 1, true]);
    assert.deepEqual([[...whole.bytes], whole.fds.length, whole.truncated], [[...word], 1, false]);
  }
});

test("FdChannel.send throws EMSGSIZE for a datagram that is too long, and sends nothing", async () => {
  using pair = pairOf("dgram");
  using file = openNull();
  for (const size of [256 * 1024, 1024 * 1024]) {
    await assert.rejects(pair.left.send(new Uint8Array(size), [file]), { name: "SystemError", code: "EMSGSIZE" });
  }
  assert.equal(receiveRaw(pair.right.descriptor, 8, 64).size, -11);
});

test("FdChannel.receive gives null at the end, again and again, after what was sent before", async () => {
  for (const type of ["stream", "seqpacket"] as const) {
    using pair = pairOf(type);
    using file = openNull();
    await pair.left.send(word, [file]);
    pair.left.close();
    using last = await received(pair.right);
    assert.equal(last.fds.length, 1);
    assert.equal(await pair.right.receive(), null);
    assert.equal(await pair.right.receive(), null);
  }
});

test("FdChannel.receive gives null at the end of a channel that is told who sends", async () => {
  for (const type of ["stream", "seqpacket"] as const) {
    using pair = pairOf(type, { passCredentials: true, passPidfd: true });
    pair.left.close();
    assert.equal(await pair.right.receive(), null);
  }
});

test("FdChannel.receive throws ECONNRESET once when the other side closed without reading everything", async () => {
  for (const type of ["stream", "seqpacket"] as const) {
    using pair = pairOf(type);
    await pair.right.send(word);
    pair.left.close();
    await assert.rejects(pair.right.receive(), { name: "SystemError", code: "ECONNRESET", syscall: "recvmsg" });
    assert.equal(await pair.right.receive(), null);
  }
});

test("FdChannel.receive gives null when the other side is half-closed, and still sends", async () => {
  const SHUT_WR = 1;
  for (const type of ["stream", "seqpacket"] as const) {
    using pair = pairOf(type);
    using file = openNull();
    assert.equal(libc.shutdown(pair.left.descriptor, SHUT_WR), 0);
    assert.equal(await pair.right.receive(), null);
    await pair.right.send(word, [file]);
    using message = await received(pair.left);
    assert.equal(message.fds.length, 1);
  }
});

test("FdChannel.send throws EPIPE when the receiver has gone, and no signal ends the process", async () => {
  for (const type of ["stream", "seqpacket"] as const) {
    using pair = pairOf(type);
    using file = openNull();
    pair.right.close();
    await assert.rejects(pair.left.send(word, [file]), { name: "SystemError", code: "EPIPE", syscall: "sendmsg" });
  }
});

test("FdChannel.send throws ECONNREFUSED when a datagram's receiver has gone", async () => {
  using pair = pairOf("dgram");
  pair.right.close();
  await assert.rejects(pair.left.send(word), { name: "SystemError", code: "ECONNREFUSED" });
});

test("FdChannel.send to an address passes descriptors to a bound datagram channel, which says from whom", async () => {
  using folder = new TemporaryFolder();
  using receiver = bindChannel(runtime, folder.file("receiver"));
  using sender = bindChannel(runtime, folder.file("sender"));
  using unnamed = await connectChannel(runtime, folder.file("receiver"), { type: "dgram" });
  using file = openNull();
  await sender.send(word, [file], { to: { family: "unix", path: folder.file("receiver") } });
  await unnamed.send(word, [file]);
  using first = await received(receiver);
  using second = await received(receiver);
  assert.deepEqual([first.fds.length, first.from], [1, { family: "unix", path: folder.file("sender") }]);
  assert.deepEqual([second.fds.length, second.from], [1, undefined]);
});

test("FdChannel iterates over messages, and closes of each what was not taken", async () => {
  using pair = pairOf();
  for (const number of upTo(3)) {
    const sent = numbered(2, number * 2);
    await pair.left.send(Uint8Array.of(number), sent);
    disposeAll(sent);
  }
  pair.left.close();
  const taken: number[] = [];
  const kept: OwnedDescriptor[] = [];
  for await (const { bytes, fds } of pair.right) {
    kept.push(fds[0]!);
    taken.push(fds[1]!.take());
    assert.equal(bytes.length, 1);
    for (const earlier of kept.slice(0, -1)) assert.equal(earlier.number, -1);
  }
  assert.deepEqual(kept.map(({ number }) => number), [-1, -1, -1]);
  assert.deepEqual(numbersIn(taken.map((number) => new OwnedDescriptor(runtime, number))), [1, 3, 5]);
});

test("FdChannel closes a message's descriptors when its loop is left, and goes on afterwards", async () => {
  using pair = pairOf();
  using file = openNull();
  await pair.left.send(Uint8Array.of(1), [file]);
  await pair.left.send(Uint8Array.of(2), [file]);
  for await (const _message of pair.right) break;
  using next = await received(pair.right);
  assert.deepEqual([[...next.bytes], next.fds.length], [[2], 1]);
});

test("FdMessage closes what nobody took when it is disposed of, and leaves what was taken", async () => {
  using pair = pairOf();
  const sent = numbered(3);
  await pair.left.send(word, sent);
  disposeAll(sent);
  const message = await received(pair.right);
  const taken = message.fds[1]!.take();
  message[Symbol.dispose]();
  assert.deepEqual(message.fds.map(({ number }) => number), [-1, -1, -1]);
  assert.equal(numberIn(taken), 1);
  libc.close(taken);
});

test("FdMessage.credentials are the sender's when the channel asks for them, and are absent otherwise", async () => {
  for (const type of ["stream", "seqpacket", "dgram"] as const) {
    using told = pairOf(type, { passCredentials: true });
    using untold = pairOf(type);
    await told.left.send(word);
    await untold.left.send(word);
    assert.deepEqual((await received(told.right)).credentials, own);
    assert.equal((await received(untold.right)).credentials, undefined);
  }
});

test("FdChannel.send passes this process's own credentials beside descriptors", async () => {
  using pair = pairOf("stream", { passCredentials: true });
  using file = openNull();
  await pair.left.send(word, [file], { credentials: own });
  using message = await received(pair.right);
  assert.deepEqual([message.credentials, message.fds.length], [own, 1]);
});

test("FdChannel.send passes the credentials of another process as root", asRoot, async () => {
  using pair = pairOf("stream", { passCredentials: true });
  const foreign = { pid: 1, uid: 65_534, gid: 65_533 };
  await pair.left.send(word, [], { credentials: foreign });
  assert.deepEqual((await received(pair.right)).credentials, foreign);
});

test("FdChannel.send throws ESRCH for credentials of a process that is not there", asRoot, async () => {
  using pair = pairOf();
  const credentials = { pid: 0x7fffffff, uid: 0, gid: 0 };
  await assert.rejects(pair.left.send(word, [], { credentials }), { name: "SystemError", code: "ESRCH" });
});

test("FdMessage.pidfd is the sender, beside its descriptors, and is closed with the message", async () => {
  using pair = pairOf("stream", { passPidfd: true, passCredentials: true });
  using file = openNull();
  await pair.left.send(word, [file]);
  const message = await received(pair.right);
  assert.equal(pidOf(message.pidfd!.number), own.pid);
  assert.deepEqual([message.fds.length, message.credentials], [1, own]);
  message[Symbol.dispose]();
  assert.equal(message.pidfd!.number, -1);
});

/** Whose pidfd it is: the line `Pid:` of its fdinfo (pidfd_open(2)); -1 once the process has gone. */
function pidOf(pidfd: number): number {
  return Number(/^Pid:\s*(-?\d+)$/m.exec(readFile(runtime, `/proc/self/fdinfo/${pidfd}`))![1]);
}

const hasPython = spawnSync("python3", ["--version"]).status === 0;
const withPython = { skip: hasPython ? false : "python3 is not installed" };

test(
  "FdMessage.credentials and pidfd are those of a sender that has ended before the receive",
  withPython,
  async () => {
    using folder = new TemporaryFolder();
    const path = folder.file("x");
    using listener = listenChannel(runtime, path, { passCredentials: true, passPidfd: true });
    const program = `import os, socket
s = socket.socket(socket.AF_UNIX)
s.connect(${JSON.stringify(path)})
socket.send_fds(s, [b"word"], [0])
print(os.getpid())`;
    const { status, stdout, stderr } = await run(["python3", "-c", program]);
    assert.equal(status, 0, stderr);
    using channel = await listener.accept();
    using message = await received(channel);
    assert.equal(message.fds.length, 1);
    assert.deepEqual(message.credentials, { ...own, pid: Number(stdout) });
    if (message.pidfd) assert.equal(pidOf(message.pidfd.number), -1);
    assert.equal(channel.peerCredentials().pid, Number(stdout));
    assert.equal(await channel.receive(), null);
  },
);

test("FdMessage.securityContext is the label that the other end has, and absent where none is", async () => {
  using pair = pairOf("stream", { passSecurity: true });
  await pair.left.send(word);
  assert.equal((await received(pair.right)).securityContext ?? null, pair.right.peerSecurityContext());
});

test("FdChannel says who opened the other end", () => {
  using pair = pairOf();
  assert.deepEqual(pair.left.peerCredentials(), own);
  assert.ok(pair.left.peerGroups().every((group) => Number.isInteger(group)));
  using pidfd = pair.left.peerPidfd();
  using same = peerPidfd(runtime, pair.left.descriptor);
  assert.deepEqual([pidfd, same].map(({ number }) => pidOf(number)), [own.pid, own.pid]);
});

test("FdChannel methods throw ERR_TAKEOVER_CLOSED once it is closed", async () => {
  using pair = pairOf();
  pair.left.close();
  pair.left.close();
  assert.equal(pair.left.descriptor, -1);
  const closed = takeoverError("ERR_TAKEOVER_CLOSED");
  await assert.rejects(pair.left.send(word), closed);
  await assert.rejects(pair.left.receive(), closed);
  assert.throws(() => pair.left.peerCredentials(), closed);
  assert.throws(() => pair.left.peerPidfd(), closed);
  assert.throws(() => pair.left.peerGroups(), closed);
  assert.throws(() => pair.left.peerSecurityContext(), closed);
  for await (const _message of pair.left) assert.fail("a closed channel has no messages");
});
