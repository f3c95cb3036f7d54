/**
 * UDP flows that stay with the process that knows them, where nothing in the
 * datagram says which: the newest process reads everything, asks the
 * application, and passes on what belongs to an older generation, over a Unix
 * socket of packets and with the true sender's address. The older process
 * answers through its own copy of the UDP socket.
 *
 * ```text
 * client ──> UDP socket ──> newest process ── route: 3 ──> its own
 *    ↑                            └── route: 2 ──> Unix socket ──> process of generation 2
 *    └──────────────────────── its own copy of the UDP socket ─────────┘
 * ```
 *
 * Nothing is lost in silence: what finds no room is counted, and what was not
 * on its way yet when an older process ends comes back.
 *
 * @module
 */

import { allocate, type Bytes } from "../c/bytes.ts";
import { errnoName } from "../c/errno.ts";
import type { InetAddress } from "../c/sockaddr.ts";
import { messageRoom, receiveMessage } from "../channels/message.ts";
import { isShutDown, stopWaiting, waitReadable } from "../channels/readiness.ts";
import { Pace } from "../channels/turns.ts";
import { SystemError, TakeoverError } from "../errors.ts";
import type { Runtime } from "../runtime.ts";
import { disposeAll, OwnedDescriptor } from "../sockets/descriptors.ts";
import { checkPeerUser, peerCredentials } from "../sockets/identity.ts";
import { duplicate, integerOption } from "../sockets/socket.ts";
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

/** What an older process is given, and by whom. */
export interface ForwardedOptions {
  /** As both sides write them; the library's own when left out. */
  readonly format?: ForwardFormat;
  /** Users beside this process's own that may forward. */
  readonly allowUsers?: readonly number[];
  /** The process that opened the other end (`SO_PEERCRED`), when only that one may forward. */
  readonly pid?: number;
  /** Is given each datagram. What it throws ends the link. */
  readonly datagram: (bytes: Uint8Array, peer: InetAddress) => void;
  /** Is called once: null after an ordinary end, else with what is wrong with the link. */
  readonly ended?: (error: unknown) => void;
}

/** What became of the answers of an older process. */
export interface AnswerCounts {
  /** The kernel has them. */
  readonly sentCount: number;
  /** They found no room, or could not be sent to where they were to go. */
  readonly droppedCount: number;
}

const defaultQueueSize = 1024 * 1024;

/** A packet of several datagrams has at most as many bytes: one that is full goes out at once. */
const packetSize = 64 * 1024;

