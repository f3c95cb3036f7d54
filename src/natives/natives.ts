/**
 * The descriptors of native objects: what the runtime tells, what is known of
 * objects that were given their sockets here, and for all others the one
 * socket of the process that is where the object says that it is.
 *
 * @module
 */

import { formatAddress, sameAddress, type SocketAddress } from "../c/sockaddr.ts";
import { TakeoverError } from "../errors.ts";
import type { NativeObject, Runtime } from "../runtime.ts";
import { openDescriptors } from "../sockets/descriptors.ts";
import { cookieOf, identify, localAddress, peerAddress } from "../sockets/socket.ts";
import { watchedDescriptors } from "../sockets/watches.ts";

/** What an object was given. */
interface Held {
  readonly descriptor: number;
  readonly cookie: string;
}

const given = new WeakMap<object, Held>();

/** Keeps in mind which descriptor an object holds; it may say something else of itself. */
export function remember(native: unknown, descriptor: number, cookie: string): void {
  if (typeof native === "object" && native !== null) given.set(native, { descriptor, cookie });
}

/** The descriptor that an object was given here and still holds, or -1. */
export function remembered(runtime: Runtime, native: unknown): number {
  const held = given.get(native as object);
  return held && held.cookie !== "" && cookieOf(runtime, held.descriptor) === held.cookie ? held.descriptor : -1;
}

/**
 * The descriptor of a native object, which stays the object's.
 *
 * Node and Bun tell it of nearly everything. Deno's objects, and servers of
 * Bun, are looked for by their addresses. When several sockets are there, as
 * with Unix connections to one path, the one that is in the event loop counts.
 *
 * @throws {TakeoverError} `ERR_TAKEOVER_CLOSED` when it holds no open socket,
 *   `ERR_TAKEOVER_UNSUPPORTED` when it is no object of this runtime that has a
 *   socket, or cannot be told from another one.
 */
export function descriptorOf(runtime: Runtime, native: unknown): number {
  const known = remembered(runtime, native);
  return known >= 0 ? known : locate(runtime, inspected(runtime, native));
}

/**
 * What a runtime says of one of its objects.
 *
 * @throws {TakeoverError} `ERR_TAKEOVER_UNSUPPORTED` when it is none.
 */
export function inspected(runtime: Runtime, native: unknown): NativeObject {
  const found = runtime.inspect(native);
  if (found) return found;
  const name = (native as object | null)?.constructor?.name ?? String(native);
  throw new TakeoverError(
    "ERR_TAKEOVER_UNSUPPORTED",
    `Cannot tell the descriptor of ${name}: expected a listener, server, connection or datagram socket of ${runtime.name}`,
  );
}

function locate(runtime: Runtime, object: NativeObject): number {
  const { kind, descriptor, local, peer } = object;
  if (descriptor >= 0) {
    if (isAt(runtime, descriptor, local, peer)) return descriptor;
    throw closed(kind, local);
  }
  if (!local) throw closed(kind, local);
  const all = openDescriptors(runtime).filter((number) =>
    isAt(runtime, number, local, peer) && isKind(runtime, number, kind)
  );
  if (all.length === 1) return all[0]!;
  if (all.length === 0) throw closed(kind, local);
  const watched = watchedDescriptors(runtime);
  const live = all.filter((number) => watched.has(number));
  if (live.length === 1) return live[0]!;
  throw new TakeoverError(
    "ERR_TAKEOVER_UNSUPPORTED",
    `Cannot tell the descriptor of the ${kind} at ${shownAddress(local)}: ${all.join(", ")} are alike, and ` +
      `${live.length} of them are in the event loop; keep the descriptor of what you adopt, or use node:net`,
  );
}

/** What an object does not say of itself is not compared. */
function isAt(runtime: Runtime, descriptor: number, local: SocketAddress | null, peer: SocketAddress | null): boolean {
  const held = localAddress(runtime, descriptor);
  if (!held || local && !sameAddress(held, local)) return false;
  const other = peer && peerAddress(runtime, descriptor);
  return !peer || !other || sameAddress(other, peer);
}

function isKind(runtime: Runtime, descriptor: number, kind: NativeObject["kind"]): boolean {
  const { type, listening } = identify(runtime, descriptor)!;
  if (kind === "datagram") return type === "dgram";
  return type === "stream" && listening === (kind !== "connection");
}

function closed(kind: NativeObject["kind"], local: SocketAddress | null): TakeoverError {
  return new TakeoverError(
    "ERR_TAKEOVER_CLOSED",
    `Cannot tell the descriptor of the ${kind}${local ? ` at ${shownAddress(local)}` : ""}: ` +
      "no open socket of this process is it; pass one that is open",
  );
}

function shownAddress(address: SocketAddress): string {
  return formatAddress(address) || "an unnamed Unix address";
}
