/**
 * Datagrams on their way to an older process, over a Unix socket of packets.
 *
 * Nothing is lost in silence: what finds no room is told of, and what was not
 * on its way yet when the older process ends comes back.
 *
 * @module
 */

import { allocate, type Bytes } from "../c/bytes.ts";
import type { InetAddress } from "../c/sockaddr.ts";
import { Pace } from "../channels/turns.ts";
import { TakeoverError } from "../errors.ts";
import type { Runtime } from "../runtime.ts";
import type { OwnedDescriptor } from "../sockets/descriptors.ts";
import { peerOf } from "../sockets/peers.ts";
import { checkPacketSocket, nextAt, receivePacket } from "./forward_channel.ts";
import { type ForwardedDatagram, type ForwardFormat, ownFormat } from "./forward_frames.ts";
import { type Packet, PacketQueue } from "./packet_queue.ts";

/** How datagrams go to an older process. */
export interface ForwardLinkOptions {
  /** As both sides write them; the library's own when left out. */
  readonly format?: ForwardFormat;
  /** The most bytes that wait for an older process that does not read. What comes then is dropped. */
  readonly queueSize: number;
  /** Is given each datagram that was waiting when the older process ended. */
  readonly returned: (datagram: ForwardedDatagram) => void;
  /** Hears how many have been dropped since it heard it last, about once a second while there are some. */
  readonly dropped: (count: number) => void;
  /** Is called once, when the older process has ended, its side of the link, or this side. */
  readonly ended: () => void;
}

/** How long datagrams that are dropped are counted before they are told of. */
const countingMs = 1_000;

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
  /** Since it was told last. */
  #droppedCount = 0;
  #telling: ReturnType<typeof setTimeout> | undefined;
  #isFinishing = false;

  /**
   * Takes up a link.
   *
   * @param channel A connected Unix socket of packets (SOCK_SEQPACKET), owned by the link from here on.
   * @throws {TakeoverError} `ERR_TAKEOVER_DESCRIPTOR` when it is something else.
   */
  constructor(runtime: Runtime, channel: OwnedDescriptor, options: ForwardLinkOptions) {
    checkPacketSocket(runtime, channel);
    this.#runtime = runtime;
    this.#channel = channel;
    this.#options = options;
    this.#format = options.format ?? ownFormat;
    this.#queue = new PacketQueue(runtime, channel.number, options.queueSize, {
      sent: () => this.#finishWhenIdle(),
      refused: (packet, code) => this.#refused(packet, code),
    });
    void this.#watch();
  }

  /** Whether the older process is there. */
  get isOpen(): boolean {
    return this.#channel.number >= 0;
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
    const frame = this.#format.encode({ bytes, peer: peerOf(this.#runtime, this.#channel.number, peer) });
    if (!this.#format.isBatched) return this.#queue.push({ bytes: frame, datagramCount: 1 });
    if (this.#framesSize + frame.length > packetSize) this.#flush();
    if (this.#frames.push(frame) === 1) setImmediate(() => this.#flush());
    this.#framesSize += frame.length;
  }

  /** Closes the link as soon as nothing waits: from here on another process forwards over an end of its own. */
  finish(): void {
    this.#isFinishing = true;
    this.#flush();
    this.#finishWhenIdle();
  }

  /** Closes the link at once. What waits is dropped. */
  close(): void {
    this.#flush();
    this.#end((packet) => this.#drop(packet));
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

  #finishWhenIdle(): void {
    if (this.#isFinishing && this.isOpen && this.#frames.length === 0 && this.#queue.isEmpty) this.close();
  }

  /** An idle link tells of its end as well. */
  async #watch(): Promise<void> {
    const pace = new Pace();
    for (;;) {
      const next = await nextAt(this.#runtime, this.#channel);
      if (next !== "packet") return this.#end((packet) => this.#return(packet));
      // Nobody has anything to say here; were it left, it would wake this process without an end.
      receivePacket(this.#runtime, this.#channel.number);
      await pace.keep();
    }
  }

  /** A packet that finds no room is lost alone; anything else is the end of the older process. */
  #refused(packet: Packet, code: string | null): void {
    if (!this.isOpen) return this.#return(packet);
    if (code !== null && code !== "EMSGSIZE") return this.#end((packet) => this.#return(packet), packet);
    this.#drop(packet);
    this.#finishWhenIdle();
  }

  /**
   * Closes the link.
   *
   * @param unsent Is given each packet that has not been sent.
   * @param refused The first of those.
   */
  #end(unsent: (packet: Packet) => void, ...refused: readonly Packet[]): void {
    if (!this.isOpen) return;
    const waiting = this.#queue.stop();
    this.#channel[Symbol.dispose]();
    for (const packet of [...refused, ...waiting]) unsent(packet);
    this.#flush();
    this.#tell();
    this.#options.ended();
  }

  #return({ bytes }: Packet): void {
    for (const datagram of this.#format.decode(bytes)) this.#options.returned(datagram);
  }

  #drop({ datagramCount }: Packet): void {
    this.#droppedCount += datagramCount;
    this.#telling ??= setTimeout(() => this.#tell(), countingMs);
  }

  #tell(): void {
    clearTimeout(this.#telling);
    this.#telling = undefined;
    const count = this.#droppedCount;
    this.#droppedCount = 0;
    if (count > 0) this.#options.dropped(count);
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
