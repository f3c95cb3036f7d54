/**
 * The order in which the kernel has the members of a group, which it tells
 * nobody: each slot is sent a packet, and who got it is seen by what he drops.
 *
 * ```text
 * the group's program, for the probe's source alone:  answer slot i
 * the probe sends:                                    one datagram, or one SYN with a single hop
 * every member of ours drops it:                      by a filter, or because it has too few hops
 * the member whose count of drops has grown:          has slot i   (SO_MEMINFO, SK_MEMINFO_DROPS)
 * ```
 *
 * @module
 */

import { formatAddress, type InetAddress } from "../c/sockaddr.ts";
import { pause } from "../channels/readiness.ts";
import { sendMessage } from "../channels/message.ts";
import { checked, isSystemError, TakeoverError } from "../errors.ts";
import type { Runtime } from "../runtime.ts";
import { OwnedDescriptor, owning } from "../sockets/descriptors.ts";
import { dropCount } from "../sockets/queues.ts";
import { bindSocket, connectSocket, localAddress, openSocket } from "../sockets/socket.ts";
import { attachFilter, attachToGroup, detachFilter, hasFilter, nothing, whole } from "./attach.ts";
import { answer, assemble, type Line } from "./bpf.ts";
import { leastHopsOf, setHops, setLeastHops } from "./least_hops.ts";
import { ifFrom } from "./programs.ts";
import type { GroupType } from "./socket_diag.ts";

/** A group whose order is not known. */
export interface Unordered {
  readonly address: InetAddress;
  /** Whether an IPv6 group takes IPv4 as well. */
  readonly isDualStack: boolean;
  readonly type: GroupType;
  /** The members that this process has, each with its own socket. */
  readonly descriptors: readonly number[];
  /** How many members there are, those of others included. */
  readonly count: number;
  /** What the group is steered by meanwhile; it is left with it, and the probe's lines before it. */
  readonly program: readonly Line[];
  /** How long a packet may take. */
  readonly timeoutMs: number;
}

/** A group, and where packets of our own reach it. */
interface Probed extends Unordered {
  readonly to: InetAddress;
}

/** A member that drops other packets as well at that moment makes a probe useless. */
const attemptCount = 5;

/** Nothing else comes with so few: it would have come the whole way that its sender meant it to. */
const probeHops = 1;

const firstLookMs = 1;
const longestLookMs = 20;

/**
 * Who has which slot.
 *
 * @returns For each slot the index of a descriptor, or null for a member of somebody else.
 * @throws {TakeoverError} `ERR_TAKEOVER_STATE` when it cannot be told.
 */
export async function readOrder(runtime: Runtime, unordered: Unordered): Promise<(number | null)[]> {
  const group = { ...unordered, to: reachable(runtime, unordered) };
  const busy = group.descriptors.find((descriptor) => group.type === "dgram" && hasFilter(runtime, descriptor));
  if (busy !== undefined) throw untold(group, `the socket ${busy} has a filter of its own (SO_ATTACH_FILTER)`);
  const order: (number | null)[] = [];
  for (let slot = 0; slot < group.count; slot++) {
    // Where all of this process are known, the others are somebody else's.
    const isKnown = order.filter((index) => index !== null).length === group.descriptors.length;
    order.push(isKnown ? null : await probe(runtime, group, slot));
  }
  const found = order.filter((index) => index !== null);
  const foundCount = new Set(found).size;
  if (found.length === group.descriptors.length && foundCount === found.length) return order;
  const { length } = group.descriptors;
  throw untold(group, `${foundCount} of ${length} were found in ${group.count} slots; it changes meanwhile`);
}

async function probe(runtime: Runtime, group: Probed, slot: number): Promise<number | null> {
  for (let attempt = 0; attempt < attemptCount; attempt++) {
    const socket = new OwnedDescriptor(runtime, openProbe(runtime, group));
    const found = await owning(socket, ({ number }) => probeWith(runtime, group, slot, number));
    if (found.length <= 1) return found[0] ?? null;
  }
  throw untold(group, "members drop packets all the time; try again under less load");
}

