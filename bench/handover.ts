/**
 * How long a hand-over takes, as the successor sees it: from `takeOver` until
 * `ready` has resolved, and on to `settled`. Processes are fresh, as they are
 * in a deployment, so nothing is compiled beforehand.
 *
 * @module
 */

import { join } from "node:path";
import { nineHandOvers, type RuntimeName, runtimes, Server, type ServerEvent } from "../test/support/server.ts";
import { median, type Options, rounded, type Row, Scratch, type Table } from "./support.ts";

const aimMs = 20;
const script = "bench/servers/handover.ts";
const manyListeners = 300;
const patienceMs = 60_000;

export async function run({ quick }: Options): Promise<readonly Table[]> {
  using scratch = new Scratch();
  const [roundCount, manyRoundCount] = quick ? [1, 1] : [7, 3];
  const walk = [...nineHandOvers, ...Array.from({ length: roundCount - 1 }, () => nineHandOvers.slice(1)).flat()];
  const one = await measure(walk, 1, scratch);
  const many = new Map<string, Steps[]>();
  for (const runtime of runtimes) {
    const chain = new Array<RuntimeName>(manyRoundCount + 1).fill(runtime);
    for (const [pair, steps] of await measure(chain, manyListeners, scratch)) many.set(pair, steps);
  }
  const notes = [
    "hello to ready: from the first frame to the ready frame, without the server's own opening; the aim is for it",
    "to ready: takeOver + listen + ready, without the server's own opening; best and max: of all",
    "ratio: of to ready to what the process took until it called takeOver, its imports and openRuntime included",
  ];
  const oneTitle = `handover: one listener, ${roundCount} hand-overs a pair, median ms`;
  const manyTitle = `handover: ${manyListeners} listeners, ${manyRoundCount} hand-overs a runtime, median ms`;
  return [
    { title: oneTitle, rows: rowsOf(one, aimMs), notes },
    { title: manyTitle, rows: rowsOf(many, null), notes },
  ];
}

/** What a successor says when it is settled. */
type Steps = Record<"helloToReadyMs" | "startMs" | "offeredMs" | "listenMs" | "openMs" | "readyMs" | "settleMs", number>;

/** Lets each runtime of a chain take over from the one before. */
async function measure(
  chain: readonly RuntimeName[],
  listenerCount: number,
  scratch: Scratch,
): Promise<Map<string, Steps[]>> {
  const env = { TAKEOVER: join(scratch.path, `${listenerCount} ${chain[0]}.sock`), LISTENERS: `${listenerCount}` };
  const steps = new Map<string, Steps[]>();
  let incumbent = new Server(chain[0]!, script, env);
  try {
    await incumbent.event("settled", patienceMs);
    for (const runtime of chain.slice(1)) {
      const pair = `${incumbent.runtime} -> ${runtime}`;
      const successor = new Server(runtime, script, env);
      await using replaced = incumbent;
      incumbent = successor;
      const settled: ServerEvent = await successor.event("settled", patienceMs);
      if (settled.generation === 1) throw new Error(`${pair}: the successor inherited nothing`);
      steps.set(pair, [...steps.get(pair) ?? [], settled as unknown as Steps]);
      if (await replaced.ended !== 0) throw new Error(`${pair}: the incumbent failed:\n${replaced.stderr}`);
    }
  } finally {
    await incumbent[Symbol.asyncDispose]();
  }
  return steps;
}

function rowsOf(measured: Map<string, Steps[]>, aim: number | null): Row[] {
  return [...measured].toSorted(([a], [b]) => a < b ? -1 : 1).map(([pair, all]) => {
    const toReady = all.map(({ offeredMs, listenMs, readyMs }) => offeredMs + listenMs + readyMs);
    const hello = median(all.map(({ helloToReadyMs }) => helloToReadyMs));
    const of = (field: keyof Steps) => rounded(median(all.map((steps) => steps[field])), 1);
    const ms = median(toReady);
    return {
      pair,
      takeOver: of("offeredMs"),
      listen: of("listenMs"),
      ready: of("readyMs"),
      "to ready": rounded(ms, 1),
      best: rounded(Math.min(...toReady), 1),
      max: rounded(Math.max(...toReady), 1),
      "hello to ready": rounded(hello, 1),
      ...(aim === null ? {} : { aim: `< ${aim}`, met: hello < aim ? "yes" : "no" }),
      ratio: rounded(ms / median(all.map(({ startMs }) => startMs)), 2),
      "to settled": of("settleMs"),
      "own opening": of("openMs"),
    };
  });
}
