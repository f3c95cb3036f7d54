/**
 * Connections of this process to a server of its own, which has accepted them
 * and waits for their first byte: each is a seat that another socket can take.
 *
 * The server's end is the one whose peer is ours, and ours is bound where no
 * other client is: at a random address of 127.0.0.0/8, at a port above those
 * that the kernel gives to clients, or at an abstract name.
 *
 * @module
 */

import { allocate, viewOf } from "../c/bytes.ts";
import { errnoOf } from "../c/errno.ts";
import { encodeSockaddr, formatAddress, type SocketAddress } from "../c/sockaddr.ts";
import { checked, messageOf, TakeoverError } from "../errors.ts";
import { placeholderAddress } from "../natives/placeholder.ts";
import type { Runtime } from "../runtime.ts";
import { OwnedDescriptor, openDescriptors } from "../sockets/descriptors.ts";
import type { Registration } from "../sockets/event_loop.ts";
import { cookieOf, localAddress, openSocket, peerAddress } from "../sockets/socket.ts";
import { watchesOfAll } from "../sockets/watches.ts";

/** A server of this process that accepts connections. */
export interface OwnServer {
  /** Where it listens. */
  readonly address: SocketAddress;
  /** Its descriptor. */
  readonly listener: number;
}

/** Where the server's own end is, once it is known. */
interface Found {
  readonly descriptor: number;
  readonly cookie: string;
}

const EPOLLIN = 1;

/** Linux's TCP_DEFER_ACCEPT (tcp(7)): how many seconds a listener waits for a connection's first byte. */
const IPPROTO_TCP = 6;
const TCP_DEFER_ACCEPT = 9;

/** Ports above net.ipv4.ip_local_port_range, which is 32768 to 60999 unless it was changed. */
const firstPort = 61_000;
const portCount = 65_536 - firstPort;
const portTries = 16;

/** How many are opened, or looked at, before others have their turn. */
const openedAtOnce = 32;
const lookedAtOnce = 512;

/** The first and the longest wait between two looks. */
const firstWaitMs = 1;
const longestWaitMs = 50;

/** How long only the likely numbers are looked at, and how many those are at most. */
const likelyMs = 20;
const likelyCount = 2_048;

/** Names of the seats of this process, as long as they are open. */
const names = new Set<string>();

/** One connection to the server. */
export class Seat {
  /** Our end, which the server takes for a client. */
  readonly end: OwnedDescriptor;
  /** Where our end is, as the server sees it. */
  readonly name: SocketAddress;
  /** What puts the server's end into its event loop; null when it is not known, or may have changed. */
  registration: Registration | null = null;
  /** Whether anything was said over it. */
  isSpokenOver = false;
  readonly #runtime: Runtime;
  #found: Found | null = null;

  constructor(runtime: Runtime, end: OwnedDescriptor, name: SocketAddress) {
    this.#runtime = runtime;
    this.end = end;
    this.name = name;
    names.add(keyOf(name));
  }

  /** The server's descriptor. */
  get descriptor(): number {
    return this.#found!.descriptor;
  }

  /** Its `SO_COOKIE`, as long as the server holds its end. */
  get cookie(): string {
    return this.#found!.cookie;
  }

  /** Whether the server still holds its end; it may have closed it. */
  get isHeld(): boolean {
    return this.#found !== null && cookieOf(this.#runtime, this.#found.descriptor) === this.#found.cookie;
  }

  /** Whether the server's end was found, and waits for bytes. */
  get isReady(): boolean {
    return this.registration !== null && this.isHeld;
  }

  /** The server's end is that descriptor. */
  find(descriptor: number): void {
    this.#found = { descriptor, cookie: cookieOf(this.#runtime, descriptor) };
  }

  /** Leaves, as a client that has nothing more to say. */
  close(): void {
    names.delete(keyOf(this.name));
    this.end[Symbol.dispose]();
  }
}

/** Whether whoever is at the other end of a connection is a seat of this process, and no client. */
export function isSeat(peer: SocketAddress): boolean {
  return names.size > 0 && names.has(keyOf(peer));
}

