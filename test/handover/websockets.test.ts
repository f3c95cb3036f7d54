/**
 * WebSockets of `Deno.serve`, `Bun.serve` and the package ws go from process to
 * process: every message is answered once and in order, and no client connects
 * again.
 */

import assert from "node:assert/strict";
import { test } from "node:test";
import WebSocket from "ws";
import { Relay, sleep } from "../support/relay.ts";
import { nineHandOvers, type RuntimeName, type Server } from "../support/server.ts";

const { env } = process;

/** The large figures are for a machine at rest. */
const clientCount = Number(env.WEBSOCKET_CLIENTS ?? 40);
const everyMs = Number(env.WEBSOCKET_EVERY_MS ?? 40);

const chat = "examples/chat.ts";
const chainEnv = { SETTLE_MS: "20", DRAIN_MS: "60000" };

/** A client, and what it has been answered. */
interface Client {
  readonly socket: WebSocket;
  sent: number;
  answered: number;
  /** Answers whose number was not the next one. */
  wrong: number;
  readonly generations: number[];
  /** The code of its end; 0 while there is none. */
  closed: number;
}

async function connected(port: number): Promise<Client> {
  const socket = new WebSocket(`ws://127.0.0.1:${port}/ws`, { perMessageDeflate: false });
  const client: Client = { socket, sent: 0, answered: 0, wrong: 0, generations: [], closed: 0 };
  socket.on("error", () => {});
  socket.on("close", (code) => client.closed = code);
  socket.on("message", (data) => {
    const { n, generation } = JSON.parse(String(data)) as { n: number; generation: number };
    if (n !== ++client.answered) client.wrong++;
    if (client.generations.at(-1) !== generation) client.generations.push(generation);
  });
  await new Promise((resolve) => socket.once("open", resolve));
  return client;
}

function send({ socket }: Client): void {
  socket.send("hello");
}

/** Clients that send all the time, and what became of it. */
async function talking(relay: Relay, count: number, use: () => Promise<void>): Promise<readonly Client[]> {
  const clients = await Promise.all(Array.from({ length: count }, () => connected(relay.port)));
  const talk = () => {
    for (const client of clients) {
      if (client.closed !== 0) continue;
      client.sent++;
      send(client);
    }
  };
  const timer = setInterval(talk, everyMs);
  try {
    await use();
  } finally {
    clearInterval(timer);
  }
  talk();
  for (let tries = 0; tries < 1_000 && clients.some(({ sent, answered }) => answered < sent); tries++) await sleep(10);
  for (const { socket } of clients) socket.terminate();
  return clients;
}

/** Nothing lost, doubled or out of order, on the connection that it began with. */
function assertWhole(clients: readonly Client[]): void {
  const failed = clients.filter(({ sent, answered, wrong, closed }) => sent !== answered || wrong > 0 || closed > 0);
  assert.deepEqual(failed.map(({ socket: _, ...client }) => client), []);
}

/** What a process says of its connections at its end. */
async function outcomeOf(server: Server): Promise<Record<string, unknown>> {
  assert.equal(await server.ended, 0, server.stderr);
  const { moved, refused, remaining } = await server.event("drained");
  return { moved, refused, remaining };
}

test(`${clientCount} WebSockets go through all nine pairs of runtimes`, async (t) => {
  await using relay = await Relay.open(chainEnv, chat);
  await relay.next(nineHandOvers[0]!);
  const clients = await talking(relay, clientCount, async () => {
    for (const runtime of nineHandOvers.slice(1)) {
      const incumbent = relay.current;
      await relay.next(runtime);
      await relay.settled();
      assert.deepEqual(await outcomeOf(incumbent), { moved: clientCount, refused: 0, remaining: 0 });
      await sleep(2 * everyMs);
    }
  });
  assertWhole(clients);
  assert.deepEqual(clients[0]!.generations, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
  t.diagnostic(`${clients.reduce((sum, { answered }) => sum + answered, 0)} messages`);
});

/** The successor dies when it has just become ready: what it had not got goes on as if nothing had happened. */
async function outlives(incumbent: RuntimeName, successor: RuntimeName): Promise<void> {
  await using relay = await Relay.open({ ...chainEnv, SETTLE_MS: "60000" }, chat);
  const server = await relay.next(incumbent);
  const clients = await talking(relay, 20, async () => {
    const killed = relay.start(successor, { CRASH: "after-ready" });
    assert.equal(await killed.ended, "SIGKILL");
    await server.event("resumed");
    await sleep(4 * everyMs);
  });
  assertWhole(clients);
}

test("WebSockets of Deno outlive a successor that is killed", () => outlives("deno", "bun"));
test("WebSockets of Bun outlive a successor that is killed", () => outlives("bun", "node"));
test("WebSockets of Node outlive a successor that is killed", () => outlives("node", "deno"));

test("examples/chat.ts serves its page", async () => {
  for (const runtime of ["deno", "bun", "node"] as const) {
    await using relay = await Relay.open(chainEnv, chat);
    await relay.next(runtime);
    const response = await fetch(`http://127.0.0.1:${relay.port}/`);
    assert.match(response.headers.get("content-type")!, /^text\/html/);
    assert.match(await response.text(), /globalThis\.chat/);
    assert.equal((await fetch(`http://127.0.0.1:${relay.port}/other`)).status, 404);
  }
});
