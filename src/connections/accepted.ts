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
import { TakeoverError } from "../errors.ts";
import type { Runtime } from "../runtime.ts";
import { freeDescriptorCount, OwnedDescriptor } from "../sockets/descriptors.ts";
import { Feeding } from "./feeding.ts";
import { type EmittingServer, giveSocket, takesSockets, withAccepted } from "./given.ts";
import type { Arrival, Place, Sink } from "./movable.ts";
import { keyOf, openSeats, type OwnServer, Seat } from "./seats.ts";
import { correctRequestIP, type TruePeers } from "./true_peers.ts";

/** A server of this process, and what applies to what it is given. */
export interface AcceptedOptions extends OwnServer {
  /** What the application's callback returned. */
  readonly native: unknown;
  /** How long a server may take to accept a connection, and to answer a request that is made once more. */
  readonly openMs: number;
  /** How long a server need not read what it is given, and a client what it is answered; five minutes. */
  readonly stallMs?: number;
  /** Descriptors that must stay free. */
  readonly spareCount: number;
  /** Has the server accept meanwhile; where it may be paused, at another address. Else it accepts at its own. */
  readonly whileAccepting?: <T>(use: (address: SocketAddress, isOver: () => boolean) => Promise<T>) => Promise<T>;
  /** Is told of every connection that the runtime knows by another name. */
  readonly peers: TruePeers;
  /** Is told why a connection has ended that was this process's already. */
  failed(error: unknown): void;
}

/** Says to a server what it is to hear before. What comes back for each is what the client is to hear first. */
export type Introduce = (
  arrivals: readonly Arrival[],
  seats: readonly (Seat | Error)[],
) => Promise<readonly (Uint8Array | Error)[]>;

/** A connection with what is only known as long as its descriptor is there. */
interface Guest {
  readonly arrival: Arrival;
  readonly local: SocketAddress | null;
  readonly peer: SocketAddress | null;
}

/** A connection and its place. */
interface Seated {
  readonly guest: Guest;
  readonly seat: Seat;
  /** What the client is to hear first. */
  readonly greeting: Uint8Array;
}

/** Connections that are prepared at once. */
export const batchCount = 256;

/** As long as Node gives a whole request (http, `server.requestTimeout`). */
const defaultStallMs = 300_000;

/** A seat takes two descriptors until its socket has it. */
const descriptorsPerSeat = 2;

/**
 * A sink for the connections of an HTTP server: `Deno.serve`, `Bun.serve`,
 * `node:http`, and everything that is built on them.
 */
export function acceptedSink(runtime: Runtime, options: AcceptedOptions): Sink {
  if (!takesSockets(options.native)) return new SeatedSink(runtime, options, saysNothing);
  const place = (arrival: Arrival): Place => ({ commit: () => giveTo(runtime, options, arrival), cancel: () => {} });
  return { prepare: (arrivals) => Promise.resolve(arrivals.map(place)) };
}

/** Nothing is to be heard before. */
export function saysNothing(_: unknown, seats: readonly unknown[]): Promise<Uint8Array[]> {
  return Promise.resolve(seats.map(() => new Uint8Array(0)));
}

/** Puts sockets under connections that the server has accepted. */
export class SeatedSink implements Sink {
  readonly #runtime: Runtime;
  readonly #options: AcceptedOptions;
  readonly #introduce: Introduce;
  readonly #feeding: Feeding;

  constructor(runtime: Runtime, options: AcceptedOptions, introduce: Introduce) {
    this.#runtime = runtime;
    this.#options = options;
    this.#introduce = introduce;
    this.#feeding = new Feeding(runtime, options.stallMs ?? defaultStallMs);
    correctRequestIP(options.native, options.peers);
  }

