/**
 * Taking the place of a program that knows nothing of hand-overs and shares its
 * address (SO_REUSEPORT): this process listens beside it, gets all new
 * connections, and the other one ends when it has accepted what waited for it.
 *
 * ```text
 * [other, own]    both get connections
 * steer           all that are new come here
 * drain           handshakes end, and the other accepts what waits there
 * close           it is told to end, and leaves the group
 * ```
 *
 * Where a classic program steers, the kernel moves the last member into the
 * place of one that leaves. Spare members at the end are moved first, so that
 * this process's own keep theirs until all others have left.
 *
 * @module
 */

import { formatAddress, type InetAddress } from "../c/sockaddr.ts";
import { deadlineOf, pause, waitFor } from "../channels/readiness.ts";
import { TakeoverError } from "../errors.ts";
import type { Endpoint } from "../natives/endpoint.ts";
import type { Runtime } from "../runtime.ts";
import type { OwnedDescriptor } from "../sockets/descriptors.ts";
import { cookieOf } from "../sockets/socket.ts";
import { emptyListener } from "../steering/empty_listener.ts";
import { keepAwayFromOthers, type KeepingAway, type Steering } from "../steering/keep_away.ts";
import { isShared, ReuseportGroup } from "../steering/reuseport.ts";
import { type ListedSocket, listedMembers } from "../steering/socket_diag.ts";
import { Surplus } from "./surplus.ts";

/** What became of the others, and how. */
export interface Displaced {
  /** By which program new connections were kept away from them; null where there were none. */
  readonly steering: Steering | null;
  /** How many listeners of others were at the address. */
  readonly otherCount: number;
  /** How many connections waited at them when new ones were kept away; they have accepted those. */
  readonly waitedCount: number;
}

/** How long it may take. */
export interface DisplacingLimits {
  /** How long handshakes may take that are under way at first. */
  readonly queueMs: number;
  /** From then on, until the others have accepted what waits, have been told to end, and have left. */
  readonly leaveMs: number;
  /** Ends it, as if the others had not left in time; its reason is thrown. */
  readonly signal?: AbortSignal | undefined;
}

/** How often the others are looked for. */
const lookMs = 20;

/**
 * Steers, drains, and has the others end.
 *
 * @param endpoints This process's own, at one address; they accept.
 * @param end Tells the others to end, for instance with a signal.
 * @throws {TakeoverError} `ERR_TAKEOVER_STATE` when the endpoints cannot be
 *   shared, or the group's order cannot be told, `ERR_TAKEOVER_TIMEOUT` when
 *   the others have not accepted what waits, and were not told to end, or are
 *   there still; then connections are spread over all again.
 */
export async function displace(
  runtime: Runtime,
  endpoints: readonly Endpoint[],
  end: () => unknown,
  { queueMs, leaveMs, signal }: DisplacingLimits,
): Promise<Displaced> {
  const { address } = endpoints[0]!.identity;
  if (address.family === "unix" || !isShared(runtime, endpoints[0]!.descriptor)) throw notShared(endpoints[0]!);
  const own = new Set(endpoints.map(({ identity }) => identity.cookie));
  const others = () => listedMembers(runtime, address, "stream").filter(({ cookie }) => !own.has(cookie));
  const otherCount = others().length;
  if (otherCount === 0) return { otherCount, waitedCount: 0, steering: null };
  const descriptors = endpoints.map(({ descriptor }) => descriptor);
  const kept = new Set(own);
  const away = await keepAwayFromOthers(runtime, descriptors, (cookie) => kept.has(cookie));
  const spares: OwnedDescriptor[] = [];
  const surplus = new Surplus(runtime, spares, () => endpoints);
  try {
    const group = new ReuseportGroup(runtime, descriptors);
    while (away.steering.program === "classic" && spares.length < otherCount - 1) {
      const spare = group.open();
      spares.push(spare);
      own.add(cookieOf(runtime, spare.number));
      away.joined(spare.number);
    }
    surplus.serve();
    const waitedCount = waitingAt(others());
    const serve = () => waitingAt(others()) === 0;
    // Also where the kernel would give us what waits: a program that is told to end does nothing else as gracefully.
    const { isEmpty } = await emptyListener(runtime, address, { serve, timeoutMs: queueMs, signal });
    const leaving = new Leaving(address, { leaveMs, signal });
    if (!isEmpty) await leaving.none(() => waitingAt(others()), "connections wait at their listeners");
    await leaving.ended(end);
    await leaving.none(() => others().length, "of their listeners are there");
    return { otherCount, waitedCount, steering: away.steering };
  } finally {
    try {
      await refreshed(away);
      await surplus.close(away, queueMs);
    } finally {
      surplus[Symbol.dispose]();
      away.end();
    }
  }
}

/** Where the order cannot be told any more, connections may come to a spare member until it is closed. */
async function refreshed(away: KeepingAway): Promise<void> {
  try {
    await away.refresh();
  } catch (error) {
    if (!(error instanceof TakeoverError)) throw error;
  }
}

function waitingAt(listeners: readonly ListedSocket[]): number {
  return listeners.reduce((sum, { waitingCount }) => sum + waitingCount, 0);
}

/** Waits for the others, all in one time. */
class Leaving {
  readonly #address: InetAddress;
  readonly #leaveMs: number;
  readonly #signal: AbortSignal | undefined;
  readonly #until: number;

  constructor(address: InetAddress, { leaveMs, signal }: Pick<DisplacingLimits, "leaveMs" | "signal">) {
    this.#address = address;
    this.#leaveMs = leaveMs;
    this.#signal = signal;
    this.#until = deadlineOf({ timeoutMs: leaveMs });
  }

  /** Until there are none. @param which What is counted, for the message. */
  async none(countOf: () => number, which: string): Promise<void> {
    for (let count = countOf(); count > 0; count = countOf()) {
      if (Date.now() >= this.#until) throw this.#late(`${count} ${which}`);
      await pause(lookMs, { signal: this.#signal });
    }
  }

  /** Until they have been told. */
  async ended(end: () => unknown): Promise<void> {
    this.#signal?.throwIfAborted();
    const options = { timeoutMs: Math.max(0, this.#until - Date.now()), signal: this.#signal };
    await waitFor(Promise.resolve(end()), options, () => this.#late("they are still being told to end"));
  }

  #late(found: string): TakeoverError {
    return new TakeoverError(
      "ERR_TAKEOVER_TIMEOUT",
      `Cannot be alone at ${formatAddress(this.#address)} within ${this.#leaveMs} ms: expected the others to accept ` +
        `what waits for them, and to end, ${found}; see what they do, and try again`,
    );
  }
}

function notShared({ name, identity }: Endpoint): TakeoverError {
  return new TakeoverError(
    "ERR_TAKEOVER_STATE",
    `Cannot displace others at ${formatAddress(identity.address)}: expected ${JSON.stringify(name)} to be a TCP ` +
      "listener that shares its address; open it with listenGroup, or with reusePort",
  );
}
