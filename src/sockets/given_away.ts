/**
 * Sockets of which another program has got copies from this process, and goes
 * on with them when this process closes its own.
 *
 * @module
 */

/** `SO_COOKIE` of each. */
const cookies = new Set<string>();

/** Another program has a copy from here on. */
export function noteGivenAway(cookie: string): void {
  cookies.add(cookie);
}

/** Whether another program may have a copy. */
export function isGivenAway(cookie: string): boolean {
  return cookies.has(cookie);
}
