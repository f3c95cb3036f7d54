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

import {
  type ControlMessage,
  type Credentials,
  credentialsMessage,
  encodeControl,
  rightsMessage,
} from "../c/cmsg.ts";
import { errnoName, errnoOf } from "../c/errno.ts";
import type { SocketAddress } from "../c/sockaddr.ts";
import { SystemError, TakeoverError, TruncatedError } from "../errors.ts";
import type { Runtime } from "../runtime.ts";
import { type Descriptor, disposeAll, OwnedDescriptor } from "../sockets/descriptors.ts";
import { peerCredentials, peerGroups, peerPidfd, peerSecurityContext } from "../sockets/identity.ts";
import { type Incoming, isMessageWaiting, messageRoom, receiveMessage, sendMessage } from "./message.ts";
import type { SocketType } from "../sockets/socket.ts";
import { isShutDown, pause, stopWaiting, type WaitOptions, waitReadable, waitWritable } from "./readiness.ts";
import { Turns } from "./turns.ts";

/** What can be sent beside bytes and descriptors, and how long it may take. */
export interface SendOptions extends WaitOptions {
  /** `SCM_CREDENTIALS`: who this process says it is; the kernel checks it (unix(7)). */
  readonly credentials?: Credentials;
  /** Whom to, for a datagram channel that is not connected. */
  readonly to?: SocketAddress;
}

/** How much to take, and how long to wait for it. */
export interface ReceiveOptions extends WaitOptions {
  /** The most bytes of one message, up to 262,144; 65,536 when left out. */
  readonly maxBytes?: number;
  /** Fewer descriptors than these are an error; 0 when left out. */
  readonly minFds?: number;
  /** More descriptors than these are an error; without it any number is right. */
  readonly maxFds?: number;
}

const defaultMaxBytes = 65_536;

/** The errnos after which the same sendmsg may succeed a moment later, and no event tells when. */
const passing = ["ENOBUFS", "ENOMEM", "ETOOMANYREFS"];
const firstPauseMs = 1;
const longestPauseMs = 50;

/** What one receive brought. Disposing of it closes the descriptors that nobody took. */
export class FdMessage implements Disposable {
  /** Empty when descriptors came alone. */
  readonly bytes: Uint8Array;
  /** In the order sent. Each is closed with the message, unless it was taken (`take()`). */
  readonly fds: readonly OwnedDescriptor[];
  /** Who sent it, as the kernel checked; only after `passCredentials`. */
  readonly credentials?: Credentials;
  /** The sender's pidfd; only after `passPidfd`. Closed with the message, unless it was taken. */
  readonly pidfd?: OwnedDescriptor;
  /** The sender's label of the security module; only after `passSecurity`. */
  readonly securityContext?: string;
  /** The sender's address; only of datagrams from a bound socket. */
  readonly from?: SocketAddress;
  /** Whether a packet or datagram was longer than `maxBytes`; the rest of it is gone (`MSG_TRUNC`). */
  readonly truncated: boolean;

  /**
   * Made by a channel.
   *
   * @param runtime What closes the descriptors.
   * @param incoming What recvmsg(2) brought; its descriptors are the message's.
   */
  constructor(runtime: Runtime, incoming: Incoming) {
    const { descriptors, credentials, pidfd, securityContext } = incoming.ancillary;
    this.bytes = incoming.bytes;
    this.fds = descriptors.map((number) => new OwnedDescriptor(runtime, number));
    this.truncated = incoming.isCut;
    if (credentials) this.credentials = credentials;
    if (pidfd !== null) this.pidfd = new OwnedDescriptor(runtime, pidfd);
    if (securityContext !== null) this.securityContext = securityContext;
    if (incoming.from) this.from = incoming.from;
  }

  /** Closes what nobody took. */
  [Symbol.dispose](): void {
    disposeAll(this.fds);
    this.pidfd?.[Symbol.dispose]();
  }
}

/** A Unix socket that carries descriptors. Nothing else may read it: a runtime's own read drops them. */
export class FdChannel implements Disposable, AsyncIterable<FdMessage> {
  readonly #runtime: Runtime;
  readonly #socket: OwnedDescriptor;
  /** What the socket carries. */
  readonly type: SocketType;
  readonly #sends = new Turns();
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
    const numbers = fds.map((fd) => this.#checkedNumber(fd));
    this.#checkCounts(bytes.length, numbers.length, options);
    const sent = this.#sends.isFree() ? this.#sendAtOnce(bytes, numbers, options) : null;
    if (sent === bytes.length) return;
    const until = deadlineOf(options);
    await this.#sends.take(options, () =>
      sent === null ? this.#sendAll(bytes, numbers, options, until) : this.#sendRest(bytes.subarray(sent), options, until));
  }

