/**
 * From descriptors to native objects: any listener, connection or datagram
 * socket into whatever the application opens.
 *
 * @module
 */

import { formatAddress, type SocketAddress } from "../c/sockaddr.ts";
import { TakeoverError } from "../errors.ts";
import { limitsFrom } from "../limits.ts";
import type { Runtime } from "../runtime.ts";
import { checkedNumber, describe, type Description } from "../sockets/describe.ts";
import { OwnedDescriptor } from "../sockets/descriptors.ts";
import { canPause, register, type Registration } from "../sockets/event_loop.ts";
import type { Descriptor } from "../sockets/descriptors.ts";
import { adoptInto, graft, notTaken, type Open } from "./graft.ts";
import { remember } from "./natives.ts";
import { connectionPlaceholder, datagramPlaceholder, type Placeholder } from "./placeholder.ts";
import { cookieOf, integerOption, isListening, localAddress, peerAddress, setNonBlocking } from "../sockets/socket.ts";

/** What a descriptor can be adopted as. */
export type AdoptedKind = "listener" | "connection" | "datagram socket";

/** How long an adoption may take. */
export interface AdoptOptions {
  /** Until the object that the callback opens is there, in milliseconds; 10,000. Past it: ERR_TAKEOVER_ADOPT. */
  readonly openMs?: number;
}

/** Where a callback of `bind` or `adoptDatagram` opens its socket, in the words of all runtimes. */
export interface DatagramOpening {
  /** Numeric, of the family of the socket that is adopted. */
  readonly hostname: string;
  /** The same, under another name. */
  readonly host: string;
  /** The same, under the name that `node:dgram` uses. */
  readonly address: string;
  /** 1 to 65535. */
  readonly port: number;
}

/** The same for a Unix datagram socket, which only Deno has. */
export interface UnixDatagramOpening {
  /** At most 107 bytes. */
  readonly path: string;
  /** What `Deno.listenDatagram` wants beside a path. */
  readonly transport: "unixpacket";
}

/** A socket that is to be adopted, and is still the caller's. */
export interface Given {
  /** What it is, for messages: `the descriptor 7 into a listener`. */
  readonly what: string;
  readonly number: number;
  readonly cookie: string;
  readonly local: SocketAddress;
  readonly peer: SocketAddress | null;
  /** Closes the caller's copy, which the native object has one of. */
  close(): void;
  /** The number itself, which the native object closes from here on. */
  take(): number;
}

const EPOLLIN = 1;

/** Puts a listening socket into a native server; see `adoptListener` of mod.ts. */
export async function adoptListener<T>(
  runtime: Runtime,
  descriptor: Descriptor,
  open: Open<T>,
  options: AdoptOptions = {},
): Promise<Awaited<T>> {
  const given = checkedSocket(runtime, descriptor, "listener");
  const { what, local, cookie } = given;
  const copy = typeof descriptor === "number" ? new OwnedDescriptor(runtime, descriptor) : descriptor;
  try {
    const adopted = await adoptInto(runtime, limitsFrom(options), what, copy, { address: local, cookie }, open);
    register(runtime, adopted.registrations);
    return adopted.native;
  } catch (error) {
    // A number is still its caller's.
    if (typeof descriptor === "number") copy.take();
    throw error;
  }
}

/** Puts a connection into a native one; see `adoptConnection` of mod.ts. */
export async function adoptConnection<T>(
  runtime: Runtime,
  descriptor: Descriptor,
  open: Open<T>,
  options: AdoptOptions = {},
): Promise<Awaited<T>> {
  const given = checkedSocket(runtime, descriptor, "connection");
  if (!canPause(runtime)) return await give(runtime, given, open);
  const placeholder = connectionPlaceholder(runtime, given.local.family);
  try {
    return await place(runtime, given, placeholder, open, options, isConnected(runtime), () => {
      forward(runtime, given, placeholder.written());
    });
  } finally {
    placeholder[Symbol.dispose]();
  }
}

/** Puts a datagram socket into a native one; see `adoptDatagram` of mod.ts. */
export async function adoptDatagram<T>(
  runtime: Runtime,
  descriptor: Descriptor,
  open: Open<T>,
  options: AdoptOptions = {},
): Promise<Awaited<T>> {
  const given = checkedSocket(runtime, descriptor, "datagram socket");
  if (!canPause(runtime)) return await give(runtime, given, open);
  const placeholder = datagramPlaceholder(runtime, given.local.family);
  try {
    return await place(runtime, given, placeholder, open, options, (_, registrations) => registrations().length > 0);
  } finally {
    placeholder[Symbol.dispose]();
  }
}

/**
 * Adopts the way a runtime documents: it is given the number itself.
 *
 * @param open Gives the number to the runtime. Until it returns, the number is
 *   the caller's.
 */
export async function adoptNumber<T>(
  runtime: Runtime,
  descriptor: Descriptor,
  kind: AdoptedKind,
  open: (number: number, given: Given) => T | PromiseLike<T>,
): Promise<Awaited<T>> {
  const given = checkedSocket(runtime, descriptor, kind);
  const native = await open(given.number, given);
  const told = runtime.inspect(native)?.descriptor ?? -1;
  const held = told < 0 ? given.number : told;
  checkHeld(runtime, given, held);
  finish(runtime, given, native, held);
  given.take();
  return native;
}

/**
 * Looks at what is to be adopted, and sets `O_NONBLOCK`: a runtime that reads
 * from a blocking socket blocks its whole process.
 *
 * @throws {TakeoverError} `ERR_TAKEOVER_CLOSED`, `ERR_TAKEOVER_RANGE`,
 *   `ERR_TAKEOVER_NOT_SOCKET`, `ERR_TAKEOVER_DESCRIPTOR`.
 */
