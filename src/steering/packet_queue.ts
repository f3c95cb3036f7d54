/**
 * Packets on their way out of a connected socket, in order. What the socket does not take
 * at once waits here, up to a size; what does not fit is told of.
 *
 * @module
 */

import type { Bytes } from "../c/bytes.ts";
import { errnoName } from "../c/errno.ts";
import { sendMessage } from "../channels/message.ts";
import { stopWaiting, waitWritable } from "../channels/readiness.ts";
import type { Runtime } from "../runtime.ts";

/** One packet. */
export interface Packet {
  readonly bytes: Bytes;
  /** How many datagrams it has. */
  readonly datagramCount: number;
}

/** Whom a queue tells what became of a packet; each is told of once. */
export interface PacketObserver {
  /** The socket has taken it. */
  sent(packet: Packet): void;
  /** It will not be sent: there is no room (null), or an errno's name says why. */
  refused(packet: Packet, code: string | null): void;
}

/** A queue in front of a socket, which stays its owner's. Stopping it ends every wait for the descriptor. */
export class PacketQueue {
  readonly #runtime: Runtime;
  readonly #descriptor: number;
  readonly #limitSize: number;
  readonly #observer: PacketObserver;
  #waiting: Packet[] = [];
  #size = 0;
  #isStopped = false;

  /** @param limitSize The most bytes that wait. */
  constructor(runtime: Runtime, descriptor: number, limitSize: number, observer: PacketObserver) {
    this.#runtime = runtime;
    this.#descriptor = descriptor;
    this.#limitSize = limitSize;
    this.#observer = observer;
  }

  /** Sends a packet, or lets it wait. Its bytes have to stay as they are. */
  push(packet: Packet): void {
    const isFree = this.#waiting.length === 0 && !this.#isStopped;
    const result = isFree ? sendMessage(this.#runtime, this.#descriptor, packet) : null;
    if (result !== null && !this.#isFull(result)) return this.#tell(packet, result);
    const hasRoom = !this.#isStopped && this.#size + packet.bytes.length <= this.#limitSize;
    if (!hasRoom) return this.#observer.refused(packet, null);
    this.#size += packet.bytes.length;
    if (this.#waiting.push(packet) === 1) void this.#drain();
  }

  /** Stops, before the descriptor is closed. What waits comes back. */
  stop(): Packet[] {
    const waiting = this.#waiting;
    this.#waiting = [];
    this.#size = 0;
    this.#isStopped = true;
    stopWaiting(this.#runtime, this.#descriptor);
    return waiting;
  }

  async #drain(): Promise<void> {
    try {
      while (this.#waiting.length > 0) {
        await waitWritable(this.#runtime, this.#descriptor, { keepAlive: false });
        this.#sendWaiting();
      }
    } catch {
      // It has been stopped, and nothing waits any more; or nothing can be sent, which is told here.
      for (const packet of this.stop()) this.#observer.refused(packet, null);
    }
  }

  #sendWaiting(): void {
    for (let packet = this.#waiting[0]; packet !== undefined; packet = this.#waiting[0]) {
      const result = sendMessage(this.#runtime, this.#descriptor, packet);
      if (this.#isFull(result)) return;
      this.#waiting.shift();
      this.#size -= packet.bytes.length;
      this.#tell(packet, result);
    }
  }

  #tell(packet: Packet, result: number): void {
    if (result >= 0) this.#observer.sent(packet);
    else this.#observer.refused(packet, errnoName(this.#runtime.abi.platform, -result));
  }

  #isFull(result: number): boolean {
    return result < 0 && errnoName(this.#runtime.abi.platform, -result) === "EAGAIN";
  }
}
