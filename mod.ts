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
import type { FdChannel } from "./src/channels/fd_channel.ts";
import type { Descriptor } from "./src/sockets/descriptors.ts";
import * as core from "./src/channels/fd_listener.ts";
import type { FdChannelOptions, FdListener, FdListenerOptions } from "./src/channels/fd_listener.ts";
import { type Acceptor, type AcceptorOptions, openAcceptor as acceptorAt } from "./src/channels/acceptor.ts";
import type { EndpointAddress } from "./src/sockets/address.ts";
import { waitReadable as readable, type WaitOptions } from "./src/channels/readiness.ts";
import type { PathOptions } from "./src/channels/unix_path.ts";
import * as natives from "./src/natives/adopt.ts";
import type { AdoptOptions, DatagramOpening, UnixDatagramOpening } from "./src/natives/adopt.ts";
import type { TcpOpening, UnixOpening } from "./src/sockets/address.ts";
import { describe as description, type Description } from "./src/sockets/describe.ts";
import { detach as detachFrom, type Detached, type DetachOptions } from "./src/natives/detach.ts";
import { descriptorOf as holderOf } from "./src/natives/natives.ts";
import { TakeoverError } from "./src/errors.ts";
import { type InheritedDescriptor, inheritedDescriptors as findInherited } from "./src/foreign/activation.ts";
import { type HaproxyOptions, type HaproxySocket, socketsFromHaproxy as socketsFrom } from "./src/foreign/haproxy.ts";
import {
  type HaproxyListener,
  HaproxyService,
  type HaproxyServiceOptions,
} from "./src/foreign/haproxy_service.ts";
import { Notifier, type NotifierOptions } from "./src/foreign/notify.ts";
import type { SeizeOptions } from "./src/foreign/choice.ts";
import { type Seized, seizeFrom } from "./src/foreign/seize.ts";
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

/**
 * Takes the descriptors that a supervisor passed to this process at its start:
 * systemd, Server::Starter, einhorn or nginx. `takeOver` does so itself.
 *
 * @returns Each with its name, its owner and, when it is an IP or Unix socket,
 *   what it is; nothing when there are none, or when it was asked before.
 * @throws {TakeoverError} `ERR_TAKEOVER_DESCRIPTOR`, `ERR_TAKEOVER_RANGE` or
 *   `ERR_TAKEOVER_LIMIT` when a variable is malformed, `ERR_TAKEOVER_CLOSED` or
 *   `ERR_TAKEOVER_NOT_SOCKET` when a descriptor is not what it should be.
 *
 * @example
 * ```ts ignore
 * for (const { name, descriptor } of await inheritedDescriptors()) {
 *   if (name === "web") http.createServer(app).listen({ fd: descriptor.take() });
 * }
 * ```
 */
export async function inheritedDescriptors(): Promise<InheritedDescriptor[]> {
  return findInherited(await openRuntime());
}

/**
 * Opens the way to the service manager that `$NOTIFY_SOCKET` names
 * (sd_notify(3)). Without one, every method does nothing and resolves with
 * false. `takeOver` tells it of starts, reloads and ends by itself.
 *
 * @param options `limitMs`: how long one that does not read is waited for.
 * @throws {TakeoverError} `ERR_TAKEOVER_PATH` when the variable is malformed.
 *
 * @example
 * ```ts ignore
 * const notifier = await openNotifier();
 * await notifier.status("warming up");
 * await notifier.storeDescriptors("state", [file.fd], { poll: false });
 * ```
 */
export async function openNotifier(options: NotifierOptions = {}): Promise<Notifier> {
  return new Notifier(await openRuntime(), options);
}

/**
 * Copies the listening sockets of a running process that never heard of this
 * library (pidfd_getfd(2)). It serves on, until it is retired. Linux 5.6 or
 * later.
 *
 * @param options Which process, and which of its listeners; all of them, when
 *   neither an address nor a port is given.
 * @returns The sockets, verified and non-blocking, and what ends the process.
 *   Members of an SO_REUSEPORT group are all there.
 * @throws {TakeoverError} `ERR_TAKEOVER_PROCESS` when it does not run, is not
 *   the one that was meant, or is a worker of another; `ERR_TAKEOVER_PTRACE`
 *   when this user may not trace it (ptrace(2)); `ERR_TAKEOVER_NO_LISTENER` when
 *   it has no such listener; `ERR_TAKEOVER_SELF`, `ERR_TAKEOVER_RANGE`,
 *   `ERR_TAKEOVER_ADDRESS`, `ERR_TAKEOVER_UNSUPPORTED`.
 *
 * @example
 * ```ts ignore
 * const seized = await seize({ pid: 4711, port: 8080 });
 * const takeover = await takeOver("/run/shop/takeover.sock", { inherit: seized.sockets });
 * await takeover.listen("web", { port: 8080 }, (at) => Deno.serve(at, handler));
 * await takeover.ready();
 * await seized.retire({ deadlineMs: 10_000 });
 * ```
 */
