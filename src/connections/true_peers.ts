/**
 * Who is at the other end of connections that a server accepted from this
 * process itself: the runtime goes on telling the address of that client.
 *
 * @module
 */

import type { SocketAddress } from "../c/sockaddr.ts";
import type { Runtime } from "../runtime.ts";
import { cookieOf } from "../sockets/socket.ts";
import { keyOf } from "./seats.ts";

/** One connection, as long as its descriptor holds its socket. */
interface Entry {
  readonly peer: SocketAddress;
  readonly descriptor: number;
  readonly cookie: string;
}

/** How many there may be before those that have ended are looked for. */
const leastCount = 256;

/** The true peers of the connections of this process, by what the runtime tells. */
export class TruePeers {
  readonly #runtime: Runtime;
  readonly #entries = new Map<string, Entry>();
  #sweepAt = leastCount;

  constructor(runtime: Runtime) {
    this.#runtime = runtime;
  }

  /** How many are kept in mind; at most twice those that live, and a few hundred. */
  get size(): number {
    return this.#entries.size;
  }

  /** A connection that the runtime knows by that name is with that peer, until it ends. */
  add(name: SocketAddress, peer: SocketAddress, descriptor: number, cookie: string): void {
    this.#entries.set(keyOf(name), { peer, descriptor, cookie });
    if (this.#entries.size < this.#sweepAt) return;
    for (const [key, entry] of this.#entries) if (!this.#isOpen(entry)) this.#entries.delete(key);
    this.#sweepAt = Math.max(leastCount, 2 * this.#entries.size);
  }

  /**
   * The true peer of a connection.
   *
   * @param hostname What the runtime says its peer is.
   * @param port The same.
   * @returns Null when that is true already.
   */
  of(hostname: string | undefined, port: number | undefined): SocketAddress | null {
    if (this.#entries.size === 0 || !hostname || port === undefined) return null;
    return this.#find(keyOf({ family: hostname.includes(":") ? "inet6" : "inet", hostname, port }));
  }

  /** Whether a connection that lives is known by that name. */
  has(name: SocketAddress): boolean {
    return this.#find(keyOf(name)) !== null;
  }

  #find(key: string): SocketAddress | null {
    const entry = this.#entries.get(key);
    if (!entry) return null;
    if (this.#isOpen(entry)) return entry.peer;
    this.#entries.delete(key);
    return null;
  }

  #isOpen({ descriptor, cookie }: Entry): boolean {
    return cookieOf(this.#runtime, descriptor) === cookie;
  }
}

/** What `Deno.serve` passes beside a request, as far as this needs to know. */
interface InfoLike {
  readonly remoteAddr?: { readonly hostname?: string; readonly port?: number };
}

/** What `Bun.serve` gives, as far as this needs to know. */
interface ServerLike {
  requestIP?(request: unknown): { readonly address: string; readonly port: number; readonly family: string } | null;
}

/** Servers that have been corrected, and by what. */
const corrected = new WeakMap<object, TruePeers>();

/** Has what `Deno.serve` passes beside a request name the true peer. */
export function correctInfo(info: unknown, peers: TruePeers): void {
  if (peers.size === 0) return;
  const { remoteAddr } = (info ?? {}) as InfoLike;
  const peer = peers.of(remoteAddr?.hostname, remoteAddr?.port);
  if (!peer || peer.family === "unix") return;
  const { hostname, port } = peer;
  Object.defineProperty(info, "remoteAddr", { value: { transport: "tcp", hostname, port }, configurable: true });
}

/** Has a server of `Bun.serve` name the true peers; anything else is left alone. */
export function correctRequestIP(server: unknown, peers: TruePeers): void {
  const { requestIP } = (server ?? {}) as ServerLike;
  if (typeof requestIP !== "function" || corrected.get(server as object) === peers) return;
  corrected.set(server as object, peers);
  const value = (request: unknown) => {
    const told = requestIP.call(server, request);
    const peer = told && peers.of(told.address, told.port);
    if (!peer || peer.family === "unix") return told;
    return { address: peer.hostname, port: peer.port, family: peer.family === "inet" ? "IPv4" : "IPv6" };
  };
  Object.defineProperty(server, "requestIP", { value, configurable: true });
}
