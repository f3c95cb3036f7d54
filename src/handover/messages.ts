/**
 * What each frame says, checked field by field: nothing of the peer's is used
 * before it went through here. Unknown fields are ignored, so that a later
 * version can add some.
 *
 * @module
 */

import { shown, TakeoverError, type TakeoverErrorCode } from "../errors.ts";
import type { Json } from "../connections/movable.ts";
import type { EndpointKind } from "../natives/endpoint.ts";
import type { FrameHead } from "./frame.ts";
import type { Limits } from "../limits.ts";
import type { SocketAddress } from "../c/sockaddr.ts";

/** Who the process at one end is. */
export interface Peer {
  /** As it sees itself; another pid namespace has other numbers. */
  readonly pid: number;
  /** For instance `deno 2.9.6`. */
  readonly runtime: string;
  /** 1 for the process that bound the path, one more with every hand-over. */
  readonly generation: number;
}

/** successor: the first frame. */
export interface Hello {
  readonly type: "hello";
  readonly versions: { readonly min: number; readonly max: number };
  /** Ties the second connection to this one: 32 hexadecimal digits. */
  readonly token: string;
  /** Names the process, so that it can recognise itself: 32 hexadecimal digits. */
  readonly instance: string;
  readonly pid: number;
  readonly runtime: string;
  /** How many descriptors it can take. */
  readonly room: number;
  /** Names that it cannot start without. */
  readonly require: readonly string[];
  /** Whether it can take connections. */
  readonly moves: boolean;
  /** Whether it can take datagram sockets. */
  readonly datagrams: boolean;
}

/** successor: the first and only frame of the second connection. */
export interface Join {
  readonly type: "join";
  readonly token: string;
}

/** One socket of the manifest. */
export interface OfferedEndpoint {
  /** `control` is the control socket itself, always the first. */
  readonly kind: EndpointKind | "flows" | "member";
  /** Empty for the control socket. */
  readonly name: string;
  readonly address: SocketAddress;
  /** `SO_COOKIE`, 16 hexadecimal digits, or empty where there is none. */
  readonly cookie: string;
  /** Of flows, and members of a group: whose they are. */
  readonly generation?: number;
  /** Of flows: how they stay with the process that knows them. */
  readonly strategy?: string;
  /** Of flows: how that process reads what is forwarded to it. */
  readonly format?: string;
  /** Of members of a group: the place in the kernel's order. */
  readonly slot?: number;
  /** Whether the place belongs to a service manager or the like. */
  readonly supervised?: boolean;
  /** Whether a program that knows nothing of hand-overs may have copies too. */
  readonly elsewhere?: boolean;
  /** The keys of a TLS server's session tickets, 96 hexadecimal digits; empty for none. */
  readonly ticketKeys?: string;
}

/** incumbent: the manifest, in the order in which the descriptors come. */
export interface Offer {
  readonly type: "offer";
  readonly version: number;
  readonly pid: number;
  readonly runtime: string;
  readonly generation: number;
  readonly endpoints: readonly OfferedEndpoint[];
  /** Whether it has connections that can move, and the successor can take them. */
  readonly moves: boolean;
  /** What the application gives its successor; null for nothing. */
  readonly state: OfferedState | null;
}

/** The application's own state, which it versions itself. */
export interface OfferedState {
  /** The number that the application gave the value's shape. */
  readonly version: number;
  /** What it has saved. */
  readonly value: Json;
}

/** incumbent: a batch of descriptors lies on the second connection. */
export interface Batch {
  readonly type: "batch";
  /** 0 for the first. */
  readonly number: number;
  readonly count: number;
}

/** successor: the batch has arrived and every socket in it is right. */
export interface Received {
  readonly type: "received";
  readonly number: number;
  readonly count: number;
}

/** successor: it can serve; the names are what it will serve. */
export interface Ready {
  readonly type: "ready";
  readonly claimed: readonly string[];
}

/** incumbent: it has stopped accepting; the successor is to say alive within silenceMs. */
export interface Lease {
  readonly type: "lease";
  readonly silenceMs: number;
}

