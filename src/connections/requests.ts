/**
 * The requests that a process is answering, as its handlers see them. At rest
 * a request costs an entry in a set; whose it is, is only asked when somebody
 * watches, except of Deno, which tells it no more after an upgrade.
 *
 * How the runtimes tell that an answer is finished, long after the handler has
 * returned when it is a stream:
 *
 * ```text
 * Deno.serve   info.completed resolves
 * Bun.serve    server.requestIP(request) is null
 * node:http    the response is destroyed, and the request complete
 * ```
 *
 * @module
 */

import { Body, collectedSize } from "./bodies.ts";
import { headerOf, headText, type RequestHead } from "./request_head.ts";

/** Where a request comes from; null when the runtime does not tell. */
export interface RequestPeer {
  readonly hostname: string;
  readonly port: number;
}

/** One request that is not answered yet. */
export interface OpenRequest {
  /** Its connection's other end, as {@linkcode peerKey} writes it; null when it is not known. */
  readonly peer: string | null;
  /** Why its connection cannot go on in another process, `tls`, `http2`, `unix`; null when it can. */
  readonly obstacle: string | null;
  /** The length of its head as a client writes it who wastes nothing, and of its body; NaN when unknown. */
  readonly size: number;
  /** Whether it has no body. */
  readonly isBodiless: boolean;
  /** Whether its answer has begun and goes on. */
  readonly isStreaming: boolean;
}

/** Who wants to know of requests. */
export interface RequestWatcher {
  /** A handler is about to be called. */
  began(request: OpenRequest): void;
  /** Its answer is finished. */
  ended(request: OpenRequest): void;
  /** A body has come whole, and its handler is about to be called. */
  collected(body: Body): void;
}

/** How many entries there are before those that have ended are looked for. */
const leastCount = 64;

/** How many peers are kept in mind before those that have gone are looked for. */
const leastMarkCount = 1_024;

/** Of so many requests one is looked at more closely at rest; of the first ones each. */
const sampleEvery = 16;
const firstSamples = 64;

/** What of the runtimes' requests, and what comes beside them, is used here. */
interface RequestLike extends RequestHead {
  readonly bodyUsed?: boolean;
  readonly complete?: boolean;
  readonly httpVersion?: string;
  readonly socket?: {
    readonly remoteAddress?: string;
    readonly remotePort?: number;
    readonly encrypted?: boolean;
    /** Only Node shows it. */
    readonly _handle?: { readonly fd?: number } | null;
  };
}

interface DenoInfo {
  readonly remoteAddr: { readonly transport?: string; readonly hostname?: string; readonly port?: number };
  readonly completed: Promise<void>;
}

interface BunServer {
  requestIP(request: unknown): { readonly address: string; readonly port: number } | null;
  readonly pendingRequests?: number;
  readonly pendingWebSockets?: number;
  readonly protocol?: string;
}

interface ResponseLike {
  readonly status?: number;
  readonly destroyed?: boolean;
  readonly headersSent?: boolean;
  readonly socket?: unknown;
  once?(event: string, listener: () => void): unknown;
}

interface ServerLike {
  listenerCount?(event: string): number;
}

type Kind = "deno" | "bun" | "node" | "unknown";

/** What is known of one request. Fields are filled in when they are asked for. */
class Entry implements OpenRequest {
  readonly kind: Kind;
  readonly request: RequestLike;
  /** Deno's info, Bun's server, or Node's response. */
  readonly beside: unknown;
  isReturned = false;
  peer: string | null = null;
  /** What Deno says of it when the request comes. */
  readonly #told: RequestPeer | null;
  #obstacle: string | null | undefined;

  constructor(kind: Kind, request: unknown, beside: unknown) {
    this.kind = kind;
    this.request = request as RequestLike;
    this.beside = beside;
    this.#told = kind === "deno" ? denoPeer(beside as DenoInfo) : null;
  }

  /** Where it comes from; null over a Unix socket, or when the runtime does not tell, or no more. */
  get remote(): RequestPeer | null {
    if (this.kind === "bun") {
      const found = (this.beside as BunServer).requestIP(this.request);
      return found && { hostname: found.address, port: found.port };
    }
    if (this.kind !== "node") return this.#told;
    const { remoteAddress, remotePort } = this.request.socket ?? {};
    return remoteAddress && remotePort ? { hostname: remoteAddress, port: remotePort } : null;
  }