export async function seize(options: SeizeOptions): Promise<Seized> {
  return seizeFrom(await openRuntime(), options);
}

/**
 * Takes the listening sockets of a running HAProxy, as a new HAProxy does that
 * is started with `-x` (its management guide, `-x`). It serves on, with the
 * same sockets, until it is told to finish: SIGUSR1.
 *
 * @param path Its stats socket; the configuration needs
 *   `stats socket PATH expose-fd listeners level admin`.
 * @param options `timeoutMs` for all of it (10,000), `signal`, `allowUsers`, and
 *   the limits `endpointCount` and `spareCount`.
 * @returns The sockets, verified and non-blocking, which the caller owns; the
 *   stats socket that was asked is not among them, others are. They are named
 *   as in a bind line: `127.0.0.1:8080`, `/run/web.sock`, `udp@[::]:443`; several
 *   with one address (`shards`) are `127.0.0.1:8080`, `127.0.0.1:8080 #2`, and
 *   each has connections of its own, so that all of them have to be served. A
 *   Unix socket's identity names the path that HAProxy bound before it renamed it.
 * @throws {TakeoverError} `ERR_TAKEOVER_NO_LISTENER` when it gives nothing,
 *   `ERR_TAKEOVER_USER`, `ERR_TAKEOVER_TIMEOUT`, `ERR_TAKEOVER_LOST`,
 *   `ERR_TAKEOVER_LIMIT` and `ERR_TAKEOVER_NO_ROOM` for more than there may be,
 *   `ERR_TAKEOVER_PROTOCOL`, `ERR_TAKEOVER_MISSING`, `ERR_TAKEOVER_SURPLUS` and
 *   `ERR_TAKEOVER_DESCRIPTOR` when something else answers there; as
 *   {@linkcode connectChannel} for the path. Everything received is closed then.
 *
 * @example
 * ```ts ignore
 * const sockets = await socketsFromHaproxy("/run/haproxy/admin.sock", { allowUsers: [0] });
 * const takeover = await takeOver("/run/shop/takeover.sock", { inherit: sockets });
 * await takeover.listen("0.0.0.0:8080", { port: 8080 }, (at) => Deno.serve(at, handler));
 * await takeover.ready();
 * Deno.kill(Number(await Deno.readTextFile("/run/haproxy.pid")), "SIGUSR1");
 * ```
 */
export async function socketsFromHaproxy(path: string, options: HaproxyOptions = {}): Promise<HaproxySocket[]> {
  return await socketsFrom(await openRuntime(), path, options);
}

/**
 * Lets a HAProxy that is started with `-x PATH` take listening sockets of this
 * process, each for the bind line with the same address. With `-sf PID`, the
 * pid of this process, it sends SIGUSR1 as soon as it is ready. It waits one
 * second for an answer: an event loop that is blocked for longer makes it end.
 *
 * @param path At most 107 bytes, or an abstract name. HAProxy's own stats
 *   socket may be at the same path: it replaces this one, which is then left there.
 * @param listeners Asked for each client: what this process listens on then.
 *   The descriptors stay the caller's.
 * @param options `mode` (0o600), `replaceStale`, `allowUsers`, `limits`, and
 *   what hears of every client: `onTaken`, `onRefused`.
 * @returns The service; close it when HAProxy has taken over. It does not keep
 *   the process alive.
 * @throws As {@linkcode listenChannel}. What goes wrong with a client goes to `onRefused`.
 *
 * @example
 * ```ts ignore
 * // haproxy -f haproxy.cfg -x /run/shop/haproxy.sock -sf $PID_OF_THIS
 * const server = http.createServer(takeover.requestListener(app));
 * await takeover.listen("web", { port: 8080 }, (at) => server.listen(at));
 * await takeover.ready();
 * using service = await serveToHaproxy("/run/shop/haproxy.sock", () => [{ descriptor: descriptorOf(server) }]);
 * await new Promise((resolve) => process.once("SIGUSR1", resolve));
 * await takeover.close();
 * await takeover.drained();
 * ```
 */
