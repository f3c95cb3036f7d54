/**
 * What a native object is opened as before it is given its true socket: a
 * listener, a connection or a datagram socket at an address that nothing else
 * in the process has, so that its descriptor can be told from all others.
 *
 * @module
 */

import { allocate, viewOf } from "../c/bytes.ts";
import { formatAddress, sameAddress, type SocketAddress } from "../c/sockaddr.ts";
import { isNamed } from "../channels/unix_path.ts";
import { checked } from "../errors.ts";
import type { Runtime } from "../runtime.ts";
import { openingOf } from "../sockets/address.ts";
import { OwnedDescriptor, owning } from "../sockets/descriptors.ts";
import { bindListener, unlinkPath } from "../sockets/listener.ts";
import {
  bindSocket,
  duplicate,
  integerOption,
  isListening,
  localAddress,
  openSocket,
  peerAddress,
  readAvailable,
} from "../sockets/socket.ts";

/** A place for one native object to be opened at. */
export interface Placeholder extends Disposable {
  /** What the callback is given. */
  readonly at: Readonly<Record<string, unknown>>;
  /** The number that the object's descriptor is likely to have: the lowest that was free. */
  readonly likely: number;
  /** What is not so as long as no object is there, for messages. */
  readonly missing: string;
  /** Whether a descriptor is the object's. */
  isHeldBy(descriptor: number): boolean;
}

/** A listener of ours that a native object connects to. */
export interface ConnectionPlaceholder extends Placeholder {
  /** What the object has written already; called once it has let go of its end. */
  written(): Uint8Array;
}

/** A random name at its longest: a dot, and 32 bits in base 36. */
const nameSize = 8;

/** Linux's SO_LINGER (socket(7)): on, for no time, lets close(2) reset the connection. */
const SO_LINGER = 13;
/** Linux's flags of accept4(2). */
const SOCK_NONBLOCK = 0o4000;
const SOCK_CLOEXEC = 0o2000000;

/**
 * For a listener: a random one of the 16 million addresses of 127.0.0.0/8, or
 * a random name beside the true path, as long as there is room for one. An IPv6
 * listener fits under an IPv4 one.
 */
export function listenerPlaceholder(runtime: Runtime, address: SocketAddress): Placeholder {
  const wanted = placeholderAddress(address.family, folderFor(runtime, address));
  const found = wanted.family === "unix"
    ? { address: wanted, likely: -1 }
    : owning(bindListener(runtime, wanted, { port: 0 }), (listener) => free(runtime, listener));
  return {
    at: { ...openingOf(found.address) },
    likely: found.likely,
    missing: `nothing listens on ${formatAddress(found.address)}`,
    isHeldBy: (descriptor) => isBound(runtime, descriptor, found.address) && isListening(runtime, descriptor),
    [Symbol.dispose]: () => unlinkIfUnix(runtime, found.address),
  };
}

/**
 * For a connection: a listener of ours. It is closed when the native object
 * has let go of its end, so the object never sees this one's.
 */
export function connectionPlaceholder(runtime: Runtime, family: SocketAddress["family"]): ConnectionPlaceholder {
  const wanted = placeholderAddress(family, temporaryFolder(runtime));
  const listener = bindListener(runtime, wanted, { port: 0, ...family === "unix" && { mode: 0o600 } });
  const address = localAddress(runtime, listener.number)!;
  return {
    at: { ...openingOf(address) },
    likely: lowestFree(runtime, listener.number),
    missing: `nothing is connected to ${formatAddress(address)}`,
    isHeldBy: (descriptor) => {
      const peer = peerAddress(runtime, descriptor);
      return peer !== null && sameAddress(peer, address);
    },
    written: () => acceptedBytes(runtime, listener.number),
    [Symbol.dispose]: () => {
      listener[Symbol.dispose]();
      unlinkIfUnix(runtime, address);
    },
  };
}

