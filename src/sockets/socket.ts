/**
 * Sockets by their descriptors: made, asked and set through libc.
 *
 * @module
 */

import type { Abi } from "../c/abi.ts";
import { allocate, type Bytes, viewOf } from "../c/bytes.ts";
import { checked, TakeoverError } from "../errors.ts";
import { errnoOf } from "../c/errno.ts";
import type { Runtime } from "../runtime.ts";
import { OwnedDescriptor } from "./descriptors.ts";
import { decodeSockaddr, encodeSockaddr, formatAddress, type SocketAddress, sockaddrSize } from "../c/sockaddr.ts";

/** Linux's SOCK_CLOEXEC | SOCK_NONBLOCK (socket(2)); macOS takes two fcntl calls instead. */
const linuxSocketFlags = 0o2000000 | 0o4000;

/** Linux's SO_COOKIE (asm-generic/socket.h): eight bytes that name a socket for its whole life. */
const SO_COOKIE = 57;

/** What the kernel answers goes here, and is read before the next call: there may be thousands in a row. */
const name = allocate(sockaddrSize);
const value = allocate(8);
const size = allocate(4);
const [valueView, sizeView] = [viewOf(value), viewOf(size)];

/** What a process can ask about a socket that it holds. */
export interface SocketIdentity {
  /** Its address family. */
  readonly family: SocketAddress["family"];
  /** What it carries (`SO_TYPE`). */
  readonly type: "stream" | "dgram" | "other";
  /** Whether it accepts connections (`SO_ACCEPTCONN`). */
  readonly listening: boolean;
  /** Where it is bound. */
  readonly address: SocketAddress;
  /** `SO_COOKIE` in hexadecimal; empty where the platform has none (macOS). */
  readonly cookie: string;
}

/** What a socket carries: bytes, messages in order, or datagrams. */
export type SocketType = "stream" | "seqpacket" | "dgram";

/** Makes a non-blocking, close-on-exec socket of the address's family. */
export function openSocket(runtime: Runtime, family: SocketAddress["family"], type: SocketType): number {
  const { abi, libc } = runtime;
  const { constants } = abi;
  const domain = { unix: constants.AF_UNIX, inet: constants.AF_INET, inet6: constants.AF_INET6 }[family];
  const kind = kindOf(runtime, type);
  if (abi.platform === "linux") return checked(abi, "socket", libc.socket(domain, kind | linuxSocketFlags, 0));
  const descriptor = checked(abi, "socket", libc.socket(domain, kind, 0));
  setCloseOnExec(runtime, descriptor);
  setNonBlocking(runtime, descriptor);
  return descriptor;
}

/**
 * Two Unix sockets that are connected to each other (socketpair(2)),
 * non-blocking and close-on-exec; the caller owns both.
 */
export function openPair(runtime: Runtime, type: SocketType = "stream"): [OwnedDescriptor, OwnedDescriptor] {
  const { abi, libc } = runtime;
  const numbers = allocate(8);
  const flags = abi.platform === "linux" ? linuxSocketFlags : 0;
  checked(abi, "socketpair", libc.socketpair(abi.constants.AF_UNIX, kindOf(runtime, type) | flags, 0, numbers));
  const endAt = (at: number) => new OwnedDescriptor(runtime, viewOf(numbers).getInt32(at, true));
  const ends: [OwnedDescriptor, OwnedDescriptor] = [endAt(0), endAt(4)];
  if (flags === 0) {
    for (const { number } of ends) {
      setCloseOnExec(runtime, number);
      setNonBlocking(runtime, number);
    }
  }
  return ends;
}

function kindOf({ abi }: Runtime, type: SocketType): number {
  const { SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET } = abi.constants;
  const kind = { stream: SOCK_STREAM, dgram: SOCK_DGRAM, seqpacket: SOCK_SEQPACKET }[type];
  if (kind !== undefined) return kind;
  throw new TakeoverError("ERR_TAKEOVER_RANGE", `Cannot open a socket of type ${type}: expected stream, seqpacket or dgram`);
}

/** Binds a socket (bind(2)). */
export function bindSocket({ abi, libc }: Runtime, descriptor: number, address: SocketAddress): void {
  const bytes = encodeSockaddr(abi, address);
  checked(abi, "bind", libc.bind(descriptor, bytes, bytes.length), formatAddress(address));
}

/** Starts a connect(2). On a Unix socket it is done, or has failed, on return. */
export function connectSocket({ abi, libc }: Runtime, descriptor: number, address: SocketAddress): void {
  const bytes = encodeSockaddr(abi, address);
  checked(abi, "connect", libc.connect(descriptor, bytes, bytes.length), formatAddress(address));
}

/** Where a socket is bound, or null when the descriptor is no IP or Unix socket. */
export function localAddress(runtime: Runtime, descriptor: number): SocketAddress | null {
  return nameOf(runtime.abi, (name, size) => runtime.libc.getsockname(descriptor, name, size));
}

/** Where a socket is connected to, or null when it is not connected. */
export function peerAddress(runtime: Runtime, descriptor: number): SocketAddress | null {
  return nameOf(runtime.abi, (name, size) => runtime.libc.getpeername(descriptor, name, size));
}

/** Whether a socket is connected. */
export function isConnected({ libc }: Runtime, descriptor: number): boolean {
  sizeView.setInt32(0, sockaddrSize, true);
  return libc.getpeername(descriptor, name, size) >= 0;
}

