/**
 * Nothing is lost under load, and the load client would notice: it is first
 * shown ways of deploying that lose.
 */

import assert from "node:assert/strict";
import { test } from "node:test";
import type { LoadPlan, LoadReport } from "../support/load.ts";
import { freePort, Relay, sleep, startLoad, summaryOf } from "../support/relay.ts";
import { nineHandOvers, type RuntimeName, Server } from "../support/server.ts";

const handOverCount = 38;
const everyMs = 400;

/** What runs beside the fresh connections. */
const kept = { busyCount: 8, idleCount: 100, idleMs: 1_500, slowPostCount: 8 };

/** The runtime of each generation: every pair again and again. */
function runtimeOf(index: number): RuntimeName {
  return nineHandOvers[index % (nineHandOvers.length - 1)]!;
}

/** Hands over again and again while the load runs. */
async function runRelay(
  plan: Omit<LoadPlan, "port" | "seconds">,
  env: Record<string, string>,
): Promise<LoadReport> {
  await using relay = await Relay.open({ SETTLE_MS: "20", DRAIN_MS: "60000", ...env });
  await relay.next(runtimeOf(0));
  const load = startLoad({ ...plan, port: relay.port, seconds: 600 });
  await sleep(500);
  for (let index = 1; index <= handOverCount; index++) {
    const due = sleep(everyMs);
    await relay.next(runtimeOf(index));
    await relay.settled();
    await due;
  }
  load.stop();
  const report = await load.report;
  for (const server of relay.servers.slice(0, -1)) {
    assert.equal(await server.ended, 0, server.stderr);
    assert.equal((await server.event("drained")).remaining, 0, "no connection is left when a process ends");
  }
  return report;
}

function assertNothingLost(report: LoadReport): void {
  console.log(summaryOf(report));
  assert.deepEqual(report.failures, {});
  assert.equal(report.failed, 0);
  assert.equal(report.announced, 0, "no kept connection is told to end: they move");
  assert.equal(Object.keys(report.byServer).length, handOverCount + 1, "every generation answered");
}

test("stop-then-start loses requests, and the load client counts them", async () => {
  await using relay = await Relay.open();
  const old = await relay.next("node");
  const load = startLoad({ port: relay.port, seconds: 600, freshPerSecond: 1_000, ...kept });
  await sleep(1_000);
  old.signal("SIGKILL");
  await old.ended;
  await relay.next("node");
  await sleep(1_000);
  load.stop();
  const report = await load.report;
  console.log(summaryOf(report));
  assert.ok(report.failed > 0);
  assert.ok((report.failures["fresh request: ECONNREFUSED"] ?? 0) > 0);
});

test("a second SO_REUSEPORT listener loses connections when turns take 20 ms, and the load client counts them", async () => {
  const port = await freePort();
  const env = { PORT: String(port), STALL_MS: "20" };
  const start = () => new Server("bun", "test/fixtures/reuseport.ts", env);
  const servers = [start()];
  try {
    await servers[0]!.event("ready");
    const load = startLoad({ port, seconds: 600, freshPerSecond: 2_000 });
    await sleep(500);
    for (let index = 1; index <= 5; index++) {
      servers.push(start());
      await servers[index]!.event("ready");
      servers[index - 1]!.signal("SIGTERM");
      await sleep(everyMs);
    }
    load.stop();
    const report = await load.report;
    console.log(summaryOf(report));
    assert.ok(report.failed > 0);
    assert.ok((report.failures["fresh request: ECONNRESET"] ?? 0) > 0);
  } finally {
    for (const server of servers) await server[Symbol.asyncDispose]();
  }
});

test("38 hand-overs through all nine pairs of runtimes lose nothing of 4,000 fresh connections a second", async () => {
  assertNothingLost(await runRelay({ freshPerSecond: 4_000, ...kept }, {}));
});

test("38 hand-overs lose nothing when every turn of both event loops takes 20 ms longer", async () => {
  assertNothingLost(await runRelay({ freshPerSecond: 4_000, ...kept }, { STALL_MS: "20" }));
});
