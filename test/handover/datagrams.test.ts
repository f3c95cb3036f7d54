/**
 * Datagrams are neither lost nor doubled, and the load client would notice: it
 * is first shown a way of deploying that loses, and servers that get it wrong.
 *
 * `DATAGRAMS_PER_SECOND` is the load; 20,000 when it is not set.
 */

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import {
  answerers,
  assertHardlyAnythingLost,
  assertNothingLost,
  datagramCommandFor,
  Load,
  next,
  relayed,
} from "../support/datagrams.ts";
import { freePort, sleep } from "../support/relay.ts";
import { nineHandOvers, type RuntimeName, runtimes, Server } from "../support/server.ts";

const handOverCount = 20;
const restMs = 200;

/** The runtime of each generation: every pair again and again. */
function runtimeOf(index: number): RuntimeName {
  return nineHandOvers[index % (nineHandOvers.length - 1)]!;
}

test("stop-then-start loses datagrams, and the load client counts them", async () => {
  await using relay = await relayed();
  const old = await next(relay, "node");
  using load = await Load.start(relay, 1_000);
  await sleep(restMs);
  old.signal("SIGKILL");
  await old.ended;
  await next(relay, "node");
  await sleep(restMs);
  const { failures } = await load.stop();
  assert.ok((failures.unanswered ?? 0) > 0);
});

/** What the load client says of a server that answers every hundredth datagram wrongly. */
async function failuresOf(fault: string): Promise<Readonly<Record<string, number>>> {
  const port = await freePort();
  await using server = new Server("node", "test/fixtures/faulty_datagrams.ts", { PORT: String(port), FAULT: fault });
  await server.event("ready");
  using load = await Load.start({ port }, 200, [0], 1_000);
  await sleep(restMs);
  return (await load.stop()).failures;
}

test("a datagram that is answered twice, or not at all, is noticed, also when the next is answered twice", async () => {
  const [skipped, again, instead] = await Promise.all(["skipped", "again", "instead"].map(failuresOf));
  assert.deepEqual(Object.keys(skipped!), ["unanswered"]);
  assert.deepEqual(Object.keys(again!), ["again"]);
  assert.deepEqual(Object.keys(instead!).sort(), ["again", "unanswered"]);
});

/** Goes through all pairs of runtimes; gives what came of it, once the first of the two has ended. */
async function handsOver(flows?: string): Promise<void> {
  await using relay = await relayed(flows === undefined ? {} : { FLOWS: flows, DRAIN_MS: "1500" });
  const tags = flows === undefined ? [0] : Array.from({ length: handOverCount + 1 }, (_, tag) => tag);
  await next(relay, runtimeOf(0));
  using load = await Load.start(relay, 10_000, tags);
  const drainingCounts: number[] = [];
  for (let index = 1; index <= handOverCount; index++) {
    await sleep(restMs);
    await next(relay, runtimeOf(index));
    await relay.settled();
    drainingCounts.push(relay.servers.filter(({ child }) => child.exitCode === null).length - 1);
  }
  await sleep(restMs);
  const report = await load.stop();
  assertNothingLost(report, handOverCount + 1);
  for (const server of relay.servers.slice(0, -1)) assert.equal(await server.ended, 0, server.stderr);
  if (flows === undefined) return;
  for (const tag of tags.slice(1)) assert.ok((report.byTag[tag]![tag] ?? 0) > 0, `generation ${tag} answered its own flows`);
  assert.ok(Math.max(...drainingCounts) >= 2, `several generations drain at once: ${drainingCounts}`);
}

test("20 hand-overs through all pairs of runtimes lose and double no datagram", () => handsOver());

test("20 hand-overs lose and double no datagram of steered flows, several generations at once", () => handsOver("steered"));

test("20 hand-overs lose and double no datagram of forwarded flows, several generations at once", () =>
  handsOver("forwarded"));

test("a successor that is killed before it is ready takes no datagram with it", async () => {
  await using relay = await relayed();
  await next(relay, "deno");
  using load = await Load.start(relay);
  for (const runtime of runtimes) {
    const successor = relay.start(runtime, { CRASH: "before-ready" }, datagramCommandFor(runtime));
    relay.servers.push(successor);
    await successor.ended;
  }
  assertNothingLost(await load.stop(), 1);
});

