/**
 * Every wait, size and count of a hand-over has a limit. Those that an
 * application can set: the name, what it bounds, the default. Going over one
 * is an error: `ERR_TAKEOVER_TIMEOUT` for a time, `ERR_TAKEOVER_LIMIT` for a
 * size or count, unless a line says otherwise.
 *
 * @module
 */

import { TakeoverError } from "./errors.ts";

/** The limits of a hand-over. Times are milliseconds, sizes bytes. */
export interface Limits {
  /** Getting the lock under which a path is bound. */
  readonly lockMs: number;
  /** The first frame of a connection to the control socket. */
  readonly helloMs: number;
  /** The incumbent's answer to hello. It may be in a long turn, or starting. */
  readonly offerMs: number;
  /** One batch of descriptors: until it is sent, received and acknowledged. */
  readonly batchMs: number;
  /** From the last batch until the successor says ready. */
  readonly readyMs: number;
  /** The incumbent's answer to ready. */
  readonly leaseMs: number;
  /** From ready until the successor says settled by itself. */
  readonly settleMs: number;
  /** Silence of a successor during the lease: ERR_TAKEOVER_REVOKED. */
  readonly silenceMs: number;
  /** The incumbent's answer to settled; past it the successor goes on alone. */
  readonly releaseMs: number;
  /** Until the callback of `listen` has a listening socket: ERR_TAKEOVER_ADOPT. */
  readonly openMs: number;
  /** How long handshakes that are under way may take when a listener is closed for good; what is left then is reset. */
  readonly queueMs: number;
  /** How long connections may take to end once they are to drain. */
  readonly drainMs: number;
  /** From ready until connections begin to move: until then a successor that dies takes none with it. */
  readonly trialMs: number;
  /** The successor's answer to a batch of connections; past it they stay. */
  readonly keptMs: number;
  /** Silence of a keep-alive connection of which it cannot be told otherwise that no request is half-read. */
  readonly quietMs: number;
  /** What has been read from a connection and travels with it. */
  readonly unreadSize: number;
  /** The body of a request that is collected before its handler is called; a larger one is not collected. */
  readonly bodySize: number;
  /** A connection's state, or the process's, as JSON in UTF-8. */
  readonly stateSize: number;
  /** Endpoints in one hand-over. */
  readonly endpointCount: number;
  /** The name of an endpoint, in UTF-8. */
  readonly nameSize: number;
  /** The JSON head of a frame. */
  readonly headSize: number;
  /** Connections to the control socket that have not said hello yet. */
  readonly pendingCount: number;
  /** Descriptors that must stay free in the successor: ERR_TAKEOVER_NO_ROOM. */
  readonly spareCount: number;
  /**
   * Flows of one endpoint that a process keeps by connected sockets. The kernel
   * walks past all of them with each datagram that is none of theirs; more
   * flows are the successor's: ERR_TAKEOVER_LIMIT, as an event.
   */
  readonly pinnedCount: number;
  /**
   * Datagrams that wait for one older process which does not read what is
   * forwarded to it; more are dropped: ERR_TAKEOVER_LIMIT, as an event.
   */
  readonly forwardSize: number;
}

/** What applies when the application sets nothing. */
export const defaultLimits: Limits = {
  lockMs: 5_000,
  helloMs: 5_000,
  offerMs: 10_000,
  batchMs: 10_000,
  readyMs: 300_000,
  leaseMs: 10_000,
  settleMs: 10_000,
  silenceMs: 5_000,
  releaseMs: 10_000,
  openMs: 10_000,
  queueMs: 4_000,
  drainMs: 30_000,
  trialMs: 0,
  keptMs: 5_000,
  quietMs: 3_000,
  unreadSize: 16 * 1024 * 1024,
  bodySize: 1024 * 1024,
  stateSize: 64 * 1024,
  endpointCount: 4_096,
  nameSize: 255,
  headSize: 4 * 1024 * 1024,
  pendingCount: 64,
  spareCount: 32,
  pinnedCount: 4_096,
  forwardSize: 1024 * 1024,
};

/** The limits at which 0 means at once, or none. */
const mayBeZero: readonly string[] = ["settleMs", "queueMs", "drainMs", "trialMs", "spareCount"];

/** What a timer can wait; a longer time would end at once. */
const most = 2 ** 31 - 1;

/**
 * The defaults with the application's own values over them.
 *
 * @param given The application's values; `undefined` keeps the default.
 * @throws {TakeoverError} `ERR_TAKEOVER_LIMIT` when a name is unknown or a
 *   value is out of range or no integer.
 */
export function limitsFrom(given: Partial<Limits> = {}): Limits {
  const limits: Record<string, number> = { ...defaultLimits };
  for (const [name, value] of Object.entries(given)) {
    if (value === undefined) continue;
    if (!Object.hasOwn(defaultLimits, name)) {
      throw new TakeoverError(
        "ERR_TAKEOVER_LIMIT",
        `Cannot set the limit ${name}: expected one of ${Object.keys(defaultLimits).join(", ")}`,
      );
    }
    const least = mayBeZero.includes(name) ? 0 : 1;
    if (!(Number.isInteger(value) && value >= least && value <= most)) {
      throw new TakeoverError(
        "ERR_TAKEOVER_LIMIT",
        `Cannot set the limit ${name} to ${value}: expected an integer from ${least} to ${most}`,
      );
    }
    limits[name] = value;
  }
  return limits as unknown as Limits;
}
