import assert from "node:assert/strict";
import { allocate, type Bytes, viewOf, writeField } from "../../src/c/bytes.ts";
import { DescriptorChannel, type Received } from "../../src/sockets/channel.ts";
import { cmsgSpace, decodeRights, encodeRights } from "../../src/c/cmsg.ts";
import { disposeAll, OwnedDescriptor } from "../../src/sockets/descriptors.ts";
import { errnoName } from "../../src/c/errno.ts";
import { Msghdr } from "../../src/c/msghdr.ts";
import type { Runtime } from "../../src/runtime.ts";
import { cookieOf } from "../../src/sockets/socket.ts";
import { openNull, patienceMs, runtime, socketPair, takeoverError, test, until } from "./support.ts";

const { abi, libc } = runtime;
const { constants } = abi;
const dataSize = 256;
const word = new TextEncoder().encode("word");

/** Two channels that are connected; they are closed with the descriptors they own. */
interface Pair extends Disposable {
  readonly left: DescriptorChannel;
  readonly right: DescriptorChannel;
  readonly ends: readonly [OwnedDescriptor, OwnedDescriptor];
}

function channelPair(size = dataSize, receiver: Runtime = runtime): Pair {
  const ends = socketPair();
  return {
    left: new DescriptorChannel(runtime, ends[0].number, size),
    right: new DescriptorChannel(receiver, ends[1].number, size),
    ends,
    [Symbol.dispose]: () => disposeAll(ends),
  };
}

/** What has been sent is there for recvmsg at once. */
function receive(channel: DescriptorChannel): Received {
  const received = channel.receive(dataSize);
  assert.ok(received, "nothing is there");
  return received;
}

/** Sends that many sockets, and proves each of them by a byte that is written through the received copy. */
async function passes(count: number): Promise<void> {
  using channel = channelPair();
  const pairs = Array.from({ length: count }, () => socketPair());
  let received: OwnedDescriptor[] = [];
  try {
    await channel.left.send(word, pairs.map(([, sent]) => sent.number), patienceMs);
    disposeAll(pairs.map(([, sent]) => sent));
    const message = receive(channel.right);
    received = message.descriptors;
    assert.deepEqual([...message.bytes], [...word]);
    assert.equal(received.length, count);
    for (const [index, [kept]] of pairs.entries()) {
      await new DescriptorChannel(runtime, received[index]!.number, 1).send(Uint8Array.of(index), [], patienceMs);
      assert.deepEqual([...receive(new DescriptorChannel(runtime, kept.number, dataSize)).bytes], [index]);
    }
  } finally {
    disposeAll([...pairs.flat(), ...received]);
  }
}

test("DescriptorChannel passes one descriptor", () => passes(1));

test("DescriptorChannel passes two descriptors in order", () => passes(2));

test("DescriptorChannel passes 253 descriptors in order", () => passes(253));

test("DescriptorChannel.send refuses 254 descriptors, and sends nothing", async () => {
  using channel = channelPair();
  await assert.rejects(channel.left.send(word, new Array(254).fill(0), patienceMs), {
    name: "RangeError",
    message: /^Cannot send 254 descriptors in one message: expected at most 253/,
  });
  assert.equal(channel.right.receive(dataSize), null);
});

test("sendmsg refuses 254 descriptors on Linux, in two control messages too, and takes 253", () => {
  using channel = channelPair();
  using file = openNull();
  const rights = (count: number) => encodeRights(abi, new Array(count).fill(file.number));
  assert.equal(sendRaw(channel.ends[0].number, rights(253), rights(1)), "EINVAL");
  assert.equal(sendRaw(channel.ends[0].number, rights(127), rights(126)), "sent 1");
  const received = receive(channel.right).descriptors;
  disposeAll(received);
  assert.equal(received.length, 253);
});

/** One byte with any control data. */
function sendRaw(descriptor: number, ...parts: readonly Bytes[]): string {
  const control = allocate(parts.reduce((size, part) => size + part.length, 0));
  let at = 0;
  for (const part of parts) {
    control.set(part, at);
    at += part.length;
  }
  const message = new Msghdr(abi, (bytes) => runtime.addressOf(bytes), allocate(1), control);
  message.aim(0, 1, control.length);
  const result = libc.sendmsg(descriptor, message.bytes, constants.MSG_DONTWAIT | constants.MSG_NOSIGNAL);
  return result < 0 ? errnoName(abi.platform, -result) : `sent ${result}`;
}

