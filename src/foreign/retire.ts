/**
 * Ending a server that never heard of being replaced, without cutting a
 * request. Somebody else accepts on its sockets by now.
 *
 * ```text
 * look      does it have a connection that came in through those sockets?
 * freeze    SIGSTOP, until no thread runs: what is seen now stays so
 * look      none: SIGKILL loses nothing, and what waits in the queue is the other's
 *           one: SIGCONT, rest, again
 * ```
 *
 * A server with epoll is paused first, and only has to run dry. Any other goes
 * on accepting and may never be seen without a connection. So it is held for
 * longer and longer between the looks, while the other process takes what comes.
 *
 * @module
 */

import type { Accepting } from "./accepting.ts";
import type { Family } from "./family.ts";
import type { Signal } from "./process.ts";
import type { SocketAddress } from "../c/sockaddr.ts";

/** How to end a server. */
export interface RetireOptions {
  /** How long its connections may take, in milliseconds; 30,000 when left out. It is killed then. */
  readonly deadlineMs?: number;
  /** Ends the waiting: the server goes on, and accepts again. */
  readonly signal?: AbortSignal;
  /** The signal on which the server drains and ends by itself: `SIGQUIT` for nginx. */
  readonly drainSignal?: Signal;
}

/** How a server ended. */
export interface Retired {
  /** Connections that it still had when it was killed at the deadline. */
  readonly connections: number;
  /** How long it took. */
  readonly ms: number;
  /** How often it was looked at. */
  readonly rounds: number;
  /** Whether it could be kept from accepting meanwhile. */
  readonly paused: boolean;
}

/** The longest rest between two looks. */
const longestRestMs = 20;

/** The rest of a server that goes on accepting: the less it runs, the less it accepts. */
const shortRestMs = 2;

/** Of so many rounds one sees to it that a paused server has stayed paused. */
const roundsPerPause = 50;

/** What is known and checked by then. */
interface RetireConditions extends RetireOptions {
  readonly deadlineMs: number;
  /** Throws when the server is no longer to be ended; asked before every step. */
  readonly checkWanted: () => void;
}

/** Ends a server, or throws and lets it go on: it is neither stopped nor paused then. */
export async function retireFamily(
  family: Family,
  accepting: Accepting,
  addresses: readonly SocketAddress[],
  { deadlineMs, drainSignal, checkWanted }: RetireConditions,
): Promise<Retired> {
  const start = Date.now();
  let paused = false;
  let connections = 0;
  let rounds = 0;
  try {
    if (drainSignal) family.main.send(drainSignal);
    for (; family.running; rounds++) {
      checkWanted();
      const ms = Date.now() - start;
      const isOver = ms >= deadlineMs;
      if (!drainSignal && rounds % roundsPerPause === 0) paused = accepting.pause(family.members());
      if (isOver || !drainSignal && !family.hasConnection(addresses)) {
        const isFrozen = await family.freeze();
        checkWanted();
        connections = family.connectionCount(addresses);
        if (isOver || isFrozen && connections === 0) {
          await family.kill();
          break;
        }
        family.thaw();
      } else if (!paused && !drainSignal) {
        await family.hold(heldMs(ms / deadlineMs));
      }
      await sleep(paused || drainSignal ? Math.min(1 + rounds, longestRestMs) : shortRestMs);
    }
    return { connections, ms: Date.now() - start, rounds, paused };
  } finally {
    // Asks nothing first: without a free descriptor no question is answered, and what is stopped would stay so.
    family.thaw();
    accepting.resume();
  }
}

/** From nothing to ten times the rest: what is slowed down then would be cut soon. */
function heldMs(elapsedShare: number): number {
  const share = Math.min(elapsedShare, 0.9);
  return Math.round(shortRestMs * share / (1 - share));
}

function sleep(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}
