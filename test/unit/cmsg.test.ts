import assert from "node:assert/strict";
import test from "node:test";
import type { Abi } from "../../src/c/abi.ts";
import { allocate, viewOf, writeField } from "../../src/c/bytes.ts";
import { cmsgAlign, cmsgLen, cmsgSpace, decodeControl, decodeRights, encodeRights } from "../../src/c/cmsg.ts";
import { concat, darwin, linux } from "./support.ts";

/** More than 253 descriptors take up. */
const lengths = Array.from({ length: 1_100 }, (_, length) => length);
const scmCredentials = 2;

/** One control message of any kind, padded as the kernel pads it. */
function controlMessage(abi: Abi, level: number, type: number, data: Uint8Array): Uint8Array {
  const bytes = allocate(cmsgSpace(abi, data.length));
  const view = viewOf(bytes);
  writeField(view, abi.cmsghdr.len, cmsgLen(abi, data.length));
  writeField(view, abi.cmsghdr.level, level);
  writeField(view, abi.cmsghdr.type, type);
  bytes.set(data, cmsgLen(abi, 0));
  return bytes;
}

/** The same control data with another `cmsg_len` in its first header. */
function withLength(abi: Abi, control: Uint8Array, length: number | bigint): Uint8Array {
  const copy = control.slice();
  writeField(viewOf(copy), abi.cmsghdr.len, length);
  return copy;
}

function alignsUp(abi: Abi): void {
  for (const length of lengths) {
    const aligned = cmsgAlign(abi, length);
    assert.ok(aligned >= length && aligned < length + abi.cmsghdr.align && aligned % abi.cmsghdr.align === 0);
  }
}

test("cmsgAlign gives the next multiple of the alignment on Linux", () => alignsUp(linux));

test("cmsgAlign gives the next multiple of the alignment on macOS", () => alignsUp(darwin));

function holdsHeaderAndData(abi: Abi): void {
  for (const length of lengths) {
    assert.ok(cmsgLen(abi, length) >= abi.cmsghdr.size + length);
    assert.ok(cmsgSpace(abi, length) >= cmsgLen(abi, length));
    assert.ok(cmsgSpace(abi, length) < cmsgLen(abi, length) + abi.cmsghdr.align);
    assert.ok(cmsgSpace(abi, length + 1) >= cmsgSpace(abi, length));
    assert.equal(cmsgSpace(abi, length) % abi.cmsghdr.align, 0);
  }
}

test("cmsgSpace holds cmsgLen, which holds the header and the data, on Linux", () => holdsHeaderAndData(linux));

test("cmsgSpace holds cmsgLen, which holds the header and the data, on macOS", () => holdsHeaderAndData(darwin));

test("cmsgLen and cmsgSpace give the numbers that C gives", () => {
  assert.deepEqual([cmsgLen(linux, 0), cmsgLen(linux, 4), cmsgSpace(linux, 4), cmsgSpace(linux, 12)], [16, 20, 24, 32]);
  assert.deepEqual([cmsgLen(darwin, 0), cmsgLen(darwin, 4), cmsgSpace(darwin, 4)], [12, 16, 16]);
});

test("encodeRights lays a message out as Linux expects it", () => {
  assert.deepEqual([...encodeRights(linux, [3, 260, 5])], [
    ...[28, 0, 0, 0, 0, 0, 0, 0],
    ...[1, 0, 0, 0, 1, 0, 0, 0],
    ...[3, 0, 0, 0, 4, 1, 0, 0, 5, 0, 0, 0],
    ...[0, 0, 0, 0],
  ]);
});

test("encodeRights lays a message out as macOS expects it", () => {
  assert.deepEqual([...encodeRights(darwin, [3])], [16, 0, 0, 0, 0xff, 0xff, 0, 0, 1, 0, 0, 0, 3, 0, 0, 0]);
});

test("encodeRights gives no bytes for no descriptors", () => {
  assert.equal(encodeRights(linux, []).length, 0);
});

test("encodeRights takes 253 descriptors", () => {
  const descriptors = Array.from({ length: 253 }, (_, index) => index + 3);
  const control = encodeRights(linux, descriptors);
  assert.equal(control.length, cmsgSpace(linux, 253 * 4));
  assert.deepEqual(decodeRights(linux, control), descriptors);
});

test("encodeRights refuses 254 descriptors, and says what to do", () => {
  assert.throws(() => encodeRights(linux, new Array(254).fill(0)), {
    name: "RangeError",
    message: "Cannot send 254 descriptors in one message: expected at most 253; send the rest in a further message",
  });
});

test("encodeRights refuses what is no descriptor", () => {
  for (const wrong of [-1, 0.5, NaN, Infinity]) {
    assert.throws(() => encodeRights(linux, [3, wrong]), { name: "RangeError", message: /expected a descriptor/ });
  }
});

