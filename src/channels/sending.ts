/**
 * Sending on a channel: whole, in order, and each descriptor once, however full
 * the receiver is.
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
import { SystemError, TakeoverError } from "../errors.ts";
import type { Runtime } from "../runtime.ts";
import type { Descriptor } from "../sockets/descriptors.ts";
import type { SocketType } from "../sockets/socket.ts";
import { messageRoom, sendMessage } from "./message.ts";
import { deadlineOf, pause, type WaitOptions, waitWritable } from "./readiness.ts";
import { Turns } from "./turns.ts";

/** What can be sent beside bytes and descriptors, and how long it may take. */
export interface SendOptions extends WaitOptions {
  /** `SCM_CREDENTIALS`: who this process says it is; the kernel checks it (unix(7)). */
  readonly credentials?: Credentials;
  /** Whom to, for a datagram channel that is not connected. */
  readonly to?: SocketAddress;
}

/** The errnos after which the same sendmsg may succeed a moment later, and no event tells when. */
const passing = ["ENOBUFS", "ENOMEM", "ETOOMANYREFS"];
const firstPauseMs = 1;
const longestPauseMs = 50;

/** The sending half of a channel. */
export class Sender {
  readonly #runtime: Runtime;
  readonly #type: SocketType;
  readonly #opened: () => number;
  readonly #turns = new Turns();

  /** @param opened Gives the socket; throws once the channel is closed. */
  constructor(runtime: Runtime, type: SocketType, opened: () => number) {
    this.#runtime = runtime;
    this.#type = type;
    this.#opened = opened;
  }

  /** See `FdChannel.send`. */
  async send(bytes: Uint8Array, fds: readonly Descriptor[], options: SendOptions): Promise<void> {
    const numbers = fds.map(numberOf);
    this.#checkCounts(bytes.length, numbers.length, options);
    const sent = this.#turns.isFree() ? this.#sendAtOnce(bytes, numbers, options) : null;
    if (sent === bytes.length) return;
    const until = deadlineOf(options);
    await this.#turns.take(options, () =>
      sent === null ? this.#sendAll(bytes, numbers, options, until) : this.#sendRest(bytes.subarray(sent), options, until));
  }

  #checkCounts(size: number, count: number, { credentials }: SendOptions): void {
    const most = this.#runtime.abi.descriptorsPerMessage;
    const isStream = this.#type === "stream";
    if (!isStream && count > most) {
      throw new TakeoverError(
        "ERR_TAKEOVER_TOO_MANY",
        `Cannot send ${count} descriptors in one ${this.#type} message: expected at most ${most}; use a stream, or several messages`,
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
      const part = bytes.subarray(offset, offset + (this.#type === "stream" ? messageRoom : bytes.length));
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
    if (code !== "EAGAIN" || this.#type === "dgram") return await pause(pauseMs, options);
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
}

function numberOf(fd: Descriptor): number {
  const number = typeof fd === "number" ? fd : fd.number;
  if (Number.isInteger(number) && number >= 0 && number <= 0x7fffffff) return number;
  if (typeof fd !== "number") throw closed("it was taken or closed");
  throw new TakeoverError("ERR_TAKEOVER_RANGE", `Cannot send ${fd}: expected a descriptor, an integer from 0 to 2147483647`);
}

function closed(why: string): TakeoverError {
  return new TakeoverError("ERR_TAKEOVER_CLOSED", `Cannot send a descriptor: ${why}; nothing was sent`);
}
