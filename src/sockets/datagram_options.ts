/**
 * What an application may have set on a datagram socket (socket(7), ip(7),
 * ipv6(7), udp(7)), copied to another one of the same family. Linux's numbers.
 *
 * Not copied are memberships of multicast groups, because the kernel gives a
 * datagram of a group to every member, so that it would come twice; an interface
 * for multicast of IPv4 that was set by its number, which the kernel does not
 * tell; filters; and what takes a privilege that this process has not.
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

const SOL_SOCKET = 1;
const SO_BROADCAST = 6;
const SO_SNDBUF = 7;
const SO_PRIORITY = 12;
const SO_TIMESTAMPNS = 35;
const SO_MARK = 36;
const SO_RXQ_OVFL = 40;

const IPPROTO_IP = 0;
const IP_TOS = 1;
const IP_TTL = 2;
const IP_PKTINFO = 8;
const IP_MTU_DISCOVER = 10;
const IP_RECVERR = 11;
const IP_RECVTTL = 12;
const IP_RECVTOS = 13;
const IP_FREEBIND = 15;
const IP_MULTICAST_IF = 32;
const IP_MULTICAST_TTL = 33;
const IP_MULTICAST_LOOP = 34;
const IP_MULTICAST_ALL = 49;

const IPPROTO_IPV6 = 41;
const IPV6_UNICAST_HOPS = 16;
const IPV6_MULTICAST_IF = 17;
const IPV6_MULTICAST_HOPS = 18;
const IPV6_MULTICAST_LOOP = 19;
const IPV6_MTU_DISCOVER = 23;
const IPV6_RECVERR = 25;
const IPV6_MULTICAST_ALL = 29;
const IPV6_RECVPKTINFO = 49;
const IPV6_RECVHOPLIMIT = 51;
const IPV6_RECVTCLASS = 66;
const IPV6_TCLASS = 67;

const IPPROTO_UDP = 17;
const UDP_GRO = 104;

const at = (level: number, ...names: number[]): Option[] => names.map((name) => ({ level, name }));

/** An IPv6 socket has those of IPv4 as well, for what it sends and hears there. */
const anyOptions: readonly Option[] = [
  ...at(SOL_SOCKET, SO_BROADCAST, SO_PRIORITY, SO_TIMESTAMPNS, SO_MARK, SO_RXQ_OVFL),
  { level: SOL_SOCKET, name: SO_SNDBUF, factor: 2 },
  ...at(IPPROTO_IP, IP_TOS, IP_TTL, IP_PKTINFO, IP_MTU_DISCOVER, IP_RECVERR, IP_RECVTTL, IP_RECVTOS, IP_FREEBIND),
  ...at(IPPROTO_IP, IP_MULTICAST_IF, IP_MULTICAST_TTL, IP_MULTICAST_LOOP),
  ...at(IPPROTO_UDP, UDP_GRO),
];

const inet6Options: readonly Option[] = [
  ...at(IPPROTO_IPV6, IPV6_UNICAST_HOPS, IPV6_MULTICAST_IF, IPV6_MULTICAST_HOPS, IPV6_MULTICAST_LOOP),
  ...at(IPPROTO_IPV6, IPV6_MTU_DISCOVER, IPV6_RECVERR, IPV6_RECVPKTINFO, IPV6_RECVHOPLIMIT),
  ...at(IPPROTO_IPV6, IPV6_RECVTCLASS, IPV6_TCLASS),
];

/** Copies what can be; an option that this user may not set stays as it is. */
export function copyOptions(runtime: Runtime, family: SocketAddress["family"], from: number, to: number): void {
  const options = [...anyOptions, ...family === "inet6" ? inet6Options : []];
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
  libc.setsockopt(descriptor, IPPROTO_IP, IP_MULTICAST_ALL, none, none.length);
  libc.setsockopt(descriptor, IPPROTO_IPV6, IPV6_MULTICAST_ALL, none, none.length);
}
