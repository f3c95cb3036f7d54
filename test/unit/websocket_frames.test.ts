/** Where frames of a client end (RFC 6455, section 5). */

import assert from "node:assert/strict";
import test from "node:test";
import {
  answerSize,
  FrameScanner,
  frameSize,
  isAnswer,
  isContinuation,
  pingFrame,
  tokenSize,
  utf8Size,
} from "../../src/connections/websocket_frames.ts";

/** Masked with zeros, so that payloads can be read here. */
function clientFrame(opcode: number, size: number, isFinal = true): number[] {
  const head = size < 126
    ? [0x80 | size]
    : size < 65_536
    ? [0xfe, size >> 8, size & 255]
    : [0xff, 0, 0, 0, 0, 0, size >> 16, size >> 8 & 255, size & 255];
  return [(isFinal ? 0x80 : 0) | opcode, ...head, 0, 0, 0, 0, ...new Array<number>(size).fill(7)];
}

test("frameSize counts the mask and as many bytes of size as a payload needs", () => {
  assert.deepEqual([0, 125, 126, 65_535, 65_536].map(frameSize), [6, 131, 134, 65_543, 65_550]);
  for (const size of [0, 125, 126, 65_535, 65_536]) assert.equal(clientFrame(2, size).length, frameSize(size));
});

test("utf8Size is what TextEncoder makes", () => {
  const texts = ["", "hello", "h\u00e9llo", "\u07ff\u0800\uffff", "\u{10000}\u{10ffff}", "a\u20acb\u{1f600}c"];
  assert.deepEqual(texts.map(utf8Size), texts.map((text) => new TextEncoder().encode(text).length));
});

/** What a scanner says after each byte. */
function between(bytes: readonly number[]): boolean[] {
  const scanner = new FrameScanner();
  return bytes.map((byte) => {
    scanner.push(Uint8Array.of(byte));
    return scanner.isBetween;
  });
}

test("FrameScanner is between two messages at the end of each frame, and nowhere else", () => {
  const small = clientFrame(1, 3);
  const medium = clientFrame(2, 200);
  assert.deepEqual(between([...small, ...medium]), [
    ...small.map((_, at) => at === small.length - 1),
    ...medium.map((_, at) => at === medium.length - 1),
  ]);
});

test("FrameScanner takes an empty frame, and one with 64 bits of size", () => {
  const scanner = new FrameScanner();
  scanner.push(Uint8Array.from([...clientFrame(1, 0), ...clientFrame(2, 70_000)]));
  assert.deepEqual([scanner.isBetween, scanner.count, scanner.size], [true, 2, frameSize(0) + frameSize(70_000)]);
});

test("FrameScanner is in the middle of a message until its last frame, also behind a ping", () => {
  const scanner = new FrameScanner();
  const states: [boolean, number][] = [];
  const frames = [
    clientFrame(1, 2, false),
    clientFrame(9, 4),
    clientFrame(0, 0, false),
    clientFrame(0, 5),
    clientFrame(10, 0),
  ];
  for (const frame of frames) {
    scanner.push(Uint8Array.from(frame));
    states.push([scanner.isBetween, scanner.count]);
  }
  assert.deepEqual(states, [[false, 0], [false, 1], [false, 1], [true, 2], [true, 3]]);
});

test("FrameScanner counts the same however the bytes are cut", () => {
  const bytes = Uint8Array.from([
    ...clientFrame(1, 3),
    ...clientFrame(9, 0),
    ...clientFrame(2, 130),
    ...clientFrame(1, 1),
  ]);
  for (let cut = 0; cut <= bytes.length; cut++) {
    const scanner = new FrameScanner();
    scanner.push(bytes.subarray(0, cut));
    scanner.push(bytes.subarray(cut));
    assert.deepEqual([scanner.isBetween, scanner.count, scanner.size], [true, 4, bytes.length]);
  }
});

test("FrameScanner is between nothing any more once the client closes", () => {
  const scanner = new FrameScanner();
  scanner.push(Uint8Array.from(clientFrame(8, 2)));
  assert.equal(scanner.isBetween, false);
});

const token = Uint8Array.from({ length: tokenSize }, (_, index) => 3 * index);

/** The client's pong, masked. */
function answer(payload: Uint8Array): Uint8Array {
  const mask = [1, 2, 3, 200];
  return Uint8Array.from([0x8a, 0x80 | payload.length, ...mask, ...payload.map((byte, at) => byte ^ mask[at % 4]!)]);
}

test("pingFrame is a server's, which is not masked", () => {
  assert.deepEqual([...pingFrame(token)], [0x89, tokenSize, ...token]);
});

test("isAnswer knows the pong with the same bytes", () => {
  const whole = answer(token);
  assert.equal(whole.length, answerSize);
  assert.equal(isAnswer(whole, token), true);
  assert.equal(isAnswer(Uint8Array.from([...whole, 0x81]), token), true);
  for (let size = 0; size < whole.length; size++) assert.equal(isAnswer(whole.subarray(0, size), token), null);
});

test("isAnswer knows another frame by its first byte that differs", () => {
  const whole = answer(token);
  for (let at = 0; at < whole.length; at++) {
    // Another mask is another payload.
    const other = whole.with(at, whole[at]! ^ 0x40);
    assert.equal(isAnswer(other, token), false, `byte ${at}`);
  }
  assert.equal(isAnswer(Uint8Array.of(0x81), token), false);
});

test("isContinuation tells the frames that continue a message", () => {
  assert.deepEqual([0x00, 0x80, 0x01, 0x81, 0x82, 0x89, 0x8a].map(isContinuation), [
    true,
    true,
    false,
    false,
    false,
    false,
    false,
  ]);
});