/** incumbent or successor: ends the hand-over. */
export interface Refusal {
  readonly type: "refuse" | "abort";
  readonly code: TakeoverErrorCode;
  readonly message: string;
}

const kinds = ["control", "listener", "datagram", "flows", "member"] as const;

const codes: readonly TakeoverErrorCode[] = [
  "ERR_TAKEOVER_BUSY",
  "ERR_TAKEOVER_VERSION",
  "ERR_TAKEOVER_USER",
  "ERR_TAKEOVER_UNKNOWN_NAME",
  "ERR_TAKEOVER_SELF",
  "ERR_TAKEOVER_NO_ROOM",
  "ERR_TAKEOVER_PROTOCOL",
  "ERR_TAKEOVER_LIMIT",
  "ERR_TAKEOVER_TIMEOUT",
  "ERR_TAKEOVER_LOST",
  "ERR_TAKEOVER_REVOKED",
  "ERR_TAKEOVER_TRUNCATED",
  "ERR_TAKEOVER_DESCRIPTOR",
  "ERR_TAKEOVER_ADOPT",
  "ERR_TAKEOVER_STATE",
];

/** The most that a message, a runtime's name or a path may have, in UTF-16 units. */
const textSize = 1_024;

/** Checks a hello. */
export function parseHello(head: FrameHead, limits: Limits): Hello {
  const range = object(head, "versions");
  return {
    type: "hello",
    versions: { min: integer(range, "min"), max: integer(range, "max") },
    token: hex(head, "token", 32),
    instance: hex(head, "instance", 32),
    pid: integer(head, "pid"),
    runtime: text(head, "runtime", textSize),
    room: integer(head, "room"),
    require: names(head, "require", limits),
    moves: head.moves === true,
    datagrams: head.datagrams === true,
  };
}

/** Checks a join. */
export function parseJoin(head: FrameHead): Join {
  return { type: "join", token: hex(head, "token", 32) };
}

/** Checks an offer: the control socket first and once, no name twice. */
export function parseOffer(head: FrameHead, limits: Limits): Offer {
  const endpoints = array(head, "endpoints", limits.endpointCount + 1).map((item) => parseEndpoint(item, limits));
  const controls = endpoints.filter(({ kind }) => kind === "control").length;
  if (endpoints[0]?.kind !== "control" || controls !== 1) {
    throw wrong("endpoints", "the control socket first and once");
  }
  const all = endpoints.slice(1).filter(({ kind }) => kind !== "flows" && kind !== "member").map(({ name }) => name);
  if (new Set(all).size !== all.length) throw wrong("endpoints", "every name once");
  return {
    type: "offer",
    version: integer(head, "version"),
    pid: integer(head, "pid"),
    runtime: text(head, "runtime", textSize),
    generation: integer(head, "generation"),
    endpoints,
    moves: head.moves === true,
    state: parseState(head.state),
  };
}

function parseState(state: unknown): OfferedState | null {
  if (state === undefined || state === null) return null;
  const given = asObject(state, "state");
  return { version: integer(given, "version"), value: (given.value ?? null) as Json };
}

/** Checks a batch or the answer to one. */
export function parseBatch(head: FrameHead): { readonly number: number; readonly count: number } {
  return { number: integer(head, "number"), count: integer(head, "count") };
}

/** Checks a ready. */
export function parseReady(head: FrameHead, limits: Limits): Ready {
  return { type: "ready", claimed: names(head, "claimed", limits) };
}

/** Checks a lease. */
export function parseLease(head: FrameHead): Lease {
  return { type: "lease", silenceMs: integer(head, "silenceMs") };
}

/** The error that a refuse or an abort carries. */
export function parseRefusal(head: FrameHead): TakeoverError {
  const code = text(head, "code", textSize) as TakeoverErrorCode;
  const message = text(head, "message", textSize * 4);
  return new TakeoverError(codes.includes(code) ? code : "ERR_TAKEOVER_PROTOCOL", message);
}