test("decodeRights gives back what encodeRights took, in order", () => {
  assert.deepEqual(decodeRights(linux, encodeRights(linux, [9, 0, 2147483647])), [9, 0, 2147483647]);
  assert.deepEqual(decodeRights(darwin, encodeRights(darwin, [9, 0, 2147483647])), [9, 0, 2147483647]);
});

test("decodeRights collects the descriptors of two control messages", () => {
  const linuxControl = concat(encodeRights(linux, [3]), encodeRights(linux, [4, 5]));
  const darwinControl = concat(encodeRights(darwin, [3]), encodeRights(darwin, [4, 5]));
  assert.deepEqual(decodeRights(linux, linuxControl), [3, 4, 5]);
  assert.deepEqual(decodeRights(darwin, darwinControl), [3, 4, 5]);
});

test("decodeRights passes over messages of another type or level", () => {
  const { SOL_SOCKET, SCM_RIGHTS } = linux.constants;
  const control = concat(
    controlMessage(linux, SOL_SOCKET, scmCredentials, new Uint8Array(12).fill(7)),
    encodeRights(linux, [3]),
    controlMessage(linux, SOL_SOCKET + 1, SCM_RIGHTS, new Uint8Array(8).fill(8)),
    encodeRights(linux, [4]),
  );
  assert.deepEqual(decodeRights(linux, control), [3, 4]);
});

test("decodeRights finds nothing in no control data", () => {
  assert.deepEqual(decodeRights(linux, new Uint8Array(0)), []);
  assert.deepEqual(decodeControl(linux, new Uint8Array(0)), []);
});

test("decodeRights finds nothing in an empty array", () => {
  assert.deepEqual(decodeRights(linux, withLength(linux, encodeRights(linux, [3]), cmsgLen(linux, 0))), []);
});

test("decodeRights leaves out an int that cmsg_len cuts", () => {
  const control = encodeRights(linux, [3, 4]);
  for (const cut of [1, 2, 3]) assert.deepEqual(decodeRights(linux, withLength(linux, control, 24 - cut)), [3]);
});

test("decodeRights reads an int that lies in the padding when cmsg_len covers it", () => {
  const control = encodeRights(linux, [3]);
  viewOf(control).setInt32(20, 4, true);
  assert.deepEqual(decodeRights(linux, control), [3]);
  assert.deepEqual(decodeRights(linux, withLength(linux, control, 24)), [3, 4]);
});

test("decodeRights gives what is there when cmsg_len claims more than the buffer holds", () => {
  const control = encodeRights(linux, [3, 4]);
  for (const claimed of [25, 4096, 0xffffffff, 0xffffffffffffffffn]) {
    assert.deepEqual(decodeRights(linux, withLength(linux, control, claimed)), [3, 4]);
  }
});

test("decodeControl ends at a cmsg_len that is shorter than a header", () => {
  const control = concat(encodeRights(linux, [3]), encodeRights(linux, [4]));
  for (const claimed of [0, 1, 15]) assert.deepEqual(decodeControl(linux, withLength(linux, control, claimed)), []);
});

test("decodeControl gives the level, the type and the data of every message", () => {
  const control = concat(controlMessage(linux, 1, scmCredentials, Uint8Array.of(1, 2, 3)), encodeRights(linux, [5]));
  const found = decodeControl(linux, control).map(({ level, type, data }) => ({ level, type, data: [...data] }));
  assert.deepEqual(found, [{ level: 1, type: 2, data: [1, 2, 3] }, { level: 1, type: 1, data: [5, 0, 0, 0] }]);
});

/** Whole ints that a buffer of that size has room for, in one message. */
function wholeInts(abi: Abi, size: number): number {
  return Math.max(0, Math.floor((size - cmsgLen(abi, 0)) / 4));
}

function survivesTruncation(abi: Abi): void {
  const descriptors = [3, 4, 5];
  const control = encodeRights(abi, descriptors);
  for (let size = 0; size <= control.length; size++) {
    const found = decodeRights(abi, control.slice(0, size));
    assert.deepEqual(found, descriptors.slice(0, wholeInts(abi, size)), `cut at ${size}`);
  }
}

test("decodeRights gives the whole ints of a buffer truncated at any byte on Linux", () => survivesTruncation(linux));

test("decodeRights gives the whole ints of a buffer truncated at any byte on macOS", () => survivesTruncation(darwin));

test("decodeRights keeps the first of two messages when the second is truncated at any byte", () => {
  const first = encodeRights(linux, [3]);
  const second = encodeRights(linux, [4, 5]);
  for (let size = 0; size <= second.length; size++) {
    const expected = [3, ...[4, 5].slice(0, wholeInts(linux, size))];
    assert.deepEqual(decodeRights(linux, concat(first, second.slice(0, size))), expected, `cut at ${size}`);
  }
});
