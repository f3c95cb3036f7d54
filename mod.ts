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
export { SystemError, TakeoverError } from "./src/errors.ts";
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
