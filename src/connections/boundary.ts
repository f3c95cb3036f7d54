/**
 * Whether an HTTP/1.1 connection is between two messages: no request is in
 * flight, the server's parser has nothing half-read, and every answer is in the
 * kernel. What is not known for certain is not taken for a boundary. A request
 * that is being collected may begin anew: then all of it must be at hand.
 *
 * ```text
 *            the last byte came        the last byte was sent
 *   idle     ────┬──────────────────────────────┬───────────────> boundary
 *   asking   ────┬─────────────┬────────────────┬──────┬────────> a request is half-read
 *   idle?    ────────────────────────────┬┬─────────────────────> the same tick of the kernel: wait
 * ```
 *
 * One thing cannot be seen from outside a server that does not tell: a client
 * that sends a request and the beginning of the next one at once, and then
 * nothing. On Node the parser tells.
 *
 * @module
 */

/** What is known of one connection. */
export interface Facts {
  /** Whether both sides are open. */
  readonly isEstablished: boolean;
  /** Its requests that were passed to a handler and whose answers are not finished. */
  readonly inFlightCount: number;
  /**
   * Whether everything that the server has read since the last message is at
   * hand, as the beginning of the request in flight; null when no request is
   * being collected.
   */
  readonly isAtHand: boolean | null;
  /** What the server's own parser says; null where it says nothing. */
  readonly parser: "between" | "within" | null;
  /** Bytes that the server has read. */
  readonly readSize: number;
  /** Bytes that have come and wait to be read. */
  readonly unreadSize: number;
  /** Bytes that the server has written. */
  readonly writtenSize: number;
  /** Whether so little waits for the peer that there has been room for everything. */
  readonly hasRoom: boolean;
  /** Whether everything is as it was some turns of the event loop before, room included. */
  readonly isSettled: boolean;
  /** Milliseconds since the last byte came. */
  readonly sinceReceivedMs: number;
  /** Milliseconds since the last byte was sent. */
  readonly sinceSentMs: number;
  /** Whether the last byte may have been sent before, and now again. */
  readonly hasRetransmitted: boolean;
  /** What is left of the last request whose beginning and end were seen; null when none was seen. */
  readonly lastRequest: LastRequest | null;
  /** Why the last answer is no sign of a boundary: `upgraded`, `body`, … ; null when nothing is known against it. */
  readonly doubt: string | null;
}

/** A request that was answered while the connections were being watched. */
export interface LastRequest {
  /** Bytes that the server had read when it passed the request to its handler. */
  readonly readSize: number;
  /** Whether the request was whole by then. */
  readonly isWhole: boolean;
  /** Whether it came together with another one. */
  readonly isPipelined: boolean;
}

/** What comes of it. `ambiguous` may become a boundary by waiting, `busy` by something happening. */
export interface Verdict {
  readonly state: "boundary" | "busy" | "ambiguous";
  /** Why, in a word or two. */
  readonly reason: string;
}

/** How long nothing may have come before the same tick is no longer taken for the middle of a request. */
export const defaultQuietMs = 3_000;

/**
 * Decides.
 *
 * @param quietMs How long an ambiguous connection has to be silent.
 * @param isLast Whether an ambiguous one goes at once.
 */
export function boundary(facts: Facts, quietMs: number, isLast: boolean): Verdict {
  if (!facts.isEstablished) return busy("ended");
  if (facts.isAtHand !== null) return byBody(facts);
  if (facts.parser) return facts.parser === "within" ? busy("message") : boundaryBy("parser");
  if (facts.inFlightCount > 0) return busy("request");
  if (facts.readSize === 0 && facts.writtenSize === 0) return boundaryBy("untouched");
  if (!facts.hasRoom) return busy("unsent");
  if (!facts.isSettled) return busy("unsettled");
  const { lastRequest } = facts;
  if (lastRequest?.isWhole && !lastRequest.isPipelined && lastRequest.readSize === facts.readSize) {
    return boundaryBy("answered");
  }
  if (facts.doubt !== null) return busy(facts.doubt);
  return byTime(facts, quietMs, isLast);
}

/** A request whose handler has not been called can begin once more elsewhere, when nothing of it is on its way inside. */
function byBody({ parser, inFlightCount, hasRoom, isSettled, isAtHand }: Facts): Verdict {
  if (inFlightCount > 1) return busy("request");
  if (!hasRoom) return busy("unsent");
  // What Node's parser has read its handler can read at once.
  if (parser === null && !isSettled) return busy("unsettled");
  return isAtHand ? boundaryBy("at hand") : busy("body");
}

/** The kernel's clock tells what came first. */
function byTime(facts: Facts, quietMs: number, isLast: boolean): Verdict {
  const { sinceReceivedMs, sinceSentMs } = facts;
  if (facts.unreadSize > 0) return busy("unread");
  if (facts.writtenSize === 0 || sinceReceivedMs < sinceSentMs) return busy("half-read");
  if (sinceReceivedMs > sinceSentMs && !facts.hasRetransmitted) return boundaryBy("earlier");
  if (sinceReceivedMs >= quietMs) return boundaryBy("silent");
  return isLast && !facts.lastRequest?.isPipelined ? boundaryBy("last") : { state: "ambiguous", reason: "same tick" };
}

function boundaryBy(reason: string): Verdict {
  return { state: "boundary", reason };
}

function busy(reason: string): Verdict {
  return { state: "busy", reason };
}
