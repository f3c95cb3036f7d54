/**
 * Connections that the application itself speaks on: TCP and Unix streams, as
 * `net.Socket`, `Deno.Conn` or Bun's sockets. It says when one may go and what
 * is to be known of it; everything else is done here.
 *
 * @module
 */

import { messageOf, TakeoverError } from "../errors.ts";
import type { NativeObject, Runtime } from "../runtime.ts";
import { OwnedDescriptor, owning } from "../sockets/descriptors.ts";
import { canPause, register, type Registration } from "../sockets/event_loop.ts";
import { cookieOf, duplicate, duplicateOver, openPair } from "../sockets/socket.ts";
import { unwatch, watchesOf } from "../sockets/watches.ts";
import { remembered } from "../natives/natives.ts";
import { CookieIndex } from "./cookies.ts";
import type { Arrival, Census, Frozen, Json, Movable, Place, Sink, Source } from "./movable.ts";

/** Turns of the event loop in which a read that waits learns of the end. */
const endTurns = 2;

/** What travels with a connection. */
export interface Luggage<S extends Json = Json> {
  /** What the next process has to know of it. */
  readonly state?: S;
  /** What has been read from it and not been dealt with: it is read again there, before everything else. */
  readonly unread?: Uint8Array;
}

/** A connection as the application gets it from another process. */
export interface Moved<S extends Json = Json> {
  /** What it gave there. */
  readonly state: S;
  /** What it had read there; empty for a `net.Socket`, which reads it itself. */
  readonly unread: Uint8Array;
}

/** What the application says of a connection that it serves. */
export interface Served<S extends Json = Json> {
  /**
   * The connection is about to move: nothing more is read, and from here on
   * the application writes nothing more.
   *
   * @returns What travels; null when it cannot go now, because a write of a
   *   `Deno.Conn` has not ended for instance. It is asked again then.
   */
  leave(): Luggage<S> | null;
  /** It has moved. The object closes next; the peer has not gone. */
  left?(): void;
  /** It stays after all, and is read on. */
  stayed?(): void;
}

/** How connections of one kind are served. */
export interface ConnectionsOptions<C, S extends Json = Json> {
  /**
   * Serves a connection: an accepted one, or one that came from another process.
   *
   * @param connection The native object.
   * @param moved What came with it; null for one that was accepted here.
   */
  serve(connection: C, moved: Moved<S> | null): Served<S>;
  /**
   * Makes a native object of a descriptor, and takes it. Without it a
   * `net.Socket` is made.
   */
  open?(descriptor: OwnedDescriptor): C | PromiseLike<C>;
}

/** A connection's state on the way. */
interface Parcel<S extends Json> {
  readonly state: S;
  readonly allowHalfOpen: boolean;
  readonly hasEnded: boolean;
}

interface Entry<C, S extends Json> {
  readonly connection: C;
  readonly served: Served<S>;
}

/** What a `net.Socket` has, as far as this needs to know. */
interface SocketLike {
  once?(event: string, listener: () => void): unknown;
  unshift?(bytes: Uint8Array): void;
}

/** The connections of one name in this process, as the application sees them. */
export interface Connections<C> {
  /** How many there are. */
  readonly size: number;
  /**
   * Serves an accepted connection. A `net.Socket` is forgotten when it closes;
   * anything else when {@linkcode delete} is called.
   */
  add(connection: C): void;
  /** Forgets a connection that has closed. */
  delete(connection: C): void;
}

/** The same, as they leave and come. */
export class RawConnections<C, S extends Json = Json> implements Connections<C>, Source, Sink {
  readonly #runtime: Runtime;
  readonly #endpoint: string;
  readonly #options: ConnectionsOptions<C, S>;
  readonly #entries = new Map<C, Entry<C, S>>();
  readonly #failed: (error: unknown) => void;
  readonly #cookies: CookieIndex;
  /** Those that were asked and could not go, until the next round. */
  #waiting = new Set<Entry<C, S>>();
  #frozen = new Set<Entry<C, S>>();
  /** Those that do not move to this successor, and why. */
  #staying = new Map<Entry<C, S>, string>();
  /** What a native object is left with: one end of a pair whose other end is closed. */
  #dead: OwnedDescriptor | null = null;

  /**
   * @param endpoint The name, for both processes.
   * @param failed Is told why a connection that came could not be served.
   */
  constructor(
    runtime: Runtime,
    endpoint: string,
    options: ConnectionsOptions<C, S>,
    failed: (error: unknown) => void,
  ) {
    this.#runtime = runtime;
    this.#endpoint = endpoint;
    this.#options = options;
    this.#failed = failed;
    this.#cookies = new CookieIndex(runtime);
  }

  /** How many there are. */
  get size(): number {
    return this.#entries.size;
  }

  /**
   * Serves an accepted connection. A `net.Socket` is forgotten when it closes;
   * anything else when {@linkcode delete} is called.
   */
  add(connection: C): void {
    this.#serve(connection, null);
  }

