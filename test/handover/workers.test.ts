/**
 * A group of listeners of which each is in a worker: new connections go to the
 * successor, and those of workers stay with them until they end.
 */

import assert from "node:assert/strict";
import { once } from "node:events";
import { get, type IncomingMessage } from "node:http";
import { join } from "node:path";
import { text } from "node:stream/consumers";
import { test } from "node:test";
import { commandFor, root } from "../support/binaries.mjs";
import { HttpClient } from "../support/http_client.ts";
import { Relay, sleep, startLoad, summaryOf } from "../support/relay.ts";
import { nineHandOvers, type RuntimeName, type Server } from "../support/server.ts";

const example = "examples/workers/server.ts";
const mixed = "test/fixtures/mixed_workers.ts";
const pieceCount = 30;
const question = "GET / HTTP/1.1\r\nHost: test\r\n\r\n";

/** Deno loads a worker's program itself, and asks for leave to read it. */
function commandOf(runtime: RuntimeName, file: string): readonly string[] {
  const [program, ...args] = commandFor(runtime, join(root, file));
  return runtime === "deno" ? [program!, args[0]!, "--allow-read", ...args.slice(1)] : [program!, ...args];
}

const next = (relay: Relay, runtime: RuntimeName, listeners: number, file = example): Promise<Server> =>
  relay.next(runtime, { LISTENERS: String(listeners) }, commandOf(runtime, file));

/** An answer that takes its time: as many lines as there are pieces, all of one process. */
async function streamed(port: number): Promise<{ readonly count: number; readonly generations: readonly number[] }> {
  const request = get({ port, path: `/stream?ms=${pieceCount * 50}`, agent: false });
  const [response] = await once(request, "response") as [IncomingMessage];
  const lines = (await text(response)).trim().split("\n");
  const generations = new Set(lines.map((line) => JSON.parse(line).generation as number));
  return { count: lines.length, generations: [...generations] };
}

/** The generation that answers on a connection, and in which of its workers. */
async function askOn(client: HttpClient): Promise<{ generation: number; worker: number }> {
  return JSON.parse(String((await client.ask(question)).body));
}

test("workers that stream finish, idle connections stay with them, and new ones go to the successor", async () => {
  await using relay = await Relay.open({ SETTLE_MS: "50", DRAIN_MS: "20000" }, example);
  await next(relay, "node", 3);
  for (const [index, runtime] of (["deno", "bun", "node"] as const).entries()) {
    const generation = index + 1;
    const incumbent = relay.current;
    const kept = Array.from({ length: 12 }, () => new HttpClient({ host: "127.0.0.1", port: relay.port }));
    for (const client of kept) assert.equal((await askOn(client)).generation, generation);
    const streams = Array.from({ length: 6 }, () => streamed(relay.port));
    await sleep(100);
    await next(relay, runtime, 2 + index);
    await relay.settled();
    await sleep(100);
    const fresh = Array.from({ length: 30 }, () => new HttpClient({ host: "127.0.0.1", port: relay.port }));
    const answers = await Promise.all(fresh.map(askOn));
    assert.ok(answers.every((answer) => answer.generation === generation + 1), JSON.stringify(answers));
    assert.equal(new Set(answers.map(({ worker }) => worker)).size, 2 + index, "every worker has its share");
    for (const client of kept) assert.equal((await askOn(client)).generation, generation);
    for (const client of [...kept, ...fresh]) client[Symbol.dispose]();
    for (const stream of await Promise.all(streams)) {
      assert.deepEqual(stream, { count: pieceCount, generations: [generation] });
    }
    assert.equal(await incumbent.ended, 0, incumbent.stderr);
    const { moved, remaining } = await incumbent.event("drained");
    assert.deepEqual({ moved, remaining }, { moved: 0, remaining: 0 });
  }
});

test("no connection of an address moves of which one server is in a worker, whatever it is doing", async () => {
  await using relay = await Relay.open({ SETTLE_MS: "50", DRAIN_MS: "3000" }, mixed);
  await next(relay, "deno", 3, mixed);
  for (const [index, runtime] of (["bun", "node", "deno"] as const).entries()) {
    const generation = index + 1;
    const incumbent = relay.current;
    const kept = Array.from({ length: 12 }, () => new HttpClient({ host: "127.0.0.1", port: relay.port }));
    const workers = await Promise.all(kept.map(askOn));
    assert.ok(workers.some(({ worker }) => worker === 0) && workers.some(({ worker }) => worker > 0));
    // An answer that has begun looks like one that is over, from outside.
    const streams = Array.from({ length: 12 }, () => streamed(relay.port));
    await sleep(100);
    await next(relay, runtime, 3, mixed);
    await relay.settled();
    for (const client of kept) {
      assert.equal((await askOn(client)).generation, generation);
      client[Symbol.dispose]();
    }
    const all = await Promise.all(streams);
    // The one in the main thread answers at once.
    assert.ok(all.every(({ count }) => count === 1 || count === pieceCount), JSON.stringify(all));
    assert.ok(all.some(({ count }) => count === pieceCount));
    await incumbent.ended;
    assert.equal((await incumbent.event("drained")).moved, 0);
  }
});

test("nine hand-overs of listeners in workers lose no fresh connection", async () => {
  await using relay = await Relay.open({ SETTLE_MS: "50", DRAIN_MS: "10000" }, example);
  const counts = [2, 3, 1, 3, 2, 2, 1, 2, 3, 2];
  await next(relay, nineHandOvers[0]!, counts[0]!);
  using load = startLoad({ port: relay.port, seconds: 600, freshPerSecond: 1_000 });
  for (const [index, runtime] of nineHandOvers.entries()) {
    if (index === 0) continue;
    await sleep(200);
    await next(relay, runtime, counts[index]!);
    await relay.settled();
  }
  await sleep(200);
  load.stop();
  const report = await load.report;
  console.log(summaryOf(report));
  assert.deepEqual(report.failures, {});
  assert.equal(Object.keys(report.byServer).length, counts.length, "every generation answered");
});
