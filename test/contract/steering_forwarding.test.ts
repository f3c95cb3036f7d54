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
import { type ForwardedDatagram, mvfstFormat } from "../../src/steering/forward_frames.ts";
import { type ForwardedOptions, ForwardedReceiver } from "../../src/steering/forwarded_receiver.ts";
import { Forwarder } from "../../src/steering/forwarder.ts";
import { ForwardLink, type ForwardLinkOptions } from "../../src/steering/forward_link.ts";
import { openClient } from "./steering_ends.ts";
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

function linked(linkOptions: ForwardLinkOptions = {}, options: Partial<ForwardedOptions> = {}): Linked {
  const [near, far] = openPair(runtime, "seqpacket");
  const found: ForwardedDatagram[] = [];
  const ends: unknown[] = [];
  const link = new ForwardLink(runtime, near, linkOptions);
  const receiver = new ForwardedReceiver(runtime, far, {
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
  assert.deepEqual(ends.link.counts, { forwardedCount: 502, droppedCount: 0, returnedCount: 0 });
  assert.equal(ends.receiver.receivedCount, 502);
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

test("ForwardLink drops what finds no room and counts it, and everything else arrives once", async () => {
  const [near, far] = openPair(runtime, "seqpacket");
  const link = new ForwardLink(runtime, near, { queueSize: 100_000 });
  const count = 2_000;
  for (const number of upTo(count)) link.forward(numbered(number, 1_000), peer);
  await until(() => link.counts.forwardedCount > 0, "the first to go");
  const { droppedCount } = link.counts;
  assert.ok(droppedCount > 1_000, `${droppedCount} dropped`);
  const found: ForwardedDatagram[] = [];
  const receiver = new ForwardedReceiver(runtime, far, { datagram: (bytes, peer) => found.push({ bytes, peer }) });
  await until(() => found.length === count - droppedCount, () => `${found.length} of ${count - droppedCount} to arrive`);
  assert.deepEqual(link.counts, { forwardedCount: found.length, droppedCount, returnedCount: 0 });
  assert.equal(new Set(found.map(numberOf)).size, found.length);
  link.forward(numbered(count), peer);
  await until(() => found.length === count - droppedCount + 1, "one more, now that there is room");
  receiver.end();
  link.close();
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

test("ForwardLink counts what comes back to nobody as dropped", async () => {
  const [near, far] = openPair(runtime, "seqpacket");
  using link = new ForwardLink(runtime, near);
  far[Symbol.dispose]();
  link.forward(numbered(1), peer);
  await until(() => !link.isOpen, "the link to end");
  assert.deepEqual(link.counts, { forwardedCount: 0, droppedCount: 1, returnedCount: 0 });
});

test("ForwardedReceiver ends with ERR_TAKEOVER_PROTOCOL when a packet is malformed, and so does the sender's link", async () => {
  const [near, far] = openPair(runtime, "seqpacket");
  const ends: unknown[] = [];
  const receiver = new ForwardedReceiver(runtime, far, { datagram() {}, ended: (error) => ends.push(error) });
  assert.equal(sendMessage(runtime, near.number, { bytes: Uint8Array.of(9, 9, 9) }), 3);
  await until(() => ends.length === 1, "the receiver to end");
  assert.equal((ends[0] as { code: string }).code, "ERR_TAKEOVER_PROTOCOL");
  assert.equal(receiver.receivedCount, 0);
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

test("ForwardedReceiver refuses a process and a user that may not forward, and a socket that is no channel", () => {
  const attempt = (options: Partial<ForwardedOptions>, as: Runtime = runtime) => () => {
    const [near, far] = openPair(as, "seqpacket");
    near[Symbol.dispose]();
    return new ForwardedReceiver(as, far, { datagram() {}, ...options });
  };
  const other: Runtime = { ...runtime, libc: { ...runtime.libc, geteuid: () => 4_711 } };
  assert.throws(attempt({ pid: 1 }), {
    ...takeoverError("ERR_TAKEOVER_PROCESS"),
    message: /^Cannot let the process \d+ forward datagrams: expected the process 1;/,
  });
  assert.throws(attempt({}, other), takeoverError("ERR_TAKEOVER_USER"));
  attempt({ pid: runtime.libc.getpid() })().end();
  const [stream, end] = openPair(runtime);
  end[Symbol.dispose]();
  assert.throws(() => new ForwardedReceiver(runtime, stream, { datagram() {} }), takeoverError("ERR_TAKEOVER_DESCRIPTOR"));
  assert.equal(stream.number, -1);
  using datagrams = openClient();
  assert.throws(() => new ForwardLink(runtime, datagrams), takeoverError("ERR_TAKEOVER_DESCRIPTOR"));
});
