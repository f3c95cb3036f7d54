/**
 * Both sides of connections that move, each without the other: connections
 * whose owner can be told, what gives and takes them, and the other end of the
 * second connection, frame by frame.
 *
 * @module
 */

import assert from "node:assert/strict";
import { FdChannel } from "../../src/channels/fd_channel.ts";
import type { Arrival, Census, Frozen, Json, Movable, Place, Sink, Source } from "../../src/connections/movable.ts";
import { isSystemError } from "../../src/errors.ts";
import { Arrivals } from "../../src/handover/arrivals.ts";
import { Conversation } from "../../src/handover/conversation.ts";
import { Departures, type Progress } from "../../src/handover/departures.ts";
import { encodeFrame, type FrameHead, FrameReader } from "../../src/handover/frame.ts";
import { type Limits, limitsFrom } from "../../src/limits.ts";
import { disposeAll, OwnedDescriptor } from "../../src/sockets/descriptors.ts";
import { cookieOf, openPair } from "../../src/sockets/socket.ts";
import { rawRead, rawState, rawWrite } from "./ends.ts";
import { socketPair } from "./pair.ts";
import { runtime } from "./seam.ts";

/** Waits that no test is to see the end of. */
export const patient: Limits = limitsFrom({ keptMs: 60_000 });

/** What a connection carries, and how it misbehaves. */
export interface Luggage {
  readonly state?: Json;
  readonly unread?: Uint8Array;
  /** Thrown by `freeze`, or by `leave`. */
  readonly freezeError?: Error;
  readonly leaveError?: Error;
}

/** A connection of the incumbent. */
export class Connection implements Movable {
  readonly endpoint = "web";
  readonly kind = "raw";
  readonly cookie: string;
  /** The other end, which notices nothing. */
  readonly peer: OwnedDescriptor;
  /** Why it stays, where it has been asked and stays. */
  readonly thaws: unknown[] = [];
  readonly #luggage: Luggage;
  readonly #socket: OwnedDescriptor;
  /** Who reads it in the incumbent. */
  stage: "here" | "frozen" | "left" = "here";
  isRefused = false;

