/**
 * Where connections go that have been upgraded: the request that upgraded them
 * is made once more, over a connection of this process to its own server, and
 * what the server says after its `101` goes to the client.
 *
 * @module
 */

import { messageOf, TakeoverError } from "../errors.ts";
import type { Runtime } from "../runtime.ts";
import { type AcceptedOptions, SeatedSink } from "./accepted.ts";
import { read, write } from "./feeding.ts";
import type { Arrival, Sink } from "./movable.ts";
import { readRegistrations, Seat, turn } from "./seats.ts";

/** How connections are upgraded once more. */
export interface ReplayedOptions extends AcceptedOptions {
  /** The whole request. What it throws refuses the connection. */
  requestOf(arrival: Arrival): Uint8Array;
  /**
   * Looks at the head of the answer, from `HTTP/1.1 101` to the empty line.
   *
   * @returns Why it is not the one that the client has got, or null.
   */
  checkHead(head: string, arrival: Arrival): Error | null;
}

/** A request on its way. */
interface Exchange {
  readonly arrival: Arrival;
  readonly seat: Seat;
  request: Uint8Array;
  answer: Uint8Array;
  /** What came after the head, or why there is none. */
  outcome: Uint8Array | Error | null;
}

/** The head of an answer at its longest. */
const headSize = 64 * 1024;

/** The first and the longest wait between two looks. */
const firstWaitMs = 1;
const longestWaitMs = 20;

/** How many are looked at before others have their turn. */
const lookedAtOnce = 64;

/** The end of a head (RFC 9112, section 2.1). */
const headEnd = [13, 10, 13, 10];

/** A sink for upgraded connections of an HTTP server, of any kind. */
export function replayedSink(runtime: Runtime, options: ReplayedOptions): Sink {
  return new SeatedSink(runtime, options, (arrivals, seats) => replay(runtime, options, arrivals, seats));
}

async function replay(
  runtime: Runtime,
  options: ReplayedOptions,
  arrivals: readonly Arrival[],
  seats: readonly (Seat | Error)[],
): Promise<(Uint8Array | Error)[]> {
  const outcomes = arrivals.map((arrival, index): Exchange | Error => {
    const seat = seats[index]!;
    return seat instanceof Seat ? begun(options, arrival, seat) : seat;
  });
  const exchanges = outcomes.filter((outcome): outcome is Exchange => !(outcome instanceof Error));
  await exchanged(runtime, options, exchanges);
  // An upgrade may give the connection another place in the event loop.
  readRegistrations(runtime, exchanges.filter(({ outcome }) => !(outcome instanceof Error)).map(({ seat }) => seat));
  return outcomes.map((outcome) => outcome instanceof Error ? outcome : outcome.outcome ?? noAnswer(options));
}

function begun({ requestOf }: ReplayedOptions, arrival: Arrival, seat: Seat): Exchange | Error {
  try {
    const request = requestOf(arrival);
    seat.isSpokenOver = true;
    return { arrival, seat, request, answer: new Uint8Array(0), outcome: null };
  } catch (error) {
    return error instanceof Error ? error : new Error(messageOf(error), { cause: error });
  }
}

async function exchanged(runtime: Runtime, options: ReplayedOptions, exchanges: readonly Exchange[]): Promise<void> {
  const until = Date.now() + options.openMs;
  let pending = exchanges;
  for (let waitMs = firstWaitMs; pending.length > 0; waitMs = Math.min(waitMs * 2, longestWaitMs)) {
    for (const [index, exchange] of pending.entries()) {
      if (index % lookedAtOnce === lookedAtOnce - 1) await turn();
      exchange.outcome = outcomeOf(runtime, options, exchange);
    }
    pending = pending.filter(({ outcome }) => outcome === null);
    if (Date.now() >= until) return;
    if (pending.length > 0) await turn(waitMs);
  }
}

/** Null when there is more to come. */
function outcomeOf(runtime: Runtime, options: ReplayedOptions, exchange: Exchange): Uint8Array | Error | null {
  const { seat, arrival } = exchange;
  const written = write(runtime, seat.end.number, exchange.request);
  exchange.request = exchange.request.subarray(written ?? exchange.request.length);
  const piece = read(runtime, seat.end.number);
  if (piece === null) return refused("101 Switching Protocols", "the end of the connection");
  exchange.answer = joined(exchange.answer, piece);
  const { answer } = exchange;
  const size = endOfHead(answer);
  if (size < 0) return answer.length < headSize ? null : refused(`a head of at most ${headSize} bytes`, "a longer one");
  const head = new TextDecoder().decode(answer.subarray(0, size));
  const [status = ""] = head.split("\r\n");
  if (!/^HTTP\/1\.1 101\b/.test(status)) return refused("101 Switching Protocols", JSON.stringify(status.slice(0, 80)));
  return options.checkHead(head, arrival) ?? answer.slice(size);
}

function endOfHead(bytes: Uint8Array): number {
  const at = bytes.findIndex((_, index) => headEnd.every((byte, offset) => bytes[index + offset] === byte));
  return at < 0 ? -1 : at + headEnd.length;
}

function refused(expected: string, came: string): TakeoverError {
  return new TakeoverError(
    "ERR_TAKEOVER_ADOPT",
    `Cannot upgrade a connection once more: expected ${expected}, ${came} came; ` +
      "let the server upgrade what its predecessor has upgraded",
  );
}

function noAnswer({ openMs }: ReplayedOptions): TakeoverError {
  return refused("101 Switching Protocols", `nothing within ${openMs} ms (limit openMs)`);
}

function joined(first: Uint8Array, second: Uint8Array): Uint8Array {
  const bytes = new Uint8Array(first.length + second.length);
  bytes.set(first);
  bytes.set(second, first.length);
  return bytes;
}
