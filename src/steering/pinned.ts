/**
 * Flows that the kernel keeps with one process: for each a socket that is bound
 * to the address of the main one and connected to the peer (udp(7)). What such
 * a peer sends comes to its socket, whoever reads the main one.
 *
 * ```text
 * 192.0.2.1:7 ──> socket connected to it ──┐
 * 192.0.2.2:7 ──> socket connected to it ──┴─ read here
 * anybody else ─> main socket ─────────────── read by whoever is the newest
 * ```
 *
 * All are of one SO_REUSEPORT group, whose program sends everything to the main
 * socket, the first in it: so one that is bound and not connected yet gets
 * nothing. The kernel looks for a connected socket first (net/ipv4/udp.c,
 * udp4_lib_lookup2; since Linux 6.13 by a hash of both addresses).
 *
 * A flow is given back by connecting its socket to itself, and never by
 * connect(2) with AF_UNSPEC: connecting has taken the socket out of the group,
 * so that one which is connected no longer gets everything that comes to the
 * address (Linux 6.18).
 *
 * At an address that means all addresses of the machine, connect(2) chooses the
 * one from which the peer is reached. It is the one that answers come from, too.
 *
 * @module
 */

import { formatAddress, formatInet6, type InetAddress, parseInet, parseInet6 } from "../c/sockaddr.ts";
import { pause, stopWaiting, waitReadable } from "../channels/readiness.ts";
import { Pace } from "../channels/turns.ts";
import { isSystemError, TakeoverError } from "../errors.ts";
import type { Runtime } from "../runtime.ts";
import { OwnedDescriptor, owning } from "../sockets/descriptors.ts";
import { peerOf } from "../sockets/peers.ts";
import { connectSocket, localAddress } from "../sockets/socket.ts";
import { attachToGroup } from "./attach.ts";
import { assemble } from "./bpf.ts";
import { drainDatagrams, type TakeDatagram, takeDatagram } from "./draining.ts";
import { everythingTo } from "./programs.ts";
import { isIpv6Only, openMember } from "./reuseport.ts";

/** The main socket joins its group first, and never leaves it while a process has a copy. */
const mainSlot = 0;

/** How long a datagram may take from the kernel's choice of a socket to that socket. */
const lateMs = 10;

/** Names of peers that are remembered: an application gives the same ones again and again. */
const nameCount = 16_384;

/** How {@linkcode formatInet6} begins an IPv4 address. */
const mapped = "::ffff:";

/** The flows of one endpoint that are this process's. */
export class PinnedSockets implements Disposable {
  readonly #runtime: Runtime;
  readonly #main: number;
  readonly #address: InetAddress;
  readonly #ipv6Only: boolean;
  readonly #take: TakeDatagram;
  readonly #ended: () => void;
  readonly #sockets = new Map<string, OwnedDescriptor>();
  /** The keys of peers, as they were written. */
  readonly #keys = new Map<string, string>();
  /** Given back, and open for what is on its way to them. */
  #leaving: OwnedDescriptor[] = [];
  #closing: Promise<void> | null = null;
  #isClosed = false;

  /**
   * Begins with no flow.
   *
   * @param main The descriptor of the main socket, bound with SO_REUSEPORT.
   * @param take Is given what comes, and who sent it; does not throw.
   * @param ended Hears whenever none is left of the flows that were given back.
   * @throws {TakeoverError} `ERR_TAKEOVER_UNSUPPORTED` when the kernel refuses the group's program.
   */
  constructor(runtime: Runtime, main: number, take: TakeDatagram, ended: () => void = () => {}) {
    attachToGroup(runtime, main, assemble(everythingTo(mainSlot)));
    this.#runtime = runtime;
    this.#main = main;
    this.#address = localAddress(runtime, main) as InetAddress;
    this.#ipv6Only = this.#address.family === "inet6" && isIpv6Only(runtime, main);
    this.#take = take;
    this.#ended = ended;
  }

  /** How many flows are this process's, or were and have not been closed yet. */
  get count(): number {
    return this.#sockets.size + this.#leaving.length;
  }

