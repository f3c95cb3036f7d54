/**
 * One WebSocket, and what the kernel and its runtime say of it: whether what
 * has been read of it ends with a whole message.
 *
 * Everything that the process has read, and the kernel counts, is the request,
 * which is known, and what the application was told. When the one is the sum of
 * the others, nothing is half-way.
 *
 * @module
 */

import type { SocketAddress } from "../c/sockaddr.ts";
import type { Runtime } from "../runtime.ts";
import type { Registration } from "../sockets/event_loop.ts";
import { unreadSize } from "../sockets/queues.ts";
import { cookieOf } from "../sockets/socket.ts";
import { tcpInfoOf } from "../sockets/tcp_state.ts";
import type { Json } from "./movable.ts";
import type { UpgradeRequest } from "./upgrade_request.ts";
import type { NativeWebSocket } from "./websocket_natives.ts";

/** What the application does when a WebSocket moves. */
export interface WebSocketOptions<S extends Json = Json> {
  /**
   * The socket is about to move: nothing more is read. Sends nothing.
   *
   * @returns What the next process is to know of it; undefined when it cannot
   *   go now. It is asked again then.
   */
  leave(): S | undefined;
  /** It has moved. Its `close` is not told, because the client has not gone. */
  left?(): void;
  /** It stays after all, and is read on. */
  stayed?(): void;
}

/** What is known of one when it begins. */
export interface Beginning {
  readonly request: UpgradeRequest;
  /** The true one; null where the runtime tells none. */
  readonly peer: SocketAddress | null;
  /** Its `SO_COOKIE`, where that is known; else empty. */
  readonly cookie: string;
  /** Its descriptor, where that is known; else -1. */
  readonly descriptor: number;
  /** What the process has read of the connection before the first frame; null when that is not known. */
  readonly baseSize: number | null;
  /** Why it cannot move; null when nothing is known against it. */
  readonly stays: string | null;
}

/** A WebSocket of this process. */
export class WebSocketConnection {
  readonly #runtime: Runtime;
  readonly native: NativeWebSocket;
  readonly options: WebSocketOptions;
  readonly request: UpgradeRequest;
  readonly peer: SocketAddress | null;
  descriptor: number;
  cookie: string;
  baseSize: number | null;
  stays: string | null;
  /** The name of its endpoint; null until its descriptor is known. */
  endpoint: string | null = null;
  registration: Registration | null = null;

  constructor(runtime: Runtime, native: NativeWebSocket, options: WebSocketOptions, beginning: Beginning) {
    this.#runtime = runtime;
    this.native = native;
    this.options = options;
    this.request = beginning.request;
    this.peer = beginning.peer;
    this.cookie = beginning.cookie;
    this.descriptor = beginning.descriptor;
    this.baseSize = beginning.baseSize;
    this.stays = beginning.stays;
  }

  /** Whether the descriptor is still the socket's. */
  get isHeld(): boolean {
    return this.descriptor >= 0 && this.cookie !== "" && cookieOf(this.#runtime, this.descriptor) === this.cookie;
  }

  /** Its descriptor is another one by now. */
  forgetDescriptor(): void {
    this.descriptor = -1;
    this.endpoint = null;
    this.registration = null;
  }

  /** Whether it could go, but for what the client has sent of the next message. */
  get isQuiet(): boolean {
    return this.native.isOpen && this.native.unsentCount === 0;
  }

  /** How much of the connection the process has read; null while that changes, or when the connection ends. */
  get readSize(): number | null {
    const before = tcpInfoOf(this.#runtime, this.descriptor);
    if (before?.state !== "TCP_ESTABLISHED") return null;
    const unread = unreadSize(this.#runtime, this.descriptor);
    const after = tcpInfoOf(this.#runtime, this.descriptor);
    return after?.receivedSize === before.receivedSize ? before.receivedSize - unread : null;
  }

  /** More was told than can have come: then the client wrote its request in another way. */
  doubt(readSize: number): void {
    const { baseSize, native: { toldSize } } = this;
    if (baseSize !== null && toldSize !== null && readSize < baseSize + toldSize) this.baseSize = null;
  }

  /** Whether everything that was read has been told, and nothing of the next message has been read. */
  get isBetween(): boolean {
    const { baseSize, native: { toldSize } } = this;
    return baseSize !== null && toldSize !== null && this.readSize === baseSize + toldSize;
  }
}
