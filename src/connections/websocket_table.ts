/**
 * The WebSockets of a process, and which descriptors hold them: one walk of
 * the descriptor table for all, in slices.
 *
 * @module
 */

import type { SocketAddress } from "../c/sockaddr.ts";
import type { Runtime } from "../runtime.ts";
import { cameThrough } from "../sockets/address.ts";
import { openDescriptors } from "../sockets/descriptors.ts";
import { cookieOf, isListening, isStream, localAddress, peerAddress } from "../sockets/socket.ts";
import { keyOf } from "./seats.ts";
import type { WebSocketConnection } from "./websocket_connection.ts";

/** An endpoint of the process. */
export interface WebSocketEndpoint {
  readonly name: string;
  readonly address: SocketAddress;
}

/** How long a slice of the walk takes at most, and after how many descriptors the clock is looked at. */
const sliceMs = 2;
const lookedAtOnce = 32;

/** How long it takes until those that were not found are looked for again. */
const walkAgainMs = 200;

/** All WebSockets that may move. */
export class WebSocketTable {
  readonly #runtime: Runtime;
  readonly #endpoints: () => Iterable<WebSocketEndpoint>;
  readonly #all = new Set<WebSocketConnection>();
  readonly #byPeer = new Map<string, WebSocketConnection>();
  readonly #byCookie = new Map<string, WebSocketConnection>();
  /** What is left of the walk, and whom it is for. */
  #walk: number[] = [];
  #wanted: WebSocketConnection[] = [];
  #walkedAt = -Infinity;

  constructor(runtime: Runtime, endpoints: () => Iterable<WebSocketEndpoint>) {
    this.#runtime = runtime;
    this.#endpoints = endpoints;
  }

  /** All of them, in the order of their coming. */
  get all(): ReadonlySet<WebSocketConnection> {
    return this.#all;
  }

  add(connection: WebSocketConnection): void {
    this.#all.add(connection);
    if (connection.cookie !== "") this.#byCookie.set(connection.cookie, connection);
    else if (connection.peer && connection.peer.family !== "unix") this.#byPeer.set(keyOf(connection.peer), connection);
    else if (connection.stays === null) connection.stays = "unix";
  }

  delete(connection: WebSocketConnection): void {
    this.#all.delete(connection);
    const { cookie, peer } = connection;
    if (this.#byCookie.get(cookie) === connection) this.#byCookie.delete(cookie);
    const key = peer && keyOf(peer);
    if (key !== null && this.#byPeer.get(key) === connection) this.#byPeer.delete(key);
  }

  /** Whether a socket of this process is one of these. */
  has(descriptor: number, cookie: string): boolean {
    if (this.#byCookie.has(cookie)) return true;
    if (this.#byPeer.size === 0) return false;
    const peer = peerAddress(this.#runtime, descriptor);
    return peer !== null && this.#byPeer.has(keyOf(peer));
  }

  /** The endpoint of a connection. One that is not found yet counts as the first one's. */
  endpointOf({ endpoint }: WebSocketConnection): string | undefined {
    return endpoint ?? [...this.#endpoints()][0]?.name;
  }

  /** Looks for descriptors that are not known; for a moment. */
  look(): void {
    const now = Date.now();
    if (this.#wanted.length === 0) {
      if (now - this.#walkedAt < walkAgainMs) return;
      this.#wanted = [...this.#all].filter(({ endpoint, stays }) => endpoint === null && stays === null);
      if (this.#wanted.length === 0) return;
      this.#walkedAt = now;
      this.#walk = openDescriptors(this.#runtime);
    }
    const until = now + sliceMs;
    while (this.#walk.length > 0) {
      // Those that came last are most likely what is looked for.
      for (const descriptor of this.#walk.splice(-lookedAtOnce)) this.#identify(descriptor);
      if (Date.now() >= until) return;
    }
    for (const connection of this.#wanted) {
      // One that has come from another process may not be in its place yet.
      if (connection.endpoint === null && connection.cookie === "") connection.stays = "unknown";
    }
    this.#wanted = [];
  }

  #identify(descriptor: number): void {
    const cookie = cookieOf(this.#runtime, descriptor);
    if (cookie === "" || isListening(this.#runtime, descriptor) || !isStream(this.#runtime, descriptor)) return;
    const connection = this.#byCookie.get(cookie) ?? this.#byPeerOf(descriptor);
    if (!connection || connection.endpoint !== null) return;
    const local = localAddress(this.#runtime, descriptor);
    const endpoint = local && [...this.#endpoints()].find(({ address }) => cameThrough(local, address));
    if (!endpoint) return;
    connection.descriptor = descriptor;
    connection.cookie = cookie;
    connection.endpoint = endpoint.name;
    // The kernel does not count what comes over it.
    if (local.family === "unix") connection.stays ??= "unix";
    this.#byCookie.set(cookie, connection);
    if (connection.peer) this.#byPeer.delete(keyOf(connection.peer));
  }

  #byPeerOf(descriptor: number): WebSocketConnection | undefined {
    if (this.#byPeer.size === 0) return undefined;
    const peer = peerAddress(this.#runtime, descriptor);
    return peer ? this.#byPeer.get(keyOf(peer)) : undefined;
  }
}
