import assert from "node:assert/strict";
import test from "node:test";
import { batchesOf, batchHeadSize, encodeBatchHead } from "../../src/handover/batch.ts";

test("encodeBatchHead writes the magic, the number, the count and four zeros", () => {
  const head = encodeBatchHead({ number: 1, count: 253 });
  assert.equal(head.length, batchHeadSize);
  assert.equal(new TextDecoder().decode(head.slice(0, 4)), "STKD");
  assert.deepEqual([...head.slice(4)], [0, 0, 0, 1, 0, 0, 0, 253, 0, 0, 0, 0]);
});

test("batchesOf fills every batch but the last, and keeps the order", () => {
  assert.deepEqual(batchesOf([1, 2, 3, 4, 5], 2), [[1, 2], [3, 4], [5]]);
});

test("batchesOf makes no empty batch", () => {
  assert.deepEqual(batchesOf([1, 2, 3, 4], 2), [[1, 2], [3, 4]]);
  assert.deepEqual(batchesOf([], 2), []);
});

test("batchesOf makes one batch of 253 and two of 254", () => {
  assert.deepEqual(batchesOf(new Array(253).fill(0), 253).map(({ length }) => length), [253]);
  assert.deepEqual(batchesOf(new Array(254).fill(0), 253).map(({ length }) => length), [253, 1]);
});
