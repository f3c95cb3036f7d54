/**
 * Connections that the application itself speaks on move with nothing lost,
 * doubled or out of order, whatever was on its way. The client that says so is
 * first shown servers that get it wrong.
 */

import assert from "node:assert/strict";
import { createHash, randomBytes } from "node:crypto";
import { join } from "node:path";
import { test } from "node:test";
import { isDeepStrictEqual } from "node:util";
import { commandFor, root } from "../support/binaries.mjs";
import { LineClient } from "../support/line_client.ts";
import type { LineReport } from "../support/line_load.ts";
import { descriptorKinds, inheritableSockets, registrationCount } from "../support/proc.ts";
import { freePort, Relay, Scratch, sleep, startLines } from "../support/relay.ts";
import { nineHandOvers, type RuntimeName, runtimes, Server } from "../support/server.ts";

const { env } = process;

/** The large figures are for a machine at rest. */
const loadCount = Number(env.LOAD_CONNECTIONS ?? 1_000);
const loadPerSecond = Number(env.LOAD_PER_SECOND ?? 5_000);
const loadHandOvers = Number(env.LOAD_HAND_OVERS ?? 9);
const streamCount = Number(env.STREAM_CONNECTIONS ?? 200);
const streamSize = Number(env.STREAM_SIZE ?? 256 * 1024);

const chainEnv = { SETTLE_MS: "20", DRAIN_MS: "60000" };
const echo = "examples/echo.ts";
const lines = "test/fixtures/lines.ts";

/** The runtime of each generation: every pair again and again. */
function runtimeOf(index: number): RuntimeName {
  return nineHandOvers[index % (nineHandOvers.length - 1)]!;
}

/** Hands over, and waits until the one before has nothing left. */
async function handOver(relay: Relay, runtime: RuntimeName, command?: readonly string[]): Promise<Server> {
  const incumbent = relay.current;
  const successor = await relay.next(runtime, {}, command);
  await relay.settled();
  assert.equal(await incumbent.ended, 0, incumbent.stderr);
  return successor;
}

function summaryOf({ sent, answered, seconds, failures, longestMs }: LineReport): string {
  return `${answered} of ${sent} lines answered in ${seconds.toFixed(1)} s, the slowest after ` +
    `${longestMs.toFixed(1)} ms; ${JSON.stringify(failures)}`;
}

/** What the client says of a server that gets it wrong. */
async function failuresOf(fault: string): Promise<LineReport["failures"]> {
  const port = await freePort();
  await using server = new Server("node", "test/fixtures/faulty_lines.ts", { PORT: String(port), FAULT: fault });
  await server.event("ready");
  using load = await startLines({ port, count: 10, perSecond: 5_000, answerLimitMs: 300 });
  await sleep(400);
  load.stop();
  return (await load.report).failures;
}

test("lines answered twice, never, late, or counted anew, and ended connections, are noticed", async () => {
  const found = await Promise.all(["again", "skipped", "swapped", "anew", "closed"].map(failuresOf));
  const [again, skipped, swapped, anew, closed] = found;
  assert.ok(again!.again! > 0, JSON.stringify(again));
  assert.ok(skipped!.skipped! > 0 && skipped!.unanswered! > 0, JSON.stringify(skipped));
  assert.ok(swapped!.skipped! > 0 && swapped!.again! > 0, JSON.stringify(swapped));
  assert.ok(anew!.again! > 0, JSON.stringify(anew));
  assert.ok(closed!.closed! > 0, JSON.stringify(closed));
});

test("a server that is killed and started again loses its connections, and the client of lines counts them", async () => {
  await using relay = await Relay.open(chainEnv, echo);
  const killed = await relay.next("node");
  using load = await startLines({ port: relay.port, count: 100, perSecond: 2_000, answerLimitMs: 300 });
  killed.signal("SIGKILL");
  await killed.ended;
  await relay.next("node");
  load.stop();
  const { failures } = await load.report;
  assert.equal((failures.closed ?? 0) + (failures.ECONNRESET ?? 0), 100);
});

