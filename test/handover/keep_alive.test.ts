/**
 * Keep-alive connections of the runtimes' own HTTP servers move with nothing
 * lost, doubled or out of order, whatever was on its way, and no client sees an
 * end. The client that says so is first shown servers that get it wrong.
 */

import assert from "node:assert/strict";
import { execFileSync, spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import net from "node:net";
import { join } from "node:path";
import { test } from "node:test";
import { commandFor, root } from "../support/binaries.mjs";
import { HttpClient } from "../support/http_client.ts";
import type { KeepAliveReport } from "../support/keep_alive_load.ts";
import { patternOf } from "../support/pattern.ts";
import { Relay, Scratch, sleep, startKeepAlive } from "../support/relay.ts";
import { nineHandOvers, type RuntimeName, runtimes, type Server } from "../support/server.ts";

const { env } = process;

/** The large figures are for a machine at rest. */
const handOverCount = Number(env.KEEP_ALIVE_HAND_OVERS ?? 20);
const kept = {
  busyCount: Number(env.KEEP_ALIVE_BUSY ?? 8),
  idleCount: Number(env.KEEP_ALIVE_IDLE ?? 80),
  slowCount: Number(env.KEEP_ALIVE_SLOW ?? 8),
};
const killedCount = Number(env.KEEP_ALIVE_KILLED ?? 200);

const fixture = "test/fixtures/keep_alive.ts";
const chainEnv = { SETTLE_MS: "20", DRAIN_MS: "60000" };

/** Silence proves nothing here. */
const proven = { ...chainEnv, LIMITS: JSON.stringify({ quietMs: 1_000_000 }) };

/** Far longer than a move takes, so that what has not moved by then could not. */
const movingMs = 300;

const bigSize = 5_000_000;

/** The runtime of each generation: every pair again and again. */
function runtimeOf(index: number): RuntimeName {
  return nineHandOvers[index % (nineHandOvers.length - 1)]!;
}

/** What became of a process's connections. */
interface Outcome {
  readonly remaining: number;
  readonly moved: number;
  readonly refused: number;
  readonly draining: Readonly<Record<string, number>>;
}

/** The outcome of a process that has been replaced, once it has ended. */
async function outcomeOf(server: Server): Promise<Outcome> {
  assert.equal(await server.ended, 0, server.stderr);
  const { remaining, moved, refused, draining } = await server.event("drained") as unknown as Outcome;
  return { remaining, moved, refused, draining };
}

/** Hands over, and waits until the one before has nothing left. */
async function handOver(relay: Relay, runtime: RuntimeName, more: Record<string, string> = {}): Promise<Outcome> {
  const incumbent = relay.current;
  await relay.next(runtime, more);
  await relay.settled();
  return await outcomeOf(incumbent);
}

function get(path: string, more = ""): string {
  return `GET ${path} HTTP/1.1\r\nHost: test\r\n${more}\r\n`;
}

/** Asks for a number: the generation that answers; the answer must be the client's own. */
async function generationOf(client: HttpClient, id: string, request = get(`/n/${id}`)): Promise<number> {
  const { status, body } = await client.ask(request);
  return generationIn(client, id, status, body);
}

function generationIn(client: HttpClient, id: string, status: number, body: Buffer): number {
  const [found, , generation, peer] = body.toString("latin1").split(" ");
  assert.deepEqual([status, found], [200, id]);
  assert.equal(peer!.replace("::ffff:", ""), client.name, "the server names its client");
  return Number(generation);
}

function summaryOf({ answered, seconds, failures, closings, worstMs }: KeepAliveReport): string {
  const worst = Object.entries(worstMs).map(([load, ms]) => `${load} ${ms.toFixed(0)} ms`).join(", ");
  return `${answered} answered in ${seconds.toFixed(1)} s, failures ${JSON.stringify(failures)}, closings ` +
    `${JSON.stringify(closings)}, the slowest: ${worst}`;
}

/** What a server that gets it wrong does from the fourth request of a connection on. */
const faults: Readonly<Record<string, (socket: net.Socket, id: string) => void>> = {
  another: (socket) => answerTo(socket, "another"),
  again: (socket, id) => (answerTo(socket, id), answerTo(socket, id)),
  cut: (socket) => void socket.end("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhe"),
  closed: (socket, id) => (answerTo(socket, id), setTimeout(() => socket.end(), 20)),
  announced: (socket, id) => answerTo(socket, id, "Connection: close\r\n"),
};

function answerTo(socket: net.Socket, id: string, more = ""): void {
  const body = `${id} 0 0 x`;
  socket.write(`HTTP/1.1 200 OK\r\nContent-Length: ${body.length}\r\n${more}\r\n${body}`);
}

/** What the client says of one. */
async function reportOf(fault: string): Promise<KeepAliveReport> {
  await using server = net.createServer((socket) => {
    let count = 0;
    socket.on("error", () => {});
    socket.on("data", (text) => {
      const id = /\/n\/(\S+)/.exec(String(text))![1]!;
      if (++count < 4) answerTo(socket, id);
      else faults[fault]!(socket, id);
    });
  }).listen(0, "127.0.0.1");
  await new Promise((resolve) => server.once("listening", resolve));
  const load = await startKeepAlive({ port: (server.address() as net.AddressInfo).port, idleCount: 5, idleMs: 50 });
  await sleep(600);
  load.stop();
  return await load.report;
}

test("answers to others, twice or cut, and connections that a server ends, are noticed", async () => {
  const [another, again, cut, closed, announced] = await Promise.all(Object.keys(faults).map(reportOf));
  assert.ok(another!.failures["idle: another's answer"]! > 0, summaryOf(another!));
  const { "idle: unasked": unasked = 0, "idle: another's answer": late = 0 } = again!.failures;
  assert.ok(unasked + late > 0, summaryOf(again!));
  assert.ok(cut!.failures["idle: closed"]! > 0, summaryOf(cut!));
  assert.ok(closed!.closings["idle: closed"]! > 0, summaryOf(closed!));
  assert.ok(announced!.closings["idle: announced"]! > 0, summaryOf(announced!));
});

test("a server that ends gracefully announces it to its connections, and one that is killed does not; both are noticed", async () => {
  for (const [signal, how] of [["SIGTERM", /^\w+: announced$/], ["SIGKILL", /^\w+: (closed|ECONNRESET)$/]] as const) {
    await using relay = await Relay.open({ ...chainEnv, DRAIN_MS: "300" }, fixture);
    const server = await relay.next("node");
    const load = await startKeepAlive({ port: relay.port, ...kept });
    server.signal(signal);
    await server.ended;
    load.stop();
    const { closings } = await load.report;
    assert.ok(Object.keys(closings).some((key) => how.test(key)), JSON.stringify(closings));
  }
});

test(`${handOverCount} hand-overs through all pairs of runtimes: every request is answered, and no connection ends`, async () => {
  await using relay = await Relay.open(chainEnv, fixture);
  await relay.next(runtimeOf(0));
  const load = await startKeepAlive({ port: relay.port, ...kept });
  // Nobody waits for the one before to have nothing left: several pass connections on at once.
  for (let index = 1; index <= handOverCount; index++) {
    await relay.next(runtimeOf(index));
    await relay.settled();
  }
  const outcomes = await Promise.all(relay.servers.slice(0, -1).map(outcomeOf));
  await sleep(200);
  load.stop();
  const report = await load.report;
  const eligibleCount = handOverCount * (kept.busyCount + kept.idleCount + kept.slowCount);
  const movedCount = outcomes.reduce((sum, { moved }) => sum + moved, 0);
  console.log(`${movedCount} of ${eligibleCount} moved; ${summaryOf(report)}`);
  assert.deepEqual([report.failures, report.closings], [{}, {}]);
  assert.ok(movedCount / eligibleCount >= 0.99, JSON.stringify(outcomes));
  assert.equal(Object.keys(report.byGeneration).length, handOverCount + 1, "every generation answered");
});

test("a request that is cut at every byte by a hand-over is answered, on fresh connections and right after an answer", async () => {
  await using relay = await Relay.open(proven, fixture);
  await relay.next("deno");
  for (const runtime of ["bun", "node", "deno"] as const) {
    const incumbent = relay.current;
    const { generation } = await incumbent.event("ready") as unknown as { generation: number };
    const requests = Array.from(get("/n/cut-00").slice(1), (_, index) => {
      const id = `cut-${String(index + 1).padStart(2, "0")}`;
      return { id, text: get(`/n/${id}`), cut: index + 1 };
    });
    const open = () => new HttpClient({ host: "127.0.0.1", port: relay.port }).connected();
    const [fresh, warm] = [await Promise.all(requests.map(open)), await Promise.all(requests.map(open))];
    for (const [index, { text, cut }] of requests.entries()) fresh[index]!.send(text.slice(0, cut));
    await Promise.all(requests.map(async ({ text, cut }, index) => {
      await generationOf(warm[index]!, "first");
      warm[index]!.send(text.slice(0, cut));
    }));
    await relay.next(runtime);
    await relay.settled();
    await sleep(movingMs);
    const clients = [...fresh, ...warm];
    for (const [index, client] of clients.entries()) {
      const { id, text, cut } = requests[index % requests.length]!;
      assert.equal(await generationOf(client, id, text.slice(cut)), generation, "who has the beginning answers");
    }
    const { remaining, moved } = await outcomeOf(incumbent);
    assert.deepEqual({ remaining, moved }, { remaining: 0, moved: clients.length });
    for (const client of clients) {
      assert.equal(await generationOf(client, "next"), generation + 1);
      client[Symbol.dispose]();
    }
  }
});

test("what is on its way ends where it began, and its connection moves then", async () => {
  await Promise.all(runtimes.map(async (runtime, index) => {
    await using relay = await Relay.open({ ...chainEnv, LIMITS: JSON.stringify({ quietMs: 500 }) }, fixture);
    const incumbent = await relay.next(runtime);
    const clients = {
      head: await open(relay),
      unchanged: await open(relay),
      post: await open(relay),
      slow: await open(relay),
      pipelined: await open(relay),
      events: await open(relay),
      big: await open(relay),
    };
    const { head, unchanged, post, slow, pipelined, events, big } = clients;
    assert.equal((await head.ask("HEAD /n/x HTTP/1.1\r\nHost: test\r\n\r\n", true)).status, 200);
    assert.equal((await unchanged.ask(get("/unchanged"))).status, 304);
    post.send("POST /echo HTTP/1.1\r\nHost: test\r\nContent-Length: 11\r\n\r\nhello");
    slow.send(get("/n/slow?ms=1500"));
    const ids = ["0", "1", "2", "3"];
    const bursts = sendBursts(pipelined, ids.map((id) => get(`/now/${id}`)).join(""));
    events.send(get("/events?count=30"));
    big.hold();
    big.send(get(`/big?size=${bigSize}`));
    const last = [await open(relay), await open(relay)] as const;
    last[0].send("GET /n/old?ms=700 HTTP/1.0\r\n\r\n");
    last[1].send(get("/n/close?ms=700", "Connection: close\r\n"));
    await events.has("data: 0");

    await relay.next(runtimes[(index + 1) % runtimes.length]!);
    await relay.settled();
    await sleep(movingMs);
    post.send(" world");
    big.release();
    assert.equal(String((await post.answer()).body), "hello world");
    assert.deepEqual((await big.answer()).body.equals(patternOf(bigSize)), true);
    for (const [client, id] of [[last[0], "old"], [last[1], "close"]] as const) {
      const { status, body } = await client.answer();
      assert.equal(generationIn(client, id, status, body), 1);
      await until(() => client.ended !== null);
    }
    const burstCount = await bursts.end();
    for (let at = 0; at < burstCount * ids.length; at++) {
      const { status, body } = await pipelined.answer();
      generationIn(pipelined, ids[at % ids.length]!, status, body);
    }
    const parts = String((await events.answer()).body).trim().split("\n\n");
    assert.deepEqual(parts, Array.from({ length: 30 }, (_, part) => `data: ${part} 1`));
    const { status, body } = await slow.answer();
    assert.equal(generationIn(slow, "slow", status, body), 1);

    // What was answered before the move began is known to be silent after its next request, pipelined ones in time.
    for (const client of Object.values(clients)) await generationOf(client, "again");
    const { remaining, moved } = await outcomeOf(incumbent);
    assert.deepEqual({ remaining, moved }, { remaining: 0, moved: Object.keys(clients).length });
    for (const client of Object.values(clients)) {
      assert.equal(await generationOf(client, "last"), 2);
      assert.deepEqual([client.surplusSize, client.ended], [0, null]);
      client[Symbol.dispose]();
    }
  }));
});

/** Sends something again and again; `end` says how often. */
function sendBursts(client: HttpClient, text: string): { end(): Promise<number> } {
  let isOver = false;
  const run = async () => {
    let count = 0;
    for (; !isOver; count++) {
      client.send(text);
      await sleep(15);
    }
    return count;
  };
  const running = run();
  return { end: () => (isOver = true, running) };
}

async function open(relay: Relay): Promise<HttpClient> {
  return await new HttpClient({ host: "127.0.0.1", port: relay.port }).connected();
}

async function until(condition: () => boolean): Promise<void> {
  for (let waitedMs = 0; !condition(); waitedMs += 10) {
    if (waitedMs > 30_000) throw new Error(`Waited 30 s for ${condition}`);
    await sleep(10);
  }
}

test("connections of Hono, Express and Fastify move", async () => {
  await using relay = await Relay.open(chainEnv, fixture);
  const chain = [
    ["deno", "hono"], ["bun", "hono"], ["node", "express"], ["deno", "express"], ["bun", "fastify"], ["node", "fastify"],
  ] as const;
  await relay.next(chain[0][0], { KIND: chain[0][1] });
  const load = await startKeepAlive({ port: relay.port, busyCount: 2, idleCount: 10, slowCount: 2 });
  for (const [runtime, KIND] of chain.slice(1)) {
    const { kind, ...outcome } = { kind: KIND, ...await handOver(relay, runtime, { KIND }) };
    assert.deepEqual(outcome, { remaining: 0, moved: 14, refused: 0, draining: {} }, `before ${runtime} with ${kind}`);
  }
  load.stop();
  const { failures, closings } = await load.report;
  assert.deepEqual([failures, closings], [{}, {}]);
});

/** Deno wants its own permissions for Unix paths. */
function unixCommand(runtime: RuntimeName): string[] {
  const command = commandFor(runtime, join(root, fixture));
  return runtime === "deno" ? command.toSpliced(2, 0, "--allow-read", "--allow-write") : command;
}

test("connections over TLS and Unix sockets drain, and the outcome says why", async (context) => {
  if (spawnSync("openssl", ["version"]).status !== 0) return context.skip("no openssl to make a certificate with");
  using scratch = new Scratch();
  const [key, cert] = [join(scratch.path, "key.pem"), join(scratch.path, "certificate.pem")];
  const made = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
  execFileSync("openssl", [...made, "-keyout", key, "-out", cert, "-subj", "/CN=localhost"], { stdio: "ignore" });
  const tlsEnv = { CERT: readFileSync(cert, "utf8"), KEY: readFileSync(key, "utf8") };
  const ways = runtimes.flatMap((runtime) => [
    { runtime, reason: "tls", more: tlsEnv },
    { runtime, reason: "unix", more: { UNIX: join(scratch.path, `${runtime}.sock`) } },
  ]);
  await Promise.all(ways.map(async ({ runtime, reason, more }) => {
    await using relay = await Relay.open({ ...chainEnv, ...more, SETTLE_MS: "700" }, fixture);
    const incumbent = await relay.next(runtime, {}, unixCommand(runtime));
    const to = "UNIX" in more ? { path: more.UNIX } : { host: "127.0.0.1", port: relay.port };
    using client = new HttpClient(to as net.NetConnectOpts, reason === "tls");
    assert.equal((await client.ask(get("/n/first"))).status, 200);
    await relay.next(runtime, {}, unixCommand(runtime));
    client.send(get("/n/second?ms=1500"));
    const { moved, draining } = await incumbent.event("settled");
    assert.deepEqual({ moved, draining }, { moved: 0, draining: { [reason]: 1 } }, `${reason} on ${runtime}`);
    const { body, isLast } = await client.answer();
    assert.deepEqual([String(body).split(" ")[2], isLast], ["1", true], `${reason} on ${runtime}`);
    client[Symbol.dispose]();
    const outcome = await outcomeOf(incumbent);
    assert.deepEqual([outcome.remaining, outcome.moved, outcome.refused], [0, 0, 0]);
  }));
});

/** Kills one side while some connections have moved and half of them cannot yet; says how many went on. */
async function killDuring(side: "incumbent" | "successor", from: RuntimeName, to: RuntimeName): Promise<string> {
  await using relay = await Relay.open({ SETTLE_MS: "60000", DRAIN_MS: "60000", LIMITS: '{"quietMs":50}' }, fixture);
  const incumbent = await relay.next(from);
  const clients = await Promise.all(Array.from({ length: killedCount }, () => open(relay)));
  for (const client of clients) assert.equal(await generationOf(client, "first"), 1);
  const held = new Set(clients.filter((_, index) => index % 2 === 0));
  for (const client of held) client.send(get("/n/held?ms=3000"));
  const successor = await relay.next(to);
  await until(() => /[1-9]\d* moved/.test(incumbent.stderr));
  const [killed, generation] = side === "incumbent" ? [incumbent, 2] : [successor, 1];
  killed.signal("SIGKILL");
  await killed.ended;
  const answers = await Promise.all(clients.map((client) => lastGenerationOf(client, held.has(client))));
  assert.deepEqual(new Set(answers), new Set([null, generation]), "some went on with one, the others ended with the other");
  for (const client of clients) {
    assert.equal(client.surplusSize, 0, "nothing is answered twice");
    client[Symbol.dispose]();
  }
  return `${answers.filter((answer) => answer !== null).length} went on after the ${side} on ${killed.runtime} was killed`;
}

/** Who answers now; null when the connection has ended. */
async function lastGenerationOf(client: HttpClient, isHeld: boolean): Promise<number | null> {
  try {
    const answer = isHeld ? await client.answer() : null;
    if (answer) assert.equal(generationIn(client, "held", answer.status, answer.body), 1);
    return await generationOf(client, "next");
  } catch (error) {
    assert.match(String(error), /^Error: (closed|ECONNRESET|EPIPE)$/);
    return null;
  }
}

test(`either process killed in the middle of a move of ${killedCount} connections: the other answers on those it has`, async () => {
  const shares = await Promise.all(runtimes.flatMap((runtime, index) => {
    const next = runtimes[(index + 1) % runtimes.length]!;
    return [killDuring("incumbent", runtime, next), killDuring("successor", runtime, next)];
  }));
  console.log(shares.join("; "));
});