  /**
   * What names a peer here.
   *
   * @throws {TakeoverError} `ERR_TAKEOVER_ADDRESS` for one that no datagram can come from at this address.
   */
  keyOf(peer: InetAddress): string {
    const written = `${peer.hostname} ${peer.port} ${peer.scope} ${peer.family}`;
    let key = this.#keys.get(written);
    if (key !== undefined) return key;
    key = formatAddress(this.#peerAt(peer));
    if (this.#keys.size >= nameCount) this.#keys.clear();
    this.#keys.set(written, key);
    return key;
  }

  /** Whether a peer's flow is this process's. */
  has(key: string): boolean {
    return this.#sockets.has(key);
  }

  /**
   * Takes a flow: what its peer sends from here on comes to this process.
   *
   * @throws {TakeoverError} As {@linkcode keyOf}; `ERR_TAKEOVER_CLOSED` after the end.
   * @throws {SystemError} `EMFILE`, `ENOMEM`; `EACCES` or `EADDRINUSE` when this
   *   process's user may not bind the address.
   */
  pin(peer: InetAddress): void {
    const at = this.#peerAt(peer);
    const key = formatAddress(at);
    if (this.#isClosed) throw closed(key);
    if (this.#sockets.has(key)) return;
    const socket = openMember(this.#runtime, this.#address, "dgram", { ipv6Only: this.#ipv6Only });
    owning(socket, ({ number }) => {
      connectSocket(this.#runtime, number, at);
      const pinned = new OwnedDescriptor(this.#runtime, socket.take());
      this.#sockets.set(key, pinned);
      void this.#read(pinned);
    });
  }

  /** Gives a flow back, and takes what has come before: the rest is the newest process's. One that is not here is fine. */
  unpin(key: string): void {
    const socket = this.#sockets.get(key);
    if (!socket) return;
    this.#sockets.delete(key);
    this.#leaving.push(socket);
    hearNobody(this.#runtime, socket.number);
    drainDatagrams(this.#runtime, socket.number, this.#take);
    this.#closing ??= this.#closeLeaving();
  }

  /** Gives all flows back, some in each turn of the event loop. Resolves when nothing more can come. */
  async unpinAll(): Promise<void> {
    const pace = new Pace();
    for (const key of [...this.#sockets.keys()]) {
      this.unpin(key);
      await pace.keep();
    }
    await this.#closing;
  }

  /** Gives all flows back, and takes no more. */
  [Symbol.dispose](): void {
    this.#isClosed = true;
    void this.unpinAll();
  }

  #peerAt(peer: InetAddress): InetAddress {
    return peerAt(this.#address, peerOf(this.#runtime, this.#main, peer));
  }

  async #read(socket: OwnedDescriptor): Promise<void> {
    const pace = new Pace();
    try {
      while (socket.number >= 0) {
        await waitReadable(this.#runtime, socket.number, { keepAlive: false });
        while (socket.number >= 0 && takeDatagram(this.#runtime, socket.number, this.#take) === "datagram") {
          await pace.keep();
        }
      }
    } catch {
      // It was closed.
    }
  }

  async #closeLeaving(): Promise<void> {
    while (this.#leaving.length > 0) {
      const before = [...this.#leaving];
      await pause(lateMs);
      for (const socket of before) {
        drainDatagrams(this.#runtime, socket.number, this.#take);
        stopWaiting(this.#runtime, socket.number);
        socket[Symbol.dispose]();
      }
      this.#leaving = this.#leaving.filter(({ number }) => number >= 0);
    }
    this.#closing = null;
    this.#ended();
  }
}

/**
 * Whether a process can keep flows at a socket: opens one as for a flow, and
 * closes it. It hears nothing that is meant for anybody.
 *
 * @param main Bound with SO_REUSEPORT, the only one in its group or its first.
 * @throws {TakeoverError} As {@linkcode PinnedSockets}.
 * @throws {SystemError} As {@linkcode PinnedSockets.pin}.
 */
export function tryPinning(runtime: Runtime, main: number): void {
  attachToGroup(runtime, main, assemble(everythingTo(mainSlot)));
  const address = localAddress(runtime, main) as InetAddress;
  const ipv6Only = address.family === "inet6" && isIpv6Only(runtime, main);
  owning(openMember(runtime, address, "dgram", { ipv6Only }), ({ number }) => hearNobody(runtime, number));
}

function closed(key: string): TakeoverError {
  const message = `Cannot keep the flow of ${key}: expected the process to go on, its part has ended`;
  return new TakeoverError("ERR_TAKEOVER_CLOSED", message);
}

/** Its own address is the one that nobody else sends from. */
function hearNobody(runtime: Runtime, descriptor: number): void {
  try {
    connectSocket(runtime, descriptor, localAddress(runtime, descriptor)!);
  } catch (error) {
    // The address has left the machine: nothing comes to it any more.
    if (!isSystemError(error, "ENETUNREACH", "EHOSTUNREACH", "EADDRNOTAVAIL", "EINVAL")) throw error;
  }
}

/** A peer as the kernel names it at an address: IPv4 as a part of IPv6 where the socket is IPv6. */
function peerAt({ family }: InetAddress, peer: InetAddress): InetAddress {
  const { hostname, port, scope } = peer;
  const inet = peer.family === "inet" ? parseInet(hostname) : null;
  const inet6 = peer.family === "inet6" ? parseInet6(hostname) : inet && parseInet6(`::ffff:${inet.join(".")}`);
  const text = inet6 && formatInet6(inet6);
  const isPort = Number.isInteger(port) && port >= 1 && port <= 65_535;
  if (text && isPort && family === "inet6") return { family, hostname: text, port, ...scope ? { scope } : {} };
  if (text?.startsWith(mapped) && isPort) return { family, hostname: text.slice(mapped.length), port };
  throw new TakeoverError(
    "ERR_TAKEOVER_ADDRESS",
    `Cannot keep the flow of ${JSON.stringify(peer)}: expected a numeric address of the family ${family} and a port`,
  );
}
