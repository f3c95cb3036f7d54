/**
 * What the programs for groups answer, to random packets too.
 *
 * @module
 */

import assert from "node:assert/strict";
import test from "node:test";
import { answer, assemble, type Line } from "../../src/steering/bpf.ts";
import { byEitherTag, byQuicTag, byTag, everythingTo, ifFrom } from "../../src/steering/programs.ts";
import { interpret, udpPacket } from "./bpf_interpreter.ts";
import { takeoverError } from "./support.ts";

const somebody = { address: Uint8Array.of(192, 0, 2, 1), port: 5_000 };

function random(size: number): Uint8Array {
  return crypto.getRandomValues(new Uint8Array(size));
}

function slotOf(
  lines: readonly Line[],
  payload: Uint8Array,
  source: { address: Uint8Array; port: number } = somebody,
): number {
  return interpret(assemble(lines), udpPacket(payload, source, random(1)[0]! % 11));
}

test("everythingTo a slot answers it for every packet", () => {
  assert.equal(slotOf(everythingTo(3), new Uint8Array(0)), 3);
  assert.equal(slotOf(everythingTo([65_534]), random(9)), 65_534);
});

test("everythingTo several slots spreads sources over all of them, and each source to one", () => {
  const slots = [0, 2, 5, 9];
  const counts = new Map<number, number>();
  for (let port = 1_024; port < 3_024; port++) {
    const source = { address: Uint8Array.of(10, 0, 0, 1), port };
    const slot = slotOf(everythingTo(slots), random(4), source);
    assert.equal(slotOf(everythingTo(slots), random(40), source), slot);
    counts.set(slot, (counts.get(slot) ?? 0) + 1);
  }
  assert.deepEqual([...counts.keys()].toSorted((a, b) => a - b), slots);
  assert.ok(Math.min(...counts.values()) > 350, JSON.stringify([...counts]));
});

test("everythingTo several slots spreads IPv6 sources by every part of their address", () => {
  const found = [0, 4, 8, 12].map((at) => {
    const slots = new Set<number>();
    for (let value = 0; value < 64; value++) {
      const address = new Uint8Array(16);
      address.set([value, value], at);
      slots.add(slotOf(everythingTo([0, 1, 2]), new Uint8Array(0), { address, port: 443 }));
    }
    return slots.size;
  });
  assert.deepEqual(found, [3, 3, 3, 3]);
});

test("byTag answers as a function of the tag does, for random tags, masks, slots and datagrams", () => {
  for (let round = 0; round < 300; round++) {
    const size = ([1, 2, 4] as const)[round % 3]!;
    const offset = random(1)[0]! % 24;
    const mask = ([0xf0, 0xff0, 0xff00ff00][round % 3]! & 2 ** (size * 8) - 1) >>> 0;
    const payload = random(random(1)[0]! % 40);
    const isInside = payload.length >= offset + size;
    const tag = payload.subarray(offset, offset + size).reduce((value, byte) => value * 256 + byte, 0);
    const masked = (tag & mask) >>> 0;
    const slots = new Map([[0, 7], [mask, 8], ...isInside && round % 2 ? [[masked, 9] as const] : []]);
    const expected = isInside ? slots.get(masked) ?? 4 : 4;
    assert.equal(slotOf(byTag({ offset, size, mask }, { slots, otherwise: 4 }), payload), expected);
  }
});

test("byTag knows a thousand generations, and sends a tag to several slots", () => {
  const slots = new Map<number, number | number[]>(Array.from({ length: 1_000 }, (_, index) => [index, index % 50]));
  slots.set(999, Array.from({ length: 200 }, (_, index) => index + 100));
  const lines = byTag({ offset: 1, size: 2 }, { slots, otherwise: [60, 61] });
  assert.equal(slotOf(lines, Uint8Array.of(0, 777 >> 8, 777 & 255)), 777 % 50);
  assert.ok(slotOf(lines, Uint8Array.of(0, 999 >> 8, 999 & 255)) >= 100);
  assert.ok([60, 61].includes(slotOf(lines, Uint8Array.of(0, 255, 255))));
});