  get obstacle(): string | null {
    if (this.#obstacle === undefined) {
      this.#obstacle = unlessEnded(() => obstacleOf(this.kind, this.request, this.remote), "unproven");
    }
    return this.#obstacle;
  }

  get isBodiless(): boolean {
    return unlessEnded(() => isBodiless(this.request), false);
  }

  get isStreaming(): boolean {
    return this.isReturned || (this.beside as ResponseLike).headersSent === true;
  }

  get size(): number {
    return unlessEnded(() => sizeOf(this.request), NaN);
  }

  /** Whether the runtime has finished its answer. */
  get isDone(): boolean {
    if (this.kind === "bun") return this.isReturned && (this.beside as BunServer).requestIP(this.request) === null;
    const { destroyed } = this.beside as ResponseLike;
    if (this.kind === "node") return destroyed === true && this.request.complete !== false;
    return this.kind === "unknown" && this.isReturned;
  }
}

/** The requests in flight in this process. */
export class Requests {
  readonly #open = new Set<Entry>();
  readonly #watchers = new Set<RequestWatcher>();
  /** Why the next bytes of a peer are no request, or not known to be one. */
  readonly #marks = new Map<string, string>();
  /** Those whose bodies are being collected; while somebody watches, by their peers. */
  readonly #bodies = new Map<object, Body>();
  readonly #bodiesByPeer = new Map<string, Body>();
  /** While somebody watches, by the runtimes' own requests. */
  readonly #entries = new WeakMap<object, Entry>();
  /** Those whose bodies were collected whole. */
  readonly #collected = new WeakSet<object>();
  /** Whether some handlers wait for whole bodies. */
  isCollecting: boolean = false;
  readonly #bunServers = new Set<BunServer>();
  readonly #nodeServers = new Set<ServerLike>();
  #sweepAt = leastCount;
  #count = 0;
  #pruneAt = leastMarkCount;
  #hasSeenOthers = false;
  #isSweeping = false;
  #truePeer: (peer: RequestPeer) => RequestPeer | null = () => null;
  #livePeers: () => ReadonlySet<string> = () => new Set();

  /** How many there are; some of them may have ended. */
  get size(): number {
    return this.#open.size;
  }

  /** How many there have been. */
  get count(): number {
    return this.#count;
  }

  /** Those in flight, as of the last {@linkcode sweep}. */
  get open(): Iterable<OpenRequest> {
    return this.#open;
  }

  /** Corrects what the runtime says of a peer. */
  set truePeer(correct: (peer: RequestPeer) => RequestPeer | null) {
    this.#truePeer = correct;
  }

  /** Tells which peers are connected, as {@linkcode peerKey} writes them. */
  set livePeers(find: () => ReadonlySet<string>) {
    this.#livePeers = find;
  }

  /** A fetch handler is about to be called; `end` says what it returned. */
  fetch(request: unknown, beside: unknown): Entry {
    const entry = new Entry(kindOf(beside), request, beside);
    if (entry.kind === "bun") this.#bunServers.add(beside as BunServer);
    this.#begin(entry);
    if (entry.kind === "deno") {
      const end = () => this.#end(entry);
      (beside as DenoInfo).completed.then(end, end);
    }
    return entry;
  }

