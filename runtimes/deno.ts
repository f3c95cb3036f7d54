/**
 * Deno: libc through `Deno.dlopen`. `--allow-ffi --allow-net` is enough.
 *
 * @module
 */

import net from "node:net";
import { type Abi, abiOf } from "../src/c/abi.ts";
import { TakeoverError } from "../src/errors.ts";
import { cString, readFile } from "../src/sockets/descriptors.ts";
import { bindTable, type CType, declarations, type Libc, loadFirst, type RawFunction } from "../src/c/libc.ts";
import type { NativeObject, Runtime } from "../src/runtime.ts";
import { formatAddress, type SocketAddress } from "../src/c/sockaddr.ts";
import { adoptConnection, adoptDatagram, adoptListener, type DatagramOpening } from "../src/natives/adopt.ts";
import type { Descriptor } from "../src/sockets/descriptors.ts";
import { inspect, listenOn, lookup, openSocket, present, socketAddress, socketFrom as netSocketFrom, streamOf } from "./net.ts";

/** The part of Deno's own interface that is used, so that this file checks anywhere. */
interface DenoLike {
  readonly version: { readonly deno: string };
  readonly build: { readonly os: string; readonly arch: string };
  readonly errors: { readonly NotCapable: new () => Error };
  readonly permissions: { querySync(what: Permission): { readonly state: "granted" | "prompt" | "denied" } };
  readonly env: { get(name: string): string | undefined; delete(name: string): void };
  dlopen(path: string, symbols: Record<string, unknown>): { symbols: Record<string, RawFunction> };
  readonly UnsafePointer: { of(bytes: Uint8Array): unknown; value(pointer: unknown): bigint };
  readonly UnsafePointerView: new (pointer: unknown) => { getInt32(): number };
}

/** A permission of Deno's, as far as it is asked for here. */
interface Permission {
  readonly name: "ffi" | "net" | "env" | "read" | "write";
  readonly variable?: string;
  readonly host?: string;
}

/** The C types in Deno's words. */
const types: Record<CType, string> = {
  int: "i32",
  unsigned: "u32",
  size_t: "usize",
  ssize_t: "isize",
  bytes: "buffer",
};

/**
 * Binds libc on Deno.
 *
 * @returns The runtime, with libc as functions over numbers and bytes.
 * @throws {TakeoverError} `ERR_TAKEOVER_PERMISSION` without `--allow-ffi`,
 *   `ERR_TAKEOVER_UNSUPPORTED` on a platform that is not known.
 *
 * @example
 * ```ts
 * import { openRuntime } from "@socket-takeover/socket-takeover/deno";
 *
 * const { libc } = await openRuntime();
 * console.log(libc.getpid());
 * ```
 */
export function openRuntime(): Promise<Runtime> {
  return Promise.resolve().then(open).then((opened) => last = opened);
}

/**
 * What the program may do, as far as a takeover needs it. Nobody is prompted; a
 * permission that is narrowed is `prompt`.
 *
 * @returns The state of each by its name; `net 127.0.0.1` is the part of `net`
 *   that placeholders need.
 *
 * @example
 * ```ts ignore
 * import { permissions } from "@socket-takeover/socket-takeover/deno";
 *
 * if (permissions().ffi !== "granted") console.error("run with --allow-ffi");
 * ```
 */
export function permissions(): Readonly<Record<string, "granted" | "prompt" | "denied">> {
  const deno = (globalThis as unknown as { Deno: DenoLike }).Deno;
  const state = (what: Permission) => deno.permissions.querySync(what).state;
  return {
    ffi: state({ name: "ffi" }),
    net: state({ name: "net" }),
    "net 127.0.0.1": state({ name: "net", host: "127.0.0.1" }),
    env: state({ name: "env" }),
    read: state({ name: "read" }),
    write: state({ name: "write" }),
  };
}

let last: Runtime | null = null;

/** What has been taken out of the environment: /proc goes on telling what the process was started with. */
const unset = new Set<string>();

/** The runtime that was opened last, or a new one. */
function current(): Runtime {
  return last ??= open();
}

/**
 * Makes a `Deno.Listener` of a listening socket. Deno has no such function of
 * its own, so the socket is put under a listener that it opened.
 *
 * @param descriptor A listening TCP or Unix socket, taken on success; a number
 *   or an owned descriptor.
 * @throws {TakeoverError} As `adoptListener` of the main entry.
 *
 * @example
 * ```ts ignore
 * for await (const connection of await listenerFrom(descriptor)) serve(connection);
 * ```
 */