  /**
   * Receives the next message, or what has arrived of a stream.
   *
   * @returns The message, whose descriptors the caller owns (`using`), or null
   *   at the end: the other side has closed.
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
    const found = this.#receives.isFree() ? this.#receiveOnce(options) : undefined;
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

  #checkedNumber(fd: Descriptor): number {
    const number = typeof fd === "number" ? fd : fd.number;
    if (Number.isInteger(number) && number >= 0 && number <= 0x7fffffff) return number;
    if (typeof fd !== "number") throw closed("it was taken or closed");
    throw new TakeoverError("ERR_TAKEOVER_RANGE", `Cannot send ${fd}: expected a descriptor, an integer from 0 to 2147483647`);
  }

  #checkCounts(size: number, count: number, { credentials }: SendOptions): void {
    const most = this.#runtime.abi.descriptorsPerMessage;
    const isStream = this.type === "stream";
    if (!isStream && count > most) {
      throw new TakeoverError(
        "ERR_TAKEOVER_TOO_MANY",
        `Cannot send ${count} descriptors in one ${this.type} message: expected at most ${most}; use a stream, or several messages`,
      );
    }
    if (!isStream && size > messageRoom) throw new SystemError("EMSGSIZE", -errnoOf(this.#runtime.abi.platform, "EMSGSIZE"), "sendmsg");
    const needed = isStream ? Math.ceil(count / most) : 0;
    if (isStream && size === 0 && credentials) {
      throw new TakeoverError("ERR_TAKEOVER_EMPTY", "Cannot send credentials with 0 bytes: a stream needs at least 1");
    }
    if (size >= needed) return;
    throw new TakeoverError(
      "ERR_TAKEOVER_EMPTY",
      `Cannot send ${count} descriptors with ${size} bytes: a stream needs at least ${needed}, one for every ${most}`,
    );
  }

  /** Most messages go in one call, without a turn of the event loop. Null when nothing went. */
  #sendAtOnce(bytes: Uint8Array, numbers: readonly number[], options: SendOptions): number | null {
    if (bytes.length > messageRoom || numbers.length > this.#runtime.abi.descriptorsPerMessage) return null;
    options.signal?.throwIfAborted();
    const control = this.#controlOf(numbers, options);
    const result = sendMessage(this.#runtime, this.#opened(), { bytes, control, to: options.to });
    if (result >= 0) return result;
    if (this.#isPassing(result)) return null;
    throw this.#failure(result, numbers);
  }

  /** What follows a short send: the descriptors are on their way with its first byte. */
  #sendRest(bytes: Uint8Array, { credentials: _, ...options }: SendOptions, until: number): Promise<void> {
    return this.#sendAll(bytes, [], options, until);
  }

  async #sendAll(bytes: Uint8Array, numbers: readonly number[], options: SendOptions, until: number): Promise<void> {
    const most = this.#runtime.abi.descriptorsPerMessage;
    let sent = 0;
    for (let from = 0; from + most < numbers.length; from += most) {
      await this.#sendPart(bytes.subarray(sent, sent + 1), numbers.slice(from, from + most), options, until);
      sent++;
    }
    const rest = numbers.slice(sent * most);
    await this.#sendPart(bytes.subarray(sent), rest, options, until);
  }

  /** After a short send the control data are on their way: the rest follows without them. */
  async #sendPart(bytes: Uint8Array, numbers: readonly number[], options: SendOptions, until: number): Promise<void> {
    let control = this.#controlOf(numbers, options);
    let offset = 0;
    let pauseMs = firstPauseMs;
    do {
      options.signal?.throwIfAborted();
      const part = bytes.subarray(offset, offset + (this.type === "stream" ? messageRoom : bytes.length));
      const result = sendMessage(this.#runtime, this.#opened(), { bytes: part, control, to: options.to });
      if (result >= 0) {
        offset += result;
        control = undefined;
        continue;
      }
      if (!this.#isPassing(result)) throw this.#failure(result, numbers);
      const timeoutMs = until - Date.now();
      if (timeoutMs <= 0) throw this.#late(result, options, bytes.length - offset);
      await this.#waitToSend(result, pauseMs, { ...options, timeoutMs: timeoutMs === Infinity ? undefined : timeoutMs });
      pauseMs = Math.min(pauseMs * 2, longestPauseMs);
    } while (offset < bytes.length || control !== undefined);
  }

  /** A full stream says when it has room; a full datagram receiver, table or memory does not. */
  async #waitToSend(result: number, pauseMs: number, options: WaitOptions): Promise<void> {
    const code = this.#nameOf(result);
    if (code === "EINTR") return;
    if (code !== "EAGAIN" || this.type === "dgram") return await pause(pauseMs, options);
    try {
      await waitWritable(this.#runtime, this.#opened(), options);
    } catch (error) {
      // The next attempt says what it was waiting for.
      if (!(error instanceof TakeoverError && error.code === "ERR_TAKEOVER_TIMEOUT")) throw error;
    }
  }

  #controlOf(numbers: readonly number[], { credentials }: SendOptions): Uint8Array | undefined {
    if (numbers.length === 0 && !credentials) return undefined;
    const { abi } = this.#runtime;
    const messages: ControlMessage[] = [];
    if (numbers.length > 0) messages.push(rightsMessage(abi, numbers));
    if (credentials) messages.push(credentialsMessage(abi, credentials));
    return encodeControl(abi, messages);
  }

