import assert from "node:assert/strict";
import test from "node:test";
import { Conversation, within } from "../../src/handover/conversation.ts";
import { PeerLostError, TakeoverError } from "../../src/errors.ts";
import { limitsFrom } from "../../src/limits.ts";
import type { Role } from "../../src/handover/protocol.ts";
import { FakeStream, takeoverError } from "./support.ts";

const limits = limitsFrom({ headSize: 10_000 });
/** Far longer than anything here takes. */
const longMs = 60_000;
const shortMs = 5;

function begin(role: Role): { stream: FakeStream; conversation: Conversation } {
  const stream = new FakeStream();
  return { stream, conversation: new Conversation(stream, role, limits) };
}

/** A successor that has said hello. */
function greeting(): { stream: FakeStream; conversation: Conversation } {
  const begun = begin("successor");
  begun.conversation.send({ type: "hello" });
  return begun;
}

test("Conversation.send writes a frame and moves on", () => {
  const { stream, conversation } = begin("successor");
  assert.equal(conversation.state, "connected");
  conversation.send({ type: "hello" });
  assert.deepEqual(stream.written, [{ type: "hello" }]);
  assert.equal(conversation.state, "greeted");
});

test("Conversation.send throws, and writes nothing, out of turn", () => {
  const { stream, conversation } = begin("successor");
  assert.throws(() => conversation.send({ type: "ready" }), takeoverError("ERR_TAKEOVER_PROTOCOL"));
  assert.throws(() => conversation.send({ type: "offer" }), takeoverError("ERR_TAKEOVER_PROTOCOL"));
  assert.deepEqual(stream.written, []);
  assert.equal(conversation.state, "connected");
});

test("Conversation.receive gives a frame that comes later", async () => {
  const { stream, conversation } = begin("incumbent");
  const received = conversation.receive(longMs, "helloMs");
  stream.arriveFrames({ type: "hello", pid: 1 });
  assert.deepEqual(await received, { type: "hello", pid: 1 });
  assert.equal(conversation.state, "greeted");
});

test("Conversation.receive gives a frame that came before it was waited for", async () => {
  const { stream, conversation } = begin("incumbent");
  stream.arriveFrames({ type: "hello" });
  assert.deepEqual(await conversation.receive(longMs, "helloMs"), { type: "hello" });
});

test("Conversation.receive gives the frames of one chunk in order, one a call", async () => {
  const { stream, conversation } = greeting();
  const first = conversation.receive(longMs, "offerMs");
  stream.arriveFrames({ type: "offer" }, { type: "batch", number: 0 });
  assert.deepEqual(await first, { type: "offer" });
  assert.deepEqual(await conversation.receive(longMs, "batchMs"), { type: "batch", number: 0 });
});

test("Conversation.receive waits without a limit when it is 0", async () => {
  const { stream, conversation } = begin("incumbent");
  const received = conversation.receive(0, "helloMs");
  await new Promise((resolve) => setTimeout(resolve, shortMs));
  stream.arriveFrames({ type: "hello" });
  assert.deepEqual(await received, { type: "hello" });
});

test("Conversation.receive throws when the time is up, and names the limit", async () => {
  const { conversation } = begin("incumbent");
  await assert.rejects(conversation.receive(shortMs, "helloMs"), {
    ...takeoverError("ERR_TAKEOVER_TIMEOUT"),
    message: /^Waited 5 ms for the successor's answer \(limit helloMs\)/,
  });
});

test("Conversation.receive throws ERR_TAKEOVER_LOST when the stream closes", async () => {
  const { stream, conversation } = begin("successor");
  const received = conversation.receive(longMs, "offerMs");
  stream.close();
  await assert.rejects(received, takeoverError("ERR_TAKEOVER_LOST"));
  await assert.rejects(conversation.receive(longMs, "offerMs"), takeoverError("ERR_TAKEOVER_LOST"));
  assert.equal(conversation.open, false);
});

test("Conversation.receive gives the frames that came before the stream closed", async () => {
  const { stream, conversation } = greeting();
  stream.arriveFrames({ type: "offer" }, { type: "refuse", code: "ERR_TAKEOVER_BUSY", message: "busy" });
  stream.close();
  assert.deepEqual(await conversation.receive(longMs, "offerMs"), { type: "offer" });
  await assert.rejects(conversation.receive(longMs, "batchMs"), takeoverError("ERR_TAKEOVER_BUSY"));
  await assert.rejects(conversation.receive(longMs, "batchMs"), takeoverError("ERR_TAKEOVER_LOST"));
});

