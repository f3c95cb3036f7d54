/**
 * The two formats in which datagrams are forwarded.
 *
 * @module
 */

import assert from "node:assert/strict";
import test from "node:test";
import type { Bytes } from "../../src/c/bytes.ts";
import { TakeoverError } from "../../src/errors.ts";
import {
  formatNamed,
  type ForwardedDatagram,
  longestDatagramSize,
  longestFrameSize,
  mvfstFormat,
  ownFormat,
} from "../../src/steering/forward_frames.ts";
import { linux, takeoverError } from "./support.ts";

const inet: ForwardedDatagram = {
  bytes: Uint8Array.of(1, 2, 3),
  peer: { family: "inet", hostname: "192.0.2.7", port: 4_433 },
};
const inet6: ForwardedDatagram = {
  bytes: Uint8Array.of(9),
  peer: { family: "inet6", hostname: "fe80::1", port: 65_535, scope: 3 },
};
const mvfst = mvfstFormat(linux, () => 0x0102030405060708n);

function bytesOf(hex: string): Bytes {
  return Uint8Array.from(hex.replaceAll(" ", "").match(/../g)!, (pair) => parseInt(pair, 16));
}

function joined(...parts: readonly Uint8Array[]): Bytes {
  return Uint8Array.from(parts.flatMap((part) => [...part]));
}

test("ownFormat writes a head of 10 bytes for IPv4 and of 26 for IPv6", () => {
  assert.deepEqual(ownFormat.encode(inet), bytesOf("01 04 1151 c0000207 0003 010203"));
  assert.deepEqual(ownFormat.encode(inet6), bytesOf("01 06 ffff fe800000000000000000000000000001 00000003 0001 09"));
});

test("mvfstFormat writes a version, the sender's sockaddr, a time and the payload", () => {
  assert.deepEqual(mvfst.encode(inet), bytesOf("00000001 0010 0200 1151 c0000207 0000000000000000 0102030405060708 010203"));
  assert.equal(mvfst.encode(inet6).length, 4 + 2 + 28 + 8 + 1);
});

test("ownFormat and mvfstFormat read what they have written, empty and longest datagrams too", () => {
  for (const size of [0, 1, longestDatagramSize]) {
    const long = { ...inet6, bytes: crypto.getRandomValues(new Uint8Array(Math.min(size, 65_536))) };
    assert.deepEqual(ownFormat.decode(ownFormat.encode(long)), [long]);
    assert.deepEqual(mvfst.decode(mvfst.encode(long)), [long]);
    assert.ok(mvfst.encode(long).length <= longestFrameSize && ownFormat.encode(long).length <= longestFrameSize);
  }
});

test("ownFormat reads several datagrams out of one packet, in order", () => {
  assert.deepEqual(ownFormat.decode(joined(...[inet, inet6, inet].map(ownFormat.encode))), [inet, inet6, inet]);
  assert.deepEqual(ownFormat.decode(bytesOf("01 04 1151 c0000207 0000")), [{ ...inet, bytes: new Uint8Array(0) }]);
});

test("ownFormat and mvfstFormat throw ERR_TAKEOVER_PROTOCOL for every packet that is cut, and for none else", () => {
  for (const format of [ownFormat, mvfst]) {
    const head = format.encode(inet6).length - inet6.bytes.length;
    const packet = format.encode(inet6);
    const least = format === ownFormat ? packet.length : head;
    for (let size = 1; size < least; size++) {
      assert.throws(() => format.decode(packet.slice(0, size)), takeoverError("ERR_TAKEOVER_PROTOCOL"), `${size} bytes`);
    }
  }
});

test("ownFormat and mvfstFormat throw ERR_TAKEOVER_PROTOCOL for a version, family or port that is none", () => {
  const own = ["02 04 1151 c0000207 0000", "01 05 1151 c0000207 0000", "01 04 0000 c0000207 0000", "01 04 1151 c0000207 0001"];
  for (const hex of own) assert.throws(() => ownFormat.decode(bytesOf(hex)), takeoverError("ERR_TAKEOVER_PROTOCOL"), hex);
  const theirs = [
    "00000002 0010 0200 1151 c0000207 0000000000000000 0102030405060708",
    "00000001 0010 0100 1151 c0000207 0000000000000000 0102030405060708",
    "00000001 0010 0200 0000 c0000207 0000000000000000 0102030405060708",
    "00000001 ffff 0200 1151 c0000207 0000000000000000 0102030405060708",
    "00000001 0000 0102030405060708",
  ];
  for (const hex of theirs) assert.throws(() => mvfst.decode(bytesOf(hex)), takeoverError("ERR_TAKEOVER_PROTOCOL"), hex);
});

test("ownFormat and mvfstFormat read random packets, or throw ERR_TAKEOVER_PROTOCOL", () => {
  for (let round = 0; round < 2_000; round++) {
    const packet = crypto.getRandomValues(new Uint8Array(round % 60));
    const start = [bytesOf("01 04"), bytesOf("01 06"), bytesOf("00000001 0010 0200")][round % 3]!;
    for (const format of [ownFormat, mvfst]) {
      try {
        for (const { bytes, peer } of format.decode(joined(start, packet))) assert.ok(bytes.length < 62 && peer.port > 0);
      } catch (error) {
        assert.ok(error instanceof TakeoverError && error.code === "ERR_TAKEOVER_PROTOCOL", String(error));
      }
    }
  }
});

test("ownFormat and mvfstFormat refuse to write what is no datagram of an IP sender", () => {
  const long = { ...inet, bytes: new Uint8Array(longestDatagramSize + 1) };
  assert.throws(() => ownFormat.encode(long), takeoverError("ERR_TAKEOVER_LIMIT"));
  assert.throws(() => mvfst.encode(long), takeoverError("ERR_TAKEOVER_LIMIT"));
  for (const peer of [{ ...inet.peer, hostname: "localhost" }, { ...inet.peer, port: 0 }]) {
    assert.throws(() => ownFormat.encode({ ...inet, peer }), takeoverError("ERR_TAKEOVER_ADDRESS"));
  }
});

test("formatNamed gives both formats, and null for what every object has", () => {
  for (const [name, isBatched] of [["own", true], ["mvfst", false]] as const) {
    const format = formatNamed(linux, name)!;
    assert.equal(format.isBatched, isBatched);
    assert.deepEqual(format.decode(format.encode(inet)), [inet]);
  }
  assert.deepEqual(["", "OWN", "toString", "constructor"].map((name) => formatNamed(linux, name)), [null, null, null, null]);
});
