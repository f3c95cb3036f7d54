/**
 * Waiting until nobody is left at a listener that is to be closed for good
 * (tcp(7), unix(7)). New connections have been kept away by then; what waits is
 * accepted by whoever still serves.
 *
 * ```text
 * SYN ──> half open (SYN_RECV) ── the client's ACK ──> accept queue ── accept(2) ──> served
 *     ↑ kept away         ↑ only those that were there then are waited for
 * ```
 *
 * A handshake takes a round trip; a packet of it that is lost comes again after
 * 1, 3, 7, … seconds (net.ipv4.tcp_synack_retries: 5, and up to 63 s in all).
 *
 * @module
 */

import type { SocketAddress } from "../c/sockaddr.ts";
import { deadlineOf, pause } from "../channels/readiness.ts";
import { SystemError, TakeoverError } from "../errors.ts";
import type { Runtime } from "../runtime.ts";
import { halfOpenPairs } from "./socket_diag.ts";

/** How a listener gets empty. */
export interface EmptyOptions {
  /** Serves what waits, as far as that can be now; says whether nothing waits any more. */
  readonly serve: () => boolean | Promise<boolean>;
  /** How long handshakes may take; 4,000 ms, which is one lost packet, or two. */
  readonly timeoutMs?: number | undefined;
  /** Ends the wait; its reason is thrown. */
  readonly signal?: AbortSignal | undefined;
}

/** How a listener is left. */
export interface Emptied {
  /** Whether nothing waits; else the time was up. */
  readonly isEmpty: boolean;
  /** Handshakes that were under way at first, in the whole group. */
  readonly halfOpenCount: number;
  /** Those of them that were not complete at the end; null when the kernel does not tell. */
  readonly unfinishedCount: number | null;
}

const defaultTimeoutMs = 4_000;

/** Packets that are on their way through the kernel were let in before. */
export const settlingMs = 5;

/** How often one looks: at first, and at most. */
const firstLookMs = 5;
const longestLookMs = 100;

/** Waits, until nothing is left or the time is up. The listener stays open. */
export async function emptyListener(
  runtime: Runtime,
  address: SocketAddress,
  { serve, signal, timeoutMs = defaultTimeoutMs }: EmptyOptions,
): Promise<Emptied> {
  const until = deadlineOf({ timeoutMs });
  await pause(settlingMs, { signal });
  const halfOpen = pairsOf(runtime, address);
  for (let lookMs = firstLookMs;; lookMs = Math.min(lookMs * 2, longestLookMs)) {
    // Asked for before the queue is emptied: a handshake that ends in between is in the queue.
    const unfinishedCount = halfOpen && unfinished(runtime, address, halfOpen);
    const isOver = Date.now() >= until;
    const isEmpty = await serve();
    if (isOver || isEmpty && unfinishedCount === 0) {
      return { isEmpty, halfOpenCount: halfOpen?.size ?? 0, unfinishedCount };
    }
    await pause(lookMs, { signal });
  }
}

/** A Unix connection is complete at once. */
function pairsOf(runtime: Runtime, address: SocketAddress): Set<string> | null {
  if (address.family === "unix") return new Set();
  try {
    return halfOpenPairs(runtime, address);
  } catch (error) {
    // EMFILE: there is no descriptor to ask with.
    if (error instanceof SystemError) return null;
    if (error instanceof TakeoverError && error.code === "ERR_TAKEOVER_UNSUPPORTED") return null;
    throw error;
  }
}

function unfinished(runtime: Runtime, address: SocketAddress, before: ReadonlySet<string>): number {
  if (before.size === 0) return 0;
  const now = pairsOf(runtime, address);
  return now ? [...before].filter((pair) => now.has(pair)).length : before.size;
}
