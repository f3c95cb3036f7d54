/**
 * Bytes with descriptors over a Unix socket (unix(7)): a stream, a sequence of
 * packets, or datagrams, to any program that speaks plain `SCM_RIGHTS`.
 *
 * ```text
 * stream      bytes without borders; descriptors arrive with the byte they were sent with,
 *             and a receive never runs past it
 * seqpacket   messages, in order, whole (Linux)
 * dgram       messages; bound and connected sockets alike (Linux)
 * ```
 *
 * @module
 */

import type { Credentials } from "../c/cmsg.ts";
import { TakeoverError } from "../errors.ts";
import type { Runtime } from "../runtime.ts";
import type { Descriptor, OwnedDescriptor } from "../sockets/descriptors.ts";
import { peerCredentials, peerGroups, peerPidfd, peerSecurityContext } from "../sockets/identity.ts";
import type { SocketType } from "../sockets/socket.ts";
import { type FdMessage, type ReceiveOptions, takeMessage } from "./fd_message.ts";
import { deadlineOf, stopWaiting, waitReadable } from "./readiness.ts";
import { Sender, type SendOptions } from "./sending.ts";
import { Turns } from "./turns.ts";

/** A Unix socket that carries descriptors. Nothing else may read it: a runtime's own read drops them. */
export class FdChannel implements Disposable, AsyncIterable<FdMessage> {
  readonly #runtime: Runtime;
  readonly #socket: OwnedDescriptor;
  /** What the socket carries. */
  readonly type: SocketType;
  readonly #sender: Sender;
  readonly #receives = new Turns();

  /**
   * Made by `connectChannel` and its like in mod.ts.
   *
   * @param runtime The runtime's libc.
   * @param socket A non-blocking Unix socket, owned by the channel from here on.
   * @param type What it carries.
   */
  constructor(runtime: Runtime, socket: OwnedDescriptor, type: SocketType) {
    this.#runtime = runtime;
    this.#socket = socket;
    this.type = type;
    this.#sender = new Sender(runtime, type, () => this.#opened());
  }

  /** The socket's descriptor, which stays the channel's; -1 once closed. */
  get descriptor(): number {
    return this.#socket.number;
  }

  /**
   * Sends bytes and descriptors. The descriptors stay the caller's; the
   * receiver gets copies of them.
   *
   * More than 253 descriptors, which is what one message carries, go in several
   * on a stream: 253 with each of the first bytes, the rest with the rest.
   *
   * @param bytes At least one for every 253 descriptors; a stream sends no
   *   message without a byte.
   * @param fds Any number on a stream, at most 253 otherwise.
   * @throws {TakeoverError} Before anything is sent: `ERR_TAKEOVER_EMPTY`,
   *   `ERR_TAKEOVER_TOO_MANY`, `ERR_TAKEOVER_RANGE`, `ERR_TAKEOVER_CLOSED` for a
   *   closed descriptor or channel. `ERR_TAKEOVER_TIMEOUT`: a stream on which a
   *   part had gone is out of step then, and should be closed.
   * @throws {SystemError} `EPIPE` or `ECONNRESET` when the receiver has gone,
   *   `EMSGSIZE` for a datagram that is too long, `EPERM` for credentials of others.
   */
  async send(bytes: Uint8Array, fds: readonly Descriptor[] = [], options: SendOptions = {}): Promise<void> {
    await this.#sender.send(bytes, fds, options);
  }

  /**
   * Receives the next message, or what has arrived of a stream.
   *
   * @returns The message, whose descriptors the caller owns (`using`), or null
   *   at the end: the other side has closed. Datagrams have no end.
   * @throws {TruncatedError} When descriptors were lost on the way in, because
   *   this process's table is full; those that came have been closed.
   * @throws {TakeoverError} `ERR_TAKEOVER_MISSING`, `ERR_TAKEOVER_SURPLUS`: not
   *   as many descriptors as `minFds` and `maxFds` say; all have been closed.
   *   `ERR_TAKEOVER_TIMEOUT`, `ERR_TAKEOVER_CLOSED`.
   * @throws {SystemError} `ECONNRESET` when the other side has gone without
   *   reading everything.
   */
  async receive(options: ReceiveOptions = {}): Promise<FdMessage | null> {
    options.signal?.throwIfAborted();
    const found = this.#receives.isFree() ? this.#takeMessage(options) : undefined;
    if (found !== undefined) return found;
    const until = deadlineOf(options);
    return await this.#receives.take(options, () => this.#receiveNext(options, until));
  }

  /**
   * Every message until the end. What the loop's body did not take of a message
   * is closed when it asks for the next. Closing the channel ends the loop.
   */
  async *[Symbol.asyncIterator](): AsyncGenerator<FdMessage, void, undefined> {
    for (;;) {
      const message = await this.#receiveUntilClosed();
      if (message === null) return;
      try {
        yield message;
      } finally {
        message[Symbol.dispose]();
      }
    }
  }

  /** Who opened the other end (`SO_PEERCRED`, unix(7)): frozen then, so never signal its pid. */
  peerCredentials(): Credentials {
    return peerCredentials(this.#runtime, this.#opened());
  }

  /** A pidfd of the process that opened the other end (`SO_PEERPIDFD`, Linux 6.5); the caller owns it. */
  peerPidfd(): OwnedDescriptor {
    return peerPidfd(this.#runtime, this.#opened());
  }

  /** The other end's supplementary groups (`SO_PEERGROUPS`). */
  peerGroups(): number[] {
    return peerGroups(this.#runtime, this.#opened());
  }

  /** The other end's label of the security module (`SO_PEERSEC`), or null without one. */
  peerSecurityContext(): string | null {
    return peerSecurityContext(this.#runtime, this.#opened());
  }

  /** Closes the socket; what is waited for ends with `ERR_TAKEOVER_CLOSED`. */
  close(): void {
    const { number } = this.#socket;
    if (number >= 0) stopWaiting(this.#runtime, number);
    this.#socket[Symbol.dispose]();
  }

  /** The same as {@linkcode close}. */
  [Symbol.dispose](): void {
    this.close();
  }

  #opened(): number {
    const { number } = this.#socket;
    if (number >= 0) return number;
    throw new TakeoverError("ERR_TAKEOVER_CLOSED", "Cannot use the channel: it has been closed");
  }

  async #receiveNext(options: ReceiveOptions, until: number): Promise<FdMessage | null> {
    for (;;) {
      options.signal?.throwIfAborted();
      const found = this.#takeMessage(options);
      if (found !== undefined) return found;
      const timeoutMs = until === Infinity ? undefined : Math.max(0, until - Date.now());
      await waitReadable(this.#runtime, this.#opened(), { ...options, timeoutMs });
    }
  }

  #takeMessage(options: ReceiveOptions): FdMessage | null | undefined {
    return takeMessage(this.#runtime, this.#opened(), this.type, options);
  }

  async #receiveUntilClosed(): Promise<FdMessage | null> {
    if (this.#socket.number < 0) return null;
    try {
      return await this.receive();
    } catch (error) {
      if (this.#socket.number < 0) return null;
      throw error;
    }
  }
}
