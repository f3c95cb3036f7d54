/**
 * A chain of datagram servers, the load on it, and what must come of that.
 *
 * @module
 */

import assert from "node:assert/strict";
import { join } from "node:path";
import process from "node:process";
import { commandFor, root } from "./binaries.mjs";
import type { DatagramReport } from "./datagram_load.ts";
import { type Load as Client, Relay, startDatagrams } from "./relay.ts";
import type { RuntimeName, Server } from "./server.ts";

/** The load: `DATAGRAMS_PER_SECOND`, which is 20,000 when it is not set. */
export const perSecond = Number(process.env.DATAGRAMS_PER_SECOND ?? 20_000);

const example = "examples/udp.ts";
const flowCount = 64;

/** A client below this share of its pace shows nothing of that pace. */
const leastShare = 0.9;

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

/** Load in a process of its own. */
export class Load implements Disposable {
  readonly #client: Client<DatagramReport>;
  readonly #perSecond: number;

  private constructor(client: Client<DatagramReport>, perSecond: number) {
    this.#client = client;
    this.#perSecond = perSecond;
  }

  /**
   * Starts it; resolves once each flow has had its first answer.
   *
   * @param answerLimitMs How long to wait for answers that may not come.
   * @param tags Whose flows there are; 0 is nobody's.
   * @param pace Datagrams a second.
   */
  static async start(
    { port }: { readonly port: number },
    answerLimitMs = 10_000,
    tags: readonly number[] = [0],
    pace = perSecond,
  ): Promise<Load> {
    return new Load(await startDatagrams({ port, flowCount, perSecond: pace, answerLimitMs, tags }), pace);
  }

  /** Ends it. The pace that was asked for must have been reached: a client that sends little loses little. */
  async stop(): Promise<DatagramReport> {
    this.#client.stop();
    const report = await this.#client.report;
    console.log(JSON.stringify(report));
    const least = leastShare * this.#perSecond;
    assert.ok(report.perSecond >= least, `the client sent ${report.perSecond} a second, and was to send ${this.#perSecond}`);
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
