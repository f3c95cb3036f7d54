/**
 * What happens to the service when either process crashes, stops, or starts at
 * a bad moment.
 */

import assert from "node:assert/strict";
import { test } from "node:test";
import { assertServes, get, whoServes } from "../support/http.ts";
import { Relay, sleep, startLoad, summaryOf } from "../support/relay.ts";
import { type RuntimeName, runtimes } from "../support/server.ts";

const kept = { busyCount: 8, idleCount: 50, idleMs: 1_500, slowPostCount: 4 };

function runtimeOf(index: number): RuntimeName {
  return runtimes[index % runtimes.length]!;
}

test("a successor killed after ready, 20 times under load, has no connection refused", async () => {
  for (const runtime of runtimes) {
    await using relay = await Relay.open({ SETTLE_MS: "60000" });
    const incumbent = await relay.next(runtime);
    const load = startLoad({ port: relay.port, seconds: 600, freshPerSecond: 4_000, ...kept });
    await sleep(300);
    for (let index = 0; index < 7; index++) {
      // Half of them kill themselves in the very turn, half are killed while they serve.
      const env = index % 2 === 0 ? { CRASH: "after-ready" } : {};
      await using successor = relay.start(runtimeOf(index), env);
      await successor.event("ready");
      if (index % 2 === 1) await sleep(50);
      successor.signal("SIGKILL");
      await successor.ended;
      await waitFor(() => incumbent.events.filter(({ event }) => event === "resumed").length === index + 1);
    }
    await sleep(300);
    load.stop();
    const report = await load.report;
    console.log(`${runtime}: ${summaryOf(report)}`);
    // Only what was inside a killed process is lost: reset or closed, never
    // refused, never left without an answer.
    for (const kind of Object.keys(report.failures)) assert.match(kind, /: (ECONNRESET|closed|EPIPE)$/);
    assert.equal((await whoServes(relay.port)).pid, incumbent.pid);
  }
});

test("a successor that crashes 20 times before ready is not noticed, and the 21st takes over", async () => {
  await using relay = await Relay.open({ SETTLE_MS: "50" });
  const incumbent = await relay.next("deno");
  const load = startLoad({ port: relay.port, seconds: 600, freshPerSecond: 1_000, ...kept });
  for (let index = 0; index < 20; index++) {
    await using successor = relay.start(runtimeOf(index), { CRASH: "before-ready" });
    assert.equal(await successor.ended, "SIGKILL", successor.stderr);
  }
  assert.deepEqual(incumbent.events.map(({ event }) => event), ["ready"]);
  const successor = await relay.next("bun");
  assert.equal(successor.events[0]!.generation, 2);
  await relay.settled();
  load.stop();
  const report = await load.report;
  console.log(summaryOf(report));
  assert.deepEqual(report.failures, {});
});

test("a successor stopped before ready is not noticed", async () => {
  await using relay = await Relay.open({ SETTLE_MS: "50" });
  const incumbent = await relay.next("node");
  await using successor = relay.start("deno", { WARM_MS: "1500" });
  await sleep(700);
  successor.signal("SIGSTOP");
  await sleep(2_000);
  assert.equal((await assertServes(relay.port)).pid, incumbent.pid);
  assert.deepEqual(incumbent.events.map(({ event }) => event), ["ready"]);
  successor.signal("SIGCONT");
  await successor.event("ready");
  assert.equal((await assertServes(relay.port)).pid, successor.pid);
});

test("a successor stopped after ready loses its lease: the incumbent accepts again, the successor ends when it goes on", async () => {
  await Promise.all(runtimes.map(async (runtime, index) => {
    await using relay = await Relay.open({ SETTLE_MS: "60000", DRAIN_MS: "100" });
    const incumbent = await relay.next(runtimeOf(index + 1));
    await using successor = relay.start(runtime);
    await successor.event("ready");
    successor.signal("SIGSTOP");
    assert.equal((await incumbent.event("resumed")).code, "ERR_TAKEOVER_REVOKED");
    assert.equal((await assertServes(relay.port)).pid, incumbent.pid);
    successor.signal("SIGCONT");
    assert.equal((await successor.event("refused")).code, "ERR_TAKEOVER_REVOKED");
    assert.equal(await successor.ended, 1);
    assert.equal((await assertServes(relay.port)).pid, incumbent.pid);
    await relay.next(runtime);
    assert.equal((await assertServes(relay.port)).runtime, runtime);
  }));
});

