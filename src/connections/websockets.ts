/**
 * WebSockets that move from one process to the next: what the application
 * says of each, where it finds its state again, and what of the upgrade both
 * processes have to know.
 *
 * @module
 */

import { toHex } from "../c/bytes.ts";
import type { SocketAddress } from "../c/sockaddr.ts";
import { TakeoverError } from "../errors.ts";
import type { Runtime } from "../runtime.ts";
import { canPause } from "../sockets/event_loop.ts";
import { cookieOf } from "../sockets/socket.ts";
import type { Arrival, Json, Source } from "./movable.ts";
import {
  checkAnswer,
  encodeRequest,
  headerOf,
  parseRequest,
  requestLimit,
  sizeOf,
  stateHeader,
  type UpgradeAnswer,
  type UpgradeRequest,
  upgradeRequestOf,
} from "./upgrade_request.ts";
import { type Beginning, WebSocketConnection, type WebSocketOptions } from "./websocket_connection.ts";
import { frameSize } from "./websocket_frames.ts";
import {
  type BunSocket,
  BunWebSocket,
  type Data,
  DenoWebSocket,
  type EmitterSocket,
  type EventSocket,
  messageSize,
  WsWebSocket,
} from "./websocket_natives.ts";
import { WebSocketSource } from "./websocket_source.ts";
import { type WebSocketEndpoint, WebSocketTable } from "./websocket_table.ts";

/** What the WebSockets of a process need to know of it. */
export interface WebSocketsOptions {
  /** All endpoints of the process. */
  readonly endpoints: () => Iterable<WebSocketEndpoint>;
  /** Is told what the application has thrown. */
  failed(error: unknown): void;
  /** How long a client has to answer a ping, in milliseconds; 1,000. */
  readonly answerMs?: number;
  /** How long nothing but its answer may have come, in milliseconds, unless the next frame has begun; 3,000. */
  readonly restMs?: number;
}

/** What `Deno.serve` passes beside a request. */
interface DenoInfo {
  readonly remoteAddr: { readonly hostname?: string; readonly port?: number };
}

/** What `Bun.serve` passes beside a request. */
interface BunServer {
  requestIP(request: unknown): { readonly address: string; readonly port: number } | null;
  upgrade(request: unknown, options?: unknown): boolean;
}

/** Node's `IncomingMessage`, as far as it is used. */
interface NodeRequest {
  readonly socket: {
    readonly remoteAddress?: string;
    readonly remotePort?: number;
    readonly bytesRead: number;
    readonly readableLength: number;
    readonly encrypted?: boolean;
  };
}

/** What is passed to Bun's `server.upgrade`. */
export interface BunUpgradeOptions {
  /** What `socket.data` becomes. */
  readonly data?: unknown;
  /** Headers of the answer, as `Headers` can be made of. */
  readonly headers?: unknown;
}

/** Handlers as `Bun.serve` takes them, and those that are called when a socket moves. */
export interface BunHandlers {
  /** A socket is there: a new client's, or one that came from another process. */
  // deno-lint-ignore no-explicit-any
  open?(socket: any): unknown;
  /** A message came. */
  // deno-lint-ignore no-explicit-any
  message(socket: any, message: any): unknown;
  /** The client has gone, or was sent away; not called for a socket that has moved. */
  // deno-lint-ignore no-explicit-any
  close?(socket: any, code: number, reason: string): unknown;
  /** A ping came. */
  // deno-lint-ignore no-explicit-any
  ping?(socket: any, data: any): unknown;
  /** A pong came. */
  // deno-lint-ignore no-explicit-any
  pong?(socket: any, data: any): unknown;
  /** Bun's own: whether messages may be compressed. A compressed socket stays. */
  readonly perMessageDeflate?: unknown;
  /** As {@linkcode WebSocketOptions}; a socket without it stays. */
  // deno-lint-ignore no-explicit-any
  leave?(socket: any): Json | undefined;
  /** As {@linkcode WebSocketOptions}. */
  // deno-lint-ignore no-explicit-any
  left?(socket: any): void;
  /** As {@linkcode WebSocketOptions}. */
  // deno-lint-ignore no-explicit-any
  stayed?(socket: any): void;
}

