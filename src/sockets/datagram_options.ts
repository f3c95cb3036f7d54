/**
 * What an application may have set on a datagram socket (socket(7), ip(7),
 * ipv6(7)), copied to another one of the same family. Linux's numbers.
 *
 * Memberships of multicast groups are not copied: the kernel gives a datagram
 * of a group to every member, so that it would come twice.
 *
 * @module
 */

import { allocate, viewOf } from "../c/bytes.ts";
import type { SocketAddress } from "../c/sockaddr.ts";
import type { Runtime } from "../runtime.ts";

/** An option of a level, and what the kernel makes of a value that is set: it doubles the sizes of buffers. */
interface Option {
  readonly level: number;
  readonly name: number;
  readonly factor?: number;
}

const IP_MULTICAST_ALL = 49;
const IPV6_MULTICAST_ALL = 29;

const levels = { socket: 1, inet: 0, inet6: 41 } as const;

const socketOptions: readonly Option[] = [
  { level: levels.socket, name: 6 }, // SO_BROADCAST
  { level: levels.socket, name: 12 }, // SO_PRIORITY
  { level: levels.socket, name: 7, factor: 2 }, // SO_SNDBUF
];

/** An IPv6 socket has those of IPv4 as well, for what it sends there. */
const inetOptions: readonly Option[] = [
  { level: levels.inet, name: 1 }, // IP_TOS
  { level: levels.inet, name: 2 }, // IP_TTL
  { level: levels.inet, name: 8 }, // IP_PKTINFO
  { level: levels.inet, name: 10 }, // IP_MTU_DISCOVER
  { level: levels.inet, name: 11 }, // IP_RECVERR
  { level: levels.inet, name: 13 }, // IP_RECVTOS
  { level: levels.inet, name: 33 }, // IP_MULTICAST_TTL
  { level: levels.inet, name: 34 }, // IP_MULTICAST_LOOP
];

const inet6Options: readonly Option[] = [
  { level: levels.inet6, name: 16 }, // IPV6_UNICAST_HOPS
  { level: levels.inet6, name: 18 }, // IPV6_MULTICAST_HOPS
  { level: levels.inet6, name: 19 }, // IPV6_MULTICAST_LOOP
  { level: levels.inet6, name: 23 }, // IPV6_MTU_DISCOVER
  { level: levels.inet6, name: 25 }, // IPV6_RECVERR
  { level: levels.inet6, name: 49 }, // IPV6_RECVPKTINFO
  { level: levels.inet6, name: 66 }, // IPV6_RECVTCLASS
  { level: levels.inet6, name: 67 }, // IPV6_TCLASS
];

/** Copies what can be; an option that this user may not set stays as it is. */
export function copyOptions(runtime: Runtime, family: SocketAddress["family"], from: number, to: number): void {
  const options = [...socketOptions, ...inetOptions, ...family === "inet6" ? inet6Options : []];
  for (const option of options) copyOne(runtime, option, from, to);
}

function copyOne({ libc }: Runtime, { level, name, factor = 1 }: Option, from: number, to: number): void {
  const [value, size] = [allocate(4), allocate(4)];
  viewOf(size).setUint32(0, 4, true);
  if (libc.getsockopt(from, level, name, value, size) < 0) return;
  // Some are given as a byte (ip(7)).
  const length = viewOf(size).getUint32(0, true);
  const found = length === 1 ? viewOf(value).getUint8(0) : viewOf(value).getInt32(0, true);
  viewOf(value).setInt32(0, Math.floor(found / factor), true);
  libc.setsockopt(to, level, name, value, 4);
}

/** A wildcard socket hears every multicast group that anybody has joined, unless it is told to hear its own alone. */
export function hearOwnGroups({ libc }: Runtime, descriptor: number): void {
  const none = allocate(4);
  libc.setsockopt(descriptor, levels.inet, IP_MULTICAST_ALL, none, none.length);
  libc.setsockopt(descriptor, levels.inet6, IPV6_MULTICAST_ALL, none, none.length);
}
