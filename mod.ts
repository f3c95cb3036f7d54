/**
 * Replaces a running server without losing a connection: hands its open sockets
 * to the next process over a Unix domain socket (SCM_RIGHTS), whichever of
 * Deno, Bun and Node either of them runs on.
 *
 * @example
 * ```ts ignore
 * import { takeOver } from "@socket-takeover/socket-takeover";
 *
 * await using takeover = await takeOver("/run/shop/takeover.sock");
 * const handler = takeover.fetch(() => new Response("hello"));
 * const server = await takeover.listen("web", { port: 8080 }, (at) => Deno.serve(at, handler));
 * await takeover.ready();
 * await takeover.released;
 * await takeover.drained();
 * await server.shutdown();
 * ```
 *
 * @module
 */

import type { Runtime } from "./src/runtime.ts";
import type { Descriptor, FdChannel } from "./src/sockets/fd_channel.ts";
import * as core from "./src/sockets/fd_listener.ts";
import type { FdChannelOptions, FdListener, FdListenerOptions } from "./src/sockets/fd_listener.ts";
import type { WaitOptions } from "./src/sockets/readiness.ts";
import type { PathOptions } from "./src/sockets/unix_path.ts";
import { Takeover, type TakeoverOptions } from "./src/handover/takeover.ts";

/**
 * Takes over from the process that answers on a path, or becomes the first.
 *
 * @param path The control socket: a path of at most 107 bytes (macOS 103) in a
 *   folder that not everybody can write. It is made with mode 0600.
 * @param options Limits, users, required names.
 * @returns The takeover. As a successor, every socket of the incumbent is here
 *   and verified, and the incumbent still serves.
 * @throws {TakeoverError} With a code for every way in which it can fail; the
 *   incumbent, if there is one, serves on untouched.
 *
 * @example
 * ```ts ignore
 * const takeover = await takeOver("/run/shop/takeover.sock", { limits: { settleMs: 2_000 } });
 * console.log(takeover.generation, takeover.inherited);
 * ```
 */
export async function takeOver(path: string, options: TakeoverOptions = {}): Promise<Takeover> {
  return await Takeover.begin(await openRuntime(), path, options);
}

/**
 * Listens on a Unix path for connections that carry descriptors.
 *
 * @param path At most 107 bytes (macOS 103), or an abstract name, which begins
 *   with a NUL (Linux). The path is removed when the listener is closed.
 * @param options `type` (`stream`, `seqpacket`), `mode`, `backlog`,
 *   `replaceStale`, and what the kernel is to add to each message.
 * @throws {TakeoverError} `ERR_TAKEOVER_PATH` (too long), `ERR_TAKEOVER_PATH_KIND`
 *   (a folder or file), `ERR_TAKEOVER_PATH_STALE`, `ERR_TAKEOVER_PATH_ACCESS`.
 * @throws {SystemError} `EADDRINUSE` when somebody listens there.
 *
 * @example
 * ```ts ignore
 * using listener = await listenChannel("/run/shop/fds.sock", { mode: 0o600 });
 * for await (const channel of listener) {
 *   const message = await channel.receive({ minFds: 1, maxFds: 1, timeoutMs: 1_000 });
 *   if (message) handle(message.bytes, message.fds[0].take());
 *   channel.close();
 * }
 * ```
 */
export async function listenChannel(path: string, options: FdListenerOptions = {}): Promise<FdListener> {
  return core.listenChannel(await openRuntime(), path, options);
}

/**
 * Connects to a Unix socket, to send and receive descriptors.
 *
 * @param path As for {@linkcode listenChannel}.
 * @param options `type`, which has to be the listener's, `timeoutMs` and
 *   `signal` for a full accept queue.
 * @throws {TakeoverError} As {@linkcode listenChannel}, and `ERR_TAKEOVER_TIMEOUT`.
 * @throws {SystemError} `ENOENT` when there is nothing.
 *
 * @example
 * ```ts ignore
 * using channel = await connectChannel("/run/shop/fds.sock");
 * await channel.send(new TextEncoder().encode("forward"), [descriptor]);
 * ```
 */
export async function connectChannel(path: string, options: FdChannelOptions & WaitOptions = {}): Promise<FdChannel> {
  return await core.connectChannel(await openRuntime(), path, options);
}

/**
 * Binds a Unix datagram socket to a path, to receive descriptors there.
 *
 * @param path As for {@linkcode listenChannel}; it stays when the channel is closed.
 * @param options `mode`, `replaceStale`, and what the kernel is to add.
 * @throws {TakeoverError} As {@linkcode listenChannel}.
 *
 * @example
 * ```ts ignore
 * using channel = await bindChannel("/run/shop/notify.sock", { passCredentials: true });
 * for await (const { bytes, credentials } of channel) console.log(credentials?.pid, bytes);
 * ```
 */
