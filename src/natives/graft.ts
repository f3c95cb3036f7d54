/**
 * Giving a native object another socket without its knowledge (Linux). The
 * object is opened at a placeholder; its descriptor is found by its address,
 * taken out of the event loop, and replaced by the true socket.
 *
 * Where there is no epoll the documented way is taken: the callback is given
 * `{ fd }`.
 *
 * @module
 */

import { openDescriptors, type OwnedDescriptor } from "../sockets/descriptors.ts";
import { messageOf, TakeoverError } from "../errors.ts";
import { canPause, register, type Registration, unregister } from "../sockets/event_loop.ts";
import type { Limits } from "../limits.ts";
import { bindListener } from "../sockets/listener.ts";
import { listenerPlaceholder, type Placeholder, placeholderAddress } from "./placeholder.ts";
import type { Runtime } from "../runtime.ts";
import { formatAddress, type SocketAddress } from "../c/sockaddr.ts";
import { cookieOf, duplicateOver, isListening, localAddress, type SocketIdentity } from "../sockets/socket.ts";
import { remember } from "./natives.ts";
import { watchesOf } from "../sockets/watches.ts";

/** A native object that holds a socket of ours. */
export interface Adopted<T> {
  /** What the application's callback returned. */
  readonly native: T;
  /** The native object's descriptor. */
  readonly descriptor: number;
  /** What puts it back into the event loop; empty where it never left. */
  readonly registrations: readonly Registration[];
}

/** Opens a native object at an address; the answer may be a promise. */
export type Open<T> = (at: never) => T | PromiseLike<T>;

/** A socket to be put into a native object. */
export interface Graft<T> {
  /** What is put where, for messages: `Cannot put … : why`. */
  readonly what: string;
  /** How long the object may take to be there. */
  readonly openMs: number;
  /** The socket, which stays the caller's: the object gets a copy. */
  readonly socket: number;
  /** Its `SO_COOKIE`: while the callback runs the number may become another socket's. */
  readonly cookie: string;
  readonly placeholder: Placeholder;
  /** What the callback is given beside the placeholder's address. */
  readonly extras: Readonly<Record<string, unknown>>;
  /** Whether an object can be given its socket already: what it does with the placeholder's is lost. */
  isReady(native: Awaited<T>, registrations: () => readonly Registration[]): boolean;
  /** The application's callback. */
  readonly open: Open<T>;
}

/** The first and the longest wait between two looks for an object's descriptor. */
const firstWaitMs = 1;
const longestWaitMs = 50;

/** How many numbers are looked at before all are: the lowest that was free may be another's by now. */
const likelyCount = 32;

/**
 * Opens a native server and puts a listening socket into it. On Linux the
 * server comes back paused.
 *
 * @param name The endpoint's, for messages.
 * @param socket The listening socket; taken on success, else still the caller's.
 * @param identity What the socket is, and what the server must hold afterwards.
 * @param open The application's callback.
 * @throws {TakeoverError} `ERR_TAKEOVER_ADOPT` when the server did not take the
 *   address it was given, or holds another socket afterwards.
 */
export async function adopt<T>(
  runtime: Runtime,
  limits: Pick<Limits, "openMs">,
  name: string,
  socket: OwnedDescriptor,
  identity: SocketIdentity,
  open: Open<T>,
): Promise<Adopted<Awaited<T>>> {
  const what = `the endpoint ${JSON.stringify(name)} into its server`;
  return await adoptInto(runtime, limits, what, socket, identity, open);
}

/** The same in other words: `Cannot put <what>: …`. */
export async function adoptInto<T>(
  runtime: Runtime,
  { openMs }: Pick<Limits, "openMs">,
  what: string,
  socket: OwnedDescriptor,
  { address, cookie }: Pick<SocketIdentity, "address" | "cookie">,
  open: Open<T>,
): Promise<Adopted<Awaited<T>>> {
  const placeholder = canPause(runtime) ? listenerPlaceholder(runtime, address) : null;
  let adopted: Adopted<Awaited<T>>;
  try {
    adopted = placeholder
      ? await graft(runtime, {
        what,
        openMs,
        socket: socket.number,
        cookie,
        placeholder,
        extras: runtime.listenExtras(address),
        isReady: (_, registrations) => registrations().length > 0,
        open,
      })
      : await give(runtime, what, socket, open);
  } finally {
    placeholder?.[Symbol.dispose]();
  }
  const held = localAddress(runtime, adopted.descriptor);
  const same = held !== null && formatAddress(held) === formatAddress(address) &&
    cookieOf(runtime, adopted.descriptor) === cookie;
  if (!same) throw notTaken(what, `it holds ${held ? formatAddress(held) : "no socket"} instead`);
  socket[Symbol.dispose]();
  runtime.present(adopted.native, address);
  remember(adopted.native, adopted.descriptor, cookie);
  return adopted;
}

