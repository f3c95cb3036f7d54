/**
 * Asking HAProxy's stats socket for listening sockets: the conversation, before
 * anybody looks at what came.
 *
 * @module
 */

import { isSystemError, TakeoverError } from "../errors.ts";
import type { Limits } from "../limits.ts";
import type { OwnedDescriptor } from "../sockets/descriptors.ts";
import type { FdChannel } from "../channels/fd_channel.ts";
import type { FdMessage, ReceiveOptions } from "../channels/fd_message.ts";
import type { WaitOptions } from "../channels/readiness.ts";
import {
  command,
  decodeInteger,
  encodeInteger,
  type HaproxyRecord,
  integerSize,
  RecordReader,
} from "./haproxy_records.ts";

/** How long the other side may take to hang up after the last batch; what it sends then is too much. */
const endMs = 250;

/** One conversation with a stats socket. */
export class HaproxyClient {
  readonly #channel: FdChannel;
  readonly #path: string;
  readonly #wait: () => WaitOptions;

  constructor(channel: FdChannel, path: string, wait: () => WaitOptions) {
    this.#channel = channel;
    this.#path = path;
    this.#wait = wait;
  }

  /** Asks, and gives the number of sockets that will come. */
  async ask({ endpointCount }: Limits): Promise<number> {
    await this.#send(new TextEncoder().encode(`${command}\n`));
    const answer = new Uint8Array(integerSize);
    for (let size = 0; size < integerSize;) {
      // Not a byte more: the first batch's descriptors come with its first byte.
      const message = await this.#next({ maxBytes: integerSize - size, maxFds: 0 });
      if (message === null) throw size === 0 ? this.nothing("it hung up without a word") : this.#lost("of its answer");
      answer.set(message.bytes, size);
      size += message.bytes.length;
    }
    const count = decodeInteger(answer);
    if (count === 0) throw this.nothing("it has none");
    if (count < 0 || isText(answer)) throw this.#broken(`it answered ${shownAnswer(answer, count)}, expected a count`);
    if (count <= endpointCount) return count;
    throw new TakeoverError(
      "ERR_TAKEOVER_LIMIT",
      `${this.#subject}: it announced ${count}, expected at most ${endpointCount}; raise the limit endpointCount`,
    );
  }

  /**
   * Receives every batch and answers it.
   *
   * @param taken Where the descriptors go, one by one, so that the caller can close them.
   */
  async receive(count: number, taken: OwnedDescriptor[]): Promise<HaproxyRecord[]> {
    const reader = new RecordReader();
    const records: HaproxyRecord[] = [];
    for (let acknowledged = 0; records.length < count;) {
      const message = await this.#next({ maxFds: count - taken.length });
      if (message === null) throw this.#lost(`after ${taken.length} of ${count} sockets`);
      taken.push(...message.fds);
      records.push(...reader.push(message.bytes));
      this.#checkRecords(records.length + (reader.isMidway ? 1 : 0), taken.length, count);
      if (records.length < taken.length) continue;
      await this.#send(encodeInteger(acknowledged));
      acknowledged = taken.length;
    }
    await this.#expectEnd();
    return records;
  }

  /** A batch's descriptors come with its first byte, so that there are never more records than descriptors. */
  #checkRecords(recordCount: number, takenCount: number, count: number): void {
    if (recordCount <= takenCount) return;
    if (takenCount === count) throw this.#broken(`expected ${count} records, more came`);
    throw new TakeoverError(
      "ERR_TAKEOVER_MISSING",
      `${this.#subject}: expected a descriptor for each record, ${recordCount} records and ${takenCount} descriptors ` +
        "came; ask again",
    );
  }

  /**
   * Nobody need be there to hear: until HAProxy 3.2 it hung up after the last
   * batch. What it said before that comes with the next message.
   */
  async #send(bytes: Uint8Array): Promise<void> {
    try {
      await this.#channel.send(bytes, [], this.#wait());
    } catch (error) {
      if (!isSystemError(error, "EPIPE", "ECONNRESET")) throw error;
    }
  }

  /** One batch too many is a different protocol, or another HAProxy than the one that counted. */
  async #expectEnd(): Promise<void> {
    const wait = this.#wait();
    try {
      const message = await this.#next({ maxFds: 0, timeoutMs: Math.min(endMs, wait.timeoutMs!) });
      if (message !== null) throw this.#broken(`${message.bytes.length} bytes came after the last batch`);
    } catch (error) {
      // It need not hang up: all that was announced is here.
      if (!isTimeout(error)) throw error;
    }
  }

  /** The next message, or null when the other side has gone, having read our last answer or not. */
  async #next(options: ReceiveOptions): Promise<FdMessage | null> {
    try {
      return await this.#channel.receive({ ...this.#wait(), ...options });
    } catch (error) {
      if (isSystemError(error, "ECONNRESET")) return null;
      throw isTimeout(error) ? this.#late(error) : error;
    }
  }

  get #subject(): string {
    return `Cannot take sockets from HAProxy at ${this.#path}`;
  }

  /** The error for a HAProxy that has, or gives, nothing. */
  nothing(why: string): TakeoverError {
    return new TakeoverError(
      "ERR_TAKEOVER_NO_LISTENER",
      `${this.#subject}: expected its listeners, ${why}; its configuration needs ` +
        `"stats socket ${this.#path} expose-fd listeners level admin", and at least one bind`,
    );
  }

  #lost(when: string): TakeoverError {
    return new TakeoverError("ERR_TAKEOVER_LOST", `${this.#subject}: it hung up in the middle, ${when}; ask again`);
  }

  #late(cause: unknown): TakeoverError {
    return new TakeoverError(
      "ERR_TAKEOVER_TIMEOUT",
      `${this.#subject} in time (option timeoutMs): it has not sent them all; is this its stats socket, does it run?`,
      { cause },
    );
  }

  #broken(why: string): TakeoverError {
    return new TakeoverError("ERR_TAKEOVER_PROTOCOL", `${this.#subject}: ${why}; is this its stats socket?`);
  }
}

function isTimeout(error: unknown): boolean {
  return error instanceof TakeoverError && error.code === "ERR_TAKEOVER_TIMEOUT";
}

function isText(bytes: Uint8Array): boolean {
  return bytes.every((byte) => byte >= 32 && byte < 127 || byte === 10);
}

function shownAnswer(answer: Uint8Array, count: number): string {
  return isText(answer) ? `${JSON.stringify(new TextDecoder().decode(answer))} …` : String(count);
}
