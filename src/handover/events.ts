/**
 * What a takeover reports while it happens, and the plain object it ends in.
 *
 * @module
 */

import { messageOf, SystemError, TakeoverError, type TakeoverErrorCode } from "../errors.ts";
import type { OpenedFlows } from "./flow_options.ts";
import type { Peer } from "./messages.ts";
import type { Progress } from "./departures.ts";
import type { ConnectionCounts, DrainOutcome } from "./moves.ts";
import type { QueueCounts } from "./queue_counts.ts";
import type { Steering } from "../steering/keep_away.ts";

/** What became of one hand-over, as either side reports it. */
export interface Outcome {
  /** Which side this process was on. */
  readonly role: "incumbent" | "successor";
  /** The process that was replaced. */
  readonly from: Peer;
  /** The process that replaced it. */
  readonly to: Peer;
  /** Endpoints that went over, by name. */
  readonly claimed: readonly string[];
  /** Endpoints that were offered and not wanted; they have been closed. */
  readonly unclaimed: readonly string[];
  /** From ready to settled, in milliseconds. */
  readonly leaseMs: number;
  /** Connections, as of now; more may move until the incumbent has drained. */
  readonly connections: ConnectionCounts;
}

/** The events of a takeover, by type. */
export interface TakeoverEvents {
  /** This process serves: nobody was there, or the incumbent has stopped accepting. */
  readonly ready: { readonly generation: number; readonly inherited: readonly string[] };
  /** A successor is ready: this process has stopped accepting and keeps its copies. */
  readonly leased: { readonly to: Peer };
  /** The successor was lost during the lease: this process accepts again. */
  readonly resumed: { readonly to: Peer; readonly code: string; readonly message: string };
  /** The lease with the incumbent has ended: this process can be replaced in turn. */
  readonly settled: Outcome;
  /** The lease with a successor has ended: this process has closed its copies. */
  readonly released: Outcome;
  /** The connections of a released or closed process have ended, or its time was up. */
  readonly drained: DrainOutcome;
  /** A successor wants another number of listeners in a group than there are: until it is settled new connections go to those that both have. */
  readonly steering: Steering & { readonly name: string };
  /** Listeners that nobody else had have been closed, and what became of those who were connecting. */
  readonly closed: QueueCounts & { readonly names: readonly string[] };
  /** An endpoint with flows has been opened: how they stay with the process that knows them, and what could not be. */
  readonly flows: OpenedFlows;
  /** Connections move to the successor; told at most ten times a second, and at the end. */
  readonly progress: Progress;
  /**
   * A connection that came could not be served, or the incumbent broke the protocol while they came; flows of datagrams
   * could not stay with their process, or what was forwarded could not be read.
   */
  readonly unserved: { readonly code: string; readonly message: string };
  /** A successor was refused, or lost before it was ready; this process served on. */
  readonly abandoned: { readonly code: TakeoverErrorCode | string; readonly message: string };
  /** The service manager could not be told what it should hear; nothing else has changed. */
  readonly unheard: { readonly code: string; readonly message: string };
  /** The incumbent took the lease back: this process has stopped accepting. */
  readonly revoked: { readonly code: string; readonly message: string };
}

/** The name of an event. */
export type TakeoverEventType = keyof TakeoverEvents;

/** What is called with an event. */
export type TakeoverListener<T extends TakeoverEventType> = (event: TakeoverEvents[T]) => void;

/** Listeners by type. One that throws does not keep the others from hearing. */
export class Emitter {
  readonly #listeners = new Map<TakeoverEventType, Set<TakeoverListener<never>>>();

  /** Adds a listener; the function returned takes it out again. */
  on<T extends TakeoverEventType>(type: T, listener: TakeoverListener<T>): () => void {
    const listeners = this.#listeners.get(type) ?? new Set();
    this.#listeners.set(type, listeners.add(listener));
    return () => void listeners.delete(listener);
  }

  /** Calls the listeners. What they throw becomes an unhandled rejection. */
  emit<T extends TakeoverEventType>(type: T, event: TakeoverEvents[T]): void {
    for (const listener of this.#listeners.get(type) ?? []) {
      try {
        (listener as TakeoverListener<T>)(event);
      } catch (error) {
        void Promise.reject(error);
      }
    }
  }
}

/** What an event says of an error. */
export function reported(error: unknown): { code: string; message: string } {
  const code = error instanceof TakeoverError || error instanceof SystemError ? error.code : "ERR_TAKEOVER_PROTOCOL";
  return { code, message: messageOf(error) };
}
