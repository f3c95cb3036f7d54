/**
 * From descriptors to native objects and back, on whichever runtime this is.
 *
 * @module
 */

import * as natives from "../src/natives/adopt.ts";
import type { AdoptOptions, DatagramOpening, UnixDatagramOpening } from "../src/natives/adopt.ts";
import { detach as detachFrom, type Detached, type DetachOptions } from "../src/natives/detach.ts";
import { descriptorOf as holderOf } from "../src/natives/natives.ts";
import type { TcpOpening, UnixOpening } from "../src/sockets/address.ts";
import { describe as description, type Description } from "../src/sockets/describe.ts";
import type { Descriptor } from "../src/sockets/descriptors.ts";
import { openedRuntime, openRuntime } from "./runtime.ts";

/**
 * Puts a listening socket into a native server of this runtime: whatever the
 * callback opens accepts from it, and reports its address.
 *
 * On Linux the callback is given a placeholder, which the socket replaces right
 * after; so any server will do, also where the runtime ignores `{ fd }`.
 *
 * @param descriptor A listening TCP or Unix socket, as a number or an owned
 *   descriptor. It is taken on success, and still the caller's on failure.
 * @param open Opens a server at the address that it is given, and may return
 *   before it listens.
 * @param options `openMs`.
 * @returns What `open` returned, with its exact type.
 * @throws {TakeoverError} `ERR_TAKEOVER_CLOSED`, `ERR_TAKEOVER_RANGE`,
 *   `ERR_TAKEOVER_NOT_SOCKET`, `ERR_TAKEOVER_DESCRIPTOR` when the descriptor is
 *   no listener, `ERR_TAKEOVER_ADOPT` when the server is not there in time or
 *   holds another socket.
 *
 * @example
 * ```ts ignore
 * const server = await adoptListener(descriptor, (at) => Deno.serve(at, handler));
 * const listener = await adoptListener(descriptor, (at) => Bun.listen({ ...at, socket }));
 * const http = await adoptListener(descriptor, (at) => createServer(app).listen(at));
 * ```
 */
export function adoptListener<T>(
  descriptor: Descriptor,
  open: (at: TcpOpening) => T,
  options?: AdoptOptions,
): Promise<Awaited<T>>;

/** The same for a Unix listener. */
export function adoptListener<T>(
  descriptor: Descriptor,
  open: (at: UnixOpening) => T,
  options?: AdoptOptions,
): Promise<Awaited<T>>;
export async function adoptListener<T>(
  descriptor: Descriptor,
  open: (at: never) => T,
  options?: AdoptOptions,
): Promise<Awaited<T>> {
  return await natives.adoptListener(await openRuntime(), descriptor, open, options);
}

/**
 * Puts a connection into a native one of this runtime. What waits in it
 * already is read first; either side of it may have ended.
 *
 * On Linux the callback connects to a placeholder over loopback, and the
 * socket replaces that right after. What the callback writes goes to the
 * socket, as far as its send buffer takes it at once.
 *
 * @param descriptor A connected TCP or Unix stream, as a number or an owned
 *   descriptor. It is taken on success, and still the caller's on failure.
 * @param open Connects to the address that it is given; for a Unix socket its
 *   parameter is a `UnixOpening`.
 * @param options `openMs`.
 * @returns What `open` returned, with its exact type.
 * @throws {TakeoverError} As {@linkcode adoptListener}.
 *
 * @example
 * ```ts ignore
 * const connection = await adoptConnection(descriptor, (at) => Deno.connect(at));
 * const socket = await adoptConnection(descriptor, (at) => Bun.connect({ ...at, socket: handlers }));
 * const stream = await adoptConnection(descriptor, (at: UnixOpening) => net.connect(at));
 * ```
 */
export function adoptConnection<T>(
  descriptor: Descriptor,
  open: (at: TcpOpening) => T,
  options?: AdoptOptions,
): Promise<Awaited<T>>;

/** The same for a Unix connection. */
export function adoptConnection<T>(
  descriptor: Descriptor,
  open: (at: UnixOpening) => T,
  options?: AdoptOptions,
): Promise<Awaited<T>>;
export async function adoptConnection<T>(
  descriptor: Descriptor,
  open: (at: never) => T,
  options?: AdoptOptions,
): Promise<Awaited<T>> {
  return await natives.adoptConnection(await openRuntime(), descriptor, open, options);
}

