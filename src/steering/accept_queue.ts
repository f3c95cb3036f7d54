/**
 * What waits at a listener (listen(2)): connections that are complete and that
 * nobody has accepted yet. Linux; elsewhere nothing is told.
 *
 * @module
 */

import { allocate, viewOf } from "../c/bytes.ts";
import { SystemError, TakeoverError } from "../errors.ts";
import type { Runtime } from "../runtime.ts";
import { statusOfDescriptor } from "../sockets/listener.ts";
import { localAddress } from "../sockets/socket.ts";
import { unixWaitingCounts } from "./socket_diag.ts";

/** Linux's TCP_INFO (tcp(7)): of a listener `tcpi_unacked` is the length of its queue (net/ipv4/tcp.c, tcp_get_info). */
const IPPROTO_TCP = 6;
const TCP_INFO = 11;
const infoSize = 104;
const unackedOffset = 24;

/**
 * How many connections wait at a listener; 0 for anything else, and where the
 * kernel does not tell; 1 at a Unix listener when there is no descriptor to ask
 * the kernel with (EMFILE), because somebody may.
 */
export function waitingCount(runtime: Runtime, descriptor: number): number {
  if (runtime.abi.platform !== "linux") return 0;
  const address = localAddress(runtime, descriptor);
  if (!address) return 0;
  return address.family === "unix" ? unixCount(runtime, descriptor) : tcpCount(runtime, descriptor);
}

function tcpCount({ libc }: Runtime, descriptor: number): number {
  const [info, size] = [allocate(infoSize), allocate(4)];
  viewOf(size).setUint32(0, info.length, true);
  if (libc.getsockopt(descriptor, IPPROTO_TCP, TCP_INFO, info, size) < 0) return 0;
  return viewOf(info).getUint32(unackedOffset, true);
}

function unixCount(runtime: Runtime, descriptor: number): number {
  const inode = statusOfDescriptor(runtime, descriptor)?.inode;
  if (inode === undefined) return 0;
  try {
    return unixWaitingCounts(runtime).get(inode) ?? 0;
  } catch (error) {
    if (error instanceof TakeoverError) return 0;
    if (error instanceof SystemError) return 1;
    throw error;
  }
}
