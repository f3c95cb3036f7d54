/**
 * The connections of a process's HTTP servers while a successor takes them:
 * found by walking the descriptor table, in slices, and looked at again and
 * again until it is certain that one is between two messages.
 *
 * A connection whose request has just been answered is *parked* where the
 * parser does not tell: out of the event loop, so that its next request stays
 * in the kernel while the proof is made.
 *
 * @module
 */

import type { Body } from "./bodies.ts";
import { boundary, type Facts, type LastRequest, type Verdict } from "./boundary.ts";
import { Limbo } from "./limbo.ts";
import { type OpenRequest, peerKey, type Requests, type RequestWatcher } from "./requests.ts";
import type { Arrival, Sink } from "./movable.ts";
import { isSeat } from "./seats.ts";
import type { SocketAddress } from "../c/sockaddr.ts";
import type { HttpSocket, Runtime } from "../runtime.ts";
import { cameThrough } from "../sockets/address.ts";
import { openDescriptors, type OwnedDescriptor, walkDescriptors } from "../sockets/descriptors.ts";
import { register, type Registration } from "../sockets/event_loop.ts";
import { unreadSize, unsentSize } from "../sockets/queues.ts";
import {
  cookieOf,
  integerOption,
  isListening,
  isStream,
  localAddress,
  openPair,
  peerAddress,
} from "../sockets/socket.ts";
import { type TcpInfo, tcpInfoOf } from "../sockets/tcp_state.ts";
import { unwatch, watchesOfAll } from "../sockets/watches.ts";

/** An endpoint whose connections are looked at. */
export interface HttpEndpoint {
  readonly name: string;
  readonly address: SocketAddress;
}

/** What is needed to watch the connections of a process. */
export interface HttpConnectionsOptions {
  /** All endpoints of the process, also those whose connections do not move. */
  readonly endpoints: () => Iterable<HttpEndpoint>;
  readonly requests: Requests;
  /** Connections that are somebody else's, WebSockets for instance. */
  readonly isExcluded?: (descriptor: number, cookie: string) => boolean;
  /** How many WebSockets of Bun.serve are excluded. */
  readonly webSocketCount?: () => number;
  /** How long nothing may have come on a connection whose last byte came and went in the same tick. */
  readonly quietMs: number;
}

/** How long one look at many connections takes at most. */
const sliceMs = 3;

/** How often the event loop is heard; two beats apart everything has had its turn. */
const beatMs = 4;
const settledBeats = 2;

/** So much longer than it took is the pause after something that is done again and again. */
const idleShare = 20;

/** What a parked connection waits for: these go by. */
const waited: readonly string[] = ["unsettled", "unsent", "body"];

/** How many beats a parked connection waits for the proof, and to be taken. */
const parkedBeats = 25;

/** How often it is tried for one body that is on its way, and the pause before the next time. */
const bodyBeats = 25;
const bodyTries = 4;

/** Of how many connections that came from another process it is kept in mind where they were; of the last ones. */
const arrivedLimit = 16_384;

/** How many may be parked: what goes into a batch or two. */
const parkedLimit = 512;

/** How long it takes until registrations that were not there are looked for again. */
const registerAgainMs = 500;

/** A kernel's buffer that was full has sent more than this. */
const segmentLimit = 16;

/** Linux's SO_SNDBUF (socket(7)), and how much of it may wait for the peer when there is certainly room. */
const SO_SNDBUF = 7;
const roomShare = 8;

/** What was seen of a connection. */
interface Look {
  readonly beat: number;
  readonly readSize: number;
  readonly writtenSize: number;
  /** How often a request has begun or ended: an answer is not written yet when its end is told. */
  readonly turnCount: number;
}

/** The requests of one peer. */
interface Traffic {
  inFlightCount: number;
  /** How often one has begun or ended. */
  turnCount: number;
  /** What one of them said against moving. */
  obstacle: string | null;
  /** The one that began last. */
  last: OpenRequest | null;
}