/** Both directions of a socket (shutdown(2), SHUT_RDWR). */
const bothDirections = 2;

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
    checkPackets(runtime, channel);
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
    if (!this.isOpen) throw closed("Cannot forward a datagram: the older process has ended");
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
        if (typeof receiveAndClose(this.#runtime, this.#channel.number) === "number") return this.#end([]);
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

/** All generations whose flows pass through this process. */
export class Forwarder {
  readonly #route: (bytes: Uint8Array, peer: InetAddress) => number | null;
  readonly #links = new Map<number, ForwardLink>();

  /**
   * Begins with no older generation.
   *
   * @param route Says which generation a datagram belongs to; null for this process.
   */
  constructor(route: (bytes: Uint8Array, peer: InetAddress) => number | null) {
    this.#route = route;
  }

  /** Names the process of a generation; one that is several generations' is named for each. */
  add(generation: number, link: ForwardLink): void {
    this.#links.set(generation, link);
  }

  /**
   * Forwards a datagram, when it is an older process's.
   *
   * @returns False when it is this process's own: also when the process that it
   *   belonged to has ended.
   */
  take(bytes: Uint8Array, peer: InetAddress): boolean {
    if (this.#links.size === 0) return false;
    const generation = this.#route(bytes, peer);
    const link = generation === null ? undefined : this.#links.get(generation);
    if (!link) return false;
    if (link.isOpen) {
      link.forward(bytes, peer);
      return true;
    }
    this.#links.delete(generation!);
    return false;
  }
}

/** What comes from the newest process. */
export class ForwardedReceiver implements Disposable {
  readonly #runtime: Runtime;
  readonly #channel: OwnedDescriptor;
  readonly #options: ForwardedOptions;
  readonly #format: ForwardFormat;
  #receivedCount = 0;

  /**
   * Begins to receive.
   *
   * @param channel A connected Unix socket of packets (SOCK_SEQPACKET), owned by the receiver from here on; closed when
   *   this throws.
   * @throws {TakeoverError} `ERR_TAKEOVER_USER` or `ERR_TAKEOVER_PROCESS` when
   *   the other end is somebody else's, `ERR_TAKEOVER_DESCRIPTOR`.
   */
  constructor(runtime: Runtime, channel: OwnedDescriptor, options: ForwardedOptions) {
    this.#runtime = runtime;
    this.#channel = channel;
    this.#options = options;
    this.#format = options.format ?? ownFormat;
    try {
      checkPackets(runtime, channel);
      checkForwarder(runtime, channel.number, options);
    } catch (error) {
      channel[Symbol.dispose]();
      throw error;
    }
    void this.#run();
  }

  /** Datagrams up to now. */
  get receivedCount(): number {
    return this.#receivedCount;
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
      while (this.#channel.number >= 0) {
        await waitReadable(this.#runtime, this.#channel.number, { keepAlive: false });
        while (this.#channel.number >= 0 && this.#receive()) await pace.keep();
        if (this.#channel.number >= 0 && isShutDown(this.#runtime, this.#channel.number)) this.end();
      }
    } catch (error) {
      this.#close(error);
    }
  }

  /** One packet. False when there is none now. */
  #receive(): boolean {
    const found = receiveAndClose(this.#runtime, this.#channel.number);
    if (typeof found === "number") {
      const code = errnoName(this.#runtime.abi.platform, -found);
      if (code === "EAGAIN") return false;
      // Said once, of an end that had not read everything; what it has sent comes after.
      if (code === "ECONNRESET") return true;
      throw new SystemError(code, found, "recvmsg");
    }
    if (found.length === 0) return false;
    for (const { bytes, peer } of this.#format.decode(found)) {
      this.#receivedCount++;
      this.#options.datagram(bytes, peer);
    }
    return true;
  }

  #close(error: unknown): void {
    if (this.#channel.number < 0) return;
    stopWaiting(this.#runtime, this.#channel.number);
    this.#channel[Symbol.dispose]();
    this.#options.ended?.(error);
  }
}

/** Answers through a copy of the UDP socket, beside whichever process reads it. */
export class AnswerSender implements Disposable {
  readonly #socket: OwnedDescriptor;
  readonly #queue: PacketQueue;
  #sentCount = 0;
  #droppedCount = 0;

  /**
   * Takes a copy of the socket.
   *
   * @param descriptor A UDP socket, which stays the caller's.
   * @param queueSize Bytes that wait for room in the socket; 1 MiB.
   */
  constructor(runtime: Runtime, descriptor: number, queueSize: number = defaultQueueSize) {
    this.#socket = new OwnedDescriptor(runtime, duplicate(runtime, descriptor));
    this.#queue = new PacketQueue(runtime, this.#socket.number, queueSize, {
      sent: () => this.#sentCount++,
      refused: () => this.#droppedCount++,
    });
  }

  /** Up to now. */
  get counts(): AnswerCounts {
    return { sentCount: this.#sentCount, droppedCount: this.#droppedCount };
  }

  /** Sends an answer, from the address that the client has asked. */
  send(bytes: Uint8Array, peer: InetAddress): void {
    if (this.#socket.number < 0) throw closed("Cannot answer: the sender has been closed");
    this.#queue.push({ bytes: copyOf(bytes), datagramCount: 1, to: peer });
  }

  /** Closes the copy; what waited counts as dropped. */
  close(): void {
    if (this.#socket.number < 0) return;
    this.#droppedCount += this.#queue.stop().length;
    this.#socket[Symbol.dispose]();
  }

  /** The same as {@linkcode close}. */
  [Symbol.dispose](): void {
    this.close();
  }
}

/** One packet's bytes, or -errno. Descriptors in it were sent by mistake, or by malice. */
function receiveAndClose(runtime: Runtime, descriptor: number): Bytes | number {
  const incoming = receiveMessage(runtime, descriptor, messageRoom);
  if (typeof incoming === "number") return incoming;
  const { descriptors, pidfd } = incoming.ancillary;
  disposeAll([...descriptors, ...pidfd === null ? [] : [pidfd]].map((number) => new OwnedDescriptor(runtime, number)));
  return incoming.bytes;
}

function checkPackets(runtime: Runtime, { number }: OwnedDescriptor): void {
  const { SO_TYPE, SOCK_SEQPACKET } = runtime.abi.constants;
  if (integerOption(runtime, number, SO_TYPE) === SOCK_SEQPACKET) return;
  throw new TakeoverError(
    "ERR_TAKEOVER_DESCRIPTOR",
    `Cannot forward over the descriptor ${number}: expected a Unix socket of the type seqpacket`,
  );
}

function checkForwarder(runtime: Runtime, descriptor: number, { allowUsers = [], pid }: ForwardedOptions): void {
  checkPeerUser(runtime, descriptor, allowUsers, "successor");
  if (pid === undefined) return;
  const found = peerCredentials(runtime, descriptor).pid;
  if (found === pid) return;
  throw new TakeoverError(
    "ERR_TAKEOVER_PROCESS",
    `Cannot let the process ${found} forward datagrams: expected the process ${pid}; ` +
      "give the right one an end of a socket pair, without a pid here",
  );
}

function closed(message: string): TakeoverError {
  return new TakeoverError("ERR_TAKEOVER_CLOSED", message);
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

function copyOf(bytes: Uint8Array): Bytes {
  const copy = allocate(bytes.length).subarray(0, bytes.length);
  copy.set(bytes);
  return copy;
}
