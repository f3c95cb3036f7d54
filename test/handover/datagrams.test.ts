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
  handsOver,
  keepsFlows,
  Load,
  next,
  relayed,
} from "../support/datagrams.ts";
import { freePort, sleep } from "../support/relay.ts";
import { runtimes, Server } from "../support/server.ts";

const restMs = 200;

test("stop-then-start loses datagrams, and the load client counts them", async () => {
  await using relay = await relayed();
  const old = await next(relay, "node");
  using load = await Load.start(relay, { answerLimitMs: 1_000 });
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
  using load = await Load.start({ port }, { answerLimitMs: 200, perSecond: 1_000 });
  await sleep(restMs);
  return (await load.stop()).failures;
}

test("a datagram that is answered twice, or not at all, is noticed, also when the next is answered twice", async () => {
  const [skipped, again, instead] = await Promise.all(["skipped", "again", "instead"].map(failuresOf));
  assert.deepEqual(Object.keys(skipped!), ["unanswered"]);
  assert.deepEqual(Object.keys(again!), ["again"]);
  assert.deepEqual(Object.keys(instead!).sort(), ["again", "unanswered"]);
});

test("20 hand-overs through all pairs of runtimes lose and double no datagram", () => handsOver(20));

test("20 hand-overs lose and double no datagram of steered flows, several generations at once", () =>
  handsOver(20, "steered"));

test("20 hand-overs lose and double no datagram of forwarded flows, several generations at once", () =>
  handsOver(20, "forwarded"));

test("20 hand-overs lose and double no datagram of connected flows, several generations at once", () =>
  handsOver(20, "connected"));

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
  using load = await Load.start(relay, { answerLimitMs: 1_000 });
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
  using load = await Load.start(relay, { answerLimitMs: 1_000 });
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

test("forwarded flows are answered by the generation that knows them, four at once, and by the newest afterwards", () =>
  keepsFlows("forwarded"));

test("steered flows are answered by the generation that knows them, four at once, and by the newest afterwards", () =>
  keepsFlows("steered"));

test("connected flows are answered by the generation that knows them, four at once, and by the newest afterwards", () =>
  keepsFlows("connected"));

/** How many sockets are bound to a port (proc(5), /proc/net/udp). */
function socketCount(port: number): number {
  const address = `:${port.toString(16).toUpperCase().padStart(4, "0")} 00000000:0000`;
  return readFileSync("/proc/net/udp", "utf8").split(address).length - 1;
}

test("a steered group uses the sockets of ended generations again, and loses and doubles no datagram", async () => {
  await using relay = await relayed({ FLOWS: "steered", DRAIN_MS: "100" });
  await next(relay, "node");
  using load = await Load.start(relay, { tags: [0, 1, 2, 3, 4] });
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
  using load = await Load.start(relay, { answerLimitMs: 1_000, tags: [0, 1, 2] });
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

test("connected flows lose no more than a process has read when a successor is killed in the lease", async () => {
  await using relay = await relayed({ FLOWS: "connected", SETTLE_MS: "60000" });
  const incumbent = await next(relay, "node");
  using load = await Load.start(relay, { answerLimitMs: 1_000, tags: [0, 1, 2] });
  const successor = await next(relay, "deno");
  await sleep(restMs);
  successor.signal("SIGKILL");
  await incumbent.event("resumed");
  await sleep(restMs);
  const report = await load.stop();
  assertHardlyAnythingLost(report);
  assert.deepEqual(answerers(report), { 0: "1 2", 1: "1", 2: "1 2" });
});
