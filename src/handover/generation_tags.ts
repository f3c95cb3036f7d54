/**
 * The tag of a generation: what it puts where clients send it back, and the
 * kernel looks. Generations go on for ever, tags do not: they come round again,
 * and 0 is none's.
 *
 * ```text
 * generation            1     2  …     31     32  …  255  256
 * tag, mask 0xff        1     2        31     32     255    1
 * tag, mask 0x1f0    0x10  0x20     0x1f0   0x10
 * ```
 *
 * @module
 */

import { TakeoverError } from "../errors.ts";
import type { QuicTag, Tag } from "../steering/programs.ts";

/** How many generations there can be at once: 15 older ones, and the newest. */
export const atOnceCount = 16;

/** The tag of a generation, in the bits of the mask. */
export function tagOf(tag: Tag | QuicTag, generation: number): number {
  const bits = bitsOf(tag);
  const number = 1 + (generation - 1) % (2 ** bits.length - 1);
  return bits.reduce((sum, bit, index) => sum + (Math.floor(number / 2 ** index) % 2) * bit, 0);
}

/**
 * Checks that all generations that can be there have different tags.
 *
 * @throws {TakeoverError} `ERR_TAKEOVER_RANGE`.
 */
export function checkTagCount(tag: Tag | QuicTag): void {
  const { length } = bitsOf(tag);
  const count = 2 ** length - 1;
  if (count >= atOnceCount) return;
  throw new TakeoverError(
    "ERR_TAKEOVER_RANGE",
    `Cannot steer by a tag of ${length} bits: expected ${atOnceCount} values beside 0, a generation each, it has ` +
      `${count}; give it a mask of 5 bits or more`,
  );
}

/** The values of the bits that count, the lowest first. */
function bitsOf({ size, mask = 2 ** (size * 8) - 1 }: Tag | QuicTag): number[] {
  return Array.from({ length: size * 8 }, (_, bit) => 2 ** bit).filter((bit) => Math.floor(mask / bit) % 2 === 1);
}
