/**
 * Frames that no peer of good will sends, from seeds that repeat them.
 *
 * @module
 */

import assert from "node:assert/strict";
import process from "node:process";
import test from "node:test";
import { decodeRights, encodeRights } from "../../src/c/cmsg.ts";
import { Conversation } from "../../src/handover/conversation.ts";
import { TakeoverError } from "../../src/errors.ts";
import { encodeFrame, type Frame, type FrameHead, FrameReader, headerSize } from "../../src/handover/frame.ts";
import { limitsFrom } from "../../src/limits.ts";
import {
  parseBatch,
  parseHello,
  parseJoin,
  parseLease,
  parseOffer,
  parseReady,
  parseRefusal,
} from "../../src/handover/messages.ts";
import { parseKept, parseMove, parseTakes, parseYours } from "../../src/handover/move_messages.ts";
import { Protocol, type Role } from "../../src/handover/protocol.ts";
import { decodeSockaddr, encodeSockaddr } from "../../src/c/sockaddr.ts";
import { concat, FakeStream, linux, seeded } from "./support.ts";

const frameCount = 20_000;
const limits = limitsFrom({ headSize: 64 * 1024, endpointCount: 8 });
const token = "0123456789abcdef0123456789abcdef";
const web = { kind: "listener", name: "web", address: { family: "inet", hostname: "127.0.0.1", port: 80 }, cookie: "" };
const control = { kind: "control", name: "", address: { family: "unix", path: "/run/x" }, cookie: "0000000000000001" };

const moved = { cookie: "0000000000000002", state: { count: 7 }, unread: 3 };
const move = { type: "move", number: 1, name: "web", kind: "raw", connections: [moved, { ...moved, state: null, unread: 0 }] };

/** One good frame of every type: what is mutated. */
const heads: readonly object[] = [
  {
    ...{ type: "hello", versions: { min: 1, max: 1 }, token, instance: token },
    ...{ pid: 1, runtime: "node 26", room: 9, require: ["web"] },
  },
  { type: "join", token },
  { type: "offer", version: 1, pid: 1, runtime: "bun 1", generation: 1, endpoints: [control, web] },
  { type: "batch", number: 0, count: 2 },
  { type: "received", number: 0, count: 2 },
  { type: "ready", claimed: ["web"] },
  { type: "lease", silenceMs: 5_000 },
  { type: "alive" },
  { type: "settled" },
  { type: "released" },
  { type: "refuse", code: "ERR_TAKEOVER_BUSY", message: "busy" },
  { type: "abort", code: "ERR_TAKEOVER_LOST", message: "lost" },
  { type: "takes", room: 100, parties: [{ name: "web", kind: "raw" }, { name: "web", kind: "http" }] },
  move,
  { type: "kept", number: 1, room: 98, refused: [{ index: 1, code: "ERR_TAKEOVER_ADOPT", message: "no" }] },
  { type: "yours", number: 1 },
  { type: "back" },
  { type: "done" },
];

/** Values that a field does not expect. */
const values: readonly unknown[] = [
  ...[null, true, -1, 0.5, 2 ** 53, 1e308, "", "\u0000", "\ud800", "x".repeat(5_000), token],
  ...[[], {}, [[]], [null], new Array(100).fill("web"), { type: "hello" }, { family: "unix", path: "x".repeat(2_000) }],
];

const parsers: readonly ((head: FrameHead, bodySize: number) => unknown)[] = [
  (head) => parseHello(head, limits),
  parseJoin,
  (head) => parseOffer(head, limits),
  parseBatch,
  (head) => parseReady(head, limits),
  parseLease,
  parseRefusal,
  (head) => parseTakes(head, limits),
  (head, bodySize) => parseMove(head, bodySize, 253, limits),
  (head) => parseKept(head, 2),
  parseYours,
];

type Random = ReturnType<typeof seeded>;

function pick<T>(random: Random, from: readonly T[]): T {
  return from[random.below(from.length)]!;
}

/** Bytes from a peer: a good frame, one with wrong fields, one with wrong bytes, a part, or noise. */
function frame(random: Random): Uint8Array {
  const good = encoded(pick(random, heads));
  switch (random.below(6)) {
    case 0:
      return good;
    case 1:
      return encoded(wrongFields(random, pick(random, heads)));
    case 2:
      return wrongBytes(random, good);
    case 3:
      return good.slice(0, random.below(good.length));
    case 4:
      return concat(good.slice(0, headerSize), wrongBytes(random, good.slice(headerSize)));
    default:
      return Uint8Array.from({ length: random.below(64) }, () => random.below(256));
  }
}

/** Only a move has a body. */
function encoded(head: object): Uint8Array {
  return encodeFrame(head, new Uint8Array("connections" in head ? moved.unread : 0));
}

/** One to three fields at any depth with values of another kind, or without. */
function wrongFields(random: Random, head: object): object {
  const copy = structuredClone(head);
  for (let count = 1 + random.below(3); count > 0; count--) {
    let at = copy as Record<string, unknown>;
    let key = pick(random, Object.keys(at));
    for (let inner = at[key]; random.below(2) === 0 && hasFields(inner); inner = at[key]) {
      at = inner;
      key = pick(random, Object.keys(at));
    }
    if (random.below(4) === 0) delete at[key];
    else at[key] = structuredClone(pick(random, values));
  }
  return copy;
}

