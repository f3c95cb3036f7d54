/**
 * Flows of datagrams between real processes: what each generation is given to
 * go on with, what it is refused for, and strangers in its group.
 */

import assert from "node:assert/strict";
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { join } from "node:path";
import { test } from "node:test";
import { binaries, root } from "../support/binaries.mjs";
import { answerers, datagramCommandFor } from "../support/datagrams.ts";
import type { DatagramReport } from "../support/datagram_load.ts";
import { type Load, Relay, sleep, startDatagrams } from "../support/relay.ts";
import type { RuntimeName, Server } from "../support/server.ts";

const example = "examples/udp.ts";
const restMs = 200;

async function relayed(env: Record<string, string>): Promise<Relay> {
  return await Relay.open({ SETTLE_MS: "50", DRAIN_MS: "60000", ...env }, example);
}

async function next(relay: Relay, runtime: RuntimeName, env: Record<string, string> = {}): Promise<Server> {
  const server = await relay.next(runtime, env, datagramCommandFor(runtime));
  await relay.settled();
  return server;
}

/** A successor that the incumbent, or it itself, refuses. */
async function refused(relay: Relay, runtime: RuntimeName, env: Record<string, string>): Promise<unknown> {
  const server = relay.start(runtime, env, datagramCommandFor(runtime));
  relay.servers.unshift(server);
  const { code } = await server.event("refused");
  assert.equal(await server.ended, 1, server.stderr);
  return code;
}

async function start({ port }: Relay, tags: readonly number[]): Promise<Load<DatagramReport>> {
  return await startDatagrams({ port, flowCount: 32, perSecond: 4_000, answerLimitMs: 10_000, tags });
}

/** The generations that answered the flows of each tag; none was lost, or answered twice. */
async function answerersOf(load: Load<DatagramReport>): Promise<Record<string, string>> {
  load.stop();
  const report = await load.report;
  const { failures, sent, answered, bufferErrors } = report;
  assert.deepEqual([failures, answered, bufferErrors], [{}, sent, 0]);
  return answerers(report);
}

test("a successor without means for what its incumbent does is refused, and the incumbent serves on", async () => {
  const others = { steered: "connected", connected: "forwarded", forwarded: "steered" };
  for (const [flows, other] of Object.entries(others)) {
    await using relay = await relayed({ FLOWS: flows });
    const incumbent = await next(relay, "node");
    assert.equal((await incumbent.event("flows")).strategy, flows);
    using load = await start(relay, [0, 1]);
    for (const runtime of ["bun", "deno"] as const) {
      assert.equal(await refused(relay, runtime, { FLOWS: other }), "ERR_TAKEOVER_STATE");
    }
    await sleep(restMs);
    assert.deepEqual(await answerersOf(load), { 0: "1", 1: "1" });
  }
});

test("a successor without flows is refused by itself when its incumbent steers", async () => {
  await using relay = await relayed({});
  await next(relay, "node", { FLOWS: "steered" });
  assert.equal(await refused(relay, "bun", { FLOWS: "" }), "ERR_TAKEOVER_STATE");
});

test("a successor begins to forward where its incumbent has no flows, and says why it does nothing better", async () => {
  await using relay = await relayed({});
  await next(relay, "deno");
  assert.equal(await refused(relay, "node", { FLOWS: "connected" }), "ERR_TAKEOVER_DESCRIPTOR");
  const second = await next(relay, "node", { FLOWS: "best" });
  assert.equal((await second.event("flows")).strategy, "forwarded");
  const { refused: found } = await second.event("flows") as unknown as { refused: { strategy: string; code: string }[] };
  const code = "ERR_TAKEOVER_DESCRIPTOR";
  assert.deepEqual(found.map(({ strategy, code }) => [strategy, code]), [["steered", code], ["connected", code]]);
  using load = await start(relay, [0, 2]);
  const third = await next(relay, "bun", { FLOWS: "best" });
  assert.equal((await third.event("flows")).strategy, "forwarded");
  await sleep(restMs);
  assert.deepEqual(await answerersOf(load), { 0: "2 3", 2: "2" });
});

test("every generation goes on with the strategy of the first, and none does better alone", async () => {
  await using relay = await relayed({ FLOWS: "best" });
  await next(relay, "node", { FLOWS: "connected" });
  using load = await start(relay, [0, 1]);
  for (const runtime of ["deno", "bun"] as const) {
    assert.equal((await (await next(relay, runtime)).event("flows")).strategy, "connected");
  }
  await sleep(restMs);
  const { 1: kept } = await answerersOf(load);
  assert.equal(kept, "1");
});

/** Another program of this user at the same address, from a child of its own. */
class Stranger implements AsyncDisposable {
  readonly #child: ChildProcess;

  private constructor(port: number) {
    const { env } = globalThis.process;
    const program = `
      const { openRuntime } = await import("${join(root, "mod.ts")}");
      const { openMember } = await import("${join(root, "src/steering/reuseport.ts")}");
      openMember(await openRuntime(), { family: "inet", hostname: "127.0.0.1", port: ${port} }, "dgram", {}).take();
      console.log("there");
      setInterval(() => {}, 60_000);
    `;
    const args = ["--no-warnings", "--input-type=module", "--eval", program];
    this.#child = spawn(binaries.node26, args, { cwd: root, env, stdio: ["ignore", "pipe", "inherit"] });
  }

  static async join({ port }: Relay): Promise<Stranger> {
    const stranger = new Stranger(port);
    await once(stranger.#child.stdout!, "data");
    return stranger;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#child.exitCode !== null || this.#child.signalCode !== null) return;
    const ended = once(this.#child, "close");
    this.#child.kill("SIGKILL");
    await ended;
  }
}

test("four generations steer right with a stranger in their group, and after it has left between two of them", async () => {
  await using relay = await relayed({ FLOWS: "steered" });
  await next(relay, "node");
  await using stranger = await Stranger.join(relay);
  using load = await start(relay, [0, 1, 2]);
  await next(relay, "bun");
  await sleep(restMs);
  await next(relay, "deno");
  await sleep(restMs);
  assert.deepEqual(await answerersOf(load), { 0: "1 2 3", 1: "1", 2: "1 2" });
  // The third generation's socket was the last, and takes its place; the fourth is told.
  await stranger[Symbol.asyncDispose]();
  await next(relay, "node");
  using later = await start(relay, [0, 1, 2, 3, 4]);
  await sleep(restMs);
  assert.deepEqual(await answerersOf(later), { 0: "4", 1: "1", 2: "2", 3: "3", 4: "4" });
});
