/**
 * Bun: libc through `bun:ffi`.
 *
 * @module
 */

import { createRequire } from "node:module";
import net from "node:net";
import process from "node:process";
import { abiOf } from "../src/c/abi.ts";
import { bindTable, type CType, declarations, loadFirst, type RawFunction } from "../src/c/libc.ts";
import type { NativeObject, Runtime } from "../src/runtime.ts";
import type { SocketAddress } from "../src/c/sockaddr.ts";
import { adoptDatagram, adoptListener, adoptNumber, type DatagramOpening } from "../src/natives/adopt.ts";
import type { TcpOpening } from "../src/sockets/address.ts";
import type { Descriptor } from "../src/sockets/descriptors.ts";
import { env, inspect, listenOn, lookup, present, socketAddress, streamOf, unsetEnv } from "./net.ts";

/** The part of `bun:ffi` that is used, so that this file checks anywhere. */
interface BunFfi {
  dlopen(path: string, symbols: Record<string, unknown>): { symbols: Record<string, RawFunction> };
  ptr(bytes: Uint8Array): number;
  readonly read: { i32(pointer: number, offset: number): number };
}

/** The part of Bun's own sockets and servers that is used. */
interface BunNative {
  readonly fd?: number;
  readonly address?: { readonly address: string; readonly port: number };
  readonly hostname?: string;
  readonly port?: number;
  readonly url?: URL;
  readonly localAddress?: string;
  readonly localPort?: number;
  readonly remoteAddress?: string;
  readonly remotePort?: number;
  readonly readyState?: number;
  unref(): void;
  close?(): void;
  stop?(): void;
  pause?(): void;
  resume?(): void;
}

/** The C types in Bun's words: `i64_fast` gives a number where it fits one. */
const types: Record<CType, string> = {
  int: "i32",
  unsigned: "u32",
  size_t: "u64_fast",
  ssize_t: "i64_fast",
  bytes: "ptr",
};

/**
 * Binds libc on Bun.
 *
 * @returns The runtime, with libc as functions over numbers and bytes.
 * @throws {TakeoverError} `ERR_TAKEOVER_UNSUPPORTED` on a platform that is not
 *   known, or when libc cannot be loaded.
 *
 * @example
 * ```ts ignore
 * import { openRuntime } from "socket-takeover/bun";
 *
 * const { libc } = await openRuntime();
 * console.log(libc.getpid());
 * ```
 */
export function openRuntime(): Promise<Runtime> {
  return Promise.resolve().then(open).then((opened) => last = opened);
}

let last: Runtime | null = null;

/** The runtime that was opened last, or a new one. */
function current(): Runtime {
  return last ??= open();
}

/** What `Bun.connect` and `Bun.listen` are given; of these they look at the descriptor alone. */
export interface DescriptorOpening {
  /** The descriptor. */
  readonly fd: number;
  /** What their types want beside it: where the socket is bound. */
  readonly hostname: string;
  /** The same. */
  readonly port: number;
}

/**
 * Makes a listener of a listening socket, with `Bun.listen({ fd })`. Bun's
 * types are not known outside Bun, so the callback says what it opens, and
 * exactly that comes back.
 *
 * @param descriptor A listening TCP or Unix socket, taken on success; a number
 *   or an owned descriptor.
 * @param open Passes on what it is given.
 * @throws {TakeoverError} As `adoptListener` of the main entry.
 *
 * @example
 * ```ts ignore
 * const listener = await listenerFrom(descriptor, (at) => Bun.listen({ ...at, socket: { data(socket, bytes) {} } }));
 * ```
 */
export async function listenerFrom<T>(descriptor: Descriptor, open: (at: DescriptorOpening) => T): Promise<Awaited<T>> {
  return await adoptNumber(current(), descriptor, "listener", (fd, { local }) => open(openingOf(fd, local)));
}

/**
 * Makes a server of a listening socket. `Bun.serve` ignores descriptors, so the
 * socket is put under a server that it opened.
 *
 * @param descriptor A listening TCP or Unix socket, taken on success; a number
 *   or an owned descriptor.
 * @param open Passes on what it is given; the server comes back with its exact type.
 * @throws {TakeoverError} As `adoptListener` of the main entry.
 *
 * @example
 * ```ts ignore
 * const server = await serverFrom(descriptor, (at) => Bun.serve({ ...at, fetch: () => new Response("hello") }));
 * ```
 */
export async function serverFrom<T>(descriptor: Descriptor, open: (at: TcpOpening) => T): Promise<Awaited<T>> {
  return await adoptListener(current(), descriptor, open);
}

/**
 * Makes a socket of a connection, with `Bun.connect({ fd })`.
 *
 * @param descriptor A connected TCP or Unix stream, taken on success; a number
 *   or an owned descriptor.
 * @param open Passes on what it is given; the socket comes back with its exact type.
 * @throws {TakeoverError} As `adoptConnection` of the main entry.
 *
 * @example
 * ```ts ignore
 * const socket = await connectionFrom(descriptor, (at) => Bun.connect({ ...at, socket: { data(socket, bytes) {} } }));
 * ```
 */
