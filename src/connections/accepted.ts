/**
 * Where connections of HTTP servers go: under connections that the process's
 * own native server has accepted, from this process itself. The server goes on
 * with them as with any other.
 *
 * Servers of node:http are given the sockets instead, as they document it.
 *
 * @module
 */

import { formatAddress, type SocketAddress } from "../c/sockaddr.ts";
import { messageOf, TakeoverError } from "../errors.ts";
import type { Runtime } from "../runtime.ts";
import { freeDescriptorCount, type OwnedDescriptor } from "../sockets/descriptors.ts";
import { Feeding, putUnder, type Seating, step } from "./feeding.ts";
import { giveSocket, takesSockets } from "./given.ts";
import type { Arrival, Place, Sink } from "./movable.ts";
import { openSeats, type OwnServer, type Seat } from "./seats.ts";
import type { TruePeers } from "./true_peers.ts";

/** A server of this process, and what applies to what it is given. */
export interface AcceptedOptions extends OwnServer {
  /** What the application's callback returned. */
  readonly native: unknown;
  /** How long a server may take to accept a connection, and how long nothing may move of what it is given. */
  readonly openMs: number;
  /** Descriptors that must stay free. */
  readonly spareCount: number;
  /** Is told of every connection that the runtime will call by another name. */
  readonly peers: TruePeers;
  /** Is told why a connection has ended that was this process's already. */
  failed(error: unknown): void;
}

/** What a seat is told before the true socket takes it. */
export type Introduce = (
  arrivals: readonly Arrival[],
  seats: readonly Seat[],
) => Promise<readonly (Uint8Array | TakeoverError)[]>;

/** Connections that are prepared at once. */
export const batchCount = 256;

/** A seat takes two descriptors until its socket has it. */
const descriptorsPerSeat = 2;

/** How often a seat is opened anew for a connection that is this process's already. */
const seatTries = 3;

/**
 * A sink for the connections of an HTTP server: `Deno.serve`, `Bun.serve`,
 * `node:http`, and everything that is built on them.
 */
export function acceptedSink(runtime: Runtime, options: AcceptedOptions): Sink {
  const { native } = options;
  if (takesSockets(native)) {
    const place = ({ descriptor, unread }: Arrival): Place => ({
      commit: () => giveSocket(runtime, native, descriptor, unread),
      cancel: () => {},
    });
    return { prepare: (arrivals) => Promise.resolve(arrivals.map(place)) };
  }
  return new SeatedSink(runtime, options, async (_, seats) => await Promise.resolve(seats.map(() => new Uint8Array(0))));
}

/** Puts sockets under connections that the server has accepted. */
export class SeatedSink implements Sink {
  readonly #runtime: Runtime;
  readonly #options: AcceptedOptions;
  readonly #introduce: Introduce;
  readonly #feeding: Feeding;

  /**
   * @param introduce Says to the server what it is to hear before. What comes
   *   back for each is what the client is to hear first.
   */
  constructor(runtime: Runtime, options: AcceptedOptions, introduce: Introduce) {
    this.#runtime = runtime;
    this.#options = options;
    this.#introduce = introduce;
    this.#feeding = new Feeding(runtime, options.openMs);
  }

  async prepare(arrivals: readonly Arrival[]): Promise<(Place | Error)[]> {
    const room = Math.floor((freeDescriptorCount(this.#runtime) - this.#options.spareCount) / descriptorsPerSeat);
    const count = Math.min(arrivals.length, batchCount, Math.max(room, 0));
    const seated = await this.#seat(arrivals.slice(0, count));
    return arrivals.map((_, index) => seated[index] ?? noRoom(arrivals.length, count));
  }

  async #seat(arrivals: readonly Arrival[]): Promise<(Place | TakeoverError)[]> {
    const fitting = arrivals.filter((arrival) => this.#fits(arrival));
    const { openMs, peers } = this.#options;
    const opened = await openSeats(this.#runtime, this.#options, fitting.length, openMs, (name) => peers.has(name));
    const seats = opened.filter((seat): seat is Seat => !(seat instanceof TakeoverError));
    const introduced = await this.#introduce(fitting.filter((_, index) => !(opened[index] instanceof TakeoverError)), seats);
    const places = new Map<Arrival, Place | TakeoverError>();
    let next = 0;
    for (const [index, arrival] of fitting.entries()) {
      const seat = opened[index]!;
      const greeting = seat instanceof TakeoverError ? seat : introduced[next++]!;
      places.set(arrival, greeting instanceof TakeoverError ? greeting : this.#place(arrival, seat as Seat, greeting));
    }
    return arrivals.map((arrival) => places.get(arrival) ?? this.#misfit(arrival));
  }

  /** A socket of another family is not what the runtime takes it for. */
  #fits({ local }: Arrival): boolean {
    return local.family === this.#options.address.family;
  }

  #misfit({ local }: Arrival): TakeoverError {
    return new TakeoverError(
      "ERR_TAKEOVER_ADOPT",
      `Cannot put the connection at ${formatAddress(local)} under the server at ` +
        `${formatAddress(this.#options.address)}: expected one of the same family`,
    );
  }

  #place(arrival: Arrival, seat: Seat, greeting: Uint8Array): Place {
    return {
      commit: () => this.#commit(arrival, seat, greeting, 1),
      cancel: () => seat.close(),
    };
  }

  #commit(arrival: Arrival, seat: Seat, greeting: Uint8Array, tries: number): void {
    const { descriptor, unread } = arrival;
    if (!seat.isHeld) return this.#unseated(arrival, seat, greeting, tries);
    const seating: Seating = {
      seat,
      socket: descriptor,
      forServer: unread,
      forClient: greeting,
      seated: () => this.#seated(arrival, seat),
      failed: (error) => this.#options.failed(error),
    };
    try {
      if (isPlain(seating) || unread.length === 0 && step(this.#runtime, seating) === "silent") return putUnder(this.#runtime, seating);
    } catch (error) {
      
    }
    this.#feeding.add(seating);
  }
}