test(`${loadHandOvers} hand-overs through all pairs of runtimes: every line of ${loadCount} connections is answered once, in order`, async () => {
  await using relay = await Relay.open(chainEnv, echo);
  await relay.next(runtimeOf(0));
  using load = await startLines({ port: relay.port, count: loadCount, perSecond: loadPerSecond });
  for (let index = 1; index <= loadHandOvers; index++) await handOver(relay, runtimeOf(index));
  await sleep(200);
  load.stop();
  const report = await load.report;
  console.log(summaryOf(report));
  assert.deepEqual(report.failures, {});
  assert.equal(report.answered, report.sent);
  assert.equal(Object.keys(report.byGeneration).length, loadHandOvers + 1, "every generation answered");
  for (const server of relay.servers.slice(0, -1)) {
    const { moved, refused, remaining } = await server.event("drained");
    assert.deepEqual({ moved, refused, remaining }, { moved: loadCount, refused: 0, remaining: 0 });
  }
});

/** What one stream adds up to, in SHA-256. */
interface Streamed {
  readonly sent: string;
  readonly received: string;
  readonly size: number;
}

/** Sends random bytes until it is told to stop, then ends. */
async function stream(client: LineClient, isOver: () => boolean): Promise<Streamed> {
  const [sent, received] = [createHash("sha256"), createHash("sha256")];
  const { socket } = client;
  let size = 0;
  const sending = (async () => {
    while (!isOver() || size < streamSize) {
      const chunk = randomBytes(1 + Math.floor(Math.random() * 16_384));
      sent.update(chunk);
      size += chunk.length;
      if (!socket.write(chunk)) await new Promise((resolve) => socket.once("drain", resolve).once("close", resolve));
      else await sleep(5);
      if (socket.destroyed) return;
    }
    client.end();
  })();
  for (let chunk = await client.some(); chunk !== null; chunk = await client.some()) received.update(chunk);
  await sending;
  return { sent: sent.digest("hex"), received: received.digest("hex"), size };
}

test(`${streamCount} streams of bytes both ways arrive whole while they are handed over six times`, async () => {
  await using relay = await Relay.open(chainEnv, lines);
  await relay.next("node");
  const clients = await LineClient.openMany({ port: relay.port }, streamCount);
  for (const client of clients) assert.equal((await client.ask("bytes"))!.count, 2);
  let isOver = false;
  const streams = clients.map((client) => stream(client, () => isOver));
  for (const runtime of ["deno", "bun", "deno", "node", "bun", "node"] as const) await handOver(relay, runtime);
  isOver = true;
  const ends = await Promise.all(streams);
  for (const { sent, received } of ends) assert.equal(received, sent);
  console.log(`${ends.reduce((sum, { size }) => sum + size, 0)} bytes each way`);
});

test("a line that is split at any byte by a hand-over is one line, on each runtime", async () => {
  const line = "a line with two-byte letters, grün und süß, is read by two processes\n";
  const bytes = Buffer.from(line);
  await using relay = await Relay.open(chainEnv, lines);
  await relay.next("deno");
  for (const runtime of ["bun", "node", "deno"] as const) {
    const clients = await LineClient.openMany({ port: relay.port }, bytes.length + 1);
    for (const [at, { socket }] of clients.entries()) socket.write(bytes.subarray(0, at));
    // Of half the connections the beginning has been read when they move.
    await sleep(50);
    const successor = await handOver(relay, runtime);
    for (const [at, client] of clients.entries()) {
      client.socket.write(bytes.subarray(at));
      const { count, pid } = (await client.answer())!;
      assert.equal(count, 2);
      if (at < bytes.length) assert.equal(pid, successor.pid);
    }
    for (const client of clients) {
      assert.equal((await client.ask())!.count, 3);
      client[Symbol.dispose]();
    }
  }
});

/** More than any kernel takes of a connection whose other side reads nothing. */
const stuckSize = 16 * 1024 * 1024;