/** A WebSocket that came from another process and whose request is being made once more. */
interface Expected {
  readonly state: Json;
  readonly cookie: string;
  readonly peer: SocketAddress | null;
  readonly readSize: number;
}

/** How many requests may be under way that are made once more. */
const expectedLimit = 1_024;

const defaultAnswerMs = 1_000;
const defaultRestMs = 3_000;

/**
 * A request that becomes a WebSocket. Made before the upgrade: afterwards
 * Deno's requests tell nothing any more.
 */
export interface Opening {
  /** What `leave` gave in the process that the socket comes from; null for a new client. */
  readonly state: Json;
  /** Whether it comes from another process. */
  readonly isMoved: boolean;
  /**
   * Lets the socket move. Called before the application listens to it itself.
   *
   * @param socket What `Deno.upgradeWebSocket` gave, or a `WebSocket` of the
   *   package ws.
   */
  track<S extends Json>(socket: unknown, options: WebSocketOptions<S>): void;
  /**
   * `server.upgrade(request, options)` of Bun, whose handlers let the socket move.
   *
   * @returns Whether it became a WebSocket.
   */
  upgrade(options?: BunUpgradeOptions): boolean;
}

/** The WebSockets of a process, as the application lets them move. */
export interface MovableWebSockets {
  /** How many there are. */
  readonly size: number;
  /**
   * Reads a request that is about to become a WebSocket.
   *
   * @param request Deno's or Bun's `Request`, or Node's `IncomingMessage`.
   * @param beside What the handler got beside it: Deno's info, Bun's server;
   *   nothing on Node.
   */
  opening(request: unknown, beside?: unknown): Opening;
  /**
   * Handlers for `Bun.serve` that count what comes. The application's own are
   * called as before, `close` not for a socket that has moved.
   */
  handlers<H extends BunHandlers>(own: H): H;
}

/** The WebSockets of a process that may move. */
export class WebSockets implements MovableWebSockets {
  readonly #runtime: Runtime;
  readonly #options: WebSocketsOptions;
  readonly #table: WebSocketTable;
  readonly #expected = new Map<string, Expected>();
  /** What Bun's `open` is called for. */
  #upgrading: { readonly beginning: Beginning; readonly protocol: string } | null = null;
  readonly #bun = new WeakMap<object, { readonly native: BunWebSocket; readonly connection: WebSocketConnection }>();
  #bunCount = 0;

  constructor(runtime: Runtime, options: WebSocketsOptions) {
    this.#runtime = runtime;
    this.#options = options;
    this.#table = new WebSocketTable(runtime, options.endpoints);
  }

  /** How many there are. */
  get size(): number {
    return this.#table.all.size;
  }

  /** How many of them are Bun's own, which counts them as requests. */
  get bunCount(): number {
    return this.#bunCount;
  }

  /** Whether a socket of this process is one of them. */
  has(descriptor: number, cookie: string): boolean {
    return this.#table.has(descriptor, cookie);
  }

  /**
   * Reads a request that is about to become a WebSocket, before it does.
   *
   * @param request Deno's or Bun's `Request`, or Node's `IncomingMessage`.
   * @param beside What the handler got beside it: Deno's info, Bun's server;
   *   nothing on Node.
   *
   * @example
   * ```ts ignore
   * const sockets = new WebSocketServer({ server });
   * sockets.on("connection", (socket, request) => {
   *   const opening = takeover.webSockets.opening(request);
   *   let count = (opening.state ?? 0) as number;
   *   opening.track(socket, { leave: () => count });
   *   socket.on("message", () => socket.send(`${++count}`));
   * });
   * ```
   */
  opening(request: unknown, beside?: unknown): Opening {
    const all = upgradeRequestOf(request);
    const token = headerOf(all, stateHeader);
    const expected = token === null ? undefined : this.#expected.get(token);
    if (expected) this.#expected.delete(token!);
    const headers = all.headers.filter(([name]) => name.toLowerCase() !== stateHeader);
    const beginning = expected
      ? this.#moved({ target: all.target, headers }, expected)
      : this.#fresh(all, headers, request, beside);
    return {
      state: expected?.state ?? null,
      isMoved: expected !== undefined,
      track: (socket, options) => this.#track(beginning, request, socket, options as WebSocketOptions),
      upgrade: (options) => this.#upgradeBun(beside as BunServer, request, options, beginning),
    };
  }