  #nameOf(result: number): string {
    return errnoName(this.#runtime.abi.platform, -result);
  }

  #isPassing(result: number): boolean {
    const code = this.#nameOf(result);
    return code === "EAGAIN" || code === "EINTR" || passing.includes(code);
  }

  #failure(result: number, numbers: readonly number[]): Error {
    const code = this.#nameOf(result);
    const { abi, libc } = this.#runtime;
    const bad = code === "EBADF" ? numbers.find((number) => libc.fcntl(number, abi.constants.F_GETFD, 0) < 0) : undefined;
    return bad === undefined ? new SystemError(code, result, "sendmsg") : closed(`${bad} is not open`);
  }

  #late(result: number, { timeoutMs }: WaitOptions, leftSize: number): TakeoverError {
    const code = this.#nameOf(result);
    return new TakeoverError(
      "ERR_TAKEOVER_TIMEOUT",
      `Cannot send within ${timeoutMs} ms, ${leftSize} bytes are left: sendmsg says ${code}; ` +
        "the receiver does not read, or this user has too many descriptors in flight",
      { cause: new SystemError(code, result, "sendmsg") },
    );
  }

  async #receiveNext(options: ReceiveOptions, until: number): Promise<FdMessage | null> {
    for (;;) {
      options.signal?.throwIfAborted();
      const found = this.#receiveOnce(options);
      if (found !== undefined) return found;
      const timeoutMs = until === Infinity ? undefined : Math.max(0, until - Date.now());
      await waitReadable(this.#runtime, this.#opened(), { ...options, timeoutMs });
    }
  }

  /** Undefined when nothing is there, null at the end. */
  #receiveOnce({ maxBytes = defaultMaxBytes, minFds = 0, maxFds = Infinity }: ReceiveOptions): FdMessage | null | undefined {
    if (!(Number.isInteger(maxBytes) && maxBytes >= 1 && maxBytes <= messageRoom)) {
      throw new TakeoverError("ERR_TAKEOVER_RANGE", `Cannot receive ${maxBytes} bytes: expected 1 to ${messageRoom}`);
    }
    const incoming = receiveMessage(this.#runtime, this.#opened(), maxBytes);
    if (typeof incoming === "number") {
      const code = this.#nameOf(incoming);
      if (code === "EAGAIN" || code === "EINTR") return undefined;
      throw new SystemError(code, incoming, "recvmsg");
    }
    const message = new FdMessage(this.#runtime, incoming);
    const { length } = message.fds;
    if (incoming.isControlCut) return refused(message, new TruncatedError(message.bytes, length));
    if (incoming.bytes.length === 0 && length === 0 && this.#isAtEnd()) {
      message[Symbol.dispose]();
      return null;
    }
    if (length < minFds) return refused(message, miscounted("ERR_TAKEOVER_MISSING", length, `at least ${minFds}`));
    if (length > maxFds) return refused(message, miscounted("ERR_TAKEOVER_SURPLUS", length, `at most ${maxFds}`));
    return message;
  }

  /** Whether what came without a byte or descriptor was the end, and no empty packet. */
  #isAtEnd(): boolean {
    if (this.type !== "seqpacket") return this.type === "stream";
    return isShutDown(this.#runtime, this.#opened()) && !isMessageWaiting(this.#runtime, this.#opened());
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

function deadlineOf({ timeoutMs }: WaitOptions): number {
  return timeoutMs === undefined ? Infinity : Date.now() + timeoutMs;
}

function closed(why: string): TakeoverError {
  return new TakeoverError("ERR_TAKEOVER_CLOSED", `Cannot send a descriptor: ${why}; nothing was sent`);
}

function miscounted(code: "ERR_TAKEOVER_MISSING" | "ERR_TAKEOVER_SURPLUS", count: number, expected: string): TakeoverError {
  return new TakeoverError(code, `A message came with ${count} descriptors, expected ${expected}; they were closed`);
}

function refused(message: FdMessage, error: Error): never {
  message[Symbol.dispose]();
  throw error;
}
