/**
 * Descriptors over Unix sockets, and raw connections, on whichever runtime this is.
 *
 * @module
 */

import { type Acceptor, type AcceptorOptions, openAcceptor as acceptorAt } from "../src/channels/acceptor.ts";
import type { FdChannel } from "../src/channels/fd_channel.ts";
import * as core from "../src/channels/fd_listener.ts";
import type { FdChannelOptions, FdListener, FdListenerOptions } from "../src/channels/fd_listener.ts";
import { waitReadable as readable, type WaitOptions } from "../src/channels/readiness.ts";
import type { PathOptions } from "../src/channels/unix_path.ts";
import type { EndpointAddress } from "../src/sockets/address.ts";
import type { Descriptor } from "../src/sockets/descriptors.ts";
import { openRuntime } from "./runtime.ts";

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

/**
 * Listens for connections that stay raw descriptors: to be handed to another
 * process, or to {@linkcode openRuntime}'s libc.
 *
 * @param at A TCP address, or a Unix path, which is removed when the acceptor is closed.
 * @param options `blocking`, for receivers in C or Python that expect it.
 * @throws {TakeoverError} `ERR_TAKEOVER_ADDRESS`, `ERR_TAKEOVER_PATH`.
 * @throws {SystemError} `EADDRINUSE` when somebody listens there.
 *
 * @example
 * ```ts ignore
 * using acceptor = await openAcceptor({ hostname: "127.0.0.1", port: 8080 });
 * for await (const connection of acceptor) {
 *   await channel.send(new TextEncoder().encode("forward"), [connection]);
 *   connection[Symbol.dispose]();
 * }
 * ```
 */
export async function openAcceptor(at: EndpointAddress, options: AcceptorOptions = {}): Promise<Acceptor> {
  return await acceptorAt(await openRuntime(), at, options);
}

/**
 * Waits in the runtime's own event loop until reading a descriptor would not
 * block: bytes, a connection, the end, or an error are there. Nothing is read.
 *
 * @param descriptor A socket, pipe, pidfd or whatever else poll(2) knows.
 * @param options `timeoutMs`, `signal`, `keepAlive`.
 * @throws {TakeoverError} `ERR_TAKEOVER_TIMEOUT`.
 * @throws {SystemError} `EPERM` for a file that cannot be waited for, `EBADF`.
 *
 * @example
 * ```ts ignore
 * using process = channel.peerPidfd();
 * await waitReadable(process.number); // It has ended.
 * ```
 */
export async function waitReadable(descriptor: number, options: WaitOptions = {}): Promise<void> {
  await readable(await openRuntime(), descriptor, options);
}
