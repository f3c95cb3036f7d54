/**
 * Datagrams that go from one process to the one that knows their flow: whole,
 * in order, counted, and only from whom they may come.
 */

import assert from "node:assert/strict";
import type { InetAddress } from "../../src/c/sockaddr.ts";
import { channelPair } from "../../src/channels/fd_listener.ts";
import { sendMessage } from "../../src/channels/message.ts";
import type { Runtime } from "../../src/runtime.ts";
import { OwnedDescriptor } from "../../src/sockets/descriptors.ts";
import { duplicate, openPair } from "../../src/sockets/socket.ts";
import { openReadiness } from "../../src/channels/readiness.ts";
import { type ForwardedDatagram, mvfstFormat } from "../../src/steering/forward_frames.ts";
import { type ForwardedOptions, ForwardedReceiver } from "../../src/steering/forwarded_receiver.ts";
import { Forwarder } from "../../src/steering/forwarder.ts";
import type { ForwardLink, ForwardLinkOptions } from "../../src/steering/forward_link.ts";
import { changed } from "./flow_scene.ts";
import { linkOver, openClient } from "./steering_ends.ts";
import { runtime, takeoverError, test, until } from "./support.ts";

const peer: InetAddress = { family: "inet", hostname: "192.0.2.1", port: 7 };
const peer6: InetAddress = { family: "inet6", hostname: "fe80::1", port: 8, scope: 2 };

/** A link and its receiver, and what the receiver was given. */
interface Linked extends Disposable {
  readonly link: ForwardLink;
  readonly receiver: ForwardedReceiver;
  readonly found: ForwardedDatagram[];
  readonly ends: unknown[];
}

function linked(
  linkOptions: Partial<ForwardLinkOptions> = {},
  options: Partial<ForwardedOptions> = {},
  seen = runtime,
): Linked {
  const [near, far] = openPair(runtime, "seqpacket");
  const found: ForwardedDatagram[] = [];
  const ends: unknown[] = [];
  const link = linkOver(near, linkOptions, seen);
  const receiver = new ForwardedReceiver(seen, far, {
    datagram: (bytes, from) => found.push({ bytes: bytes.slice(), peer: from }),
    ended: (error) => ends.push(error),
    ...options,
  });
  return {
    link,
    receiver,
    found,
    ends,
    [Symbol.dispose]() {
      receiver.end();
      link.close();
    },
  };
}

/** Four bytes that are a number. */
function numbered(number: number, size = 4): Uint8Array {
  const bytes = new Uint8Array(size);
  new DataView(bytes.buffer).setUint32(0, number);
  return bytes;
}

function numberOf({ bytes }: ForwardedDatagram): number {
  return new DataView(bytes.buffer, bytes.byteOffset).getUint32(0);
}

const upTo = (count: number) => Array.from({ length: count }, (_, index) => index);

test("ForwardLink gives the receiver every datagram in order, with its sender, the longest too", async () => {
  using ends = linked();
  const sent = [
    ...upTo(500).map((number) => ({ bytes: numbered(number), peer: number % 2 ? peer : peer6 })),
    { bytes: crypto.getRandomValues(new Uint8Array(65_507)), peer },
    { bytes: new Uint8Array(0), peer },
  ];
  for (const { bytes, peer } of sent) ends.link.forward(bytes, peer);
  await until(() => ends.found.length === sent.length, "the datagrams to arrive");
  assert.deepEqual(ends.found, sent);
});

test("ForwardLink speaks mvfst's format when it is told to", async () => {
  const format = mvfstFormat(runtime.abi, () => 1n);
  using ends = linked({ format }, { format });
  for (const number of upTo(10)) ends.link.forward(numbered(number), peer);
  await until(() => ends.found.length === 10, "the datagrams to arrive");
  assert.deepEqual(ends.found.map(numberOf), upTo(10));
});

test("Forwarder sends each datagram to its generation, and keeps its own and those of ended processes", async () => {
  const links = upTo(3).map(() => linked());
  const forwarder = new Forwarder((bytes) => bytes[0] === 0 ? null : bytes[0]!);
  assert.equal(forwarder.take(Uint8Array.of(1), peer), false);
  for (const [index, { link }] of links.entries()) forwarder.add(index + 1, link);
  const taken = [0, 1, 2, 2, 3, 3, 3, 4].map((tag) => forwarder.take(Uint8Array.of(tag, 5), peer));
  assert.deepEqual(taken, [false, true, true, true, true, true, true, false]);
  await until(() => links.every(({ found }, index) => found.length === index + 1), "the datagrams to arrive");
  assert.ok(links.every(({ found }, index) => found.every(({ bytes }) => bytes[0] === index + 1)));
  links[1]!.receiver.end();
  await until(() => !links[1]!.link.isOpen, "the link to notice that the older process has ended");
  assert.deepEqual([1, 2, 3].map((tag) => forwarder.take(Uint8Array.of(tag), peer)), [true, false, true]);
  for (const ends of links) ends[Symbol.dispose]();
});

