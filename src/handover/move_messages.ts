/**
 * What the frames say that move connections, checked field by field.
 *
 * @module
 */

import { TakeoverError, type TakeoverErrorCode } from "../errors.ts";
import type { ConnectionKind, Json } from "../connections/movable.ts";
import type { FrameHead } from "./frame.ts";
import type { Limits } from "../limits.ts";
import { array, asObject, checkedName, hex, integer, text, wrong } from "./messages.ts";

/** Who deals with connections: an endpoint's name, and what they are. */
export interface Party {
  readonly name: string;
  readonly kind: ConnectionKind;
}

/** successor: what it takes, and for how many it has room now. */
export interface Takes {
  readonly room: number;
  readonly parties: readonly Party[];
}

/** One connection of a move, in the order of the descriptors. */
export interface MovedConnection {
  /** `SO_COOKIE`, 16 hexadecimal digits. */
  readonly cookie: string;
  readonly state: Json;
  /** How many bytes of the body are its. */
  readonly unread: number;
}

/** incumbent: connections, whose descriptors come with the frame's first byte. */
export interface Move extends Party {
  /** 0 for the first. */
  readonly number: number;
  readonly connections: readonly MovedConnection[];
}

/** One connection that the successor does not take. */
export interface RefusedConnection {
  /** Its place in the move. */
  readonly index: number;
  readonly code: TakeoverErrorCode;
  readonly message: string;
}

/** successor: the answer to a move. */
export interface Kept {
  readonly number: number;
  readonly room: number;
  readonly refused: readonly RefusedConnection[];
}

const kinds: readonly ConnectionKind[] = ["raw", "http", "websocket"];

/** Checks a takes. */
export function parseTakes(head: FrameHead, limits: Limits): Takes {
  const parties = array(head, "parties", limits.endpointCount * kinds.length).map((item) => {
    const party = asObject(item, "parties");
    return { name: checkedName(party.name, limits), kind: kindOf(party) };
  });
  return { room: integer(head, "room"), parties };
}

/**
 * Checks a move: what its connections have read is the body, no more and no less.
 *
 * @param countLimit How many descriptors one message carries.
 */
export function parseMove(head: FrameHead, bodySize: number, countLimit: number, limits: Limits): Move {
  const connections = array(head, "connections", countLimit).map((item) => {
    const connection = asObject(item, "connections");
    return {
      cookie: hex(connection, "cookie", 16),
      state: (connection.state ?? null) as Json,
      unread: integer(connection, "unread"),
    };
  });
  if (connections.length === 0) throw wrong("connections", "one at least");
  const size = connections.reduce((sum, { unread }) => sum + unread, 0);
  if (size !== bodySize) throw wrong("unread", `${bodySize} in all, which is the size of the body`);
  return { name: checkedName(head.name, limits), kind: kindOf(head), number: integer(head, "number"), connections };
}

/** Checks a kept: it refuses no connection twice, and none that was not there. */
export function parseKept(head: FrameHead, count: number): Kept {
  const refused = array(head, "refused", count).map((item) => {
    const refusal = asObject(item, "refused");
    const index = integer(refusal, "index");
    if (index >= count) throw wrong("index", `0 to ${count - 1}`);
    return { index, code: text(refusal, "code", 64) as TakeoverErrorCode, message: text(refusal, "message", 4_096) };
  });
  if (new Set(refused.map(({ index }) => index)).size !== refused.length) throw wrong("refused", "every index once");
  return { number: integer(head, "number"), room: integer(head, "room"), refused };
}

/** Checks a yours. */
export function parseYours(head: FrameHead): number {
  return integer(head, "number");
}

/** The error of a connection that was refused. */
export function refusalOf({ code, message }: RefusedConnection): TakeoverError {
  return new TakeoverError(/^ERR_TAKEOVER_[A-Z_]+$/.test(code) ? code : "ERR_TAKEOVER_PROTOCOL", message);
}

function kindOf(head: FrameHead): ConnectionKind {
  const kind = kinds.find((each) => each === head.kind);
  if (kind) return kind;
  throw wrong("kind", kinds.join(" or "));
}
