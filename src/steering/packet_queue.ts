/**
 * Packets on their way out of a socket, in order. What the socket does not take
 * at once waits here, up to a size; what does not fit is told of.
 *
 * @module
 */

import { errnoName } from "../c/errno.ts";
import type { SocketAddress } from "../c/sockaddr.ts";
import { sendMessage } from "../channels/message.ts";
import { waitWritable } from "../channels/readiness.ts";
import type { Runtime } from "../runtime.ts";

/** One packet. */
export interface Packet {
  readonly bytes: Uint8Array;
  /** Whom to, on a socket that is not connected. */
  readonly to?: SocketAddress;
}

/** Whom a queue tells. */
export interface PacketObserver {
  /** The socket has taken it. */
  sent(packet: Packet): void;
  /** It will not be sent: there is no room (null), or the socket says what is wrong with it. */
  refused(packet: Packet, code: string | null): void;
}

/** What sendmsg(2) says of a socket that has room again later. */
const full = ["EAGAIN", "EINTR", "ENOBUFS"];

/** A queue in front of a socket, which stays its owner's. */
export class PacketQueue {
  readonly #runtime: Runtime;
  readonly #descriptor: number;
  readonly #limitSize: number;
  readonly #observer: PacketObserver;
  readonly #ending = new AbortController();
  #waiting: Packet[] = [];
  #size = 0;

  /** @param limitSize The most bytes that wait. */
  constructor(runtime: Runtime, descriptor: number, limitSize: number, observer: PacketObserver) {
    this.#runtime = runtime;
    this.#descriptor = descriptor;
    this.#limitSize = limitSize;
    this.#observer = observer;
  }

  /** Sends a packet, or lets it wait. Its bytes have to stay as they are. */
  push(packet: Packet): void {
    if (this.#waiting.length === 0 && this.#send(packet)) return;
    if (this.#ending.signal.aborted || this.#size + packet.bytes.length > this.#limitSize) {
      this.#observer.refused(packet, null);
      return;
    }
    this.#size += packet.bytes.length;
    if (this.#waiting.push(packet) === 1) void this.#drain();
  }

  /** Stops. What waits comes back, and is the caller's. */
  stop(): Packet[] {
    const waiting = this.#waiting;
    this.#waiting = [];
    this.#size = 0;
    this.#ending.abort();
    return waiting;
  }

  async #drain(): Promise<void> {
    try {
      while (this.#waiting.length > 0) {
        await waitWritable(this.#runtime, this.#descriptor, { signal: this.#ending.signal, keepAlive: false });
        this.#sendWaiting();
      }
    } catch {
      // It was stopped, or the descriptor is closed; then the next packet says so.
    }
  }

  #sendWaiting(): void {
    let sentCount = 0;
    while (sentCount < this.#waiting.length && this.#send(this.#waiting[sentCount]!)) {
      this.#size -= this.#waiting[sentCount++]!.bytes.length;
    }
    this.#waiting.splice(0, sentCount);
  }

  /** False when there is no room now. */
  #send(packet: Packet): boolean {
    if (this.#ending.signal.aborted) return false;
    const result = sendMessage(this.#runtime, this.#descriptor, packet);
    if (result >= 0) {
      this.#observer.sent(packet);
      return true;
    }
    const code = errnoName(this.#runtime.abi.platform, -result);
    if (full.includes(code)) return false;
    this.#observer.refused(packet, code);
    return true;
  }
}