export async function listenerFrom(descriptor: Descriptor): Promise<Deno.Listener> {
  return await adoptListener(current(), descriptor, (at: Deno.TcpListenOptions) => Deno.listen(at));
}

/**
 * Makes a server of a listening socket, as `Deno.serve` does of an address.
 *
 * @param descriptor A listening TCP or Unix socket, taken on success; a number
 *   or an owned descriptor.
 * @param handler What `Deno.serve` takes.
 * @param options What `Deno.serve` takes, without the address.
 * @throws {TakeoverError} As `adoptListener` of the main entry.
 *
 * @example
 * ```ts ignore
 * const server = await serverFrom(descriptor, () => new Response("hello"));
 * ```
 */
export async function serverFrom(
  descriptor: Descriptor,
  handler: Deno.ServeHandler,
  options: Deno.ServeOptions = {},
): Promise<Deno.HttpServer> {
  return await adoptListener(
    current(),
    descriptor,
    (at: Deno.ServeTcpOptions) => Deno.serve({ ...at, ...options }, handler),
  );
}

/**
 * Makes a `Deno.Conn` of a connection. Deno has no such function of its own,
 * so the socket is put under a connection that it opened over loopback.
 *
 * @param descriptor A connected TCP or Unix stream, taken on success; a number
 *   or an owned descriptor.
 * @throws {TakeoverError} As `adoptConnection` of the main entry.
 *
 * @example
 * ```ts ignore
 * const connection = await connectionFrom(descriptor);
 * await connection.readable.pipeTo(connection.writable);
 * ```
 */
export async function connectionFrom(descriptor: Descriptor): Promise<Deno.TcpConn | Deno.UnixConn> {
  return await adoptConnection(current(), descriptor, (at: Deno.ConnectOptions) => Deno.connect(at));
}

/**
 * Makes a `net.Socket` of a connection, with `new net.Socket({ fd })` (Node, net).
 *
 * @param descriptor A connected TCP or Unix stream, taken on success; a number
 *   or an owned descriptor.
 * @param options What the socket's constructor takes; readable and writable unless they say otherwise.
 * @throws {TakeoverError} As `adoptConnection` of the main entry.
 *
 * @example
 * ```ts ignore
 * const socket = await socketFrom(descriptor);
 * ```
 */
export async function socketFrom(descriptor: Descriptor, options: net.SocketConstructorOpts = {}): Promise<net.Socket> {
  return await netSocketFrom(current(), descriptor, options);
}

/**
 * Makes a `Deno.DatagramConn` of a UDP socket. Its type is unstable, and known
 * to programs that run with --unstable-net only; so the callback says what it
 * opens, and exactly that comes back.
 *
 * @param descriptor A UDP socket, taken on success; a number or an owned descriptor.
 * @param open Passes on what it is given.
 * @throws {TakeoverError} As `adoptDatagram` of the main entry.
 *
 * @example
 * ```ts ignore
 * const socket = await datagramFrom(descriptor, (at) => Deno.listenDatagram({ ...at, transport: "udp" }));
 * for await (const [bytes, from] of socket) await socket.send(bytes, from);
 * ```
 */
export async function datagramFrom<T>(descriptor: Descriptor, open: (at: DatagramOpening) => T): Promise<Awaited<T>> {
  return await adoptDatagram(current(), descriptor, open);
}

function open(): Runtime {
  const deno = (globalThis as unknown as { Deno: DenoLike }).Deno;
  const { os, arch } = deno.build;
  const abi = abiOf(os, arch === "x86_64" ? "x64" : arch === "aarch64" ? "arm64" : arch);
  const declared = {
    ...declarations(abi, types),
    [abi.errnoLocation]: { parameters: [], result: "pointer" },
  };
  const library = loadFirst(abi, (path) => load(deno, path, declared));
  // errno has one address for the life of a thread, and JavaScript stays on its own.
  const errno = new deno.UnsafePointerView(library[abi.errnoLocation]!());
  const libc = bindTable(abi, library, () => errno.getInt32());
  const mayUse = (variable: string) => deno.permissions.querySync({ name: "env", variable }).state === "granted";
  return {
    name: "deno",
    version: deno.version.deno,
    ffi: "Deno.dlopen",
    abi,
    libc,
    addressOf: (bytes) => deno.UnsafePointer.value(deno.UnsafePointer.of(bytes)),
    adoptStream: (descriptor) => streamOf(new net.Socket({ fd: descriptor })),
    openSocket,
    adoptListener: listenOn,
    env: (name) => mayUse(name) ? deno.env.get(name) : unset.has(name) ? undefined : environment(abi, libc).get(name),
    unsetEnv: (name) => {
      if (mayUse(name)) return deno.env.delete(name);
      libc.unsetenv(cString(name));
      unset.add(name);
    },
    lookup,
    present,
    inspect: (native) => inspectDeno(native) ?? inspect(native),
    permissions,
    listenExtras: (address) => ({ onListen: () => announce(address) }),
  };
}

