/**
 * How an application has flows of datagrams stay with the process that knows
 * them: what it can tell of them decides which ways there are.
 *
 * @module
 */

import type { InetAddress } from "../c/sockaddr.ts";
import { shown, TakeoverError } from "../errors.ts";
import type { FormatName } from "../steering/forward_frames.ts";
import { byEitherTag, type QuicTag, type Tag } from "../steering/programs.ts";
import { checkTagCount } from "./generation_tags.ts";

/**
 * How flows stay, the best first. `steered`: the kernel sees in each datagram
 * whose it is, and each generation has a socket of its own. `connected`: the
 * kernel knows the peers of older processes, which have a socket for each.
 * `forwarded`: the newest process reads all, and passes on what is not its own.
 */
export type FlowStrategy = "steered" | "connected" | "forwarded";

/**
 * What an application can tell of its flows: at least one of `tag`, `peers` and
 * `route`. The first strategy is chosen that it has means for, and that this
 * machine gives.
 */
export interface FlowOptions {
  /** Serves what has come to this process by another way than through the socket that it has opened. */
  readonly datagram: (bytes: Uint8Array, peer: InetAddress) => void;
  /**
   * For `steered`: where the application puts `Flows.tag`, and clients send it
   * back; 0 where there is none. It has at least 5 bits.
   */
  readonly tag?: Tag | QuicTag;
  /** For `connected`: whom this process has flows with. Asked when a successor is ready, more than once. */
  readonly peers?: () => Iterable<InetAddress>;
  /**
   * For `forwarded`: which generation a datagram belongs to; null for this
   * process. Called for each that `take` is given, as long as there are older processes.
   */
  readonly route?: (bytes: Uint8Array, peer: InetAddress) => number | null;
  /** How what is forwarded to this process is written; `own` when left out. */
  readonly format?: FormatName;
}

/** A strategy that could not be had, and why. */
export interface RefusedStrategy {
  /** Which. */
  readonly strategy: FlowStrategy;
  /** The code of the error. */
  readonly code: string;
  /** Its message. */
  readonly message: string;
}

/** What is told of an endpoint with flows. */
export interface OpenedFlows {
  /** The endpoint's. */
  readonly name: string;
  /** How its flows stay with the process that knows them. */
  readonly strategy: FlowStrategy;
  /** What would have been better, and why it could not be. */
  readonly refused: readonly RefusedStrategy[];
}

/** The strategies, the best first, and the option that each needs. */
export const means = { steered: "tag", connected: "peers", forwarded: "route" } as const;

/** All of them, the best first. */
export const strategies: readonly FlowStrategy[] = ["steered", "connected", "forwarded"];

/** Whether the application has given means for a strategy. */
export function hasMeans(options: FlowOptions, strategy: FlowStrategy): boolean {
  return options[means[strategy]] !== undefined;
}

/**
 * The option of `bind` is checked before anything is opened.
 *
 * @throws {TakeoverError} `ERR_TAKEOVER_STATE`; `ERR_TAKEOVER_RANGE` for a tag
 *   that no datagram can have, or of too few bits.
 */
export function checkedFlows(options: FlowOptions | undefined): FlowOptions | null {
  if (options === undefined) return null;
  const { datagram, tag, peers, route, format = "own" } = options;
  if (typeof datagram !== "function") throw unfit("the function datagram");
  if (tag !== undefined && (typeof tag !== "object" || tag === null)) throw unfit("an object as tag");
  if (peers !== undefined && typeof peers !== "function") throw unfit("a function as peers");
  if (route !== undefined && typeof route !== "function") throw unfit("a function as route");
  if (format !== "own" && format !== "mvfst") throw unfit(`own or mvfst as format, it is ${shown(format)}`);
  if (!strategies.some((strategy) => hasMeans(options, strategy))) throw unfit("one of tag, peers and route");
  if (tag !== undefined) {
    byEitherTag(tag, { slots: new Map(), otherwise: 0 });
    checkTagCount(tag);
  }
  return options;
}

function unfit(expected: string): TakeoverError {
  return new TakeoverError("ERR_TAKEOVER_STATE", `Cannot bind with these flows: expected ${expected}`);
}
