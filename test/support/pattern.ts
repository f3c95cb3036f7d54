/**
 * Bytes of which each place is known: what is missing, doubled or moved shows.
 *
 * @module
 */

/** The byte at a place. 251 is prime, so no page and no buffer begins alike. */
function byteAt(at: number): number {
  return (at * 7 + (at >> 8) * 31) % 251;
}

/** The first so many bytes. */
export function patternOf(size: number): Uint8Array {
  const bytes = new Uint8Array(size);
  for (let at = 0; at < size; at++) bytes[at] = byteAt(at);
  return bytes;
}
