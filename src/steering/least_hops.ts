/**
 * The hops that a packet must have left when it comes (`IP_MINTTL`, ip(7);
 * `IPV6_MINHOPCOUNT`, ipv6(7)): TCP drops those with fewer, and counts them.
 * With 255, which hardly any system sends, a listener gets no new connection,
 * and still ends the handshakes that have begun: their packets are not looked
 * at in this way (net/ipv4/tcp_ipv4.c, tcp_v4_rcv).
 *
 * A socket filter would say it more plainly, but Linux 6.18 lets nobody give a
 * TCP socket one without CAP_NET_ADMIN.
 *
 * @module
 */

import { allocate, viewOf } from "../c/bytes.ts";
import type { InetAddress } from "../c/sockaddr.ts";
import { checked, SystemError } from "../errors.ts";
import type { Runtime } from "../runtime.ts";
import { openDescriptors } from "../sockets/descriptors.ts";
import { isListening, localAddress, setIntegerOption } from "../sockets/socket.ts";

/** Linux's numbers (netinet/in.h). */
const IPPROTO_IP = 0;
const IPPROTO_IPV6 = 41;
const IP_TTL = 2;
const IP_MINTTL = 21;
const IPV6_UNICAST_HOPS = 16;
const IPV6_MINHOPCOUNT = 73;

/** As many hops as a packet can have: none comes with more. */
export const mostHops = 255;

/** What a TCP socket asks of the packets that it gets; 0 is nothing. */
export interface LeastHops {
  readonly inet: number;
  readonly inet6: number;
}

/** Every packet, whatever it has left. */
export const anyHops: LeastHops = { inet: 0, inet6: 0 };

/** What a socket asks for now. */
export function leastHopsOf(runtime: Runtime, descriptor: number, family: InetAddress["family"]): LeastHops {
  const inet = optionOf(runtime, descriptor, IPPROTO_IP, IP_MINTTL);
  return { inet, inet6: family === "inet6" ? optionOf(runtime, descriptor, IPPROTO_IPV6, IPV6_MINHOPCOUNT) : 0 };
}

/** Asks for so many; connections that a listener accepts inherit it when their handshake ends. */
export function setLeastHops(
  runtime: Runtime,
  descriptor: number,
  family: InetAddress["family"],
  hops: LeastHops,
): void {
  setIntegerOption(runtime, descriptor, IPPROTO_IP, IP_MINTTL, hops.inet);
  if (family === "inet6") setIntegerOption(runtime, descriptor, IPPROTO_IPV6, IPV6_MINHOPCOUNT, hops.inet6);
}

/**
 * New connections, kept away from a TCP listener that is nobody else's: a client
 * tries again a second later, and is refused then.
 */
export class KeptAway {
  readonly #runtime: Runtime;
  readonly #listener: number;
  readonly #address: InetAddress;
  readonly #before: LeastHops;

  /** Begins. @param listener Stays its owner's. */
  constructor(runtime: Runtime, listener: number, address: InetAddress) {
    this.#runtime = runtime;
    this.#listener = listener;
    this.#address = address;
    this.#before = leastHopsOf(runtime, listener, address.family);
    setLeastHops(runtime, listener, address.family, { inet: mostHops, inet6: mostHops });
  }

  /** A connection whose handshake has ended meanwhile hears its client again. */
  letIn(connection: number): void {
    setLeastHops(this.#runtime, connection, this.#address.family, this.#before);
  }

  /** The same for all that a server has accepted. */
  letAllIn(): void {
    for (const descriptor of openDescriptors(this.#runtime)) {
      try {
        if (this.#isKeptOut(descriptor)) this.letIn(descriptor);
      } catch (error) {
        // A worker's: its thread has closed it a moment ago, and the number may be anything.
        if (!(error instanceof SystemError)) throw error;
      }
    }
  }

  #isKeptOut(descriptor: number): boolean {
    const local = localAddress(this.#runtime, descriptor);
    if (!local || local.family === "unix" || local.port !== this.#address.port) return false;
    if (isListening(this.#runtime, descriptor)) return false;
    return optionOf(this.#runtime, descriptor, IPPROTO_IP, IP_MINTTL) === mostHops;
  }

  /** Ends: whoever has a copy of the listener goes on with it as it was. */
  end(): void {
    setLeastHops(this.#runtime, this.#listener, this.#address.family, this.#before);
  }
}

/** Sends every packet with so many hops. */
export function setHops(runtime: Runtime, descriptor: number, family: InetAddress["family"], count: number): void {
  if (family === "inet") setIntegerOption(runtime, descriptor, IPPROTO_IP, IP_TTL, count);
  else setIntegerOption(runtime, descriptor, IPPROTO_IPV6, IPV6_UNICAST_HOPS, count);
}

function optionOf({ abi, libc }: Runtime, descriptor: number, level: number, option: number): number {
  const [value, size] = [allocate(4), allocate(4)];
  viewOf(size).setUint32(0, 4, true);
  checked(abi, "getsockopt", libc.getsockopt(descriptor, level, option, value, size));
  return viewOf(value).getInt32(0, true);
}