test("DescriptorChannel.receive gives the very socket that was sent", async () => {
  using channel = channelPair();
  await channel.left.send(word, [channel.ends[0].number], patienceMs);
  const [copy] = receive(channel.right).descriptors;
  using received = copy!;
  assert.notEqual(received.number, channel.ends[0].number);
  assert.equal(cookieOf(runtime, received.number), cookieOf(runtime, channel.ends[0].number));
});

test("DescriptorChannel.receive gives descriptors that are close-on-exec", async () => {
  using channel = channelPair();
  using file = openNull();
  assert.equal(libc.fcntl(file.number, constants.F_SETFD, 0), 0);
  await channel.left.send(word, [file.number], patienceMs);
  using received = receive(channel.right).descriptors[0]!;
  assert.equal(libc.fcntl(received.number, constants.F_GETFD, 0), constants.FD_CLOEXEC);
});

test("DescriptorChannel passes bytes without descriptors, and leaves none from the message before", async () => {
  using channel = channelPair();
  await channel.left.send(word, [channel.ends[0].number], patienceMs);
  disposeAll(receive(channel.right).descriptors);
  await channel.left.send(word, [], patienceMs);
  const { bytes, descriptors } = receive(channel.right);
  assert.deepEqual([[...bytes], descriptors], [[...word], []]);
});

test("DescriptorChannel.receive takes no more bytes than it was asked for", async () => {
  using channel = channelPair();
  await channel.left.send(word, [], patienceMs);
  assert.deepEqual([...channel.right.receive(1)!.bytes], [...word.slice(0, 1)]);
  assert.deepEqual([...channel.right.receive(dataSize)!.bytes], [...word.slice(1)]);
});

test("DescriptorChannel.receive gives a copy of the bytes", async () => {
  using channel = channelPair();
  await channel.left.send(Uint8Array.of(1), [], patienceMs);
  const { bytes } = receive(channel.right);
  await channel.left.send(Uint8Array.of(2), [], patienceMs);
  receive(channel.right);
  assert.deepEqual([...bytes], [1]);
});

test("DescriptorChannel.receive gives null when nothing is there (EAGAIN)", () => {
  using channel = channelPair();
  assert.equal(channel.right.receive(dataSize), null);
});

test("DescriptorChannel.receive gives no bytes when the peer has ended, again and again", async () => {
  using channel = channelPair();
  await channel.left.send(word, [], patienceMs);
  channel.ends[0][Symbol.dispose]();
  assert.deepEqual([...receive(channel.right).bytes], [...word]);
  assert.equal(receive(channel.right).bytes.length, 0);
  assert.equal(receive(channel.right).bytes.length, 0);
});

test("DescriptorChannel.receive throws a SystemError for what is no socket", () => {
  using file = openNull();
  const channel = new DescriptorChannel(runtime, file.number, dataSize);
  assert.throws(() => channel.receive(1), { name: "SystemError", code: "ENOTSOCK", syscall: "recvmsg" });
});

test("DescriptorChannel.send throws a SystemError for what is no socket, or not open", async () => {
  using file = openNull();
  const expected = { name: "SystemError", syscall: "sendmsg" };
  const send = (descriptor: number) => new DescriptorChannel(runtime, descriptor, dataSize).send(word, [], patienceMs);
  await assert.rejects(send(file.number), { ...expected, code: "ENOTSOCK" });
  await assert.rejects(send(100_000), { ...expected, code: "EBADF" });
});

test("DescriptorChannel.send throws EPIPE when the peer has gone, and no signal ends the process", async () => {
  using channel = channelPair();
  channel.ends[1][Symbol.dispose]();
  await assert.rejects(channel.left.send(word, [], patienceMs), {
    name: "SystemError",
    code: "EPIPE",
    syscall: "sendmsg",
  });
});

test("DescriptorChannel.send throws EBADF, and sends nothing, when one descriptor is not open", async () => {
  using channel = channelPair();
  await assert.rejects(channel.left.send(word, [channel.ends[0].number, 100_000], patienceMs), { code: "EBADF" });
  assert.equal(channel.right.receive(dataSize), null);
});

test("DescriptorChannel.send throws ERR_TAKEOVER_TIMEOUT when the receiver does not read", async () => {
  using channel = channelPair(64 * 1024);
  const full = new Uint8Array(64 * 1024);
  const fill = async () => {
    for (;;) await channel.left.send(full, [], 20);
  };
  await assert.rejects(fill(), {
    ...takeoverError("ERR_TAKEOVER_TIMEOUT"),
    message: /^Cannot send descriptors within 20 ms: sendmsg says EAGAIN;/,
  });
});

