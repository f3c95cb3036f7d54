/**
 * Bytes with descriptors over a connected Unix stream: sendmsg(2) and
 * recvmsg(2) with `SCM_RIGHTS` (unix(7)). Never blocks.
 *
 * @module
 */

import { cmsgSpace, decodeRights, descriptorSize, encodeRights } from "../c/cmsg.ts";
import { allocate, type Bytes } from "../c/bytes.ts";
import { OwnedDescriptor } from "./descriptors.ts";
import { errnoName } from "../c/errno.ts";
import { checked, SystemError, TakeoverError } from "../errors.ts";
import { Msghdr } from "../c/msghdr.ts";
import type { Runtime } from "../runtime.ts";

/** What one recvmsg(2) brought. */
export interface Received {
  /** A copy; empty at the end of the stream. */
  readonly bytes: Bytes;
  /** In the order sent; the caller owns them. */
  readonly descriptors: OwnedDescriptor[];
}

/** The errnos after which the same sendmsg may succeed a moment later. */
const passing = ["EAGAIN", "ENOBUFS", "ENOMEM", "ETOOMANYREFS", "EINTR"];

/**
 * Room in the control buffer: more than any sender can fill, so that too many
 * are noticed by their number. macOS lets 512 through, and leaks what does not fit.
 */
const receivableCount = 512;

/** How long to wait before trying such a sendmsg again. */
const retryMs = 2;

/** A raw Unix stream that only FFI touches. It does not own its descriptor. */
export class DescriptorChannel {
  readonly #runtime: Runtime;
  readonly #descriptor: number;
  readonly #message: Msghdr;

  /**
   * @param runtime The runtime's libc.
   * @param descriptor A connected Unix stream.
   * @param dataSize The most bytes in one message.
   */
  constructor(runtime: Runtime, descriptor: number, dataSize: number) {
    const { abi } = runtime;
    this.#runtime = runtime;
    this.#descriptor = descriptor;
    const control = allocate(cmsgSpace(abi, receivableCount * descriptorSize));
    this.#message = new Msghdr(abi, (bytes) => runtime.addressOf(bytes), allocate(dataSize), control);
  }

  /**
   * Sends one message whole.
   *
   * After a short write the descriptors are on their way already, so the rest
   * of the bytes follows without them.
   *
   * @param bytes At least one byte: a message without any is not sent at all.
   * @param descriptors At most 253; they stay the caller's.
   * @param limitMs How long a full receiver or table is waited for.
   * @throws {TakeoverError} `ERR_TAKEOVER_TIMEOUT` when it stays full.
   * @throws {SystemError} When sendmsg(2) fails for good.
   */
  async send(bytes: Uint8Array, descriptors: readonly number[], limitMs: number): Promise<void> {
    const control = encodeRights(this.#runtime.abi, descriptors);
    const until = Date.now() + limitMs;
    let sentSize = 0;
    while (sentSize < bytes.length) {
      // Another send may have used the buffers during the wait.
      this.#message.data.set(bytes);
      this.#message.control.set(control);
      const result = this.#sendOnce(sentSize, bytes.length - sentSize, sentSize === 0 ? control.length : 0);
      if (result >= 0) sentSize += result;
      else await this.#waitAfter(result, until, limitMs);
    }
  }

  /**
   * Receives what is there.
   *
   * @param size The most bytes to take.
   * @returns Null when nothing is there yet.
   * @throws {TakeoverError} `ERR_TAKEOVER_TRUNCATED` when descriptors were lost
   *   on the way in; those that came have been closed.
   * @throws {SystemError} When recvmsg(2) fails.
   */
  receive(size: number): Received | null {
    const { abi, libc } = this.#runtime;
    const { MSG_DONTWAIT, MSG_CMSG_CLOEXEC, MSG_CTRUNC } = abi.constants;
    this.#message.aim(0, size, this.#message.control.length);
    const result = libc.recvmsg(this.#descriptor, this.#message.bytes, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (result < 0 && ["EAGAIN", "EINTR"].includes(errnoName(abi.platform, -result))) return null;
    checked(abi, "recvmsg", result);
    const descriptors = decodeRights(abi, this.#message.received)
      .map((number) => new OwnedDescriptor(this.#runtime, number));
    if (this.#message.flags & MSG_CTRUNC) throw truncated(descriptors);
    return { bytes: this.#message.data.slice(0, result), descriptors };
  }

  #sendOnce(offset: number, size: number, controlSize: number): number {
    const { abi, libc } = this.#runtime;
    const { MSG_DONTWAIT, MSG_NOSIGNAL } = abi.constants;
    this.#message.aim(offset, size, controlSize);
    return libc.sendmsg(this.#descriptor, this.#message.bytes, MSG_DONTWAIT | MSG_NOSIGNAL);
  }

  async #waitAfter(result: number, until: number, limitMs: number): Promise<void> {
    const code = errnoName(this.#runtime.abi.platform, -result);
    if (!passing.includes(code)) throw new SystemError(code, result, "sendmsg");
    if (Date.now() >= until) {
      throw new TakeoverError(
        "ERR_TAKEOVER_TIMEOUT",
        `Cannot send descriptors within ${limitMs} ms: sendmsg says ${code}; ` +
          "the receiver does not read, or this user has too many descriptors in flight",
        { cause: new SystemError(code, result, "sendmsg") },
      );
    }
    await new Promise((resolve) => setTimeout(resolve, retryMs));
  }
}

function truncated(descriptors: OwnedDescriptor[]): TakeoverError {
  for (const descriptor of descriptors) descriptor[Symbol.dispose]();
  return new TakeoverError(
    "ERR_TAKEOVER_TRUNCATED",
    `Cannot receive all descriptors of a message: ${descriptors.length} arrived and were closed, the kernel ` +
      "dropped the others (MSG_CTRUNC); raise the limit of open files (ulimit -n) or send fewer",
  );
}