/**
 * Opens seats.
 *
 * @param isTaken Whether a connection that lives is known by that name.
 * @param isOver Whether the server accepts no more.
 * @returns As many as asked for, each a seat or why there is none.
 */
export async function openSeats(
  runtime: Runtime,
  server: OwnServer,
  count: number,
  openMs: number,
  isTaken: (name: SocketAddress) => boolean,
  isOver: () => boolean = () => false,
): Promise<(Seat | TakeoverError)[]> {
  const end = Date.now() + openMs;
  const isLate = () => Date.now() >= end || isOver();
  const opened: (Seat | TakeoverError)[] = [];
  const seats = () => opened.filter((seat) => seat instanceof Seat);
  try {
    while (opened.length < count) {
      if (opened.length > 0) await turn();
      const some = Array.from({ length: Math.min(openedAtOnce, count - opened.length) });
      opened.push(...undeferred(runtime, server, () => some.map(() => openSeat(runtime, server, isTaken))));
    }
    await found(runtime, seats(), isLate);
    await watched(runtime, seats(), isLate);
  } catch (error) {
    for (const seat of seats()) seat.close();
    throw error;
  }
  return opened.map((seat) => seat instanceof Seat && !seat.isReady ? abandoned(seat, server, openMs) : seat);
}

/** Reads anew what puts the server's ends into its event loop; once for all. */
export function readRegistrations(runtime: Runtime, seats: readonly Seat[]): void {
  const held = seats.filter((seat) => seat.isHeld);
  const entries = watchesOfAll(runtime, held.map(({ descriptor }) => descriptor));
  for (const seat of held) {
    const entry = entries.get(seat.descriptor);
    seat.registration = entry && (entry.events & EPOLLIN) !== 0 ? entry : null;
  }
}

/** Addresses as keys; an IPv6 socket names an IPv4 address in its own way (RFC 4291, section 2.5.5.2). */
export function keyOf(address: SocketAddress): string {
  return formatAddress(address).replace(/^\[::ffff:([\d.]+)\]/, "$1");
}

/** Lets others have their turn. */
export function turn(ms = 0): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

function openSeat(
  runtime: Runtime,
  { address, listener }: OwnServer,
  isTaken: (name: SocketAddress) => boolean,
): Seat | TakeoverError {
  const target = reachable(runtime, address, listener);
  try {
    const end = new OwnedDescriptor(runtime, openSocket(runtime, target.family, "stream"));
    try {
      bindApart(runtime, end.number, target, isTaken);
      connect(runtime, end.number, target);
      return new Seat(runtime, end, localAddress(runtime, end.number)!);
    } catch (error) {
      end[Symbol.dispose]();
      throw error;
    }
  } catch (cause) {
    return new TakeoverError(
      "ERR_TAKEOVER_ADOPT",
      `Cannot connect to the server at ${formatAddress(address)}: ${messageOf(cause)}`,
      { cause },
    );
  }
}

/**
 * A listener may let its server accept no connection before its first byte
 * has come, as Bun's own do. While ours are opened, it does not.
 */
function undeferred<T>({ abi, libc }: Runtime, { listener }: OwnServer, open: () => T): T {
  const [value, size] = [allocate(4), allocate(4)];
  viewOf(size).setInt32(0, 4, true);
  const isDeferred = libc.getsockopt(listener, IPPROTO_TCP, TCP_DEFER_ACCEPT, value, size) >= 0 &&
    viewOf(value).getInt32(0, true) > 0;
  if (!isDeferred) return open();
  checked(abi, "setsockopt", libc.setsockopt(listener, IPPROTO_TCP, TCP_DEFER_ACCEPT, allocate(4), 4));
  try {
    return open();
  } finally {
    libc.setsockopt(listener, IPPROTO_TCP, TCP_DEFER_ACCEPT, value, 4);
  }
}

/** Where a listener that is bound to all addresses can be reached; over IPv4 where it takes both. */
function reachable(runtime: Runtime, address: SocketAddress, listener: number): SocketAddress {
  if (address.family === "unix") return address;
  const { port, hostname } = address;
  const loopback: SocketAddress = { family: "inet", hostname: "127.0.0.1", port };
  if (hostname === "0.0.0.0") return loopback;
  if (hostname !== "::") return address;
  return isDualStack(runtime, listener) ? loopback : { family: "inet6", hostname: "::1", port };
}

