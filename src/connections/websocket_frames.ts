/**
 * WebSocket frames (RFC 6455, section 5.2), as far as it takes to know where
 * one ends: sizes, and a scanner over what a client sends.
 *
 * ```text
 * 0  fin 1 | rsv 3 | opcode 4
 * 1  mask 1 | size 7        126: 2 bytes of size follow, 127: 8
 * …  mask, 4 bytes          of clients always, of servers never
 * …  payload
 * ```
 *
 * @module
 */

/** The opcodes. */
const opcodes = { close: 8, ping: 9, pong: 10 } as const;

const finBit = 0x80;
const maskBit = 0x80;

/** How many bytes the mask of a client's frame has. */
const maskSize = 4;

/** The payload of a ping of this library, and the frame with which a client answers it. */
export const tokenSize = 16;
export const answerSize: number = 2 + maskSize + tokenSize;

/** How many bytes a client's frame has. */
export function frameSize(payloadSize: number): number {
  return 2 + extendedSize(payloadSize) + maskSize + payloadSize;
}

function extendedSize(payloadSize: number): number {
  return payloadSize < 126 ? 0 : payloadSize < 65_536 ? 2 : 8;
}

/** How many bytes a text has in UTF-8. */
export function utf8Size(text: string): number {
  let size = text.length;
  for (let at = 0; at < text.length; at++) {
    const unit = text.charCodeAt(at);
    if (unit < 0x80) continue;
    // Each half of a surrogate pair is half of four bytes.
    size += unit < 0x800 || (unit >= 0xd800 && unit < 0xe000) ? 1 : 2;
  }
  return size;
}

/** A server's ping. */
export function pingFrame(token: Uint8Array): Uint8Array<ArrayBuffer> {
  return Uint8Array.from([finBit | opcodes.ping, token.length, ...token]);
}

/**
 * Whether bytes begin with the client's answer to a ping.
 *
 * @returns Null when they may, and there are too few to say.
 */
export function isAnswer(bytes: Uint8Array, token: Uint8Array): boolean | null {
  const head = [finBit | opcodes.pong, maskBit | token.length];
  for (let at = 0; at < 2 + maskSize + token.length; at++) {
    if (at >= bytes.length) return null;
    const inPayload = at - 2 - maskSize;
    if (at < 2 && bytes[at] !== head[at]) return false;
    if (inPayload >= 0 && (bytes[at]! ^ bytes[2 + inPayload % maskSize]!) !== token[inPayload]) return false;
  }
  return true;
}

/** Whether a frame that begins with this byte continues a message whose beginning came before. */
export function isContinuation(first: number): boolean {
  return (first & 0x0f) === 0;
}

/** Follows a stream of frames without keeping any. */
export class FrameScanner {
  readonly #head = new Uint8Array(14);
  #headSize = 0;
  /** Bytes of the payload that are still to come. */
  #missing = 0;
  #isFragmented = false;
  #isClosing = false;
  #size = 0;
  #count = 0;

  /** How many bytes have come. */
  get size(): number {
    return this.#size;
  }

  /** How many messages, pings and pongs are complete. */
  get count(): number {
    return this.#count;
  }

  /** Whether nothing is half-way, neither a frame nor a message nor the end. */
  get isBetween(): boolean {
    return this.#headSize === 0 && !this.#isFragmented && !this.#isClosing;
  }

  /** Takes what has come. */
  push(bytes: Uint8Array): void {
    this.#size += bytes.length;
    for (let at = 0; at < bytes.length;) {
      if (this.#missing > 0) {
        const size = Math.min(this.#missing, bytes.length - at);
        this.#missing -= size;
        at += size;
      } else {
        this.#head[this.#headSize++] = bytes[at++]!;
        if (!this.#isHeadWhole) continue;
        this.#missing = this.#payloadSize;
      }
      if (this.#missing === 0) this.#end();
    }
  }

  get #isHeadWhole(): boolean {
    if (this.#headSize < 2) return false;
    const second = this.#head[1]!;
    return this.#headSize === 2 + this.#extendedSize + (second & maskBit ? maskSize : 0);
  }

  get #extendedSize(): number {
    const size = this.#head[1]! & 0x7f;
    return size === 126 ? 2 : size === 127 ? 8 : 0;
  }

  get #payloadSize(): number {
    const extended = this.#extendedSize;
    if (extended === 0) return this.#head[1]! & 0x7f;
    return this.#head.subarray(2, 2 + extended).reduce((size, byte) => size * 256 + byte, 0);
  }

  #end(): void {
    const first = this.#head[0]!;
    const opcode = first & 0x0f;
    const isControl = opcode >= opcodes.close;
    this.#headSize = 0;
    if (opcode === opcodes.close) this.#isClosing = true;
    else if (isControl || first & finBit) this.#count++;
    if (!isControl) this.#isFragmented = (first & finBit) === 0;
  }
}
