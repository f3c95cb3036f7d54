/**
 * Sockets of which a program that knows nothing of hand-overs may have copies
 * too: it has given them to this one, or got them from it. What is set on one
 * counts for that program as well, which goes on with it when this one closes
 * its copy.
 *
 * @module
 */

/** `SO_COOKIE` of each. */
const cookies = new Set<string>();

/** Another program may have copies from here on. */
export function noteElsewhere(cookie: string): void {
  cookies.add(cookie);
}

/** The other program has ended. */
export function noteGone(cookie: string): void {
  cookies.delete(cookie);
}

/** Whether another program may have a copy. */
export function isElsewhere(cookie: string): boolean {
  return cookies.has(cookie);
}
