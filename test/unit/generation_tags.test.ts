/** The tag of a generation, and how many of them there are. */

import assert from "node:assert/strict";
import test from "node:test";
import { atOnceCount, checkTagCount, tagOf } from "../../src/handover/generation_tags.ts";
import { takeoverError } from "./support.ts";

const tagsOf = (size: 1 | 2 | 4, mask: number | undefined, generations: readonly number[]) => {
  return generations.map((generation) => tagOf({ offset: 0, size, ...mask === undefined ? {} : { mask } }, generation));
};

test("tagOf is the generation, comes round again, and is never 0", () => {
  assert.deepEqual(tagsOf(1, undefined, [1, 2, 254, 255, 256, 257, 510, 511]), [1, 2, 254, 255, 1, 2, 255, 1]);
  assert.deepEqual(tagsOf(2, undefined, [1, 256, 65_535, 65_536]), [1, 256, 65_535, 1]);
  assert.deepEqual(tagsOf(4, undefined, [1, 2 ** 32 - 1, 2 ** 32]), [1, 0xffffffff, 1]);
});

test("tagOf puts the generation into the bits of the mask, the lowest first", () => {
  assert.deepEqual(tagsOf(1, 0xf8, [1, 2, 31, 32]), [0x08, 0x10, 0xf8, 0x08]);
  assert.deepEqual(tagsOf(2, 0x1f0, [1, 2, 31, 32]), [0x10, 0x20, 0x1f0, 0x10]);
  assert.deepEqual(tagsOf(1, 0b11_0101_01, [1, 2, 3, 4, 31]), [0b1, 0b100, 0b101, 0b1_0000, 0b11_0101_01]);
  assert.deepEqual(tagsOf(4, 0xf0000001, [1, 2, 31, 32]), [1, 0x10000000, 0xf0000001, 1]);
});

test("checkTagCount takes masks with a value for each generation that can be there, and no others", () => {
  for (const mask of [0x1f, 0xf8, 0xff]) {
    const tag = { offset: 0, size: 1, mask } as const;
    checkTagCount(tag);
    const tags = Array.from({ length: atOnceCount }, (_, index) => tagOf(tag, 1_000 + index));
    assert.equal(new Set(tags).size, atOnceCount);
  }
  for (const mask of [1, 3, 0x0f, 0x55]) {
    assert.throws(() => checkTagCount({ offset: 0, size: 1, mask }), {
      ...takeoverError("ERR_TAKEOVER_RANGE"),
      message: /expected 16 values beside 0/,
    });
  }
});
