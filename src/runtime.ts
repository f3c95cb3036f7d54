/**
 * The seam: what a runtime has to bring. libc over bytes, and the few things
 * that only the runtime can do. Types only, so a faked one fits on a page.
 *
 * @module
 */

import type { Abi } from "./c/abi.ts";
import type { Bytes } from "./c/bytes.ts";
import type { Libc } from "./c/libc.ts";
import type { SocketAddress } from "./c/sockaddr.ts";

/** What a connection of the control plane reports. */
export interface StreamHandlers {
  /** Bytes arrived; they are the receiver's to keep. */
  data(bytes: Uint8Array): void;
  /** The connection has ended, for whatever reason. Called once. */
  close(): void;
}

/** A connection of the control plane: an ordinary stream of the runtime. */
export interface ControlStream {
  /** Its descriptor, which stays the runtime's. */
  readonly descriptor: number;
  /** Starts reading. */
  start(handlers: StreamHandlers): void;
  /** Whether the process goes on for this stream alone; at first it does. */
  keepAlive(isNeeded: boolean): void;
  /** Queues bytes. They go out in order; after the end they are dropped. */
  write(bytes: Uint8Array): void;
  /** Closes once everything written has gone out. */
  end(): void;
  /** Closes at once. */
  destroy(): void;
}

/** The control socket as the runtime listens on it. */
export interface ControlListener {
  /** Its descriptor, which stays the runtime's. */
  readonly descriptor: number;
  /** Closes the descriptor. The path stays. */
  close(): void;
}

/** A native object, as far as its runtime tells of it. */
export interface NativeObject {
  /** A server answers requests by itself, and closing it ends its connections. */
  readonly kind: "listener" | "server" | "connection" | "datagram";
  /** Its descriptor; -1 where the runtime keeps it to itself, or has closed it. */
  readonly descriptor: number;
  /** Where it says that it is, or null. */
  readonly local: SocketAddress | null;
  /** Where it says that it is connected to, or null. */
  readonly peer: SocketAddress | null;
  /** Whether it is bound, or connected, and not on its way there. */
  readonly isOpen: boolean;
  /** Whether its bytes are not what the socket carries (TLS). */
  readonly isEncrypted: boolean;
  /** Whether the program reads for itself, so that a read may be waiting when the object is closed. */
  readonly isPulled: boolean;
  /** Whether closing it touches no other copy of its socket: no FIN, and no entry left in the event loop. */
  readonly isClosedAlone: boolean;
  /** Whether it stays open when the other side ends. */
  readonly allowHalfOpen: boolean;
  /** Whether the program has ended its side. */
  readonly hasEnded: boolean;
  /** What the program has written and the kernel has not got; null where that cannot be asked for. */
  readonly unsentCount: number | null;
  /** Takes what was read and not given to the program; null when that cannot be known. */
  takeUnread(): Uint8Array | null;
  /** The same, to be put back or to be dropped with the object; null when there is nothing. */
  readAhead(): ReadAhead | null;
  /** Stops reading; the function that comes back goes on. Null where the runtime has no means of its own. */
  pause(): (() => void) | null;
  /** A copy of its descriptor, which the caller closes: of an object that keeps the number to itself. */
  duplicate?(): number;
  /** Lets the process end without this object being closed. */
  unref(): void;
  /** Closes it, as far as it is not closed. */
  close(): void;
}

/** What a stream has read from its socket and not given to the program. */
export interface ReadAhead {
  /** Everything, as it came over the socket. */
  readonly bytes: Uint8Array;
  /** The program reads it after all. */
  putBack(): void;
}

/** Which directions of a connection are still open, and how it ends. */
export interface SocketDirections {
  /** Whether this side has not ended it. */
  readonly writable: boolean;
  /** Whether this side stays open when the other one ends. */
  readonly allowHalfOpen: boolean;
}

/** A connection of an HTTP server whose parser tells where it is. */
export interface HttpSocket {
  /** Whether it is between two messages, and everything that was written is in the kernel; as of now. */
  readonly isBetween: boolean;
  /** Whether everything that was written is in the kernel; as of now. */
  readonly isWritten: boolean;
  /** Whether its bytes are not what the socket carries (TLS). */
  readonly isEncrypted: boolean;
  /** Stops reading, and every clock; the function that comes back goes on. */
  pause(): () => void;
  /** Closes the descriptor, which this process has perhaps a copy of. */
  destroy(): void;
}

/** One of the three runtimes, as the core sees it. */
export interface Runtime {
  /** Which one. */
  readonly name: "deno" | "bun" | "node";
  /** Its version, for instance `2.9.6`. */
  readonly version: string;
  /** Which FFI libc is bound through, for instance `koffi`. */
  readonly ffi: string;
  /** Its platform's C structs and constants. */
  readonly abi: Abi;
  /** The C functions. */
  readonly libc: Libc;
  /** The address of a buffer made by `allocate`. */
  addressOf(bytes: Bytes): bigint;
  /** Hands a connected Unix descriptor to the runtime, which owns it from then on. */
  adoptStream(descriptor: number): ControlStream;
  /** Makes a `net.Socket` of a connection, which the runtime owns from then on. It reads when somebody listens. */
  openSocket(descriptor: number, directions: SocketDirections): unknown;
  /** Hands a listening Unix descriptor to the runtime, which owns it from then on. */
  adoptListener(descriptor: number, accept: (stream: ControlStream) => void): Promise<ControlListener>;
  /** An environment variable, or undefined when there is none. */
  env(name: string): string | undefined;
  /** Takes an environment variable away from this process and its children. */
  unsetEnv(name: string): void;
  /** The numeric addresses of a host name. */
  lookup(hostname: string): Promise<readonly string[]>;
  /** Makes a native object report the addresses that it really has, where it can be told. */
  present(native: unknown, address: SocketAddress, peer?: SocketAddress | null): void;
  /** What a native object of this runtime says of itself; null for anything else. */
  inspect(native: unknown): NativeObject | null;
  /** The connections of all HTTP servers, by descriptor; where the runtime tells what their parsers know. */
  httpSockets?(): ReadonlyMap<number, HttpSocket>;
  /** What the program may do, by the name of the permission, without asking the user; only Deno has permissions. */
  permissions?(): Readonly<Record<string, "granted" | "prompt" | "denied">>;
  /** What this runtime's own servers understand beside an address. */
  readonly listenExtras: (address: SocketAddress) => Record<string, unknown>;
}
