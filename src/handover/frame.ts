/**
 * Frames of the control plane: a fixed header, a JSON object, and bytes.
 *
 * ```text
 * 0   4  magic "STKO"
 * 4   4  size of the head in bytes, big-endian
 * 8   4  size of the body in bytes, big-endian
 * 12  …  head: a JSON object in UTF-8, with a string `type`
 * …   …  body: bytes, in a move only
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

/** A frame as it came in, whole. */
export interface Frame {
  readonly head: FrameHead;
  readonly body: Uint8Array;
}

/** Encodes a frame. */
export function encodeFrame(head: object, body: Uint8Array = new Uint8Array(0)): Bytes {
  const json = new TextEncoder().encode(JSON.stringify(head));
  const frame = allocate(headerSize + json.length + body.length);
  const view = viewOf(frame);
  view.setUint32(magicOffset, magic);
  view.setUint32(headSizeOffset, json.length);
  view.setUint32(bodySizeOffset, body.length);
  frame.set(json, headerSize);
  frame.set(body, headerSize + json.length);
  return frame;
}

/** How many bytes a value takes in a head; without end for what is no JSON. */
export function jsonSize(value: unknown): number {
  try {
    const json = JSON.stringify(value) as string | undefined;
    return json === undefined ? Infinity : new TextEncoder().encode(json).length;
  } catch {
    return Infinity;
  }
}

/** Cuts a stream of bytes into frames, without trusting any of it. */
export class FrameReader {
  readonly #headLimit: number;
  readonly #bodyLimit: number;
  #chunks: Uint8Array[] = [];
  /** Bytes in the chunks. */
  #size = 0;
  /** Bytes that the next step needs: a header, or a whole frame. */
  #needed = headerSize;

  /**
   * @param headLimit The most bytes that a head may have.
   * @param bodyLimit The most bytes that a body may have; none where none is due.
   */
  constructor(headLimit: number, bodyLimit = 0) {
    this.#headLimit = headLimit;
    this.#bodyLimit = bodyLimit;
  }

  /**
   * Takes bytes in as they arrive.
   *
   * @returns The frames that are complete now, in order.
   * @throws {TakeoverError} `ERR_TAKEOVER_PROTOCOL` when the bytes are no
   *   frames, `ERR_TAKEOVER_LIMIT` when one is too large.
   */
  read(bytes: Uint8Array): Frame[] {
    this.#chunks.push(bytes);
    this.#size += bytes.length;
    const frames: Frame[] = [];
    while (this.#size >= this.#needed) {
      const buffered = this.#buffered();
      const bodyAt = headerSize + this.#headSize(buffered);
      const size = bodyAt + this.#bodySize(buffered);
      this.#needed = size;
      if (this.#size < size) break;
      frames.push({ head: parseHead(buffered.subarray(headerSize, bodyAt)), body: buffered.subarray(bodyAt, size) });
      this.#chunks = [buffered.subarray(size)];
      this.#size -= size;
      this.#needed = headerSize;
    }
    return frames;
  }

  /** Whether no frame has begun that is not whole. */
  get isBetween(): boolean {
    return this.#size === 0;
  }

  /** The same where frames have no body: their heads. */
  push(bytes: Uint8Array): FrameHead[] {
    return this.read(bytes).map(({ head }) => head);
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
    return headSize;
  }

  #bodySize(buffered: Uint8Array): number {
    const bodySize = viewOf(buffered).getUint32(bodySizeOffset);
    if (bodySize <= this.#bodyLimit) return bodySize;
    throw new TakeoverError(
      "ERR_TAKEOVER_LIMIT",
      `Cannot read a frame with a body of ${bodySize} bytes: expected ${
        this.#bodyLimit > 0 ? `at most ${this.#bodyLimit} (limit unreadSize)` : "none here"
      }`,
    );
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
