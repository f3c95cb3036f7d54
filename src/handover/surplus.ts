/**
 * Listeners that this process has and does not want: new connections are kept
 * away from them, servers of this process accept what waits there, and then
 * they are closed.
 *
 * @module
 */

import type { SocketAddress } from "../c/sockaddr.ts";
import { deadlineOf, pause, stopWaiting, waitReadable } from "../channels/readiness.ts";
import { SystemError, TakeoverError } from "../errors.ts";
import type { Endpoint } from "../natives/endpoint.ts";
import type { Runtime } from "../runtime.ts";
import type { OwnedDescriptor } from "../sockets/descriptors.ts";
import { cookieOf, localAddress } from "../sockets/socket.ts";
import { waitingCount } from "../steering/accept_queue.ts";
import { emptyListener, settlingMs } from "../steering/empty_listener.ts";
import type { KeepingAway } from "../steering/keep_away.ts";
import { noQueues, type QueueCounts } from "./queue_counts.ts";

/** How long a server has a listener that is not its own, at most, and how often it is looked at meanwhile. */
const lentMs = 50;
const lookMs = 1;

/** Surplus listeners of one group. */
export class Surplus {
  readonly #runtime: Runtime;
  readonly #listeners: readonly OwnedDescriptor[];
  readonly #servers: () => readonly Endpoint[];
  /** One server has one listener at a time. */
  #turn: Promise<unknown> = Promise.resolve();
  #servedCount = 0;

  /**
   * @param listeners Taken, in the order in which they joined.
   * @param servers The servers of the group that this process has.
   */
  constructor(runtime: Runtime, listeners: readonly OwnedDescriptor[], servers: () => readonly Endpoint[]) {
    this.#runtime = runtime;
    this.#listeners = listeners;
    this.#servers = servers;
  }

  /** Serves what comes, from here on. */
  serve(): void {
    for (const listener of this.#listeners) void this.#watch(listener);
  }

  /** Closes them, once nobody is left there; the last one first, so that the others keep their slots. */
  async close(away: KeepingAway, timeoutMs: number): Promise<QueueCounts> {
    const open = this.#listeners.filter(({ number }) => number >= 0);
    const { migrates } = away.steering;
    const address = open[0] && localAddress(this.#runtime, open[0].number);
    if (!address) return noQueues;
    const until = deadlineOf({ timeoutMs });
    let leftCount = 0;
    let unfinishedCount = 0;
    // One may have come while the listener before left, and the next program was not there yet.
    for (const left = [...open]; left.length > 0; left.pop()) {
      const restMs = Math.max(0, until - Date.now());
      unfinishedCount = migrates ? await this.#settle() : await this.#empty(left, address, restMs);
      await this.#inTurn(() => {
        const last = left.at(-1)!;
        leftCount += waitingCount(this.#runtime, last.number);
        this.#closeOne(last, away);
      });
    }
    leftCount += unfinishedCount;
    return { served: this.#servedCount, migrated: migrates ? leftCount : 0, reset: migrates ? 0 : leftCount };
  }

  /** What the kernel gives to the others is not waited for. */
  async #settle(): Promise<number> {
    await pause(settlingMs);
    return 0;
  }

  /** How many handshakes have not ended. */
  async #empty(open: readonly OwnedDescriptor[], address: SocketAddress, timeoutMs: number): Promise<number> {
    const serve = async () => {
      for (const listener of open) await this.#accept(listener);
      return this.#waiting(open) === 0;
    };
    const { unfinishedCount } = await emptyListener(this.#runtime, address, { serve, timeoutMs });
    return unfinishedCount ?? 0;
  }

  /** Closes them at once: another process has copies. */
  [Symbol.dispose](): void {
    for (const listener of this.#listeners) this.#closeOne(listener, null);
  }

  #closeOne(listener: OwnedDescriptor, away: KeepingAway | null): void {
    if (listener.number < 0) return;
    const cookie = cookieOf(this.#runtime, listener.number);
    stopWaiting(this.#runtime, listener.number);
    listener[Symbol.dispose]();
    away?.closed(cookie);
  }

  #waiting(listeners: readonly OwnedDescriptor[]): number {
    return listeners.reduce((sum, { number }) => sum + waitingCount(this.#runtime, number), 0);
  }

  async #watch(listener: OwnedDescriptor): Promise<void> {
    while (listener.number >= 0) {
      try {
        await waitReadable(this.#runtime, listener.number, { keepAlive: false });
      } catch (error) {
        // It has been closed, or there is no descriptor to wait with (EMFILE): it is looked at now and then.
        if (!(error instanceof SystemError || error instanceof TakeoverError)) throw error;
        if (listener.number >= 0) await pause(lentMs);
      }
      await this.#accept(listener);
    }
  }

  #accept(listener: OwnedDescriptor): Promise<void> {
    return this.#inTurn(() => this.#lend(listener));
  }

  /** What a server has lent is still open when it is closed here. */
  async #inTurn(call: () => Promise<void> | void): Promise<void> {
    const turn = this.#turn.then(call);
    this.#turn = turn.catch(() => {});
    await turn;
  }

  async #lend(listener: OwnedDescriptor): Promise<void> {
    const until = Date.now() + lentMs;
    const waiting = () => waitingCount(this.#runtime, listener.number);
    const before = waiting();
    if (before === 0) return;
    for (const server of this.#servers()) {
      const end = substituted(server, listener.number);
      if (!end) continue;
      while (waiting() > 0 && Date.now() < until) await pause(lookMs);
      end();
      this.#servedCount += Math.max(before - waiting(), 0);
      return;
    }
    // No server has time; it may have later.
    await pause(lentMs);
  }
}

/** Null also where there is no descriptor for what the server holds itself (EMFILE). */
function substituted(server: Endpoint, listener: number): (() => void) | null {
  try {
    return server.substitute(listener);
  } catch (error) {
    if (error instanceof SystemError) return null;
    throw error;
  }
}
