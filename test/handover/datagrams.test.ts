/**
 * Datagrams are neither lost nor doubled, and the load client would notice: it
 * is first shown a way of deploying that loses.
 *
 * `DATAGRAMS_PER_SECOND` is the load; 4,000 when it is not set.
 */

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { createInterface } from "node:readline";
import { test } from "node:test";
import { binaries, commandFor, root } from "../support/binaries.mjs";
import type { DatagramPlan, DatagramReport } from "../support/datagram_load.ts";
import { Relay, sleep } from "../support/relay.ts";
import { nineHandOvers, type RuntimeName, runtimes, type Server } from "../support/server.ts";

const perSecond = Number(process.env.DATAGRAMS_PER_SECOND ?? 4_000);
const restMs = 200;
const example = "examples/udp.ts";

/** Deno has datagram sockets with a flag only. */
function commandOf(runtime: RuntimeName): readonly string[] {
  const [program, ...args] = commandFor(runtime, join(root, example));
  return runtime === "deno" ? [program!, args[0]!, "--unstable-net", ...args.slice(1)] : [program!, ...args];
}

async function relayed(env: Record<string, string> = {}): Promise<Relay> {
  return await Relay.open({ SETTLE_MS: "50", DRAIN_MS: "2000", ...env }, example);
}

async function next(relay: Relay, runtime: RuntimeName, env: Record<string, string> = {}): Promise<Server> {
  return await relay.next(runtime, env, commandOf(runtime));
}

/** Load in a process of its own. */
class Load implements Disposable {
  readonly #child;
  /** The last line. */
  readonly #report: Promise<DatagramReport>;
  /** Resolves when every flow has had an answer. */
  readonly begun: Promise<void>;