test("the incumbent reads again when its successor is killed in the lease", async () => {
  await using relay = await relayed({ SETTLE_MS: "60000" });
  const incumbent = await next(relay, "bun");
  using load = await Load.start(relay, 1_000);
  const successor = await next(relay, "node");
  await sleep(restMs);
  successor.signal("SIGKILL");
  await incumbent.event("resumed");
  await sleep(restMs);
  const report = await load.stop();
  assertHardlyAnythingLost(report);
  assert.deepEqual(Object.keys(report.byGeneration), ["1", "2"]);
});

test("a successor goes on alone when its incumbent is killed in the lease, and is replaced in turn", async () => {
  await using relay = await relayed({ SETTLE_MS: "60000" });
  const first = await next(relay, "deno");
  using load = await Load.start(relay, 1_000);
  const second = await next(relay, "node");
  first.signal("SIGKILL");
  await second.event("settled");
  const third = await next(relay, "bun");
  second.signal("SIGKILL");
  await third.event("settled");
  await sleep(restMs);
  const report = await load.stop();
  assertHardlyAnythingLost(report);
  assert.equal(Object.keys(report.byGeneration).at(-1), "3");
});

const allTags = [0, 1, 2, 3, 4];

/** Four generations, of which the third ends by itself and the first is killed. */
async function keepsFlows(flows: string): Promise<void> {
  await using relay = await relayed({ FLOWS: flows, DRAIN_MS: "60000" });
  await next(relay, "node");
  using load = await Load.start(relay, 10_000, allTags);
  for (const runtime of ["deno", "bun", "node"] as const) {
    // The third ends by itself, in the middle of the load.
    await next(relay, runtime, runtime === "bun" ? { DRAIN_MS: "1500" } : {});
    await relay.settled();
    await sleep(restMs);
  }
  await relay.servers[2]!.ended;
  await sleep(restMs);
  const report = await load.stop();
  assertNothingLost(report, 4);
  assert.deepEqual(answerers(report), { 0: "1 2 3 4", 1: "1", 2: "1 2", 3: "1 2 3 4", 4: "1 2 3 4" });
  relay.servers[0]!.signal("SIGKILL");
  await relay.servers[0]!.ended;
  using later = await Load.start(relay, 10_000, allTags);
  await sleep(restMs);
  const left = await later.stop();
  assertNothingLost(left, 2);
  assert.deepEqual(answerers(left), { 0: "4", 1: "4", 2: "2", 3: "4", 4: "4" });
}

test("forwarded flows are answered by the generation that knows them, four at once, and by the newest afterwards", () =>
  keepsFlows("forwarded"));

test("steered flows are answered by the generation that knows them, four at once, and by the newest afterwards", () =>
  keepsFlows("steered"));

/** How many sockets are bound to a port (proc(5), /proc/net/udp). */
function socketCount(port: number): number {
  const address = `:${port.toString(16).toUpperCase().padStart(4, "0")} 00000000:0000`;
  return readFileSync("/proc/net/udp", "utf8").split(address).length - 1;
}

test("a steered group uses the sockets of ended generations again, and loses and doubles no datagram", async () => {
  await using relay = await relayed({ FLOWS: "steered", DRAIN_MS: "100" });
  await next(relay, "node");
  using load = await Load.start(relay, 10_000, [0, 1, 2, 3, 4]);
  for (const runtime of ["bun", "deno", "node"] as const) {
    const old = relay.current;
    await next(relay, runtime);
    assert.equal(await old.ended, 0, old.stderr);
  }
  assertNothingLost(await load.stop(), 4);
  assert.equal(socketCount(relay.port), 2);
});

test("steered flows lose no more than a process has read when a successor is killed in the lease", async () => {
  await using relay = await relayed({ FLOWS: "steered", SETTLE_MS: "60000" });
  const incumbent = await next(relay, "deno");
  using load = await Load.start(relay, 1_000, [0, 1, 2]);
  const successor = await next(relay, "bun");
  await sleep(restMs);
  // What comes meanwhile waits in its socket.
  successor.signal("SIGSTOP");
  await sleep(restMs);
  successor.signal("SIGKILL");
  await incumbent.event("resumed");
  await sleep(restMs);
  const report = await load.stop();
  assertHardlyAnythingLost(report);
  assert.deepEqual(answerers(report), { 0: "1 2", 1: "1", 2: "1 2" });
});
