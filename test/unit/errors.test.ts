import assert from "node:assert/strict";
import test from "node:test";
import {
  checked,
  isSystemError,
  messageOf,
  PeerLostError,
  shown,
  SystemError,
  TakeoverError,
} from "../../src/errors.ts";
import { darwin, linux } from "./support.ts";

test("TakeoverError has a name, a code, a message and a cause", () => {
  const cause = new Error("behind it");
  const error = new TakeoverError("ERR_TAKEOVER_BUSY", "Cannot hand over", { cause });
  assert.ok(error instanceof Error);
  assert.equal(error.name, "TakeoverError");
  assert.equal(error.code, "ERR_TAKEOVER_BUSY");
  assert.equal(error.message, "Cannot hand over");
  assert.equal(error.cause, cause);
});

test("TakeoverError has no cause when none was given", () => {
  assert.ok(!Object.hasOwn(new TakeoverError("ERR_TAKEOVER_BUSY", ""), "cause"));
});

test("PeerLostError is a TakeoverError with the code ERR_TAKEOVER_LOST", () => {
  const cause = new Error("reset");
  const error = new PeerLostError("The incumbent has gone", { cause });
  assert.ok(error instanceof TakeoverError);
  assert.deepEqual([error.name, error.code, error.cause], ["TakeoverError", "ERR_TAKEOVER_LOST", cause]);
});

test("SystemError has the shape of Node's system errors", () => {
  const error = new SystemError("ENOENT", -2, "open", "/missing");
  assert.equal(error.name, "SystemError");
  assert.deepEqual([error.code, error.errno, error.syscall], ["ENOENT", -2, "open"]);
  assert.equal(error.message, "open ENOENT /missing");
});

test("SystemError says nothing where there is no detail", () => {
  assert.equal(new SystemError("EBADF", -9, "close").message, "close EBADF");
});

test("checked passes a value from 0 on through", () => {
  assert.equal(checked(linux, "read", 0), 0);
  assert.equal(checked(linux, "read", 7), 7);
});

test("checked throws a -errno under the name that it has on the platform", () => {
  assert.throws(() => checked(linux, "connect", -111, "/x"), { code: "ECONNREFUSED", errno: -111, syscall: "connect" });
  assert.throws(() => checked(darwin, "connect", -61, "/x"), { code: "ECONNREFUSED", errno: -61, syscall: "connect" });
});

test("isSystemError is true for one of the codes and for nothing else", () => {
  const error = new SystemError("EAGAIN", -11, "connect");
  assert.equal(isSystemError(error, "EINTR", "EAGAIN"), true);
  assert.equal(isSystemError(error, "EINTR"), false);
  assert.equal(isSystemError(error), false);
  assert.equal(isSystemError({ code: "EAGAIN" }, "EAGAIN"), false);
});

test("messageOf reads errors and everything else that can be thrown", () => {
  assert.equal(messageOf(new Error("said")), "said");
  assert.equal(messageOf("said"), "said");
  assert.equal(messageOf(undefined), "undefined");
  assert.equal(messageOf(null), "null");
});

test("shown gives the beginning of a text, and of anything else its type", () => {
  assert.equal(shown('a "b"'), '"a \\"b\\""');
  assert.equal(shown("x".repeat(100_000)), JSON.stringify("x".repeat(80)));
  assert.equal(shown([[1]]), "a value of type object");
  assert.equal(shown(undefined), "a value of type undefined");
});
