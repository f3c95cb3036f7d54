/**
 * The same with this library, on any runtime: `peer.ts send|receive FOLDER
 * BATCHES`, over all three types of socket at once, at `FOLDER/stream` and so
 * on. Its descriptors are sockets whose other end has closed.
 *
 * What it sends and checks is in peer.py beside it.
 */

import assert from "node:assert/strict";
import process from "node:process";
import {
  bindChannel,
  connectChannel,
  type FdChannel,
  listenChannel,
  openRuntime,
  type SocketType,
} from "../../../mod.ts";
import { disposeAll, openDescriptors, OwnedDescriptor } from "../../../src/sockets/descriptors.ts";
import { openReadiness } from "../../../src/channels/readiness.ts";

const timeoutMs = 60_000;
/** A runtime opens some of its own meanwhile; a leak would be one in every message. */
const ownCount = 8;
const types: readonly SocketType[] = ["stream", "seqpacket", "dgram"];
const [role, folder, plan] = process.argv.slice(2) as [string, string, string];

const runtime = await openRuntime();
const { abi, libc } = runtime;

/** The numbers of the descriptors of each message. */
function* batches(): Generator<number[]> {
  let first = 0;
  for (const part of plan.split(",")) {
    const [count, size] = part.split("x").map(Number) as [number, number];
    for (let batch = 0; batch < count; batch++, first += size) {
      yield Array.from({ length: size }, (_, index) => first + index);
    }
  }
}

function holding(number: number): OwnedDescriptor {
  const ends = new Int32Array(2);
  assert.equal(libc.socketpair(abi.constants.AF_UNIX, abi.constants.SOCK_STREAM, 0, new Uint8Array(ends.buffer)), 0);
  const text = new TextEncoder().encode(String(number));
  assert.equal(libc.write(ends[0]!, text, text.length), text.length);
  libc.close(ends[0]!);
  return new OwnedDescriptor(runtime, ends[1]!);
}

async function send(channel: FdChannel): Promise<number> {
  let total = 0;
  for (const numbers of batches()) {
    const descriptors = numbers.map(holding);
    await channel.send(Uint8Array.from(numbers), descriptors, { timeoutMs });
    disposeAll(descriptors);
    total += numbers.length;
  }
  return total;
}

const text = new Uint8Array(new ArrayBuffer(16));

function textIn(descriptor: number): string {
  return new TextDecoder().decode(text.subarray(0, libc.read(descriptor, text, text.length)));
}

async function receive(channel: FdChannel): Promise<number> {
  let total = 0;
  for (const numbers of batches()) {
    const message = await channel.receive({ minFds: 1, maxFds: 253, timeoutMs });
    assert.ok(message, `the channel ended before ${numbers[0]}`);
    assert.deepEqual(message.bytes, Uint8Array.from(numbers));
    assert.deepEqual(message.fds.map(({ number }) => textIn(number)), numbers.map(String));
    message[Symbol.dispose]();
    total += numbers.length;
  }
  if (channel.type !== "dgram") assert.equal(await channel.receive({ timeoutMs }), null);
  return total;
}

/** Every receiver has its path before the senders are told to begin. */
async function receiveAll(): Promise<number[]> {
  const bound = await bindChannel(`${folder}/dgram`);
  const listeners = await Promise.all([
    listenChannel(`${folder}/stream`),
    listenChannel(`${folder}/seqpacket`, { type: "seqpacket" }),
  ]);
  console.log("ready");
  const channels = await Promise.all([...listeners.map((listener) => listener.accept({ timeoutMs })), bound]);
  const totals = await Promise.all(channels.map(receive));
  for (const each of [...listeners, ...channels]) each.close();
  return totals;
}

async function sendAll(): Promise<number[]> {
  const channels = await Promise.all(types.map((type) => connectChannel(`${folder}/${type}`, { type })));
  const totals = await Promise.all(channels.map(send));
  for (const channel of channels) channel.close();
  return totals;
}

await openReadiness(runtime);
const before = openDescriptors(runtime).length;
const totals = role === "send" ? await sendAll() : await receiveAll();
const leakedCount = openDescriptors(runtime).length - before;
assert.ok(leakedCount <= ownCount, `${leakedCount} descriptors have leaked`);
console.log(`${totals.join(", ")} descriptors`);
process.exit(0);
