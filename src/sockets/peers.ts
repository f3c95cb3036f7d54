/**
 * Senders of datagrams as applications name them: a link-local IPv6 address
 * (RFC 4007, section 11) with the name of its interface, `fe80::1%eth0`, where
 * the kernel has a number. Linux only.
 *
 * @module
 */

import { allocate, untilNul, viewOf } from "../c/bytes.ts";
import type { InetAddress } from "../c/sockaddr.ts";
import { TakeoverError } from "../errors.ts";
import type { Runtime } from "../runtime.ts";

/** ioctl(2) requests about interfaces (netdevice(7)). */
const SIOCGIFNAME = 0x8910;
const SIOCGIFINDEX = 0x8933;

/** `struct ifreq`: name 16, NUL-terminated | a union of 24, here the index 4. */
const ifreqSize = 40;
const indexOffset = 16;

/**
 * Checks that something is a peer at all.
 *
 * @throws {TakeoverError} `ERR_TAKEOVER_ADDRESS`.
 */
export function checkPeer(peer: InetAddress): void {
  const { family, hostname, port } = peer ?? {};
  const isKnown = family === "inet" || family === "inet6";
  if (!isKnown || typeof hostname !== "string" || typeof port !== "number") {
    throw unfit(peer, 'an address { family: "inet" or "inet6", hostname, port }');
  }
}

/**
 * What an application says of a peer, with the number of its interface.
 *
 * @param socket Any socket: the kernel is asked over it, so that nothing has to be opened.
 * @throws {TakeoverError} `ERR_TAKEOVER_ADDRESS` when it is no address, or of no interface of this machine.
 */
export function peerOf(runtime: Runtime, socket: number, peer: InetAddress): InetAddress {
  checkPeer(peer);
  const at = peer.hostname.indexOf("%");
  if (at < 0) return peer;
  const zone = peer.hostname.slice(at + 1);
  const scope = peer.family === "inet6" ? scopeOf(runtime, socket, zone) : 0;
  if (scope === 0) throw unfit(peer, "a zone that is an interface of this machine");
  return { ...peer, hostname: peer.hostname.slice(0, at), scope };
}

/** The same the other way round: with the name of its interface, as runtimes send to it. */
export function namedPeer(runtime: Runtime, socket: number, peer: InetAddress): InetAddress {
  return peer.scope ? { ...peer, hostname: `${peer.hostname}%${nameOf(runtime, socket, peer.scope)}` } : peer;
}

/** 0 for none. */
function scopeOf({ libc }: Runtime, socket: number, zone: string): number {
  if (/^\d{1,9}$/.test(zone)) return Number(zone);
  const name = new TextEncoder().encode(zone);
  if (name.length >= indexOffset) return 0;
  const request = allocate(ifreqSize);
  request.set(name);
  return libc.ioctl(socket, SIOCGIFINDEX, request) < 0 ? 0 : viewOf(request).getInt32(indexOffset, true);
}

/** The number itself when the interface has gone. */
function nameOf({ libc }: Runtime, socket: number, scope: number): string {
  const request = allocate(ifreqSize);
  viewOf(request).setInt32(indexOffset, scope, true);
  if (libc.ioctl(socket, SIOCGIFNAME, request) < 0) return String(scope);
  return new TextDecoder().decode(untilNul(request.subarray(0, indexOffset)));
}

function unfit(peer: unknown, expected: string): TakeoverError {
  return new TakeoverError("ERR_TAKEOVER_ADDRESS", `Cannot use the peer ${JSON.stringify(peer)}: expected ${expected}`);
}