test("bytes that the kernel has for a slow reader travel with the connection, on each runtime", async () => {
  await using relay = await Relay.open(chainEnv, lines);
  await relay.next("node");
  for (const runtime of ["deno", "bun", "node"] as const) {
    using client = await LineClient.open({ port: relay.port });
    const size = 1024 * 1024;
    client.socket.write(`give ${size}\n`);
    await relay.current.event("heard");
    const successor = await handOver(relay, runtime);
    assert.ok(await client.hasPattern(size));
    assert.equal((await client.answer())!.count, 2);
    assert.equal((await client.ask())!.pid, successor.pid);
  }
});

/** Waits until as much has moved; the last comparison is the one that fails. */
async function progressOf(server: Server, expected: { moved: number; remaining: number }): Promise<void> {
  const latest = () => {
    const progress = server.events.findLast(({ event }) => event === "progress");
    return { moved: progress?.moved, remaining: progress?.remaining };
  };
  const isThere = () => isDeepStrictEqual(latest(), expected);
  for (let waitedMs = 0; !isThere() && waitedMs < 10_000; waitedMs += 20) await sleep(20);
  assert.deepEqual(latest(), expected);
}

test("a connection with bytes that the kernel has not taken stays until they are gone, and moves then, on each runtime", async () => {
  await Promise.all(runtimes.map(async (runtime, index) => {
    await using relay = await Relay.open(chainEnv, lines);
    const incumbent = await relay.next(runtime);
    using other = await LineClient.open({ port: relay.port });
    using client = await openStuck(relay);
    const successor = await relay.next(runtimeOf(index));
    await relay.settled();
    await progressOf(incumbent, { moved: 1, remaining: 1 });
    assert.equal((await other.ask())!.pid, successor.pid);
    assert.ok(await client.hasPattern(stuckSize));
    assert.deepEqual(await client.answer(), { prefix: "", count: 2, pid: incumbent.pid, generation: 1 });
    assert.equal(await incumbent.ended, 0, incumbent.stderr);
    assert.equal((await incumbent.event("drained")).moved, 2);
    assert.deepEqual(await client.ask(), { prefix: "", count: 3, pid: successor.pid, generation: 2 });
  }));
});

/** A connection that stays where it is until its bytes are read. */
async function openStuck(relay: Relay): Promise<LineClient> {
  const client = await LineClient.open({ port: relay.port });
  client.socket.write(`give ${stuckSize}\n`);
  await sleep(200);
  return client;
}

test("a connection that is stuck in the first generation goes through the second to the third, on each runtime", async () => {
  await Promise.all(runtimes.map(async (runtime, index) => {
    await using relay = await Relay.open(chainEnv, lines);
    const first = await relay.next(runtime);
    using client = await openStuck(relay);
    const second = await relay.next(runtimeOf(2 * index + 1));
    await relay.settled();
    using other = await openStuck(relay);
    const third = await relay.next(runtimeOf(2 * index + 2));
    await relay.settled();
    assert.ok(await client.hasPattern(stuckSize));
    assert.equal((await client.answer())!.pid, first.pid);
    assert.equal(await first.ended, 0, first.stderr);
    await progressOf(second, { moved: 1, remaining: 1 });
    assert.deepEqual(await client.ask(), { prefix: "", count: 3, pid: third.pid, generation: 3 });
    assert.ok(await other.hasPattern(stuckSize));
    assert.equal((await other.answer())!.pid, second.pid);
    assert.equal(await second.ended, 0, second.stderr);
    assert.deepEqual(await other.ask(), { prefix: "", count: 3, pid: third.pid, generation: 3 });
  }));
});

test("a connection that is stuck in the first generation ends there when the second has gone, on each runtime", async () => {
  await Promise.all(runtimes.map(async (runtime, index) => {
    await using relay = await Relay.open(chainEnv, lines);
    const first = await relay.next(runtime);
    using client = await openStuck(relay);
    const second = await relay.next(runtimeOf(2 * index + 1));
    await relay.settled();
    await relay.next(runtimeOf(2 * index + 2));
    await relay.settled();
    // It would have waited for what may still come from the first.
    second.signal("SIGKILL");
    await second.ended;
    assert.ok(await client.hasPattern(stuckSize));
    for (const count of [2, 3]) {
      const answer = count === 2 ? await client.answer() : await client.ask();
      assert.deepEqual(answer, { prefix: "", count, pid: first.pid, generation: 1 });
    }
    client.end();
    assert.equal(await first.ended, 0, first.stderr);
    assert.equal((await first.event("drained")).remaining, 0);
  }));
});

