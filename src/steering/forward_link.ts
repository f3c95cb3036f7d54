/**
 * Datagrams on their way to an older process, over a Unix socket of packets.
 *
 * Nothing is lost in silence: what finds no room is counted, and what was not
 * on its way yet when the older process ends comes back.
 *
 * @module
 */

import { allocate, type Bytes } from "../c/bytes.ts";
import type { InetAddress } from "../c/sockaddr.ts";
import { isShutDown, waitReadable } from "../channels/readiness.ts";
import { TakeoverError } from "../errors.ts";
import type { Runtime } from "../runtime.ts";
import type { OwnedDescriptor } from "../sockets/descriptors.ts";
import { checkPacketSocket, receivePacket } from "./forward_channel.ts";
import { type ForwardedDatagram, type ForwardFormat, ownFormat } from "./forward_frames.ts";
import { type Packet, PacketQueue } from "./packet_queue.ts";

/** How datagrams go to an older process. */
export interface ForwardLinkOptions {
  /** As both sides write them; the library's own when left out. */
  readonly format?: ForwardFormat;
  /** Bytes that wait for an older process that does not read; 1 MiB. What comes then is dropped, and counted. */
  readonly queueSize?: number;
  /** Is given each datagram that was waiting when the older process ended; without it they count as dropped. */
  readonly returned?: (datagram: ForwardedDatagram) => void;
  /** Is called once, when the older process has ended, or its side of the link. */
  readonly ended?: () => void;
}

/** What became of the datagrams that were to be forwarded. */
export interface ForwardCounts {
  /** The kernel has them for the older process. */
  readonly forwardedCount: number;
  /** They found no room, or were longer than a packet may be. */
  readonly droppedCount: number;
  /** They came back when the older process ended. */
  readonly returnedCount: number;
}

const defaultQueueSize = 1024 * 1024;

/** A packet of several datagrams has at most as many bytes: one that is full goes out at once. */
const packetSize = 64 * 1024;

/** Datagrams to one older process. */
export class ForwardLink implements Disposable {
  readonly #runtime: Runtime;
  readonly #channel: OwnedDescriptor;
  readonly #options: ForwardLinkOptions;
  readonly #format: ForwardFormat;
  readonly #queue: PacketQueue;
  /** Frames that go out together at the end of the turn, and their bytes. */
  #frames: Bytes[] = [];
  #framesSize = 0;
  #forwardedCount = 0;
  #droppedCount = 0;
  #returnedCount = 0;

  /**
   * Takes up a link.
   *
   * @param channel A connected Unix socket of packets (SOCK_SEQPACKET), owned by the link from here on.
   * @throws {TakeoverError} `ERR_TAKEOVER_DESCRIPTOR` when it is something else.
   */
  constructor(runtime: Runtime, channel: OwnedDescriptor, options: ForwardLinkOptions = {}) {
    checkPacketSocket(runtime, channel);
    this.#runtime = runtime;
    this.#channel = channel;
    this.#options = options;
    this.#format = options.format ?? ownFormat;
    this.#queue = new PacketQueue(runtime, channel.number, options.queueSize ?? defaultQueueSize, {
      sent: ({ datagramCount }) => this.#forwardedCount += datagramCount,
      refused: (packet, code) => this.#refused(packet, code),
    });
    void this.#watch();
  }

  /** Whether the older process is there. */
  get isOpen(): boolean {
    return this.#channel.number >= 0;
  }

  /** Up to now. */
  get counts(): ForwardCounts {
    const [forwardedCount, droppedCount, returnedCount] = [this.#forwardedCount, this.#droppedCount, this.#returnedCount];
    return { forwardedCount, droppedCount, returnedCount };
  }

  /**
   * Passes a datagram on, at the end of this turn of the event loop.
   *
   * @param bytes Copied.
   * @throws {TakeoverError} `ERR_TAKEOVER_CLOSED`, `ERR_TAKEOVER_LIMIT` for more than 65,527 bytes,
   *   `ERR_TAKEOVER_ADDRESS` for a sender without an address and port.
   */
  forward(bytes: Uint8Array, peer: InetAddress): void {
    if (!this.isOpen) throw ended();
    const frame = this.#format.encode({ bytes, peer });
    if (!this.#format.isBatched) return this.#queue.push({ bytes: frame, datagramCount: 1 });
    if (this.#framesSize + frame.length > packetSize) this.#flush();
    if (this.#frames.push(frame) === 1) setImmediate(() => this.#flush());
    this.#framesSize += frame.length;
  }

  /** Closes the link. What waited comes back. */
  close(): void {
    this.#flush();
    this.#end([]);
  }

  /** The same as {@linkcode close}. */
  [Symbol.dispose](): void {
    this.close();
  }

  #flush(): void {
    if (this.#frames.length === 0) return;
    const packet = { bytes: joined(this.#frames, this.#framesSize), datagramCount: this.#frames.length };
    this.#frames = [];
    this.#framesSize = 0;
    this.#queue.push(packet);
  }

  /** An idle link tells of its end as well. */
  async #watch(): Promise<void> {
    try {
      while (this.isOpen) {
        await waitReadable(this.#runtime, this.#channel.number, { keepAlive: false });
        if (isShutDown(this.#runtime, this.#channel.number)) return this.#end([]);
        // Nobody has anything to say here; were it left, it would wake this process without an end.
        if (typeof receivePacket(this.#runtime, this.#channel.number) === "number") return this.#end([]);
      }
    } catch {
      // It was closed.
    }
  }

  /** A packet that finds no room is lost alone; anything else is the end of the older process. */
  #refused(packet: Packet, code: string | null): void {
    if (!this.isOpen) this.#return(packet);
    else if (code === null || code === "EMSGSIZE") this.#droppedCount += packet.datagramCount;
    else this.#end([packet]);
  }

  #end(refused: readonly Packet[]): void {
    if (!this.isOpen) return;
    const waiting = [...refused, ...this.#queue.stop()];
    this.#channel[Symbol.dispose]();
    for (const packet of waiting) this.#return(packet);
    this.#flush();
    this.#options.ended?.();
  }

  #return({ bytes, datagramCount }: Packet): void {
    const { returned } = this.#options;
    if (!returned) {
      this.#droppedCount += datagramCount;
      return;
    }
    this.#returnedCount += datagramCount;
    for (const datagram of this.#format.decode(bytes)) returned(datagram);
  }
}

function ended(): TakeoverError {
  return new TakeoverError("ERR_TAKEOVER_CLOSED", "Cannot forward a datagram: the older process has ended");
}

function joined(frames: readonly Bytes[], size: number): Bytes {
  if (frames.length === 1) return frames[0]!;
  const all = allocate(size);
  let at = 0;
  for (const frame of frames) {
    all.set(frame, at);
    at += frame.length;
  }
  return all;
}
