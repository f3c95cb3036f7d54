/**
 * The request that made a WebSocket of a connection (RFC 6455, section 4.1):
 * read from the runtime's own object, counted, sent to the next process, and
 * made there once more.
 *
 * @module
 */

import { TakeoverError } from "../errors.ts";
import type { Json } from "./movable.ts";

/** A `GET` without a body. */
export interface UpgradeRequest {
  /** Path and query, as the client wrote them. */
  readonly target: string;
  /** Names and values in their order. Characters are bytes. */
  readonly headers: readonly (readonly [name: string, value: string])[];
}

/** What the client was told. */
export interface UpgradeAnswer {
  /** The subprotocol; empty when there is none. */
  readonly protocol: string;
  /** The extensions; empty when there are none. */
  readonly extensions: string;
}

/** The web's `Request`, as far as it is used. */
interface WebRequest {
  readonly url: string;
  readonly headers: Iterable<readonly [string, string]>;
}

/** Node's `IncomingMessage`, as far as it is used. */
interface NodeRequest {
  readonly url?: string;
  readonly rawHeaders: readonly string[];
}

/** The header that says which socket of the last process a request is about. */
export const stateHeader = "takeover-state";

/** The most bytes that a request may have. */
export const requestLimit: number = 32 * 1024;

/** What is between the parts: `GET target HTTP/1.1\r\n`, `name: value\r\n`, `\r\n`. */
const lineSize = "GET  HTTP/1.1\r\n".length;
const headerSize = ": \r\n".length;
const endSize = "\r\n".length;

/** Extensions are not negotiated anew: a socket that has one does not move. */
const extensionsHeader = "sec-websocket-extensions";

/** Reads a request of any runtime. */
export function upgradeRequestOf(request: unknown): UpgradeRequest {
  if (typeof request === "object" && request !== null && "rawHeaders" in request) {
    const { url = "/", rawHeaders } = request as NodeRequest;
    const headers = rawHeaders.flatMap((name, at) => at % 2 === 0 ? [[name, rawHeaders[at + 1] ?? ""] as const] : []);
    return { target: url, headers };
  }
  const { url, headers } = request as WebRequest;
  return { target: targetOf(url), headers: Array.from(headers, ([name, value]) => [name, value] as const) };
}

/** A header's value; null when there is none. */
export function headerOf({ headers }: UpgradeRequest, name: string): string | null {
  const values = headers.filter(([each]) => each.toLowerCase() === name).map(([, value]) => value);
  return values.length === 0 ? null : values.join(", ");
}

/** How many bytes it has, written the way that nearly everybody writes it. */
export function sizeOf({ target, headers }: UpgradeRequest): number {
  return headers.reduce(
    (size, [name, value]) => size + name.length + value.length + headerSize,
    lineSize + target.length + endSize,
  );
}

/**
 * Writes it, to be made once more.
 *
 * @param token What the server finds the socket's state by.
 */
export function encodeRequest({ target, headers }: UpgradeRequest, token: string): Uint8Array<ArrayBuffer> {
  const lines = headers.filter(([name]) => ![stateHeader, extensionsHeader].includes(name.toLowerCase()))
    .map(([name, value]) => `${name}: ${value}\r\n`);
  const text = `GET ${target} HTTP/1.1\r\n${lines.join("")}Takeover-State: ${token}\r\n\r\n`;
  return Uint8Array.from(text, (character) => character.charCodeAt(0));
}

/**
 * Checks a request that another process sends.
 *
 * @returns Null when it is none.
 */
export function parseRequest(json: Json | undefined): UpgradeRequest | null {
  const { target, headers } = (json ?? {}) as Record<string, Json | undefined>;
  if (typeof target !== "string" || !/^[\x21-\x7e\x80-\xff]+$/.test(target)) return null;
  if (!Array.isArray(headers) || !headers.every(isHeader)) return null;
  const request = { target, headers };
  return sizeOf(request) <= requestLimit ? request : null;
}

/** Names are tokens, values have no control characters (RFC 9110, section 5). */
function isHeader(header: Json): header is [string, string] {
  if (!Array.isArray(header) || header.length !== 2) return false;
  const [name, value] = header;
  return typeof name === "string" && /^[\w!#$%&'*+.^`|~-]+$/.test(name) &&
    typeof value === "string" && /^[\t\x20-\x7e\x80-\xff]*$/.test(value);
}

/**
 * Compares the answer of this process's server with the first one's.
 *
 * @param head From `HTTP/1.1 101` to the empty line.
 * @param expected The first answer; null of what is not known.
 * @returns Why it is another one, or null.
 */
export function checkAnswer(head: string, expected: Partial<UpgradeAnswer>): TakeoverError | null {
  const headers = head.split("\r\n").slice(1).map((line) => {
    const [, name = "", value = ""] = /^([^:]*):[ \t]*(.*?)[ \t]*$/.exec(line) ?? [];
    return [name, value] as const;
  });
  const answer = { target: "", headers };
  const protocol = headerOf(answer, "sec-websocket-protocol") ?? "";
  const extensions = headerOf(answer, extensionsHeader) ?? "";
  if (extensions !== "") return different("no extensions", extensions);
  if (expected.protocol === undefined || protocol === expected.protocol) return null;
  return different(expected.protocol === "" ? "no subprotocol" : `the subprotocol ${expected.protocol}`, protocol);
}

function different(expected: string, came: string): TakeoverError {
  return new TakeoverError(
    "ERR_TAKEOVER_ADOPT",
    `Cannot upgrade a WebSocket once more: expected ${expected}, as the client was told, ` +
      `${came === "" ? "none" : JSON.stringify(came.slice(0, 80))} came; answer as the last process did`,
  );
}

/** Path and query of an absolute URL. */
function targetOf(url: string): string {
  const [, target = ""] = /^[a-z]+:\/\/[^/?#]*([^#]*)/i.exec(url) ?? [];
  return target.startsWith("/") ? target : `/${target}`;
}