  async prepare(arrivals: readonly Arrival[]): Promise<(Place | Error)[]> {
    const room = Math.floor((freeDescriptorCount(this.#runtime) - this.#options.spareCount) / descriptorsPerSeat);
    const count = Math.min(arrivals.length, batchCount, Math.max(room, 0));
    const guests = arrivals.slice(0, count).map((arrival) => ({ arrival, local: arrival.local, peer: arrival.peer }));
    const found = await this.#seat(guests);
    return arrivals.map((_, index) => {
      const seated = found[index] ?? noRoom(arrivals.length, count);
      return seated instanceof Error ? seated : this.#place(seated);
    });
  }

  async #seat(guests: readonly Guest[]): Promise<(Seated | Error)[]> {
    // A socket of another family is not what the runtime takes it for.
    const fitting = guests.filter(({ local }) => local?.family === this.#options.address.family);
    const seats = await this.#open(fitting);
    const greetings = await this.#greetings(fitting, seats);
    const found = new Map(fitting.map((guest, index): [Guest, Seated | Error] => {
      const [seat, greeting] = [seats[index]!, greetings[index]!];
      if (!(seat instanceof Seat)) return [guest, seat];
      if (!(greeting instanceof Error)) return [guest, { guest, seat, greeting }];
      seat.close();
      return [guest, greeting];
    }));
    return guests.map((guest) => found.get(guest) ?? this.#misfit(guest));
  }

  async #greetings(
    guests: readonly Guest[],
    seats: readonly (Seat | Error)[],
  ): Promise<readonly (Uint8Array | Error)[]> {
    try {
      return await this.#introduce(guests.map(({ arrival }) => arrival), seats);
    } catch (error) {
      for (const seat of seats) if (seat instanceof Seat) seat.close();
      throw error;
    }
  }

  /** From here on the server knows who they are. */
  async #open(guests: readonly Guest[]): Promise<(Seat | Error)[]> {
    const { native, peers } = this.#options;
    return await withAccepted(this.#runtime, native, async (accepted) => {
      const seats = await this.#openSeats(guests.length);
      for (const [index, { local, peer }] of guests.entries()) {
        const seat = seats[index]!;
        if (!(seat instanceof Seat) || !local || !peer) continue;
        peers.add(seat.name, peer, seat.descriptor, seat.cookie);
        this.#runtime.present(accepted.get(keyOf(seat.name)), local, peer);
      }
      return seats;
    });
  }

  /** A successor that becomes ready now accepts what was meant for this process: once more for those. */
  async #openSeats(count: number): Promise<(Seat | Error)[]> {
    const { listener, address: own, openMs, peers, whileAccepting = (use) => use(own, () => false) } = this.#options;
    const isTaken = (name: SocketAddress) => peers.has(name);
    let wasOver = false;
    const open = (count: number) =>
      whileAccepting(async (address, isOver) => {
        const seats = await openSeats(this.#runtime, { address, listener }, count, openMs, isTaken, isOver);
        wasOver = isOver();
        return seats;
      });
    const seats: (Seat | Error)[] = await open(count);
    const missing = wasOver ? [...seats.keys()].filter((index) => seats[index] instanceof Error) : [];
    if (missing.length === 0) return seats;
    for (const [index, seat] of (await open(missing.length)).entries()) seats[missing[index]!] = seat;
    return seats;
  }

  #misfit({ local }: Guest): TakeoverError {
    const { address } = this.#options;
    return new TakeoverError(
      "ERR_TAKEOVER_ADOPT",
      `Cannot put the connection at ${local ? formatAddress(local) : "no address"} under the server at ` +
        `${formatAddress(address)}: expected one of the family ${address.family}`,
    );
  }

  #place(seated: Seated): Place {
    return {
      commit: () => {
        const socket = new OwnedDescriptor(this.#runtime, seated.guest.arrival.descriptor.take());
        if (seated.seat.isHeld) this.#commit(seated, socket);
        else void this.#seatAgain(seated, socket);
      },
      cancel: () => seated.seat.close(),
    };
  }

  #commit({ guest: { arrival, peer }, seat, greeting }: Seated, socket: OwnedDescriptor): void {
    const { peers, failed } = this.#options;
    this.#feeding.add({
      seat,
      socket,
      forServer: arrival.unread,
      forClient: greeting,
      seated: () => peer && peers.add(seat.name, peer, seat.descriptor, arrival.cookie),
      failed,
    });
  }

  /** A server closes connections on which nothing comes for long. */
  async #seatAgain({ guest, seat }: Seated, socket: OwnedDescriptor): Promise<void> {
    seat.close();
    try {
      const [found] = await this.#seat([guest]);
      if (found instanceof Error) throw found;
      // Should it be closed again, then the connection ends, as with any server that closes.
      this.#commit(found!, socket);
    } catch (error) {
      socket[Symbol.dispose]();
      this.#options.failed(error);
    }
  }
}

function giveTo(runtime: Runtime, { native, failed }: AcceptedOptions, { descriptor, unread }: Arrival): void {
  try {
    giveSocket(runtime, native as EmittingServer, descriptor, unread);
  } catch (error) {
    descriptor[Symbol.dispose]();
    failed(error);
  }
}

function noRoom(wanted: number, count: number): TakeoverError {
  return new TakeoverError(
    "ERR_TAKEOVER_NO_ROOM",
    `Cannot take ${wanted} connections at once: there is room for ${count}, with ${descriptorsPerSeat} descriptors ` +
      `for each and at most ${batchCount}; raise the limit of open files (ulimit -n)`,
  );
}
