/**
 * The connections of one process: which can move, where those go that come,
 * and how far either is.
 *
 * @module
 */

import { Arrivals, type Entrance } from "./arrivals.ts";
import type { FdChannel } from "../channels/fd_channel.ts";
import { acceptedSink } from "../connections/accepted.ts";
import { HttpConnections } from "../connections/http_connections.ts";
import { HttpSource } from "../connections/http_source.ts";
import { type ConnectionsOptions, RawConnections } from "../connections/raw.ts";
import { replayedSink } from "../connections/replayed.ts";
import { TruePeers } from "../connections/true_peers.ts";
import { WebSockets } from "../connections/websockets.ts";
import type { Json } from "../connections/movable.ts";
import { formatAddress, type InetAddress, type SocketAddress } from "../c/sockaddr.ts";
import type { Conversation } from "./conversation.ts";
import { Departures, type Exit, type Progress } from "./departures.ts";
import type { Drain, Drained } from "./drain.ts";
import type { Endpoint } from "../natives/endpoint.ts";
import type { QueueCounts } from "./queue_counts.ts";
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
  /** How many have moved, and what of the rest. */
  readonly connections: ConnectionCounts;
  /** What became of those who were connecting to listeners that this process has closed for good. */
  readonly queues: QueueCounts;
}

/** An HTTP server's ways out and in. */
interface Server {
  readonly endpoint: Endpoint;
  readonly exits: readonly Exit[];
  readonly entrances: readonly Entrance[];
}

/** Everything that a process has to do with connections that move. */
export class Moves {
  readonly #runtime: Runtime;
  readonly #limits: Limits;
  readonly #tell: (progress: Progress) => void;
  readonly #failed: (error: unknown) => void;
  readonly #raw = new Map<string, RawConnections<unknown, Json>>();
  readonly #servers = new Map<string, Server>();
  /** Those of the process's HTTP servers. */
  readonly webSockets: WebSockets;
  readonly #endpoints = new Map<string, Endpoint>();
  readonly #peers: TruePeers;
  readonly #http: HttpConnections;
  /** Those that went to successors that were lost. */
  #before: ConnectionCounts = { moved: 0, refused: 0, draining: {} };
  #arrivals: Arrivals | null = null;
  #departures: Departures | null = null;
  #isClosed = false;
  #isArriving = false;
  /** The event loop of this thread; others' connections are not touched. */
  #eventLoop: number | null = null;

  /**
   * @param drain What the process's handlers are wrapped with.
   * @param tell Hears of the progress of departures.
   * @param failed Hears of a connection that could not be served, and of a peer that broke the protocol.
   */
  constructor(
    runtime: Runtime,
    limits: Limits,
    drain: Drain,
    tell: (progress: Progress) => void,
    failed: (error: unknown) => void,
  ) {
    this.#runtime = runtime;
    this.#limits = limits;
    this.#tell = tell;
    this.#failed = failed;
    this.#peers = drain.peers = new TruePeers(runtime);
    drain.requests.truePeer = ({ hostname, port }) => inetOnly(this.#peers.of(hostname, port));
    const endpoints = () =>
      [...this.#endpoints.values()].map(({ name, identity }) => ({ name, address: identity.address }));
    this.webSockets = new WebSockets(runtime, { endpoints, failed });
    this.#http = new HttpConnections(runtime, {
      endpoints,
      requests: drain.requests,
      isExcluded: (descriptor, cookie) => this.webSockets.has(descriptor, cookie),
      webSocketCount: () => this.webSockets.bunCount,
      quietMs: limits.quietMs,
    });
  }

  /** An endpoint of this process is open; its connections are an HTTP server's unless the object is known to be none. */
  opened(endpoint: Endpoint, native: unknown): void {
    const { name, descriptor, identity: { address } } = endpoint;
    this.#endpoints.set(name, endpoint);
    if (this.#runtime.inspect(native)?.kind === "listener") return;
    const { openMs, spareCount } = this.#limits;
    const accepted = {
      address,
      listener: descriptor,
      native,
      openMs,
      spareCount,
      whileAccepting: <T>(use: (at: SocketAddress, isOver: () => boolean) => Promise<T>) =>
        endpoint.whileAccepting(use),
      peers: this.#peers,
      failed: this.#failed,
    };
    const webSockets = replayedSink(this.#runtime, {
      ...accepted,
      requestOf: (arrival) => this.webSockets.requestOf(arrival),
      checkHead: (head, arrival) => this.webSockets.checkHead(head, arrival),
    });
    this.#servers.set(name, {
      endpoint,
      exits: [
        { name, kind: "websocket", source: this.webSockets.source(name) },
        { name, kind: "http", source: new HttpSource(this.#http, name) },
      ],
      entrances: [
        { name, kind: "websocket", sink: webSockets },
        { name, kind: "http", sink: this.#http.noting(acceptedSink(this.#runtime, accepted)) },
      ],
    });
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

  /**
   * This process is a successor: its incumbent's connections may come.
   *
   * @param eventLoop This thread's.
   */
  arrive(channel: FdChannel, eventLoop: number | null): void {
    this.#eventLoop = eventLoop;
    this.#arrivals = new Arrivals(this.#runtime, this.#limits, channel, () => this.#entrances());
    this.#isArriving = true;
    this.#arrivals.ended.catch(this.#failed).finally(() => this.#isArriving = false);
  }

  /**
   * This process has a successor: its connections may go. Resolves when no more will.
   *
   * @param eventLoop This thread's.
   */
  depart(conversation: Conversation, eventLoop: number | null): Promise<void> {
    this.#eventLoop = eventLoop;
    this.#before = this.departed;
    this.#departures = new Departures(this.#runtime, this.#limits, conversation, () => this.#exits(), this.#tell);
    return this.#departures.ended;
  }

  /** No more come: what is sent to this process from here on stays where it is. */
  close(): void {
    this.#isClosed = true;
    void this.#arrivals?.announce().catch(() => {});
  }

  /** Whether some may come that are to go on to the successor: the process before this one has not ended. */
  get mayPassThrough(): boolean {
    return this.#isArriving && this.#departures !== null;
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
    return { moved: this.#before.moved + moved, refused: this.#before.refused + refused, draining };
  }

  /** How many have come. */
  get arrived(): ConnectionCounts {
    return { moved: this.#arrivals?.count ?? 0, refused: 0, draining: {} };
  }

  #exits(): Exit[] {
    const raw = [...this.#raw].map(([name, source]): Exit => ({ name, kind: "raw", source }));
    return [...raw, ...this.#ownServers().flatMap(({ exits }) => exits)];
  }

  #entrances(): Entrance[] {
    if (this.#isClosed) return [];
    const raw = [...this.#raw].map(([name, sink]): Entrance => ({ name, kind: "raw", sink }));
    return [...raw, ...this.#ownServers().flatMap(({ entrances }) => entrances)];
  }

  /**
   * A server in a worker reads and writes while this thread does. Which server
   * of an address has accepted a connection is not known, so all have to be here.
   */
  #ownServers(): Server[] {
    const isElsewhere = ({ eventLoop }: Endpoint) => {
      return eventLoop !== null && this.#eventLoop !== null && eventLoop !== this.#eventLoop;
    };
    const elsewhere = [...this.#endpoints.values()].filter(isElsewhere).map(({ identity }) => formatAddress(identity.address));
    return [...this.#servers.values()].filter(({ endpoint }) => {
      return !elsewhere.includes(formatAddress(endpoint.identity.address));
    });
  }
}

function inetOnly(address: SocketAddress | null): InetAddress | null {
  return address?.family === "unix" ? null : address;
}
