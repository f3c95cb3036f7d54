/**
 * Where an application wants an endpoint to be, and the address that a native
 * server is told to open for it.
 *
 * @module
 */

import { TakeoverError } from "../errors.ts";
import type { Runtime } from "../runtime.ts";
import { formatInet6, parseInet, parseInet6, type SocketAddress } from "../c/sockaddr.ts";

/** A TCP address to listen on. */
export interface TcpEndpoint {
  /** 0 to 65535; 0 lets the kernel choose, once: successors inherit the choice. */
  readonly port: number;
  /** A numeric address or a host name; `0.0.0.0` when left out. `::` is dual stack. */
  readonly hostname?: string;
  /** For an IPv6 address: take no IPv4 connections (ipv6(7), IPV6_V6ONLY). */
  readonly ipv6Only?: boolean;
  /** The length of the accept queue (listen(2)); 4096, cut by net.core.somaxconn. */
  readonly backlog?: number;
  /** Lets other sockets of this user listen there, too; the kernel spreads over them (socket(7), SO_REUSEPORT). */
  readonly reusePort?: boolean;
}

/** A Unix path to listen on. */
export interface UnixEndpoint {
  /** At most 107 bytes; macOS 103. */
  readonly path: string;
  /** The permissions of the path, for instance 0o660; what the umask leaves when left out. */
  readonly mode?: number;
  /** The length of the accept queue (listen(2)); 4096, cut by net.core.somaxconn. */
  readonly backlog?: number;
}

/** A TCP address at which several listen. */
export interface GroupEndpoint extends Omit<TcpEndpoint, "reusePort"> {
  /** How many listeners, from 1 on. */
  readonly count: number;
}

/** Where an endpoint is to be. */
export type EndpointAddress = TcpEndpoint | UnixEndpoint;

/** A UDP address to receive on. */
export interface UdpEndpoint {
  /** 0 to 65535; 0 lets the kernel choose, once: successors inherit the choice. */
  readonly port: number;
  /** A numeric address or a host name; `0.0.0.0` when left out. `::` is dual stack. */
  readonly hostname?: string;
  /** For an IPv6 address: take no IPv4 (ipv6(7), IPV6_V6ONLY). */
  readonly ipv6Only?: boolean;
  /** Lets other sockets of this user be bound there, too; the kernel spreads over them (socket(7), SO_REUSEPORT). */
  readonly reusePort?: boolean;
  /**
   * How many bytes may wait in the socket, the kernel's own among them: what comes while one process replaces the
   * other waits there. net.core.rmem_default when left out, at most net.core.rmem_max without CAP_NET_ADMIN
   * (socket(7), SO_RCVBUF, which doubles it).
   */
  readonly receiveBufferSize?: number;
}

/** The same for a socket that others of its program are to join: nobody else may have any of its addresses. */
export interface GroupBeginning extends UdpEndpoint {
  readonly beginsGroup: true;
}

/** A Unix path to receive datagrams on, which only Deno does. */
export interface UnixDatagramEndpoint {
  /** At most 107 bytes; macOS 103. */
  readonly path: string;
  /** The permissions of the path, for instance 0o660; what the umask leaves when left out. */
  readonly mode?: number;
  /** As for UDP. */
  readonly receiveBufferSize?: number;
}

/** Where an endpoint for datagrams is to be. */
export type DatagramAddress = UdpEndpoint | UnixDatagramEndpoint;

/**
 * What the callback of `listen` passes on to its server, under the names that
 * `Deno.serve`, `Bun.serve`, `node:net` and the frameworks know. On Linux it is
 * a placeholder, which the true socket replaces right after.
 */
export interface TcpOpening {
  /** Numeric. */
  readonly hostname: string;
  /** The same, under the name that Node and Fastify use. */
  readonly host: string;
  /** 1 to 65535. */
  readonly port: number;
}

/** The same for an endpoint on a Unix path. */
export interface UnixOpening {
  /** At most 107 bytes; macOS 103. */
  readonly path: string;
  /** The same, under the name that `Bun.serve` uses. */
  readonly unix: string;
  /** What `Deno.listen` wants beside a path. */
  readonly transport: "unix";
}

/** The queue length asked for when the application does not say. */
export const defaultBacklog = 4_096;

/**
 * Makes a socket address of what the application asked for.
 *
 * @throws {TakeoverError} `ERR_TAKEOVER_ADDRESS` when it names no usable address.
 */
export async function resolveAddress(
  runtime: Runtime,
  wanted: EndpointAddress | DatagramAddress,
): Promise<SocketAddress> {
  if ("path" in wanted) {
    if (typeof wanted.path === "string" && wanted.path !== "") return { family: "unix", path: wanted.path };
    throw new TakeoverError("ERR_TAKEOVER_ADDRESS", `Cannot listen on the path ${JSON.stringify(wanted.path)}: expected a text`);
  }
  const { port } = wanted;
  if (!(Number.isInteger(port) && port >= 0 && port <= 65535)) {
    throw new TakeoverError(
      "ERR_TAKEOVER_ADDRESS",
      `Cannot listen on the port ${JSON.stringify(port)}: expected an integer from 0 to 65535`,
    );
  }
  const hostname = (wanted.hostname ?? "0.0.0.0").replace(/^\[(.*)\]$/, "$1");
  for (const numeric of isNumeric(hostname) ? [hostname] : await lookedUp(runtime, hostname)) {
    const inet6 = parseInet6(numeric);
    return inet6 ? { family: "inet6", hostname: formatInet6(inet6), port } : { family: "inet", hostname: numeric, port };
  }
  throw new TakeoverError("ERR_TAKEOVER_ADDRESS", `Cannot listen on ${hostname}: the name has no address`);
}

/** Whether an inherited socket is where the application wants its endpoint. */
export function satisfies(inherited: SocketAddress, wanted: SocketAddress): boolean {
  if (inherited.family === "unix" || wanted.family === "unix") {
    return inherited.family === wanted.family && (inherited as { path: string }).path === (wanted as { path: string }).path;
  }
  return inherited.family === wanted.family && inherited.hostname === wanted.hostname &&
    (wanted.port === 0 || wanted.port === inherited.port);
}

/** Whether a connection that is bound there came in through a listener: its port is the same, its address any of the host's. */
export function cameThrough(local: SocketAddress, listener: SocketAddress): boolean {
  if (local.family === "unix" || listener.family === "unix") {
    return local.family === "unix" && listener.family === "unix" && local.path === listener.path;
  }
  return local.port === listener.port;
}

/** The address in the words of every server. */
export function openingOf(address: SocketAddress): TcpOpening | UnixOpening {
  if (address.family === "unix") return { path: address.path, unix: address.path, transport: "unix" };
  return { hostname: address.hostname, host: address.hostname, port: address.port };
}

function isNumeric(hostname: string): boolean {
  return parseInet(hostname) !== null || parseInet6(hostname) !== null;
}

async function lookedUp(runtime: Runtime, hostname: string): Promise<readonly string[]> {
  // Both standards reserve it (RFC 6761), and a resolver may not know it.
  if (hostname === "localhost") return ["127.0.0.1"];
  try {
    return await runtime.lookup(hostname);
  } catch (cause) {
    throw new TakeoverError(
      "ERR_TAKEOVER_ADDRESS",
      `Cannot listen on ${hostname}: expected a numeric address or a name that resolves`,
      { cause },
    );
  }
}
