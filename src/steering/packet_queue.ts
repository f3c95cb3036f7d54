/**
 * Packets on their way out of a connected socket, in order. What the socket
 * does not take at once waits here, up to a size; what does not fit is told of.
 *
 * @module
 */

import type { Bytes } from "../c/bytes.ts";
import { errnoName } from "../c/errno.ts";
import { sendMessage } from "../channels/message.ts";
import { pause, stopWaiting, waitWritable } from "../channels/readiness.ts";
import type { Runtime } from "../runtime.ts";
import { againMs } from "./forward_channel.ts";

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

/** The socket has no room, or the machine has no memory: the same packet may go later. */
const passing: readonly string[] = ["EAGAIN", "ENOBUFS", "ENOMEM"];

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

  /** Whether nothing waits. */
  get isEmpty(): boolean {
    return this.#waiting.length === 0;
  }

  /** Sends a packet, or lets it wait. Its bytes have to stay as they are. */
  push(packet: Packet): void {
    const code = this.isEmpty && !this.#isStopped ? this.#send(packet) : "EAGAIN";
    if (!isPassing(code)) return this.#tell(packet, code);
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
    while (!this.isEmpty) {
      const wait = waitWritable(this.#runtime, this.#descriptor, { keepAlive: false });
      const isWritable = await wait.then(() => true, () => false);
      if (this.#isStopped) return;
      if (!isWritable || !this.#sendWaiting()) await pause(againMs);
    }
  }

  /** False when there is room, and no memory. */
  #sendWaiting(): boolean {
    for (let packet = this.#waiting[0]; packet !== undefined; packet = this.#waiting[0]) {
      const code = this.#send(packet);
      if (isPassing(code)) return code === "EAGAIN";
      this.#waiting.shift();
      this.#size -= packet.bytes.length;
      this.#tell(packet, code);
    }
    return true;
  }

  /** Null, or an errno's name. */
  #send(packet: Packet): string | null {
    const result = sendMessage(this.#runtime, this.#descriptor, packet);
    return result >= 0 ? null : errnoName(this.#runtime.abi.platform, -result);
  }

  #tell(packet: Packet, code: string | null): void {
    if (code === null) this.#observer.sent(packet);
    else this.#observer.refused(packet, code);
  }
}

function isPassing(code: string | null): boolean {
  return code !== null && passing.includes(code);
}
