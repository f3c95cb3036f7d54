import assert from "node:assert/strict";
import test from "node:test";
import type { Json } from "../../src/connections/movable.ts";
import { stateOf } from "../../src/handover/options.ts";
import { limitsFrom } from "../../src/limits.ts";
import { takeoverError } from "./support.ts";

const limits = limitsFrom({ stateSize: 12 });

function given(value: unknown, version = 1): unknown {
  return stateOf({ state: { version, save: () => value as Json } }, limits);
}

test("stateOf gives null where the application gives none", () => {
  assert.equal(stateOf({}, limits), null);
});

test("stateOf gives the version and what was saved, when it is asked", () => {
  let count = 0;
  const options = { state: { version: 3, save: () => ({ count: ++count }) } };
  assert.equal(count, 0);
  assert.deepEqual(stateOf(options, limits), { version: 3, value: { count: 1 } });
  assert.deepEqual(stateOf(options, limits), { version: 3, value: { count: 2 } });
});

test("stateOf takes any JSON, null and empty texts too", () => {
  for (const value of [null, false, 0, "", [], {}]) assert.deepEqual(given(value, 0), { version: 0, value });
});

test("stateOf takes as many bytes of UTF-8 as the limit says, and no more", () => {
  assert.deepEqual(given("ééééé"), { version: 1, value: "ééééé" });
  assert.throws(() => given("ééééé1"), {
    ...takeoverError("ERR_TAKEOVER_LIMIT"),
    message: /state of version 1 with 13 bytes of JSON: expected .* at most 12 bytes \(limit stateSize\)$/,
  });
});

test("stateOf refuses what JSON cannot carry", () => {
  const cycle: Record<string, unknown> = {};
  cycle.self = cycle;
  for (const value of [undefined, () => 1, Symbol("x"), 1n, cycle]) {
    assert.throws(() => given(value), takeoverError("ERR_TAKEOVER_LIMIT"));
  }
});

test("stateOf refuses a version that is no integer from 0 on", () => {
  for (const version of [-1, 0.5, NaN, Infinity, 2 ** 53]) {
    assert.throws(() => given(1, version), takeoverError("ERR_TAKEOVER_LIMIT"));
  }
});
