/**
 * Giving a native server another listening socket without its knowledge
 * (Linux). The server opens a placeholder; its descriptor is found by its
 * address, taken out of the event loop, and replaced by the true socket.
 *
 * Where there is no epoll the documented way is taken: `listen({ fd })`.
 *
 * @module
 */

import { openingOf } from "./address.ts";
import { openDescriptors, type OwnedDescriptor, owning } from "./descriptors.ts";
import { messageOf, TakeoverError } from "../errors.ts";
import { canPause, type Registration, registrationsOf, unregister } from "./event_loop.ts";
import type { Limits } from "../limits.ts";
import { bindListener, unlinkPath } from "./listener.ts";
import type { Runtime } from "../runtime.ts";
import { formatAddress, type SocketAddress } from "../c/sockaddr.ts";
import { cookieOf, duplicateOver, isListening, localAddress, type SocketIdentity } from "./socket.ts";

/** A native server that holds a socket of ours. */
export interface Adopted<T> {
  /** What the application's callback returned. */
  readonly native: T;
  /** The native server's descriptor. */
  readonly descriptor: number;
  /** What puts it back into the event loop; empty where it never left. */
  readonly registrations: readonly Registration[];
}

/** Opens a native server at an address; the answer may be a promise. */
export type Open<T> = (at: never) => T | PromiseLike<T>;

/** The first and the longest wait between two looks for a server's descriptor. */
const firstWaitMs = 1;
const longestWaitMs = 50;

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
  limits: Limits,
  name: string,
  socket: OwnedDescriptor,
  identity: SocketIdentity,
  open: Open<T>,
): Promise<Adopted<Awaited<T>>> {
  const adopted = canPause(runtime)
    ? await graft(runtime, limits, name, socket, identity.address, open)
    : await give(runtime, limits, name, socket, identity.address, open);
  const held = localAddress(runtime, adopted.descriptor);
  const same = held !== null && formatAddress(held) === formatAddress(identity.address) &&
    cookieOf(runtime, adopted.descriptor) === identity.cookie;
  if (!same) throw notTaken(name, `it holds ${held ? formatAddress(held) : "no socket"} instead`);
  runtime.present(adopted.native, identity.address);
  return adopted;
}

/**
 * A listening socket that nobody knows, of the same family: what a native
 * server is left with when its true socket has gone.
 */
export function deadListener(runtime: Runtime, family: SocketAddress["family"]): OwnedDescriptor {
  return bindListener(runtime, placeholderAddress(family, null), { port: 0, backlog: 0 });
}

async function graft<T>(
  runtime: Runtime,
  limits: Limits,
  name: string,
  socket: OwnedDescriptor,
  address: SocketAddress,
  open: Open<T>,
): Promise<Adopted<Awaited<T>>> {
  const { placeholder, likely } = freeAddress(runtime, address);
  const native = await open({ ...openingOf(placeholder), ...runtime.listenExtras(address) } as never);
  const found = await findListening(runtime, limits, name, placeholder, likely);
  const { descriptor } = found;
  if (placeholder.family === "unix") unlinkPath(runtime, placeholder.path);
  const registrations = unregister(runtime, found.registrations);
  duplicateOver(runtime, socket.number, descriptor);
  socket[Symbol.dispose]();
  return { native, descriptor, registrations };
}

/** Untested: there is no macOS here. */
async function give<T>(
  runtime: Runtime,
  limits: Limits,
  name: string,
  socket: OwnedDescriptor,
  address: SocketAddress,
  open: Open<T>,
): Promise<Adopted<Awaited<T>>> {
  const descriptor = socket.number;
  const before = openDescriptors(runtime).filter((number) => isListening(runtime, number));
  let native: Awaited<T>;
  try {
    native = await open({ fd: descriptor } as never);
  } catch (cause) {
    throw notTaken(name, `the server does not open a descriptor on ${runtime.abi.platform} (${messageOf(cause)})`, cause);
  }
  const other = openDescriptors(runtime).find((number) => isListening(runtime, number) && !before.includes(number));
  if (other !== undefined) throw notTaken(name, "the server ignored the descriptor and opened a socket of its own");
  socket.take();
  await findListening(runtime, limits, name, address, descriptor);
  return { native, descriptor, registrations: [] };
}

/**
 * An address for the placeholder that nothing else in the process has: for TCP
 * a random one of the 16 million of 127.0.0.0/8, for a Unix path a random name
 * beside it. An IPv6 listener fits under an IPv4 one.
 *
 * @returns The address, and the number that the server's descriptor is likely
 *   to have: the lowest that was free.
 */
function freeAddress(runtime: Runtime, address: SocketAddress): { placeholder: SocketAddress; likely: number } {
  const wanted = placeholderAddress(address.family, address.family === "unix" ? address.path : null);
  if (wanted.family === "unix") return { placeholder: wanted, likely: -1 };
  return owning(bindListener(runtime, wanted, { port: 0 }), ({ number }) => ({
    placeholder: localAddress(runtime, number)!,
    likely: number,
  }));
}

function placeholderAddress(family: SocketAddress["family"], path: string | null): SocketAddress {
  const random = crypto.getRandomValues(new Uint8Array(4));
  // Without a path, the kernel picks an abstract name (unix(7), autobind).
  if (family === "unix") return { family, path: path === null ? "" : `${path.slice(0, path.lastIndexOf("/") + 1)}.${random.join("")}` };
  const [, b, c, d] = random;
  return { family: "inet", hostname: `127.${b}.${c}.${1 + d! % 254}`, port: 0 };
}

/** Where a native server was found. */
interface Found {
  readonly descriptor: number;
  /** Its entry in the event loop; none where there is no epoll. */
  readonly registrations: readonly Registration[];
}

/** The native server may still be on its way: `open` need not wait for it. */
async function findListening(
  runtime: Runtime,
  limits: Limits,
  name: string,
  placeholder: SocketAddress,
  likely: number,
): Promise<Found> {
  const until = Date.now() + limits.openMs;
  const listens = (descriptor: number) => {
    const address = localAddress(runtime, descriptor);
    return address !== null && isPlaceholder(address, placeholder) && isListening(runtime, descriptor);
  };
  for (let waitMs = firstWaitMs;; waitMs = Math.min(waitMs * 2, longestWaitMs)) {
    const descriptor = listens(likely) ? likely : openDescriptors(runtime).findLast(listens);
    if (descriptor !== undefined) {
      const registrations = canPause(runtime) ? registrationsOf(runtime, descriptor) : [];
      if (registrations.length > 0 || !canPause(runtime)) return { descriptor, registrations };
    }
    if (Date.now() >= until) {
      throw notTaken(
        name,
        `nothing listens on ${formatAddress(placeholder)} ${limits.openMs} ms after the callback returned ` +
          "(limit openMs); pass what the callback is given on to the server",
      );
    }
    await new Promise((resolve) => setTimeout(resolve, waitMs));
  }
}

/** A server that ignores the host name still takes the port. */
function isPlaceholder(address: SocketAddress, placeholder: SocketAddress): boolean {
  if (address.family === "unix" || placeholder.family === "unix") {
    return formatAddress(address) === formatAddress(placeholder);
  }
  const anywhere = ["0.0.0.0", "::"].includes(address.hostname);
  return address.port === placeholder.port && (anywhere || address.hostname === placeholder.hostname);
}

function notTaken(name: string, why: string, cause?: unknown): TakeoverError {
  return new TakeoverError("ERR_TAKEOVER_ADOPT", `Cannot put the endpoint ${JSON.stringify(name)} into its server: ${why}`, { cause });
}
