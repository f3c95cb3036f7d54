/**
 * What waits in a socket's two queues in the kernel (tcp(7), unix(7), udp(7)).
 *
 * @module
 */

import { allocate, viewOf } from "../c/bytes.ts";
import { checked } from "../errors.ts";
import type { Runtime } from "../runtime.ts";

/** Linux's ioctl(2) requests (linux/sockios.h). */
const SIOCINQ = 0x541b;
const SIOCOUTQ = 0x5411;

/**
 * Linux's SO_MEMINFO (asm-generic/socket.h): nine numbers of 32 bits, the first
 * of what is received and not read, the last of the packets that were dropped.
 */
const SO_MEMINFO = 55;
const memoryInfoSize = 36;
const receivedOffset = 0;
const dropsOffset = 32;

/** The memory that the kernel counts for a packet, an empty one too, is more (include/linux/skbuff.h, SKB_TRUESIZE). */
const leastPacketSize = 512;

/** How many datagrams wait in a socket, at most. Linux only. */
export function mostWaiting(runtime: Runtime, descriptor: number): number {
  return Math.ceil(memoryInfo(runtime, descriptor).getUint32(receivedOffset, true) / leastPacketSize);
}

/** How many packets a socket has dropped since it was made. Linux only. */
export function dropCount(runtime: Runtime, descriptor: number): number {
  return memoryInfo(runtime, descriptor).getUint32(dropsOffset, true);
}

/** How many bytes have arrived and were not read. */
export function unreadSize(runtime: Runtime, descriptor: number): number {
  return sizeOf(runtime, descriptor, SIOCINQ);
}

/**
 * How much was written and has not arrived: of TCP the bytes that were not
 * acknowledged, of a Unix socket the memory of what the other end has not read.
 */
export function unsentSize(runtime: Runtime, descriptor: number): number {
  return sizeOf(runtime, descriptor, SIOCOUTQ);
}

function sizeOf({ abi, libc }: Runtime, descriptor: number, request: number): number {
  const size = allocate(4);
  checked(abi, "ioctl", libc.ioctl(descriptor, request, size));
  return viewOf(size).getInt32(0, true);
}

function memoryInfo({ abi, libc }: Runtime, descriptor: number): DataView {
  const info = allocate(memoryInfoSize);
  const size = allocate(4);
  viewOf(size).setUint32(0, info.length, true);
  checked(abi, "getsockopt", libc.getsockopt(descriptor, abi.constants.SOL_SOCKET, SO_MEMINFO, info, size));
  return viewOf(info);
}
