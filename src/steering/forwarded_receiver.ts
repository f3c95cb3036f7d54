/**
 * Datagrams that the newest process has forwarded to this older one.
 *
 * @module
 */

import { errnoName } from "../c/errno.ts";
import type { InetAddress } from "../c/sockaddr.ts";
import { stopWaiting } from "../channels/readiness.ts";
import { Pace } from "../channels/turns.ts";
import { SystemError } from "../errors.ts";
import type { Runtime } from "../runtime.ts";
import type { OwnedDescriptor } from "../sockets/descriptors.ts";
import { checkPeerUser } from "../sockets/identity.ts";
import { checkPacketSocket, nextAt, receivePacket } from "./forward_channel.ts";
import { type ForwardFormat, ownFormat } from "./forward_frames.ts";

/** What an older process is given. */
export interface ForwardedOptions {
  /** As both sides write them; the library's own when left out. */
  readonly format?: ForwardFormat;
  /** Is given each datagram. What it throws ends the link. */
  readonly datagram: (bytes: Uint8Array, peer: InetAddress) => void;
  /** Is called once: null after an ordinary end, else with what is wrong with the link. */
  readonly ended?: (error: unknown) => void;
}

/** Both directions of a socket (shutdown(2), SHUT_RDWR). */
const bothDirections = 2;

/** What comes from the newest process. */
export class ForwardedReceiver implements Disposable {
  readonly #runtime: Runtime;
  readonly #channel: OwnedDescriptor;
  readonly #options: ForwardedOptions;
  readonly #format: ForwardFormat;

  /**
   * Begins to receive.
   *
   * @param channel A connected Unix socket of packets (SOCK_SEQPACKET), owned by the receiver from here on; closed when
   *   this throws.
   * @throws {TakeoverError} `ERR_TAKEOVER_USER` when the other end was made by another user, `ERR_TAKEOVER_DESCRIPTOR`.
   */
  constructor(runtime: Runtime, channel: OwnedDescriptor, options: ForwardedOptions) {
    this.#runtime = runtime;
    this.#channel = channel;
    this.#options = options;
    this.#format = options.format ?? ownFormat;
    try {
      checkPacketSocket(runtime, channel);
      checkPeerUser(runtime, channel.number, [], "successor");
    } catch (error) {
      channel[Symbol.dispose]();
      throw error;
    }
    void this.#run();
  }

  /**
   * Takes no more: the newest process serves what comes from here on. What is
   * on its way is still given to the callback, before this returns.
   */
  end(): void {
    if (this.#channel.number < 0) return;
    this.#runtime.libc.shutdown(this.#channel.number, bothDirections);
    try {
      while (this.#receive());
      this.#close(null);
    } catch (error) {
      this.#close(error);
    }
  }

  /** The same as {@linkcode end}. */
  [Symbol.dispose](): void {
    this.end();
  }

  async #run(): Promise<void> {
    const pace = new Pace();
    try {
      for (;;) {
        const next = await nextAt(this.#runtime, this.#channel);
        while (this.#channel.number >= 0 && this.#receive()) await pace.keep();
        if (next !== "packet") return this.end();
      }
    } catch (error) {
      this.#close(error);
    }
  }

  /** One packet. False when there is none now. */
  #receive(): boolean {
    const found = receivePacket(this.#runtime, this.#channel.number);
    if (typeof found === "number") {
      const code = errnoName(this.#runtime.abi.platform, -found);
      if (code === "EAGAIN") return false;
      // Said once, of an end that had not read everything; what it has sent comes after.
      if (code === "ECONNRESET") return true;
      throw new SystemError(code, found, "recvmsg");
    }
    if (found.length === 0) return false;
    for (const { bytes, peer } of this.#format.decode(found)) this.#options.datagram(bytes, peer);
    return true;
  }

  #close(error: unknown): void {
    if (this.#channel.number < 0) return;
    stopWaiting(this.#runtime, this.#channel.number);
    this.#channel[Symbol.dispose]();
    this.#options.ended?.(error);
  }
}
