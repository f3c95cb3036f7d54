import assert from "node:assert/strict";
import test from "node:test";
import {
  batchCount,
  decodeInteger,
  encodeInteger,
  encodeRecord,
  type HaproxyRecord,
  interfaceSize,
  namespaceSize,
  RecordReader,
} from "../../src/foreign/haproxy_records.ts";
import { concat, seeded } from "./support.ts";

const none: HaproxyRecord = { namespace: "", interface: "" };
const both: HaproxyRecord = { namespace: "blue", interface: "eth0.4094" };
const longest: HaproxyRecord = { namespace: "n".repeat(namespaceSize), interface: "i".repeat(interfaceSize) };

const encoder = new TextEncoder();

/** The records of a batch, one after another. */
function batchOf(records: readonly HaproxyRecord[]): Uint8Array {
  return concat(...records.map((record) => encodeRecord(record)!));
}

test("encodeRecord gives two sizes, two names and four zeros, as HAProxy's _getsocks_send_one does", () => {
  assert.deepEqual(encodeRecord(none), new Uint8Array(6));
  assert.deepEqual(
    encodeRecord(both),
    concat(Uint8Array.of(4), encoder.encode("blue"), Uint8Array.of(9), encoder.encode("eth0.4094"), new Uint8Array(4)),
  );
});

test("encodeRecord gives null for a name that is too long in UTF-8", () => {
  assert.equal(encodeRecord({ namespace: `${longest.namespace}n`, interface: "" }), null);
  assert.equal(encodeRecord({ namespace: "ü".repeat(128), interface: "" }), null);
  assert.equal(encodeRecord({ namespace: "", interface: `${longest.interface}i` }), null);
  assert.equal(encodeRecord({ namespace: "", interface: "ü".repeat(8) }), null);
});

test("encodeRecord keeps a whole batch within what Linux queues as one message by default", () => {
  // net/unix/af_unix.c, unix_stream_sendmsg: half of net.core.wmem_default, less a little.
  assert.ok(batchCount * encodeRecord(longest)!.length <= 212_992 / 2 - 64);
});

test("RecordReader gives the records back, names and all", () => {
  const reader = new RecordReader();
  assert.deepEqual(reader.push(batchOf([none, both, longest, none])), [none, both, longest, none]);
  assert.equal(reader.isMidway, false);
});

test("RecordReader gives nothing for any part of a record, and the record with its last byte", () => {
  const bytes = encodeRecord(both)!;
  for (let size = 1; size < bytes.length; size++) {
    const reader = new RecordReader();
    assert.deepEqual(reader.push(bytes.subarray(0, size)), [], `${size} bytes`);
    assert.equal(reader.isMidway, true, `${size} bytes`);
    assert.deepEqual(reader.push(bytes.subarray(size)), [both], `${size} bytes`);
    assert.equal(reader.isMidway, false, `${size} bytes`);
  }
});

test("RecordReader gives the same records wherever a batch is split", () => {
  const random = seeded(252);
  const records = Array.from({ length: batchCount }, (_, index) => [none, both, longest][index % 3]!);
  const bytes = batchOf(records);
  for (let round = 0; round < 50; round++) {
    const reader = new RecordReader();
    const found: HaproxyRecord[] = [];
    for (let at = 0; at < bytes.length;) {
      const size = 1 + random.below(600);
      found.push(...reader.push(bytes.subarray(at, at + size)));
      at += size;
    }
    assert.deepEqual(found, records);
    assert.equal(reader.isMidway, false);
  }
});

test("RecordReader gives nothing for no bytes, and is not midway", () => {
  const reader = new RecordReader();
  assert.deepEqual(reader.push(new Uint8Array(0)), []);
  assert.equal(reader.isMidway, false);
});

test("RecordReader does not look at the four last bytes: before HAProxy 2.3 they were options", () => {
  assert.deepEqual(new RecordReader().push(Uint8Array.of(0, 0, 255, 255, 255, 255)), [none]);
});

test("RecordReader takes any bytes for records, and throws at none", () => {
  const random = seeded(1);
  const reader = new RecordReader();
  for (let round = 0; round < 200; round++) {
    reader.push(Uint8Array.from({ length: 1 + random.below(300) }, () => random.below(256)));
  }
  assert.ok(reader.push(new Uint8Array(600)).length > 0);
});

test("encodeInteger and decodeInteger are each other's inverse, below zero too", () => {
  for (const value of [0, 1, 252, -1, 2 ** 31 - 1, -(2 ** 31)]) {
    assert.equal(decodeInteger(encodeInteger(value)), value);
  }
  assert.deepEqual(encodeInteger(258), Uint8Array.of(2, 1, 0, 0));
});
