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
import type { Runtime } from "../src/runtime.ts";
import { env, listenOn, lookup, present, streamOf, unsetEnv } from "./net.ts";

/** The part of `bun:ffi` that is used, so that this file checks anywhere. */
interface BunFfi {
  dlopen(path: string, symbols: Record<string, unknown>): { symbols: Record<string, RawFunction> };
  ptr(bytes: Uint8Array): number;
  readonly read: { i32(pointer: number, offset: number): number };
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
    listenExtras: () => ({}),
  };
}

export type { ControlListener, ControlStream, Runtime, StreamHandlers } from "../src/runtime.ts";
export { TakeoverError } from "../src/errors.ts";
