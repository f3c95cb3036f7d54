/**
 * Where a native object is while its connection is frozen: over a socket on
 * which nothing comes and nobody hears.
 *
 * To be out of the event loop is not enough: an event that the loop has
 * fetched already is acted upon later, by Deno many turns later when there are
 * thousands. A read or a write that comes so late ends here.
 *
 * @module
 */

import type { Runtime } from "../runtime.ts";
import { OwnedDescriptor } from "../sockets/descriptors.ts";
import { cookieOf, duplicate, duplicateOver, openPair } from "../sockets/socket.ts";

/** A connection that was taken away from its object. */
export interface Taken {
  /** The connection. */
  readonly socket: OwnedDescriptor;
  /**
   * Gives the object another socket, and closes the connection's copy.
   *
   * @returns False when the object has been closed meanwhile: nothing was given.
   */
  give(descriptor: number): boolean;
}

/** One such socket for many objects. */
export class Limbo implements Disposable {
  readonly #runtime: Runtime;
  #ends: readonly [OwnedDescriptor, OwnedDescriptor] | null = null;

  constructor(runtime: Runtime) {
    this.#runtime = runtime;
  }

  /** Takes the connection away from the object that holds a descriptor, which is out of the event loop. */
  take(descriptor: number): Taken {
    const runtime = this.#runtime;
    const [end] = this.#ends ??= openPair(runtime);
    const cookie = cookieOf(runtime, end.number);
    const socket = new OwnedDescriptor(runtime, duplicate(runtime, descriptor));
    try {
      duplicateOver(runtime, end.number, descriptor);
    } catch (error) {
      socket[Symbol.dispose]();
      throw error;
    }
    return {
      socket,
      give(other) {
        const isHeld = cookieOf(runtime, descriptor) === cookie;
        if (isHeld) duplicateOver(runtime, other, descriptor);
        socket[Symbol.dispose]();
        return isHeld;
      },
    };
  }

  /** Closes it; no object may be there any more. */
  [Symbol.dispose](): void {
    for (const end of this.#ends ?? []) end[Symbol.dispose]();
    this.#ends = null;
  }
}
