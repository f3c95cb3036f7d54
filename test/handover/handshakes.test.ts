/**
 * Handshakes that are half open when a listener is handed over end in the
 * successor. The clients are first shown a way of deploying that resets them.
 */

import assert from "node:assert/strict";
import { test } from "node:test";
import { HalfOpen, whyNotHalfOpen } from "../support/half_open.ts";
import type { Who } from "../support/http.ts";
import { HttpClient } from "../support/http_client.ts";
import { Relay } from "../support/relay.ts";
import { nineHandOvers, type RuntimeName } from "../support/server.ts";

const clientCount = 100;
const request = "GET / HTTP/1.1\r\nHost: test\r\n\r\n";
const skip = whyNotHalfOpen();

/**
 * Connects clients whose handshakes stay half open while something happens, and
 * lets these through then.
 *
 * @param change What happens meanwhile.
 * @returns How often each came: the generation that answered, or why nobody did.
 */
async function outcomesOf(port: number, change: () => Promise<void>): Promise<Record<string, number>> {
  using halfOpen = new HalfOpen(port);
  const clients = Array.from({ length: clientCount }, () => new HttpClient({ host: "127.0.0.1", port }));
  try {
    for (const client of clients) await client.connected();
    const answers = clients.map((client) => outcomeOf(client));
    assert.equal(halfOpen.count, clientCount, "every handshake is half open before");
    await change();
    halfOpen[Symbol.dispose]();
    return countsOf(await Promise.all(answers));
  } finally {
    for (const client of clients) client[Symbol.dispose]();
  }
}

async function outcomeOf(client: HttpClient): Promise<string> {
  try {
    const { body } = await client.ask(request);
    return `generation ${(JSON.parse(String(body)) as Who).generation}`;
  } catch (error) {
    return (error as Error).message;
  }
}

function countsOf(outcomes: readonly string[]): Record<string, number> {
  const counts: Record<string, number> = {};
  for (const outcome of outcomes) counts[outcome] = (counts[outcome] ?? 0) + 1;
  return counts;
}

test("stop-then-start resets every handshake that is half open, and the clients notice", { skip }, async () => {
  await using relay = await Relay.open();
  const old = await relay.next("node");
  const outcomes = await outcomesOf(relay.port, async () => {
    old.signal("SIGKILL");
    await old.ended;
    await relay.next("node");
  });
  assert.deepEqual(outcomes, { ECONNRESET: clientCount });
});

test("handshakes that are half open in a hand-over end in the successor, through all nine pairs", { skip }, async () => {
  await using relay = await Relay.open({ SETTLE_MS: "20", DRAIN_MS: "10000" });
  await relay.next(nineHandOvers[0]!);
  for (const runtime of nineHandOvers.slice(1)) {
    const outcomes = await outcomesOf(relay.port, () => handOver(relay, runtime));
    assert.deepEqual(outcomes, { [`generation ${relay.servers.length}`]: clientCount });
  }
});

/** Resolves when nothing is left of the incumbent. */
async function handOver(relay: Relay, runtime: RuntimeName): Promise<void> {
  const incumbent = relay.current;
  await relay.next(runtime);
  await relay.settled();
  assert.equal(await incumbent.ended, 0, incumbent.stderr);
}

test("handshakes that are half open when the incumbent is killed in the lease end in the successor", { skip }, async () => {
  await using relay = await Relay.open({ SETTLE_MS: "60000" });
  await relay.next("bun");
  const outcomes = await outcomesOf(relay.port, async () => {
    const incumbent = relay.current;
    const successor = await relay.next("deno");
    incumbent.signal("SIGKILL");
    await successor.event("settled");
  });
  assert.deepEqual(outcomes, { "generation 2": clientCount });
});

test("handshakes that are half open when the successor is killed in the lease end in the incumbent", { skip }, async () => {
  await using relay = await Relay.open({ SETTLE_MS: "60000" });
  const incumbent = await relay.next("node");
  const outcomes = await outcomesOf(relay.port, async () => {
    const successor = await relay.next("bun");
    successor.signal("SIGKILL");
    await incumbent.event("resumed");
  });
  assert.deepEqual(outcomes, { "generation 1": clientCount });
});

test("a process that starts while the old one waits for a handshake does not find the address in use", { skip }, async () => {
  await using relay = await Relay.open();
  const old = await relay.next("node");
  using halfOpen = new HalfOpen(relay.port);
  using client = new HttpClient({ host: "127.0.0.1", port: relay.port });
  await client.connected();
  assert.equal(halfOpen.count, 1);
  old.signal("SIGTERM");
  const { generation } = await (await relay.next("bun")).event("ready");
  assert.equal(generation, 1);
  const { reset } = await old.event("closed");
  assert.equal(reset, 1);
  assert.equal(await old.ended, 0, old.stderr);
});