test("byQuicTag reads the server's connection ids out of both headers, and no others", () => {
  const lines = byQuicTag({ idLength: 9, offset: 2, size: 1 }, { slots: new Map([[1, 0], [2, 1]]), otherwise: 5 });
  const id = (tag: number, length = 9) => Uint8Array.from({ length }, (_, at) => at === 2 ? tag : 0xee);
  const short = (tag: number) => Uint8Array.of(0x40, ...id(tag), ...random(20));
  const long = (tag: number, length = 9) => Uint8Array.of(0xc0, 0, 0, 0, 1, length, ...id(tag, length), 0, ...random(20));
  assert.deepEqual([1, 2, 3].map((tag) => slotOf(lines, short(tag))), [0, 1, 5]);
  assert.deepEqual([1, 2, 3].map((tag) => slotOf(lines, long(tag))), [0, 1, 5]);
  assert.equal(slotOf(lines, long(1, 8)), 5, "an id that the client made up");
  assert.equal(slotOf(lines, short(1).subarray(0, 10)), 0);
  assert.equal(slotOf(lines, short(1).subarray(0, 9)), 5);
  assert.equal(slotOf(lines, long(1).subarray(0, 15)), 0);
  assert.equal(slotOf(lines, long(1).subarray(0, 14)), 5);
  assert.equal(slotOf(lines, new Uint8Array(0)), 5);
});

test("byEitherTag makes the program of the tag that it is given", () => {
  const routes = { slots: new Map([[1, 0]]), otherwise: 1 };
  const [tag, quic] = [{ offset: 0, size: 1 }, { offset: 0, size: 1, idLength: 8 }] as const;
  assert.deepEqual(byEitherTag(tag, routes), byTag(tag, routes));
  assert.deepEqual(byEitherTag(quic, routes), byQuicTag(quic, routes));
});

test("ifFrom tells an address and port from all others, of both families", () => {
  const isFrom = (hostname: string, family: "inet" | "inet6", source: { address: Uint8Array; port: number }) =>
    slotOf([...ifFrom({ family, hostname, port: 700 }, "yes", "no"), "yes", answer(1), "no", answer(0)], random(9), source);
  const inet = Uint8Array.of(127, 1, 2, 3);
  const inet6 = Uint8Array.of(0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7);
  assert.equal(isFrom("127.1.2.3", "inet", { address: inet, port: 700 }), 1);
  assert.equal(isFrom("127.1.2.3", "inet", { address: inet, port: 701 }), 0);
  assert.equal(isFrom("127.1.2.4", "inet", { address: inet, port: 700 }), 0);
  assert.equal(isFrom("2001:db8::7", "inet6", { address: inet6, port: 700 }), 1);
  assert.equal(isFrom("2001:db8::7", "inet6", { address: inet6.with(5, 1), port: 700 }), 0);
  assert.equal(isFrom("2001:db8::7", "inet6", { address: inet, port: 700 }), 0);
});

test("byTag, byQuicTag and everythingTo refuse what no datagram, mask or group has", () => {
  const routes = { slots: new Map([[1, 0]]), otherwise: 0 };
  const wrong: readonly (() => unknown)[] = [
    () => byTag({ offset: 65_507, size: 1 }, routes),
    () => byTag({ offset: -1, size: 1 }, routes),
    () => byTag({ offset: 0, size: 3 as 4 }, routes),
    () => byTag({ offset: 0, size: 1, mask: 0 }, routes),
    () => byTag({ offset: 0, size: 1, mask: 256 }, routes),
    () => byTag({ offset: 0, size: 1, mask: 0xf0 }, routes),
    () => byTag({ offset: 0, size: 1 }, { slots: new Map([[256, 0]]), otherwise: 0 }),
    () => byTag({ offset: 0, size: 1 }, { slots: new Map(), otherwise: -1 }),
    () => byQuicTag({ idLength: 21, offset: 0, size: 1 }, routes),
    () => byQuicTag({ idLength: 8, offset: 7, size: 2 }, routes),
    () => everythingTo(65_535),
    () => everythingTo([]),
  ];
  for (const attempt of wrong) assert.throws(attempt, takeoverError("ERR_TAKEOVER_RANGE"), String(attempt));
});
