/** Senders that are faster than their receivers, and calls that fail for a moment. */

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { disposeAll, type OwnedDescriptor } from "../../src/sockets/descriptors.ts";
import type { FdChannel } from "../../src/channels/fd_channel.ts";
import type { SocketType } from "../../src/sockets/socket.ts";
import { asRoot, foundByOrdinaryUser, foundWhileInterrupted } from "./fd_children.ts";
import { aborted, numbered, numbersIn, pairOf, received, receiveRaw, sendRaw, shrink, upTo } from "./raw.ts";
import { openNull, patienceMs, sleep, takeoverError, test } from "./support.ts";

const megabyte = 1024 * 1024;

/** Bytes that tell where they come from. */
function pattern(size: number): Uint8Array {
  return Uint8Array.from({ length: size }, (_, index) => index * 7 % 251);
}

/** Everything until so many bytes are there, and how many descriptors came before each part's end. */
async function receiveAll(channel: FdChannel, size: number): Promise<{ bytes: Uint8Array; fdsAt: [number, number][] }> {
  const bytes = new Uint8Array(size);
  const fdsAt: [number, number][] = [];
  for (let at = 0; at < size;) {
    using message = await received(channel, { maxBytes: 32 * 1024 });
    bytes.set(message.bytes, at);
    if (message.fds.length > 0) fdsAt.push([at, message.fds.length]);
    at += message.bytes.length;
  }
  return { bytes, fdsAt };
}

test("FdChannel.send goes on after short writes, and sends the descriptors once, with the first byte", async () => {
  using pair = pairOf();
  using file = openNull();
  shrink(pair.left);
  const sent = pattern(megabyte);
  const [, { bytes, fdsAt }] = await Promise.all([
    pair.left.send(sent, [file, file, file], { timeoutMs: patienceMs }),
    receiveAll(pair.right, megabyte),
  ]);
  assert.deepEqual(fdsAt, [[0, 3]]);
  assert.ok(Buffer.compare(bytes, sent) === 0, "the bytes are others");
});

test("FdChannel.send of 1,000 descriptors with a megabyte sends every descriptor once, and all bytes", async () => {
  using pair = pairOf();
  using file = openNull();
  shrink(pair.left);
  const sent = pattern(megabyte);
  const [, { bytes, fdsAt }] = await Promise.all([
    pair.left.send(sent, new Array(1_000).fill(file), { timeoutMs: patienceMs }),
    receiveAll(pair.right, megabyte),
  ]);
  assert.deepEqual(fdsAt, [[0, 253], [1, 253], [2, 253], [3, 241]]);
  assert.ok(Buffer.compare(bytes, sent) === 0, "the bytes are others");
});

/** Many messages for a receiver that sleeps at first: all of them wait, all of them arrive, in order. */
async function waitsForReceiver(type: SocketType): Promise<void> {
  using pair = pairOf(type);
  shrink(pair.left);
  const messageCount = 60;
  const descriptors = numbered(messageCount);
  let sentCount = 0;
  const sending = (async () => {
    for (const [index, descriptor] of descriptors.entries()) {
      await pair.left.send(new Uint8Array(1_000).fill(index), [descriptor], { timeoutMs: patienceMs });
      sentCount++;
    }
  })();
  await sleep(30);
  assert.ok(sentCount < messageCount, `${sentCount} messages went though nobody reads`);
  for (const index of upTo(messageCount)) {
    const { bytes, fds } = await received(pair.right);
    assert.deepEqual([bytes.length, bytes[0], numbersIn(fds)], [1_000, index, [index]]);
    if (index % 20 === 0) await sleep(1);
  }
  await sending;
  disposeAll(descriptors);
}

test("FdChannel.send waits for a slow receiver of a stream", () => waitsForReceiver("stream"));

test("FdChannel.send waits for a slow receiver of packets", () => waitsForReceiver("seqpacket"));

test("FdChannel.send waits for a slow receiver of datagrams", () => waitsForReceiver("dgram"));

test("FdChannel.send keeps messages whole and in order that wait at the same time", async () => {
  using pair = pairOf();
  shrink(pair.left);
  const descriptors = numbered(20);
  const size = 50_000;
  const sending = Promise.all(
    descriptors.map((descriptor, index) =>
      pair.left.send(new Uint8Array(size).fill(index), [descriptor], { timeoutMs: patienceMs })
    ),
  );
  const found: OwnedDescriptor[] = [];
  for (let at = 0; at < descriptors.length * size;) {
    const { bytes, fds } = await received(pair.right, { maxBytes: size });
    for (const byte of bytes) assert.equal(byte, Math.floor(at++ / size));
    found.push(...fds);
  }
  await sending;
  disposeAll(descriptors);
  assert.deepEqual(numbersIn(found), upTo(20));
});