/**
 * Opens a native object at a placeholder and puts a copy of a socket under it,
 * out of the event loop: {@linkcode register} puts it back.
 *
 * @throws {TakeoverError} `ERR_TAKEOVER_ADOPT` when the object is not there in
 *   time, `ERR_TAKEOVER_CLOSED` when the socket was closed meanwhile.
 */
export async function graft<T>(runtime: Runtime, order: Graft<T>): Promise<Adopted<Awaited<T>>> {
  const { placeholder, socket, cookie } = order;
  const native = await order.open({ ...placeholder.at, ...order.extras } as never);
  const found = await find(runtime, order, native);
  if (cookieOf(runtime, socket) !== cookie) {
    throw new TakeoverError(
      "ERR_TAKEOVER_CLOSED",
      `Cannot put ${order.what}: the descriptor ${socket} was closed meanwhile; leave it open until this is done`,
    );
  }
  const registrations = unregister(runtime, found.registrations);
  try {
    duplicateOver(runtime, socket, found.descriptor);
  } catch (error) {
    register(runtime, registrations);
    throw error;
  }
  return { native, descriptor: found.descriptor, registrations };
}

/**
 * A listening socket that nobody knows, of the same family: what a native
 * server is left with when its true socket has gone.
 */
export function deadListener(runtime: Runtime, family: SocketAddress["family"]): OwnedDescriptor {
  return bindListener(runtime, placeholderAddress(family, null), { port: 0, backlog: 0 });
}

/** A runtime did not take a socket. */
export function notTaken(what: string, why: string, cause?: unknown): TakeoverError {
  return new TakeoverError("ERR_TAKEOVER_ADOPT", `Cannot put ${what}: ${why}`, { cause });
}

/** Untested: there is no macOS here. */
async function give<T>(
  runtime: Runtime,
  what: string,
  socket: OwnedDescriptor,
  open: Open<T>,
): Promise<Adopted<Awaited<T>>> {
  const descriptor = socket.number;
  const before = openDescriptors(runtime).filter((number) => isListening(runtime, number));
  let native: Awaited<T>;
  try {
    native = await open({ fd: descriptor } as never);
  } catch (cause) {
    throw notTaken(
      what,
      `the server does not open a descriptor on ${runtime.abi.platform} (${messageOf(cause)})`,
      cause,
    );
  }
  const other = openDescriptors(runtime).find((number) => isListening(runtime, number) && !before.includes(number));
  if (other !== undefined) throw notTaken(what, "the server ignored the descriptor and opened a socket of its own");
  socket.take();
  return { native, descriptor, registrations: [] };
}

/** Where a native object was found. */
interface Found {
  readonly descriptor: number;
  /** Its entry in the event loop. */
  readonly registrations: readonly Registration[];
}

/** The native object may still be on its way: `open` need not wait for it. */
async function find<T>(runtime: Runtime, order: Graft<T>, native: Awaited<T>): Promise<Found> {
  const { placeholder, openMs } = order;
  const until = Date.now() + openMs;
  for (let waitMs = firstWaitMs;; waitMs = Math.min(waitMs * 2, longestWaitMs)) {
    const descriptor = holderOf(runtime, placeholder, native);
    if (descriptor !== undefined) {
      // Reading them costs more than anything else here, and more with every connection.
      let found: readonly Registration[] | null = null;
      const registrations = () => found ??= watchesOf(runtime, descriptor);
      if (order.isReady(native, registrations)) return { descriptor, registrations: registrations() };
    }
    if (Date.now() >= until) {
      throw notTaken(
        order.what,
        `${placeholder.missing} ${openMs} ms after the callback returned ` +
          "(limit openMs); pass what the callback is given on to the server",
      );
    }
    await new Promise((resolve) => setTimeout(resolve, waitMs));
  }
}

/** What the object says, else one of the numbers that were free, else any. */
function holderOf(runtime: Runtime, { likely, isHeldBy }: Placeholder, native: unknown): number | undefined {
  const told = runtime.inspect(native)?.descriptor ?? -1;
  if (told >= 0) return isHeldBy(told) ? told : undefined;
  for (let number = Math.max(likely, 0); number < likely + likelyCount; number++) {
    if (isHeldBy(number)) return number;
  }
  return openDescriptors(runtime).findLast((number) => isHeldBy(number));
}
