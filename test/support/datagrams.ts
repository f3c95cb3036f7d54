/**
 * A chain of datagram servers, the load on it, and what must come of that.
 *
 * @module
 */

import assert from "node:assert/strict";
import { join } from "node:path";
import process from "node:process";
import { commandFor, root } from "./binaries.mjs";
import type { DatagramPlan, DatagramReport } from "./datagram_load.ts";
import { type Load as Client, Relay, sleep, startDatagrams } from "./relay.ts";
import { nineHandOvers, type RuntimeName, type Server } from "./server.ts";

/** Who runs the servers of a chain, and how much they carry. */
export interface Runner {
  open(env: Record<string, string>): Promise<Relay>;
  next(relay: Relay, runtime: RuntimeName, env?: Record<string, string>): Promise<Server>;
  readonly perSecond: number;
}

/** The load: `DATAGRAMS_PER_SECOND`, which is 20,000 when it is not set. */
export const perSecond = Number(process.env.DATAGRAMS_PER_SECOND ?? 20_000);

const example = "examples/udp.ts";
const flowCount = 64;
const restMs = 200;

/** A client below this share of its pace shows nothing of that pace. */
const leastShare = 0.5;

/** What a process has read and not answered when it is killed is lost; no runtime reads more than that at once. */
const readCount = 64;

/** The command that runs a server of datagrams: Deno has them with a flag only. */
export function datagramCommandFor(runtime: RuntimeName, file = example): readonly string[] {
  const [program, ...args] = commandFor(runtime, join(root, file));
  return runtime === "deno" ? [program!, args[0]!, "--unstable-net", ...args.slice(1)] : [program!, ...args];
}

/** A chain of examples/udp.ts. */
export async function relayed(env: Record<string, string> = {}): Promise<Relay> {
  return await Relay.open({ SETTLE_MS: "50", DRAIN_MS: "2000", ...env }, example);
}

/** Starts the next of the chain, and waits until it is ready. */
export async function next(relay: Relay, runtime: RuntimeName, env: Record<string, string> = {}): Promise<Server> {
  return await relay.next(runtime, env, datagramCommandFor(runtime));
}

/** Whoever runs the tests. */
const oneself: Runner = { open: relayed, next, perSecond };

/** Load in a process of its own. */
export class Load implements Disposable {
  readonly #client: Client<DatagramReport>;
  readonly #perSecond: number;

  private constructor(client: Client<DatagramReport>, perSecond: number) {
    this.#client = client;
    this.#perSecond = perSecond;
  }

  /** Starts it; resolves once each flow has had its first answer. */
  static async start({ port }: { readonly port: number }, plan: Partial<DatagramPlan> = {}): Promise<Load> {
    const whole = { port, flowCount, perSecond, ...plan };
    return new Load(await startDatagrams(whole), whole.perSecond);
  }

  /** Ends it. The pace that was asked for must have been reached: a client that sends little loses little. */
  async stop(): Promise<DatagramReport> {
    this.#client.stop();
    const report = await this.#client.report;
    console.log(JSON.stringify(report));
    const [reached, wanted] = [report.perSecond, this.#perSecond];
    assert.ok(reached >= leastShare * wanted, `the client sent ${reached} a second, and was to send ${wanted}`);
    return report;
  }

  [Symbol.dispose](): void {
    this.#client[Symbol.dispose]();
  }
}

/** Each datagram has been answered once, and each of so many generations has answered. */
export function assertNothingLost(report: DatagramReport, generationCount: number): void {
  assert.deepEqual(report.failures, {});
  assert.equal(report.answered, report.sent);
  assert.equal(report.bufferErrors, 0);
  assert.equal(Object.keys(report.byGeneration).length, generationCount, "every generation answered");
}

/** The same but for what one process had read when it was killed. */
export function assertHardlyAnythingLost({ failures, sent, answered, bufferErrors }: DatagramReport): void {
  const { unanswered = 0, ...others } = failures;
  assert.deepEqual(others, {});
  assert.ok(unanswered <= readCount, `${unanswered} are lost`);
  assert.equal(answered + unanswered, sent);
  assert.equal(bufferErrors, 0);
}

/** The generations that answered the flows of each tag. */
export function answerers({ byTag }: DatagramReport): Record<string, string> {
  return Object.fromEntries(Object.entries(byTag).map(([tag, counts]) => [tag, Object.keys(counts).join(" ")]));
}

/**
 * Goes through pairs of runtimes; each generation has flows of its own, which
 * stay with it until it ends.
 *
 * @param flows How, as examples/udp.ts takes it; left out for none.
 */
export async function handsOver(handOverCount: number, flows?: string, runner: Runner = oneself): Promise<void> {
  await using relay = await runner.open(flows === undefined ? {} : { FLOWS: flows, DRAIN_MS: "1500" });
  const tags = flows === undefined ? [0] : Array.from({ length: handOverCount + 1 }, (_, tag) => tag);
  await runner.next(relay, runtimeOf(0));
  using load = await Load.start(relay, { tags, perSecond: runner.perSecond });
  let mostCount = 0;
  for (let index = 1; index <= handOverCount; index++) {
    await sleep(restMs);
    await runner.next(relay, runtimeOf(index));
    await relay.settled();
    mostCount = Math.max(mostCount, relay.servers.filter(({ child }) => child.exitCode === null).length);
  }
  await sleep(restMs);
  const report = await load.stop();
  assertNothingLost(report, handOverCount + 1);
  for (const server of relay.servers.slice(0, -1)) assert.equal(await server.ended, 0, server.stderr);
  if (flows === undefined) return;
  for (const tag of tags.slice(1)) {
    assert.ok((report.byTag[tag]![tag] ?? 0) > 0, `generation ${tag} answered its own flows`);
  }
  assert.ok(mostCount >= 3, `several generations drain beside the newest: there were at most ${mostCount} processes`);
}

/** Four generations with flows of their own, of which the third ends by itself and the first is killed. */
export async function keepsFlows(flows: string, runner: Runner = oneself): Promise<void> {
  const allTags = [0, 1, 2, 3, 4];
  await using relay = await runner.open({ FLOWS: flows, DRAIN_MS: "60000" });
  await runner.next(relay, "node");
  const plan = { tags: allTags, perSecond: runner.perSecond };
  using load = await Load.start(relay, plan);
  for (const runtime of ["deno", "bun", "node"] as const) {
    // The third ends by itself, in the middle of the load.
    await runner.next(relay, runtime, runtime === "bun" ? { DRAIN_MS: "1500" } : {});
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
  // From an address that no flow has come from: a port alone may be one of before.
  using later = await Load.start(relay, { ...plan, from: "127.0.0.2" });
  await sleep(restMs);
  const left = await later.stop();
  // They are new flows where the kernel knows them by their peers.
  const second = flows === "connected" ? "4" : "2";
  assertNothingLost(left, new Set([second, "4"]).size);
  assert.deepEqual(answerers(left), { 0: "4", 1: "4", 2: second, 3: "4", 4: "4" });
}

/** The runtime of each generation: every pair again and again. */
function runtimeOf(index: number): RuntimeName {
  return nineHandOvers[index % (nineHandOvers.length - 1)]!;
}