test("FdChannel.receive serves calls that wait at the same time in order", async () => {
  using pair = pairOf("seqpacket");
  const receiving = upTo(20).map(() => received(pair.right));
  await sleep(5);
  const descriptors = numbered(20);
  for (const [index, descriptor] of descriptors.entries()) await pair.left.send(Uint8Array.of(index), [descriptor]);
  disposeAll(descriptors);
  const found = (await Promise.all(receiving)).map(({ bytes, fds }) => [bytes[0], ...numbersIn(fds)]);
  assert.deepEqual(found, upTo(20).map((index) => [index, index]));
});

/** Fills what a channel can hold; descriptors go with each part. */
function fill(channel: FdChannel): void {
  while (sendRaw(channel.descriptor, new Uint8Array(1_000)) === "sent 1000");
}

test("FdChannel.send throws ERR_TAKEOVER_TIMEOUT, and says what sendmsg said, when nobody reads", async () => {
  for (const type of ["stream", "seqpacket", "dgram"] as const) {
    using pair = pairOf(type);
    using file = openNull();
    fill(pair.left);
    await assert.rejects(pair.left.send(new Uint8Array(1_000), [file], { timeoutMs: 20 }), {
      ...takeoverError("ERR_TAKEOVER_TIMEOUT"),
      message: /^Cannot send within \d+ ms, 1000 bytes are left: sendmsg says EAGAIN; the receiver does not read/,
    });
    await assert.rejects(
      pair.left.send(new Uint8Array(1_000), [file], { timeoutMs: 0 }),
      takeoverError("ERR_TAKEOVER_TIMEOUT"),
    );
  }
});

test("FdChannel.send that ran out of time has sent no part of a packet", async () => {
  using pair = pairOf("seqpacket");
  using file = openNull();
  fill(pair.left);
  await assert.rejects(
    pair.left.send(Uint8Array.of(1), [file], { timeoutMs: 20 }),
    takeoverError("ERR_TAKEOVER_TIMEOUT"),
  );
  for (let size = 0; size >= 0;) {
    const { descriptors, ...received } = receiveRaw(pair.right.descriptor, 2_000, 64);
    size = received.size;
    assert.equal(descriptors.length, 0);
  }
});

test("FdChannel.send ends with the signal's reason before, while it waits, and behind another", async () => {
  for (const type of ["stream", "seqpacket", "dgram"] as const) {
    using pair = pairOf(type);
    using file = openNull();
    const send = (signal: AbortSignal) =>
      pair.left.send(new Uint8Array(1_000), [file], { signal, timeoutMs: patienceMs });
    await assert.rejects(send(aborted("before")), { message: "before" });
    assert.equal(receiveRaw(pair.right.descriptor, 8, 64).size, -11);
    fill(pair.left);
    const first = new AbortController();
    const second = new AbortController();
    const waiting = assert.rejects(send(first.signal), { message: "while it waits" });
    const behind = assert.rejects(send(second.signal), { message: "behind another" });
    await assert.rejects(send(aborted("at once")), { message: "at once" });
    await sleep(5);
    second.abort(new Error("behind another"));
    await behind;
    first.abort(new Error("while it waits"));
    await waiting;
  }
});

test("FdChannel.send behind another has its own time limit", async () => {
  using pair = pairOf();
  fill(pair.left);
  const first = pair.left.send(new Uint8Array(1_000), [], { timeoutMs: patienceMs });
  const closed = assert.rejects(first, takeoverError("ERR_TAKEOVER_CLOSED"));
  await assert.rejects(pair.left.send(Uint8Array.of(1), [], { timeoutMs: 20 }), takeoverError("ERR_TAKEOVER_TIMEOUT"));
  pair.left.close();
  await closed;
});

test("FdChannel.receive ends with the signal's reason before, while it waits, and behind another", async () => {
  using pair = pairOf();
  await assert.rejects(pair.right.receive({ signal: aborted("before") }), { message: "before" });
  const first = new AbortController();
  const second = new AbortController();
  const waiting = assert.rejects(pair.right.receive({ signal: first.signal }), { message: "while it waits" });
  const behind = assert.rejects(pair.right.receive({ signal: second.signal }), { message: "behind another" });
  const last = received(pair.right);
  await sleep(5);
  second.abort(new Error("behind another"));
  await behind;
  first.abort(new Error("while it waits"));
  await waiting;
  await pair.left.send(Uint8Array.of(7));
  assert.deepEqual([...(await last).bytes], [7]);
});

