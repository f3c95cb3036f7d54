/**
 * Datagram sockets of our own, bound through libc: UDP and Unix.
 *
 * @module
 */

import type { SocketAddress } from "../c/sockaddr.ts";
import { checked, isSystemError } from "../errors.ts";
import type { Runtime } from "../runtime.ts";
import type { DatagramAddress, GroupBeginning } from "./address.ts";
import { cString, OwnedDescriptor, owning } from "./descriptors.ts";
import {
  bindSocket,
  connectSocket,
  integerOption,
  localAddress,
  openSocket,
  setIntegerOption,
  setShared,
  shareOption,
} from "./socket.ts";

/** Linux's options (socket(7)); the last is SO_RCVBUF without its limit, for CAP_NET_ADMIN. */
const SO_RCVBUF = 8;
const SO_RCVBUFFORCE = 33;

/** The same of macOS (sys/socket.h). */
const darwin = { receiveBuffer: 0x1002 } as const;

/**
 * Binds a datagram socket. Without `reusePort` nobody else can bind its
 * address: two processes that share it are two copies of one socket.
 *
 * One that begins a group is bound without SO_REUSEPORT first, because with it
 * bind(2) finds fault with no other socket of this user that has it: not with
 * one at an address that is a part of this one's, nor, when the port is for the
 * kernel to choose, with one whose port that is by chance.
 *
 * @param options As the application gave them.
 * @returns A non-blocking socket; the caller owns it.
 * @throws {SystemError} For instance `EADDRINUSE`.
 */
export function bindDatagram(
  runtime: Runtime,
  address: SocketAddress,
  options: DatagramAddress | GroupBeginning,
): OwnedDescriptor {
  if (!("beginsGroup" in options)) return bindTo(runtime, address, options);
  const { beginsGroup: _, ...alone } = options;
  const free = owning(bindTo(runtime, address, alone), ({ number }) => localAddress(runtime, number)!);
  return bindTo(runtime, free, { ...alone, reusePort: true });
}

function bindTo(runtime: Runtime, address: SocketAddress, options: DatagramAddress): OwnedDescriptor {
  const { abi, libc } = runtime;
  const { IPPROTO_IPV6, IPV6_V6ONLY } = abi.constants;
  return owning(new OwnedDescriptor(runtime, openSocket(runtime, address.family, "dgram")), (socket) => {
    const mode = "mode" in options ? options.mode : undefined;
    // As with a listener: the path never has more permissions than were asked for.
    if (mode !== undefined) checked(abi, "fchmod", libc.fchmod(socket.number, mode));
    if (address.family === "inet6") {
      const only = "ipv6Only" in options && options.ipv6Only === true;
      setIntegerOption(runtime, socket.number, IPPROTO_IPV6, IPV6_V6ONLY, only ? 1 : 0);
    }
    if ("reusePort" in options && options.reusePort) setShared(runtime, socket.number);
    if (options.receiveBufferSize !== undefined) setReceiveBuffer(runtime, socket.number, options.receiveBufferSize);
    bindSocket(runtime, socket.number, address);
    if (address.family === "unix" && mode !== undefined) {
      checked(abi, "chmod", libc.chmod(cString(address.path), mode), address.path);
    }
    return new OwnedDescriptor(runtime, socket.take());
  });
}

/** A socket that was bound with SO_REUSEPORT has its address alone from here on. Linux only. */
export function leaveToNobodyElse(runtime: Runtime, descriptor: number): void {
  setIntegerOption(runtime, descriptor, runtime.abi.constants.SOL_SOCKET, shareOption.linux, 0);
}

/**
 * Whether a socket is bound to a Unix path, of whatever type. A path that is
 * missing or stale has none.
 *
 * @throws {SystemError} When it cannot be told, for instance `EACCES`.
 */
export function isPathBound(runtime: Runtime, path: string): boolean {
  return owning(new OwnedDescriptor(runtime, openSocket(runtime, "unix", "dgram")), ({ number }) => {
    try {
      connectSocket(runtime, number, { family: "unix", path });
      return true;
    } catch (error) {
      if (isSystemError(error, "ENOENT", "ECONNREFUSED")) return false;
      // Another type, and somebody's; or one that is connected to somebody else.
      if (isSystemError(error, "EPROTOTYPE", "EPERM")) return true;
      throw error;
    }
  });
}

/** What was asked for, or would have to be (SO_RCVBUF): the kernel doubles it, for what is its own. Linux only. */
export function receiveBufferOf(runtime: Runtime, descriptor: number): number {
  return Math.floor(integerOption(runtime, descriptor, SO_RCVBUF) / 2);
}

/** How many bytes may wait; the kernel cuts the size at net.core.rmem_max, unless the process may pass that. */
export function setReceiveBuffer(runtime: Runtime, descriptor: number, size: number): void {
  const { abi } = runtime;
  const { SOL_SOCKET } = abi.constants;
  if (abi.platform !== "linux") return setIntegerOption(runtime, descriptor, SOL_SOCKET, darwin.receiveBuffer, size);
  try {
    setIntegerOption(runtime, descriptor, SOL_SOCKET, SO_RCVBUFFORCE, size);
  } catch (error) {
    if (!isSystemError(error, "EPERM")) throw error;
    setIntegerOption(runtime, descriptor, SOL_SOCKET, SO_RCVBUF, size);
  }
}