  /**
   * Handlers for `Bun.serve` that count what comes. The application's own are
   * called as before, `close` not for a socket that has moved.
   *
   * @param own What `Bun.serve` takes as `websocket`; beside it `leave`, and
   *   perhaps `left` and `stayed`.
   *
   * @example
   * ```ts ignore
   * const websocket = takeover.webSockets.handlers({
   *   message: (socket, text) => socket.send(`${++socket.data.count}`),
   *   leave: (socket) => socket.data.count,
   * });
   * const fetch = (request, server) => {
   *   const opening = takeover.webSockets.opening(request, server);
   *   return opening.upgrade({ data: { count: opening.state ?? 0 } }) ? undefined : new Response("no");
   * };
   * ```
   */
  handlers<H extends BunHandlers>(own: H): H {
    const count = (socket: object, size: number) => {
      const native = this.#bun.get(socket)?.native;
      if (native) native.toldSize += size;
    };
    return {
      ...own,
      open: (socket: BunSocket) => {
        this.#openBun(socket, own);
        return own.open?.(socket);
      },
      message: (socket: object, message: Data) => {
        count(socket, messageSize(message));
        return own.message(socket, message);
      },
      ping: (socket: object, data: { readonly byteLength: number }) => {
        count(socket, frameSize(data.byteLength));
        return own.ping?.(socket, data);
      },
      pong: (socket: object, data: { readonly byteLength: number }) => {
        count(socket, frameSize(data.byteLength));
        return own.pong?.(socket, data);
      },
      close: (socket: object, code: number, reason: string) => {
        const entry = this.#bun.get(socket);
        if (entry) {
          this.#bunCount--;
          this.#table.delete(entry.connection);
          if (entry.native.isMuted) return;
        }
        return own.close?.(socket, code, reason);
      },
    };
  }

