/**
 * Descriptors in batches on the second connection, at most 253 a message, each
 * behind a head of its own:
 *
 * ```text
 * 0   4  magic "STKD"
 * 4   4  number of the batch, from 0, big-endian
 * 8   4  count of descriptors in it, big-endian
 * 12  4  zero
 * ```
 *
 * @module
 */

import { allocate, type Bytes, viewOf } from "../c/bytes.ts";
import { FdChannel } from "../channels/fd_channel.ts";
import type { FdMessage } from "../channels/fd_message.ts";
import { disposeAll, OwnedDescriptor } from "../sockets/descriptors.ts";
import { isSystemError, PeerLostError, TakeoverError } from "../errors.ts";
import type { Runtime } from "../runtime.ts";

/** "STKD" as a big-endian integer. */
const magic = 0x53544b44;

/** The size of a batch's head in bytes. */
export const batchHeadSize = 16;

/** A batch's place and size. */
export interface BatchHead {
  readonly number: number;
  readonly count: number;
}

/** A channel for batches over a connected Unix stream that stays the caller's. */
export function batchChannel(runtime: Runtime, descriptor: number): FdChannel {
  // Nobody closes it: that is for whom it belongs to.
  return new FdChannel(runtime, new OwnedDescriptor(runtime, descriptor), "stream");
}

/** How many batches that many descriptors make. */
export function batchesOf<T>(items: readonly T[], size: number): T[][] {
  const batches: T[][] = [];
  for (let at = 0; at < items.length; at += size) batches.push(items.slice(at, at + size));
  return batches;
}

/** Encodes the head of a batch. */
export function encodeBatchHead({ number, count }: BatchHead): Bytes {
  const bytes = allocate(batchHeadSize);
  const view = viewOf(bytes);
  view.setUint32(0, magic);
  view.setUint32(4, number);
  view.setUint32(8, count);
  return bytes;
}

/**
 * Receives a batch that the other side has announced.
 *
 * @param channel The second connection.
 * @param announced What the control connection said.
 * @param limitMs How long the head may take to be complete.
 * @returns The descriptors, in order; the caller owns them.
 * @throws {TakeoverError} When something else came; everything that came with
 *   it has been closed.
 */
export async function receiveBatch(
  channel: FdChannel,
  announced: BatchHead,
  limitMs: number,
): Promise<OwnedDescriptor[]> {
  const descriptors: OwnedDescriptor[] = [];
  try {
    const head = await receiveHead(channel, descriptors, limitMs);
    checkHead(head, announced, descriptors.length);
    return descriptors;
  } catch (error) {
    disposeAll(descriptors);
    throw error;
  }
}

async function receiveHead(channel: FdChannel, descriptors: OwnedDescriptor[], limitMs: number): Promise<Uint8Array> {
  const head = allocate(batchHeadSize);
  const until = Date.now() + limitMs;
  for (let size = 0; size < batchHeadSize;) {
    const message = await receiveSome(channel, batchHeadSize - size, until - Date.now(), limitMs);
    if (message === null) throw new PeerLostError("The incumbent has ended the connection for descriptors");
    descriptors.push(...message.fds);
    head.set(message.bytes, size);
    size += message.bytes.length;
  }
  return head;
}

/** A peer that died with a message of ours unread is a reset first, and an end of file then. */
async function receiveSome(channel: FdChannel, maxBytes: number, leftMs: number, limitMs: number): Promise<FdMessage | null> {
  try {
    return await channel.receive({ maxBytes, timeoutMs: Math.max(0, leftMs) });
  } catch (cause) {
    if (isSystemError(cause, "ECONNRESET")) {
      throw new PeerLostError("The incumbent has reset the connection for descriptors", { cause });
    }
    if (!(cause instanceof TakeoverError && cause.code === "ERR_TAKEOVER_TIMEOUT")) throw cause;
    throw new TakeoverError(
      "ERR_TAKEOVER_TIMEOUT",
      `A batch of descriptors was announced and did not arrive within ${limitMs} ms (limit batchMs)`,
      { cause },
    );
  }
}

function checkHead(head: Uint8Array, announced: BatchHead, receivedCount: number): void {
  const view = viewOf(head);
  const found = { number: view.getUint32(4), count: view.getUint32(8) };
  const right = view.getUint32(0) === magic && found.number === announced.number &&
    found.count === announced.count && receivedCount === announced.count;
  if (right) return;
  throw new TakeoverError(
    "ERR_TAKEOVER_PROTOCOL",
    `Cannot take a batch of descriptors: expected number ${announced.number} with ${announced.count}, ` +
      `its head says ${found.number} with ${found.count}, and ${receivedCount} came`,
  );
}