/**
 * Puts a datagram socket into a native one of this runtime.
 *
 * @param descriptor A UDP socket, or on Deno a Unix datagram socket, as a
 *   number or an owned descriptor. It is taken on success, and still the
 *   caller's on failure.
 * @param open Opens a datagram socket at the address that it is given.
 * @param options `openMs`.
 * @returns What `open` returned, with its exact type.
 * @throws {TakeoverError} As {@linkcode adoptListener}.
 *
 * @example
 * ```ts ignore
 * const socket = await adoptDatagram(descriptor, (at) => Deno.listenDatagram({ ...at, transport: "udp" }));
 * const udp = await adoptDatagram(descriptor, (at) => Bun.udpSocket({ ...at, socket: handlers }));
 * const dgram = await adoptDatagram(descriptor, (at) => createSocket("udp4").bind(at));
 * ```
 */
export function adoptDatagram<T>(
  descriptor: Descriptor,
  open: (at: DatagramOpening) => T,
  options?: AdoptOptions,
): Promise<Awaited<T>>;

/** The same for a Unix datagram socket. */
export function adoptDatagram<T>(
  descriptor: Descriptor,
  open: (at: UnixDatagramOpening) => T,
  options?: AdoptOptions,
): Promise<Awaited<T>>;
export async function adoptDatagram<T>(
  descriptor: Descriptor,
  open: (at: never) => T,
  options?: AdoptOptions,
): Promise<Awaited<T>> {
  return await natives.adoptDatagram(await openRuntime(), descriptor, open, options);
}

/**
 * The descriptor of a native object, which stays the object's.
 *
 * Node and Bun tell it of nearly everything. Deno's objects, and servers of
 * Bun, are looked for by their addresses among the sockets of this process;
 * where several are alike, as Unix connections to one path, the one in the
 * event loop counts.
 *
 * @param native A listener, server, connection or datagram socket of this
 *   runtime, or of `node:net`, `node:http` or `node:dgram` on it.
 * @throws {TakeoverError} `ERR_TAKEOVER_CLOSED` when it holds no open socket,
 *   `ERR_TAKEOVER_UNSUPPORTED` when it is nothing that has one, or cannot be
 *   told from others, `ERR_TAKEOVER_STATE` before {@linkcode openRuntime}, or
 *   anything else here that returns a promise, has been awaited.
 *
 * @example
 * ```ts ignore
 * await openRuntime();
 * console.log(describe(descriptorOf(Deno.serve(handler))).local);
 * ```
 */
export function descriptorOf(native: unknown): number {
  return holderOf(openedRuntime("tell a descriptor"), native);
}

/**
 * Takes a live connection, listener or datagram socket out of its native
 * object: no FIN, no RST, no lost byte, whatever the program does afterwards.
 *
 * It waits until what the program has written is in the kernel. From then on
 * the object holds a dead socket. A connection, datagram socket or listener is
 * closed, as it would be at the peer's end; a read of `Deno.Conn` that waits
 * ends with an end of file. A server, whose close would end its connections,
 * and a Unix listener that the runtime bound, whose close would remove the
 * path, are left open, and no longer keep the process alive. Node and Deno
 * remove such a path also when the program ends by itself, and not when it
 * calls `exit`; a path that was bound here (`takeOver`, {@linkcode openAcceptor})
 * stays.
 *
 * @param native What {@linkcode descriptorOf} takes, but for TLS.
 * @param options `flushMs`.
 * @returns The socket, which the caller owns, and the bytes that the runtime
 *   had read from it and not given to the program. These are not known when an
 *   HTTP parser reads the socket (`request.socket`), or after `setEncoding`.
 * @throws {TakeoverError} `ERR_TAKEOVER_TIMEOUT` when what was written stays in
 *   user space, `ERR_TAKEOVER_UNSUPPORTED` for TLS and on macOS, and as
 *   {@linkcode descriptorOf}. The object is then as it was.
 *
 * @example
 * ```ts ignore
 * const { descriptor, unread } = await detach(socket);
 * await channel.send(unread.length > 0 ? unread : new Uint8Array(1), [descriptor]);
 * descriptor[Symbol.dispose]();
 * ```
 */
export async function detach(native: unknown, options: DetachOptions = {}): Promise<Detached> {
  return await detachFrom(await openRuntime(), native, options);
}

/**
 * Says what a descriptor is, as the kernel sees it, and touches nothing.
 *
 * @param descriptor A number or an owned descriptor; it stays the caller's.
 * @throws {TakeoverError} `ERR_TAKEOVER_CLOSED`, `ERR_TAKEOVER_RANGE`,
 *   `ERR_TAKEOVER_STATE` before {@linkcode openRuntime}, or anything else here
 *   that returns a promise, has been awaited.
 *
 * @example
 * ```ts ignore
 * await openRuntime();
 * const { kind, local, tcpState } = describe(7);
 * ```
 */
export function describe(descriptor: Descriptor): Description {
  return description(openedRuntime("describe a descriptor"), descriptor);
}
