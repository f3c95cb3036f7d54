/**
 * Socket addresses as bytes: `sockaddr_in` (ip(7)), `sockaddr_in6` (ipv6(7))
 * and `sockaddr_un` (unix(7)), abstract names included.
 *
 * ```text
 * in    family 2 | port 2 BE | address 4 | zero 8
 * in6   family 2 | port 2 BE | flowinfo 4 | address 16 | scope 4
 * un    family 2 | path, NUL-terminated; a leading NUL makes it abstract
 * ```
 *
 * macOS has one byte of length and one of family where Linux has two of family.
 *
 * @module
 */

import type { Abi, Field } from "./abi.ts";
import { allocate, type Bytes, readField, untilNul, viewOf, writeField } from "./bytes.ts";
import { TakeoverError } from "../errors.ts";

/** Where a socket is: an IP address and port, or the path of a Unix socket. */
export type SocketAddress = InetAddress | UnixAddress;

/** An IPv4 or IPv6 address. */
export interface InetAddress {
  /** Which of the two. */
  readonly family: "inet" | "inet6";
  /** Numeric, for instance `127.0.0.1` or `::1`. */
  readonly hostname: string;
  /** 0 to 65535. */
  readonly port: number;
  /** The interface of a link-local IPv6 address (ipv6(7), sin6_scope_id). */
  readonly scope?: number;
}

/** A Unix socket's address. */
export interface UnixAddress {
  /** `AF_UNIX`. */
  readonly family: "unix";
  /** Empty when unnamed; an abstract name starts with a NUL. */
  readonly path: string;
}

/** The room that any of these addresses fits in, in bytes. */
export const sockaddrSize = 128;

/**
 * Encodes an address.
 *
 * @param abi The platform.
 * @param address The address; a Unix path of at most 107 bytes on Linux and
 *   103 on macOS (`sun_path` less its NUL), an abstract name of at most 108.
 * @returns Exactly the bytes to pass to bind(2) or connect(2).
 * @throws {TakeoverError} `ERR_TAKEOVER_ADDRESS`, or `ERR_TAKEOVER_PATH` for a
 *   Unix one, when it cannot be encoded.
 */
export function encodeSockaddr(abi: Abi, address: SocketAddress): Bytes {
  if (address.family === "unix") return encodeUnix(abi, address.path);
  return address.family === "inet" ? encodeInet(abi, address) : encodeInet6(abi, address);
}

/**
 * Decodes an address, as getsockname(2) and getpeername(2) leave it.
 *
 * @param abi The platform.
 * @param bytes Exactly as many bytes as the call reported.
 * @returns The address, or null when its family is none of the three.
 */
export function decodeSockaddr(abi: Abi, bytes: Uint8Array): SocketAddress | null {
  const { sockaddr, constants } = abi;
  if (bytes.length < sockaddr.un.path.offset) return null;
  const view = viewOf(bytes);
  const family = readField(view, sockaddr.family);
  if (family === constants.AF_UNIX) {
    return { family: "unix", path: decodePath(bytes.subarray(sockaddr.un.path.offset)) };
  }
  if (family === constants.AF_INET && bytes.length >= sockaddr.in.size) {
    const { port, address } = sockaddr.in;
    return { family: "inet", hostname: fieldOf(bytes, address).join("."), port: view.getUint16(port.offset) };
  }
  if (family === constants.AF_INET6 && bytes.length >= sockaddr.in6.size) {
    const { port, address, scope } = sockaddr.in6;
    const hostname = formatInet6(fieldOf(bytes, address));
    const zone = readField(view, scope);
    const found = { family: "inet6", hostname, port: view.getUint16(port.offset) } as const;
    return zone === 0 ? found : { ...found, scope: zone };
  }
  return null;
}

/**
 * Formats an address the way it is written in a URL or on a command line.
 *
 * @returns `127.0.0.1:8080`, `[::1]:8080`, a path, or `@name` for an abstract one.
 */
export function formatAddress(address: SocketAddress): string {
  if (address.family === "unix") return address.path.replaceAll("\0", "@");
  if (address.family === "inet") return `${address.hostname}:${address.port}`;
  return `[${address.hostname}${address.scope ? `%${address.scope}` : ""}]:${address.port}`;
}

/** Whether two addresses are the same. */
export function sameAddress(a: SocketAddress, b: SocketAddress): boolean {
  return a.family === b.family && formatAddress(a) === formatAddress(b);
}

/**
 * The four bytes of an IPv4 address in dotted decimal.
 *
 * @returns The bytes, or null when the text is not such an address.
 */
export function parseInet(text: string): Uint8Array | null {
  const parts = text.split(".");
  if (parts.length !== 4 || !parts.every((part) => /^\d{1,3}$/.test(part) && +part <= 255)) return null;
  return Uint8Array.from(parts, Number);
}

/**
 * The sixteen bytes of an IPv6 address (RFC 4291, section 2.2), `::` and an
 * IPv4 tail included, without a zone.
 *
 * @returns The bytes, or null when the text is not such an address.
 */
