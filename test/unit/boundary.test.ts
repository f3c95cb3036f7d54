import assert from "node:assert/strict";
import test from "node:test";
import { boundary, type Facts, type LastRequest } from "../../src/connections/boundary.ts";

/** A connection that was answered long ago, in the tick in which it asked. */
const idle: Facts = {
  isEstablished: true,
  inFlightCount: 0,
  parser: null,
  readSize: 100,
  unreadSize: 0,
  writtenSize: 200,
  isAtHand: null,
  hasRoom: true,
  isSettled: true,
  sinceReceivedMs: 1_000,
  sinceSentMs: 1_000,
  hasRetransmitted: false,
  lastRequest: null,
  doubt: null,
};

const whole: LastRequest = { readSize: 100, isWhole: true, isPipelined: false };

const quietMs = 3_000;

function verdict(facts: Partial<Facts>, isLast = false): string {
  const { state, reason } = boundary({ ...idle, ...facts }, quietMs, isLast);
  return `${state}: ${reason}`;
}

test("boundary: a connection that either side has ended stays", () => {
  assert.equal(verdict({ isEstablished: false, parser: "between" }), "busy: ended");
});

test("boundary: what the parser says is all there is to say", () => {
  assert.equal(verdict({ parser: "between", isSettled: false, unreadSize: 10 }), "boundary: parser");
  assert.equal(verdict({ parser: "within", readSize: 0, writtenSize: 0 }), "busy: message");
});

test("boundary: a request that is being collected goes when all of it is at hand", () => {
  const arriving = { inFlightCount: 1, isAtHand: true, unreadSize: 10, doubt: "unproven" };
  assert.equal(verdict(arriving), "boundary: at hand");
  assert.equal(verdict({ ...arriving, isAtHand: false }, true), "busy: body");
  assert.equal(verdict({ ...arriving, inFlightCount: 2 }, true), "busy: request");
  assert.equal(verdict({ ...arriving, hasRoom: false }, true), "busy: unsent");
  assert.equal(verdict({ ...arriving, isEstablished: false }, true), "busy: ended");
});

test("boundary: a request that is being collected rests first where no parser tells that nothing is on its way", () => {
  const arriving = { inFlightCount: 1, isAtHand: true, isSettled: false };
  assert.equal(verdict(arriving, true), "busy: unsettled");
  assert.equal(verdict({ ...arriving, parser: "within" }), "boundary: at hand");
});

test("boundary: a request in flight keeps it", () => {
  assert.equal(verdict({ inFlightCount: 1 }), "busy: request");
  assert.equal(verdict({ inFlightCount: 1, lastRequest: whole, sinceSentMs: 0 }, true), "busy: request");
});

test("boundary: of a connection from which nothing was read, everything is in the kernel", () => {
  assert.equal(verdict({ readSize: 0, writtenSize: 0, isSettled: false, doubt: "unproven" }), "boundary: untouched");
  assert.equal(verdict({ readSize: 0, writtenSize: 0, unreadSize: 10 }), "boundary: untouched");
});

test("boundary: a server that has spoken first is not untouched", () => {
  assert.equal(verdict({ readSize: 0, isSettled: false }), "busy: unsettled");
});

test("boundary: an answer that may be in user space keeps it", () => {
  assert.equal(verdict({ hasRoom: false, lastRequest: whole }), "busy: unsent");
  assert.equal(verdict({ hasRoom: false, sinceSentMs: 0 }, true), "busy: unsent");
});

test("boundary: something that has just happened keeps it", () => {
  assert.equal(verdict({ isSettled: false, lastRequest: whole }), "busy: unsettled");
});

test("boundary: nothing was read since a whole request that was answered", () => {
  assert.equal(verdict({ lastRequest: whole, sinceReceivedMs: 0, sinceSentMs: 0 }), "boundary: answered");
  assert.equal(verdict({ lastRequest: whole, unreadSize: 10, sinceReceivedMs: 0 }), "boundary: answered");
  assert.equal(verdict({ lastRequest: whole, doubt: "unproven" }), "boundary: answered");
});

test("boundary: an answered request proves nothing when it was not whole, or more was read", () => {
  assert.equal(verdict({ lastRequest: { ...whole, isWhole: false } }), "ambiguous: same tick");
  assert.equal(verdict({ lastRequest: { ...whole, readSize: 90 } }), "ambiguous: same tick");
});

test("boundary: a client that pipelines is not taken in the same tick, even when the time is up", () => {
  const lastRequest = { ...whole, isPipelined: true };
  assert.equal(verdict({ lastRequest }), "ambiguous: same tick");
  assert.equal(verdict({ lastRequest }, true), "ambiguous: same tick");
  assert.equal(verdict({ lastRequest, sinceReceivedMs: quietMs, sinceSentMs: quietMs }), "boundary: silent");
});

test("boundary: a doubt keeps what no watched request has proven", () => {
  assert.equal(verdict({ doubt: "upgraded", sinceSentMs: 0 }, true), "busy: upgraded");
  assert.equal(verdict({ doubt: "unproven", sinceReceivedMs: quietMs }, true), "busy: unproven");
});

test("boundary: bytes that the server has not read yet are a request on its way", () => {
  assert.equal(verdict({ unreadSize: 1, sinceSentMs: 0 }, true), "busy: unread");
});

test("boundary: what came and was not answered is half-read", () => {
  assert.equal(verdict({ writtenSize: 0, sinceSentMs: 0 }, true), "busy: half-read");
});

test("boundary: what came after the answer is half-read, however long ago", () => {
  assert.equal(verdict({ sinceReceivedMs: 996, sinceSentMs: 1_000 }, true), "busy: half-read");
  assert.equal(verdict({ sinceReceivedMs: 99_996, sinceSentMs: 100_000 }, true), "busy: half-read");
});

test("boundary: an answer in a later tick is the last word", () => {
  assert.equal(verdict({ sinceReceivedMs: 1_004, sinceSentMs: 1_000 }), "boundary: earlier");
  assert.equal(verdict({ sinceReceivedMs: 4, sinceSentMs: 0 }), "boundary: earlier");
});

test("boundary: an answer that was sent again says nothing of when it was written", () => {
  assert.equal(verdict({ sinceReceivedMs: 1_004, hasRetransmitted: true }), "ambiguous: same tick");
  assert.equal(verdict({ sinceReceivedMs: 3_004, hasRetransmitted: true }), "boundary: silent");
});

test("boundary: the same tick is ambiguous until it has been silent, or the time is up", () => {
  assert.equal(verdict({}), "ambiguous: same tick");
  assert.equal(verdict({ sinceReceivedMs: 2_999, sinceSentMs: 2_999 }), "ambiguous: same tick");
  assert.equal(verdict({ sinceReceivedMs: 3_000, sinceSentMs: 3_000 }), "boundary: silent");
  assert.equal(verdict({}, true), "boundary: last");
});