  /** The handler has returned a response, undefined or an error. */
  returned(entry: OpenRequest, response: unknown): void {
    const known = entry as Entry;
    known.isReturned = true;
    const status = (response as ResponseLike | undefined)?.status;
    // Bun's upgrade leaves nothing to return.
    if (status === 101 || known.kind === "bun" && response === undefined) this.#mark(known, "upgraded");
    else if (!this.#isRead(known.request)) this.#mark(known, "body");
    if (known.kind === "unknown") this.#end(known);
    else if (known.kind === "bun" && this.#watchers.size > 0) this.#sweepSoon();
  }

  /** A listener of node:http is about to be called. */
  listener(server: unknown, request: unknown, response: unknown): OpenRequest {
    const entry = new Entry("node", request, response);
    // Node's own parsers tell what is in flight; to hold on to requests costs its garbage collector more than all else.
    if (this.#watchers.size === 0 && entry.request.socket?._handle?.fd !== undefined) return entry;
    const { listenerCount } = (server ?? {}) as ServerLike;
    if (typeof listenerCount === "function") this.#nodeServers.add(server as ServerLike);
    this.#begin(entry);
    if (this.#watchers.size > 0) this.#hear(entry);
    return entry;
  }

  /**
   * The body of a request is to be collected before its handler is called.
   *
   * @param limit The most that is collected, in bytes.
   * @param response What is to answer it, of node:http.
   * @returns Null when the handler gets it as it comes.
   */
  collect(request: object, limit: number, response: object | null): Body | null {
    const size = collectedSize(request, limit);
    if (Number.isNaN(size) || this.#bodies.has(request)) return null;
    const body = new Body(request, size, response);
    this.#bodies.set(request, body);
    if (this.#watchers.size > 0) this.#locate(body);
    return body;
  }

  /** It is whole, or will not be. */
  collected(body: Body): void {
    this.#bodies.delete(body.request);
    if (body.isWhole) {
      this.#collected.add(body.request);
      for (const watcher of this.#watchers) watcher.collected(body);
    }
    if (body.peer !== null && this.#bodiesByPeer.get(body.peer) === body) this.#bodiesByPeer.delete(body.peer);
  }

  /** The body that is being collected on a peer's connection. */
  bodyOf(peer: string): Body | null {
    return this.#bodiesByPeer.get(peer) ?? null;
  }

  /** Tells of requests from now on, until the function that comes back is called. */
  watch(watcher: RequestWatcher): () => void {
    this.#watchers.add(watcher);
    this.sweep();
    for (const entry of this.#open) {
      entry.peer ??= this.#peerOf(entry);
      this.#entries.set(entry.request, entry);
      if (entry.kind === "node") this.#hear(entry);
    }
    for (const body of this.#bodies.values()) this.#locate(body);
    return () => void this.#watchers.delete(watcher);
  }

  /** Looks which have ended. */
  sweep(): void {
    for (const entry of this.#open) if (entry.isDone) this.#end(entry);
    this.#sweepAt = Math.max(leastCount, 2 * this.#open.size);
  }

  /** Why the last answer to a peer is no sign of a boundary: `upgraded`, `body`; null when nothing is known. */
  markOf(peer: string): string | null {
    return this.#marks.get(peer) ?? null;
  }

  /**
   * Why answers that were not watched prove nothing: there is something in this
   * process that is no plain HTTP/1.1, or that no handler has seen.
   *
   * @param webSocketCount WebSockets of Bun that are known to be some.
   */
  doubt(webSocketCount: number): string | null {
    if (this.#count === 0) return "unproven";
    if (this.#hasSeenOthers) return "unproven";
    let [pending, sockets] = [0, 0];
    for (const server of this.#bunServers) {
      pending += server.pendingRequests ?? 0;
      sockets += server.pendingWebSockets ?? 0;
    }
    if (this.#bunServers.size > 0 && (pending > this.#open.size || sockets > webSocketCount)) return "unproven";
    for (const server of this.#nodeServers) if (server.listenerCount!("upgrade") > 0) return "unproven";
    return null;
  }

  #begin(entry: Entry): void {
    if (this.#open.size >= this.#sweepAt) this.sweep();
    this.#open.add(entry);
    const number = this.#count++;
    const isSample = number < firstSamples || number % sampleEvery === 0;
    if (isSample || entry.kind === "unknown") this.#sample(entry);
    if (this.#watchers.size === 0) return;
    entry.peer = this.#peerOf(entry);
    this.#entries.set(entry.request, entry);
    if (entry.peer !== null) this.#marks.delete(entry.peer);
    for (const watcher of this.#watchers) watcher.began(entry);
  }

  #end(entry: Entry): void {
    if (!this.#open.delete(entry)) return;
    for (const watcher of this.#watchers) watcher.ended(entry);
  }

  /** Node's responses tell their end, and a request whose body is on its way its own. */
  #hear({ request, beside }: Entry): void {
    const look = () => this.#sweepSoon();
    (beside as ResponseLike).once?.("close", look);
    (request as ResponseLike).once?.("end", look);
  }

  /** Bun answers right after the handler has returned. */
  #sweepSoon(): void {
    if (this.#isSweeping) return;
    this.#isSweeping = true;
    setImmediate(() => {
      this.#isSweeping = false;
      this.sweep();
    });
  }

  #sample(entry: Entry): void {
    // What comes over a Unix socket is known to do so by its connection.
    if (!this.#hasSeenOthers) this.#hasSeenOthers = (entry.obstacle ?? "unix") !== "unix";
  }

  #mark(entry: Entry, reason: string): void {
    const peer = entry.peer ??= this.#peerOf(entry);
    // Over a Unix socket nobody has an address, and nothing moves.
    if (peer === null) return;
    this.#marks.set(peer, reason);
    if (this.#marks.size >= this.#pruneAt) this.#prune();
  }

  /** Peers that have gone by now. */
  #prune(): void {
    const live = this.#livePeers();
    for (const peer of this.#marks.keys()) if (!live.has(peer)) this.#marks.delete(peer);
    this.#pruneAt = Math.max(leastMarkCount, 2 * this.#marks.size);
  }

  /** Those of Node's that came before somebody watched are not among the open ones. */
  #locate(body: Body): void {
    const { request, response } = body;
    body.peer ??= this.#peerOf(this.#entries.get(request) ?? new Entry(response ? "node" : "unknown", request, response));
    if (body.peer !== null) this.#bodiesByPeer.set(body.peer, body);
  }

  #isRead(request: RequestLike): boolean {
    return this.#collected.has(request) || unlessEnded(() => isRead(request), false);
  }

  #peerOf({ remote: peer }: Entry): string | null {
    return peer && peerKey(this.#truePeer(peer) ?? peer);
  }
}

/** A peer as a text: IPv4 in IPv6 (`::ffff:192.0.2.1`), as a dual-stack listener shows it, is the same host. */
export function peerKey({ hostname, port }: RequestPeer): string {
  return `${hostname.replace(/^::ffff:(?=\d+\.)/i, "")} ${port}`;
}

function kindOf(beside: unknown): Kind {
  if (typeof beside !== "object" || beside === null) return "unknown";
  if (typeof (beside as BunServer).requestIP === "function") return "bun";
  return "remoteAddr" in beside && "completed" in beside ? "deno" : "unknown";
}

/** It throws once the answer is finished. */
function denoPeer(info: DenoInfo): RequestPeer | null {
  try {
    const { hostname, port } = info.remoteAddr;
    return hostname && port ? { hostname, port } : null;
  } catch {
    return null;
  }
}

/** HTTP/2 has no `Host`, and HTTP/1.0 need not have one; of Node's requests the version is known. */
function obstacleOf(kind: Kind, request: RequestLike, remote: RequestPeer | null): string | null {
  if (kind === "unknown") return "unproven";
  if (request.socket?.encrypted === true || request.url?.startsWith("https:")) return "tls";
  if (headerOf(request, "host") === null || kind === "node" && request.httpVersion !== "1.1") return "http2";
  return remote === null ? "unix" : null;
}

/** Whether there is nothing left to come of the request's body, as far as its reader can tell. */
function isRead(request: RequestLike): boolean {
  const { method } = request;
  return method === "GET" || method === "HEAD" || request.bodyUsed !== false || isBodiless(request);
}

function isBodiless(request: RequestLike): boolean {
  return headerOf(request, "transfer-encoding") === null && Number(headerOf(request, "content-length") ?? 0) === 0;
}

/** The headers of a request of Deno's that has ended throw, unless they were read before. */
function unlessEnded<T>(ask: () => T, otherwise: T): T {
  try {
    return ask();
  } catch {
    return otherwise;
  }
}

/** The head, and the body. */
function sizeOf(request: RequestLike): number {
  if (!request.method || headerOf(request, "transfer-encoding") !== null) return NaN;
  return headText(request).length + Number(headerOf(request, "content-length") ?? 0);
}
