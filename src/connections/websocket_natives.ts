/**
 * The WebSockets of the runtimes, in the same words: how many bytes the
 * application has been told of, what it has written, how one is stopped.
 *
 * @module
 */

import type { NativeObject, Runtime } from "../runtime.ts";
import type { UpgradeAnswer } from "./upgrade_request.ts";
import { FrameScanner, frameSize, utf8Size } from "./websocket_frames.ts";

/** A WebSocket of a runtime. */
export interface NativeWebSocket {
  /** Whether neither side has begun to close. */
  readonly isOpen: boolean;
  /** Bytes that were written and are not in the kernel. */
  readonly unsentCount: number;
  /**
   * Bytes of everything that the client has sent and the application was told
   * of, each message a frame; null when something is certainly half-way.
   */
  readonly toldSize: number | null;
  /** What the client was told when it was made; undefined of what is not known. */
  readonly answer: Partial<UpgradeAnswer>;
  /** Stops reading; the function that comes back goes on. Null where that is left to the event loop. */
  pause(): (() => void) | null;
  /** Before its end, of which the application is not to hear. */
  mute(): void;
  /** Closes it, once a dead socket is in its place; null where it closes when it reads the end. */
  close: (() => void) | null;
}

/** `WebSocket.OPEN` (WHATWG, WebSockets). */
const open = 1;

/** What the application is told of: texts, views, buffers, blobs, and lists of buffers. */
export type Data = string | { readonly byteLength: number } | { readonly size: number } | readonly Uint8Array[];

/** How many bytes the frame of a message has. */
export function messageSize(data: Data): number {
  if (typeof data === "string") return frameSize(utf8Size(data));
  if (Array.isArray(data)) return frameSize(data.reduce((size, { length }) => size + length, 0));
  return frameSize("byteLength" in data ? data.byteLength : (data as { size: number }).size);
}

/** Deno's `WebSocket` of a server, as far as it is used. */
export interface EventSocket {
  readonly readyState: number;
  readonly bufferedAmount: number;
  readonly protocol: string;
  readonly extensions: string;
  addEventListener(type: string, listener: (event: SocketEvent) => void, options: { capture: boolean }): void;
}

interface SocketEvent {
  readonly data?: Data;
  stopImmediatePropagation(): void;
}

/** A socket of `Deno.upgradeWebSocket`. Pings and pongs are answered where nobody hears of them. */
export class DenoWebSocket implements NativeWebSocket {
  readonly #socket: EventSocket;
  readonly close = null;
  #isMuted = false;
  toldSize = 0;

  constructor(socket: EventSocket, closed: () => void) {
    this.#socket = socket;
    socket.addEventListener("close", closed, { capture: true });
    socket.addEventListener("message", ({ data }) => void (this.toldSize += messageSize(data!)), { capture: true });
    for (const type of ["close", "error"]) {
      // Those that capture come first (DOM, dispatch).
      const silence = (event: SocketEvent) => void (this.#isMuted && event.stopImmediatePropagation());
      socket.addEventListener(type, silence, { capture: true });
    }
  }

  get isOpen(): boolean {
    return this.#socket.readyState === open;
  }

  get unsentCount(): number {
    return this.#socket.bufferedAmount;
  }

  get answer(): UpgradeAnswer {
    const { protocol, extensions } = this.#socket;
    return { protocol, extensions };
  }

  pause(): null {
    return null;
  }

  mute(): void {
    this.#isMuted = true;
  }
}

/** Bun's `ServerWebSocket`, as far as it is used. */
export interface BunSocket {
  readonly readyState: number;
  getBufferedAmount(): number;
  pause?(): void;
  resume?(): void;
  terminate(): void;
}

/** A socket of `Bun.serve`, whose handlers count. */
export class BunWebSocket implements NativeWebSocket {
  readonly #socket: BunSocket;
  readonly answer: Partial<UpgradeAnswer>;
  readonly close: () => void;
  toldSize = 0;
  /** Whether `close` means that it has moved. */
  isMuted = false;

  constructor(socket: BunSocket, answer: Partial<UpgradeAnswer>) {
    this.#socket = socket;
    this.answer = answer;
    this.close = () => socket.terminate();
  }

  get isOpen(): boolean {
    return this.#socket.readyState === open;
  }

  get unsentCount(): number {
    return this.#socket.getBufferedAmount();
  }

  pause(): (() => void) | null {
    const socket = this.#socket;
    if (!socket.pause || !socket.resume) return null;
    socket.pause();
    return () => socket.resume!();
  }

  mute(): void {
    this.isMuted = true;
  }
}

/** A `WebSocket` of the package ws, as far as it is used. */
export interface EmitterSocket {
  readonly readyState: number;
  readonly bufferedAmount: number;
  readonly protocol: string;
  readonly extensions: string;
  // deno-lint-ignore no-explicit-any
  on(type: string, listener: (...args: any[]) => void): unknown;
  off(type: string, listener: unknown): unknown;
  listeners(type: string): readonly unknown[];
}

/** The `net.Socket` under it. */
interface NetSocket {
  readonly readableLength: number;
  on(type: "data", listener: (bytes: Uint8Array) => void): unknown;
}

/**
 * A socket of the package ws. Its bytes pass through a `net.Socket`, where they
 * are looked at; on Bun, which has a ws of its own, the events are counted.
 */
export class WsWebSocket implements NativeWebSocket {
  readonly #runtime: Runtime;
  readonly #socket: EmitterSocket;
  readonly #net: NetSocket;
  readonly #scanner: FrameScanner | null;
  readonly #listeners: ReadonlyMap<string, ReadonlySet<unknown>>;
  readonly close: (() => void) | null;
  #eventCount = 0;
  #eventSize = 0;

  constructor(runtime: Runtime, socket: EmitterSocket, net: unknown, closed: () => void) {
    this.#runtime = runtime;
    this.#socket = socket;
    this.#net = net as NetSocket;
    socket.on("close", closed);
    this.#listeners = new Map(["close", "error"].map((type) => [type, new Set(socket.listeners(type))]));
    for (const type of ["message", "ping", "pong"]) {
      socket.on(type, (data: Data) => {
        this.#eventCount++;
        this.#eventSize += this.#scanner ? 0 : messageSize(data);
      });
    }
    this.#scanner = runtime.name === "bun" ? null : new FrameScanner();
    const scanner = this.#scanner;
    if (scanner) this.#net.on("data", (bytes) => scanner.push(bytes));
    this.close = scanner ? () => this.#object?.close() : null;
  }

  get #object(): NativeObject | null {
    return this.#scanner && this.#runtime.inspect(this.#net);
  }

  get isOpen(): boolean {
    return this.#socket.readyState === open;
  }

  get unsentCount(): number {
    return this.#socket.bufferedAmount + (this.#object?.unsentCount ?? 0);
  }

  get toldSize(): number | null {
    if (!this.#scanner) return this.#eventSize;
    const { isBetween, count, size } = this.#scanner;
    return isBetween && count === this.#eventCount && this.#net.readableLength === 0 ? size : null;
  }

  get answer(): UpgradeAnswer {
    const { protocol, extensions } = this.#socket;
    return { protocol, extensions };
  }

  pause(): (() => void) | null {
    return this.#object?.pause() ?? null;
  }

  /** Those that were there first are the server's own. */
  mute(): void {
    for (const [type, first] of this.#listeners) {
      for (const listener of this.#socket.listeners(type)) if (!first.has(listener)) this.#socket.off(type, listener);
    }
    // One without a listener is thrown.
    this.#socket.on("error", () => {});
  }
}