  /** Forgets a connection that has closed. */
  delete(connection: C): void {
    const entry = this.#entries.get(connection);
    if (entry) this.#staying.delete(entry);
    this.#entries.delete(connection);
  }

  start(): void {
    this.#staying.clear();
  }

  stop(): void {
    this.#waiting.clear();
    this.#dead?.[Symbol.dispose]();
    this.#dead = null;
  }

  ready(limit: number): Movable[] {
    const found: Movable[] = [];
    for (const entry of this.#entries.values()) {
      if (found.length === limit) return found;
      if (this.#waiting.has(entry) || this.#frozen.has(entry) || this.#staying.has(entry)) continue;
      found.push({ endpoint: this.#endpoint, kind: "raw", freeze: () => this.#freeze(entry) });
    }
    // Whoever could not go is asked again in the next round.
    this.#waiting.clear();
    return found;
  }

  census(): Census {
    const staying: Record<string, number> = {};
    for (const reason of this.#staying.values()) staying[reason] = (staying[reason] ?? 0) + 1;
    return { waiting: this.#entries.size - this.#staying.size, staying };
  }

  prepare(arrivals: readonly Arrival[]): Promise<Place[]> {
    return Promise.resolve(arrivals.map((arrival) => ({
      commit: () => this.#arrive(arrival),
      cancel: () => {},
    })));
  }

  #serve(connection: C, moved: Moved<S> | null): void {
    const served = this.#options.serve(connection, moved);
    this.#entries.set(connection, { connection, served });
    const { once } = connection as SocketLike;
    if (typeof once === "function") once.call(connection, "close", () => this.delete(connection));
  }

  /** One that came and that nobody serves is closed. */
  #welcome(connection: C, moved: Moved<S>): void {
    try {
      this.#serve(connection, moved);
    } catch (error) {
      this.#runtime.inspect(connection)?.close();
      throw error;
    }
  }

  #arrive(arrival: Arrival): void {
    const { open } = this.#options;
    const { descriptor, unread } = arrival;
    if (open) return void this.#open(open, arrival);
    const { state, allowHalfOpen, hasEnded } = parcelOf<S>(arrival.state);
    try {
      const { number } = descriptor;
      const writable = !hasEnded;
      const connection = this.#runtime.openSocket(number, { writable, allowHalfOpen }) as C;
      descriptor.take();
      if (unread.length > 0) (connection as SocketLike).unshift!(unread);
      this.#welcome(connection, { state, unread: new Uint8Array(0) });
    } catch (error) {
      descriptor[Symbol.dispose]();
      this.#failed(error);
    }
  }

  async #open(open: (descriptor: OwnedDescriptor) => C | PromiseLike<C>, arrival: Arrival): Promise<void> {
    const { descriptor, unread } = arrival;
    try {
      const connection = await open(descriptor);
      this.#welcome(connection, { state: parcelOf<S>(arrival.state).state, unread });
    } catch (error) {
      this.#failed(error);
    } finally {
      // A callback that did not take it has made nothing of it.
      descriptor[Symbol.dispose]();
    }
  }

  /** Keeps in mind that it was asked; null, so that it goes on. */
  #later(entry: Entry<C, S>): null {
    this.#waiting.add(entry);
    return null;
  }

  #freeze(entry: Entry<C, S>): Frozen | null {
    const object = this.#runtime.inspect(entry.connection);
    const reason = object === null || object.kind !== "connection"
      ? "unknown"
      : object.isEncrypted
      ? "tls"
      : canPause(this.#runtime)
      ? null
      : "platform";
    if (reason !== null) return this.#stays(entry, reason);
    const descriptor = this.#descriptorOf(entry.connection, object!);
    if (descriptor < 0) return this.#later(entry);
    // What the program has written and the kernel has not got would stay behind.
    if ((object!.unsentCount ?? 0) > 0) return this.#later(entry);
    return this.#stop(entry, object!, descriptor);
  }