/** A request, and how its connection was when its handler was called. */
interface WatchedRequest {
  readonly open: OpenRequest;
  readonly readSize: number;
  /** Of all bytes that were written, those that have arrived. */
  readonly arrivedSize: number;
  readonly sentSegmentCount: number;
}

/** One connection of a server. */
export class HttpConnection {
  readonly descriptor: number;
  readonly cookie: string;
  readonly endpoint: string;
  /** Null over a Unix socket. */
  readonly peer: string | null;
  registration: Registration | null = null;
  /** The walk that came by last. */
  walkNumber: number = 0;
  /** When it was last looked for. */
  registeredAt: number = -Infinity;
  /** Since when it has been as it is. */
  settled: Look | null = null;
  verdict: Verdict = { state: "busy", reason: "unsettled" };
  /** The request in flight, or the last one; null before the first that was watched. */
  request: WatchedRequest | null = null;
  lastRequest: LastRequest | null = null;
  requestCount = 0;
  /** What the server had read when the last request was answered, or when it was first seen. */
  boundarySize: number = NaN;
  /** The same when it came from another process. */
  arrivedSize: number = NaN;
  /** The beat of its parking; -1 when it is in the event loop. */
  parkedAt = -1;
  isFrozen = false;
  /** The body that was parked for last, how often, and when again. */
  body: Body | null = null;
  bodyTries = 0;
  bodyAt: number = -Infinity;
  /** Why it stays until it ends. */
  stays: string | null = null;

  constructor(descriptor: number, cookie: string, endpoint: string, peer: string | null) {
    this.descriptor = descriptor;
    this.cookie = cookie;
    this.endpoint = endpoint;
    this.peer = peer;
  }
}

/** One that is out of the event loop. */
export interface FrozenConnection {
  /** The socket, wherever its server's object is meanwhile. */
  readonly descriptor: number;
  /** What the server has read and no handler has seen. */
  readonly unread: Uint8Array;
  leave(): void;
  thaw(): void;
}

/** The connections of all HTTP servers of a process. */
export class HttpConnections {
  readonly #runtime: Runtime;
  readonly #options: HttpConnectionsOptions;
  readonly #found = new Map<number, HttpConnection>();
  readonly #byPeer = new Map<string, HttpConnection[]>();
  readonly #traffic = new Map<string, Traffic>();
  readonly #askers = new Map<string, () => void>();
  /** What the servers of all processes had read of connections that came, by their cookies. */
  readonly #arrived = new Map<string, number>();
  #candidates = new Map<string, Set<HttpConnection>>();
  #endpoints: readonly HttpEndpoint[] = [];
  /** The walk that is under way. */
  #walk: Generator<number> | null = null;
  #walkNumber = 0;
  /** Whether every descriptor has been looked at. */
  #isWalked = false;
  #walkMs = 0;
  /** Not before then the next walk begins, the next look for requests that have ended. */
  #walkAt = -Infinity;
  #sweepAt = -Infinity;
  #beat = 0;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #unwatch: () => void = () => {};
  readonly #parked: Set<HttpConnection> = new Set();
  #parsers: ReadonlyMap<number, HttpSocket> | null = null;
  #parsersAt = -Infinity;
  #dead: OwnedDescriptor | null = null;
  readonly #limbo: Limbo;
  /** Where the sockets of frozen connections are. */
  readonly #copies = new Set<number>();

  constructor(runtime: Runtime, options: HttpConnectionsOptions) {
    this.#runtime = runtime;
    this.#limbo = new Limbo(runtime);
    this.#options = options;
    options.requests.livePeers = () => this.#livePeers();
  }

