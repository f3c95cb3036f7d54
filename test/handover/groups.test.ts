/**
 * Groups of listeners (SO_REUSEPORT): whoever waits at one of them is served,
 * whether all of them go on or not. The controls close the others at once.
 */

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { connect, type Socket } from "node:net";
import { join } from "node:path";
import { test } from "node:test";
import { disposeAll, type OwnedDescriptor } from "../../src/sockets/descriptors.ts";
import { deafConnections } from "../contract/steering_ends.ts";
import { commandFor, root } from "../support/binaries.mjs";
import { whyNoMigration, withMigration } from "../support/migration.ts";
import { asOrdinaryUser, nextOrdinary, openOrdinaryRelay, whyNotOrdinaryUser } from "../support/ordinary_user.ts";
import { Relay, sleep, startLoad, summaryOf } from "../support/relay.ts";
import { nineHandOvers, type RuntimeName, runtimes, type Server } from "../support/server.ts";

const fixture = "test/fixtures/group.ts";
const memberCount = 8;
const clientCount = 400;
/** Nobody waits that long who is answered at all. */
const patienceMs = 20_000;
const ordinary = { skip: whyNotOrdinaryUser() };

/** A client that asks once. */
class Client {
  readonly #socket: Socket;
  /** What became of it: `answered`, or what it was told instead. */
  readonly outcome: Promise<string>;

  private constructor(socket: Socket, outcome: Promise<string>) {
    this.#socket = socket;
    this.outcome = outcome;
  }