export async function connectionFrom<T>(
  descriptor: Descriptor,
  open: (at: DescriptorOpening) => T,
): Promise<Awaited<T>> {
  return await adoptNumber(current(), descriptor, "connection", (fd, { local }) => open(openingOf(fd, local)));
}

/**
 * Makes a socket of a UDP socket. `Bun.udpSocket` ignores descriptors, so it is
 * put under a socket that it opened.
 *
 * @param descriptor A UDP socket, taken on success; a number or an owned descriptor.
 * @param open Passes on what it is given; the socket comes back with its exact type.
 * @throws {TakeoverError} As `adoptDatagram` of the main entry.
 *
 * @example
 * ```ts ignore
 * const socket = await datagramFrom(descriptor, (at) => Bun.udpSocket({ ...at, socket: { data(socket, bytes) {} } }));
 * ```
 */
export async function datagramFrom<T>(descriptor: Descriptor, open: (at: DatagramOpening) => T): Promise<Awaited<T>> {
  return await adoptDatagram(current(), descriptor, open);
}

function openingOf(fd: number, local: SocketAddress): DescriptorOpening {
  return local.family === "unix" ? { fd, hostname: "", port: 0 } : { fd, hostname: local.hostname, port: local.port };
}

function open(): Runtime {
  // Required, not imported: other runtimes and bundlers know no such module.
  const ffi = createRequire(import.meta.url)("bun:ffi") as BunFfi;
  const abi = abiOf(process.platform, process.arch);
  const declared: Record<string, unknown> = { [abi.errnoLocation]: { args: [], returns: "ptr" } };
  for (const [name, { parameters, result }] of Object.entries(declarations(abi, types))) {
    declared[name] = { args: parameters, returns: result };
  }
  const library = loadFirst(abi, (path) => ffi.dlopen(path, declared).symbols);
  // errno has one address for the life of a thread, and JavaScript stays on its own.
  const errno = library[abi.errnoLocation]!() as number;
  return {
    name: "bun",
    version: (process.versions as Record<string, string>).bun!,
    ffi: "bun:ffi",
    abi,
    libc: bindTable(abi, library, () => ffi.read.i32(errno, 0)),
    addressOf: (bytes) => BigInt(ffi.ptr(bytes)),
    // `new net.Socket({ fd })` makes a dead socket on Bun; connecting with a
    // descriptor takes it over.
    adoptStream: (descriptor) => streamOf(net.connect({ fd: descriptor } as unknown as net.NetConnectOpts)),
    openSocket: (descriptor, { allowHalfOpen }) =>
      net.connect({ fd: descriptor, allowHalfOpen } as unknown as net.NetConnectOpts),
    adoptListener: listenOn,
    env,
    unsetEnv,
    lookup,
    present,
    inspect: (native) => inspectBun(native) ?? inspect(native),
    listenExtras: () => ({}),
  };
}

/** What Bun's own objects are; each has methods that no other has. */
function inspectBun(native: unknown): NativeObject | null {
  if (typeof native !== "object" || native === null || !("unref" in native)) return null;
  const kind = "terminate" in native && "fd" in native
    ? "connection"
    : "sendMany" in native
    ? "datagram"
    : "stop" in native && "reload" in native
    ? "fetch" in native ? "server" : "listener"
    : null;
  return kind && describeBun(native as BunNative, kind);
}

function describeBun(native: BunNative, kind: NativeObject["kind"]): NativeObject {
  const isConnection = kind === "connection";
  return {
    kind,
    descriptor: native.fd ?? -1,
    local: isConnection ? socketAddress(native.localAddress, native.localPort) : boundAddress(native),
    peer: isConnection ? socketAddress(native.remoteAddress, native.remotePort) : null,
    isOpen: !isConnection || native.readyState === 1,
    isEncrypted: Object.prototype.toString.call(native) === "[object TLSSocket]",
    isPulled: false,
    isClosedAlone: isConnection,
    allowHalfOpen: false,
    hasEnded: false,
    // write() says how many bytes it took, and keeps none of the others.
    unsentCount: 0,
    takeUnread: () => new Uint8Array(0),
    readAhead: () => null,
    pause: () => isConnection && native.pause ? pauseBun(native) : null,
    unref: () => native.unref(),
    close: () => native.close ? native.close() : native.stop?.(),
  };
}

/** A pause of the program's own ends with it: Bun does not tell. */
function pauseBun(native: BunNative): () => void {
  native.pause!();
  return () => native.resume!();
}

/** A server on a Unix path tells it in its URL only: `unix:///run/web.sock`. */
function boundAddress({ address, hostname, port, url }: BunNative): SocketAddress | null {
  if (url?.protocol === "unix:") return { family: "unix", path: decodeURIComponent(url.pathname) };
  return socketAddress(address?.address ?? hostname, address?.port ?? port);
}

export type { DatagramOpening } from "../src/natives/adopt.ts";
export type { TcpOpening } from "../src/sockets/address.ts";
export { OwnedDescriptor } from "../src/sockets/descriptors.ts";
export type { Descriptor } from "../src/sockets/descriptors.ts";
export type {
  ControlListener,
  ControlStream,
  HttpSocket,
  NativeObject,
  ReadAhead,
  Runtime,
  SocketDirections,
  StreamHandlers,
} from "../src/runtime.ts";
export { TakeoverError } from "../src/errors.ts";