test("DescriptorChannel.send goes on after a short write, and sends the descriptors once", async () => {
  const size = 1024 * 1024;
  using channel = channelPair(size);
  const sent = Uint8Array.from({ length: size }, (_, index) => index * 7 % 251);
  const sending = channel.left.send(sent, [channel.ends[0].number], patienceMs);
  const received = new Uint8Array(size);
  const descriptors: OwnedDescriptor[] = [];
  let at = 0;
  await until(() => {
    for (let part = channel.right.receive(size); part; part = channel.right.receive(size)) {
      received.set(part.bytes, at);
      at += part.bytes.length;
      descriptors.push(...part.descriptors);
    }
    return at === size;
  }, "all bytes");
  await sending;
  disposeAll(descriptors);
  assert.equal(descriptors.length, 1);
  assert.deepEqual(received, sent);
});

test("DescriptorChannel.send keeps two messages apart that wait at the same time", async () => {
  using channel = channelPair();
  await Promise.all([
    channel.left.send(Uint8Array.of(1), [channel.ends[0].number], patienceMs),
    channel.left.send(Uint8Array.of(2), [channel.ends[1].number], patienceMs),
  ]);
  const first = receive(channel.right);
  const second = receive(channel.right);
  const cookies = [...first.descriptors, ...second.descriptors].map(({ number }) => cookieOf(runtime, number));
  disposeAll([...first.descriptors, ...second.descriptors]);
  assert.deepEqual([[...first.bytes], [...second.bytes]], [[1], [2]]);
  assert.deepEqual(cookies, channel.ends.map(({ number }) => cookieOf(runtime, number)));
});

/** The same kernel, but the control buffer that it is told of has only that many bytes. */
function withControlSize(size: number): Runtime {
  const recvmsg = (descriptor: number, message: Bytes | null, flags: number) => {
    writeField(viewOf(message!), abi.msghdr.controllen, size);
    return libc.recvmsg(descriptor, message, flags);
  };
  return { ...runtime, libc: { ...libc, recvmsg } };
}

/** What comes of ten descriptors and a short control buffer; `test` sees that those that came are closed. */
async function isTruncated(controlSize: number, arrivedCount: number): Promise<void> {
  using channel = channelPair(dataSize, withControlSize(controlSize));
  await channel.left.send(word, new Array(10).fill(channel.ends[0].number), patienceMs);
  assert.throws(() => channel.right.receive(dataSize), {
    ...takeoverError("ERR_TAKEOVER_TRUNCATED"),
    message: new RegExp(`^Cannot receive all descriptors of a message: ${arrivedCount} arrived and were closed`),
  });
}

test("DescriptorChannel.receive throws ERR_TAKEOVER_TRUNCATED for a short control buffer, and leaks nothing", () =>
  isTruncated(cmsgSpace(abi, 5 * 4), 6));

test("DescriptorChannel.receive closes the second descriptor that Linux puts into the padding", () =>
  isTruncated(cmsgSpace(abi, 4), 2));

test("DescriptorChannel.receive throws ERR_TAKEOVER_TRUNCATED when not even a header fits", () => isTruncated(8, 0));

test("DescriptorChannel.receive throws ERR_TAKEOVER_TRUNCATED when an int is cut", () =>
  isTruncated(16 + 4 * 3 + 2, 3));

test("Msghdr.received gives nothing after a message without control data, whatever the buffer holds", async () => {
  using channel = channelPair();
  const message = new Msghdr(abi, (bytes) => runtime.addressOf(bytes), allocate(8), allocate(64));
  message.control.set(encodeRights(abi, [3, 4]));
  await channel.left.send(word, [], patienceMs);
  message.aim(0, 8, 64);
  assert.equal(libc.recvmsg(channel.ends[1].number, message.bytes, constants.MSG_DONTWAIT), word.length);
  assert.deepEqual([message.received.length, message.flags], [0, 0]);
});

test("Msghdr.flags has no MSG_CMSG_CLOEXEC, though Linux echoes it", async () => {
  using channel = channelPair();
  await channel.left.send(word, [channel.ends[0].number], patienceMs);
  const message = new Msghdr(abi, (bytes) => runtime.addressOf(bytes), allocate(8), allocate(64));
  message.aim(0, 8, 64);
  const { MSG_DONTWAIT, MSG_CMSG_CLOEXEC } = constants;
  assert.equal(libc.recvmsg(channel.ends[1].number, message.bytes, MSG_DONTWAIT | MSG_CMSG_CLOEXEC), word.length);
  disposeAll(decodeRights(abi, message.received).map((number) => new OwnedDescriptor(runtime, number)));
  assert.equal(message.flags, 0);
});