  /** Resolves when the kernel has its connection. */
  static async open(port: number): Promise<Client> {
    const socket = connect({ host: "127.0.0.1", port });
    const outcome = new Promise<string>((resolve) => {
      socket.once("data", (bytes) => resolve(String(bytes).startsWith("HTTP/1.1 200") ? "answered" : String(bytes)));
      socket.once("error", ({ code }: NodeJS.ErrnoException) => resolve(code ?? "error"));
      socket.once("close", () => resolve("closed"));
      socket.setTimeout(patienceMs, () => resolve("silence"));
    });
    await new Promise((resolve) => socket.once("connect", resolve).once("close", resolve));
    socket.write("GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
    return new Client(socket, outcome);
  }

  close(): void {
    this.#socket.destroy();
  }
}

async function openClients(port: number, count = clientCount): Promise<Client[]> {
  return await Promise.all(Array.from({ length: count }, () => Client.open(port)));
}

/** How many of the clients came to which end. */
async function outcomesOf(clients: readonly Client[]): Promise<Record<string, number>> {
  const counts: Record<string, number> = {};
  for (const client of clients) {
    const outcome = await client.outcome;
    counts[outcome] = (counts[outcome] ?? 0) + 1;
    client.close();
  }
  return counts;
}

/** How many connections wait at each listener of a port (ss(8)). */
function waitingAt(port: number): number[] {
  const { stdout } = spawnSync("ss", ["-Hltn", `sport = :${port}`], { encoding: "utf8" });
  return stdout.trim().split("\n").filter(Boolean).map((line) => Number(line.trim().split(/\s+/)[1]));
}

const sum = (counts: readonly number[]) => counts.reduce((total, count) => total + count, 0);

/** How a chain's servers are run. */
interface Way {
  open(env: Record<string, string>): Promise<Relay>;
  command(runtime: RuntimeName): readonly string[];
  next(relay: Relay, runtime: RuntimeName, env: Record<string, string>): Promise<Server>;
}

const plain = (runtime: RuntimeName) => commandFor(runtime, join(root, fixture));

/** As root, which may load programs of its own into the kernel. */
const asRoot: Way = {
  open: (env) => Relay.open(env, fixture),
  command: plain,
  next: (relay, runtime, env) => relay.next(runtime, env),
};

const asUser: Way = {
  open: (env) => openOrdinaryRelay(env, fixture),
  command: (runtime) => asOrdinaryUser(plain(runtime)),
  next: (relay, runtime, env) => nextOrdinary(relay, runtime, env, plain(runtime)),
};

/**
 * An incumbent with eight listeners that accepts nothing, a successor that has
 * copies of them, and 400 clients that wait, some at each. Then the incumbent
 * is killed, and the successor opens its servers.
 */
async function queued(
  incumbent: RuntimeName,
  successor: RuntimeName,
  env: Record<string, string>,
  way: Way = asRoot,
): Promise<{ readonly outcomes: Record<string, number>; readonly next: Server; readonly port: number }> {
  await using relay = await way.open({ LISTENERS: String(memberCount), SETTLE_MS: "100" });
  const old = await way.next(relay, incumbent, {});
  const next = relay.start(successor, { HOLD: "1", ...env }, way.command(successor));
  relay.servers.push(next);
  await next.event("held");
  old.signal("SIGSTOP");
  const clients = await openClients(relay.port);
  const waiting = waitingAt(relay.port);
  assert.equal(waiting.length, memberCount);
  assert.ok(waiting.every((count) => count > 0) && sum(waiting) === clientCount, String(waiting));
  old.signal("SIGKILL");
  await old.ended;
  next.child.stdin!.write("\n");
  await next.event("ready");
  const outcomes = await outcomesOf(clients);
  if (!env.CARELESS) await next.event(env.LISTENERS ? "closed" : "settled");
  return { outcomes, next, port: relay.port };
}

test("a successor that closes three of eight listeners at once resets whoever waits there", async () => {
  const { outcomes } = await queued("node", "node", { LISTENERS: "5", CARELESS: "1" });
  console.log(JSON.stringify(outcomes));
  const { answered = 0, ...lost } = outcomes;
  assert.ok(sum(Object.values(lost)) > 100, JSON.stringify(outcomes));
  assert.equal(answered + sum(Object.values(lost)), clientCount);
});

for (const [index, runtime] of runtimes.entries()) {
  const incumbent = runtimes[(index + 1) % runtimes.length]!;

  test(`a group of eight is taken over whole by ${runtime}, and 400 who wait are answered`, async () => {
    const { outcomes } = await queued(incumbent, runtime, {});
    assert.deepEqual(outcomes, { answered: clientCount });
  });

  test(`a group of eight is taken over by ${runtime} with three fewer, and 400 who wait are answered`, async () => {
    const { outcomes, next } = await queued(incumbent, runtime, { LISTENERS: "5" });
    assert.deepEqual(outcomes, { answered: clientCount });
    const { served, migrated, reset } = await next.event("closed");
    assert.ok((served as number) + (migrated as number) > 0);
    assert.equal(reset, 0);
  });

  test(`the same with ${runtime} as an ordinary user`, ordinary, async () => {
    const { outcomes, next } = await queued(incumbent, runtime, { LISTENERS: "5" }, asUser);
    assert.deepEqual(outcomes, { answered: clientCount });
    const { served, migrated, reset } = await next.event("closed");
    assert.ok((served as number) > 100, String(served));
    assert.deepEqual({ migrated, reset }, { migrated: 0, reset: 0 });
  });
}

test("the kernel gives what waits to the others with net.ipv4.tcp_migrate_req", { skip: whyNoMigration() }, async () => {
  const { outcomes, next } = await withMigration(() => queued("deno", "node", { LISTENERS: "5" }, asUser));
  assert.deepEqual(outcomes, { answered: clientCount });
  assert.equal((await next.event("closed")).reset, 0);
});

/** Every generation wants another count, up and down. */
const counts = [8, 5, 7, 3, 8, 8, 2, 1, 6, 4];

async function changesUnderLoad(way: Way): Promise<void> {
  await using relay = await way.open({ SETTLE_MS: "30", DRAIN_MS: "20000" });
  const env = (index: number) => ({ LISTENERS: String(counts[index]) });
  await way.next(relay, nineHandOvers[0]!, env(0));
  using load = startLoad({ port: relay.port, seconds: 600, freshPerSecond: 3_000, busyCount: 8, idleCount: 50 });
  for (const [index, runtime] of nineHandOvers.entries()) {
    if (index === 0) continue;
    await sleep(250);
    await way.next(relay, runtime, env(index));
    await relay.settled();
    if (counts[index]! < counts[index - 1]!) await relay.current.event("closed");
    else await sleep(100);
    assert.equal(waitingAt(relay.port).length, counts[index]);
  }
  await sleep(250);
  load.stop();
  const report = await load.report;
  console.log(summaryOf(report));
  assert.deepEqual(report.failures, {});
  assert.equal(Object.keys(report.byServer).length, counts.length, "every generation answered");
  for (const server of relay.servers.slice(0, -1)) assert.equal(await server.ended, 0, server.stderr);
}

test("nine hand-overs of a group that grows and shrinks lose nothing under load", () => changesUnderLoad(asRoot));

test("nine hand-overs of a group that grows and shrinks lose nothing as an ordinary user", ordinary, () =>
  changesUnderLoad(asUser));

/** Sends connections one after the other, until a process of each generation that is due has answered. */
async function spreads(port: number): Promise<number> {
  const clients = await openClients(port, 200);
  const counts = await outcomesOf(clients);
  assert.deepEqual(counts, { answered: 200 });
  return waitingAt(port).length;
}

for (const [from, to] of [[8, 5], [3, 6]] as const) {
  test(`a successor with ${to} of ${from} listeners is killed in the lease, and nobody is refused`, async () => {
    await using relay = await Relay.open({ SETTLE_MS: "60000", LISTENERS: String(from) }, fixture);
    const incumbent = await relay.next("bun");
    for (const runtime of ["node", "deno"] as const) {
      const resumedCount = incumbent.events.filter(({ event }) => event === "resumed").length;
      const successor = await relay.next(runtime, { LISTENERS: String(to) });
      assert.deepEqual(await outcomesOf(await openClients(relay.port, 100)), { answered: 100 });
      successor.signal("SIGSTOP");
      // They wait at listeners that both have.
      const waiting = await openClients(relay.port, 100);
      successor.signal("SIGKILL");
      await successor.ended;
      assert.deepEqual(await outcomesOf(waiting), { answered: 100 });
      while (incumbent.events.filter(({ event }) => event === "resumed").length === resumedCount) await sleep(10);
      assert.equal(await spreads(relay.port), from);
    }
  });
}

test("a successor that is killed before it is ready leaves the group as it was", async () => {
  await using relay = await Relay.open({ LISTENERS: "6" }, fixture);
  await relay.next("node");
  for (const [runtime, count] of [["deno", "2"], ["bun", "8"]] as const) {
    const successor = relay.start(runtime, { LISTENERS: count, CRASH: "before-ready" });
    relay.servers.push(successor);
    await successor.ended;
    await relay.servers[0]!.event("ready");
    await sleep(100);
    assert.equal(await spreads(relay.port), 6);
  }
});

test("a successor that is killed before it is ready leaves listeners as they were that are no group for the incumbent", async () => {
  await using relay = await Relay.open({ LISTENERS: "6" }, fixture);
  await relay.next("node", { CARELESS: "1" });
  const successor = relay.start("bun", { LISTENERS: "2", CRASH: "before-ready" });
  relay.servers.push(successor);
  await successor.event("steering");
  await successor.ended;
  await sleep(100);
  const [incumbent] = relay.servers;
  incumbent!.signal("SIGSTOP");
  const clients = await openClients(relay.port, 120);
  const waiting = waitingAt(relay.port);
  incumbent!.signal("SIGCONT");
  assert.deepEqual(await outcomesOf(clients), { answered: 120 });
  assert.ok(waiting.length === 6 && waiting.every((count) => count > 0), String(waiting));
});

/** How many of 200 clients wait at each listener while nobody accepts; then they are answered. */
async function waitingWhileStopped(port: number, servers: readonly Server[]): Promise<number[]> {
  for (const server of servers) server.signal("SIGSTOP");
  const clients = await openClients(port, 200);
  const waiting = waitingAt(port);
  for (const server of servers) server.signal("SIGCONT");
  assert.deepEqual(await outcomesOf(clients), { answered: 200 });
  return waiting;
}

test("a successor whose server fails to open tries again, and has the incumbent's listener", async () => {
  await using relay = await Relay.open({ SETTLE_MS: "60000", LISTENERS: "3" }, fixture);
  const incumbent = await relay.next("deno");
  const successor = await relay.next("node", { STUMBLE: "again" });
  const waiting = await waitingWhileStopped(relay.port, [incumbent, successor]);
  assert.equal(waiting.length, 3, String(waiting));
});

test("a successor that goes on without all servers of a group leaves the others to the incumbent", async () => {
  await using relay = await Relay.open({ SETTLE_MS: "60000", LISTENERS: "4" }, fixture);
  const incumbent = await relay.next("bun");
  const successor = await relay.next("node", { LISTENERS: "3", STUMBLE: "on" });
  await successor.event("steering");
  const waiting = await waitingWhileStopped(relay.port, [incumbent, successor]);
  assert.ok(waiting.length === 4 && waiting.every((count) => count > 0), String(waiting));
});

for (const [words, way, options] of [["", asRoot, {}], [" as an ordinary user", asUser, ordinary]] as const) {
  test(`surplus listeners that a stopped incumbent has still get no connections${words}`, options, async () => {
    const limits = JSON.stringify({ settleMs: 60_000, releaseMs: 200 });
    await using relay = await way.open({ LIMITS: limits });
    const incumbent = await way.next(relay, "node", { LISTENERS: String(memberCount) });
    const successor = await way.next(relay, "bun", { LISTENERS: "5", LIMITS: limits.replace("60000", "3000") });
    incumbent.signal("SIGSTOP");
    assert.deepEqual((await successor.event("inherited")).names, ["web", "web.2", "web.3", "web.4", "web.5"]);
    await successor.event("closed");
    assert.equal(waitingAt(relay.port).length, memberCount);
    assert.deepEqual(await outcomesOf(await openClients(relay.port, 100)), { answered: 100 });
    incumbent.signal("SIGCONT");
    assert.equal(await incumbent.ended, 0, incumbent.stderr);
    assert.deepEqual(await outcomesOf(await openClients(relay.port, 100)), { answered: 100 });
  });
}

for (const [words, env, event] of [
  ["in the lease", { LIMITS: JSON.stringify({ settleMs: 60_000, silenceMs: 500 }) }, "resumed"],
  ["before it is ready", { LIMITS: JSON.stringify({ readyMs: 500 }), WARM_MS: "60000" }, "abandoned"],
] as const) {
  test(`new listeners of a successor that hangs ${words} get no connections`, async () => {
    await using relay = await Relay.open({ LISTENERS: "2", LIMITS: env.LIMITS }, fixture);
    const incumbent = await relay.next("node");
    const successor = relay.start("deno", { LISTENERS: "4", ...("WARM_MS" in env ? { WARM_MS: env.WARM_MS } : {}) });
    relay.servers.push(successor);
    await successor.event("WARM_MS" in env ? "steering" : "ready");
    while (waitingAt(relay.port).length < 4) await sleep(10);
    successor.signal("SIGSTOP");
    await incumbent.event(event);
    await sleep(100);
    assert.deepEqual(await outcomesOf(await openClients(relay.port, 100)), { answered: 100 });
    successor.signal("SIGKILL");
    await successor.ended;
    assert.equal(await spreads(relay.port), 2);
  });
}

test("a successor of a group whose first server has been closed has the others, and knows where they are", async () => {
  await using relay = await Relay.open({ SETTLE_MS: "60000" }, fixture);
  await relay.next("node", { LISTENERS: "3", CLOSES: "1" });
  const successor = await relay.next("deno", { LISTENERS: "1" });
  assert.equal((await successor.event("ready")).addr, `127.0.0.1:${relay.port}`);
  assert.equal(waitingAt(relay.port).length, 2);
  assert.deepEqual(await outcomesOf(await openClients(relay.port, 20)), { answered: 20 });
});

/** What becomes of clients that come one after the other until nobody is there. */
async function comeUntilRefused(port: number): Promise<Record<string, number>> {
  const counts: Record<string, number> = {};
  while (!counts["closed"] && !counts["ECONNREFUSED"]) {
    const client = await Client.open(port);
    const outcome = await client.outcome;
    counts[outcome] = (counts[outcome] ?? 0) + 1;
    client.close();
    await sleep(1);
  }
  return counts;
}

/** A successor with three fewer listeners than the eight before, which waits for handshakes that do not end. */
async function closingSurplus(relay: Relay): Promise<{ readonly server: Server; readonly half: readonly OwnedDescriptor[] }> {
  await asUser.next(relay, "node", { LISTENERS: String(memberCount), SETTLE_MS: "100" });
  const server = await asUser.next(relay, "node", { LISTENERS: "5", SETTLE_MS: "100" });
  const half = deafConnections(3, { family: "inet", hostname: "127.0.0.1", port: relay.port });
  await server.event("settled");
  return { server, half };
}

const namesOf = ({ events }: Server) => events.filter(({ event }) => event === "closed").map(({ names }) => names);

test("a process that is closed while it closes surplus listeners resets nobody, and tells of them once", ordinary, async () => {
  await using relay = await asUser.open({});
  const { server, half } = await closingSurplus(relay);
  const clients = comeUntilRefused(relay.port);
  await sleep(100);
  server.signal("SIGTERM");
  const { answered, ECONNREFUSED, ...others } = await clients;
  disposeAll(half);
  assert.deepEqual({ ECONNREFUSED, others }, { ECONNREFUSED: 1, others: {} });
  assert.ok(answered! > 0);
  assert.equal(await server.ended, 0, server.stderr);
  assert.deepEqual(namesOf(server), [["web.6", "web.7", "web.8"], ["web", "web.2", "web.3", "web.4", "web.5"]]);
});

test("a process that is closed while a successor waits for it to be at rest serves who waits at surplus listeners", ordinary, async () => {
  await using relay = await asUser.open({});
  const { server, half } = await closingSurplus(relay);
  relay.servers.push(relay.start("bun", { LISTENERS: "5" }, asUser.command("bun")));
  await sleep(500);
  server.signal("SIGTERM");
  await sleep(200);
  // Beside those of the next, which finds nobody on the path.
  assert.ok(waitingAt(relay.port).length >= memberCount, "it has all of them still");
  await relay.current.event("ready");
  assert.equal(await server.ended, 0, server.stderr);
  disposeAll(half);
  assert.deepEqual(namesOf(server)[0], ["web.6", "web.7", "web.8"]);
});