function load(deno: DenoLike, path: string, symbols: Record<string, unknown>): Record<string, RawFunction> {
  try {
    return deno.dlopen(path, symbols).symbols;
  } catch (error) {
    throw error instanceof deno.errors.NotCapable ? denied(error) : error;
  }
}

/** The environment that the process was started with (proc(5)): reading it needs no permission but --allow-ffi. */
function environment(abi: Abi, libc: Libc): Map<string, string> {
  if (abi.platform !== "linux") return new Map();
  const variables = readFile({ abi, libc }, "/proc/self/environ").split("\0");
  return new Map(variables.map((line) => [line.slice(0, line.indexOf("=")), line.slice(line.indexOf("=") + 1)]));
}

function denied(cause: Error): TakeoverError {
  return new TakeoverError(
    "ERR_TAKEOVER_PERMISSION",
    "Cannot call libc without permission: run `deno run --allow-ffi --allow-net …`; " +
      "--allow-ffi cannot be narrowed to a path, because libc is opened by its name",
    { cause },
  );
}

/** The part of Deno's own connections and listeners that is used. */
interface DenoNative {
  readonly addr?: Deno.Addr;
  readonly localAddr?: Deno.Addr;
  readonly remoteAddr?: Deno.Addr;
  ref?(): void;
  unref?(): void;
  close?(): void;
}

/** What Deno's own objects are; each has methods that no other has. */
function inspectDeno(native: unknown): NativeObject | null {
  if (typeof native !== "object" || native === null) return null;
  const kind = "closeWrite" in native && "remoteAddr" in native
    ? "connection"
    : !("addr" in native)
    ? null
    : "receive" in native
    ? "datagram"
    : "shutdown" in native
    ? "server"
    : "accept" in native
    ? "listener"
    : null;
  return kind && describeDeno(native as DenoNative, kind);
}

function describeDeno(native: DenoNative, kind: NativeObject["kind"]): NativeObject {
  const isConnection = kind === "connection";
  const internal = Object.getOwnPropertySymbols(native).find(({ description }) => description === "Deno.internal.fd");
  return {
    kind,
    // Only accepted connections have it.
    descriptor: (internal && (native as unknown as Record<symbol, number | undefined>)[internal]) ?? -1,
    local: addressOf(isConnection ? native.localAddr : native.addr),
    peer: isConnection ? addressOf(native.remoteAddr) : null,
    isOpen: true,
    isEncrypted: "handshake" in native,
    isPulled: isConnection,
    isClosedAlone: false,
    allowHalfOpen: true,
    hasEnded: false,
    unsentCount: isConnection ? null : 0,
    takeUnread: () => new Uint8Array(0),
    readAhead: () => null,
    pause: () => kind === "datagram" ? holdReceive(native as DenoDatagrams) : null,
    unref: () => native.unref?.(),
    close: () => native.close?.(),
  };
}

/** A datagram socket, as far as it is held. */
interface DenoDatagrams {
  receive(...given: unknown[]): Promise<unknown>;
  close(): void;
}

/**
 * Lets every further `receive` wait, that of an iteration too. Deno asks the
 * event loop only when there was nothing to read: a program that pulls would
 * read on for as long as datagrams come.
 */
function holdReceive(native: DenoDatagrams): () => void {
  const { receive, close } = native;
  let open = () => {};
  const opened = new Promise<void>((resolve) => open = resolve);
  const end = () => {
    Object.assign(native, { receive, close });
    open();
  };
  native.receive = async (...given) => {
    await opened;
    return await receive.apply(native, given);
  };
  native.close = () => {
    end();
    close.call(native);
  };
  return end;
}

/** An unnamed Unix socket has the path null. */
function addressOf(address: Deno.Addr | undefined): SocketAddress | null {
  if (!address) return null;
  if ("path" in address) return { family: "unix", path: address.path ?? "" };
  return "hostname" in address ? socketAddress(address.hostname, address.port) : null;
}

/** What Deno.serve prints by itself, with the address that is true. */
function announce(address: SocketAddress): void {
  console.log(`Listening on ${formatAddress(address)}`);
}

export type { DatagramOpening } from "../src/natives/adopt.ts";
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
