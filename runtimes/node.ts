/**
 * Node: libc through koffi when it is installed, else through `node:ffi`
 * (Node 26.9 and later).
 *
 * @module
 */

import dgram from "node:dgram";
import { createRequire } from "node:module";
import net from "node:net";
import process from "node:process";
import { type Abi, abiOf } from "../src/c/abi.ts";
import type { Bytes } from "../src/c/bytes.ts";
import { TakeoverError } from "../src/errors.ts";
import {
  bindTable,
  type CFunction,
  type CType,
  declarations,
  functions,
  type Libc,
  loadFirst,
  type RawFunction,
} from "../src/c/libc.ts";
import type { Runtime } from "../src/runtime.ts";
import { adoptNumber } from "../src/natives/adopt.ts";
import type { Descriptor } from "../src/sockets/descriptors.ts";
import { httpSockets } from "./http_sockets.ts";
import { env, inspect, listenFrom, listenOn, lookup, openSocket, present, socketFrom, streamOf, unsetEnv } from "./net.ts";

/** The part of koffi that is used. */
interface Koffi {
  load(path: string | null): { func(name: string, result: string, parameters: readonly string[]): RawFunction };
  errno(): number;
  address(bytes: Uint8Array): bigint;
}

/** The part of `node:ffi` that is used. */
interface NodeFfi {
  dlopen(path: string, symbols: Record<string, unknown>): { functions: Record<string, RawFunction> };
  getInt32(pointer: unknown, offset: number): number;
  getRawPointer(bytes: Uint8Array): bigint;
}

/** libc bound through one FFI, and the address of bytes in it. */
interface Binding {
  readonly ffi: string;
  readonly libc: Libc;
  addressOf(bytes: Bytes): bigint;
}

/** The C types in koffi's words; it has no `ssize_t`. */
const koffiTypes: Record<CType, string> = {
  int: "int",
  unsigned: "unsigned int",
  size_t: "size_t",
  ssize_t: "int64",
  bytes: "void *",
};

/** The C types in node:ffi's words. */
const nodeTypes: Record<CType, string> = {
  int: "int32",
  unsigned: "uint32",
  size_t: "uint64",
  ssize_t: "int64",
  bytes: "pointer",
};

/** Which FFI to bind libc through. */
export interface NodeOptions {
  /** `koffi` or `node:ffi`; without it, koffi when it is installed. */
  readonly ffi?: "koffi" | "node:ffi";
}

/**
 * Binds libc on Node.
 *
 * @param options Which FFI to use.
 * @returns The runtime, with libc as functions over numbers and bytes.
 * @throws {TakeoverError} `ERR_TAKEOVER_UNSUPPORTED` when neither koffi nor
 *   `node:ffi` is there, or the platform is not known.
 *
 * @example
 * ```ts ignore
 * import { openRuntime } from "socket-takeover/node";
 *
 * const { libc, ffi } = await openRuntime();
 * console.log(ffi, libc.getpid());
 * ```
 */
export function openRuntime(options: NodeOptions = {}): Promise<Runtime> {
  return Promise.resolve(options).then(open).then((opened) => last = opened);
}

let last: Runtime | null = null;

/** The runtime that was opened last, or a new one. */
function current(): Runtime {
  return last ??= open({});
}

/**
 * Makes a server listen on a descriptor, with `listen({ fd })` (Node, net).
 *
 * @param descriptor A listening TCP or Unix socket, taken on success; a number
 *   or an owned descriptor.
 * @param server A server of `node:net`, `node:http`, `node:https` or another
 *   that extends them, which does not listen yet.
 * @returns The same server, once it listens.
 * @throws {TakeoverError} As `adoptListener` of the main entry.
 *
 * @example
 * ```ts ignore
 * const server = await listenerFrom(descriptor, http.createServer(app));
 * ```
 */
export async function listenerFrom<S extends net.Server>(descriptor: Descriptor, server: S): Promise<S> {
  return await listenFrom(current(), descriptor, server);
}

/**
 * Makes a `net.Socket` of a connection, with `new net.Socket({ fd })` (Node, net).
 *
 * @param descriptor A connected TCP or Unix stream, taken on success; a number
 *   or an owned descriptor.
 * @param options What the socket's constructor takes; readable and writable unless they say otherwise.
 * @returns The socket. It reads once somebody listens to `data` or calls `resume`.
 * @throws {TakeoverError} As `adoptConnection` of the main entry.
 *
 * @example
 * ```ts ignore
 * const socket = await connectionFrom(descriptor, { allowHalfOpen: true });
 * httpServer.emit("connection", socket);
 * ```
 */
export async function connectionFrom(
  descriptor: Descriptor,
  options: net.SocketConstructorOpts = {},
): Promise<net.Socket> {
  return await socketFrom(current(), descriptor, options);
}

