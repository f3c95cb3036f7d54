/**
 * Requests whose bodies are on their way while process follows process: each is
 * answered once, by a handler that has run once, wherever its body began.
 */

import assert from "node:assert/strict";
import { createHash, randomBytes } from "node:crypto";
import { test } from "node:test";
import { HttpClient } from "../support/http_client.ts";
import { Relay, sleep } from "../support/relay.ts";
import type { RuntimeName } from "../support/server.ts";

const uploadCount = Number(process.env.WHOLE_UPLOADS ?? 100);

/** Every runtime after every other, with its own server and with node:http. */
const chain: readonly (readonly [RuntimeName, "native" | "node:http"])[] = [
  ["deno", "native"],
  ["bun", "native"],
  ["node", "node:http"],
  ["deno", "node:http"],
  ["node", "node:http"],
  ["bun", "node:http"],
  ["deno", "native"],
];

const env = { SETTLE_MS: "20", DRAIN_MS: "60000" };

/** Longer than a hand-over takes, so that many begin before one and end after it. */
const pieceMs = 80;
const pieceCount = 16;
const largestSize = 60_000;

/** What became of one upload. */
interface Upload {
  readonly id: string;
  /** Who served when it began, and who answered. */
  readonly from: number;
  readonly to: number;
}

/** A client that uploads one body after the other, each slowly; two of three on a connection of their own. */
async function uploads(relay: Relay, index: number, isOver: () => boolean): Promise<Upload[]> {
  const done: Upload[] = [];
  let client: HttpClient | null = null;
  await sleep(Math.random() * pieceMs * pieceCount);
  while (!isOver()) {
    if (done.length % 3 !== 2) {
      client?.[Symbol.dispose]();
      client = await new HttpClient({ host: "127.0.0.1", port: relay.port }).connected();
    }
    done.push(await upload(client!, `${index}-${done.length}`, () => readyCount(relay)));
  }
  assert.deepEqual([client?.surplusSize, client?.ended], [0, null]);
  client?.[Symbol.dispose]();
  return done;
}

/** The generation that serves. */
function readyCount({ servers }: Relay): number {
  return servers.filter(({ events }) => events.some(({ event }) => event === "ready")).length;
}

async function upload(client: HttpClient, id: string, generation: () => number): Promise<Upload> {
  const body = randomBytes(pieceCount + Math.floor(Math.random() * largestSize));
  const size = Math.ceil(body.length / pieceCount);
  client.send(`POST /whole/${id} HTTP/1.1\r\nHost: test\r\nContent-Length: ${body.length}\r\n\r\n`);
  client.send(body.subarray(0, size));
  const from = generation();
  for (let at = size; at < body.length; at += size) {
    await sleep(pieceMs);
    client.send(body.subarray(at, at + size));
  }
  const { status, body: answer } = await client.answer();
  const end = answer.indexOf("\n");
  const [found, , to, hash] = answer.toString("latin1", 0, end).split(" ");
  assert.deepEqual([status, found, hash], [200, id, createHash("sha256").update(body).digest("hex")]);
  assert.ok(answer.subarray(end + 1).equals(body), "the body comes back");
  return { id, from, to: Number(to) };
}

test(`${uploadCount} slow uploads over ${chain.length - 1} hand-overs: each is handled once, and some move in their middle`, async () => {
  await using relay = await Relay.open(env, "test/fixtures/keep_alive.ts");
  await relay.next(chain[0]![0], { KIND: chain[0]![1] });
  let isOver = false;
  const running = Promise.all(Array.from({ length: uploadCount }, (_, index) => uploads(relay, index, () => isOver)));
  // Whoever waits for it hears of it.
  running.catch(() => {});
  await sleep(pieceMs * pieceCount);
  for (const [runtime, KIND] of chain.slice(1)) {
    await relay.next(runtime, { KIND });
    await relay.settled();
    // Some begin there.
    await sleep(pieceMs * pieceCount / 2);
  }
  isOver = true;
  const done = (await running).flat();
  const outcomes = await Promise.all(relay.servers.slice(0, -1).map(async (server) => {
    assert.equal(await server.ended, 0, server.stderr);
    return await server.event("drained");
  }));
  const ran = relay.servers.flatMap(({ events }) => events).filter(({ event }) => event === "ran").map(({ id }) => id);
  assert.deepEqual(ran.toSorted(), done.map(({ id }) => id).toSorted(), "every handler ran once");
  const moved = done.filter(({ from, to }) => to > from);
  const left = (generation: number) => moved.filter(({ from, to }) => from <= generation && generation < to).length;
  const byGeneration = outcomes.map((_, index) => left(index + 1));
  console.log(`${done.length} uploads, ${moved.length} moved in their middle; from each process ${byGeneration.join(", ")}`);
  assert.ok(moved.length > 0, JSON.stringify(outcomes));
  assert.deepEqual(outcomes.map(({ remaining, refused }) => [remaining, refused]), outcomes.map(() => [0, 0]));
  assert.deepEqual(relay.servers.map(({ stderr }) => /error|warn/i.test(stderr)), chain.map(() => false), "nobody complains");
});
