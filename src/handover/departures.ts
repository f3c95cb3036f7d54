/**
 * Connections leave the incumbent: batch by batch, each answered before it is
 * given up. At any moment every connection has one owner, whoever dies.
 *
 * ```text
 * frozen   nobody reads or writes it; it is this process's
 * kept     the successor has it, and has said so
 * yours    this process has let go of it: it is the successor's
 * ```
 *
 * A process that gives up says `back` before it reads on; a successor that
 * sees the connection end without it knows that the incumbent is dead, and that
 * what it has received is its own.
 *
 * @module
 */

import type { Conversation } from "./conversation.ts";
import { encodeFrame, jsonSize } from "./frame.ts";
import { type Kept, type Party, parseKept, parseTakes, refusalOf } from "./move_messages.ts";
import type { Census, ConnectionKind, Frozen, Source } from "../connections/movable.ts";
import { FdChannel } from "../channels/fd_channel.ts";
import type { SendOptions } from "../channels/sending.ts";
import { PeerLostError, TakeoverError } from "../errors.ts";
import type { Limits } from "../limits.ts";
import type { Runtime } from "../runtime.ts";
import { OwnedDescriptor } from "../sockets/descriptors.ts";
import { duplicate, integerOption } from "../sockets/socket.ts";

/** Where connections go out: an endpoint's, of one kind. */
export interface Exit extends Party {
  readonly source: Source;
}

/** How far a move has come. */
export interface Progress {
  /** Connections that are the successor's. */
  readonly moved: number;
  /** Those that it did not take; they go on here. */
  readonly refused: number;
  /** Those that stay here until they end, by reason. */
  readonly draining: Readonly<Record<string, number>>;
  /** Those that may still move. */
  readonly remaining: number;
  /** Moved a second, from the first to the last so far. */
  readonly rate: number;
  /** Milliseconds until nothing remains, at that rate; null while there is no rate. */
  readonly estimateMs: number | null;
}

/** One batch on its way. */
interface Batch {
  readonly number: number;
  readonly size: number;
  readonly connections: readonly Frozen[];
  /** When the last of it went out; 0 before. */
  sentAt: number;
}

/** How many batches may wait for their answers, and with how many bytes: what goes into a socket at once, `back` included. */
const inFlightCount = 2;
const inFlightSize = 64 * 1024;

/** Linux's SO_SNDBUF (asm-generic/socket.h): how much a socket takes before its other side reads. */
const SO_SNDBUF = 7;

/** The kernel counts what a socket holds with its own overhead, which is less than as much again. */
const overheadFactor = 3;

/** What a batch carries beside its descriptors, as far as several connections share it. */
const batchSize = 256 * 1024;

/** How many connections a batch begins with, and how long freezing one, and its answer, should take at most. */
const leastCount = 16;
const freezeMs = 4;
const keptAimMs = 15;

/** What a successor needs for a connection until it is in its place: two more for one that its server accepts. */
const descriptorsPerConnection: Readonly<Record<ConnectionKind, number>> = { raw: 1, http: 3, websocket: 3 };

/** How soon those are asked that could not go before, and how long at most until then. */
const askAgainMs = 10;
const askLateMs = 100;

/** How often progress is told of. */
const progressMs = 100;

/** The incumbent's side of the connections' way. */
export class Departures {
  readonly #limits: Limits;
  readonly #countLimit: number;
  readonly #windowSize: number;
  readonly #conversation: Conversation;
  readonly #channel: FdChannel;
  readonly #exits: () => readonly Exit[];
  readonly #tell: (progress: Progress) => void;
  readonly #outstanding: Batch[] = [];
  #started = new Set<Source>();
  #taken: readonly Party[] = [];
  #room = 0;
  #pauseMs = askAgainMs;
  /** How many connections the next batch may have. */
  #batchLimit: number = leastCount;
  #nextNumber = 0;
  #turn = 0;
  #moved = 0;
  #refused = 0;
  #firstAt = 0;
  #lastAt = 0;
  #toldAt = 0;
  #toldCount = 0;
  #lastChanceAt = Infinity;
  /** Before that a successor that dies takes no connection with it. */
  readonly #beginAt: number;
  /** Whether an answer was late when last looked. */
  #isLate = false;
  /** Whether half a frame has gone out: nothing can be said after it. */
  #isCut = false;
  /** Why it ends; undefined while it goes on. */
  #end: { readonly error: unknown } | undefined;
  #wake: () => void = () => {};
  /** Resolves when it has ended and every connection that is left goes on here. */
  readonly ended: Promise<void>;