export async function bindChannel(
  path: string,
  options: Omit<FdChannelOptions, "type"> & PathOptions = {},
): Promise<FdChannel> {
  return core.bindChannel(await openRuntime(), path, options);
}

/**
 * Makes a channel of a Unix socket that is there: inherited, received, or made
 * by other code. It becomes non-blocking and close-on-exec.
 *
 * @param descriptor The channel's from here on, unless this throws.
 * @throws {TakeoverError} `ERR_TAKEOVER_RANGE`, `ERR_TAKEOVER_CLOSED`,
 *   `ERR_TAKEOVER_NOT_SOCKET`, `ERR_TAKEOVER_DESCRIPTOR` for another kind of socket.
 *
 * @example
 * ```ts ignore
 * using parent = await wrapChannel(3);
 * ```
 */
export async function wrapChannel(
  descriptor: Descriptor,
  options: Omit<FdChannelOptions, "type"> = {},
): Promise<FdChannel> {
  return core.wrapChannel(await openRuntime(), descriptor, options);
}

/**
 * Two channels that are connected to each other (socketpair(2)), one of them
 * usually for a child process.
 *
 * @example
 * ```ts ignore
 * const [ours, theirs] = await channelPair({ type: "seqpacket" });
 * ```
 */
export async function channelPair(options: FdChannelOptions = {}): Promise<[FdChannel, FdChannel]> {
  return core.channelPair(await openRuntime(), options);
}

let opened: Promise<Runtime> | null = null;

/**
 * Binds libc on the runtime that this runs on, once.
 *
 * @returns The runtime, with libc as functions over numbers and bytes.
 * @throws {TakeoverError} `ERR_TAKEOVER_PERMISSION` or `ERR_TAKEOVER_UNSUPPORTED`.
 *
 * @example
 * ```ts ignore
 * const { libc } = await openRuntime();
 * console.log(libc.getpid());
 * ```
 */
export function openRuntime(): Promise<Runtime> {
  return opened ??= load();
}

async function load(): Promise<Runtime> {
  const { openRuntime } = await importRuntime();
  return await openRuntime();
}

function importRuntime(): Promise<{ openRuntime(): Promise<Runtime> }> {
  if ("Deno" in globalThis) return import("./runtimes/deno.ts");
  if ("Bun" in globalThis) return import("./runtimes/bun.ts");
  return import("./runtimes/node.ts");
}

export { Takeover } from "./src/handover/takeover.ts";
export type { TakeoverOptions } from "./src/handover/takeover.ts";
export type { EndpointAddress, TcpEndpoint, TcpOpening, UnixEndpoint, UnixOpening } from "./src/sockets/address.ts";
export type { Drained, FetchHandler, RequestListener } from "./src/handover/drain.ts";
export type { Abi, Bytes } from "./src/c/cmsg.ts";
export type { Credentials } from "./src/c/cmsg.ts";
export { OwnedDescriptor } from "./src/sockets/descriptors.ts";
export { FdChannel, FdMessage } from "./src/sockets/fd_channel.ts";
export type { Descriptor, ReceiveOptions, SendOptions } from "./src/sockets/fd_channel.ts";
export { FdListener } from "./src/sockets/fd_listener.ts";
export type { FdChannelOptions, FdListenerOptions } from "./src/sockets/fd_listener.ts";
export type { WaitOptions } from "./src/sockets/readiness.ts";
export type { SocketType } from "./src/sockets/socket.ts";
export type { PathOptions } from "./src/sockets/unix_path.ts";
export { SystemError, TakeoverError, TruncatedError } from "./src/errors.ts";
export type { TakeoverErrorCode } from "./src/errors.ts";
export type { Outcome, TakeoverEvents, TakeoverEventType, TakeoverListener } from "./src/handover/events.ts";
export { defaultLimits } from "./src/limits.ts";
export type { Limits } from "./src/limits.ts";
export type { Peer } from "./src/handover/messages.ts";
export type { ControlListener, ControlStream, Runtime, StreamHandlers } from "./src/runtime.ts";
export { functions } from "./src/c/libc.ts";
export type { Argument, Arguments, CType, FunctionName, Libc } from "./src/c/libc.ts";
export { formatAddress } from "./src/c/sockaddr.ts";
export type { InetAddress, SocketAddress, UnixAddress } from "./src/c/sockaddr.ts";
