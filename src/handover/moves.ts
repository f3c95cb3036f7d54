/**
 * The connections of one process: which can move, where those go that come,
 * and how far either is.
 *
 * @module
 */

import { Arrivals, type Entrance } from "./arrivals.ts";
import type { FdChannel } from "../channels/fd_channel.ts";
import { type ConnectionsOptions, RawConnections } from "../connections/raw.ts";
import type { Json } from "../connections/movable.ts";
import type { Conversation } from "./conversation.ts";
import { Departures, type Exit, type Progress } from "./departures.ts";
import type { Drained } from "./drain.ts";
import { TakeoverError } from "../errors.ts";
import type { Limits } from "../limits.ts";
import type { Runtime } from "../runtime.ts";

/** What became of the connections of one side. */
export interface ConnectionCounts {
  /** The incumbent's: those that are the successor's now. The successor's: those that it has got. */
  readonly moved: number;
  /** Those that the successor did not take. */
  readonly refused: number;
  /** Those that stay with the incumbent until they end, by reason. */
  readonly draining: Readonly<Record<string, number>>;
}

/** What became of all connections of a process that was replaced. */
export interface DrainOutcome extends Drained {
  readonly connections: ConnectionCounts;
}

/** Everything that a process has to do with connections that move. */
export class Moves {
  readonly #runtime: Runtime;
  readonly #limits: Limits;
  readonly #tell: (progress: Progress) => void;
  readonly #failed: (error: unknown) => void;
  readonly #raw = new Map<string, RawConnections<unknown, Json>>();
  #arrivals: Arrivals | null = null;
  #departures: Departures | null = null;

  /**
   * @param tell Hears of the progress of departures.
   * @param failed Hears of a connection that could not be served, and of a peer that broke the protocol.
   */
  constructor(
    runtime: Runtime,
    limits: Limits,
    tell: (progress: Progress) => void,
    failed: (error: unknown) => void,
  ) {
    this.#runtime = runtime;
    this.#limits = limits;
    this.#tell = tell;
    this.#failed = failed;
  }

  /** Connections that the application speaks on itself. */
  connections<C, S extends Json>(name: string, options: ConnectionsOptions<C, S>): RawConnections<C, S> {
    if (this.#raw.has(name)) {
      throw new TakeoverError(
        "ERR_TAKEOVER_STATE",
        `Cannot serve the connections of ${JSON.stringify(name)} twice: choose another name`,
      );
    }
    const connections = new RawConnections(this.#runtime, name, options, this.#failed);
    this.#raw.set(name, connections as unknown as RawConnections<unknown, Json>);
    void this.#arrivals?.announce().catch(this.#failed);
    return connections;
  }

  /** This process is a successor: its incumbent's connections may come. */
  arrive(channel: FdChannel): void {
    this.#arrivals = new Arrivals(this.#runtime, this.#limits, channel, () => this.#entrances());
    this.#arrivals.ended.catch(this.#failed);
  }

  /** This process has a successor: its connections may go. */
  depart(conversation: Conversation): void {
    this.#departures = new Departures(this.#runtime, this.#limits, conversation, () => this.#exits(), this.#tell);
  }

  /** Whether connections can go. */
  get isDeparting(): boolean {
    return this.#departures !== null;
  }

  /** What waits for a better moment goes at that time, in milliseconds from now. */
  hurry(inMs: number): void {
    this.#departures?.hurry(inMs);
  }

  /** No more go; those that are left go on here. */
  async stop(error?: unknown): Promise<void> {
    await this.#departures?.stop(error);
  }

  /** How many have gone. */
  get departed(): ConnectionCounts {
    const { moved = 0, refused = 0, draining = {} } = this.#departures?.progress ?? {};
    return { moved, refused, draining };
  }

  /** How many have come. */
  get arrived(): ConnectionCounts {
    return { moved: this.#arrivals?.count ?? 0, refused: 0, draining: {} };
  }

  #exits(): Exit[] {
    return [...this.#raw].map(([name, source]) => ({ name, kind: "raw", source }));
  }

  #entrances(): Entrance[] {
    return [...this.#raw].map(([name, sink]) => ({ name, kind: "raw", sink }));
  }
}
