import assert from "node:assert/strict";
import test from "node:test";
import { errnoName, errnoOf } from "../../src/c/errno.ts";

test("errnoOf knows the numbers of Linux", () => {
  assert.deepEqual(["EBADF", "EAGAIN", "ENOSYS", "ENOTSOCK", "ETOOMANYREFS"].map((name) => errnoOf("linux", name)), [
    9,
    11,
    38,
    88,
    109,
  ]);
});

test("errnoOf knows the numbers of macOS", () => {
  assert.deepEqual(["EBADF", "EAGAIN", "ENOSYS", "ENOTSOCK", "ETOOMANYREFS"].map((name) => errnoOf("darwin", name)), [
    9,
    35,
    78,
    38,
    59,
  ]);
});

test("errnoName names what errnoOf numbers", () => {
  assert.equal(errnoName("linux", 98), "EADDRINUSE");
  assert.equal(errnoName("darwin", 48), "EADDRINUSE");
  assert.equal(errnoName("linux", 11), "EAGAIN");
  assert.equal(errnoName("darwin", 11), "EDEADLK");
});

test("errnoName gives E and the number for one that is not listed", () => {
  assert.equal(errnoName("linux", 4711), "E4711");
});