  constructor(plan: DatagramPlan) {
    const command = ["--no-warnings", join(root, "test/support/datagram_load.ts"), JSON.stringify(plan)];
    this.#child = spawn(binaries.node26, command, { stdio: ["ignore", "pipe", "inherit"] });
    let begin = () => {};
    this.begun = new Promise((resolve) => begin = resolve);
    this.#report = new Promise((resolve, reject) => {
      createInterface({ input: this.#child.stdout }).on("line", (line) => {
        const found = JSON.parse(line) as DatagramReport;
        if (found.done) resolve(found);
        else begin();
      });
      this.#child.once("close", (status, signal) => reject(new Error(`The load client ended with ${status ?? signal}`)));
    });
    this.#report.catch(() => {});
  }

  /** @param answerLimitMs How long to wait for answers that may not come. */
  static async start(relay: Relay, answerLimitMs = 10_000, tags: readonly number[] = [0]): Promise<Load> {
    const load = new Load({ port: relay.port, flowCount: 64, perSecond, answerLimitMs, tags });
    await Promise.race([load.begun, load.#report]);
    return load;
  }

  async stop(): Promise<DatagramReport> {
    this.#child.kill("SIGTERM");
    const report = await this.#report;
    console.log(JSON.stringify(report));
    return report;
  }

  [Symbol.dispose](): void {
    this.#child.kill("SIGKILL");
  }
}

function assertNothingLost(report: DatagramReport, generationCount: number): void {
  assert.deepEqual(report.failures, {});
  assert.equal(report.answered, report.sent);
  assert.equal(report.bufferErrors, 0);
  assert.equal(Object.keys(report.byGeneration).length, generationCount, "every generation answered");
}

test("stop-then-start loses datagrams, and the load client counts them", async () => {
  await using relay = await relayed();
  const old = await next(relay, "node");
  using load = await Load.start(relay, 1_000);
  await sleep(restMs);
  old.signal("SIGKILL");
  await old.ended;
  await next(relay, "node");
  await sleep(restMs);
  const { failures } = await load.stop();
  assert.ok((failures.unanswered ?? 0) > 0);
});

test("nine hand-overs through all pairs of runtimes lose and double no datagram", async () => {
  await using relay = await relayed();
  await next(relay, nineHandOvers[0]!);
  using load = await Load.start(relay);
  for (const runtime of nineHandOvers.slice(1)) {
    await sleep(restMs);
    await next(relay, runtime);
    await relay.settled();
  }
  await sleep(restMs);
  assertNothingLost(await load.stop(), nineHandOvers.length);
  for (const server of relay.servers.slice(0, -1)) assert.equal(await server.ended, 0, server.stderr);
});

test("a successor that is killed before it is ready takes no datagram with it", async () => {
  await using relay = await relayed();
  await next(relay, "deno");
  using load = await Load.start(relay);
  for (const runtime of runtimes) {
    const successor = relay.start(runtime, { CRASH: "before-ready" }, commandOf(runtime));
    relay.servers.push(successor);
    await successor.ended;
  }
  assertNothingLost(await load.stop(), 1);
});

/** What a process has read and not answered when it is killed is lost; no runtime reads more than that at once. */
const readCount = 64;

function assertHardlyAnythingLost({ failures, sent, answered, bufferErrors }: DatagramReport): void {
  const { unanswered = 0, ...others } = failures;
  assert.deepEqual(others, {});
  assert.ok(unanswered <= readCount, `${unanswered} are lost`);
  assert.equal(answered + unanswered, sent);
  assert.equal(bufferErrors, 0);
}

test("the incumbent reads again when its successor is killed in the lease", async () => {
  await using relay = await relayed({ SETTLE_MS: "60000" });
  const incumbent = await next(relay, "bun");
  using load = await Load.start(relay, 1_000);
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
  using load = await Load.start(relay, 1_000);
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

/** The generations that answered the flows of each tag. */
function answerers({ byTag }: DatagramReport): Record<string, string> {
  return Object.fromEntries(Object.entries(byTag).map(([tag, counts]) => [tag, Object.keys(counts).join(" ")]));
}

const allTags = [0, 1, 2, 3, 4];

/** Four generations, of which the third ends by itself and the first is killed. */
async function keepsFlows(flows: "forwarded" | "steered" | "connected"): Promise<void> {
  await using relay = await relayed({ FLOWS: flows, DRAIN_MS: "60000" });
  await next(relay, "node");
  using load = await Load.start(relay, 10_000, allTags);
  for (const runtime of ["deno", "bun", "node"] as const) {
    // The third ends by itself, in the middle of the load.
    await next(relay, runtime, runtime === "bun" ? { DRAIN_MS: "1500" } : {});
    await relay.settled();
    await sleep(restMs);
  }
  await relay.servers[2]!.ended;
  await sleep(restMs);
  const report = await load.stop();
  assertNothingLost(report, 4);
  assert.deepEqual(answerers(report), { 0: "1 2 3 4", 1: "1", 2: "1 2", 3: "1 2 3 4", 4: "1 2 3 4" });
  relay.servers[0]!.signal("SIGKILL");
  await relay.servers[0]!.ended;
  using later = await Load.start(relay, 10_000, allTags);
  const { failures, ...found } = await later.stop();
  assert.equal(failures.unanswered, undefined);
  // Flows from other ports are new ones where the kernel knows them by their peers.
  const second = flows === "connected" ? "4" : "2";
  assert.deepEqual(answerers({ failures, ...found }), { 0: "4", 1: "4", 2: second, 3: "4", 4: "4" });
}

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
  using load = await Load.start(relay, 10_000, [0, 1, 2, 3, 4]);
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
  using load = await Load.start(relay, 1_000, [0, 1, 2]);
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
  using load = await Load.start(relay, 1_000, [0, 1, 2]);
  const successor = await next(relay, "deno");
  await sleep(restMs);
  successor.signal("SIGKILL");
  await incumbent.event("resumed");
  await sleep(restMs);
  const report = await load.stop();
  assertHardlyAnythingLost(report);
  assert.deepEqual(answerers(report), { 0: "1 2", 1: "1", 2: "1 2" });
});