test("Conversation.receive throws what the incumbent refused with", async () => {
  const { stream, conversation } = greeting();
  stream.arriveFrames({ type: "refuse", code: "ERR_TAKEOVER_VERSION", message: "older" });
  await assert.rejects(conversation.receive(longMs, "offerMs"), {
    ...takeoverError("ERR_TAKEOVER_VERSION"),
    message: "older",
  });
  assert.equal(conversation.state, "ended");
});

test("Conversation.receive throws what the successor aborted with", async () => {
  const { stream, conversation } = begin("incumbent");
  stream.arriveFrames({ type: "hello" }, { type: "abort", code: "ERR_TAKEOVER_STATE", message: "closed" });
  await conversation.receive(longMs, "helloMs");
  await assert.rejects(conversation.receive(longMs, "readyMs"), takeoverError("ERR_TAKEOVER_STATE"));
});

test("Conversation.receive throws ERR_TAKEOVER_PROTOCOL for a refusal that is malformed", async () => {
  const { stream, conversation } = greeting();
  stream.arriveFrames({ type: "refuse", code: 1 });
  await assert.rejects(conversation.receive(longMs, "offerMs"), takeoverError("ERR_TAKEOVER_PROTOCOL"));
});

test("Conversation.receive throws for a frame out of turn, and takes nothing after it", async () => {
  const { stream, conversation } = greeting();
  const received = conversation.receive(longMs, "offerMs");
  stream.arriveFrames({ type: "lease" });
  stream.arriveFrames({ type: "offer" });
  await assert.rejects(received, takeoverError("ERR_TAKEOVER_PROTOCOL"));
  await assert.rejects(conversation.receive(longMs, "offerMs"), takeoverError("ERR_TAKEOVER_PROTOCOL"));
  assert.equal(conversation.open, false);
});

test("Conversation.receive throws for a frame that only this side may send", async () => {
  const { stream, conversation } = greeting();
  stream.arriveFrames({ type: "abort", code: "ERR_TAKEOVER_BUSY", message: "" });
  await assert.rejects(conversation.receive(longMs, "offerMs"), takeoverError("ERR_TAKEOVER_PROTOCOL"));
});

test("Conversation.receive throws for bytes that are no frame", async () => {
  const { stream, conversation } = begin("incumbent");
  stream.arrive(new TextEncoder().encode("GET / HTTP/1.1\r\n\r\n"));
  await assert.rejects(conversation.receive(longMs, "helloMs"), takeoverError("ERR_TAKEOVER_PROTOCOL"));
});

test("Conversation.receive throws for a head over the limit", async () => {
  const { stream, conversation } = begin("incumbent");
  stream.arriveFrames({ type: "hello", more: "x".repeat(10_000) });
  await assert.rejects(conversation.receive(longMs, "helloMs"), takeoverError("ERR_TAKEOVER_LIMIT"));
});

test("Conversation.receive throws a PeerLostError for a side that has gone, and not for one that says so", async () => {
  const gone = greeting();
  gone.stream.close();
  await assert.rejects(gone.conversation.receive(longMs, "offerMs"), PeerLostError);
  const refusing = greeting();
  refusing.stream.arriveFrames({ type: "refuse", code: "ERR_TAKEOVER_LOST", message: "said so" });
  await assert.rejects(refusing.conversation.receive(longMs, "offerMs"), (error: Error) => {
    assert.ok(!(error instanceof PeerLostError));
    assert.equal(error.message, "said so");
    return true;
  });
});

test("Conversation.send throws what the other side has refused with meanwhile, and writes nothing", () => {
  const { stream, conversation } = begin("successor");
  stream.arriveFrames({ type: "refuse", code: "ERR_TAKEOVER_BUSY", message: "try again" });
  assert.throws(() => conversation.send({ type: "hello" }), takeoverError("ERR_TAKEOVER_BUSY"));
  assert.deepEqual(stream.written, []);
});

test("Conversation.refuse sends a refuse from the incumbent, and ends", () => {
  const { stream, conversation } = begin("incumbent");
  conversation.refuse(new TakeoverError("ERR_TAKEOVER_BUSY", "try again"));
  assert.deepEqual(stream.written, [{ type: "refuse", code: "ERR_TAKEOVER_BUSY", message: "try again" }]);
  assert.equal(stream.ended, true);
  assert.equal(conversation.open, false);
  assert.equal(conversation.state, "ended");
});

