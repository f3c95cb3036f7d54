/**
 * WebSockets that leave between two messages.
 *
 * ```text
 * resting   the runtime reads it
 * held      nobody reads it; what had been on its way into the runtime has got there
 *             read so far = request + messages that were told: it may go
 *             something unseen was read: the client is asked (websocket_probe.ts)
 * frozen    the other process has its descriptor; the application knows
 * ```
 *
 * @module
 */

import { messageOf, TakeoverError } from "../errors.ts";
import type { Runtime } from "../runtime.ts";
import type { OwnedDescriptor } from "../sockets/descriptors.ts";
import { register, unregister } from "../sockets/event_loop.ts";
import { duplicateOver, openPair } from "../sockets/socket.ts";
import { unreadSize } from "../sockets/queues.ts";
import { tcpInfoOf } from "../sockets/tcp_state.ts";
import { unwatch, watchesOfAll } from "../sockets/watches.ts";
import { Limbo, type Taken } from "./limbo.ts";
import type { Census, Frozen, Json, Movable, Source } from "./movable.ts";
import type { WebSocketConnection } from "./websocket_connection.ts";
import { Probe } from "./websocket_probe.ts";
import type { WebSocketTable } from "./websocket_table.ts";

/** What may be set. */
export interface WebSocketSourceOptions {
  /** How long a client has to answer a ping, in milliseconds. */
  readonly answerMs: number;
  /** How long nothing but its answer may have come, in milliseconds, unless the next frame has begun. */
  readonly restMs: number;
  /** Is told what the application has thrown. */
  failed(error: unknown): void;
}

/** A connection that nobody reads. */
interface Hold {
  readonly resume: () => void;
  /** Whether it is out of the event loop, and not stopped by its runtime. */
  readonly isOutOfLoop: boolean;
  readonly beat: number;
  /** Since when it could go. */
  since: number;
  readonly isAsked: boolean;
  probe: Probe | null;
  isFrozen: boolean;
}

/** What was seen of a connection that is not held. */
interface Look {
  /** When it is looked at again. */
  readonly at: number;
  readonly isBetween: boolean;
}

/** How often the event loop is heard; that many beats apart, everything has had its turn. */
const beatMs = 2;
const settledBeats = 3;

/** How long a look at many takes at most, and after how many of them the clock is looked at. */
const sliceMs = 3;
const lookedAtOnce = 16;

/** How many are held at once, and how many of them are asked. */
const heldLimit = 512;
const askedLimit = 256;

/** How long one is held that nobody takes. */
const heldMs = 200;

/** When one is looked at again that could not go, and when its client is asked again that has not answered. */
const againMs = 20;
const askAgainMs = 1_000;

/** EPOLLOUT: a runtime that has something to write waits for room. */
const EPOLLOUT = 4;

const SHUT_RDWR = 2;

/** The WebSockets of one endpoint. */
export class WebSocketSource implements Source {
  readonly #runtime: Runtime;
  readonly #table: WebSocketTable;
  readonly #endpoint: string;
  readonly #options: WebSocketSourceOptions;
  readonly #holds = new Map<WebSocketConnection, Hold>();
  readonly #looks = new Map<WebSocketConnection, Look>();
  /** How many bytes were read and not told, and since when. */
  readonly #untold = new WeakMap<WebSocketConnection, { readonly size: number; readonly since: number }>();
  /** Those that are still to be looked at in this round. */
  #round: WebSocketConnection[] = [];
  #ask: (() => void) | null = null;
  #beat = 0;
  #isBeating = false;
  #isLast = false;
  #dead: OwnedDescriptor | null = null;
  readonly #limbo: Limbo;
  #refused = new Set<WebSocketConnection>();

  constructor(runtime: Runtime, table: WebSocketTable, endpoint: string, options: WebSocketSourceOptions) {
    this.#runtime = runtime;
    this.#limbo = new Limbo(runtime);
    this.#table = table;
    this.#endpoint = endpoint;
    this.#options = options;
  }