  /** Those of an endpoint, to be moved. */
  source(endpoint: string): Source {
    const { failed, answerMs = defaultAnswerMs, restMs = defaultRestMs } = this.#options;
    return new WebSocketSource(this.#runtime, this.#table, endpoint, { failed, answerMs, restMs });
  }

  /**
   * The request with which a socket that came is upgraded once more. From here
   * on {@linkcode opening} knows it.
   *
   * @throws {TakeoverError} `ERR_TAKEOVER_PROTOCOL` when its state is none.
   */
  requestOf({ state, cookie, peer }: Arrival): Uint8Array {
    const { request: sent, readSize, state: own } = (state ?? {}) as Record<string, Json | undefined>;
    const request = parseRequest(sent);
    if (!request || typeof readSize !== "number" || !Number.isSafeInteger(readSize) || own === undefined) {
      throw new TakeoverError(
        "ERR_TAKEOVER_PROTOCOL",
        "Cannot take a WebSocket: expected its request, what was read and its state, something else came",
      );
    }
    const token = toHex(crypto.getRandomValues(new Uint8Array(16)));
    this.#expected.set(token, { state: own, cookie, peer, readSize });
    const [oldest] = this.#expected.keys();
    if (this.#expected.size > expectedLimit) this.#expected.delete(oldest!);
    return encodeRequest(request, token);
  }

  /** Compares what this process's server has answered with what the client was told. */
  checkHead(head: string, { state }: Arrival): Error | null {
    const { protocol } = (state ?? {}) as Record<string, Json | undefined>;
    return checkAnswer(head, typeof protocol === "string" ? { protocol } : {});
  }

  #moved(request: UpgradeRequest, { cookie, peer, readSize }: Expected): Beginning {
    return { request, peer, cookie, descriptor: -1, baseSize: readSize, stays: this.#platformReason() };
  }

  #fresh(
    all: UpgradeRequest,
    headers: UpgradeRequest["headers"],
    request: unknown,
    beside: unknown,
  ): Beginning {
    const { socket } = request as Partial<NodeRequest>;
    const object = this.#runtime.inspect(socket);
    const descriptor = object?.descriptor ?? -1;
    const isEncrypted = socket?.encrypted === true || /^(https|wss):/i.test((request as { url?: string }).url ?? "");
    const size = sizeOf(all);
    return {
      request: { target: all.target, headers },
      peer: peerOf(request, beside),
      cookie: descriptor < 0 ? "" : cookieOf(this.#runtime, descriptor),
      descriptor,
      baseSize: this.#runtime.name !== "bun" && object ? readBefore(request as NodeRequest) : size,
      stays: this.#platformReason() ?? (isEncrypted ? "tls" : size > requestLimit ? "request" : null),
    };
  }

  #platformReason(): string | null {
    return canPause(this.#runtime) ? null : "platform";
  }

  #track(beginning: Beginning, request: unknown, socket: unknown, options: WebSocketOptions): void {
    const closed = () => this.#table.delete(connection);
    const native = typeof (socket as EmitterSocket).listeners === "function"
      ? new WsWebSocket(this.#runtime, socket as EmitterSocket, (request as NodeRequest).socket, closed)
      : new DenoWebSocket(socket as EventSocket, closed);
    const connection = new WebSocketConnection(this.#runtime, native, options, beginning);
    this.#table.add(connection);
  }

  #upgradeBun(
    server: BunServer,
    request: unknown,
    options: BunUpgradeOptions | undefined,
    beginning: Beginning,
  ): boolean {
    const offered = headerOf(beginning.request, "sec-websocket-protocol") ?? "";
    // Bun says the first one, unless it is told another.
    const protocol = headerIn(options?.headers, "sec-websocket-protocol") ?? offered.split(",")[0]!.trim();
    // `open` is called before `upgrade` returns.
    this.#upgrading = { beginning, protocol };
    try {
      return server.upgrade(request, options);
    } finally {
      this.#upgrading = null;
    }
  }

  #openBun(socket: BunSocket, own: BunHandlers): void {
    const upgrading = this.#upgrading;
    this.#upgrading = null;
    if (!upgrading || !own.leave) return;
    const { beginning, protocol } = upgrading;
    const isCompressed = Boolean(own.perMessageDeflate) &&
      (headerOf(beginning.request, "sec-websocket-extensions") ?? "").includes("permessage-deflate");
    const answer: UpgradeAnswer = { protocol, extensions: isCompressed ? "permessage-deflate" : "" };
    const native = new BunWebSocket(socket, answer);
    const connection = new WebSocketConnection(this.#runtime, native, {
      leave: () => own.leave!(socket),
      left: () => own.left?.(socket),
      stayed: () => own.stayed?.(socket),
    }, beginning);
    this.#bun.set(socket, { native, connection });
    this.#bunCount++;
    this.#table.add(connection);
  }
}

/** A header of what `Headers` can be made of. */
function headerIn(headers: unknown, name: string): string | undefined {
  if (typeof headers !== "object" || headers === null) return undefined;
  const entries = Symbol.iterator in headers
    ? [...headers as Iterable<readonly [string, string]>]
    : Object.entries(headers as Record<string, string>);
  return entries.find(([each]) => each.toLowerCase() === name)?.[1];
}

/** The peer, as the runtime tells it. */
function peerOf(request: unknown, beside: unknown): SocketAddress | null {
  const { remoteAddr } = (beside ?? {}) as Partial<DenoInfo>;
  if (remoteAddr) return addressOf(remoteAddr.hostname, remoteAddr.port);
  if (typeof (beside as Partial<BunServer> | undefined)?.requestIP === "function") {
    const found = (beside as BunServer).requestIP(request);
    return addressOf(found?.address, found?.port);
  }
  const { remoteAddress, remotePort } = (request as Partial<NodeRequest>).socket ?? {};
  return addressOf(remoteAddress, remotePort);
}

function addressOf(hostname: string | undefined, port: number | undefined): SocketAddress | null {
  if (!hostname || port === undefined) return null;
  return { family: hostname.includes(":") ? "inet6" : "inet", hostname, port };
}

/** What has been read of the connection, without what the parser has given back. */
function readBefore({ socket }: NodeRequest): number {
  return socket.bytesRead - socket.readableLength;
}