export function checkedSocket(runtime: Runtime, descriptor: Descriptor, kind: AdoptedKind): Given {
  const number = checkedNumber(runtime, descriptor);
  const local = localAddress(runtime, number);
  const peer = kind === "connection" ? peerAddress(runtime, number) : null;
  if (!local || !isOfKind(runtime, number, kind, peer)) throw wrongKind(describe(runtime, number), kind);
  setNonBlocking(runtime, number);
  return {
    what: `the descriptor ${number} into a native ${kind}`,
    number,
    cookie: cookieOf(runtime, number),
    local,
    peer,
    close: () => typeof descriptor === "number" ? void runtime.libc.close(descriptor) : descriptor[Symbol.dispose](),
    take: () => typeof descriptor === "number" ? descriptor : descriptor.take(),
  };
}

/**
 * Checks that a native object holds what it was given.
 *
 * @throws {TakeoverError} `ERR_TAKEOVER_ADOPT` when it does not.
 */
export function checkHeld(
  runtime: Runtime,
  { what, cookie, local, peer }: Pick<Given, "what" | "cookie" | "local" | "peer">,
  descriptor: number,
): void {
  const isHeld = cookieOf(runtime, descriptor) === cookie && isSame(localAddress(runtime, descriptor), local) &&
    isPeer(peerAddress(runtime, descriptor), peer);
  if (!isHeld) {
    throw notTaken(what, "the object holds another socket, or none; pass what the callback is given on to it");
  }
}

/** A connection that is reset meanwhile is connected to nobody. */
function isPeer(held: SocketAddress | null, expected: SocketAddress | null): boolean {
  return !held || !expected || isSame(held, expected);
}

function isSame(a: SocketAddress | null, b: SocketAddress | null): boolean {
  return (a && formatAddress(a)) === (b && formatAddress(b));
}

function isOfKind(runtime: Runtime, number: number, kind: AdoptedKind, peer: SocketAddress | null): boolean {
  const { SO_TYPE, SOCK_STREAM, SOCK_DGRAM } = runtime.abi.constants;
  const type = integerOption(runtime, number, SO_TYPE);
  if (kind === "datagram socket") return type === SOCK_DGRAM;
  return type === SOCK_STREAM && (kind === "listener" ? isListening(runtime, number) : peer !== null);
}

function wrongKind(found: Description, kind: AdoptedKind): TakeoverError {
  const { descriptor } = found;
  if (found.kind !== "socket") {
    return new TakeoverError(
      "ERR_TAKEOVER_NOT_SOCKET",
      `Cannot adopt the descriptor ${descriptor}: expected a socket, it is of the kind ${found.kind}`,
    );
  }
  return new TakeoverError(
    "ERR_TAKEOVER_DESCRIPTOR",
    `Cannot adopt the descriptor ${descriptor} as a ${kind}: it is ${
      shown(found)
    }; use the function for that, if there is one`,
  );
}

function shown({ family, type, listening, peer, tcpState }: Description): string {
  const what = listening ? "that listens" : peer ? "that is connected" : "that is not connected";
  return `a socket of the family ${family} and the type ${type} ${what}${tcpState ? ` (${tcpState})` : ""}`;
}

/** An object that the callback wraps is connected once the event loop reads for it. */
function isConnected(runtime: Runtime): (native: unknown, registrations: () => readonly Registration[]) => boolean {
  return (native, registrations) => {
    const object = runtime.inspect(native);
    return object ? object.isOpen : registrations().some(({ events }) => (events & EPOLLIN) !== 0);
  };
}

async function place<T>(
  runtime: Runtime,
  given: Given,
  placeholder: Placeholder,
  open: Open<T>,
  options: AdoptOptions,
  isReady: (native: Awaited<T>, registrations: () => readonly Registration[]) => boolean,
  onGrafted: () => void = () => {},
): Promise<Awaited<T>> {
  const { what, number: socket, cookie } = given;
  const { openMs } = limitsFrom(options);
  const order = { what, openMs, socket, cookie, placeholder, extras: {}, isReady, open };
  const { native, descriptor, registrations } = await graft(runtime, order);
  // Whatever waits in the socket already is told of by putting it in.
  register(runtime, registrations);
  onGrafted();
  checkHeld(runtime, given, descriptor);
  finish(runtime, given, native, descriptor);
  given.close();
  return native;
}

/** What the callback wrote went to the placeholder. */
function forward(runtime: Runtime, { what, number }: Given, bytes: Uint8Array): void {
  if (bytes.length === 0) return;
  const result = runtime.libc.write(number, bytes as Uint8Array<ArrayBuffer>, bytes.length);
  if (result === bytes.length) return;
  throw notTaken(
    what,
    `the callback has written ${bytes.length} bytes, and the socket took ${
      Math.max(result, 0)
    }; write when this is done`,
  );
}

function finish(runtime: Runtime, given: Given, native: unknown, descriptor: number): void {
  runtime.present(native, given.local, given.peer);
  remember(native, descriptor, given.cookie);
}

/** Untested: there is no macOS here. */
async function give<T>(runtime: Runtime, given: Given, open: Open<T>): Promise<Awaited<T>> {
  const native = await open({ fd: given.number } as never);
  const held = runtime.inspect(native)?.descriptor ?? -1;
  if (held !== given.number) {
    throw notTaken(given.what, `the object did not take a descriptor on ${runtime.abi.platform}`);
  }
  given.take();
  return native;
}
