import assert from "node:assert/strict";
import test from "node:test";
import { viewOf } from "../../src/c/bytes.ts";
import { encodeFrame, FrameReader, headerSize } from "../../src/handover/frame.ts";
import { concat, takeoverError } from "./support.ts";

const limit = 1_000;
const hello = { type: "hello", text: "añ日😀" };

/** A frame whose head is these bytes, right or wrong. */
function frameOf(head: string | Uint8Array, bodySize = 0): Uint8Array {
  const bytes = typeof head === "string" ? new TextEncoder().encode(head) : head;
  return concat(headerOf(bytes.length, bodySize), bytes);
}

function headerOf(headSize: number, bodySize = 0): Uint8Array {
  const header = encodeFrame({}).slice(0, headerSize);
  viewOf(header).setUint32(4, headSize);
  viewOf(header).setUint32(8, bodySize);
  return header;
}

test("encodeFrame writes the magic, two sizes and the head", () => {
  const frame = encodeFrame({ type: "é" });
  assert.equal(new TextDecoder().decode(frame.slice(0, 4)), "STKO");
  assert.deepEqual([...frame.slice(4, headerSize)], [0, 0, 0, 13, 0, 0, 0, 0]);
  assert.equal(new TextDecoder().decode(frame.slice(headerSize)), '{"type":"é"}');
});

test("encodeFrame writes the body behind the head, and its size", () => {
  const frame = encodeFrame({ type: "x" }, Uint8Array.of(7, 8));
  assert.deepEqual([...frame.slice(4, headerSize)], [0, 0, 0, 12, 0, 0, 0, 2]);
  assert.deepEqual([...frame.slice(-2)], [7, 8]);
});

test("FrameReader gives the head of a whole frame", () => {
  assert.deepEqual(new FrameReader(limit).push(encodeFrame(hello)), [hello]);
});

test("FrameReader gives the head when the frame is complete, wherever it was split", () => {
  const frame = encodeFrame(hello);
  for (let at = 0; at <= frame.length; at++) {
    const reader = new FrameReader(limit);
    const early = reader.push(frame.slice(0, at));
    assert.deepEqual([...early, ...reader.push(frame.slice(at))], [hello], `split at ${at}`);
    assert.equal(early.length, at === frame.length ? 1 : 0, `split at ${at}`);
  }
});

test("FrameReader takes a frame that comes byte by byte", () => {
  const reader = new FrameReader(limit);
  const heads = [...encodeFrame(hello)].map((byte) => reader.push(Uint8Array.of(byte)));
  assert.deepEqual(heads.pop(), [hello]);
  assert.deepEqual(heads.flat(), []);
});

test("FrameReader gives several frames of one chunk in order", () => {
  const frames = concat(encodeFrame({ type: "a" }), encodeFrame({ type: "b" }), encodeFrame({ type: "c" }));
  assert.deepEqual(new FrameReader(limit).push(frames), [{ type: "a" }, { type: "b" }, { type: "c" }]);
});

test("FrameReader keeps the part of a frame that follows a whole one", () => {
  const reader = new FrameReader(limit);
  const second = encodeFrame({ type: "b" });
  assert.deepEqual(reader.push(concat(encodeFrame({ type: "a" }), second.slice(0, 5))), [{ type: "a" }]);
  assert.deepEqual(reader.push(second.slice(5)), [{ type: "b" }]);
});

test("FrameReader takes an empty chunk", () => {
  const reader = new FrameReader(limit);
  assert.deepEqual(reader.push(new Uint8Array(0)), []);
  assert.deepEqual(reader.push(encodeFrame(hello)), [hello]);
});

test("FrameReader refuses a wrong magic at any of its bytes", () => {
  for (const at of [0, 1, 2, 3]) {
    const frame = encodeFrame(hello);
    frame[at]! ^= 1;
    assert.throws(() => new FrameReader(limit).push(frame), {
      ...takeoverError("ERR_TAKEOVER_PROTOCOL"),
      message: /expected it to start with STKO/,
    });
  }
});

test("FrameReader takes a head of exactly the limit", () => {
  const head = `{"type":"${"x".repeat(limit - 11)}"}`;
  assert.equal(head.length, limit);
  assert.equal(new FrameReader(limit).push(frameOf(head)).length, 1);
});

test("FrameReader refuses a head over the limit by its header alone", () => {
  for (const size of [limit + 1, 0x7fffffff, 0xffffffff]) {
    assert.throws(() => new FrameReader(limit).push(headerOf(size)), {
      ...takeoverError("ERR_TAKEOVER_LIMIT"),
      message: `Cannot read a frame with a head of ${size} bytes: expected at most ${limit} (limit headSize)`,
    });
  }
});

test("FrameReader refuses a body by the header alone", () => {
  for (const size of [1, 0xffffffff]) {
    assert.throws(() => new FrameReader(limit).push(headerOf(2, size)), takeoverError("ERR_TAKEOVER_LIMIT"));
  }
});