test("ForwardLink drops what finds no room and says how many, and everything else arrives once", async () => {
  const [near, far] = openPair(runtime, "seqpacket");
  const dropped: number[] = [];
  const link = linkOver(near, { queueSize: 100_000, dropped: (count) => dropped.push(count) });
  const count = 2_000;
  for (const number of upTo(count)) link.forward(numbered(number, 1_000), peer);
  await until(() => dropped.length === 1, "it to be told of, once");
  const [droppedCount] = dropped as [number];
  assert.ok(droppedCount > 1_000, `${droppedCount} dropped`);
  const found: ForwardedDatagram[] = [];
  const receiver = new ForwardedReceiver(runtime, far, { datagram: (bytes, peer) => found.push({ bytes, peer }) });
  await until(() => found.length === count - droppedCount, () => `${found.length} of ${count - droppedCount} to arrive`);
  assert.equal(new Set(found.map(numberOf)).size, found.length);
  link.forward(numbered(count), peer);
  await until(() => found.length === count - droppedCount + 1, "one more, now that there is room");
  receiver.end();
  link.close();
  assert.equal(dropped.length, 1);
});

/** Datagrams for a process that does not read, more than its socket holds. */
function crowd(link: ForwardLink, count = 500): void {
  for (const number of upTo(count)) link.forward(numbered(number, 2_000), peer);
}

test("ForwardLink.finish sends what waits, and closes then", async () => {
  const [near, far] = openPair(runtime, "seqpacket");
  const others: unknown[] = [];
  const link = linkOver(near, {
    returned: (datagram) => others.push(datagram),
    dropped: (count) => others.push(count),
    ended: () => others.push("ended"),
  });
  crowd(link);
  link.finish();
  assert.equal(link.isOpen, true);
  link.forward(numbered(500), peer);
  const found: ForwardedDatagram[] = [];
  const ends: unknown[] = [];
  const receiver = new ForwardedReceiver(runtime, far, {
    datagram: (bytes, peer) => found.push({ bytes, peer }),
    ended: (error) => ends.push(error),
  });
  await until(() => ends.length === 1, "the end of the link");
  assert.deepEqual([found.map(numberOf), ends], [upTo(501), [null]]);
  assert.deepEqual([link.isOpen, others], [false, ["ended"]]);
  receiver.end();
});

test("ForwardLink.finish closes a link over which nothing waits at once, and gives back what an end leaves", async () => {
  const idle = linked();
  idle.link.forward(numbered(0), peer);
  idle.link.finish();
  assert.equal(idle.link.isOpen, false);
  await until(() => idle.ends.length === 1, "the end of the link");
  assert.deepEqual(idle.found.map(numberOf), [0]);
  const [near, far] = openPair(runtime, "seqpacket");
  const returned: ForwardedDatagram[] = [];
  const link = linkOver(near, { returned: (datagram) => returned.push(datagram) });
  crowd(link);
  link.finish();
  far[Symbol.dispose]();
  await until(() => !link.isOpen, "the link to notice that the older process has ended");
  assert.ok(returned.length > 0);
  assert.equal(numberOf(returned.at(-1)!), 499);
});

test("ForwardLink.close drops what waits, and says how many", async () => {
  const [near, far] = openPair(runtime, "seqpacket");
  const dropped: number[] = [];
  const link = linkOver(near, { returned: () => assert.fail("given back"), dropped: (count) => dropped.push(count) });
  crowd(link);
  link.close();
  const found: ForwardedDatagram[] = [];
  const receiver = new ForwardedReceiver(runtime, far, { datagram: (bytes, peer) => found.push({ bytes, peer }) });
  receiver.end();
  assert.ok(dropped.length === 1 && dropped[0]! > 0);
  assert.equal(found.length + dropped[0]!, 500);
});

const EMFILE = -24;
const ENOMEM = -12;
const ENOBUFS = -105;
let isFull = false;
let failingCount = 0;
let refusedCount = 0;
const crowded = changed("epoll_create1", () => isFull ? EMFILE : null);
const forgetful = changed("epoll_ctl", () => failingCount-- > 0 ? ENOMEM : null);
const poor = changed("sendmsg", () => refusedCount-- > 0 ? ENOBUFS : null);
// What waiting needs stays open, and is no leak.
for (const each of [crowded, forgetful, poor]) await openReadiness(each);

test("ForwardLink keeps a packet for which the machine has no memory, and goes on", async () => {
  refusedCount = 3;
  using ends = linked({ dropped: () => assert.fail("dropped") }, {}, poor);
  for (const number of upTo(10)) ends.link.forward(numbered(number), peer);
  await until(() => ends.found.length === 10, "the datagrams to arrive");
  assert.deepEqual([ends.found.map(numberOf), ends.link.isOpen], [upTo(10), true]);
  assert.ok(refusedCount <= 0);
});

