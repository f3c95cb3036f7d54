import assert from "node:assert/strict";
import test from "node:test";
import { allocate, readField, toHex, untilNul, viewOf, writeField } from "../../src/c/bytes.ts";

test("allocate gives zeroed bytes on a buffer of their own", () => {
  for (const size of [1, 8, 63, 64, 65, 4096]) {
    const bytes = allocate(size);
    assert.equal(bytes.length, size);
    assert.equal(bytes.byteOffset, 0);
    assert.equal(bytes.buffer.byteLength, size);
    assert.ok(bytes.every((byte) => byte === 0));
  }
});

test("allocate gives one byte for none, so that there is an address", () => {
  assert.equal(allocate(0).length, 1);
});

test("viewOf sees the part and not the whole buffer", () => {
  const whole = Uint8Array.of(1, 2, 3, 4, 5);
  const view = viewOf(whole.subarray(1, 4));
  assert.equal(view.byteLength, 3);
  assert.equal(view.getUint8(0), 2);
});

test("writeField writes little-endian at the base plus the offset, and nothing else", () => {
  const bytes = allocate(12);
  writeField(viewOf(bytes), { offset: 2, size: 4 }, 0x04030201, 3);
  assert.deepEqual([...bytes], [0, 0, 0, 0, 0, 1, 2, 3, 4, 0, 0, 0]);
});

test("writeField writes one, two and eight bytes as the field's size says", () => {
  const bytes = allocate(16);
  const view = viewOf(bytes);
  writeField(view, { offset: 0, size: 1 }, 0xfe);
  writeField(view, { offset: 2, size: 2 }, 0xfedc);
  writeField(view, { offset: 8, size: 8 }, 5);
  assert.deepEqual([...bytes], [0xfe, 0, 0xdc, 0xfe, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0]);
});

test("writeField keeps every bit of an address", () => {
  const view = viewOf(allocate(8));
  writeField(view, { offset: 0, size: 8 }, 0xfedc_ba98_7654_3211n);
  assert.equal(view.getBigUint64(0, true), 0xfedc_ba98_7654_3211n);
});

test("readField reads back what writeField wrote, at every size", () => {
  for (const [size, value] of [[1, 0xff], [2, 0xffff], [4, 0xffffffff], [8, 2 ** 53 - 1]] as const) {
    const view = viewOf(allocate(16));
    writeField(view, { offset: 3, size }, value, 4);
    assert.equal(readField(view, { offset: 3, size }, 4), value);
  }
});

test("toHex gives two lower-case digits a byte", () => {
  assert.equal(toHex(Uint8Array.of(0, 10, 255)), "000aff");
  assert.equal(toHex(new Uint8Array(0)), "");
});

test("untilNul ends before the first NUL", () => {
  assert.deepEqual([...untilNul(Uint8Array.of(1, 2, 0, 3, 0))], [1, 2]);
  assert.deepEqual([...untilNul(Uint8Array.of(0))], []);
});

test("untilNul gives all bytes when there is no NUL", () => {
  assert.deepEqual([...untilNul(Uint8Array.of(1, 2))], [1, 2]);
  assert.deepEqual([...untilNul(new Uint8Array(0))], []);
});