  #stays(entry: Entry<C, S>, reason: string): null {
    this.#staying.set(entry, reason);
    return null;
  }

  #stop(entry: Entry<C, S>, object: NativeObject, descriptor: number): Frozen | null {
    const { served } = entry;
    const pause = pauseOf(this.#runtime, object, descriptor);
    const luggage = this.#ask(served);
    // It may have written its last answer just now.
    if (luggage === null || (this.#runtime.inspect(entry.connection)?.unsentCount ?? 0) > 0) {
      pause.resume();
      if (luggage !== null) this.#call(() => served.stayed?.());
      return this.#later(entry);
    }
    this.#frozen.add(entry);
    const ahead = object.readAhead();
    return {
      descriptor: pause.socket,
      cookie: cookieOf(this.#runtime, pause.socket),
      state: { state: luggage.state ?? null, allowHalfOpen: object.allowHalfOpen, hasEnded: object.hasEnded },
      unread: joined(luggage.unread, ahead?.bytes),
      leave: () => {
        this.delete(entry.connection);
        this.#frozen.delete(entry);
        pause.leave(() => this.#deadSocket());
        close(object);
        this.#call(() => served.left?.());
      },
      thaw: (_error, isRefused = false) => {
        this.#frozen.delete(entry);
        // One that has closed meanwhile is not there any more.
        const isThere = this.#entries.has(entry.connection);
        if (isThere && isRefused) this.#staying.set(entry, "refused");
        else if (isThere) this.#waiting.add(entry);
        ahead?.putBack();
        pause.resume();
        this.#call(() => served.stayed?.());
      },
    };
  }

  /** What the application throws keeps the connection here. */
  #ask(served: Served<S>): Luggage<S> | null {
    try {
      return served.leave();
    } catch (error) {
      const message = `Cannot move a connection of ${JSON.stringify(this.#endpoint)}: leave() has thrown ${messageOf(error)}`;
      this.#failed(new TakeoverError("ERR_TAKEOVER_STATE", message, { cause: error }));
      return null;
    }
  }

  /** What the application throws when it is told something is its own affair. */
  #call(tell: () => void): void {
    try {
      tell();
    } catch (error) {
      this.#failed(error);
    }
  }

  #descriptorOf(connection: C, object: NativeObject): number {
    const known = object.descriptor >= 0 ? object.descriptor : remembered(this.#runtime, connection);
    if (known >= 0) return known;
    const copy = object.duplicate?.() ?? -1;
    if (copy < 0) return -1;
    const cookie = cookieOf(this.#runtime, copy);
    this.#runtime.libc.close(copy);
    return this.#cookies.find(cookie);
  }

  #deadSocket(): OwnedDescriptor {
    if (this.#dead) return this.#dead;
    const [dead, other] = openPair(this.#runtime);
    other[Symbol.dispose]();
    return this.#dead = dead;
  }
}

/** Nothing that comes over the wire is trusted to be of that shape. */
function parcelOf<S extends Json>(state: Json): Parcel<S> {
  const { state: given = null, allowHalfOpen, hasEnded } = (state ?? {}) as Partial<Parcel<S>>;
  return { state: given as S, allowHalfOpen: allowHalfOpen === true, hasEnded: hasEnded === true };
}

/** A connection whose object reads no more. */
interface Pause {
  /** Where the socket is meanwhile. */
  readonly socket: number;
  /** The object reads on. */
  resume(): void;
  /** The object gets a dead socket instead. */
  leave(dead: () => OwnedDescriptor): void;
}

/** Stops the object by its own means, or where it has none by giving it nothing to read. */
function pauseOf(runtime: Runtime, object: NativeObject, descriptor: number): Pause {
  const resume = object.pause();
  const cookie = cookieOf(runtime, descriptor);
  if (resume) {
    return {
      socket: descriptor,
      resume,
      leave(dead) {
        // One that the program has closed meanwhile is away, and its number may be another's.
        if (object.isClosedAlone || cookieOf(runtime, descriptor) !== cookie) return;
        unwatch(runtime, descriptor);
        duplicateOver(runtime, dead().number, descriptor);
      },
    };
  }
  return limbo(runtime, descriptor);
}

/** A program that reads for itself finds one end of a pair there, on which nothing comes. */
function limbo(runtime: Runtime, descriptor: number): Pause {
  const entries: readonly Registration[] = watchesOf(runtime, descriptor);
  const [end, other] = openPair(runtime);
  const copy = owning(end, () => {
    try {
      const copied = new OwnedDescriptor(runtime, duplicate(runtime, descriptor));
      unwatch(runtime, descriptor);
      duplicateOver(runtime, end.number, descriptor);
      return copied;
    } catch (error) {
      other[Symbol.dispose]();
      throw error;
    }
  });
  const cookie = cookieOf(runtime, descriptor);
  const put = (from: OwnedDescriptor) => {
    // The program may have closed its object, and the number may be another's.
    if (cookieOf(runtime, descriptor) === cookie) {
      duplicateOver(runtime, from.number, descriptor);
      register(runtime, entries);
    }
    copy[Symbol.dispose]();
    other[Symbol.dispose]();
  };
  return { socket: copy.number, resume: () => put(copy), leave: (dead) => put(dead()) };
}

/** The program may have closed its object at the end of file that it saw. */
function close(object: NativeObject, turnCount: number = object.isPulled ? endTurns : 0): void {
  if (turnCount > 0) return void setTimeout(() => close(object, turnCount - 1), 1);
  try {
    object.close();
  } catch {
    // Then there is nothing left to close.
  }
}

function joined(first: Uint8Array = new Uint8Array(0), second: Uint8Array = new Uint8Array(0)): Uint8Array {
  if (second.length === 0) return first;
  const bytes = new Uint8Array(first.length + second.length);
  bytes.set(first);
  bytes.set(second, first.length);
  return bytes;
}