test("FrameReader takes a body of exactly the limit", () => {
  const body = Uint8Array.from({ length: limit }, (_, index) => index);
  const [frame] = new FrameReader(limit, limit).read(encodeFrame(hello, body));
  assert.deepEqual(frame!.head, hello);
  assert.deepEqual([...frame!.body], [...body]);
});

test("FrameReader refuses a body over the limit by the header alone, and says which limit", () => {
  for (const size of [limit + 1, 0xffffffff]) {
    assert.throws(() => new FrameReader(limit, limit).read(headerOf(2, size)), {
      ...takeoverError("ERR_TAKEOVER_LIMIT"),
      message: `Cannot read a frame with a body of ${size} bytes: expected at most ${limit} (limit unreadSize)`,
    });
  }
});

test("FrameReader gives a frame with a body when it is whole, wherever it was split", () => {
  const frames = concat(encodeFrame(hello, Uint8Array.of(1, 2, 3)), encodeFrame({ type: "b" }));
  for (let at = 0; at <= frames.length; at++) {
    const reader = new FrameReader(limit, 3);
    const found = [...reader.read(frames.slice(0, at)), ...reader.read(frames.slice(at))];
    assert.deepEqual(found.map(({ head, body }) => [head, [...body]]), [[hello, [1, 2, 3]], [{ type: "b" }, []]], `split at ${at}`);
  }
});

test("FrameReader.isBetween is false from the first byte of a frame to the last of its body", () => {
  const reader = new FrameReader(limit, 3);
  const frame = encodeFrame(hello, Uint8Array.of(1, 2, 3));
  assert.equal(reader.isBetween, true);
  for (const byte of frame.subarray(0, -1)) {
    reader.read(Uint8Array.of(byte));
    assert.equal(reader.isBetween, false);
  }
  assert.equal(reader.read(frame.subarray(-1)).length, 1);
  assert.equal(reader.isBetween, true);
});

test("FrameReader refuses a head that is no JSON", () => {
  for (const head of ["", "{", "{}x", "{'type':1}", "undefined"]) {
    assert.throws(() => new FrameReader(limit).push(frameOf(head)), {
      ...takeoverError("ERR_TAKEOVER_PROTOCOL"),
      message: /its head is not JSON in UTF-8/,
    });
  }
});

test("FrameReader refuses a head that is no object", () => {
  for (const head of ["null", "[]", "1", '"text"', "true"]) {
    assert.throws(() => new FrameReader(limit).push(frameOf(head)), {
      ...takeoverError("ERR_TAKEOVER_PROTOCOL"),
      message: /expected its head to be a JSON object/,
    });
  }
});

test("FrameReader refuses bad UTF-8 inside a text", () => {
  const good = new TextEncoder().encode('{"type":"hello"}');
  for (const bad of [0xff, 0x80, 0xc0, 0xf8]) {
    const head = good.slice();
    head[10] = bad;
    assert.throws(() => new FrameReader(limit).push(frameOf(head)), takeoverError("ERR_TAKEOVER_PROTOCOL"), `${bad}`);
  }
});

test("FrameReader refuses bad UTF-8 at the end of a head", () => {
  const head = concat(new TextEncoder().encode('{"type":"x"}'), Uint8Array.of(0xe2, 0x82));
  assert.throws(() => new FrameReader(limit).push(frameOf(head)), takeoverError("ERR_TAKEOVER_PROTOCOL"));
});

test("FrameReader waits for no more bytes than the header says", () => {
  const reader = new FrameReader(limit);
  assert.deepEqual(reader.push(concat(headerOf(limit), new Uint8Array(limit - 1))), []);
  assert.throws(() => reader.push(new Uint8Array(1)), takeoverError("ERR_TAKEOVER_PROTOCOL"));
});

/** How many bytes are copied from array to array while something runs. */
function bytesCopied(action: () => void): number {
  const { set } = Uint8Array.prototype;
  let size = 0;
  Uint8Array.prototype.set = function (this: Uint8Array, source: ArrayLike<number>, offset?: number) {
    size += source.length;
    set.call(this, source, offset);
  };
  try {
    action();
    return size;
  } finally {
    Uint8Array.prototype.set = set;
  }
}

test("FrameReader copies the bytes of a head that comes in small parts a few times, not once for every part", () => {
  const frame = encodeFrame({ type: "hello", more: "x".repeat(64 * 1024) });
  const reader = new FrameReader(128 * 1024);
  const copied = bytesCopied(() => {
    for (let at = 0; at < frame.length; at += 16) reader.push(frame.subarray(at, at + 16));
  });
  assert.ok(copied <= frame.length * 8, `${copied} bytes were copied for a frame of ${frame.length}`);
});

test("FrameReader makes __proto__ a field like any other", () => {
  const [head] = new FrameReader(limit).push(frameOf('{"__proto__":{"type":"hello"}}'));
  assert.equal(head!.type, undefined);
});
