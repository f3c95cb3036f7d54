/** Control buffers and descriptor tables that are too small, as the kernel treats them. */

import assert from "node:assert/strict";
import { cmsgSpace, rightsMessage } from "../../src/c/cmsg.ts";
import { readField, viewOf, writeField } from "../../src/c/bytes.ts";
import { TruncatedError } from "../../src/errors.ts";
import type { Runtime } from "../../src/runtime.ts";
import { disposeAll, OwnedDescriptor } from "../../src/sockets/descriptors.ts";
import { FdChannel } from "../../src/channels/fd_channel.ts";
import { duplicate, openPair, type SocketType } from "../../src/sockets/socket.ts";
import { foundInCrowd } from "./fd_children.ts";
import { controlOf, numbered, numbersIn, pairOf, received, receiveRaw, sendRaw, upTo } from "./raw.ts";
import { openNull, runtime, takeoverError, test } from "./support.ts";

const { abi, libc } = runtime;
const { MSG_CTRUNC } = abi.constants;
const word = new TextEncoder().encode("word");

/** How many descriptors the kernel puts into so much room: it uses the padding of a header too. */
function fittingCount(controlSize: number, sentCount: number): number {
  return Math.max(0, Math.min(sentCount, Math.floor((controlSize - cmsgSpace(abi, 0)) / 4)));
}

/** One recvmsg of `count` descriptors for every size of the control buffer. Leaks show in the table. */
function everyControlSize(type: SocketType, count: number): void {
  const [left, right] = openPair(runtime, type);
  using _left = left;
  using _right = right;
  using file = openNull();
  const control = controlOf(rightsMessage(abi, new Array(count).fill(file.number)));
  for (let size = 0; size <= cmsgSpace(abi, 4 * count) + 8; size++) {
    assert.equal(sendRaw(left.number, word, control), "sent 4");
    const { bytes, flags, descriptors } = receiveRaw(right.number, 8, size);
    disposeAll(descriptors);
    const expected = fittingCount(size, count);
    assert.deepEqual([bytes, descriptors.length], [[...word], expected], `msg_controllen ${size}`);
    assert.equal((flags & MSG_CTRUNC) !== 0, expected < count, `MSG_CTRUNC with msg_controllen ${size}`);
  }
}

test("recvmsg installs what every size of the control buffer has room for, and decodeAncillary finds all of it", () => {
  for (const count of [1, 2, 3, 8]) everyControlSize("stream", count);
  everyControlSize("seqpacket", 5);
  everyControlSize("dgram", 5);
});

test("recvmsg with CMSG_LEN of the descriptors takes exactly those, with CMSG_SPACE of one it takes two", () => {
  const [left, right] = openPair(runtime);
  using _left = left;
  using _right = right;
  for (const [controlSize, expected] of [[20, [0]], [24, [0, 1]], [28, [0, 1, 2]]] as const) {
    const sent = numbered(3);
    assert.equal(sendRaw(left.number, word, controlOf(rightsMessage(abi, sent.map(({ number }) => number)))), "sent 4");
    disposeAll(sent);
    assert.deepEqual(numbersIn(receiveRaw(right.number, 8, controlSize).descriptors), expected);
  }
});

/** The same kernel, but the control buffer that it is told of has only that many bytes. */
function withControlSize(size: number): Runtime {
  const recvmsg: Runtime["libc"]["recvmsg"] = (descriptor, message, flags) => {
    const view = viewOf(message!);
    if (readField(view, abi.msghdr.controllen) > size) writeField(view, abi.msghdr.controllen, size);
    return libc.recvmsg(descriptor, message, flags);
  };
  return { ...runtime, libc: { ...libc, recvmsg } };
}

test("FdChannel.receive throws a TruncatedError for every short control buffer, and leaks nothing", async () => {
  const count = 10;
  const [left, right] = openPair(runtime);
  using _left = left;
  using file = openNull();
  const control = controlOf(rightsMessage(abi, new Array(count).fill(file.number)));
  using whole = new FdChannel(runtime, right, "stream");
  for (let size = 0; size < 16 + 4 * count; size++) {
    assert.equal(sendRaw(left.number, word, control), "sent 4");
    const copy = new OwnedDescriptor(runtime, duplicate(runtime, whole.descriptor));
    using short = new FdChannel(withControlSize(size), copy, "stream");
    const error = await short.receive({ minFds: count }).catch((error: unknown) => error);
    assert.ok(error instanceof TruncatedError);
    assert.deepEqual([[...error.bytes], error.closedCount], [[...word], fittingCount(size, count)]);
    assert.match(
      error.message,
      /^Cannot receive all descriptors of a message: \d+ arrived and were closed, .* raise the limit/,
    );
  }
  assert.equal(sendRaw(left.number, word, control), "sent 4");
  using message = (await whole.receive())!;
  assert.equal(message.fds.length, count);
});

test("FdChannel.receive has room for everything that the kernel adds to 253 descriptors", async () => {
  using pair = pairOf("stream", { passCredentials: true, passPidfd: true, passSecurity: true });
  const sent = numbered(253);
  await pair.left.send(word, sent);
  disposeAll(sent);
  using message = await received(pair.right);
  assert.ok(message.credentials && message.pidfd);
  assert.deepEqual(numbersIn(message.fds), upTo(253));
});

const truncated = (count: number) => ({
  ...takeoverError("ERR_TAKEOVER_TRUNCATED"),
  message: `Cannot receive all descriptors of a message: ${count} arrived and were closed, the kernel dropped ` +
    "the others (MSG_CTRUNC); raise the limit of open files (ulimit -n) or send fewer",
  next: "byte 2, 10 descriptors",
  changes: [],
});

test("FdChannel.receive takes ten descriptors into a table that has room for ten", async () => {
  assert.deepEqual((await foundInCrowd()).ten, {
    code: "byte 1, 10 descriptors",
    next: "byte 2, 10 descriptors",
    changes: [],
  });
});

test("FdChannel.receive throws ERR_TAKEOVER_TRUNCATED for nine of ten, and goes on", async () => {
  assert.deepEqual((await foundInCrowd()).nine, truncated(9));
});

test("FdChannel.receive throws ERR_TAKEOVER_TRUNCATED for one of ten, and goes on", async () => {
  assert.deepEqual((await foundInCrowd()).one, truncated(1));
});

test("FdChannel.receive throws ERR_TAKEOVER_TRUNCATED when the table is full, and goes on", async () => {
  assert.deepEqual((await foundInCrowd()).none, truncated(0));
});

test("FdChannel.receive gives the credentials, and no pidfd, when the table is full", async () => {
  assert.deepEqual((await foundInCrowd()).pidfd, {
    code: "byte 1, 0 descriptors, credentials",
    next: "byte 2, 0 descriptors, credentials, pidfd",
    changes: [],
  });
});

test("FdChannel.receive throws ERR_TAKEOVER_TRUNCATED beside a pidfd when the table is full", async () => {
  assert.deepEqual((await foundInCrowd()).all, {
    ...truncated(0),
    next: "byte 2, 10 descriptors, credentials, pidfd",
  });
});

test("FdListener.accept throws EMFILE when the table is full, and its loop waits until there is room", async () => {
  assert.deepEqual((await foundInCrowd()).accept, {
    name: "SystemError",
    code: "EMFILE",
    message: "accept4 EMFILE",
    next: "1 descriptors",
  });
});