  /** Begins to watch, for one endpoint. */
  start(endpoint: string, ask: () => void): void {
    this.#askers.set(endpoint, ask);
    if (this.#askers.size > 1) return;
    const watcher: RequestWatcher = {
      began: (request) => this.#began(request),
      ended: (request) => this.#ended(request),
      collected: (body) => this.#collected(body),
    };
    this.#unwatch = this.#options.requests.watch(watcher);
    for (const request of this.#options.requests.open) this.#count(request, 1);
    this.#listen();
  }

  /** Ends it. */
  stop(endpoint: string): void {
    if (!this.#askers.delete(endpoint) || this.#askers.size > 0) return;
    this.#unwatch();
    clearTimeout(this.#timer);
    for (const connection of this.#found.values()) this.#unpark(connection);
    for (const known of [this.#found, this.#byPeer, this.#traffic, this.#candidates]) known.clear();
    this.#walk?.return(undefined);
    this.#walk = null;
    this.#isWalked = false;
    this.#parsers = null;
    this.#parsersAt = -Infinity;
    this.#dead?.[Symbol.dispose]();
    this.#dead = null;
    this.#limbo[Symbol.dispose]();
  }

  /** Keeps in mind where connections are that come; only where bodies are collected this is needed. */
  noting(sink: Sink): Sink {
    const prepare = async (arrivals: readonly Arrival[]) => {
      const places = await sink.prepare(arrivals);
      return places.map((place, index) => {
        if (place instanceof Error || !this.#options.requests.isCollecting) return place;
        return { commit: () => (this.#note(arrivals[index]!), place.commit()), cancel: () => place.cancel() };
      });
    };
    return { prepare };
  }

  #note({ descriptor: { number }, cookie, unread }: Arrival): void {
    const info = tcpInfoOf(this.#runtime, number);
    if (!info) return;
    this.#arrived.set(cookie, info.receivedSize - unreadSize(this.#runtime, number) - unread.length);
    if (this.#arrived.size > arrivedLimit) this.#arrived.delete(this.#arrived.keys().next().value!);
  }

  /** Those of an endpoint that were at a boundary a moment ago, at most that many. */
  atBoundary(endpoint: string, limit: number, isLast: boolean): HttpConnection[] {
    const until = Date.now() + sliceMs;
    const ready = () => this.#candidates.get(endpoint)?.size ?? 0;
    this.#look(() => Date.now() >= until || limit > 0 && ready() >= limit, isLast);
    const found = [...this.#candidates.get(endpoint) ?? []].slice(0, limit);
    this.#register(found);
    for (const connection of found) this.#candidates.get(endpoint)!.delete(connection);
    return found;
  }

  /** Those of an endpoint, as of the last look. */
  *of(endpoint: string): Iterable<HttpConnection> {
    for (const connection of this.#found.values()) if (connection.endpoint === endpoint) yield connection;
  }

  /** Whether the answer to its request has begun, and goes on. */
  isStreaming({ peer, verdict }: HttpConnection): boolean {
    return verdict.reason === "request" && this.#traffic.get(peer!)?.last?.isStreaming === true;
  }

  /**
   * Takes a connection out of the event loop, and looks again.
   *
   * @returns What ends that, one way or the other, and what the server has read
   *   of a request whose handler was not called; null when it is not at a
   *   boundary after all, and goes on.
   */
  freeze(connection: HttpConnection, isLast: boolean): FrozenConnection | null {
    if (connection.isFrozen || !this.#isSame(connection)) return null;
    const resume = this.#pause(connection);
    if (!resume) return null;
    connection.isFrozen = true;
    // What came before the pause may be on its way into the server; what comes from now on stays in the kernel.
    const isCertain = this.#decide(connection, isLast).state === "boundary" && this.#hasHeld(connection);
    if (!isCertain) {
      connection.isFrozen = false;
      resume();
      return null;
    }
    const socket = this.#socketOf(connection);
    const body = this.#bodyOf(connection);
    const unread = body?.message() ?? new Uint8Array(0);
    const left = () => {
      if (body) body.hasLeft = true;
    };
    return socket
      ? { descriptor: connection.descriptor, unread, ...this.#heldByNode(connection, socket, resume, left) }
      : { unread, ...this.#heldInLimbo(connection, resume, left) };
  }

  /** libuv reads and writes nothing of a handle that was stopped. */
  #heldByNode(
    connection: HttpConnection,
    socket: HttpSocket,
    resume: () => void,
    left: () => void,
  ): Pick<FrozenConnection, "leave" | "thaw"> {
    return {
      leave: () => {
        left();
        this.#forget(connection);
        // The server may have closed it by itself.
        if (this.#isSame(connection)) socket.destroy();
      },
      thaw: () => {
        connection.isFrozen = false;
        if (this.#isSame(connection)) resume();
        else this.#forget(connection);
      },
    };
  }

  #heldInLimbo(
    connection: HttpConnection,
    resume: () => void,
    left: () => void,
  ): Pick<FrozenConnection, "descriptor" | "leave" | "thaw"> {
    const { registration } = connection;
    const taken = this.#limbo.take(connection.descriptor);
    const { number } = taken.socket;
    this.#copies.add(number);
    return {
      descriptor: number,
      leave: () => {
        left();
        this.#copies.delete(number);
        this.#forget(connection);
        // It reads the end of file and closes.
        if (taken.give(this.#deadSocket().number)) register(this.#runtime, [registration!]);
      },
      thaw: () => {
        connection.isFrozen = false;
        this.#copies.delete(number);
        if (taken.give(number)) resume();
        else this.#forget(connection);
      },
    };
  }

  /** Whether what is unread was held back by a pause that is long enough ago. */
  #hasHeld({ descriptor, parkedAt }: HttpConnection): boolean {
    if (this.#runtime.httpSockets) return true;
    return parkedAt >= 0 && this.#beat - parkedAt >= settledBeats || unreadSize(this.#runtime, descriptor) === 0;
  }

  /** Null when it cannot be paused. */
  #pause(connection: HttpConnection): (() => void) | null {
    const socket = this.#socketOf(connection);
    if (this.#runtime.httpSockets) return socket?.pause() ?? null;
    if (connection.parkedAt < 0) {
      if (!connection.registration) return null;
      unwatch(this.#runtime, connection.descriptor);
    }
    return () => {
      this.#parked.delete(connection);
      connection.parkedAt = -1;
      connection.settled = null;
      register(this.#runtime, [connection.registration!]);
    };
  }

  #listen(): void {
    this.#timer = setTimeout(() => {
      this.#beat++;
      this.#sweep();
      if (this.#parked.size > 0) this.#lookAtParked();
      this.#listen();
    }, beatMs);
  }

  /** As often as it costs little. */
  #sweep(): void {
    const now = performance.now();
    if (now < this.#sweepAt) return;
    this.#options.requests.sweep();
    this.#sweepAt = performance.now() + idleShare * (performance.now() - now);
  }

  /** Goes on walking until it is enough, or once around. */
  #look(isEnough: () => boolean, isLast: boolean): void {
    const start = performance.now();
    if (!this.#walk && start < this.#walkAt) return;
    this.#walk ??= this.#beginWalk();
    while (!isEnough()) {
      const { value, done } = this.#walk.next();
      if (done) return this.#endWalk(performance.now() - start);
      const connection = this.#visit(value);
      if (connection) this.#judge(connection, isLast);
    }
    this.#walkMs += performance.now() - start;
  }

  #beginWalk(): Generator<number> {
    this.#endpoints = [...this.#options.endpoints()];
    this.#walkMs = 0;
    this.#walkNumber++;
    return walkDescriptors(this.#runtime);
  }

  #endWalk(lastMs: number): void {
    this.#walk = null;
    this.#isWalked = true;
    this.#walkAt = performance.now() + Math.max(settledBeats * beatMs, idleShare * (this.#walkMs + lastMs));
    for (const connection of [...this.#found.values()]) {
      if (connection.walkNumber !== this.#walkNumber && !connection.isFrozen) this.#forget(connection);
    }
    this.#register([...this.#found.values()]);
  }

  #visit(descriptor: number): HttpConnection | null {
    if (this.#copies.has(descriptor)) return null;
    const known = this.#found.get(descriptor);
    if (known && this.#isSame(known)) {
      known.walkNumber = this.#walkNumber;
      return known;
    }
    if (known) this.#forget(known);
    const local = localAddress(this.#runtime, descriptor);
    const endpoint = local && endpointOf(this.#endpoints, local);
    const peer = endpoint && peerAddress(this.#runtime, descriptor);
    // A seat would be taken for a connection on which nothing was said.
    if (!peer || isSeat(peer) || isListening(this.#runtime, descriptor)) return null;
    // Flows of datagrams can be at the same address and port, connected to their peers.
    if (!isStream(this.#runtime, descriptor)) return null;
    const cookie = cookieOf(this.#runtime, descriptor);
    if (this.#options.isExcluded?.(descriptor, cookie)) return null;
    const key = peer.family === "unix" ? null : peerKey(peer);
    return this.#add(new HttpConnection(descriptor, cookie, endpoint.name, key));
  }

  #add(connection: HttpConnection): HttpConnection {
    connection.walkNumber = this.#walkNumber;
    connection.arrivedSize = this.#arrived.get(connection.cookie) ?? NaN;
    if (connection.peer === null) connection.stays = "unix";
    else this.#byPeer.set(connection.peer, [...this.#byPeer.get(connection.peer) ?? [], connection]);
    this.#found.set(connection.descriptor, connection);
    return connection;
  }

  #forget(connection: HttpConnection): void {
    this.#parked.delete(connection);
    connection.parkedAt = -1;
    this.#found.delete(connection.descriptor);
    this.#candidates.get(connection.endpoint)?.delete(connection);
    if (connection.peer === null) return;
    const others = (this.#byPeer.get(connection.peer) ?? []).filter((other) => other !== connection);
    if (others.length > 0) this.#byPeer.set(connection.peer, others);
    else this.#byPeer.delete(connection.peer);
  }

  #isSame({ descriptor, cookie }: HttpConnection): boolean {
    return cookieOf(this.#runtime, descriptor) === cookie;
  }

  #judge(connection: HttpConnection, isLast: boolean): void {
    if (connection.isFrozen || connection.stays !== null) return;
    if (this.#options.isExcluded?.(connection.descriptor, connection.cookie)) return this.#forget(connection);
    const candidates = this.#candidates.get(connection.endpoint) ?? new Set();
    this.#candidates.set(connection.endpoint, candidates);
    // One whose server has something to read would not be frozen.
    if (this.#decide(connection, isLast).state === "boundary" && this.#hasHeld(connection)) candidates.add(connection);
    else {
      candidates.delete(connection);
      this.#parkForBody(connection);
    }
  }

  #decide(connection: HttpConnection, isLast: boolean): Verdict {
    const facts = this.#factsOf(connection);
    // What was just seen of it may keep it here.
    const reason = facts ? connection.stays : "ended";
    if (reason !== null) return connection.verdict = { state: "busy", reason };
    return connection.verdict = boundary(facts!, this.#options.quietMs, isLast);
  }

  #factsOf(connection: HttpConnection): Facts | null {
    const { descriptor, peer } = connection;
    const info = tcpInfoOf(this.#runtime, descriptor);
    if (!info) return null;
    const unread = info.receivedSize === 0 ? 0 : unreadSize(this.#runtime, descriptor);
    const socket = this.#socketOf(connection);
    const traffic = this.#traffic.get(peer!);
    connection.stays ??= socket?.isEncrypted ? "tls" : traffic?.obstacle ?? null;
    const readSize = info.receivedSize - unread;
    const hasRoom = this.#hasRoom(descriptor);
    return {
      isEstablished: info.state === "TCP_ESTABLISHED",
      inFlightCount: traffic?.inFlightCount ?? 0,
      isAtHand: this.#isAtHand(connection, readSize, socket),
      parser: !this.#runtime.httpSockets ? null : socket?.isBetween ? "between" : "within",
      readSize,
      unreadSize: unread,
      writtenSize: info.writtenSize,
      hasRoom,
      isSettled: this.#isSettled(connection, readSize, info.writtenSize, hasRoom),
      sinceReceivedMs: info.sinceReceivedMs,
      sinceSentMs: info.sinceSentMs,
      hasRetransmitted: info.hasRetransmitted,
      lastRequest: connection.lastRequest,
      doubt: this.#doubt(connection, readSize),
    };
  }

  #bodyOf({ peer }: HttpConnection): Body | null {
    return peer === null ? null : this.#options.requests.bodyOf(peer);
  }

  #isAtHand(connection: HttpConnection, readSize: number, socket: HttpSocket | null): boolean | null {
    const body = this.#bodyOf(connection);
    if (!body || this.#byPeer.get(connection.peer!)?.length !== 1) return null;
    return !body.isWhole && socket?.isWritten !== false && isExact(connection, readSize, body.messageSize);
  }

  #hasRoom(descriptor: number): boolean {
    const size = unsentSize(this.#runtime, descriptor);
    return size === 0 || size <= integerOption(this.#runtime, descriptor, SO_SNDBUF) / roomShare;
  }

  #isSettled(connection: HttpConnection, readSize: number, writtenSize: number, hasRoom: boolean): boolean {
    const { settled, peer } = connection;
    const turnCount = this.#traffic.get(peer!)?.turnCount ?? 0;
    const isSame = settled !== null && settled.readSize === readSize && settled.writtenSize === writtenSize &&
      settled.turnCount === turnCount;
    if (Number.isNaN(connection.boundarySize)) connection.boundarySize = readSize;
    // Room that has just come is not used yet.
    if (!hasRoom) connection.settled = null;
    else if (!isSame) connection.settled = { beat: this.#beat, readSize, writtenSize, turnCount };
    return hasRoom && isSame && this.#beat - settled.beat >= settledBeats;
  }

  /** A request that was watched, and after which nothing came, is a proof; else something may be against it. */
  #doubt({ peer, requestCount, boundarySize }: HttpConnection, readSize: number): string | null {
    const { requests, webSocketCount } = this.#options;
    const mark = requests.markOf(peer!);
    if (mark !== null || requestCount > 0 && boundarySize === readSize) return mark;
    return requests.doubt(webSocketCount?.() ?? 0) ?? (this.#hasStrangers() ? "unproven" : null);
  }

  /** Whether a request is in flight on a connection that was not found. */
  #hasStrangers(): boolean {
    for (const [peer, { inFlightCount }] of this.#traffic) {
      if (inFlightCount > 0 && !(this.#isWalked && this.#byPeer.has(peer))) return true;
    }
    return false;
  }

  /** The runtime's own object, on Node. */
  #socketOf({ descriptor }: HttpConnection): HttpSocket | null {
    if (!this.#runtime.httpSockets) return null;
    const now = performance.now();
    if (now >= this.#parsersAt) {
      this.#parsers = this.#runtime.httpSockets();
      // One that has read since then is found out.
      this.#parsersAt = performance.now() + idleShare * (performance.now() - now);
    }
    return this.#parsers!.get(descriptor) ?? null;
  }

  /** What puts connections back into the event loop is read once for many. */
  #register(connections: readonly HttpConnection[]): void {
    if (this.#runtime.httpSockets) return;
    const now = performance.now();
    const isMissing = ({ registration, registeredAt }: HttpConnection) =>
      registration === null && now - registeredAt >= registerAgainMs;
    if (!connections.some(isMissing)) return;
    // When it is read, it is read for all.
    const wanted = [...this.#found.values()].filter(isMissing);
    const watches = watchesOfAll(this.#runtime, wanted.map(({ descriptor }) => descriptor));
    for (const connection of wanted) {
      connection.registration = watches.get(connection.descriptor) ?? null;
      connection.registeredAt = now;
    }
  }

  #count(request: OpenRequest, by: 1 | -1): void {
    const { peer } = request;
    if (peer === null) return;
    const traffic = this.#traffic.get(peer) ?? { inFlightCount: 0, turnCount: 0, obstacle: null, last: null };
    traffic.inFlightCount += by;
    traffic.turnCount++;
    if (by > 0) [traffic.obstacle, traffic.last] = [traffic.obstacle ?? request.obstacle, request];
    this.#traffic.set(peer, traffic);
  }

  #began(open: OpenRequest): void {
    this.#count(open, 1);
    const connection = this.#only(open.peer);
    const info = connection && tcpInfoOf(this.#runtime, connection.descriptor);
    if (!info) return;
    connection.stays ??= open.obstacle;
    // It had been read already, together with the one before.
    this.#unpark(connection);
    const { descriptor } = connection;
    const readSize = info.receivedSize - unreadSize(this.#runtime, descriptor);
    const isPipelined = connection.request?.readSize === readSize || connection.lastRequest?.isPipelined === true;
    connection.requestCount++;
    connection.lastRequest = { readSize, isWhole: false, isPipelined };
    const arrivedSize = info.writtenSize - unsentSize(this.#runtime, descriptor);
    connection.request = { open, readSize, arrivedSize, sentSegmentCount: info.sentSegmentCount };
  }

  #ended(open: OpenRequest): void {
    this.#count(open, -1);
    const connection = this.#only(open.peer);
    if (!connection || connection.request?.open !== open) return;
    const info = tcpInfoOf(this.#runtime, connection.descriptor);
    if (!info) return;
    const { request, boundarySize } = connection;
    const readSize = info.receivedSize - unreadSize(this.#runtime, connection.descriptor);
    const isMeasured = readSize - boundarySize === open.size;
    // What was collected is known to be whole already.
    if (!connection.lastRequest!.isWhole) {
      connection.lastRequest = {
        readSize: isMeasured ? readSize : request.readSize,
        isWhole: this.#options.requests.markOf(open.peer!) === null && (isMeasured || open.isBodiless),
        isPipelined: connection.lastRequest!.isPipelined,
      };
    }
    connection.boundarySize = readSize;
    if (this.#isSmall(connection, request, info)) this.#park(connection);
    this.#askers.get(connection.endpoint)?.();
  }

  /** Where its request ends is certain, when it is known where it began. */
  #collected({ peer, messageSize }: Body): void {
    const connection = this.#only(peer);
    const info = connection && tcpInfoOf(this.#runtime, connection.descriptor);
    if (!info) return;
    const readSize = info.receivedSize - unreadSize(this.#runtime, connection.descriptor);
    if (!isExact(connection, readSize, messageSize)) return;
    connection.boundarySize = readSize;
    connection.lastRequest = { readSize, isWhole: true, isPipelined: false };
  }

  /**
   * Whether an answer was so small that all of it went into the kernel at once:
   * out of the event loop the server does not hear of room for more.
   */
  #isSmall({ descriptor }: HttpConnection, { arrivedSize, sentSegmentCount }: WatchedRequest, info: TcpInfo): boolean {
    return info.writtenSize - arrivedSize <= integerOption(this.#runtime, descriptor, SO_SNDBUF) / roomShare &&
      info.sentSegmentCount - sentSegmentCount <= segmentLimit;
  }

  #only(peer: string | null): HttpConnection | null {
    const found = peer === null ? [] : this.#byPeer.get(peer) ?? [];
    return found.length === 1 && this.#isSame(found[0]!) ? found[0]! : null;
  }

  /** After an answer the next request stays in the kernel. */
  #park(connection: HttpConnection): void {
    const { descriptor, registration, isFrozen, stays, lastRequest, endpoint } = connection;
    if (!registration || isFrozen || stays !== null || !lastRequest?.isWhole || lastRequest.isPipelined) return;
    if (this.#parked.has(connection) || this.#parked.size >= parkedLimit || !this.#askers.has(endpoint)) return;
    unwatch(this.#runtime, descriptor);
    connection.parkedAt = this.#beat;
    this.#parked.add(connection);
  }

  /** What comes of a body stays in the kernel until what was read of it has come to its handler. */
  #parkForBody(connection: HttpConnection): void {
    const { descriptor, registration, isFrozen, stays, endpoint } = connection;
    const body = registration && !isFrozen && stays === null ? this.#bodyOf(connection) : null;
    if (!body || this.#parked.has(connection) || this.#parked.size >= parkedLimit || !this.#askers.has(endpoint)) return;
    if (connection.body !== body) [connection.body, connection.bodyTries, connection.bodyAt] = [body, 0, -Infinity];
    if (connection.bodyTries >= bodyTries || this.#beat < connection.bodyAt) return;
    connection.bodyTries++;
    connection.bodyAt = this.#beat + parkedBeats + bodyBeats;
    unwatch(this.#runtime, descriptor);
    connection.parkedAt = this.#beat;
    this.#parked.add(connection);
  }

  #unpark(connection: HttpConnection): void {
    if (connection.isFrozen || !this.#parked.delete(connection)) return;
    connection.parkedAt = -1;
    if (this.#isSame(connection)) register(this.#runtime, [connection.registration!]);
  }

  /** A parked one that is not taken soon goes on. */
  #lookAtParked(): void {
    const asked = new Set<string>();
    for (const connection of [...this.#parked]) {
      if (connection.isFrozen) continue;
      if (!this.#isSame(connection)) {
        this.#forget(connection);
        continue;
      }
      this.#judge(connection, false);
      const { state, reason } = connection.verdict;
      if (state === "boundary") asked.add(connection.endpoint);
      else if (!waited.includes(reason)) this.#unpark(connection);
      if (this.#beat - connection.parkedAt >= parkedBeats) this.#unpark(connection);
    }
    for (const endpoint of asked) this.#askers.get(endpoint)?.();
  }

  #livePeers(): ReadonlySet<string> {
    const live = new Set<string>();
    for (const descriptor of openDescriptors(this.#runtime)) {
      const peer = peerAddress(this.#runtime, descriptor);
      if (peer && peer.family !== "unix") live.add(peerKey(peer));
    }
    return live;
  }

  #deadSocket(): OwnedDescriptor {
    if (this.#dead) return this.#dead;
    const [dead, other] = openPair(this.#runtime);
    other[Symbol.dispose]();
    return this.#dead = dead;
  }
}

/**
 * Whether what the server has read since the last boundary is as much as that
 * message: since the connection began, came from another process, or since the
 * last one that was seen.
 */
function isExact({ arrivedSize, boundarySize }: HttpConnection, readSize: number, messageSize: number): boolean {
  return [0, arrivedSize, boundarySize].includes(readSize - messageSize);
}

/** The one at the very address, else the first that a connection can have come through. */
function endpointOf(endpoints: readonly HttpEndpoint[], local: SocketAddress): HttpEndpoint | null {
  const possible = endpoints.filter(({ address }) => cameThrough(local, address));
  const isThere = ({ address }: HttpEndpoint) =>
    address.family !== "unix" && local.family !== "unix" && address.hostname === local.hostname;
  return possible.find(isThere) ?? possible[0] ?? null;
}
