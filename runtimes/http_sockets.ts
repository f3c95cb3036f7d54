/**
 * Node: where the parsers of `node:http` are. A server keeps a list of its
 * connections' parsers for its own time limits, and `closeIdleConnections`
 * asks it in the same way: those that have begun no message.
 *
 * @module
 */

import net from "node:net";
import process from "node:process";
import type { HttpSocket } from "../src/runtime.ts";

/** The list (lib/_http_server.js, src/node_http_parser.cc: ConnectionsList). */
interface ParserList {
  idle(): readonly Parser[];
  active(): readonly Parser[];
}

interface Parser {
  readonly socket?: Connection;
}

interface Handle {
  readonly fd?: number;
  readonly writeQueueSize?: number;
  reading?: boolean;
  readStop(): unknown;
  readStart(): unknown;
}

type Connection = net.Socket & {
  readonly _handle?: Handle | null;
  /** The response that is being written. */
  readonly _httpMessage?: unknown;
  readonly parser?: unknown;
  readonly encrypted?: boolean;
  readonly server?: net.Server;
};

/** Servers that have been seen; one that nothing keeps alive is no active handle. */
const servers = new Set<WeakRef<net.Server>>();

/** The connections of all HTTP servers, by descriptor. */
export function httpSockets(): ReadonlyMap<number, HttpSocket> {
  findServers();
  const found = new Map<number, HttpSocket>();
  for (const reference of servers) {
    const server = reference.deref();
    if (!server) servers.delete(reference);
    const list = server && listOf(server);
    for (const { socket } of list?.idle() ?? []) add(found, socket, true);
    // Before Node 26 one that has not read anything yet counts as active, because of the time limit for heads.
    for (const { socket } of list?.active() ?? []) add(found, socket, socket?.bytesRead === 0);
  }
  return found;
}

function add(found: Map<number, HttpSocket>, socket: Connection | undefined, isIdle: boolean): void {
  const descriptor = socket?._handle?.fd ?? -1;
  if (descriptor >= 0) found.set(descriptor, new NodeSocket(socket!, isIdle));
}

function findServers(): void {
  const { _getActiveHandles } = process as unknown as { _getActiveHandles?(): readonly unknown[] };
  const known = new Set([...servers].map((reference) => reference.deref()));
  for (const handle of _getActiveHandles?.call(process) ?? []) {
    const server = handle instanceof net.Server ? handle : (handle as Connection | null)?.server;
    if (!server || known.has(server) || !listOf(server)) continue;
    known.add(server);
    servers.add(new WeakRef(server));
  }
}

function listOf(server: net.Server): ParserList | undefined {
  const isList = ({ description }: symbol) => description === "http.server.connections";
  const symbol = Object.getOwnPropertySymbols(server).find(isList);
  return symbol && (server as unknown as Record<symbol, ParserList | undefined>)[symbol];
}

class NodeSocket implements HttpSocket {
  readonly #socket: Connection;
  readonly #parser: unknown;
  /** Whether it had begun no message when the parser was asked. */
  readonly #isIdle: boolean;
  /** What had been read by then. */
  readonly #readSize: number;

  constructor(socket: Connection, isIdle: boolean) {
    this.#socket = socket;
    this.#isIdle = isIdle;
    this.#parser = socket.parser;
    this.#readSize = socket.bytesRead;
  }

  get isBetween(): boolean {
    const socket = this.#socket;
    const isUnchanged = socket.parser === this.#parser && socket.bytesRead === this.#readSize;
    // After the last answer of a connection the server has ended its writing, a turn before the kernel hears of it.
    return this.#isIdle && isUnchanged && this.isWritten && !socket._httpMessage && socket.readableLength === 0 &&
      socket.writable;
  }

  get isWritten(): boolean {
    const { writableLength, _handle } = this.#socket;
    return writableLength === 0 && (_handle?.writeQueueSize ?? 1) === 0;
  }

  get isEncrypted(): boolean {
    return this.#socket.encrypted === true;
  }

  pause(): () => void {
    const socket = this.#socket;
    const handle = socket._handle!;
    const { timeout = 0 } = socket;
    handle.readStop();
    socket.setTimeout(0);
    return () => {
      if (socket.destroyed || socket._handle !== handle) return;
      socket.setTimeout(timeout);
      handle.readStart();
    };
  }

  destroy(): void {
    this.#socket.destroy();
  }
}