function isDualStack({ abi, libc }: Runtime, listener: number): boolean {
  const { IPPROTO_IPV6, IPV6_V6ONLY } = abi.constants;
  const [value, size] = [allocate(4), allocate(4)];
  viewOf(size).setInt32(0, 4, true);
  const result = libc.getsockopt(listener, IPPROTO_IPV6, IPV6_V6ONLY, value, size);
  return result >= 0 && viewOf(value).getInt32(0, true) === 0;
}

/** Binds to a name that no other client has. Where that fails, the kernel chooses. */
function bindApart(
  { abi, libc }: Runtime,
  descriptor: number,
  target: SocketAddress,
  isTaken: (name: SocketAddress) => boolean,
): void {
  for (let tries = 0; tries < portTries; tries++) {
    const name: SocketAddress = target.family === "inet6"
      ? { ...target, port: firstPort + Math.floor(Math.random() * portCount) }
      : placeholderAddress(target.family, null);
    if (isTaken(name)) continue;
    const bytes = encodeSockaddr(abi, name);
    if (libc.bind(descriptor, bytes, bytes.length) >= 0) return;
  }
}

function connect({ abi, libc }: Runtime, descriptor: number, target: SocketAddress): void {
  const bytes = encodeSockaddr(abi, target);
  const result = libc.connect(descriptor, bytes, bytes.length);
  if (result !== -errnoOf(abi.platform, "EINPROGRESS")) checked(abi, "connect", result, formatAddress(target));
}

/** Waits until the server's ends are known. */
async function found(runtime: Runtime, seats: readonly Seat[], isLate: () => boolean): Promise<void> {
  const missing = new Map(seats.map((seat) => [keyOf(seat.name), seat]));
  const start = Date.now();
  for (let waitMs = firstWaitMs; missing.size > 0; waitMs = Math.min(waitMs * 2, longestWaitMs)) {
    await turn(waitMs);
    const wasLate = isLate();
    await look(runtime, Date.now() - start < likelyMs ? likely(seats) : openDescriptors(runtime), missing);
    if (wasLate) return;
  }
}

async function look(runtime: Runtime, numbers: readonly number[], missing: Map<string, Seat>): Promise<void> {
  for (const [index, number] of numbers.entries()) {
    if (missing.size === 0) return;
    if (index % lookedAtOnce === lookedAtOnce - 1) await turn();
    const peer = peerAddress(runtime, number);
    const seat = peer && missing.get(keyOf(peer));
    if (!seat) continue;
    seat.find(number);
    missing.delete(keyOf(seat.name));
  }
}

/** The kernel gives the lowest number that is free: those of the server's ends are around ours. */
function likely(seats: readonly Seat[]): number[] {
  const ours = new Set(seats.map(({ end }) => end.number));
  const first = Math.min(...ours);
  const last = Math.min(Math.max(...ours) + 2 * seats.length + 8, first + likelyCount);
  return Array.from({ length: last - first }, (_, index) => first + index).filter((number) => !ours.has(number));
}

/** Waits until the server's event loop has them; libuv tells it when it next waits. */
async function watched(runtime: Runtime, seats: readonly Seat[], isLate: () => boolean): Promise<void> {
  for (let waitMs = firstWaitMs;; waitMs = Math.min(waitMs * 2, longestWaitMs)) {
    const missing = seats.filter((seat) => seat.registration === null && seat.isHeld);
    if (missing.length > 0) readRegistrations(runtime, missing);
    if (isLate() || missing.every(({ registration }) => registration !== null)) return;
    await turn(waitMs);
  }
}

function abandoned(seat: Seat, { address }: OwnServer, openMs: number): TakeoverError {
  seat.close();
  return new TakeoverError(
    "ERR_TAKEOVER_ADOPT",
    `Cannot put a connection under the server at ${formatAddress(address)}: it has not accepted one of this ` +
      `process's own within ${openMs} ms (limit openMs); let it accept`,
  );
}