export function parseInet6(text: string): Uint8Array | null {
  const halves = text.split("::");
  if (halves.length > 2) return null;
  const head = groupsOf(halves[0]!, halves.length === 1);
  const tail = groupsOf(halves[1] ?? "", true);
  if (!head || !tail) return null;
  const missing = 8 - head.length - tail.length;
  if (halves.length === 2 ? missing < 1 : missing !== 0) return null;
  const groups = [...head, ...new Array<number>(missing).fill(0), ...tail];
  return Uint8Array.from(groups.flatMap((group) => [group >> 8, group & 0xff]));
}

/** The 16-bit groups; an IPv4 address may only be the end of the whole. */
function groupsOf(text: string, isEnd: boolean): number[] | null {
  if (text === "") return [];
  const groups: number[] = [];
  const parts = text.split(":");
  for (const [index, part] of parts.entries()) {
    const inet = isEnd && index === parts.length - 1 ? parseInet(part) : null;
    if (inet) groups.push(inet[0]! << 8 | inet[1]!, inet[2]! << 8 | inet[3]!);
    else if (/^[0-9a-f]{1,4}$/i.test(part)) groups.push(parseInt(part, 16));
    else return null;
  }
  return groups;
}

/** Canonical text (RFC 5952), as the kernel's answers are written: lower case, the first longest run of zeros as `::`. */
export function formatInet6(bytes: Uint8Array): string {
  const view = viewOf(bytes);
  const groups = Array.from({ length: 8 }, (_, index) => view.getUint16(index * 2));
  if (groups.slice(0, 5).every((group) => group === 0) && groups[5] === 0xffff) {
    return `::ffff:${bytes.subarray(12).join(".")}`;
  }
  const { from, count } = longestZeroRun(groups);
  const text = (part: readonly number[]) => part.map((group) => group.toString(16)).join(":");
  if (count < 2) return text(groups);
  return `${text(groups.slice(0, from))}::${text(groups.slice(from + count))}`;
}

function longestZeroRun(groups: readonly number[]): { from: number; count: number } {
  let best = { from: 0, count: 0 };
  for (let from = 0; from < groups.length; from++) {
    let count = 0;
    while (groups[from + count] === 0) count++;
    if (count > best.count) best = { from, count };
  }
  return best;
}

function start(abi: Abi, size: number, family: number): Bytes {
  const bytes = allocate(size);
  const view = viewOf(bytes);
  writeField(view, abi.sockaddr.family, family);
  if (abi.sockaddr.length) writeField(view, abi.sockaddr.length, size);
  return bytes;
}

function encodeInet(abi: Abi, { hostname, port }: InetAddress): Bytes {
  const { in: layout } = abi.sockaddr;
  const bytes = start(abi, layout.size, abi.constants.AF_INET);
  bytes.set(parsed(parseInet(hostname), hostname, "an IPv4 address such as 127.0.0.1"), layout.address.offset);
  viewOf(bytes).setUint16(layout.port.offset, checkedPort(port));
  return bytes;
}

function encodeInet6(abi: Abi, { hostname, port, scope }: InetAddress): Bytes {
  const { in6: layout } = abi.sockaddr;
  const bytes = start(abi, layout.size, abi.constants.AF_INET6);
  bytes.set(parsed(parseInet6(hostname), hostname, "an IPv6 address such as ::1"), layout.address.offset);
  const view = viewOf(bytes);
  view.setUint16(layout.port.offset, checkedPort(port));
  writeField(view, layout.scope, scope ?? 0);
  return bytes;
}

function encodeUnix(abi: Abi, path: string): Bytes {
  const { un } = abi.sockaddr;
  const name = new TextEncoder().encode(path);
  const abstract = name[0] === 0;
  const most = abstract ? un.path.size : un.path.size - 1;
  if (name.length > most) {
    throw new TakeoverError(
      "ERR_TAKEOVER_PATH",
      `Cannot use the Unix path ${JSON.stringify(path)}: it has ${name.length} bytes, ` +
        `expected at most ${most}; choose a shorter folder, for instance under /run`,
    );
  }
  if (!abstract && name.includes(0)) {
    throw new TakeoverError(
      "ERR_TAKEOVER_PATH",
      `Cannot use the Unix path ${JSON.stringify(path)}: expected no NUL in it`,
    );
  }
  const bytes = start(abi, un.path.offset + name.length + (abstract || name.length === 0 ? 0 : 1), abi.constants.AF_UNIX);
  bytes.set(name, un.path.offset);
  return bytes;
}

function fieldOf(bytes: Uint8Array, { offset, size }: Field): Uint8Array {
  return bytes.subarray(offset, offset + size);
}

function decodePath(bytes: Uint8Array): string {
  const name = bytes[0] === 0 ? bytes : untilNul(bytes);
  return new TextDecoder().decode(name);
}

function parsed(bytes: Uint8Array | null, text: string, expected: string): Uint8Array {
  if (bytes) return bytes;
  throw new TakeoverError("ERR_TAKEOVER_ADDRESS", `Cannot use the address ${JSON.stringify(text)}: expected ${expected}`);
}

function checkedPort(port: number): number {
  if (Number.isInteger(port) && port >= 0 && port <= 65535) return port;
  throw new TakeoverError("ERR_TAKEOVER_ADDRESS", `Cannot use the port ${port}: expected an integer from 0 to 65535`);
}
