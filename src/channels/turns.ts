/**
 * Calls that take turns: each begins when those before it have ended, and the
 * event loop gets a turn between them now and then.
 *
 * @module
 */

import { waitForTurn, type WaitOptions } from "./readiness.ts";

/** Calls after which the event loop has a turn: where a message is always there, nothing else would run. */
const callsPerTurn = 64;

/** A turn for the event loop now and then, where connections wait without an end. */
export class Pace {
  #callCount = 0;

  /** Before each call: waits when it is the event loop's turn. */
  async keep(): Promise<void> {
    if (this.#callCount++ < callsPerTurn) return;
    this.#callCount = 1;
    await nextTurn();
  }
}

/** Calls in the order they were made. */
export class Turns {
  #last: Promise<unknown> = Promise.resolve();
  #pendingCount = 0;
  #callCount = 0;

  /** Whether a call may be made at once, without a turn of the event loop; asked once for each call. */
  isFree(): boolean {
    this.#callCount++;
    return this.#pendingCount === 0 && !this.#isPauseDue();
  }

  /**
   * Makes a call after those before it. The signal and the time limit end the
   * wait for its turn; they do not hold up the calls behind it.
   */
  async take<T>(options: WaitOptions, call: () => Promise<T>): Promise<T> {
    const before = this.#last;
    const isPauseDue = this.#isPauseDue();
    if (isPauseDue) this.#callCount = 0;
    const result = (this.#pendingCount === 0 ? before : waitForTurn(before, options))
      .then(() => isPauseDue ? nextTurn() : undefined)
      .then(call)
      .finally(() => this.#pendingCount--);
    this.#pendingCount++;
    this.#last = before.then(() => result.catch(() => {}));
    return await result;
  }

  #isPauseDue(): boolean {
    return this.#callCount >= callsPerTurn;
  }
}

/** The second is after the timers that are due: the first comes before them when it is asked for by I/O (libuv). */
function nextTurn(): Promise<void> {
  return new Promise((resolve) => setImmediate(() => setImmediate(resolve)));
}
