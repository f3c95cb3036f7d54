import assert from "node:assert/strict";
import test from "node:test";
import { isAtRest } from "../../src/sockets/muting.ts";

const registration = { epoll: 3, descriptor: 7, data: 7n };
const EPOLLIN = 1;
const EPOLLOUT = 4;
const EPOLLET = 0x80000000;

test("isAtRest is false where nothing is registered", () => assert.equal(isAtRest([]), false));

test("isAtRest is false while a runtime waits for room to send", () => {
  assert.equal(isAtRest([{ ...registration, events: EPOLLIN | EPOLLOUT }]), false);
});

test("isAtRest is true of one that reads, and of one that is told of each change alone", () => {
  assert.equal(isAtRest([{ ...registration, events: EPOLLIN }]), true);
  assert.equal(isAtRest([{ ...registration, events: EPOLLET + EPOLLIN + EPOLLOUT }]), true);
});