test("FdChannel.receive throws ERR_TAKEOVER_TIMEOUT also behind another, and loses nothing", async () => {
  using pair = pairOf();
  using file = openNull();
  const patient = received(pair.right);
  await assert.rejects(pair.right.receive({ timeoutMs: 20 }), takeoverError("ERR_TAKEOVER_TIMEOUT"));
  await pair.left.send(Uint8Array.of(1), [file]);
  using first = await patient;
  await assert.rejects(pair.right.receive({ timeoutMs: 20 }), takeoverError("ERR_TAKEOVER_TIMEOUT"));
  await assert.rejects(pair.right.receive({ timeoutMs: 0 }), takeoverError("ERR_TAKEOVER_TIMEOUT"));
  await pair.left.send(Uint8Array.of(2), [file]);
  using second = await received(pair.right, { timeoutMs: 0 });
  assert.deepEqual([first, second].map(({ bytes, fds }) => [...bytes, fds.length]), [[1, 1], [2, 1]]);
});

test("FdChannel.close ends sends and receives that wait with ERR_TAKEOVER_CLOSED, those in the queue too", async () => {
  for (const type of ["stream", "seqpacket", "dgram"] as const) {
    using pair = pairOf(type);
    fill(pair.left);
    const waits = [
      pair.left.send(new Uint8Array(1_000)),
      pair.left.send(new Uint8Array(1_000)),
      pair.left.receive(),
      pair.left.receive(),
    ].map((promise) => assert.rejects(promise, takeoverError("ERR_TAKEOVER_CLOSED")));
    await sleep(5);
    pair.left.close();
    await Promise.all(waits);
  }
});

test("FdChannel.close ends a loop over messages", async () => {
  using pair = pairOf();
  setTimeout(() => pair.right.close(), 5);
  for await (const _message of pair.right) assert.fail("nobody sent anything");
  assert.equal(pair.right.descriptor, -1);
});

test("FdChannel.send throws EPIPE when the receiver goes while it waits", async () => {
  using pair = pairOf();
  fill(pair.left);
  const sending = pair.left.send(new Uint8Array(1_000));
  const lost = assert.rejects(sending, (error: { code: string }) => ["EPIPE", "ECONNRESET"].includes(error.code));
  await sleep(5);
  pair.right.close();
  await lost;
});

test(
  "FdChannel.send waits as an ordinary user whose descriptors in flight are too many (ETOOMANYREFS)",
  asRoot,
  async () => {
    const { userInFlight, rootInFlight } = await foundByOrdinaryUser();
    const { code, cause, message, sentCount, isInOrder } = userInFlight!;
    assert.deepEqual([code, cause, isInOrder], ["ERR_TAKEOVER_TIMEOUT", "ETOOMANYREFS", true]);
    assert.match(String(message), /sendmsg says ETOOMANYREFS; .*too many descriptors in flight/);
    assert.ok(
      (sentCount as number) >= 1 && (sentCount as number) < 20,
      `${sentCount} messages of ten descriptors went`,
    );
    assert.equal(rootInFlight!.isInOrder, true);
  },
);

const hasStrace = spawnSync("strace", ["-qq", "-o", "/dev/null", "true"]).status === 0;
const withStrace = { skip: hasStrace ? false : "strace is not installed, or may not trace" };

test("FdChannel passes every message though every other call is interrupted (EINTR)", withStrace, async () => {
  const { found, counts } = await foundWhileInterrupted();
  const { stream, seqpacket, dgram } = found;
  const passed = { code: "passed" };
  assert.deepEqual([stream, seqpacket, dgram], [passed, passed, passed]);
  for (const call of ["sendmsg", "recvmsg", "epoll_wait"]) assert.ok(counts[call]! >= 50, `${call}: ${counts[call]}`);
});

test(
  "FdListener.accept gives every connection though every other call is interrupted (EINTR)",
  withStrace,
  async () => {
    const { found, counts } = await foundWhileInterrupted();
    assert.deepEqual(found.accept, { code: "passed" });
    assert.ok(counts.accept4! >= 25, `accept4: ${counts.accept4}`);
  },
);
