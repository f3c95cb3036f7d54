/**
 * Taking the listening sockets of a running HAProxy, as a new HAProxy does that
 * is started with `-x`: it gives copies of them to whoever asks on its stats
 * socket, and accepts on its own until it is told to finish.
 *
 * @module
 */

import { formatAddress, sameAddress, type SocketAddress } from "../c/sockaddr.ts";
import { shown, TakeoverError } from "../errors.ts";
import { type Limits, limitsFrom } from "../limits.ts";
import type { Runtime } from "../runtime.ts";
import { disposeAll, freeDescriptorCount, type OwnedDescriptor } from "../sockets/descriptors.ts";
import { connectChannel } from "../channels/fd_listener.ts";
import { noteElsewhere } from "../sockets/elsewhere.ts";
import { checkPeerUser } from "../sockets/identity.ts";
import type { WaitOptions } from "../channels/readiness.ts";
import { identify, peerAddress, setNonBlocking, type SocketIdentity } from "../sockets/socket.ts";
import type { ForeignSocket } from "./foreign_socket.ts";
import { HaproxyClient } from "./haproxy_client.ts";
import type { HaproxyRecord } from "./haproxy_records.ts";

/** A socket that HAProxy listens on, and what it says of it. */
export interface HaproxySocket extends ForeignSocket, HaproxyRecord {}

/** How to ask, and what to take. */
export interface HaproxyOptions {
  /** The longest that all of it may take, in milliseconds; 10,000 when left out. */
  readonly timeoutMs?: number;
  /** Ends it; its reason is thrown. */
  readonly signal?: AbortSignal;
  /** User ids as which HAProxy may have been started, besides this process's own: 0 for root. */
  readonly allowUsers?: readonly number[];
  /** `endpointCount` sockets at most, and `spareCount` descriptors that must stay free. */
  readonly limits?: Partial<Limits>;
}

const defaultTimeoutMs = 10_000;

/** See `socketsFromHaproxy` in mod.ts, which chooses the runtime. */
export async function socketsFromHaproxy(
  runtime: Runtime,
  path: string,
  options: HaproxyOptions = {},
): Promise<HaproxySocket[]> {
  const limits = limitsFrom(options.limits);
  const until = Date.now() + (options.timeoutMs ?? defaultTimeoutMs);
  const wait = (): WaitOptions => ({ timeoutMs: Math.max(0, until - Date.now()), signal: options.signal });
  const channel = await connectChannel(runtime, path, wait());
  const taken: OwnedDescriptor[] = [];
  try {
    checkPeerUser(runtime, channel.descriptor, options.allowUsers ?? [], "incumbent");
    const client = new HaproxyClient(channel, path, wait);
    const count = await client.ask(limits);
    checkRoom(runtime, count, limits);
    const records = await client.receive(count, taken);
    const sockets = verified(runtime, taken, records);
    const wanted = withoutControl(sockets, peerAddress(runtime, channel.descriptor));
    if (wanted.length === 0) throw client.nothing("this stats socket is the only one");
    return named(wanted);
  } catch (error) {
    disposeAll(taken);
    throw error;
  } finally {
    channel.close();
  }
}

function checkRoom(runtime: Runtime, count: number, { spareCount }: Limits): void {
  const freeCount = freeDescriptorCount(runtime);
  if (freeCount >= count + spareCount) return;
  throw new TakeoverError(
    "ERR_TAKEOVER_NO_ROOM",
    `Cannot take ${count} sockets from HAProxy: expected room for them and ${spareCount} more (limit spareCount), ` +
      `${freeCount} descriptors are free; raise the limit of open files (ulimit -n)`,
  );
}

/** Descriptors and records together, each socket checked. Thread groups give one several times: it is taken once. */
function verified(
  runtime: Runtime,
  taken: readonly OwnedDescriptor[],
  records: readonly HaproxyRecord[],
): HaproxySocket[] {
  const sockets: HaproxySocket[] = [];
  const cookies = new Set<string>();
  for (const [index, descriptor] of taken.entries()) {
    const identity = identify(runtime, descriptor.number);
    if (!isListener(identity)) {
      throw new TakeoverError(
        "ERR_TAKEOVER_DESCRIPTOR",
        `Cannot take sockets from HAProxy: expected each to listen, or to be for datagrams, number ${index + 1} of ` +
          `${taken.length} ${found(identity)}; is this its stats socket?`,
      );
    }
    if (identity.cookie !== "" && cookies.has(identity.cookie)) {
      descriptor[Symbol.dispose]();
      continue;
    }
    cookies.add(identity.cookie);
    noteElsewhere(identity.cookie);
    setNonBlocking(runtime, descriptor.number);
    // A path is HAProxy's: it was renamed since, and the socket does not know to what.
    sockets.push({ name: "", descriptor, identity, isSupervised: identity.family === "unix", ...records[index]! });
  }
  return sockets;
}

function found(identity: SocketIdentity | null): string {
  return identity ? `is bound to ${shown(formatAddress(identity.address))} and does not` : "is no IP or Unix socket";
}

/** Whether HAProxy can listen on a socket: it uses datagram sockets too, for QUIC and logs. */
export function isListener(identity: SocketIdentity | null): identity is SocketIdentity {
  return identity?.type === "dgram" || identity?.type === "stream" && identity.listening;
}

/** Closes the stats socket that was asked; whoever else asks HAProxy still reaches it there. */
function withoutControl(sockets: readonly HaproxySocket[], asked: SocketAddress | null): HaproxySocket[] {
  const isAsked = ({ identity }: HaproxySocket) => asked !== null && sameAddress(identity.address, asked);
  disposeAll(sockets.filter(isAsked).map(({ descriptor }) => descriptor));
  return sockets.filter((socket) => !isAsked(socket));
}

/** Names that tell all of them apart, sockets with one address (`shards`) by a number. */
function named(sockets: readonly HaproxySocket[]): HaproxySocket[] {
  const counts = new Map<string, number>();
  return sockets.map((socket) => {
    const name = nameOf(socket);
    const count = (counts.get(name) ?? 0) + 1;
    counts.set(name, count);
    return { ...socket, name: count === 1 ? name : `${name} #${count}` };
  });
}

/** As a bind line of HAProxy's configuration has it. */
function nameOf({ identity, namespace, interface: device }: HaproxySocket): string {
  const { address, family, type } = identity;
  const kind = type === "stream" ? "" : family === "unix" ? "uxdg@" : "udp@";
  return kind + formatAddress(address.family === "unix" ? { ...address, path: pathOf(address.path) } : address) +
    (device === "" ? "" : ` interface ${device}`) + (namespace === "" ? "" : ` namespace ${namespace}`);
}

/**
 * HAProxy binds PATH.PID.tmp and renames it to PATH, of which the socket does
 * not know, and fills an abstract name up with NULs (its src/sock_unix.c).
 */
function pathOf(bound: string): string {
  return bound.replace(/\.\d+\.tmp$|(?<=.)\0+$/, "");
}