  start(ask: () => void): void {
    this.#ask = ask;
  }

  ready(limit: number, isLast: boolean): Movable[] {
    this.#isLast ||= isLast;
    this.#table.look();
    this.#tend();
    const found: Movable[] = [];
    for (const [connection, hold] of this.#holds) {
      if (found.length === limit) return found;
      if (hold.isFrozen || hold.isAsked || !this.#isSettled(hold)) continue;
      if (!this.#mayGo(connection)) {
        this.#release(connection, againMs);
        continue;
      }
      found.push({ endpoint: this.#endpoint, kind: "websocket", freeze: () => this.#freeze(connection, hold) });
    }
    this.#hold(this.#candidates());
    return found;
  }

  census(): Census {
    let waiting = 0;
    const staying: Record<string, number> = {};
    for (const connection of this.#table.all) {
      if (this.#table.endpointOf(connection) !== this.#endpoint) continue;
      const isUnproven = this.#isLast && this.#looks.get(connection)?.isBetween === false;
      const reason = this.#reasonOf(connection) ?? (isUnproven ? "unproven" : null);
      if (reason === null) waiting++;
      else staying[reason] = (staying[reason] ?? 0) + 1;
    }
    return { waiting, staying };
  }

  stop(): void {
    this.#ask = null;
    for (const connection of [...this.#holds.keys()]) this.#release(connection, 0);
    this.#looks.clear();
    this.#refused.clear();
    this.#round = [];
    this.#isLast = false;
    this.#dead?.[Symbol.dispose]();
    this.#dead = null;
    this.#limbo[Symbol.dispose]();
  }

  #reasonOf(connection: WebSocketConnection): string | null {
    if (connection.stays !== null) return connection.stays;
    if (connection.native.answer.extensions) return "compressed";
    return this.#refused.has(connection) ? "refused" : null;
  }

  #mayGo(connection: WebSocketConnection): boolean {
    return connection.isHeld && connection.isQuiet && connection.isBetween;
  }

  #isSettled({ beat }: Hold): boolean {
    return this.#beat - beat >= settledBeats;
  }

  /** Those that are to be held next; each is looked at once a round. */
  #candidates(): { readonly connection: WebSocketConnection; readonly isAsked: boolean }[] {
    const chosen: { readonly connection: WebSocketConnection; readonly isAsked: boolean }[] = [];
    let askedCount = [...this.#holds.values()].filter(({ isAsked }) => isAsked).length;
    if (this.#round.length === 0) this.#round = [...this.#table.all];
    const until = Date.now() + sliceMs;
    for (let count = 1; this.#round.length > 0 && this.#holds.size + chosen.length < heldLimit; count++) {
      const connection = this.#round.pop()!;
      const state = this.#stateOf(connection);
      if (state === "between") chosen.push({ connection, isAsked: false });
      if (state === "unseen" && askedCount < askedLimit) {
        askedCount++;
        chosen.push({ connection, isAsked: true });
      }
      if (count % lookedAtOnce === 0 && Date.now() >= until) break;
    }
    return chosen;
  }

  #stateOf(connection: WebSocketConnection): "between" | "unseen" | "later" {
    if (connection.endpoint !== this.#endpoint || this.#holds.has(connection)) return "later";
    const look = this.#looks.get(connection);
    if (look && Date.now() < look.at || this.#reasonOf(connection) !== null) return "later";
    if (!connection.isHeld) {
      this.#looks.delete(connection);
      // One that has come was found on its way in.
      if (connection.native.isOpen) connection.forgetDescriptor();
      else this.#table.delete(connection);
      return "later";
    }
    const { readSize, isBetween } = connection;
    this.#looks.set(connection, { at: Date.now() + againMs, isBetween });
    if (!connection.isQuiet || readSize === null) return "later";
    if (isBetween) return "between";
    connection.doubt(readSize);
    // What is certainly half-way is not asked for.
    const { native: { toldSize }, descriptor } = connection;
    if (toldSize === null || unreadSize(this.#runtime, descriptor) > 0) return "later";
    return this.#isLasting(connection, readSize - toldSize) ? "unseen" : "later";
  }

  /**
   * Whether it has been so for a while: what has been read and not been told may
   * be on its way into the application, which takes long when there are
   * thousands.
   */
  #isLasting(connection: WebSocketConnection, untoldSize: number): boolean {
    const { restMs } = this.#options;
    const now = Date.now();
    const seen = this.#untold.get(connection);
    const since = seen?.size === untoldSize ? seen.since : now;
    this.#untold.set(connection, { size: untoldSize, since });
    return now - since >= restMs || (tcpInfoOf(this.#runtime, connection.descriptor)?.sinceReceivedMs ?? 0) >= restMs;
  }

  #hold(chosen: readonly { readonly connection: WebSocketConnection; readonly isAsked: boolean }[]): void {
    if (chosen.length === 0) return;
    this.#findRegistrations(chosen.map(({ connection }) => connection));
    for (const { connection, isAsked } of chosen) {
      const paused = this.#pause(connection);
      if (!paused) continue;
      this.#holds.set(connection, {
        ...paused,
        beat: this.#beat,
        since: Date.now(),
        isAsked,
        probe: null,
        isFrozen: false,
      });
    }
    this.#keepBeating();
  }

  /** An entry in the event loop stays the same as long as the connection; all that are missing are read at once. */
  #findRegistrations(connections: readonly WebSocketConnection[]): void {
    const missing = connections.filter(({ registration }) => registration === null);
    if (missing.length === 0) return;
    const found = watchesOfAll(this.#runtime, missing.map(({ descriptor }) => descriptor));
    for (const connection of missing) connection.registration = found.get(connection.descriptor) ?? null;
  }

  /** Null when the event loop does not know it, so that it cannot be stopped. */
  #pause({ native, registration }: WebSocketConnection): Pick<Hold, "resume" | "isOutOfLoop"> | null {
    const resume = native.pause();
    if (resume) return { resume, isOutOfLoop: false };
    if (!registration || unregister(this.#runtime, [registration]).length === 0) return null;
    const goOn = () => {
      const events = native.unsentCount > 0 ? registration.events | EPOLLOUT : registration.events;
      register(this.#runtime, [{ ...registration, events }]);
    };
    return { resume: goOn, isOutOfLoop: true };
  }

  #release(connection: WebSocketConnection, againInMs: number): void {
    const hold = this.#holds.get(connection);
    this.#holds.delete(connection);
    this.#looks.set(connection, { at: Date.now() + againInMs, isBetween: !hold?.isAsked });
    // A descriptor that was closed meanwhile may be another's.
    if (connection.isHeld) hold?.resume();
  }

  #keepBeating(): void {
    if (this.#isBeating || this.#holds.size === 0) return;
    this.#isBeating = true;
    setTimeout(() => {
      this.#isBeating = false;
      this.#beat++;
      this.#tend();
      this.#keepBeating();
      this.#ask?.();
    }, beatMs);
  }

  /** Goes on with those that are held. */
  #tend(): void {
    for (const [connection, hold] of this.#holds) {
      if (hold.isFrozen || !this.#isSettled(hold)) continue;
      if (hold.isAsked) this.#tendAsked(connection, hold);
      else if (Date.now() - hold.since > heldMs) this.#release(connection, againMs);
    }
  }

  #tendAsked(connection: WebSocketConnection, hold: Hold): void {
    const { answerMs, restMs } = this.#options;
    if (!hold.probe) {
      // It had been on its way into the application only.
      if (connection.isBetween) return void this.#holds.set(connection, { ...hold, isAsked: false, since: Date.now() });
      if (!connection.isQuiet || unreadSize(this.#runtime, connection.descriptor) > 0) {
        return this.#release(connection, againMs);
      }
      hold.probe = new Probe(this.#runtime, connection.descriptor, answerMs, restMs);
    }
    const state = hold.probe.look();
    if (state === "silent") return this.#release(connection, askAgainMs);
    if (state === "busy") return this.#release(connection, againMs);
    if (state !== "between") return;
    const { readSize, native: { toldSize } } = connection;
    if (readSize === null || toldSize === null) return this.#release(connection, againMs);
    // From here on it is counted from the answer.
    connection.baseSize = readSize - toldSize;
    this.#holds.set(connection, { ...hold, isAsked: false, since: Date.now() });
  }

  #freeze(connection: WebSocketConnection, hold: Hold): Frozen | null {
    if (this.#holds.get(connection) !== hold || hold.isFrozen) return null;
    const left = this.#mayGo(connection) ? this.#leave(connection) : undefined;
    if (left === undefined || !this.#mayGo(connection)) {
      if (left !== undefined) this.#call(connection.options.stayed, connection);
      this.#release(connection, againMs);
      return null;
    }
    hold.isFrozen = true;
    const state = this.#stateFor(connection, left);
    // What its runtime has stopped reads nothing late.
    const taken = hold.isOutOfLoop ? this.#limbo.take(connection.descriptor) : null;
    return {
      descriptor: taken?.socket.number ?? connection.descriptor,
      cookie: connection.cookie,
      state,
      unread: new Uint8Array(0),
      leave: () => this.#letGo(connection, taken),
      thaw: (_error, isRefused) => {
        taken?.give(taken.socket.number);
        if (isRefused) this.#refused.add(connection);
        this.#release(connection, 0);
        this.#call(connection.options.stayed, connection);
      },
    };
  }

  #stateFor({ request, baseSize, native }: WebSocketConnection, state: Json): Json {
    const { target, headers } = request;
    return {
      request: { target, headers },
      readSize: baseSize! + native.toldSize!,
      ...native.answer.protocol !== undefined && { protocol: native.answer.protocol },
      state,
    };
  }

  /** Undefined when it is to stay, for now. */
  #leave({ options }: WebSocketConnection): Json | undefined {
    try {
      return options.leave();
    } catch (error) {
      this.#fail("leave() has thrown", error);
      return undefined;
    }
  }

  #letGo(connection: WebSocketConnection, taken: Taken | null): void {
    const { native, descriptor, registration } = connection;
    const dead = this.#deadSocket().number;
    this.#holds.delete(connection);
    this.#looks.delete(connection);
    this.#table.delete(connection);
    // A message of which the client gets one half is worse than an end.
    if (!taken && native.unsentCount > 0) this.#runtime.libc.shutdown(descriptor, SHUT_RDWR);
    native.mute();
    if (taken) taken.give(dead);
    else {
      unwatch(this.#runtime, descriptor);
      duplicateOver(this.#runtime, dead, descriptor);
    }
    if (native.close) native.close();
    else if (registration) register(this.#runtime, [registration]);
    this.#call(connection.options.left, connection);
  }

  /** What every native object is left with: one end of a pair whose other end is closed. */
  #deadSocket(): OwnedDescriptor {
    if (this.#dead) return this.#dead;
    const [dead, other] = openPair(this.#runtime);
    other[Symbol.dispose]();
    return this.#dead = dead;
  }

  #call(callback: (() => void) | undefined, { options }: WebSocketConnection): void {
    try {
      callback?.call(options);
    } catch (error) {
      this.#fail("its callback has thrown", error);
    }
  }

  #fail(what: string, cause: unknown): void {
    this.#options.failed(
      new TakeoverError(
        "ERR_TAKEOVER_STATE",
        `Cannot move a WebSocket of ${JSON.stringify(this.#endpoint)}: ${what}: ${messageOf(cause)}`,
        { cause },
      ),
    );
  }
}