/** For a datagram socket: an address of the same family, because a runtime sends to none of the other. */
export function datagramPlaceholder(runtime: Runtime, family: SocketAddress["family"]): Placeholder {
  const wanted: SocketAddress = family === "inet6"
    ? { family, hostname: "::1", port: 0 }
    : placeholderAddress(family, temporaryFolder(runtime));
  const { address, likely } = wanted.family === "unix"
    ? { address: wanted, likely: -1 }
    : owning(new OwnedDescriptor(runtime, openSocket(runtime, family, "dgram")), (socket) => {
      bindSocket(runtime, socket.number, wanted);
      return free(runtime, socket);
    });
  const { SO_TYPE, SOCK_DGRAM } = runtime.abi.constants;
  return {
    at: address.family === "unix"
      ? { path: address.path, transport: "unixpacket" }
      : { ...openingOf(address), address: address.hostname },
    likely,
    missing: `no datagram socket is bound to ${formatAddress(address)}`,
    isHeldBy: (descriptor) =>
      isBound(runtime, descriptor, address) && integerOption(runtime, descriptor, SO_TYPE) === SOCK_DGRAM,
    [Symbol.dispose]: () => unlinkIfUnix(runtime, address),
  };
}

/**
 * An address that a socket of ours can be bound to.
 *
 * @param folder With its slash; a random name in it is taken. Without one, the
 *   kernel picks an abstract name (unix(7), autobind).
 */
export function placeholderAddress(family: SocketAddress["family"], folder: string | null): SocketAddress {
  const random = crypto.getRandomValues(new Uint8Array(4));
  if (family === "unix") {
    return { family, path: folder === null ? "" : `${folder}.${viewOf(random).getUint32(0).toString(36)}` };
  }
  const [, b, c, d] = random;
  return { family: "inet", hostname: `127.${b}.${c}.${1 + d! % 254}`, port: 0 };
}

/** What a socket of ours is bound to and closes now: the address, and the number, are free then. */
function free(runtime: Runtime, { number }: OwnedDescriptor): { address: SocketAddress; likely: number } {
  return { address: localAddress(runtime, number)!, likely: number };
}

/** The listener's own folder; an abstract name has none. */
function folderFor(runtime: Runtime, address: SocketAddress): string | null {
  if (address.family !== "unix") return null;
  const folder = address.path.slice(0, address.path.lastIndexOf("/") + 1);
  return isNamed(address.path) && hasRoom(runtime, folder) ? folder : temporaryFolder(runtime);
}

function temporaryFolder(runtime: Runtime): string {
  const folder = `${runtime.env("TMPDIR") || "/tmp"}/`;
  return hasRoom(runtime, folder) ? folder : "/tmp/";
}

/** Whether a random name, and a NUL after it, fit into a `sockaddr_un` with this folder. */
function hasRoom({ abi }: Runtime, folder: string): boolean {
  return new TextEncoder().encode(folder).length + nameSize < abi.sockaddr.un.path.size;
}

function unlinkIfUnix(runtime: Runtime, address: SocketAddress): void {
  if (address.family === "unix") unlinkPath(runtime, address.path);
}

function lowestFree(runtime: Runtime, any: number): number {
  return owning(new OwnedDescriptor(runtime, duplicate(runtime, any)), ({ number }) => number);
}

/** An object that ignores the host name still takes the port. */
function isBound(runtime: Runtime, descriptor: number, placeholder: SocketAddress): boolean {
  const held = localAddress(runtime, descriptor);
  if (held === null) return false;
  if (held.family === "unix" || placeholder.family === "unix") return sameAddress(held, placeholder);
  const isAnywhere = ["0.0.0.0", "::"].includes(held.hostname);
  return held.port === placeholder.port && (isAnywhere || held.hostname === placeholder.hostname);
}

/** Everything that came over the connections to a listener, which are reset, so that none of them waits (TIME_WAIT). */
function acceptedBytes(runtime: Runtime, listener: number): Uint8Array {
  const { abi, libc } = runtime;
  const linger = allocate(8);
  viewOf(linger).setInt32(0, 1, true);
  const parts: number[] = [];
  for (;;) {
    const end = libc.accept4(listener, null, null, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (end < 0) return Uint8Array.from(parts);
    owning(new OwnedDescriptor(runtime, end), () => {
      for (const byte of readAvailable(runtime, end)) parts.push(byte);
      checked(abi, "setsockopt", libc.setsockopt(end, abi.constants.SOL_SOCKET, SO_LINGER, linger, linger.length));
    });
  }
}
