/**
 * Closing listeners for good: this process has the last copies, and whoever is
 * connecting has to be served first, by the servers that have them.
 *
 * ```text
 * a member of a group that others stay in   new connections are steered to those
 * a TCP listener by itself                  new connections are dropped, and refused when they are tried again
 * one that another program may have too     new connections come until the end: that program may accept them
 * a Unix listener                           its path has gone before
 * ```
 *
 * @module
 */

import { formatAddress, type InetAddress } from "../c/sockaddr.ts";
import { deadlineOf, pause } from "../channels/readiness.ts";
import { SystemError, TakeoverError } from "../errors.ts";
import type { Endpoint } from "../natives/endpoint.ts";
import type { Runtime } from "../runtime.ts";
import { OwnedDescriptor } from "../sockets/descriptors.ts";
import { canPause } from "../sockets/event_loop.ts";
import { isElsewhere } from "../sockets/elsewhere.ts";
import { duplicate } from "../sockets/socket.ts";
import { waitingCount } from "../steering/accept_queue.ts";
import { emptyListener, settlingMs } from "../steering/empty_listener.ts";
import { keepAwayFromOthers } from "../steering/keep_away.ts";
import { KeptAway } from "../steering/least_hops.ts";
import { isShared } from "../steering/reuseport.ts";
import { listedMembers } from "../steering/socket_diag.ts";
import { type QueueCounts, sumOfQueues } from "./queue_counts.ts";

/**
 * Releases endpoints whose sockets nobody else has.
 *
 * @param timeoutMs How long handshakes that are under way may take.
 * @returns What became of those who were connecting.
 */
export async function closeForGood(
  runtime: Runtime,
  endpoints: Iterable<Endpoint>,
  timeoutMs: number,
): Promise<QueueCounts> {
  const byAddress = new Map<string, Endpoint[]>();
  for (const endpoint of endpoints) {
    const at = formatAddress(endpoint.identity.address);
    if (isServing(runtime, endpoint)) byAddress.set(at, [...byAddress.get(at) ?? [], endpoint]);
    else endpoint.release();
  }
  const closed = [...byAddress.values()].map((group) => closeAt(runtime, group, timeoutMs));
  return sumOfQueues(await Promise.all(closed));
}

/** One that is paused accepts nothing, and would wait in vain. */
function isServing(runtime: Runtime, { kind, alive, isAccepting }: Endpoint): boolean {
  return kind === "listener" && alive && isAccepting && canPause(runtime);
}

/** How new connections are kept away from the listeners of one address, until they are closed. */
interface Refusal {
  /** Whether what waits at a listener that closes goes on to others. */
  readonly migrates: boolean;
  /** What the servers have accepted meanwhile goes on. */
  served(): void;
  /** Closes a listener; the one that joined last is the first. */
  close(endpoint: Endpoint, isLast: boolean): void;
}

async function closeAt(runtime: Runtime, endpoints: readonly Endpoint[], timeoutMs: number): Promise<QueueCounts> {
  const { address } = endpoints[0]!.identity;
  const refusal = await refuse(runtime, endpoints);
  const { migrates } = refusal;
  const until = deadlineOf({ timeoutMs });
  const left = [...endpoints];
  const waiting = () => left.reduce((sum, each) => sum + (each.alive ? waitingCount(runtime, each.descriptor) : 0), 0);
  const serve = () => {
    refusal.served();
    return waiting() === 0;
  };
  const before = waiting();
  let [comingCount, leftCount, unfinishedCount] = [0, 0, 0];
  const close = () => {
    const last = left.pop()!;
    if (last.alive) leftCount += waitingCount(runtime, last.descriptor);
    refusal.close(last, left.length === 0);
  };
  try {
    // One may have come while the listener before left, and the next program was not there yet.
    while (left.length > 0) {
      const restMs = Math.max(0, until - Date.now());
      // What the kernel gives to others is not waited for.
      if (migrates) await pause(settlingMs);
      const found = migrates ? nobody : await emptyListener(runtime, address, { serve, timeoutMs: restMs });
      if (left.length === endpoints.length) comingCount = found.halfOpenCount;
      unfinishedCount = found.unfinishedCount ?? 0;
      close();
    }
    // accept(2) takes a connection out of the queue before it has a number, which matters in another thread.
    if (!migrates) await pause(settlingMs);
    refusal.served();
  } finally {
    while (left.length > 0) close();
  }
  leftCount += unfinishedCount;
  const served = Math.max(before + comingCount - leftCount, 0);
  return { served, migrated: migrates ? leftCount : 0, reset: migrates ? 0 : leftCount };
}