export async function serveToHaproxy(
  path: string,
  listeners: () => Iterable<HaproxyListener>,
  options: HaproxyServiceOptions = {},
): Promise<HaproxyService> {
  return new HaproxyService(await openRuntime(), path, listeners, options);
}

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

let current: Runtime | null = null;

async function load(): Promise<Runtime> {
  const { openRuntime } = await importRuntime();
  return current = await openRuntime();
}

/** What answers at once cannot wait for libc. */
function openedRuntime(what: string): Runtime {
  if (current) return current;
  throw new TakeoverError(
    "ERR_TAKEOVER_STATE",
    `Cannot ${what} before libc is bound: await openRuntime() once, or anything else of this module`,
  );
}

function importRuntime(): Promise<{ openRuntime(): Promise<Runtime> }> {
  if ("Deno" in globalThis) return import("./runtimes/deno.ts");
  if ("Bun" in globalThis) return import("./runtimes/bun.ts");
  return import("./runtimes/node.ts");
}

export { Takeover } from "./src/handover/takeover.ts";
export type { TakeoverOptions } from "./src/handover/takeover.ts";
export type { PassedDescriptor } from "./src/handover/foreign_sockets.ts";
export type { EndpointAddress, TcpEndpoint, TcpOpening, UnixEndpoint, UnixOpening } from "./src/sockets/address.ts";
export type { Drained, FetchHandler, RequestListener } from "./src/handover/drain.ts";
export type { InheritedDescriptor, InheritedSource } from "./src/foreign/activation.ts";
export type { HaproxyOptions, HaproxySocket } from "./src/foreign/haproxy.ts";
export type { HaproxyRecord } from "./src/foreign/haproxy_records.ts";
export { HaproxyService } from "./src/foreign/haproxy_service.ts";
export type { HaproxyListener, HaproxyServiceOptions } from "./src/foreign/haproxy_service.ts";
export type { SocketIdentity } from "./src/sockets/socket.ts";
export { Notifier } from "./src/foreign/notify.ts";
export type { NotifierOptions, StoreOptions } from "./src/foreign/notify.ts";
export type { Abi, Bytes } from "./src/c/cmsg.ts";
export type { Credentials } from "./src/c/cmsg.ts";
export { Acceptor } from "./src/channels/acceptor.ts";
export type { AcceptorOptions } from "./src/channels/acceptor.ts";
export type { AdoptOptions, DatagramOpening, UnixDatagramOpening } from "./src/natives/adopt.ts";
export type { Description, DescriptorKind, TcpState } from "./src/sockets/describe.ts";
export type { Detached, DetachOptions } from "./src/natives/detach.ts";
export { OwnedDescriptor } from "./src/sockets/descriptors.ts";
export { FdChannel, FdMessage } from "./src/channels/fd_channel.ts";
export type { ReceiveOptions, SendOptions } from "./src/channels/fd_channel.ts";
export type { Descriptor } from "./src/sockets/descriptors.ts";
export { FdListener } from "./src/channels/fd_listener.ts";
export type { FdChannelOptions, FdListenerOptions } from "./src/channels/fd_listener.ts";
export type { WaitOptions } from "./src/channels/readiness.ts";
export type { SocketType } from "./src/sockets/socket.ts";
export type { PathOptions } from "./src/channels/unix_path.ts";
export type { ForeignSocket } from "./src/foreign/foreign_socket.ts";
export { Seized } from "./src/foreign/seize.ts";
export type { SeizeOptions } from "./src/foreign/choice.ts";
export type { Retired, RetireOptions } from "./src/foreign/retire.ts";
export type { Signal } from "./src/foreign/process.ts";
export { SystemError, TakeoverError, TruncatedError } from "./src/errors.ts";
export type { TakeoverErrorCode } from "./src/errors.ts";
export type { Outcome, TakeoverEvents, TakeoverEventType, TakeoverListener } from "./src/handover/events.ts";
export { defaultLimits } from "./src/limits.ts";
export type { Limits } from "./src/limits.ts";
export type { Peer } from "./src/handover/messages.ts";
export type { ControlListener, ControlStream, NativeObject, Runtime, StreamHandlers } from "./src/runtime.ts";
export { functions } from "./src/c/libc.ts";
export type { Argument, Arguments, CType, FunctionName, Libc } from "./src/c/libc.ts";
export { formatAddress } from "./src/c/sockaddr.ts";
export type { InetAddress, SocketAddress, UnixAddress } from "./src/c/sockaddr.ts";
