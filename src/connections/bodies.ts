/**
 * Requests whose bodies are on their way: collected before their handlers are
 * called, so that nothing has happened yet when a successor takes them over.
 *
 * ```text
 * head ── body, piece by piece ──────────── whole ──> the handler
 *                    │
 *                    └─ a successor: head and pieces go over, and the connection
 * ```
 *
 * @module
 */

import { headText, plainBodySize, type RequestHead } from "./request_head.ts";

/** Only what every client and server understands alike is written once more. */
const plainText = /^[\x20-\x7e\r\n]*$/;

/** One of them. */
export class Body {
  /** The runtime's own request. */
  readonly request: object;
  /** How long the body will be. */
  readonly size: number;
  /** What is to answer it, of node:http. */
  readonly response: object | null;
  /** Its connection's other end, once somebody watches; null when it is not known. */
  peer: string | null = null;
  /** Whether it has gone to a successor. */
  hasLeft = false;
  readonly #pieces: Uint8Array[] = [];
  #arrivedSize = 0;
  #head: Uint8Array | null | undefined;

  constructor(request: object, size: number, response: object | null) {
    this.request = request;
    this.size = size;
    this.response = response;
  }

  /** How much of it has come. */
  get arrivedSize(): number {
    return this.#arrivedSize;
  }

  /** Whether all of it has come, to this process. */
  get isWhole(): boolean {
    return this.#arrivedSize === this.size && !this.hasLeft;
  }

  /** What has come of it. */
  get arrived(): readonly Uint8Array[] {
    return this.#pieces;
  }

  /** More of it. */
  take(piece: Uint8Array): void {
    this.#pieces.push(piece);
    this.#arrivedSize += piece.length;
  }

  /** How much of the request has come, its head included; NaN when the head cannot be written once more. */
  get messageSize(): number {
    const head = this.#headBytes();
    return head ? head.length + this.#arrivedSize : NaN;
  }

  /** The same as bytes: what the successor's server reads first. */
  message(): Uint8Array {
    const message = new Uint8Array(this.messageSize);
    let at = 0;
    for (const piece of [this.#headBytes()!, ...this.#pieces]) {
      message.set(piece, at);
      at += piece.length;
    }
    return message;
  }

  #headBytes(): Uint8Array | null {
    if (this.#head === undefined) {
      const text = headText(this.request as RequestHead);
      this.#head = plainText.test(text) ? new TextEncoder().encode(text) : null;
    }
    return this.#head;
  }
}

/** What of a web `Request` is used here. */
interface WebRequest extends RequestHead {
  readonly bodyUsed?: boolean;
  clone(): { readonly body: { getReader(): Reader } | null };
}

interface Reader {
  read(): Promise<{ readonly done: boolean; readonly value?: Uint8Array }>;
}

/** What of Node's `IncomingMessage` is used here. */
interface NodeRequest extends RequestHead {
  readonly httpVersion?: string;
  readonly readableFlowing?: boolean | null;
  readonly readableEnded?: boolean;
  on(event: string, listener: () => void): unknown;
  off(event: string, listener: () => void): unknown;
  read(): Uint8Array | null;
  unshift(bytes: Uint8Array): void;
}

/**
 * Whether a request's body is to be collected, and how long it is; NaN when the
 * handler gets it as it comes.
 *
 * @param limit The most that is collected, in bytes.
 */
export function collectedSize(request: unknown, limit: number): number {
  const { bodyUsed, httpVersion, readableFlowing, readableEnded } = request as WebRequest & NodeRequest;
  if (bodyUsed || httpVersion && httpVersion !== "1.1" || readableFlowing || readableEnded) return NaN;
  const size = plainBodySize(request as RequestHead);
  return size <= limit ? size : NaN;
}

/**
 * Collects the body of a web request, which stays as it was: a copy is read,
 * and what that has read waits in the request.
 *
 * @returns Whether it has come whole.
 */
export async function collectWeb(body: Body): Promise<boolean> {
  try {
    const reader = (body.request as WebRequest).clone().body?.getReader();
    for (let found = await reader?.read(); found && !found.done; found = await reader!.read()) body.take(found.value!);
  } catch {
    // The client has gone, or the connection has.
  }
  return body.isWhole;
}

/** Collects the body of a request of node:http, and puts it back; calls back unless it does not come whole. */
export function collectNode(body: Body, ended: (isWhole: boolean) => void): void {
  const request = body.request as NodeRequest;
  const ignored = () => {};
  const end = (isWhole: boolean) => {
    request.off("readable", look);
    request.off("close", gone);
    request.off("error", ignored);
    ended(isWhole);
  };
  const gone = () => end(false);
  const look = () => {
    for (let piece = request.read(); piece !== null; piece = request.read()) {
      body.take(piece);
      if (!body.isWhole) continue;
      // In the same turn, before the stream tells its end.
      for (const each of body.arrived.toReversed()) request.unshift(each);
      return end(true);
    }
  };
  request.on("error", ignored);
  request.on("close", gone);
  request.on("readable", look);
}
