/**
 * What is to be seized: which process, which of its listeners, under which
 * names.
 *
 * @module
 */

import { TakeoverError } from "../errors.ts";
import type { ForeignSocket } from "./foreign_socket.ts";
import type { SeizedListener } from "./listeners.ts";
import type { Runtime } from "../runtime.ts";
import { formatAddress, formatInet6, parseInet6, type SocketAddress } from "../c/sockaddr.ts";

/** Which process, and which of its listeners. */
export interface SeizeOptions {
  /** The process. Of a server with workers the one that started them. */
  readonly pid: number;
  /**
   * Only listeners there: a host, a host with its port (`127.0.0.1:8080`,
   * `[::1]:8080`), or a Unix path as the server named it (`@name` for an
   * abstract one).
   */
  readonly address?: string;
  /** Only listeners on this TCP port. */
  readonly port?: number;
  /** What the application claims the socket by; its address when left out. Further sockets get `.2`, `.3` behind it. */
  readonly name?: string;
  /** Field 22 of /proc/PID/stat (proc(5)): the process is refused when it did not start then. */
  readonly startTime?: number;
  /** The program that the process has to run: its path, or the last part of it. */
  readonly executable?: string;
  /**
   * Makes listeners non-blocking at once that block, though the process runs.
   * `O_NONBLOCK` is one flag for all copies of a socket (fcntl(2)): where the
   * process accepts and another was faster, it gets EAGAIN. Python's http.server
   * goes on then; a server that does nothing but accept gets it at once, and may end.
   */
  readonly allowBlocking?: boolean;
}

/** The largest pid that Linux gives (linux/threads.h, PID_MAX_LIMIT). */
const largestPid = 2 ** 22;

/** @throws {TakeoverError} When an option cannot be meant, or this system cannot do it. */
export function checkOptions({ abi, libc }: Runtime, { pid, address, port }: SeizeOptions): void {
  if (abi.platform !== "linux") {
    throw new TakeoverError(
      "ERR_TAKEOVER_UNSUPPORTED",
      `Cannot take sockets out of another process on ${abi.platform}: expected Linux 5.6 or later; ` +
        "stop the old server first",
    );
  }
  checkRange("seize from", pid, 1, largestPid, "a pid");
  if (pid === libc.getpid()) {
    throw new TakeoverError(
      "ERR_TAKEOVER_SELF",
      `Cannot seize from process ${pid}: it is this process; give the pid of the old one`,
    );
  }
  if (port !== undefined) checkRange("seize port", port, 1, 65_535, "a port", "ERR_TAKEOVER_ADDRESS");
  if (address !== undefined && (typeof address !== "string" || address === "")) {
    throw new TakeoverError(
      "ERR_TAKEOVER_ADDRESS",
      `Cannot seize ${JSON.stringify(address)}: expected an address such as 127.0.0.1:8080, or a Unix path`,
    );
  }
}

/** @throws {TakeoverError} When a number is no integer in a range. */
export function checkRange(
  what: string,
  value: number,
  least: number,
  most: number,
  kind: string,
  code: "ERR_TAKEOVER_RANGE" | "ERR_TAKEOVER_ADDRESS" = "ERR_TAKEOVER_RANGE",
): void {
  if (Number.isInteger(value) && value >= least && value <= most) return;
  throw new TakeoverError(code, `Cannot ${what} ${value}: expected ${kind}, an integer from ${least} to ${most}`);
}

/**
 * Those of a process's listeners that are wanted.
 *
 * @throws {TakeoverError} `ERR_TAKEOVER_NO_LISTENER` when it has none of them.
 */
export function chosen(listeners: readonly SeizedListener[], options: SeizeOptions): SeizedListener[] {
  const found = listeners.filter(({ identity }) => isWanted(identity.address, options));
  if (found.length > 0) return found;
  const { pid, address, port } = options;
  const wanted = [address, port === undefined ? "" : `port ${port}`].filter(Boolean).join(" and ") || "any address";
  const there = listeners.map(({ identity }) => formatAddress(identity.address)).join(", ") || "none";
  throw new TakeoverError(
    "ERR_TAKEOVER_NO_LISTENER",
    `Cannot seize from process ${pid}: expected a listening socket at ${wanted}, its listening sockets are: ${there}`,
  );
}

function isWanted(there: SocketAddress, { address, port }: SeizeOptions): boolean {
  if (port !== undefined && (there.family === "unix" || there.port !== port)) return false;
  if (address === undefined || address === formatAddress(there)) return true;
  if (there.family === "unix") return false;
  const inet6 = parseInet6(address.replace(/^\[(.*)\]$/, "$1"));
  return (inet6 ? formatInet6(inet6) : address) === there.hostname;
}

/** Gives them names: members of an SO_REUSEPORT group have one address, and need names of their own. */
export function named(listeners: readonly SeizedListener[], name?: string): ForeignSocket[] {
  const counts = new Map<string, number>();
  return listeners.map(({ descriptor, identity }) => {
    const base = name ?? formatAddress(identity.address);
    const count = (counts.get(base) ?? 0) + 1;
    counts.set(base, count);
    return { name: count === 1 ? base : `${base}.${count}`, descriptor, identity };
  });
}