test("a connection whose client has ended its side moves, and is answered by each process, on each runtime", async () => {
  await using relay = await Relay.open(chainEnv, lines);
  const first = await relay.next("bun");
  using client = await LineClient.open({ port: relay.port });
  await client.ask("hold");
  client.end();
  const pids = [(await client.answer())!.pid];
  const servers = [first];
  for (const runtime of ["node", "deno", "bun"] as const) {
    servers.push(await handOver(relay, runtime));
    const { prefix, count, pid } = (await client.answer())!;
    assert.deepEqual({ prefix, count }, { prefix: "held ", count: servers.length + 2 });
    pids.push(pid);
  }
  assert.deepEqual(pids, servers.map(({ pid }) => pid));
});

test("a connection that the server has ended moves, and is read by the next process, on each runtime", async () => {
  await using relay = await Relay.open(chainEnv, lines);
  await relay.next("deno");
  for (const runtime of ["node", "bun", "deno"] as const) {
    using client = await LineClient.open({ port: relay.port });
    await client.ask("finish");
    assert.equal(await client.some(), null, "the server has ended its side");
    const successor = await handOver(relay, runtime);
    client.socket.write("x\n");
    assert.equal((await successor.event("heard")).count, 3);
    client.end();
  }
});

/** Deno wants its own permissions for Unix paths. */
function unixCommand(runtime: RuntimeName): string[] {
  const command = commandFor(runtime, join(root, lines));
  return runtime === "deno" ? command.toSpliced(2, 0, "--allow-read", "--allow-write") : command;
}

test("connections of a Unix path move through all three runtimes", async () => {
  using scratch = new Scratch();
  const path = join(scratch.path, "lines.sock");
  await using relay = await Relay.open({ ...chainEnv, UNIX: path }, lines);
  await relay.next("node");
  const clients = await LineClient.openMany({ path }, 300);
  for (const [index, runtime] of (["deno", "bun", "node"] as const).entries()) {
    const { pid } = await handOver(relay, runtime, unixCommand(runtime));
    for (const client of clients) {
      const answer = (await client.ask())!;
      assert.deepEqual({ count: answer.count, pid: answer.pid }, { count: index + 2, pid });
    }
  }
  for (const client of clients) client[Symbol.dispose]();
});

/** What a process holds. */
function holdings({ pid }: Server): object {
  return { descriptors: descriptorKinds(pid), registrations: registrationCount(pid) };
}

test("500 connections through 20 hand-overs leave no descriptor and no registration behind, on each runtime", async () => {
  await using relay = await Relay.open(chainEnv, lines);
  await relay.next("node");
  const clients = await LineClient.openMany({ port: relay.port }, 500);
  const first = new Map<RuntimeName, object>();
  for (let index = 0; index < 20; index++) {
    const server = await handOver(relay, runtimes[index % runtimes.length]!);
    if (index >= 3 && index < 17) continue;
    for (const client of clients) assert.equal((await client.ask())!.pid, server.pid);
    await sleep(300);
    if (index < 3) first.set(server.runtime, holdings(server));
    else assert.deepEqual(holdings(server), first.get(server.runtime), server.runtime);
  }
  assert.deepEqual(inheritableSockets(relay.current.pid), []);
  const before = registrationCount(relay.current.pid);
  for (const client of clients) client[Symbol.dispose]();
  await becomes(() => registrationCount(relay.current.pid), before - clients.length);
});

/** Waits until a number is that; the last comparison is the one that fails. */
async function becomes(actual: () => number, expected: number): Promise<void> {
  for (let waitedMs = 0; actual() !== expected && waitedMs < 10_000; waitedMs += 20) await sleep(20);
  assert.equal(actual(), expected);
}