/** Checks the name of an endpoint. */
export function checkedName(name: unknown, limits: Limits): string {
  if (typeof name === "string" && name !== "" && new TextEncoder().encode(name).length <= limits.nameSize) return name;
  throw new TakeoverError(
    "ERR_TAKEOVER_LIMIT",
    `Cannot use ${shown(name)} as the name of an endpoint: ` +
      `expected 1 to ${limits.nameSize} bytes (limit nameSize)`,
  );
}

function parseEndpoint(item: unknown, limits: Limits): OfferedEndpoint {
  const head = asObject(item, "endpoints");
  const kind = text(head, "kind", textSize);
  if (!isKind(kind)) throw wrong("kind", kinds.join(", "));
  const cookie = text(head, "cookie", 16);
  if (!/^([0-9a-f]{16})?$/.test(cookie)) throw wrong("cookie", "16 hexadecimal digits or none");
  return {
    kind,
    name: kind === "control" ? "" : checkedName(head.name, limits),
    address: parseAddress(object(head, "address")),
    cookie,
    ...(kind === "flows" || kind === "member") && { generation: integer(head, "generation") },
    ...kind === "flows" && { ...optionalText(head, "strategy"), ...optionalText(head, "format") },
    ...kind === "member" && head.slot !== undefined && { slot: integer(head, "slot") },
    supervised: head.supervised === true,
    ...head.elsewhere === true ? { elsewhere: true } : {},
    ticketKeys: typeof head.ticketKeys === "string" && head.ticketKeys.length === 96 ? head.ticketKeys : "",
  };
}

function isKind(kind: string): kind is OfferedEndpoint["kind"] {
  return (kinds as readonly string[]).includes(kind);
}

function parseAddress(head: FrameHead): SocketAddress {
  const family = text(head, "family", textSize);
  if (family === "unix") return { family, path: text(head, "path", textSize) };
  if (family !== "inet" && family !== "inet6") throw wrong("family", "unix, inet or inet6");
  const address = { family, hostname: text(head, "hostname", textSize), port: integer(head, "port") } as const;
  return head.scope === undefined ? address : { ...address, scope: integer(head, "scope") };
}

function names(head: FrameHead, field: string, limits: Limits): string[] {
  return array(head, field, limits.endpointCount).map((name) => checkedName(name, limits));
}

/** A field, checked. */
export function text(head: FrameHead, field: string, size: number): string {
  const value = head[field];
  if (typeof value === "string" && value.length <= size) return value;
  throw wrong(field, `a text of at most ${size} characters`);
}

function optionalText<F extends string>(head: FrameHead, field: F): { readonly [K in F]?: string } {
  return (head[field] === undefined ? {} : { [field]: text(head, field, textSize) }) as { readonly [K in F]?: string };
}

/** A field, checked. */
export function hex(head: FrameHead, field: string, digits: number): string {
  const value = head[field];
  if (typeof value === "string" && value.length === digits && /^[0-9a-f]*$/.test(value)) return value;
  throw wrong(field, `${digits} hexadecimal digits`);
}

/** A field, checked. */
export function integer(head: FrameHead, field: string): number {
  const value = head[field];
  if (typeof value === "number" && Number.isSafeInteger(value) && value >= 0) return value;
  throw wrong(field, "an integer from 0 on");
}

/** A field, checked. */
export function array(head: FrameHead, field: string, count: number): readonly unknown[] {
  const value = head[field];
  if (!Array.isArray(value)) throw wrong(field, "an array");
  if (value.length <= count) return value;
  throw new TakeoverError(
    "ERR_TAKEOVER_LIMIT",
    `Cannot take ${value.length} items in the field ${field}: expected at most ${count} (limit endpointCount)`,
  );
}

/** A field, checked. */
export function object(head: FrameHead, field: string): FrameHead {
  return asObject(head[field], field);
}

/** A field, checked. */
export function asObject(value: unknown, field: string): FrameHead {
  if (typeof value === "object" && value !== null && !Array.isArray(value)) return value as FrameHead;
  throw wrong(field, "an object");
}

/** A field, checked. */
export function wrong(field: string, expected: string): TakeoverError {
  return new TakeoverError("ERR_TAKEOVER_PROTOCOL", `Cannot use the field ${field} of a frame: expected ${expected}`);
}
