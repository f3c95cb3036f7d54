/**
 * The order of a hand-over, without any I/O: one transition table that both
 * sides run, each on what it sends and on what it receives.
 *
 * ```text
 * incumbent                                        successor
 *            <-- hello ---------------------------  greeted
 *            --- offer -------------------------->  offered
 *            <-- join ------- (second connection)
 *            --- batch -------------------------->  sending   \ once a batch
 *            <-- received ------------------------  offered   /
 *            <-- ready ---------------------------  readied
 *            --- lease -------------------------->  leased
 *            <-- alive ---------------------------  leased      every so often
 *            <-- settled -------------------------  settling
 *            --- released ----------------------->  ended
 * ```
 *
 * On the second connection, from the lease on, for as long as the incumbent
 * has connections, where both sides have said that they move them:
 *
 * ```text
 *            <-- takes ---------------------------  which, and for how many it has room
 *            --- move --------------------------->  with descriptors
 *            <-- kept ----------------------------  which it has kept, which it refuses
 *            --- yours -------------------------->  the kept ones are the successor's
 *            --- back --------------------------->  what is not yours stays; the end
 *            --- done --------------------------->  nothing more will come; the end
 * ```
 *
 * `refuse` (incumbent) and `abort` (successor) end it from wherever it stands.
 *
 * @module
 */

import { shown, TakeoverError } from "../errors.ts";

/** The two sides of a hand-over. */
export type Role = "incumbent" | "successor";

/** The frames, by the `type` in their head. */
export type FrameType =
  | "hello"
  | "join"
  | "offer"
  | "batch"
  | "received"
  | "ready"
  | "lease"
  | "alive"
  | "settled"
  | "released"
  | "takes"
  | "move"
  | "kept"
  | "yours"
  | "back"
  | "done"
  | "refuse"
  | "abort";

/** How far a hand-over has come. */
export type ProtocolState =
  | "connected"
  | "greeted"
  | "offered"
  | "sending"
  | "readied"
  | "leased"
  | "settling"
  | "joined"
  | "moving"
  | "ended";

/** Versions of the protocol this library speaks; PROTOCOL.md records each. */
export const versions: { readonly min: number; readonly max: number } = { min: 1, max: 1 };

/** Who sends what. */
const senders: Readonly<Record<FrameType, Role>> = {
  hello: "successor",
  join: "successor",
  offer: "incumbent",
  batch: "incumbent",
  received: "successor",
  ready: "successor",
  lease: "incumbent",
  alive: "successor",
  settled: "successor",
  released: "incumbent",
  takes: "successor",
  move: "incumbent",
  kept: "successor",
  yours: "incumbent",
  back: "incumbent",
  done: "incumbent",
  refuse: "incumbent",
  abort: "successor",
};

const ending = { refuse: "ended", abort: "ended" } as const;

/** What may come in each state, and the state after it. */
export const transitions: Readonly<Record<ProtocolState, Partial<Record<FrameType, ProtocolState>>>> = {
  connected: { hello: "greeted", join: "joined", ...ending },
  greeted: { offer: "offered", ...ending },
  offered: { batch: "sending", ready: "readied", ...ending },
  sending: { received: "offered", ...ending },
  readied: { lease: "leased", ...ending },
  // A released without settled: the incumbent ends the lease because it ends.
  leased: { alive: "leased", settled: "settling", released: "ended", ...ending },
  settling: { released: "ended", ...ending },
  joined: { takes: "moving", ...ending },
  moving: { takes: "moving", move: "moving", kept: "moving", yours: "moving", back: "ended", done: "ended", ...ending },
  ended: {},
};

/** One hand-over's place in the table. */
export class Protocol {
  #state: ProtocolState = "connected";

  /** How far it has come. */
  get state(): ProtocolState {
    return this.#state;
  }

  /**
   * Moves on by one frame.
   *
   * @param sender The side it came from.
   * @param type The `type` of its head.
   * @throws {TakeoverError} `ERR_TAKEOVER_PROTOCOL` when that side may not send
   *   it now; the state stays.
   */
  advance(sender: Role, type: unknown): FrameType {
    const next = isFrameType(type) && senders[type] === sender ? transitions[this.#state][type] : undefined;
    if (next === undefined) {
      const possible = Object.keys(transitions[this.#state])
        .filter((name) => senders[name as FrameType] === sender).join(", ");
      throw new TakeoverError(
        "ERR_TAKEOVER_PROTOCOL",
        `Cannot take the frame ${shown(type)} from the ${sender} ` +
          `in state ${this.#state}: expected ${possible || "none"}`,
      );
    }
    this.#state = next;
    return type as FrameType;
  }
}

/**
 * The version that two sides speak: the highest that both know.
 *
 * @returns The version, or null when there is none.
 */
export function commonVersion(theirs: { readonly min: number; readonly max: number }): number | null {
  const highest = Math.min(versions.max, theirs.max);
  return highest >= Math.max(versions.min, theirs.min) ? highest : null;
}

function isFrameType(type: unknown): type is FrameType {
  return typeof type === "string" && Object.hasOwn(senders, type);
}
