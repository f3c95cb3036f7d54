/**
 * Clients of groups, by descriptors alone: datagrams with a tag, connections,
 * and handshakes that stop half way.
 *
 * @module
 */

import { allocate } from "../../src/c/bytes.ts";
import { errnoName } from "../../src/c/errno.ts";
import { formatAddress, type InetAddress } from "../../src/c/sockaddr.ts";
import { receiveMessage, sendMessage } from "../../src/channels/message.ts";
import { isSystemError } from "../../src/errors.ts";
import { defaultLimits } from "../../src/limits.ts";
import { disposeAll, OwnedDescriptor } from "../../src/sockets/descriptors.ts";
import { bindSocket, connectSocket, openSocket, setIntegerOption } from "../../src/sockets/socket.ts";
import { ForwardLink, type ForwardLinkOptions } from "../../src/steering/forward_link.ts";
import { mostHops, setLeastHops } from "../../src/steering/least_hops.ts";
import { openGroup, type ReuseportGroup } from "../../src/steering/reuseport.ts";
import type { GroupType } from "../../src/steering/socket_diag.ts";
import { runtime, until } from "./support.ts";

const { abi, libc } = runtime;

/** Linux's TCP_DEFER_ACCEPT (tcp(7)). */
const IPPROTO_TCP = 6;
const TCP_DEFER_ACCEPT = 9;

/** Any port of this machine alone. */
export const anywhere: InetAddress = { family: "inet", hostname: "127.0.0.1", port: 0 };

/** A group whose sockets are closed at the end of the block. */
export interface OpenedGroup extends Disposable {
  readonly group: ReuseportGroup;
  readonly sockets: readonly OwnedDescriptor[];
  /** By the slots at the beginning. */
  readonly cookies: readonly string[];
}

/** Opens a group. */
export function groupOf(type: GroupType, count: number, address: InetAddress = anywhere): OpenedGroup {
  const { group, sockets } = openGroup(runtime, address, type, count);
  const cookies = group.members.map(({ cookie }) => cookie);
  return { group, sockets, cookies, [Symbol.dispose]: () => disposeAll(sockets) };
}

/** A UDP socket that is bound to this machine. */
export function openClient(family: InetAddress["family"] = "inet"): OwnedDescriptor {
  const socket = new OwnedDescriptor(runtime, openSocket(runtime, family, "dgram"));
  bindSocket(runtime, socket.number, { family, hostname: family === "inet" ? "127.0.0.1" : "::1", port: 0 });
  return socket;
}

/** Sends a datagram; on loopback it has arrived then. */
export function sendTo(socket: OwnedDescriptor, to: InetAddress, ...bytes: readonly number[]): void {
  const result = sendMessage(runtime, socket.number, { bytes: Uint8Array.from(bytes), to });
  if (result !== bytes.length) throw new Error(`sendmsg: ${result}`);
}

/** Every datagram that has arrived, as lists of bytes. */
export function datagramsAt(socket: OwnedDescriptor): number[][] {
  const found: number[][] = [];
  for (;;) {
    const incoming = receiveMessage(runtime, socket.number, 2_048);
    if (typeof incoming === "number") return found;
    found.push([...incoming.bytes]);
  }
}

/** A link to an older process; nobody hears what becomes of its datagrams unless it is said. */
export function linkOver(channel: OwnedDescriptor, options: Partial<ForwardLinkOptions> = {}, seen = runtime): ForwardLink {
  const { forwardSize: queueSize } = defaultLimits;
  return new ForwardLink(seen, channel, { queueSize, returned() {}, dropped() {}, ended() {}, ...options });
}

/** How many datagrams have arrived at each. */
export function countsAt(sockets: readonly OwnedDescriptor[]): number[] {
  return sockets.map((socket) => datagramsAt(socket).length);
}

/** Connections to an address, which on loopback wait in an accept queue then. */
export function connections(count: number, address: InetAddress): OwnedDescriptor[] {
  return begun(count, address, () => {});
}

/**
 * Connections whose clients believe themselves connected while the server still
 * waits for the last packet of the handshake. A client that waits for data
 * itself (TCP_DEFER_ACCEPT) sends it up to 200 ms late, to save one
 * (net/ipv4/tcp_input.c, tcp_rcv_synsent_state_process).
 */
export function lateConnections(count: number, address: InetAddress): OwnedDescriptor[] {
  return begun(count, address, (number) => setIntegerOption(runtime, number, IPPROTO_TCP, TCP_DEFER_ACCEPT, 1));
}

/** Handshakes that never end: their clients hear nothing that the server says. */
export function deafConnections(count: number, address: InetAddress): OwnedDescriptor[] {
  const deaf = { inet: mostHops, inet6: mostHops };
  return begun(count, address, (number) => setLeastHops(runtime, number, address.family, deaf));
}

/** Writes one byte to a connection that was accepted, and closes it. */
export function serve(connection: OwnedDescriptor): void {
  libc.write(connection.number, Uint8Array.of(7) as Uint8Array<ArrayBuffer>, 1);
  connection[Symbol.dispose]();
}

/** What each client has: `answered`, `reset`, or what else it is told. */
export function outcomes(clients: readonly OwnedDescriptor[]): Record<string, number> {
  const counts: Record<string, number> = {};
  for (const { number } of clients) {
    const result = libc.read(number, allocate(1), 1);
    const name = result === 1 ? "answered" : result === 0 ? "ended" : errnoName(abi.platform, -result);
    counts[name] = (counts[name] ?? 0) + 1;
  }
  return counts;
}

/** Until every client has an answer, or an end of another kind. */
export async function ended(clients: readonly OwnedDescriptor[]): Promise<Record<string, number>> {
  const sum: Record<string, number> = {};
  let left = clients;
  await until(() => {
    const still: OwnedDescriptor[] = [];
    for (const client of left) {
      const [[name]] = Object.entries(outcomes([client])) as [[string, number]];
      if (name === "EAGAIN" || name === "ENOTCONN") still.push(client);
      else sum[name] = (sum[name] ?? 0) + 1;
    }
    left = still;
    return left.length === 0;
  }, () => `${left.length} clients to be answered`);
  return sum;
}

function begun(count: number, address: InetAddress, prepare: (number: number) => void): OwnedDescriptor[] {
  return Array.from({ length: count }, () => {
    const socket = new OwnedDescriptor(runtime, openSocket(runtime, address.family, "stream"));
    prepare(socket.number);
    begin(socket, address);
    return socket;
  });
}

function begin(socket: OwnedDescriptor, address: InetAddress): void {
  try {
    connectSocket(runtime, socket.number, address);
  } catch (error) {
    if (!isSystemError(error, "EINPROGRESS")) throw new Error(`connect ${formatAddress(address)}`, { cause: error });
  }
}