  /**
   * @param conversation The second connection, on which nothing was said since its join.
   * @param exits What there is to move, as of now.
   * @param tell Hears of progress, at most ten times a second, and of the end.
   */
  constructor(
    runtime: Runtime,
    limits: Limits,
    conversation: Conversation,
    exits: () => readonly Exit[],
    tell: (progress: Progress) => void,
  ) {
    this.#limits = limits;
    this.#beginAt = Date.now() + limits.trialMs;
    this.#countLimit = runtime.abi.descriptorsPerMessage;
    this.#conversation = conversation;
    // The runtime closes its own descriptor when the other side goes, and the number may be another's then.
    const copy = new OwnedDescriptor(runtime, duplicate(runtime, conversation.stream.descriptor));
    this.#channel = new FdChannel(runtime, copy, "stream");
    const roomSize = integerOption(runtime, copy.number, SO_SNDBUF);
    this.#windowSize = Math.min(inFlightSize, roomSize / overheadFactor);
    this.#exits = exits;
    this.#tell = tell;
    conversation.stream.keepAlive(false);
    this.ended = this.#run().finally(() => this.#channel.close());
  }

  /** How far it has come. */
  get progress(): Progress {
    const censuses = this.#exits().filter((exit) => this.#isTaken(exit)).map(({ source }) => source.census());
    const seconds = Math.max(1, this.#lastAt - this.#firstAt) / 1_000;
    const rate = this.#moved / seconds;
    const remaining = sum(censuses.map(({ waiting }) => waiting));
    return {
      moved: this.#moved,
      refused: this.#refused,
      draining: added(censuses),
      remaining,
      rate: Math.round(rate),
      estimateMs: rate > 0 ? Math.round(remaining / rate * 1_000) : null,
    };
  }

  /** What waits for a better moment only goes at that time, in milliseconds from now. */
  hurry(inMs: number): void {
    this.#lastChanceAt = Date.now() + inMs;
    this.#wake();
  }

  /**
   * Ends it: what has not been given up goes on here.
   *
   * @param error Why; undefined when there is nothing left to do.
   */
  stop(error?: unknown): Promise<void> {
    this.#end ??= { error };
    this.#wake();
    return this.ended;
  }

  async #run(): Promise<void> {
    void this.#listen();
    try {
      while (!this.#end) {
        const batch = this.#mayFreeze() ? this.#freeze() : null;
        if (batch) await this.#send(batch.party, batch.connections);
        else await this.#something();
        this.#pauseMs = batch ? askAgainMs : Math.min(this.#pauseMs * 2, askLateMs);
        this.#tellSometimes();
      }
    } catch (error) {
      this.#end = { error };
    }
    await this.#giveBack(this.#end.error);
    this.#conversation.end();
    this.#tell(this.progress);
  }

