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
import { type Options, type Player, rounded, type Row, Scratch, sleep, startLoad, type Table } from "./support.ts";

const perSecond = 2_000;
const handOverEveryMs = 500;

/** What goes on while the connections come. */
const disturbances = ["none", "processes start", "hand-overs"] as const;
type Disturbance = (typeof disturbances)[number];

export async function run({ quick }: Options): Promise<readonly Table[]> {
  const [roundCount, ms] = quick ? [1, 1_000] : [2, 5_000];
  using scratch = new Scratch();
  const { load, notes } = startLoad(scratch);
  await using client = load;
  const rows: Row[] = [];
  for (const runtime of runtimes) {
    for (let round = 0; round < roundCount; round++) {
      for (const disturbance of disturbances) rows.push(await measure(runtime, disturbance, client, scratch, ms));
    }
  }
  return [{
    title: `fresh: ${perSecond} connections a second for ${ms} ms, a disturbance every ${handOverEveryMs} ms; ms`,
    rows: withRatios(rows),
    notes: [
      "latency: from when a connection was due until its answer was whole; failed is to be 0",
      "ratio: of p99.9, to the same runtime and round without any disturbance",
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
): Promise<Row> {
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
    const { answered, failed, p50, p99, p999, max } = await client.play("fresh", port, ms, perSecond) as unknown as Latencies;
    stop.abort();
    const count = await disturbing;
    return {
      runtime, disturbance, times: count, answered, failed,
      p50: rounded(p50, 2), p99: rounded(p99, 2), "p99.9": rounded(p999, 2), max: rounded(max, 2),
    };
  } finally {
    for (const server of chain) await server[Symbol.asyncDispose]();
  }
}

type Latencies = Record<"answered" | "failed" | "p50" | "p99" | "p999" | "max", number>;

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

/** Every third row is the one at rest, before the two that are compared with it. */
function withRatios(rows: readonly Row[]): Row[] {
  return rows.map((row, at) => {
    const reference = rows[at - at % disturbances.length]!;
    return { ...row, ratio: rounded(Number(row["p99.9"]) / Number(reference["p99.9"]), 2) };
  });
}