async function probeWith(runtime: Runtime, group: Probed, slot: number, number: number): Promise<number[]> {
  const { descriptors } = group;
  const source = localAddress(runtime, number) as InetAddress;
  const program = assemble([...ifFrom(source, "probe", "other"), "probe", answer(slot), "other", ...group.program]);
  const restores = descriptors.map((descriptor) => droppingFrom(runtime, group, descriptor, source));
  try {
    attachToGroup(runtime, descriptors[0]!, program);
    const before = descriptors.map((descriptor) => dropCount(runtime, descriptor));
    send(runtime, group, number);
    return await dropped(runtime, group, before);
  } finally {
    for (const restore of restores) restore();
  }
}

/** Lets a member drop what the probe sends. What comes back undoes it. */
function droppingFrom(runtime: Runtime, group: Unordered, descriptor: number, source: InetAddress): () => void {
  const { address: { family }, type } = group;
  if (type === "dgram") {
    const lines = [...ifFrom(source, "probe", "other"), "probe", answer(nothing), "other", answer(whole)];
    attachFilter(runtime, descriptor, assemble(lines));
    return () => detachFilter(runtime, descriptor);
  }
  const before = leastHopsOf(runtime, descriptor, family);
  const after = { inet: Math.max(before.inet, probeHops + 1), inet6: Math.max(before.inet6, probeHops + 1) };
  setLeastHops(runtime, descriptor, family, after);
  return () => setLeastHops(runtime, descriptor, family, before);
}

/** The indexes of all that have dropped something. */
async function dropped(runtime: Runtime, group: Unordered, before: readonly number[]): Promise<number[]> {
  const { descriptors, timeoutMs } = group;
  const end = Date.now() + timeoutMs;
  for (let waitMs = firstLookMs;; waitMs = Math.min(waitMs * 2, longestLookMs)) {
    const found = [...descriptors.keys()].filter((index) => dropCount(runtime, descriptors[index]!) !== before[index]);
    if (found.length > 0 || Date.now() >= end) return found;
    await pause(waitMs);
  }
}

/** Bound to an address and port of its own, by which its packets are known. */
function openProbe(runtime: Runtime, { to, type }: Probed): number {
  const { family } = to;
  return owning(openAt(runtime, to, type), (socket) => {
    if (type === "stream") setHops(runtime, socket.number, family, probeHops);
    return socket.take();
  });
}

function openAt(runtime: Runtime, at: InetAddress, type: GroupType): OwnedDescriptor {
  return owning(new OwnedDescriptor(runtime, openSocket(runtime, at.family, type)), (socket) => {
    bindSocket(runtime, socket.number, { ...at, port: 0 });
    return new OwnedDescriptor(runtime, socket.take());
  });
}

function send(runtime: Runtime, { to, type }: Probed, number: number): void {
  if (type === "dgram") {
    checked(runtime.abi, "sendmsg", sendMessage(runtime, number, { bytes: new Uint8Array(0), to }));
    return;
  }
  try {
    connectSocket(runtime, number, to);
  } catch (error) {
    if (!isSystemError(error, "EINPROGRESS")) throw error;
  }
}

/** A group that is bound everywhere is reached on loopback, which may have no IPv6. */
function reachable(runtime: Runtime, group: Unordered): InetAddress {
  const { address, type, isDualStack } = group;
  const inet = { family: "inet", hostname: "127.0.0.1", port: address.port } as const;
  if (address.hostname === "0.0.0.0") return inet;
  if (address.hostname !== "::") return address;
  const inet6 = { ...address, hostname: "::1" };
  if (isHere(runtime, inet6, type)) return inet6;
  if (isDualStack) return inet;
  throw untold(group, "and a packet of our own to reach it: this machine has no ::1 (net.ipv6.conf.lo.disable_ipv6)");
}

function isHere(runtime: Runtime, at: InetAddress, type: GroupType): boolean {
  try {
    openAt(runtime, at, type)[Symbol.dispose]();
    return true;
  } catch (error) {
    if (isSystemError(error, "EADDRNOTAVAIL")) return false;
    throw error;
  }
}

function untold({ address }: Unordered, why: string): TakeoverError {
  return new TakeoverError(
    "ERR_TAKEOVER_STATE",
    `Cannot tell the order of the group at ${formatAddress(address)}: expected every member to be in one slot, ${why}`,
  );
}