/** An integer option (getsockopt(2)), or -errno. */
export function integerOption({ abi, libc }: Runtime, descriptor: number, option: number): number {
  sizeView.setInt32(0, 4, true);
  const result = libc.getsockopt(descriptor, abi.constants.SOL_SOCKET, option, value, size);
  return result < 0 ? result : valueView.getInt32(0, true);
}

/** SO_REUSEPORT by platform (socket(7); sys/socket.h): before bind(2) it lets others share the address. */
export const shareOption = { linux: 15, darwin: 0x0200 } as const;

/** Lets other sockets of this user share the address that this one will have. */
export function setShared(runtime: Runtime, descriptor: number): void {
  const { constants, platform } = runtime.abi;
  setIntegerOption(runtime, descriptor, constants.SOL_SOCKET, shareOption[platform], 1);
}

/** Sets an integer option (setsockopt(2)). */
export function setIntegerOption(
  { abi, libc }: Runtime,
  descriptor: number,
  level: number,
  option: number,
  wanted: number,
): void {
  checked(abi, "setsockopt", libc.setsockopt(descriptor, level, option, sizeBytes(wanted), 4));
}

/** `SO_COOKIE` in hexadecimal, or an empty text where there is none. */
export function cookieOf({ abi, libc }: Runtime, descriptor: number): string {
  if (abi.platform !== "linux") return "";
  sizeView.setInt32(0, 8, true);
  const result = libc.getsockopt(descriptor, abi.constants.SOL_SOCKET, SO_COOKIE, value, size);
  return result < 0 ? "" : valueView.getBigUint64(0, true).toString(16).padStart(16, "0");
}

/** Whether the descriptor is a socket of a stream, as opposed to datagrams, which can be connected, too. */
export function isStream(runtime: Runtime, descriptor: number): boolean {
  const { SO_TYPE, SOCK_STREAM } = runtime.abi.constants;
  return integerOption(runtime, descriptor, SO_TYPE) === SOCK_STREAM;
}

/** Whether the descriptor is a socket that accepts connections (`SO_ACCEPTCONN`). */
export function isListening(runtime: Runtime, descriptor: number): boolean {
  return integerOption(runtime, descriptor, runtime.abi.constants.SO_ACCEPTCONN) === 1;
}

/**
 * Says what socket a descriptor is.
 *
 * @returns Its identity, or null when it is no IP or Unix socket.
 */
export function identify(runtime: Runtime, descriptor: number): SocketIdentity | null {
  const { constants } = runtime.abi;
  const address = localAddress(runtime, descriptor);
  if (!address) return null;
  const type = integerOption(runtime, descriptor, constants.SO_TYPE);
  return {
    family: address.family,
    type: type === constants.SOCK_STREAM ? "stream" : type === constants.SOCK_DGRAM ? "dgram" : "other",
    listening: isListening(runtime, descriptor),
    address,
    cookie: cookieOf(runtime, descriptor),
  };
}

/**
 * Sets O_NONBLOCK, which all copies of a socket share. Deno's accept loop
 * blocks its whole process on a listener without it.
 */
export function setNonBlocking({ abi, libc }: Runtime, descriptor: number): void {
  const { F_GETFL, F_SETFL, O_NONBLOCK } = abi.constants;
  const flags = checked(abi, "fcntl", libc.fcntl(descriptor, F_GETFL, 0));
  if (flags & O_NONBLOCK) return;
  checked(abi, "fcntl", libc.fcntl(descriptor, F_SETFL, flags | O_NONBLOCK));
}

/** Sets FD_CLOEXEC, which every descriptor has of its own. */
export function setCloseOnExec({ abi, libc }: Runtime, descriptor: number): void {
  const { F_SETFD, FD_CLOEXEC } = abi.constants;
  checked(abi, "fcntl", libc.fcntl(descriptor, F_SETFD, FD_CLOEXEC));
}

/** A second descriptor for the same socket, close-on-exec. */
export function duplicate({ abi, libc }: Runtime, descriptor: number): number {
  return checked(abi, "fcntl", libc.fcntl(descriptor, abi.constants.F_DUPFD_CLOEXEC, 0));
}

/** Everything that can be read from a non-blocking descriptor now; nothing more after an error. */
export function readAvailable({ libc }: Runtime, descriptor: number): Bytes {
  const chunk = allocate(64 * 1024);
  let all = new Uint8Array(0);
  for (;;) {
    const size = libc.read(descriptor, chunk, chunk.length);
    if (size <= 0) return all;
    const longer = new Uint8Array(all.length + size);
    longer.set(all);
    longer.set(chunk.subarray(0, size), all.length);
    all = longer;
  }
}

/**
 * Puts a copy of one descriptor under another's number, closing what was there
 * (dup3(2)).
 */
export function duplicateOver(runtime: Runtime, from: number, to: number): void {
  const { abi, libc } = runtime;
  const result = libc.dup3(from, to, abi.constants.O_CLOEXEC);
  if (result !== -errnoOf(abi.platform, "ENOSYS")) {
    checked(abi, "dup3", result);
    return;
  }
  checked(abi, "dup2", libc.dup2(from, to));
  setCloseOnExec(runtime, to);
}

function nameOf(abi: Abi, call: (name: Bytes, size: Bytes) => number): SocketAddress | null {
  sizeView.setInt32(0, sockaddrSize, true);
  if (call(name, size) < 0) return null;
  return decodeSockaddr(abi, name.subarray(0, sizeView.getUint32(0, true)));
}

function sizeBytes(value: number): Bytes {
  const bytes = allocate(4);
  viewOf(bytes).setInt32(0, value, true);
  return bytes;
}
