/**
 * Sockets that no other process has, as far as this one knows: those that come
 * to their end with this process, or because a successor does not want them;
 * and how listeners among them are closed.
 *
 * @module
 */

import type { Limits } from "../limits.ts";
import type { Endpoint } from "../natives/endpoint.ts";
import type { Runtime } from "../runtime.ts";
import { closeForGood } from "./closing.ts";
import { noQueues, type QueueCounts, sumOfQueues } from "./queue_counts.ts";

/** Whom it tells. */
export interface LastCopiesHost {
  readonly runtime: Runtime;
  readonly limits: Limits;
  /** Listeners have been closed. */
  closed(names: readonly string[], counts: QueueCounts): void;
  /** Something went wrong with that. */
  failed(error: unknown): void;
}

/** Which they are, and their closing. */
export class LastCopies {
  readonly #host: LastCopiesHost;
  /** Names of endpoints that no other process has had. */
  readonly #bound = new Set<string>();
  /** What a successor serves, while there is one. */
  #claimed: readonly string[] = [];
  #closing: Promise<unknown> = Promise.resolve();
  #queues: QueueCounts = noQueues;

  constructor(host: LastCopiesHost) {
    this.#host = host;
  }

  /** Resolves when all that were to be closed have been. */
  get closed(): Promise<unknown> {
    return this.#closing;
  }

  /** What became of those who were connecting. */
  get queues(): QueueCounts {
    return this.#queues;
  }

  /** This process has bound an endpoint. */
  bound(name: string): void {
    this.#bound.add(name);
  }

  /** A successor serves these from here on; none when it was lost. */
  claimed(names: readonly string[]): void {
    this.#claimed = names;
  }

  /**
   * Those among endpoints.
   *
   * @param hasInherited Whether nobody else has what this process has inherited.
   */
  among(endpoints: Iterable<Endpoint>, hasInherited: boolean): Endpoint[] {
    return [...endpoints].filter(({ name, isSupervised }) => {
      const isOurs = hasInherited || this.#bound.has(name);
      return !isSupervised && isOurs && !this.#claimed.includes(name);
    });
  }

  /**
   * Closes endpoints, once whoever waits at them has been served; after other
   * closings, which may need their servers.
   *
   * @param steered Never rejects, and resolves when nothing else steers connections to them.
   */
  close(endpoints: readonly Endpoint[], steered: Promise<unknown> = Promise.resolve()): void {
    const { runtime, limits } = this.#host;
    if (endpoints.length === 0) return;
    const until = steered.then(() => Date.now() + limits.queueMs);
    const closing = Promise.all([until, this.#closing])
      .then(([until]) => closeForGood(runtime, endpoints, Math.max(0, until - Date.now())));
    this.follow(endpoints.map(({ name }) => name), closing);
  }

  /** Hears of a closing: what became of those who waited, or null when there was nothing to close. */
  follow(names: readonly string[], closing: Promise<QueueCounts | null>): void {
    const noted = closing.then((counts) => {
      if (!counts) return;
      this.#queues = sumOfQueues([this.#queues, counts]);
      this.#host.closed(names, counts);
    }, (error) => this.#host.failed(error));
    this.#closing = Promise.all([this.#closing, noted]);
  }
}