test("ForwardLink and ForwardedReceiver notice each other's end without a free descriptor", async () => {
  isFull = true;
  const ends = [linked({}, {}, crowded), linked({}, {}, crowded)] as const;
  ends[0].link.forward(numbered(1), peer);
  await until(() => ends[0].found.length === 1, "the datagram to arrive");
  ends[0].link.close();
  ends[1].receiver.end();
  await until(() => ends[0].ends.length === 1 && !ends[1].link.isOpen, "both ends to be noticed");
  isFull = false;
  assert.deepEqual(ends[0].ends, [null]);
  for (const each of ends) each[Symbol.dispose]();
});

test("ForwardLink and ForwardedReceiver go on when the machine has no memory to wait with for a moment", async () => {
  failingCount = 4;
  using ends = linked({}, {}, forgetful);
  ends.link.forward(numbered(1), peer);
  await until(() => ends.found.length === 1, "the datagram to arrive");
  assert.ok(failingCount <= 0);
  ends.receiver.end();
  await until(() => !ends.link.isOpen, "the end to be noticed");
  assert.deepEqual(ends.ends, [null]);
});

test("ForwardLink takes an empty packet, and a false alarm, for no end", async () => {
  const [near, far] = openPair(runtime, "seqpacket");
  using link = linkOver(near);
  const found: ForwardedDatagram[] = [];
  assert.equal(sendMessage(runtime, far.number, { bytes: new Uint8Array(0) }), 0);
  assert.equal(sendMessage(runtime, near.number, { bytes: new Uint8Array(0) }), 0);
  const receiver = new ForwardedReceiver(runtime, far, { datagram: (bytes, peer) => found.push({ bytes, peer }) });
  link.forward(numbered(1), peer);
  await until(() => found.length === 1, "the datagram behind it");
  assert.equal(link.isOpen, true);
  receiver.end();
});

test("ForwardedReceiver.end takes what is on its way, and all else comes back: none is lost or doubled", async () => {
  const returned: ForwardedDatagram[] = [];
  let endCount = 0;
  using ends = linked({ returned: (datagram) => returned.push(datagram), ended: () => endCount++ });
  const count = 1_500;
  for (const number of upTo(count)) {
    if (ends.link.isOpen) ends.link.forward(numbered(number, 500), peer);
    else returned.push({ bytes: numbered(number), peer });
    if (number === 1_000) ends.receiver.end();
    if (number % 100 === 99) await new Promise((resolve) => setImmediate(resolve));
  }
  await until(() => endCount === 1, "the link to end");
  const all = [...ends.found, ...returned].map(numberOf);
  assert.deepEqual(all.toSorted((a, b) => a - b), upTo(count));
  assert.ok(ends.found.length > 0 && returned.length > 0);
  assert.deepEqual(ends.ends, [null]);
  assert.throws(() => ends.link.forward(numbered(0), peer), takeoverError("ERR_TAKEOVER_CLOSED"));
});

test("ForwardedReceiver ends with ERR_TAKEOVER_PROTOCOL when a packet is malformed, and so does the sender's link", async () => {
  const [near, far] = openPair(runtime, "seqpacket");
  const ends: unknown[] = [];
  using _receiver = new ForwardedReceiver(runtime, far, { datagram() {}, ended: (error) => ends.push(error) });
  assert.equal(sendMessage(runtime, near.number, { bytes: Uint8Array.of(9, 9, 9) }), 3);
  await until(() => ends.length === 1, "the receiver to end");
  assert.equal((ends[0] as { code: string }).code, "ERR_TAKEOVER_PROTOCOL");
  assert.equal(sendMessage(runtime, near.number, { bytes: Uint8Array.of(1) }), -32);
  near[Symbol.dispose]();
});

test("ForwardedReceiver closes descriptors that come with a packet", async () => {
  const [near, far] = channelPair(runtime, { type: "seqpacket" });
  const found: Uint8Array[] = [];
  const copy = new OwnedDescriptor(runtime, duplicate(runtime, far.descriptor));
  far.close();
  using receiver = new ForwardedReceiver(runtime, copy, { datagram: (bytes) => found.push(bytes) });
  await near.send(Uint8Array.of(1, 4, 0, 7, 192, 0, 2, 1, 0, 0), [0, 1, 2]);
  await until(() => found.length === 1, "the datagram");
  receiver.end();
  near.close();
});

test("ForwardedReceiver refuses an end that another user made, and a socket that is no channel", () => {
  const [near, far] = openPair(runtime, "seqpacket");
  near[Symbol.dispose]();
  const other: Runtime = { ...runtime, libc: { ...runtime.libc, geteuid: () => 4_711 } };
  assert.throws(() => new ForwardedReceiver(other, far, { datagram() {} }), takeoverError("ERR_TAKEOVER_USER"));
  assert.equal(far.number, -1);
  const [stream, end] = openPair(runtime);
  end[Symbol.dispose]();
  assert.throws(() => new ForwardedReceiver(runtime, stream, { datagram() {} }), takeoverError("ERR_TAKEOVER_DESCRIPTOR"));
  assert.equal(stream.number, -1);
  using datagrams = openClient();
  assert.throws(() => linkOver(datagrams), takeoverError("ERR_TAKEOVER_DESCRIPTOR"));
});