test("Conversation.refuse sends an abort from the successor", () => {
  const { stream, conversation } = greeting();
  conversation.refuse(new TakeoverError("ERR_TAKEOVER_DESCRIPTOR", "no socket"));
  assert.deepEqual(stream.written[1], { type: "abort", code: "ERR_TAKEOVER_DESCRIPTOR", message: "no socket" });
});

test("Conversation.refuse gives an error without a code ERR_TAKEOVER_PROTOCOL, and cuts its message", () => {
  const { stream, conversation } = begin("incumbent");
  conversation.refuse(new Error("x".repeat(5_000)));
  assert.deepEqual(stream.written, [{ type: "refuse", code: "ERR_TAKEOVER_PROTOCOL", message: "x".repeat(1_024) }]);
});

test("Conversation.refuse still tells the other side after its frame out of turn", () => {
  const { stream, conversation } = begin("incumbent");
  stream.arriveFrames({ type: "ready" });
  conversation.refuse(new TakeoverError("ERR_TAKEOVER_PROTOCOL", "out of turn"));
  assert.equal(stream.written.length, 1);
  assert.equal(stream.ended, true);
});

test("Conversation.refuse says nothing to a stream that has closed", () => {
  const { stream, conversation } = begin("incumbent");
  stream.close();
  conversation.refuse(new TakeoverError("ERR_TAKEOVER_BUSY", ""));
  assert.deepEqual(stream.written, []);
});

test("Conversation.refuse says nothing more to a side that has refused", () => {
  const { stream, conversation } = greeting();
  stream.arriveFrames({ type: "refuse", code: "ERR_TAKEOVER_BUSY", message: "" });
  conversation.refuse(new TakeoverError("ERR_TAKEOVER_BUSY", ""));
  assert.equal(stream.written.length, 1);
  assert.equal(stream.ended, true);
});

test("Conversation.refuse speaks once", () => {
  const { stream, conversation } = begin("incumbent");
  conversation.refuse(new TakeoverError("ERR_TAKEOVER_BUSY", "first"));
  conversation.refuse(new TakeoverError("ERR_TAKEOVER_BUSY", "second"));
  assert.equal(stream.written.length, 1);
});

test("Conversation.end ends the stream without a word, and what comes then is ignored", async () => {
  const { stream, conversation } = begin("incumbent");
  conversation.end();
  stream.arriveFrames({ type: "hello" });
  assert.deepEqual([stream.ended, stream.destroyed, stream.written.length], [true, false, 0]);
  assert.equal(conversation.state, "connected");
  await assert.rejects(conversation.receive(longMs, "helloMs"), takeoverError("ERR_TAKEOVER_LOST"));
});

test("Conversation.destroy ends the stream at once", () => {
  const { stream, conversation } = begin("incumbent");
  conversation.destroy();
  assert.equal(stream.destroyed, true);
  assert.equal(conversation.open, false);
});

test("Conversation.failed rejects when the stream closes", async () => {
  const { stream, conversation } = begin("incumbent");
  stream.close();
  await assert.rejects(conversation.failed, takeoverError("ERR_TAKEOVER_LOST"));
});

test("Conversation.failed rejects with the first error", async () => {
  const { stream, conversation } = begin("incumbent");
  stream.arriveFrames({ type: "ready" });
  stream.close();
  await assert.rejects(conversation.failed, takeoverError("ERR_TAKEOVER_PROTOCOL"));
});

test("within gives what was waited for", async () => {
  assert.equal(await within(Promise.resolve(7), longMs, "batchMs", "seven"), 7);
});

test("within passes a rejection through", async () => {
  const failed = Promise.reject(new TakeoverError("ERR_TAKEOVER_BUSY", ""));
  await assert.rejects(within(failed, longMs, "batchMs", "nothing"), takeoverError("ERR_TAKEOVER_BUSY"));
});

test("within throws when the time is up, and says what it waited for", async () => {
  await assert.rejects(within(new Promise(() => {}), shortMs, "batchMs", "the batch"), {
    ...takeoverError("ERR_TAKEOVER_TIMEOUT"),
    message: /^Waited 5 ms for the batch \(limit batchMs\)/,
  });
});
