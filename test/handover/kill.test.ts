/**
 * SIGKILL of either side at every system call of a hand-over that matters:
 * whatever it is, the service goes on and the next successor takes over.
 *
 * The calls are counted first, in a run that nobody dies in.
 */

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { commandFor, root } from "../support/binaries.mjs";
import { assertServes } from "../support/http.ts";
import { Relay, Scratch, sleep } from "../support/relay.ts";
import { type RuntimeName, runtimes, Server } from "../support/server.ts";
import { attach, hasStrace, straced } from "../support/strace.ts";

/** What moves descriptors and frames, and what the event loop is told. */
const calls = ["connect", "sendmsg", "recvmsg", "dup3", "listen", "epoll_ctl", "sendto", "write"] as const;
type Call = (typeof calls)[number];

/** Of the most frequent calls, which also wake threads, every so many is tried. */
const steps: Readonly<Partial<Record<Call, number>>> = { write: 3, epoll_ctl: 2 };

/** How many hand-overs run at the same time. */
const lanes = 2;

/** One death: the N-th of these calls on one side. */
interface Death {
  readonly side: "incumbent" | "successor";
  readonly runtime: RuntimeName;
  readonly call: Call;
  readonly nth: number;
}

const env = { SETTLE_MS: "40", DRAIN_MS: "200" };
const example = join(root, "examples/http.ts");

/** How often each side makes each call in a whole hand-over on one runtime. */
async function countCalls(runtime: RuntimeName): Promise<Death[]> {
  using scratch = new Scratch();
  await using relay = await Relay.open(env);
  const trace = ["-e", `trace=${calls.join(",")}`];
  const incumbent = await relay.next(runtime);
  const tracer = await attach(incumbent.pid, join(scratch.path, "incumbent"), trace);
  const log = join(scratch.path, "successor");
  await using successor = new Server(runtime, "", { ...env, PORT: String(relay.port), TAKEOVER: relay.path }, straced(commandFor(runtime, example), log, trace));
  await successor.event("settled");
  await incumbent.ended;
  await tracer.detach();
  return (["incumbent", "successor"] as const).flatMap((side) => {
    const text = readFileSync(join(scratch.path, side), "utf8");
    return calls.flatMap((call) => {
      const count = [...text.matchAll(new RegExp(`^${call}\\(`, "gm"))].length;
      const nths = Array.from({ length: count }, (_, index) => index + 1);
      return nths.filter((nth) => (nth - 1) % (steps[call] ?? 1) === 0).map((nth): Death => ({ side, runtime, call, nth }));
    });
  });
}

/** Lets one side die, and looks after the service. */
async function die({ side, runtime, call, nth }: Death): Promise<void> {
  using scratch = new Scratch();
  await using relay = await Relay.open(env);
  const log = join(scratch.path, "log");
  const options = ["-e", `trace=${call}`, "-e", `inject=${call}:signal=SIGKILL:when=${nth}`];
  const incumbent = await relay.next(runtime);
  if (side === "incumbent") {
    const tracer = await attach(incumbent.pid, log, options);
    await relay.next(runtime);
    await relay.settled();
    await tracer.detach();
  } else {
    const own = { ...env, PORT: String(relay.port), TAKEOVER: relay.path };
    const successor = new Server(runtime, "", own, straced(commandFor(runtime, example), log, options));
    relay.servers.push(successor);
    await Promise.race([successor.ended, successor.event("settled").catch(() => {})]);
    // The hand-over was over before the call came: it kills the only server.
    if (await isSettled(incumbent)) return;
  }
  await assertServes(relay.port, 3);
  // The next one may come while the lease of the one that died still runs out.
  await relay.next("bun");
  assert.equal((await assertServes(relay.port, 3)).runtime, "bun");
}

/** What the incumbent makes of it, once it has read what the successor had still sent. */
async function isSettled(incumbent: Server): Promise<boolean> {
  await sleep(100);
  if (!incumbent.events.some(({ event }) => event === "released")) return false;
  return (await incumbent.firstOf(["resumed", "settled"])).event === "settled";
}

async function dieAll(deaths: readonly Death[]): Promise<void> {
  const left = [...deaths];
  await Promise.all(Array.from({ length: lanes }, async () => {
    for (let death = left.shift(); death; death = left.shift()) {
      await die(death).catch((cause) => {
        throw new Error(`The service did not survive ${JSON.stringify(death)}: ${cause.message}`, { cause });
      });
    }
  }));
}

test("the service survives SIGKILL of either side at every call of a hand-over", async (context) => {
  if (!hasStrace()) {
    assert.notEqual(process.env.CI, "true", "CI has strace");
    return context.skip("no strace to kill a process at one call with");
  }
  for (const runtime of runtimes) {
    const deaths = await countCalls(runtime);
    const start = Date.now();
    await dieAll(deaths);
    console.log(`${runtime}: ${deaths.length} deaths survived in ${((Date.now() - start) / 1_000).toFixed(0)} s`);
  }
});
