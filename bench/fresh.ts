/**
 * How long fresh connections take while the server is being replaced: against
 * examples/http.ts at rest, and during hand-overs. Between the two stands the
 * same number of processes that start and end beside it and take nothing over,
 * because starting a process is what disturbs the most.
 *
 * @module
 */

import { join } from "node:path";
import { type RuntimeName, runtimes, type Server, startHttp } from "../test/support/server.ts";
import {
  interleave,
  median,
  type Options,
  type Player,
  rounded,
  type Row,
  Scratch,
  sleep,
  startLoad,
  type Table,
} from "./support.ts";

const perSecond = 2_000;
const handOverEveryMs = 500;

/** What goes on while the connections come. */
const disturbances = ["none", "processes start", "hand-overs"] as const;
type Disturbance = (typeof disturbances)[number];

/** How often it was disturbed, and what the client says. */
type Figures = Record<"times" | "answered" | "failed" | "p50" | "p99" | "p999" | "max", number>;

export async function run({ quick }: Options): Promise<readonly Table[]> {
  const [roundCount, ms] = quick ? [1, 1_000] : [3, 5_000];
  using scratch = new Scratch();
  const { load, notes } = startLoad(scratch);
  await using client = load;
  const rows: Row[] = [];
  for (const runtime of runtimes) {
    rows.push(...rowsOf(
      runtime,
      await interleave(disturbances, roundCount, (disturbance) => measure(runtime, disturbance, client, scratch, ms)),
    ));
  }
  return [{
    title: `fresh: ${perSecond} connections a second, ${roundCount} rounds of ${ms} ms, a disturbance every ` +
      `${handOverEveryMs} ms; ms`,
    rows,
    notes: [
      "from when a connection was due until its answer was whole; medians of the rounds, max: the worst",
      "failed is to be 0",
      "ratio: of p99.9 to the same server at rest",
      ...notes,
    ],
  }];
}

async function measure(
  runtime: RuntimeName,
  disturbance: Disturbance,
  client: Player,
  scratch: Scratch,
  ms: number,
): Promise<Figures> {
  const path = (name: string) => join(scratch.path, `${runtime} ${name} ${performance.now()}.sock`);
  const env = { PORT: "0", TAKEOVER: path("served"), SETTLE_MS: "20" };
  const chain: Server[] = [startHttp(runtime, env)];
  try {
    const { addr } = await chain[0]!.event("ready");
    const port = Number(String(addr).split(":")[1]);
    await client.play("fresh", port, ms / 5, perSecond);
    const stop = new AbortController();
    const disturbing = disturb(disturbance, stop.signal, () =>
      disturbance === "hand-overs"
        ? replace(chain, () => startHttp(runtime, env))
        : startBeside(() => startHttp(runtime, { ...env, TAKEOVER: path("beside") }))
    );
    const latencies = await client.play("fresh", port, ms, perSecond);
    stop.abort();
    return { times: await disturbing, ...latencies } as unknown as Figures;
  } finally {
    for (const server of chain) await server[Symbol.asyncDispose]();
  }
}

/** Disturbs at every tick, or as soon as the one before is over; returns how often. */
async function disturb(disturbance: Disturbance, signal: AbortSignal, once: () => Promise<void>): Promise<number> {
  if (disturbance === "none") return 0;
  for (let count = 0;; count++) {
    const next = sleep(handOverEveryMs);
    if (signal.aborted) return count;
    await once();
    await next;
  }
}

/** Starts a successor; its incumbent drains and ends on its own. */
async function replace(chain: Server[], start: () => Server): Promise<void> {
  const incumbent = chain.at(-1)!;
  chain.push(start());
  await chain.at(-1)!.event("ready");
  await incumbent.event("settled");
  if (await incumbent.ended !== 0) throw new Error(`The incumbent failed:\n${incumbent.stderr}`);
}

/** Starts a server that nobody asks, and ends it. */
async function startBeside(start: () => Server): Promise<void> {
  await using beside = start();
  await beside.event("ready");
  beside.signal("SIGTERM");
  await beside.ended;
}

function rowsOf(runtime: RuntimeName, rounds: Map<Disturbance, Figures[]>): Row[] {
  const all = (disturbance: Disturbance, field: keyof Figures) =>
    rounds.get(disturbance)!.map((figures) => figures[field]);
  const sum = (values: readonly number[]) => values.reduce((total, value) => total + value, 0);
  return disturbances.map((disturbance) => {
    const of = (field: keyof Figures) => rounded(median(all(disturbance, field)), 2);
    return {
      runtime,
      disturbance,
      times: sum(all(disturbance, "times")),
      answered: sum(all(disturbance, "answered")),
      failed: sum(all(disturbance, "failed")),
      p50: of("p50"),
      p99: of("p99"),
      "p99.9": of("p999"),
      max: rounded(Math.max(...all(disturbance, "max")), 2),
      ratio: rounded(of("p999") / median(all("none", "p999")), 2),
    };
  });
}
