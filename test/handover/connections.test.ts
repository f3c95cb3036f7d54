/**
 * Connections that the application itself speaks on move with nothing lost,
 * doubled or out of order, whatever was on its way. The client that says so is
 * first shown servers that get it wrong.
 */

import assert from "node:assert/strict";
import { createHash, randomBytes } from "node:crypto";
import { join } from "node:path";
import { test } from "node:test";
import { type Answer, LineClient } from "../support/line_client.ts";
import type { LineReport } from "../support/line_load.ts";
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
async function handOver(relay: Relay, runtime: RuntimeName): Promise<Server> {
  const incumbent = relay.current;
  const successor = await relay.next(runtime);
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
  const load = await startLines({ port, count: 10, perSecond: 5_000, answerLimitMs: 300 });
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
  const load = await startLines({ port: relay.port, count: 100, perSecond: 2_000, answerLimitMs: 300 });
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
  const load = await startLines({ port: relay.port, count: loadCount, perSecond: loadPerSecond });
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
