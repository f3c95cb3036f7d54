/**
 * The keys with which a TLS server encrypts session tickets (RFC 5077, RFC
 * 8446, 4.6.1): with the same keys, clients of the old process resume their
 * sessions with the new one. Only Node gives and takes them (tls.Server,
 * getTicketKeys): Deno's are 48 zeros, Bun has none.
 *
 * @module
 */

import { toHex } from "../c/bytes.ts";
import type { Runtime } from "../runtime.ts";

/** What a `tls.Server` of Node has. */
interface TicketServer {
  getTicketKeys(): Uint8Array;
  setTicketKeys(keys: Uint8Array): void;
}

/** The size of the keys in bytes: a name, a key for the cipher, a key for the digest. */
const keysSize = 48;

/** The same in hexadecimal. */
const digitsPattern: RegExp = /^[0-9a-f]{96}$/;

/** A TLS server's keys in hexadecimal; empty where there are none to be had. */
export function ticketKeysOf(runtime: Runtime, native: unknown): string {
  const keys = isTicketServer(runtime, native) ? native.getTicketKeys() : new Uint8Array(0);
  return keys.length === keysSize ? toHex(keys) : "";
}

/** Gives a server the keys of its predecessor; nothing where it takes none. */
export function giveTicketKeys(runtime: Runtime, native: unknown, keys: string): void {
  if (!digitsPattern.test(keys) || !isTicketServer(runtime, native)) return;
  native.setTicketKeys(bytesOf(keys));
}

function isTicketServer({ name }: Runtime, native: unknown): native is TicketServer {
  return name === "node" && typeof native === "object" && native !== null &&
    "getTicketKeys" in native && "setTicketKeys" in native;
}

/** A buffer of the runtime's own kind is not asked for: any Uint8Array will do. */
function bytesOf(digits: string): Uint8Array {
  return Uint8Array.from({ length: digits.length / 2 }, (_, at) => parseInt(digits.slice(at * 2, at * 2 + 2), 16));
}
