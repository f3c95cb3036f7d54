/**
 * Connections for servers of node:http, on all three runtimes: they take any
 * `net.Socket` with the event that they have for those that they accept
 * (Node, http, event "connection").
 *
 * @module
 */

import type { Runtime } from "../runtime.ts";
import type { OwnedDescriptor } from "../sockets/descriptors.ts";
import { keyOf } from "./seats.ts";

/** What a server of node:http is, as far as this needs to know. */
export interface EmittingServer {
  emit(event: "connection", socket: unknown): unknown;
  listenerCount(event: "connection"): number;
  prependListener(event: "connection", listener: (socket: unknown) => void): unknown;
  off(event: "connection", listener: (socket: unknown) => void): unknown;
  /** What `net.Server` counts, and waits for when it closes; not on Bun. */
  _connections?: number;
  readonly noDelay?: boolean;
}

/** What a `net.Socket` is, as far as this needs to know. */
interface SocketLike {
  /** Whose count it belongs to. */
  _server?: unknown;
  unshift(bytes: Uint8Array): void;
  setNoDelay(isOn: boolean): unknown;
  destroy(): unknown;
}

/** Whether a server takes connections in this way. */
export function takesSockets(server: unknown): server is EmittingServer {
  const { emit, listenerCount, listen } = (server ?? {}) as Record<string, unknown>;
  if (typeof emit !== "function" || typeof listenerCount !== "function" || typeof listen !== "function") return false;
  return (server as EmittingServer).listenerCount("connection") > 0;
}

/**
 * Gives a connection to a server.
 *
 * @param descriptor Taken.
 * @param unread What the server reads first.
 */
export function giveSocket(
  runtime: Runtime,
  server: EmittingServer,
  descriptor: OwnedDescriptor,
  unread: Uint8Array,
): void {
  // A client that has ended its side still gets its answer.
  const socket = runtime.openSocket(descriptor.number, { writable: true, allowHalfOpen: true }) as SocketLike;
  descriptor.take();
  if (typeof server._connections === "number") {
    server._connections++;
    socket._server = server;
  }
  if (server.noDelay) socket.setNoDelay(true);
  if (unread.length > 0) socket.unshift(unread);
  server.emit("connection", socket);
}

/**
 * Runs something with the sockets that a server of node:http accepts meanwhile,
 * by what they say of their peers; none of any other server's.
 */
export async function withAccepted<T>(
  runtime: Runtime,
  server: unknown,
  use: (accepted: ReadonlyMap<string, unknown>) => Promise<T>,
): Promise<T> {
  const accepted = new Map<string, unknown>();
  if (!takesSockets(server)) return await use(accepted);
  const listener = (socket: unknown) => {
    const peer = runtime.inspect(socket)?.peer;
    if (peer) accepted.set(keyOf(peer), socket);
  };
  server.prependListener("connection", listener);
  try {
    return await use(accepted);
  } finally {
    server.off("connection", listener);
  }
}
