/**
 * What waits in a connection's two queues in the kernel (tcp(7), unix(7)).
 *
 * @module
 */

import { allocate, viewOf } from "../c/bytes.ts";
import { checked } from "../errors.ts";
import type { Runtime } from "../runtime.ts";

/** Linux's ioctl(2) requests (linux/sockios.h). */
const SIOCINQ = 0x541b;
const SIOCOUTQ = 0x5411;

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