  /** Takes in what the successor says. */
  async #listen(): Promise<void> {
    try {
      for (;;) {
        const head = await this.#conversation.receive(0, "keptMs");
        if (head.type === "takes") this.#take(parseTakes(head, this.#limits));
        else await this.#letGo(parseKept(head, this.#outstanding[0]?.connections.length ?? 0));
        this.#wake();
      }
    } catch (error) {
      this.#end ??= { error };
      this.#wake();
    }
  }

  #take({ room, parties }: { room: number; parties: readonly Party[] }): void {
    this.#room = room;
    this.#taken = parties;
    for (const exit of this.#exits()) this.#start(exit);
  }

  #start(exit: Exit): void {
    if (this.#started.has(exit.source) || !this.#isTaken(exit)) return;
    this.#started.add(exit.source);
    exit.source.start(() => this.#wake());
  }

  #isTaken({ name, kind }: Party): boolean {
    return this.#taken.some((party) => party.name === name && party.kind === kind);
  }

  #mayFreeze(): boolean {
    if (Date.now() < this.#beginAt) return false;
    const count = sum(this.#outstanding.map(({ connections }) => connections.length));
    return this.#outstanding.length < inFlightCount && this.#inFlightSize < this.#windowSize &&
      this.#room - count > 0;
  }

  /** The next connections that can go, all of one party; every party has its turn. */
  #freeze(): { readonly party: Exit; readonly connections: readonly Frozen[] } | null {
    const exits = this.#exits().filter((exit) => this.#isTaken(exit));
    for (let tried = 0; tried < exits.length; tried++) {
      const party = exits[this.#turn++ % exits.length]!;
      this.#start(party);
      const connections = this.#frozenOf(party);
      if (connections.length > 0) return { party, connections };
    }
    return null;
  }

  #frozenOf({ source, kind }: Exit): Frozen[] {
    const room = this.#room - sum(this.#outstanding.map(({ connections }) => connections.length));
    const limit = Math.min(this.#batchLimit, Math.floor(room / descriptorsPerConnection[kind]));
    if (limit < 1) return [];
    const frozen: Frozen[] = [];
    const start = Date.now();
    let size = 0;
    try {
      for (const movable of source.ready(limit, Date.now() >= this.#lastChanceAt)) {
        const connection = this.#checked(movable.freeze());
        if (!connection) continue;
        frozen.push(connection);
        size += connection.unread.length + stateSize(connection);
        if (size >= batchSize) break;
      }
      if (frozen.length === limit) this.#adapt(Date.now() - start, freezeMs);
      return frozen;
    } catch (error) {
      forEach(frozen, (connection) => connection.thaw(error));
      throw error;
    }
  }

  /** Large batches are cheap, and small ones are quick: nobody is to wait long for the last of a batch. */
  #adapt(tookMs: number, aimMs: number): void {
    const limit = tookMs > aimMs ? this.#batchLimit / 2 : this.#batchLimit * 2;
    this.#batchLimit = Math.min(Math.max(leastCount, Math.floor(limit)), this.#countLimit);
  }

  /** One that carries too much stays. */
  #checked(connection: Frozen | null): Frozen | null {
    const error = connection && this.#tooLarge(connection);
    if (!error) return connection;
    this.#refused++;
    connection!.thaw(error, true);
    return null;
  }

  #tooLarge(connection: Frozen): TakeoverError | null {
    const { unreadSize, stateSize: limit } = this.#limits;
    const size = stateSize(connection);
    const what = connection.unread.length > unreadSize
      ? `${connection.unread.length} bytes have been read from it, expected at most ${unreadSize} (limit unreadSize)`
      : size === Infinity
      ? "its state cannot be sent as JSON"
      : size > limit
      ? `its state has ${size} bytes, expected at most ${limit} (limit stateSize)`
      : null;
    return what === null ? null : new TakeoverError("ERR_TAKEOVER_LIMIT", `Cannot move a connection: ${what}`);
  }

  async #send({ name, kind }: Party, connections: readonly Frozen[]): Promise<void> {
    const head = {
      type: "move",
      number: this.#nextNumber++,
      name,
      kind,
      connections: connections.map(({ cookie, state, unread }) => ({ cookie, state, unread: unread.length })),
    };
    const frame = encodeFrame(head, concatenated(connections.map(({ unread }) => unread)));
    this.#firstAt ||= Date.now();
    const batch = { number: head.number, size: frame.length, connections, sentAt: 0 };
    this.#outstanding.push(batch);
    // One that the socket does not take whole may be cut by the end, and then nothing else may be in flight.
    while (this.#outstanding[0] !== batch && this.#inFlightSize > this.#windowSize && !this.#end) await this.#something();
    if (this.#end) return;
    try {
      await this.#channel.send(frame, connections.map(({ descriptor }) => descriptor), this.#sending);
      batch.sentAt = Date.now();
    } catch (error) {
      this.#isCut = this.#outstanding[0] === batch;
      throw error;
    }
  }

  get #inFlightSize(): number {
    return sum(this.#outstanding.map(({ size }) => size));
  }

  get #sending(): SendOptions {
    return { timeoutMs: this.#limits.keptMs };
  }

  /**
   * The successor has kept a batch: the connections are its own once it knows
   * that this process has let go. One that cannot be told any more has gone,
   * and has taken nothing with it.
   */
  async #letGo({ number, room, refused }: Kept): Promise<void> {
    const batch = this.#outstanding[0];
    if (batch?.number !== number || batch.sentAt === 0) {
      throw new TakeoverError(
        "ERR_TAKEOVER_PROTOCOL",
        `Cannot go on: expected ${batch ? `batch ${batch.number}` : "no batch"} to be answered, batch ${number} was`,
      );
    }
    this.#outstanding.shift();
    this.#room = room;
    this.#lastAt = Date.now();
    if (this.#lastAt - batch.sentAt > keptAimMs) this.#adapt(this.#lastAt - batch.sentAt, keptAimMs);
    try {
      await this.#channel.send(encodeFrame({ type: "yours", number }), [], this.#sending);
    } catch (error) {
      forEach(batch.connections, (connection) => connection.thaw(error));
      throw error;
    }
    const refusals = new Map(refused.map((refusal) => [refusal.index, refusal]));
    this.#refused += refusals.size;
    this.#moved += batch.connections.length - refusals.size;
    forEach(batch.connections, (connection, index) => {
      const refusal = refusals.get(index);
      if (refusal) connection.thaw(refusalOf(refusal), true);
      else connection.leave();
    });
  }

  /** Says that everything that is not given up stays, and only then reads on. */
  async #giveBack(error: unknown): Promise<void> {
    const connections = this.#outstanding.splice(0).flatMap((batch) => batch.connections);
    // Half a frame gives nothing away, and nothing else is on its way then.
    if (!this.#isCut) await this.#lastWord(connections.length > 0 ? "back" : "done");
    const why = error ?? new PeerLostError("The time for moving connections is over");
    forEach(connections, (connection) => connection.thaw(why));
    for (const source of this.#started) source.stop();
    this.#started = new Set();
  }

  /** Whoever cannot be told has gone. */
  async #lastWord(type: "back" | "done"): Promise<void> {
    await this.#channel.send(encodeFrame({ type }), [], this.#sending).catch(() => {});
  }

  /** Waits for an answer, for a connection that may go, or a little. */
  async #something(): Promise<void> {
    this.#checkTime();
    await new Promise<void>((resolve) => {
      const timer = setTimeout(resolve, this.#outstanding.length > 0 ? askAgainMs : this.#pauseMs);
      this.#wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });
    this.#wake = () => {};
  }

  /** Late is who is late twice: this process may have been stopped itself, and reads what has come first. */
  #checkTime(): void {
    const oldest = this.#outstanding[0];
    const wasLate = this.#isLate;
    this.#isLate = oldest !== undefined && oldest.sentAt > 0 &&
      Date.now() - Math.max(oldest.sentAt, this.#lastAt) > this.#limits.keptMs;
    if (!wasLate || !this.#isLate) return;
    throw new TakeoverError(
      "ERR_TAKEOVER_TIMEOUT",
      `Waited ${this.#limits.keptMs} ms for the successor to keep ${oldest!.connections.length} connections ` +
        "(limit keptMs): it is stopped, busy or stuck; they stay here",
    );
  }

  #tellSometimes(): void {
    const count = this.#moved + this.#refused;
    if (count === this.#toldCount || Date.now() - this.#toldAt < progressMs) return;
    this.#toldAt = Date.now();
    this.#toldCount = count;
    this.#tell(this.progress);
  }
}

function stateSize({ state }: Frozen): number {
  // Most have none, or a few numbers.
  return state === null ? 4 : jsonSize(state);
}

/** Does a thing with all of them, whatever one throws, and throws the first of that. */
function forEach(connections: readonly Frozen[], use: (connection: Frozen, index: number) => void): void {
  const errors: unknown[] = [];
  for (const [index, connection] of connections.entries()) {
    try {
      use(connection, index);
    } catch (error) {
      errors.push(error);
    }
  }
  if (errors.length > 0) throw errors[0];
}

function sum(numbers: readonly number[]): number {
  return numbers.reduce((total, number) => total + number, 0);
}

function added(censuses: readonly Census[]): Record<string, number> {
  const all: Record<string, number> = {};
  for (const { staying } of censuses) {
    for (const [reason, count] of Object.entries(staying)) all[reason] = (all[reason] ?? 0) + count;
  }
  return all;
}

function concatenated(parts: readonly Uint8Array[]): Uint8Array {
  const bytes = new Uint8Array(sum(parts.map(({ length }) => length)));
  let at = 0;
  for (const part of parts) {
    bytes.set(part, at);
    at += part.length;
  }
  return bytes;
}
