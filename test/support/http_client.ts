/**
 * One HTTP/1.1 connection as a client has it that is not made of this library:
 * whatever is written goes as it is, every answer is taken apart, and bytes
 * that nobody has asked for show.
 *
 * @module
 */

import net from "node:net";
import tls from "node:tls";

/** One answer, whole. */
export interface Answer {
  readonly status: number;
  /** In lower case. */
  readonly head: string;
  readonly body: Buffer;
  /** Whether the server announced that it closes. */
  readonly isLast: boolean;
}

/** How long an answer may take; far beyond what it does take. */
const patienceMs = 30_000;

/** A connection. */
export class HttpClient implements Disposable {
  readonly socket: net.Socket;
  /** Why it has ended, `closed` or an errno's name; null while it is open. */
  ended: string | null = null;
  /** Where it is, as the server should see it; known once it is connected. */
  name = "";
  /** Hears of the end. */
  onEnd: (why: string) => void = () => {};
  #rest: Buffer = Buffer.alloc(0);
  #isHeld = false;
  #wake: () => void = () => {};

  /** Connects; what is written before it is connected follows. */
  constructor(to: net.NetConnectOpts, isTls = false) {
    const options = { noDelay: true, ...to };
    this.socket = isTls
      ? tls.connect({ ...options, rejectUnauthorized: false } as tls.ConnectionOptions)
      : net.connect(options);
    this.socket.once("connect", () => this.name = `${this.socket.localAddress}:${this.socket.localPort}`);
    this.socket.on("data", (bytes: Buffer) => this.#take(bytes));
    this.socket.on("error", (error: NodeJS.ErrnoException) => this.#end(error.code ?? error.message));
    for (const event of ["end", "close"]) this.socket.on(event, () => this.#end("closed"));
  }

  /** Resolves when it is connected. */
  async connected(): Promise<this> {
    if (this.socket.connecting) await new Promise<void>((resolve) => this.socket.once("connect", resolve));
    return this;
  }

  /** Bytes that have come and belong to no answer that was taken. */
  get surplusSize(): number {
    return this.#rest.length;
  }

  send(bytes: string | Uint8Array): void {
    if (this.ended === null) this.socket.write(bytes);
  }

  /** Reads no more until {@linkcode release}; the kernel's buffers fill. */
  hold(): void {
    this.#isHeld = true;
    this.socket.pause();
  }

  release(): void {
    this.#isHeld = false;
    this.socket.resume();
  }

  /** Sends a request and waits for its answer. */
  async ask(request: string, isHead = false): Promise<Answer> {
    this.send(request);
    return await this.answer(isHead);
  }

  /**
   * The next answer.
   *
   * @param isHead Whether it has no body, whatever its head says.
   * @throws {Error} With why the connection has ended, when it has.
   */
  async answer(isHead = false, limitMs = patienceMs): Promise<Answer> {
    const until = Date.now() + limitMs;
    for (;;) {
      const found = parse(this.#rest, isHead, this.ended !== null);
      if (found) {
        this.#rest = this.#rest.subarray(found.size);
        return found.answer;
      }
      if (this.ended !== null) throw new Error(this.ended);
      await this.#something(until);
    }
  }

  /** Waits until so many bytes are there that belong to no answer yet, or as many as make a text. */
  async has(text: string): Promise<void> {
    for (const until = Date.now() + patienceMs; !this.#rest.includes(text);) {
      if (this.ended !== null) throw new Error(this.ended);
      await this.#something(until);
    }
  }

  [Symbol.dispose](): void {
    this.onEnd = () => {};
    this.socket.destroy();
  }

  #take(bytes: Buffer): void {
    this.#rest = this.#rest.length === 0 ? bytes : Buffer.concat([this.#rest, bytes]);
    if (this.#isHeld) this.socket.pause();
    this.#wake();
  }

  #end(why: string): void {
    if (this.ended !== null) return;
    this.ended = why;
    this.socket.destroy();
    this.#wake();
    this.onEnd(why);
  }

  #something(until: number): Promise<void> {
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => reject(new Error("no answer")), until - Date.now());
      this.#wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }
}

/** An answer and how many bytes it took; null when it is not whole. */
function parse(bytes: Buffer, isHead: boolean, isEnded: boolean): { answer: Answer; size: number } | null {
  const end = bytes.indexOf("\r\n\r\n");
  if (end < 0) return null;
  const head = bytes.toString("latin1", 0, end).toLowerCase();
  const status = Number(/^http\/1\.[01] (\d{3})/.exec(head)?.[1] ?? NaN);
  if (Number.isNaN(status)) throw new Error(`no answer, but ${JSON.stringify(head.slice(0, 80))}`);
  const from = end + 4;
  const isEmpty = isHead || status === 304 || status === 204;
  const found = isEmpty ? { body: Buffer.alloc(0), to: from } : bodyAt(bytes, from, head, isEnded);
  if (!found) return null;
  return { answer: { status, head, body: found.body, isLast: head.includes("\r\nconnection: close") }, size: found.to };
}

/** By its length, in chunks, or until the end (RFC 9112, 6.3). */
function bodyAt(bytes: Buffer, from: number, head: string, isEnded: boolean): { body: Buffer; to: number } | null {
  const size = /\r\ncontent-length: *(\d+)/.exec(head)?.[1];
  if (size !== undefined) {
    const to = from + Number(size);
    return bytes.length < to ? null : { body: bytes.subarray(from, to), to };
  }
  if (!head.includes("\r\ntransfer-encoding: chunked")) {
    return isEnded ? { body: bytes.subarray(from), to: bytes.length } : null;
  }
  const parts: Buffer[] = [];
  for (let at = from;;) {
    const line = bytes.indexOf("\r\n", at);
    if (line < 0) return null;
    const length = parseInt(bytes.toString("latin1", at, line), 16);
    const to = line + 2 + length + 2;
    if (bytes.length < to) return null;
    if (length === 0) return { body: Buffer.concat(parts), to };
    parts.push(bytes.subarray(line + 2, to - 2));
    at = to;
  }
}
