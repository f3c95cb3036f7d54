/**
 * Frames of the control plane: a fixed header, a JSON object, and bytes.
 *
 * ```text
 * 0   4  magic "STKO"
 * 4   4  size of the head in bytes, big-endian
 * 8   4  size of the body in bytes, big-endian
 * 12  …  head: a JSON object in UTF-8, with a string `type`
 * …   …  body: bytes; no frame of version 1 has any
 * ```
 *
 * @module
 */

import { allocate, type Bytes, viewOf } from "../c/bytes.ts";
import { TakeoverError } from "../errors.ts";

/** "STKO" as a big-endian integer. */
const magic = 0x53544b4f;
const magicOffset = 0;
const headSizeOffset = 4;
const bodySizeOffset = 8;

/** The size of a frame's header in bytes. */
export const headerSize = 12;

/** A frame as it came in: its fields are still to be checked. */
export type FrameHead = Readonly<Record<string, unknown>>;

/** Encodes a frame without a body. */
export function encodeFrame(head: object): Bytes {
  const json = new TextEncoder().encode(JSON.stringify(head));
  const frame = allocate(headerSize + json.length);
  const view = viewOf(frame);
  view.setUint32(magicOffset, magic);
  view.setUint32(headSizeOffset, json.length);
  frame.set(json, headerSize);
  return frame;
}

/** Cuts a stream of bytes into frames, without trusting any of it. */
export class FrameReader {
  readonly #headLimit: number;
  #chunks: Uint8Array[] = [];
  /** Bytes in the chunks. */
  #size = 0;
  /** Bytes that the next step needs: a header, or a whole frame. */
  #needed = headerSize;

  /** @param headLimit The most bytes that a head may have. */
  constructor(headLimit: number) {
    this.#headLimit = headLimit;
  }

  /**
   * Takes bytes in as they arrive.
   *
   * @returns The heads of the frames that are complete now, in order.
   * @throws {TakeoverError} `ERR_TAKEOVER_PROTOCOL` when the bytes are no
   *   frames, `ERR_TAKEOVER_LIMIT` when one is too large.
   */
  push(bytes: Uint8Array): FrameHead[] {
    this.#chunks.push(bytes);
    this.#size += bytes.length;
    const heads: FrameHead[] = [];
    while (this.#size >= this.#needed) {
      const buffered = this.#buffered();
      const size = headerSize + this.#headSize(buffered);
      this.#needed = size;
      if (this.#size < size) break;
      heads.push(parseHead(buffered.subarray(headerSize, size)));
      this.#chunks = [buffered.subarray(size)];
      this.#size -= size;
      this.#needed = headerSize;
    }
    return heads;
  }

  /** Joins what has arrived: once for a header, once for a frame, however many the parts. */
  #buffered(): Uint8Array {
    if (this.#chunks.length === 1) return this.#chunks[0]!;
    const joined = allocate(this.#size).subarray(0, this.#size);
    let at = 0;
    for (const chunk of this.#chunks) {
      joined.set(chunk, at);
      at += chunk.length;
    }
    this.#chunks = [joined];
    return joined;
  }

  #headSize(buffered: Uint8Array): number {
    const view = viewOf(buffered);
    if (view.getUint32(magicOffset) !== magic) {
      throw new TakeoverError(
        "ERR_TAKEOVER_PROTOCOL",
        "Cannot read a frame: expected it to start with STKO; whatever connected is not a socket-takeover peer",
      );
    }
    const headSize = view.getUint32(headSizeOffset);
    if (headSize > this.#headLimit) {
      throw new TakeoverError(
        "ERR_TAKEOVER_LIMIT",
        `Cannot read a frame with a head of ${headSize} bytes: expected at most ${this.#headLimit} (limit headSize)`,
      );
    }
    const bodySize = view.getUint32(bodySizeOffset);
    if (bodySize > 0) {
      throw new TakeoverError(
        "ERR_TAKEOVER_LIMIT",
        `Cannot read a frame with a body of ${bodySize} bytes: expected none in this version`,
      );
    }
    return headSize;
  }
}

function parseHead(bytes: Uint8Array): FrameHead {
  let head: unknown;
  try {
    head = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
  } catch (cause) {
    throw new TakeoverError("ERR_TAKEOVER_PROTOCOL", "Cannot read a frame: its head is not JSON in UTF-8", { cause });
  }
  if (typeof head === "object" && head !== null && !Array.isArray(head)) return head as FrameHead;
  throw new TakeoverError("ERR_TAKEOVER_PROTOCOL", "Cannot read a frame: expected its head to be a JSON object");
}