test("an incumbent stopped for longer than offerMs refuses nobody when it goes on", async () => {
  await using relay = await Relay.open({ SETTLE_MS: "50" });
  const incumbent = await relay.next("deno");
  incumbent.signal("SIGSTOP");
  await using successor = relay.start("bun");
  assert.equal((await successor.event("refused")).code, "ERR_TAKEOVER_TIMEOUT");
  assert.equal(await successor.ended, 1);
  incumbent.signal("SIGCONT");
  assert.equal((await assertServes(relay.port)).pid, incumbent.pid);
  await relay.next("node");
  assert.equal((await assertServes(relay.port)).runtime, "node");
});

test("an incumbent killed while its successor starts leaves a successor that serves", async () => {
  await using relay = await Relay.open({ SETTLE_MS: "50" });
  const incumbent = await relay.next("node");
  const next = relay.next("deno");
  await sleep(60);
  incumbent.signal("SIGKILL");
  await next;
  assert.equal((await assertServes(relay.port)).runtime, "deno");
  await relay.next("bun");
  assert.equal((await assertServes(relay.port)).runtime, "bun");
});

test("an incumbent killed during the lease leaves a successor that is settled at once", async () => {
  await using relay = await Relay.open({ SETTLE_MS: "60000" });
  const incumbent = await relay.next("bun");
  const successor = await relay.next("node");
  incumbent.signal("SIGKILL");
  await successor.event("settled");
  assert.equal((await assertServes(relay.port)).pid, successor.pid);
});

test("a second successor is refused as busy while the lease runs, and welcome afterwards", async () => {
  await using relay = await Relay.open({ SETTLE_MS: "60000" });
  const first = await relay.next("deno");
  const second = await relay.next("bun");
  await using third = relay.start("node");
  assert.equal((await third.event("refused")).code, "ERR_TAKEOVER_BUSY");
  assert.equal(await third.ended, 1);
  assert.equal((await assertServes(relay.port)).pid, second.pid);
  // The lease ends with it.
  first.signal("SIGKILL");
  await second.event("settled");
  await relay.next("node");
  assert.equal((await assertServes(relay.port)).runtime, "node");
});

test("five processes that start at once make one first process and no lost request", async () => {
  await using relay = await Relay.open({ SETTLE_MS: "20" });
  const servers = [0, 1, 2, 3, 4].map((index) => relay.start(runtimeOf(index)));
  relay.servers.push(...servers);
  const outcomes = await Promise.all(servers.map((server) => server.firstOf(["ready", "refused"])));
  const ready = outcomes.filter(({ event }) => event === "ready");
  const generations = ready.map(({ generation }) => generation as number).sort((a, b) => a - b);
  assert.deepEqual(generations, ready.map((_, index) => index + 1), "every generation once");
  for (const { event, code } of outcomes) if (event === "refused") assert.equal(code, "ERR_TAKEOVER_BUSY");
  assert.equal((await assertServes(relay.port)).generation, generations.at(-1));
});

test("SIGTERM ends a process gracefully: the request in flight is answered, the path is gone, the status is 0", async () => {
  for (const runtime of runtimes) {
    await using relay = await Relay.open();
    const server = await relay.next(runtime);
    const slow = get({ host: "127.0.0.1", port: relay.port, path: "/slow?ms=500" });
    await sleep(150);
    server.signal("SIGTERM");
    assert.equal(JSON.parse(await slow).pid, server.pid);
    assert.equal(await server.ended, 0, server.stderr);
    assert.equal((await server.event("drained")).remaining, 0);
    await assert.rejects(whoServes(relay.port), { code: "ECONNREFUSED" });
    const first = await relay.next(runtime);
    assert.equal(first.events[0]!.generation, 1, "the next process is the first again");
  }
});

async function waitFor(condition: () => boolean): Promise<void> {
  for (let waitedMs = 0; !condition(); waitedMs += 10) {
    if (waitedMs > 30_000) throw new Error(`Waited 30 s for ${condition}`);
    await sleep(10);
  }
}
