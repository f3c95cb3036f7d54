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
 * @returns The runtime, for {@linkcode takeOver} and for calling libc directly.
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
  return Promise.resolve().then(open);
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
    // write() says how many bytes it took, and keeps none of the others.
    unsentCount: 0,
    takeUnread: () => new Uint8Array(0),
    unref: () => native.unref(),
    close: () => native.close ? native.close() : native.stop?.(),
  };
}

/** A server on a Unix path tells it in its URL only: `unix:///run/web.sock`. */
function boundAddress({ address, hostname, port, url }: BunNative): SocketAddress | null {
  if (url?.protocol === "unix:") return { family: "unix", path: decodeURIComponent(url.pathname) };
  return socketAddress(address?.address ?? hostname, address?.port ?? port);
}

export type { ControlListener, ControlStream, Runtime, StreamHandlers } from "../src/runtime.ts";
export { TakeoverError } from "../src/errors.ts";