  constructor(luggage: Luggage = {}) {
    this.#luggage = luggage;
    [this.#socket, this.peer] = openPair(runtime);
    this.cookie = cookieOf(runtime, this.#socket.number);
  }

  get descriptor(): number {
    return this.#socket.number;
  }

  freeze(): Frozen {
    const { state = null, unread = new Uint8Array(0), freezeError, leaveError } = this.#luggage;
    if (freezeError) throw freezeError;
    assert.equal(this.stage, "here");
    this.stage = "frozen";
    return {
      ...{ descriptor: this.descriptor, cookie: this.cookie, state, unread },
      leave: () => {
        assert.equal(this.stage, "frozen");
        this.stage = "left";
        this.#socket[Symbol.dispose]();
        if (leaveError) throw leaveError;
      },
      thaw: (error, isRefused = false) => {
        assert.equal(this.stage, "frozen");
        this.stage = "here";
        this.isRefused = isRefused;
        this.thaws.push(error);
      },
    };
  }

  [Symbol.dispose](): void {
    disposeAll([this.#socket, this.peer]);
  }
}

/** That many connections. */
export function connections(count: number, luggage: Luggage = {}): Connection[] {
  return Array.from({ length: count }, () => new Connection(luggage));
}

/** Gives all that it has. */
export class FakeSource implements Source {
  readonly #connections: readonly Connection[];
  isStopped = false;

  constructor(given: readonly Connection[]) {
    this.#connections = given;
  }

  start(): void {}

  ready(limit: number): Movable[] {
    return this.#connections.filter(({ stage, isRefused }) => stage === "here" && !isRefused).slice(0, limit);
  }

  census(): Census {
    const refusedCount = this.#connections.filter(({ isRefused }) => isRefused).length;
    const waitingCount = this.#connections.filter(({ stage, isRefused }) => stage !== "left" && !isRefused).length;
    return { waiting: waitingCount, staying: { refused: refusedCount } };
  }

  stop(): void {
    this.isStopped = true;
  }
}

/** What came, as the successor has it. */
export interface Kept {
  readonly socket: OwnedDescriptor;
  readonly state: Json;
  readonly unread: Uint8Array;
}

/** Takes all that comes, but for the cookies that it is told to refuse, or to fail at. */
export class FakeSink implements Sink, Disposable {
  readonly kept = new Map<string, Kept>();
  readonly cancelled: string[] = [];
  /** How many moves have come. */
  moveCount = 0;
  readonly refused = new Map<string, Error>();
  readonly failing = new Map<string, Error>();
  /** Thrown by `prepare`. */
  error: Error | null = null;

  prepare(arrivals: readonly Arrival[]): Promise<(Place | Error)[]> {
    this.moveCount++;
    if (this.error) return Promise.reject(this.error);
    return Promise.resolve(arrivals.map((arrival) => this.refused.get(arrival.cookie) ?? this.#placeFor(arrival)));
  }

  #placeFor({ descriptor, cookie, state, unread }: Arrival): Place {
    return {
      commit: () => {
        const error = this.failing.get(cookie);
        if (error) throw error;
        assert.ok(!this.kept.has(cookie), "committed twice");
        this.kept.set(cookie, { socket: new OwnedDescriptor(runtime, descriptor.take()), state, unread: unread.slice() });
      },
      cancel: () => void this.cancelled.push(cookie),
    };
  }

  [Symbol.dispose](): void {
    disposeAll([...this.kept.values()].map(({ socket }) => socket));
  }
}

/** Who has each connection: `i`, `s`, both (`2`), or nobody (`-`). */
export function owners(all: readonly Connection[], sink: FakeSink): string {
  return all.map(({ stage, cookie }) => {
    const isHere = stage === "here";
    return isHere && sink.kept.has(cookie) ? "2" : isHere ? "i" : sink.kept.has(cookie) ? "s" : "-";
  }).join("");
}

/** The owner reads what the peer says, and the peer sees neither an end nor a reset. */
export function assertAlive(all: readonly Connection[], sink: FakeSink): void {
  for (const { peer, stage, descriptor, cookie } of all) {
    const kept = sink.kept.get(cookie)?.socket;
    if (stage !== "here" && !kept) continue;
    rawWrite(peer, "?");
    const number = kept?.number ?? descriptor;
    assert.equal(rawRead({ number } as OwnedDescriptor), "?");
    assert.equal(rawState(peer), "open");
  }
}

/** One frame, with the descriptors that came with it. */
export interface WireFrame {
  readonly head: FrameHead;
  readonly body: Uint8Array<ArrayBuffer>;
  readonly fds: readonly OwnedDescriptor[];
}

/** The other end of a second connection, as a script has it. */
export class Wire implements Disposable {
  readonly channel: FdChannel;
  readonly #reader = new FrameReader(1 << 26, 1 << 26);
  readonly #frames: WireFrame[] = [];
  #fds: OwnedDescriptor[] = [];

  constructor(socket: OwnedDescriptor) {
    this.channel = new FdChannel(runtime, socket, "stream");
  }

  /** Nobody may be there to hear it. */
  async send(head: object, body = new Uint8Array(0), fds: readonly (OwnedDescriptor | number)[] = []): Promise<void> {
    await this.sendBytes(encodeFrame(head, body), fds);
  }

  async sendBytes(bytes: Uint8Array, fds: readonly (OwnedDescriptor | number)[] = []): Promise<void> {
    try {
      await this.channel.send(bytes, fds, { timeoutMs: 30_000 });
    } catch (error) {
      if (!isSystemError(error, "EPIPE", "ECONNRESET")) throw error;
    }
  }

  /** Announces connections and sends them. */
  async move(number: number, all: readonly Connection[], more: object = {}): Promise<void> {
    const head = { type: "move", number, name: "web", kind: "raw", connections: all.map(({ cookie }) => ({ cookie, unread: 0 })) };
    await this.send({ ...head, ...more }, new Uint8Array(0), all.map(({ descriptor }) => descriptor));
  }

  /** The next frame; null at the end. Its descriptors are the caller's. */
  async next(): Promise<WireFrame | null> {
    while (this.#frames.length === 0) {
      const message = await this.#receive();
      if (message === null) return null;
      this.#fds.push(...message.fds);
      for (const { head, body } of this.#reader.read(message.bytes)) {
        const fds = head.type === "move" ? this.#fds.splice(0, (head.connections as unknown[]).length) : [];
        this.#frames.push({ head, body: new Uint8Array(body), fds });
      }
    }
    return this.#frames.shift()!;
  }

  /** The next frame has that type; its descriptors are closed. */
  async expect(type: string): Promise<FrameHead> {
    const frame = await this.next();
    assert.equal(frame?.head.type, type, JSON.stringify(frame?.head));
    disposeAll(frame!.fds);
    return frame!.head;
  }

  /** Nothing more comes; which words came before, in order. */
  async rest(): Promise<string[]> {
    const types: string[] = [];
    for (let frame = await this.next(); frame; frame = await this.next()) {
      types.push(String(frame.head.type));
      disposeAll(frame.fds);
    }
    return types;
  }

  /** Whether a frame has begun that will never be whole. */
  get isCut(): boolean {
    return !this.#reader.isBetween;
  }

  close(): void {
    this.channel.close();
    disposeAll([...this.#fds, ...this.#frames.flatMap(({ fds }) => fds)]);
    this.#fds = [];
    this.#frames.length = 0;
  }

  [Symbol.dispose](): void {
    this.close();
  }

  async #receive() {
    try {
      return await this.channel.receive({ maxBytes: 256 * 1024, timeoutMs: 30_000 });
    } catch (error) {
      if (isSystemError(error, "ECONNRESET")) return await this.channel.receive({ maxBytes: 256 * 1024, timeoutMs: 30_000 });
      throw error;
    }
  }
}

/** An incumbent whose connections may go, and its successor's end. */
export interface Leaving {
  readonly departures: Departures;
  readonly source: FakeSource;
  readonly told: readonly Progress[];
  readonly wire: Wire;
}

export async function leaving(all: readonly Connection[], limits: Limits = patient): Promise<Leaving> {
  const [ours, theirs] = socketPair();
  const wire = new Wire(theirs);
  const conversation = new Conversation(runtime.adoptStream(ours.take()), "incumbent", limits);
  await wire.send({ type: "join", token: "0".repeat(32) });
  await conversation.receive(30_000, "helloMs");
  const source = new FakeSource(all);
  const told: Progress[] = [];
  const exits = () => [{ name: "web", kind: "raw" as const, source }];
  const departures = new Departures(runtime, limits, conversation, exits, (progress) => void told.push(progress));
  return { departures, source, told, wire };
}

/** A successor to which connections may come, and its incumbent's end. */
export interface Coming {
  readonly arrivals: Arrivals;
  /** How it ended: an error, or null. */
  readonly ended: Promise<unknown>;
  readonly sink: FakeSink;
  readonly wire: Wire;
}

export function coming(limits: Limits = patient): Coming {
  const [ours, theirs] = socketPair();
  const sink = new FakeSink();
  const channel = new FdChannel(runtime, ours, "stream");
  const arrivals = new Arrivals(runtime, limits, channel, () => [{ name: "web", kind: "raw", sink }]);
  const ended = arrivals.ended.then(() => null, (error: unknown) => error);
  return { arrivals, ended, sink, wire: new Wire(theirs) };
}