function hasFields(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && Object.keys(value).length > 0;
}

function wrongBytes(random: Random, bytes: Uint8Array): Uint8Array {
  const copy = bytes.slice();
  for (let count = 1 + random.below(4); count > 0; count--) copy[random.below(copy.length)] = random.below(256);
  return copy;
}

/** Runs it; anything but a TakeoverError goes through. */
function attempt<T>(action: () => T): T | null {
  try {
    return action();
  } catch (error) {
    if (error instanceof TakeoverError) return null;
    throw error;
  }
}

test("FrameReader, the parsers and Protocol throw nothing but TakeoverError at 20,000 malformed frames", () => {
  const random = seeded(1);
  const roles: readonly Role[] = ["incumbent", "successor"];
  const seen = { read: 0, refused: 0, parsed: 0 };
  for (let count = 0; count < frameCount; count++) {
    const found = attempt(() => new FrameReader(limits.headSize, 16).read(frame(random)));
    if (found === null) seen.refused++;
    for (const { head, body } of found ?? []) {
      seen.read++;
      attempt(() => new Protocol().advance(pick(random, roles), head.type));
      for (const parse of parsers) if (attempt(() => parse(head, body.length)) !== null) seen.parsed++;
    }
  }
  // Each of the three ways was taken often, so that this test means something.
  assert.ok(seen.read > frameCount / 10 && seen.refused > frameCount / 10 && seen.parsed > frameCount / 10);
});

test("FrameReader gives the same frames however a stream of 2,000 is cut", () => {
  const random = seeded(2);
  const sent = Array.from({ length: 2_000 }, () => pick(random, heads));
  const stream = concat(...sent.map((head) => encodeFrame(head)));
  const reader = new FrameReader(limits.headSize);
  const received: FrameHead[] = [];
  for (let at = 0; at < stream.length;) {
    const size = 1 + random.below(random.below(8) === 0 ? 4_000 : 40);
    received.push(...reader.push(stream.slice(at, at + size)));
    at += size;
  }
  assert.deepEqual(received, sent);
});

test("FrameReader gives the same bodies however a stream of 500 moves is cut", () => {
  const random = seeded(5);
  const sent = Array.from({ length: 500 }, () => {
    const body = Uint8Array.from({ length: random.below(300) }, () => random.below(256));
    return { head: { ...move, connections: [{ ...moved, unread: body.length }] }, body };
  });
  const stream = concat(...sent.map(({ head, body }) => encodeFrame(head, body)));
  const reader = new FrameReader(limits.headSize, 300);
  const received: Frame[] = [];
  for (let at = 0; at < stream.length;) {
    const size = 1 + random.below(random.below(8) === 0 ? 4_000 : 40);
    received.push(...reader.read(stream.slice(at, at + size)));
    at += size;
  }
  assert.deepEqual(received.map(({ head, body }) => ({ head, body: [...body] })), sent.map(({ head, body }) => ({ head, body: [...body] })));
});

test("Conversation fails with a TakeoverError and never throws at 2,000 streams of malformed frames", async () => {
  const random = seeded(3);
  for (let count = 0; count < 2_000; count++) {
    const stream = new FakeStream();
    const conversation = new Conversation(stream, pick(random, ["incumbent", "successor"] as const), limits);
    for (let more = 0; more < 4; more++) stream.arrive(frame(random));
    stream.close();
    const error = await conversation.failed.catch((reason: unknown) => reason);
    assert.ok(error instanceof TakeoverError, String(error));
    conversation.refuse(error);
  }
});

test("FrameReader keeps nothing of the frames of a long stream", () => {
  const reader = new FrameReader(limits.headSize);
  const frames = concat(...heads.map((head) => encodeFrame(head)));
  const streamSize = 128 * 1024 * 1024;
  const before = process.memoryUsage().rss;
  let at = 0;
  for (let size = 0; size < streamSize; size += 64 * 1024) {
    // A new buffer for every chunk, cut where no frame ends.
    const chunk = new Uint8Array(64 * 1024);
    for (let filled = 0; filled < chunk.length;) {
      const part = frames.subarray(at, at + chunk.length - filled);
      chunk.set(part, filled);
      filled += part.length;
      at = (at + part.length) % frames.length;
    }
    reader.push(chunk);
  }
  assert.ok(process.memoryUsage().rss - before < streamSize / 2);
});

test("decodeRights and decodeSockaddr throw nothing at 20,000 malformed buffers", () => {
  const random = seeded(4);
  const controls = [encodeRights(linux, [3, 4, 5]), concat(encodeRights(linux, [3]), encodeRights(linux, [4]))];
  const addresses = [
    encodeSockaddr(linux, { family: "inet6", hostname: "::1", port: 1 }),
    encodeSockaddr(linux, { family: "unix", path: "/run/x" }),
  ];
  for (let count = 0; count < frameCount; count++) {
    const wrong = wrongBytes(random, pick(random, controls));
    assert.ok(decodeRights(linux, wrong.slice(0, random.below(wrong.length + 1))).length <= 8);
    const address = wrongBytes(random, pick(random, addresses));
    decodeSockaddr(linux, address.slice(0, random.below(address.length + 1)));
  }
});
