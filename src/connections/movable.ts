/**
 * Connections between two processes, seen from both ends: what the old one has
 * that may move, and where the new one puts it. Types only.
 *
 * ```text
 * incumbent: Source.ready -> Movable.freeze -> Frozen ---- descriptor, state, unread ----> Arrival
 *                                                                        successor: Sink.prepare -> Place
 *                                       <------------------ kept, or refused -----------------
 * Frozen.leave (or thaw)                ------------------- yours ---------------------------> Place.commit
 * ```
 *
 * A connection is the incumbent's until it says `yours`, and the successor's
 * from then on. Whoever it is not may neither read nor write it.
 *
 * @module
 */

import type { OwnedDescriptor } from "../sockets/descriptors.ts";
import type { SocketAddress } from "../c/sockaddr.ts";

/** What may be sent as JSON. */
export type Json = string | number | boolean | null | readonly Json[] | { readonly [key: string]: Json | undefined };

/** Who deals with a connection: the application, an HTTP server, or the WebSockets of one. */
export type ConnectionKind = "raw" | "http" | "websocket";

/** A connection of this process that may be able to move. */
export interface Movable {
  /** Whoever accepted it. */
  readonly endpoint: string;
  readonly kind: ConnectionKind;
  /**
   * Stops reading, at once. Between this and `leave` or `thaw` neither this
   * library nor the runtime reads or writes it.
   *
   * @returns Null when it turns out that it cannot go now; it goes on as if it
   *   had not been asked.
   */
  freeze(): Frozen | null;
}

/** A connection that nobody reads or writes until it has left, or goes on. */
export interface Frozen {
  /** The socket, which stays the native object's. */
  readonly descriptor: number;
  /** Its `SO_COOKIE`. */
  readonly cookie: string;
  /** What the other side is to know of it. */
  readonly state: Json;
  /** What has been read from it and is to be read again, before what the socket holds. */
  readonly unread: Uint8Array;
  /** The successor has it: the native object closes, and the peer hears nothing of it. */
  leave(): void;
  /**
   * It stays: read on.
   *
   * @param isRefused Whether it will not move to this successor, so that there
   *   is no use in asking again.
   */
  thaw(error: unknown, isRefused?: boolean): void;
}

/** What a source still has, and why some of it will not move. */
export interface Census {
  /** Connections that may move later: a request is in flight, a message half-way. */
  readonly waiting: number;
  /** Connections that stay until they end, by reason: `tls`, `http2`, `unix`, … */
  readonly staying: Readonly<Record<string, number>>;
}

/** One kind of connections of an endpoint, in the process that has them. */
export interface Source {
  /**
   * A successor takes connections from here on.
   *
   * @param ask To be called when some may have become ready; `ready` is asked
   *   from time to time in any case.
   */
  start(ask: () => void): void;
  /**
   * Those that can be frozen now, at most that many; in no longer than a few
   * milliseconds.
   *
   * @param isLast Whether the time is nearly up: what waits for a better
   *   moment, and not for a proof, goes now.
   */
  ready(limit: number, isLast: boolean): readonly Movable[];
  /** What is left. */
  census(): Census;
  /** No more: the successor has gone, or the time is up. Everything goes on as before `start`. */
  stop(): void;
}

/** A connection that came from an incumbent. */
export interface Arrival {
  /** Owned by whoever commits it. */
  readonly descriptor: OwnedDescriptor;
  readonly cookie: string;
  /** Where it is; null when it was reset meanwhile. */
  readonly local: SocketAddress | null;
  /** Who is at the other end; null when it was reset meanwhile. */
  readonly peer: SocketAddress | null;
  readonly state: Json;
  readonly unread: Uint8Array;
}

/** A place for one arrival. Exactly one of the two is called, once. */
export interface Place {
  /** It is this process's: into its native object with it, the descriptor taken; at once. */
  commit(): void;
  /** It stays with the incumbent: away with what was prepared. The descriptor is closed by the caller. */
  cancel(): void;
}

/** Where the connections of one endpoint and kind go in the successor. */
export interface Sink {
  /**
   * Prepares all that may fail, and neither reads nor writes the sockets.
   *
   * @returns For each arrival its place, or why it has none.
   */
  prepare(arrivals: readonly Arrival[]): Promise<readonly (Place | Error)[]>;
}
