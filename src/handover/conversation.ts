/**
 * A control connection as one side of a hand-over uses it: frames in the order
 * of the protocol's table, each wait with a limit.
 *
 * @module
 */

import { messageOf, PeerLostError, TakeoverError } from "../errors.ts";
import { encodeFrame, type FrameHead, FrameReader } from "./frame.ts";
import type { Limits } from "../limits.ts";
import { parseRefusal } from "./messages.ts";
import { Protocol, type ProtocolState, type Role } from "./protocol.ts";
import type { ControlStream } from "../runtime.ts";

interface Waiter {
  resolve(head: FrameHead): void;
  reject(error: unknown): void;
}

/** Frames over a stream. Ends with the first error. */
export class Conversation {
  readonly stream: ControlStream;
  readonly #role: Role;
  readonly #other: Role;
  readonly #protocol = new Protocol();
  readonly #reader: FrameReader;
  readonly #arrived: FrameHead[] = [];
  #waiter: Waiter | null = null;
  /** What ended it on this side; the stream may still carry a last word. */
  #failure: unknown = null;
  #streamClosed = false;
  /** What the other side ended it with. */
  #refusal: TakeoverError | null = null;
  #reportFailure: (error: unknown) => void = () => {};

  /** Rejects when the conversation is over, for waits on something else. */
  readonly failed: Promise<never> = new Promise((_, reject) => this.#reportFailure = reject);

  /**
   * @param stream The connection.
   * @param role Which side this process is on.
   * @param unread What the runtime had not read when it closed the connection:
   *   after a failed write it drops what has arrived, which may be the last word.
   */
  constructor(stream: ControlStream, role: Role, limits: Limits, unread: () => Uint8Array = () => new Uint8Array(0)) {
    this.stream = stream;
    this.#role = role;
    this.#other = role === "incumbent" ? "successor" : "incumbent";
    this.#reader = new FrameReader(limits.headSize);
    this.failed.catch(() => {});
    stream.start({
      data: (bytes) => this.#data(bytes),
      close: () => {
        this.#data(unread());
        this.#streamClosed = true;
        this.#fail(lost(this.#other));
      },
    });
  }

  /** How far the hand-over has come. */
  get state(): ProtocolState {
    return this.#protocol.state;
  }

  /** Whether the other side can still be talked to. */
  get open(): boolean {
    return this.#failure === null;
  }

  /** What the other side has refused or aborted with, though nobody has received it yet. */
  get refusal(): TakeoverError | null {
    return this.#refusal;
  }

  /**
   * Sends a frame.
   *
   * @throws {TakeoverError} What the other side has refused or aborted with
   *   meanwhile.
   */
  send(head: { readonly type: string }): void {
    if (this.#refusal) throw this.#refusal;
    this.#protocol.advance(this.#role, head.type);
    this.stream.write(encodeFrame(head));
  }

  /**
   * Waits for the next frame.
   *
   * @param limitMs How long; 0 for as long as it takes.
   * @param limitName The limit's name, for the message.
   * @throws {TakeoverError} `ERR_TAKEOVER_TIMEOUT`; `ERR_TAKEOVER_LOST` when the
   *   other side has gone; what the other side refused or aborted with.
   */
  async receive(limitMs: number, limitName: keyof Limits): Promise<FrameHead> {
    const head = await this.#next(limitMs, limitName);
    if (isRefusal(head)) throw parseRefusal(head);
    return head;
  }

  /** Tells the other side why it ends here, and ends. */
  refuse(error: unknown): void {
    if (!this.#streamClosed && this.state !== "ended") {
      const code = error instanceof TakeoverError ? error.code : "ERR_TAKEOVER_PROTOCOL";
      const type = this.#role === "incumbent" ? "refuse" : "abort";
      this.send({ type, code, message: messageOf(error).slice(0, 1_024) } as { type: string });
    }
    this.end();
  }

  /** Ends once everything sent has gone out. */
  end(): void {
    this.#failure ??= lost(this.#other);
    this.stream.end();
  }

  /** Ends at once. */
  destroy(): void {
    this.#failure ??= lost(this.#other);
    this.stream.destroy();
  }

  #next(limitMs: number, limitName: keyof Limits): Promise<FrameHead> {
    const head = this.#arrived.shift();
    if (head) return Promise.resolve(head);
    if (this.#failure !== null) return Promise.reject(this.#failure);
    const arrival = new Promise<FrameHead>((resolve, reject) => this.#waiter = { resolve, reject });
    return limitMs > 0 ? within(arrival, limitMs, limitName, `the ${this.#other}'s answer`) : arrival;
  }

  #data(bytes: Uint8Array): void {
    if (this.#failure !== null) return;
    try {
      for (const head of this.#reader.push(bytes)) {
        this.#protocol.advance(this.#other, head.type);
        if (isRefusal(head)) this.#refusal = parseRefusal(head);
        this.#arrived.push(head);
        this.#wake((waiter) => waiter.resolve(this.#arrived.shift()!));
      }
    } catch (error) {
      this.#fail(error);
    }
  }

  #fail(error: unknown): void {
    this.#failure ??= error;
    this.#reportFailure(this.#failure);
    this.#wake((waiter) => waiter.reject(this.#failure));
  }

  #wake(use: (waiter: Waiter) => void): void {
    const waiter = this.#waiter;
    this.#waiter = null;
    if (waiter) use(waiter);
  }
}

function isRefusal(head: FrameHead): boolean {
  return head.type === "refuse" || head.type === "abort";
}

function lost(other: Role): PeerLostError {
  return new PeerLostError(`The ${other} has ended the connection`);
}

/**
 * Waits for something with a limit.
 *
 * @param what What is waited for, for the message.
 * @throws {TakeoverError} `ERR_TAKEOVER_TIMEOUT` when it takes longer.
 */
export async function within<T>(
  promise: Promise<T>,
  limitMs: number,
  limitName: keyof Limits,
  what: string,
): Promise<T> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const expiry = new Promise<never>((_, reject) => {
    const message = `Waited ${limitMs} ms for ${what} (limit ${limitName}): the other process is stopped, busy or stuck`;
    timer = setTimeout(() => reject(new TakeoverError("ERR_TAKEOVER_TIMEOUT", message)), limitMs);
  });
  try {
    return await Promise.race([promise, expiry]);
  } finally {
    clearTimeout(timer);
  }
}