const nobody = { halfOpenCount: 0, unfinishedCount: 0 } as const;

async function refuse(runtime: Runtime, endpoints: readonly Endpoint[]): Promise<Refusal> {
  const { address } = endpoints[0]!.identity;
  const nothing: Refusal = { migrates: false, served: () => {}, close: (endpoint) => endpoint.release() };
  // What another program accepts meanwhile would be deaf: it inherits what drops the others, and is out of reach.
  if (address.family === "unix" || endpoints.some(({ identity }) => isElsewhere(identity.cookie))) return nothing;
  try {
    return await steerAway(runtime, endpoints, address) ?? dropAlone(runtime, endpoints, address);
  } catch (error) {
    // Without a descriptor for a copy they come until the end.
    if (error instanceof SystemError) return nothing;
    throw error;
  }
}

/** Null when nobody else is in the group, or it cannot be steered. */
async function steerAway(
  runtime: Runtime,
  endpoints: readonly Endpoint[],
  address: InetAddress,
): Promise<Refusal | null> {
  const own = new Set(endpoints.map(({ identity }) => identity.cookie));
  const [first, ...others] = endpoints.map(({ descriptor }) => descriptor);
  if (!isShared(runtime, first!)) return null;
  // Of the one that is closed last: it is needed when there is no listener any more.
  const copy = new OwnedDescriptor(runtime, duplicate(runtime, first!));
  let isSteered = false;
  try {
    if (listedMembers(runtime, address, "stream").every(({ cookie }) => own.has(cookie))) return null;
    const away = await keepAwayFromOthers(runtime, [copy.number, ...others], (cookie) => !own.has(cookie));
    isSteered = true;
    const close = (endpoint: Endpoint, isLast: boolean) => {
      if (!isLast) {
        endpoint.release();
        return away.closed(endpoint.identity.cookie);
      }
      // Without a listener here nobody can take the program away, and it must not stay: who joins later has another slot.
      endpoint.release();
      // What comes to one that others inherit from goes to them, and must hear its client there.
      const kept = away.steering.migrates ? null : new KeptAway(runtime, copy.number, address);
      away.end();
      kept?.end();
      copy[Symbol.dispose]();
    };
    return { migrates: away.steering.migrates, served: () => {}, close };
  } catch (error) {
    if (error instanceof TakeoverError) return null;
    throw error;
  } finally {
    if (!isSteered) copy[Symbol.dispose]();
  }
}

/** Each socket outlives the server's copy for a moment: whoever else may have one goes on with it as it was. */
function dropAlone(runtime: Runtime, endpoints: readonly Endpoint[], address: InetAddress): Refusal {
  const drops = new Map<Endpoint, { readonly copy: OwnedDescriptor; readonly kept: KeptAway }>();
  const close = (endpoint: Endpoint) => {
    const { copy, kept } = drops.get(endpoint)!;
    kept.end();
    copy[Symbol.dispose]();
  };
  try {
    for (const endpoint of endpoints) {
      const copy = new OwnedDescriptor(runtime, duplicate(runtime, endpoint.descriptor));
      drops.set(endpoint, { copy, kept: new KeptAway(runtime, copy.number, address) });
    }
  } catch (error) {
    for (const endpoint of drops.keys()) close(endpoint);
    throw error;
  }
  return {
    migrates: false,
    served: () => drops.values().next().value!.kept.letAllIn(),
    close: (endpoint) => {
      endpoint.release();
      close(endpoint);
    },
  };
}