/**
 * Makes a `dgram.Socket` of a UDP socket, with `bind({ fd })` (Node, dgram).
 *
 * @param descriptor A UDP socket, taken on success; a number or an owned descriptor.
 * @param options What `dgram.createSocket` takes, without the type, which the socket has.
 * @returns The socket, bound. Datagrams that wait already come with its first `message` events.
 * @throws {TakeoverError} As `adoptDatagram` of the main entry.
 *
 * @example
 * ```ts ignore
 * const socket = await datagramFrom(descriptor);
 * socket.on("message", (bytes, from) => socket.send(bytes, from.port, from.address));
 * ```
 */
export async function datagramFrom(
  descriptor: Descriptor,
  options: Omit<dgram.SocketOptions, "type"> = {},
): Promise<dgram.Socket> {
  return await adoptNumber(current(), descriptor, "datagram socket", async (fd, { local }) => {
    const socket = dgram.createSocket({ ...options, type: local.family === "inet6" ? "udp6" : "udp4" });
    await new Promise<void>((resolve, reject) => {
      socket.once("error", reject);
      socket.bind({ fd }, () => {
        socket.off("error", reject);
        resolve();
      });
    });
    return socket;
  });
}

function open({ ffi }: NodeOptions): Runtime {
  const abi = abiOf(process.platform, process.arch);
  return {
    name: "node",
    version: process.versions.node,
    ...bind(abi, ffi),
    abi,
    adoptStream: (descriptor) => streamOf(new net.Socket({ fd: descriptor })),
    openSocket,
    adoptListener: listenOn,
    env,
    unsetEnv,
    lookup,
    present,
    inspect,
    httpSockets,
    listenExtras: () => ({}),
  };
}

function bind(abi: Abi, wanted: NodeOptions["ffi"]): Binding {
  const koffi = wanted === "node:ffi" ? null : requireIfThere<Koffi>("koffi");
  if (koffi) return bindKoffi(abi, koffi);
  const ffi = wanted === "koffi" ? null : requireIfThere<NodeFfi>("node:ffi");
  if (ffi) return bindNodeFfi(abi, ffi);
  throw new TakeoverError(
    "ERR_TAKEOVER_UNSUPPORTED",
    `Cannot call libc on Node ${process.versions.node} without an FFI: run \`npm i koffi\`, or use Node 26.9 or later`,
  );
}

/** Loads a module that may be missing; one that is there but broken throws. */
function requireIfThere<T>(specifier: string): T | null {
  try {
    return createRequire(import.meta.url)(specifier) as T;
  } catch (error) {
    const { code } = error as { code?: string };
    if (code === "MODULE_NOT_FOUND" || code === "ERR_UNKNOWN_BUILTIN_MODULE") return null;
    throw error;
  }
}

function bindKoffi(abi: Abi, koffi: Koffi): Binding {
  // The process has libc loaded already, whichever libc it is.
  const loaded = koffi.load(null);
  const library: Record<string, RawFunction> = {};
  for (const [name, { parameters, result }] of Object.entries(declarations(abi, koffiTypes))) {
    library[name] = loaded.func(name, result, parameters);
  }
  return {
    ffi: "koffi",
    libc: bindTable(abi, library, () => koffi.errno()),
    addressOf: (bytes) => koffi.address(bytes),
  };
}

function bindNodeFfi(abi: Abi, ffi: NodeFfi): Binding {
  const declared: Record<string, unknown> = { [abi.errnoLocation]: { arguments: [], return: "pointer" } };
  for (const [name, { parameters, result }] of Object.entries(declarations(abi, nodeTypes))) {
    declared[name] = { arguments: parameters, return: result };
  }
  const library = loadFirst(abi, (path) => ffi.dlopen(path, declared).functions);
  // errno has one address for the life of a thread, and JavaScript stays on its own.
  const errno = library[abi.errnoLocation]!();
  for (const [name, signature] of Object.entries<CFunction>(functions)) {
    if (library[name]) library[name] = takingBigSizes(library[name], signature);
  }
  return {
    ffi: "node:ffi",
    libc: bindTable(abi, library, () => ffi.getInt32(errno, 0)),
    addressOf: (bytes) => ffi.getRawPointer(bytes),
  };
}

/** node:ffi takes 64-bit integers as bigints only; here they are all second or third. */
function takingBigSizes(raw: RawFunction, { parameters }: CFunction): RawFunction {
  if (parameters[1] === "size_t") return (first, size, third) => raw(first, BigInt(size), third);
  if (parameters[2] !== "size_t") return raw;
  if (parameters.length === 3) return (first, second, size) => raw(first, second, BigInt(size));
  return (first, second, size, fourth, fifth) => raw(first, second, BigInt(size), fourth, fifth);
}

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
