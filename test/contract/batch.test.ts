import assert from "node:assert/strict";
import { batchChannel, encodeBatchHead, receiveBatch } from "../../src/handover/batch.ts";
import type { FdChannel } from "../../src/channels/fd_channel.ts";
import { disposeAll, type OwnedDescriptor } from "../../src/sockets/descriptors.ts";
import { cookieOf } from "../../src/sockets/socket.ts";
import { openNull, patienceMs, runtime, sleep, socketPair, takeoverError, test } from "./support.ts";

const announced = { number: 3, count: 2 };
const head = encodeBatchHead(announced);

/** What comes of a batch that a sender makes of these two descriptors. */
async function receiveFrom(
  send: (channel: FdChannel, descriptors: readonly number[], end: OwnedDescriptor) => Promise<void>,
  limitMs = patienceMs,
): Promise<OwnedDescriptor[]> {
  const ends = socketPair();
  const sent = socketPair();
  try {
    const received = receiveBatch(batchChannel(runtime, ends[1].number), announced, limitMs);
    // Looked at below, after the sender has done its part.
    received.catch(() => {});
    await send(batchChannel(runtime, ends[0].number), sent.map(({ number }) => number), ends[0]);
    const descriptors = await received;
    assert.deepEqual(descriptors.map(cookie), sent.map(cookie));
    return descriptors;
  } finally {
    disposeAll([...ends, ...sent]);
  }
}

function cookie({ number }: OwnedDescriptor): string {
  return cookieOf(runtime, number);
}

/** A batch that is refused; `test` sees that what came with it has been closed. */
async function refuses(
  code: "ERR_TAKEOVER_PROTOCOL" | "ERR_TAKEOVER_LOST" | "ERR_TAKEOVER_TIMEOUT",
  send: Parameters<typeof receiveFrom>[0],
  limitMs?: number,
): Promise<void> {
  await assert.rejects(receiveFrom(send, limitMs), takeoverError(code));
}

test("receiveBatch gives the descriptors of a batch, in order", async () => {
  disposeAll(await receiveFrom((channel, descriptors) => channel.send(head, descriptors, { timeoutMs: patienceMs })));
});

test("receiveBatch waits for a batch that comes later", async () => {
  disposeAll(
    await receiveFrom(async (channel, descriptors) => {
      await sleep(20);
      await channel.send(head, descriptors, { timeoutMs: patienceMs });
    }),
  );
});

test("receiveBatch takes a head that comes in parts, with descriptors on any of them", async () => {
  disposeAll(
    await receiveFrom(async (channel, [first, second]) => {
      await channel.send(head.slice(0, 1), [first!], { timeoutMs: patienceMs });
      await sleep(10);
      await channel.send(head.slice(1, 10), [], { timeoutMs: patienceMs });
      await channel.send(head.slice(10), [second!], { timeoutMs: patienceMs });
    }),
  );
});

test("receiveBatch refuses another number", () =>
  refuses(
    "ERR_TAKEOVER_PROTOCOL",
    (channel, descriptors) => channel.send(encodeBatchHead({ ...announced, number: 4 }), descriptors, { timeoutMs: patienceMs }),
  ));

test("receiveBatch refuses another count in the head", () =>
  refuses(
    "ERR_TAKEOVER_PROTOCOL",
    (channel, descriptors) => channel.send(encodeBatchHead({ ...announced, count: 1 }), descriptors, { timeoutMs: patienceMs }),
  ));

test("receiveBatch refuses a head without the magic", () =>
  refuses("ERR_TAKEOVER_PROTOCOL", (channel, descriptors) => {
    const wrong = head.slice();
    wrong[0] = 0;
    return channel.send(wrong, descriptors, { timeoutMs: patienceMs });
  }));

test("receiveBatch refuses fewer descriptors than were announced, and closes them", () =>
  refuses("ERR_TAKEOVER_PROTOCOL", (channel, [first]) => channel.send(head, [first!], { timeoutMs: patienceMs })));

test("receiveBatch refuses more descriptors than were announced, and closes them", () =>
  refuses(
    "ERR_TAKEOVER_PROTOCOL",
    (channel, descriptors) => channel.send(head, [...descriptors, ...descriptors], { timeoutMs: patienceMs }),
  ));

test("receiveBatch throws ERR_TAKEOVER_LOST when the connection ends inside a head", () =>
  refuses("ERR_TAKEOVER_LOST", async (channel, descriptors, end) => {
    await channel.send(head.slice(0, 5), descriptors, { timeoutMs: patienceMs });
    end[Symbol.dispose]();
  }));

test("receiveBatch throws ERR_TAKEOVER_LOST when the other side has gone with bytes of ours unread", async () => {
  const [left, right] = socketPair();
  using _left = left;
  using _right = right;
  const receiver = batchChannel(runtime, right.number);
  await receiver.send(Uint8Array.of(1), [], { timeoutMs: patienceMs });
  left[Symbol.dispose]();
  await assert.rejects(receiveBatch(receiver, announced, patienceMs), {
    ...takeoverError("ERR_TAKEOVER_LOST"),
    message: "The incumbent has reset the connection for descriptors",
  });
});

test("receiveBatch throws ERR_TAKEOVER_TIMEOUT when the rest of a head does not come", () =>
  refuses("ERR_TAKEOVER_TIMEOUT", async (channel, descriptors) => {
    await channel.send(head.slice(0, 5), descriptors, { timeoutMs: patienceMs });
    await sleep(40);
  }, 20));

test("receiveBatch leaves the bytes behind a head for the next batch", async () => {
  const [left, right] = socketPair();
  using _left = left;
  using _right = right;
  using file = openNull();
  const sender = batchChannel(runtime, left.number);
  const receiver = batchChannel(runtime, right.number);
  await sender.send(encodeBatchHead({ number: 0, count: 1 }), [file.number], { timeoutMs: patienceMs });
  await sender.send(encodeBatchHead({ number: 1, count: 2 }), [file.number, file.number], { timeoutMs: patienceMs });
  const first = await receiveBatch(receiver, { number: 0, count: 1 }, patienceMs);
  const second = await receiveBatch(receiver, { number: 1, count: 2 }, patienceMs);
  disposeAll([...first, ...second]);
  assert.deepEqual([first.length, second.length], [1, 2]);
});
