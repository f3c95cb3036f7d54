/**
 * Which descriptor holds a socket, for many sockets: one walk of the
 * descriptor table for all of them, repeated only when one is not found.
 *
 * @module
 */

import type { Runtime } from "../runtime.ts";
import { openDescriptors } from "../sockets/descriptors.ts";
import { cookieOf } from "../sockets/socket.ts";

/** Descriptors by the cookies of their sockets. */
export class CookieIndex {
  readonly #runtime: Runtime;
  #descriptors = new Map<string, number>();

  constructor(runtime: Runtime) {
    this.#runtime = runtime;
  }

  /**
   * The lowest descriptor of a socket, or -1.
   *
   * @param cookie Its `SO_COOKIE`, as `cookieOf` tells it.
   */
  find(cookie: string): number {
    const known = this.#known(cookie);
    if (known >= 0) return known;
    this.#walk();
    return this.#known(cookie);
  }

  #known(cookie: string): number {
    const descriptor = this.#descriptors.get(cookie) ?? -1;
    return descriptor >= 0 && cookieOf(this.#runtime, descriptor) === cookie ? descriptor : -1;
  }

  #walk(): void {
    this.#descriptors = new Map();
    for (const descriptor of openDescriptors(this.#runtime)) {
      const cookie = cookieOf(this.#runtime, descriptor);
      if (cookie !== "" && !this.#descriptors.has(cookie)) this.#descriptors.set(cookie, descriptor);
    }
  }
}
