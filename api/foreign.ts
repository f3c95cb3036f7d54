/**
 * Sockets from programs that know nothing of this library, and to them.
 *
 * @module
 */

import { type InheritedDescriptor, inheritedDescriptors as findInherited } from "../src/foreign/activation.ts";
import type { SeizeOptions } from "../src/foreign/choice.ts";
import { type HaproxyOptions, type HaproxySocket, socketsFromHaproxy as socketsFrom } from "../src/foreign/haproxy.ts";
import { type HaproxyListener, HaproxyService, type HaproxyServiceOptions } from "../src/foreign/haproxy_service.ts";
import { Notifier, type NotifierOptions } from "../src/foreign/notify.ts";
import { type Seized, seizeFrom } from "../src/foreign/seize.ts";
import { openRuntime } from "./runtime.ts";

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
 * Sockets that are accepted on in two processes have to be non-blocking, in
 * both. Where the old one blocks in accept, `sockets` throws
 * `ERR_TAKEOVER_UNSUPPORTED` until it was retired: retire it first, and what
 * comes waits in the queue. With `allowBlocking` they are made non-blocking at
 * once, for a server that goes on when accept finds nothing (EAGAIN).
 *
 * @param options Which process, and which of its listeners; all of them, when
 *   neither an address nor a port is given.
 * @returns The sockets, verified, and what ends the process.
 *   Members of an SO_REUSEPORT group are all there.
 * @throws {TakeoverError} `ERR_TAKEOVER_PROCESS` when it does not run, is not
 *   the one that was meant, or is a worker of another; `ERR_TAKEOVER_PTRACE`
 *   when this user may not trace it (ptrace(2)); `ERR_TAKEOVER_NO_LISTENER` when
 *   it has no such listener; `ERR_TAKEOVER_SELF`, `ERR_TAKEOVER_RANGE`,
 *   `ERR_TAKEOVER_ADDRESS`, `ERR_TAKEOVER_UNSUPPORTED`.
 *
 * @example
 * ```ts ignore
 * const seized = await seize({ pid: 4711, port: 8080, name: "web" });
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
