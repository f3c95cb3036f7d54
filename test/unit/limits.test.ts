import assert from "node:assert/strict";
import test from "node:test";
import { defaultLimits, type Limits, limitsFrom } from "../../src/limits.ts";
import { takeoverError } from "./support.ts";

test("limitsFrom gives the defaults when nothing is set", () => {
  assert.deepEqual(limitsFrom(), defaultLimits);
  assert.deepEqual(limitsFrom({}), defaultLimits);
});

test("limitsFrom puts the application's values over the defaults", () => {
  assert.deepEqual(limitsFrom({ settleMs: 1, spareCount: 0 }), { ...defaultLimits, settleMs: 1, spareCount: 0 });
});

test("limitsFrom keeps the default of what is undefined", () => {
  assert.equal(limitsFrom({ helloMs: undefined } as unknown as Partial<Limits>).helloMs, defaultLimits.helloMs);
});

test("limitsFrom leaves the defaults alone", () => {
  const before = { ...defaultLimits };
  limitsFrom({ helloMs: 1 });
  assert.deepEqual(defaultLimits, before);
});

test("limitsFrom refuses an unknown name, and lists the known", () => {
  assert.throws(() => limitsFrom({ helloMS: 1 } as Partial<Limits>), {
    ...takeoverError("ERR_TAKEOVER_LIMIT"),
    message: /^Cannot set the limit helloMS: expected one of lockMs, helloMs, /,
  });
});

test("limitsFrom refuses a name that every object has", () => {
  for (const name of ["toString", "constructor", "hasOwnProperty"]) {
    assert.throws(() => limitsFrom({ [name]: 1 }), takeoverError("ERR_TAKEOVER_LIMIT"), name);
  }
});

test("limitsFrom refuses a time that a timer cannot wait, which would end at once", () => {
  assert.equal(limitsFrom({ readyMs: 2 ** 31 - 1 }).readyMs, 2 ** 31 - 1);
  assert.throws(() => limitsFrom({ readyMs: 2 ** 31 }), {
    ...takeoverError("ERR_TAKEOVER_LIMIT"),
    message: "Cannot set the limit readyMs to 2147483648: expected an integer from 1 to 2147483647",
  });
});

test("limitsFrom refuses what is negative or no integer", () => {
  for (const value of [-1, 0.5, NaN, Infinity, 2 ** 53, "1", null, true]) {
    assert.throws(() => limitsFrom({ helloMs: value as number }), takeoverError("ERR_TAKEOVER_LIMIT"), `${value}`);
  }
});

test("limitsFrom takes 0 where it means at once or none, and nowhere else", () => {
  const zero = ["settleMs", "queueMs", "drainMs", "trialMs", "spareCount"];
  for (const name of Object.keys(defaultLimits)) {
    if (zero.includes(name)) assert.equal(limitsFrom({ [name]: 0 })[name as keyof Limits], 0);
    else assert.throws(() => limitsFrom({ [name]: 0 }), takeoverError("ERR_TAKEOVER_LIMIT"), name);
  }
});

test("defaultLimits has only integers from 1 on, but for what begins at once", () => {
  for (const [name, value] of Object.entries(defaultLimits)) {
    assert.ok(Number.isSafeInteger(value) && value > (name === "trialMs" ? -1 : 0), name);
  }
});
