/**
 * What a datagram costs: on a server without the library, on one that was taken
 * over, and on those that keep flows of older generations, which the kernel
 * brings to their process or the newest process forwards. All are alive all the
 * time; one at a time has load.
 *
 * @module
 */

import { join } from "node:path";
import { datagramCommandFor } from "../test/support/datagrams.ts";
import { type RuntimeName, runtimes, Server } from "../test/support/server.ts";
import {
  atLeast,
  interleave,
  median,
  noCompiler,
  type Options,
  Player,
  processorTimeOf,
  rounded,
  type Row,
  Scratch,
  sleep,
  type Table,
} from "./support.ts";

const aim = 0.98;
const script = "bench/servers/datagrams.ts";
const windowCount = 64;
const warmUpMs = 200;
const primingMs = 20;

/** Where the search for a loss begins, as a share of what the window has reached, and what the next step is. */
const search = { from: 0.3, growth: 1.15 } as const;

/** What a datagram is, and which server gets it. */
interface Contestant {
  /** How the server keeps flows; `plain` is without the library, `adopted` without flows. */
  readonly server: "plain" | "plain again" | "adopted" | "steered" | "connected" | "forwarded";
  /** Whose flow the datagrams are: the first generation, which is still there, or the second. */
  readonly tag: 1 | 2;
  /** A ratio of throughput that is to be met. */
  readonly aim?: number;
}

/** By what the table calls them. The second plain server shows how far two equal ones lie apart. */
const contestants: Readonly<Record<string, Contestant>> = {
  plain: { server: "plain", tag: 2 },
  "plain again": { server: "plain again", tag: 2 },
  "taken over": { server: "adopted", tag: 2, aim },
  "steered, newest": { server: "steered", tag: 2, aim },
  "steered, older": { server: "steered", tag: 1, aim },
  "connected, older": { server: "connected", tag: 1 },
  "forwarding, newest": { server: "forwarded", tag: 2 },
  "forwarded, older": { server: "forwarded", tag: 1 },
};

const names = Object.keys(contestants);

/** Those of which it is asked how many a second they carry without a loss. */
const searched = ["taken over", "steered, older", "connected, older", "forwarded, older"];

interface Figures {
  readonly perSecond: number;
  /** Processor time of a datagram in all processes of the chain, in microseconds. */
  readonly cpuUs: number;
  readonly p50Us: number;
  readonly p99Us: number;
}

/** The processes of a chain; the last one is the newest. */
type Chain = readonly Server[];

export async function run({ quick }: Options): Promise<readonly Table[]> {
  using scratch = new Scratch();
  const program = scratch.compile("datagrams");
  if (!program) {
    return [{ title: "datagrams", rows: [], notes: [`SKIPPED: ${noCompiler}. The client is written in C`] }];
  }
  await using client = Player.start([program]);
  const costs: Row[] = [];
  const rates: Row[] = [];
  const [setCount, roundCount, roundMs] = quick ? [1, 2, 100] : [3, 6, 200];
  for (const runtime of runtimes) {
    const all = new Map<string, Figures[]>(names.map((name) => [name, []]));
    for (let set = 0; set < setCount; set++) {
      const isLast = set === setCount - 1;
      await using stack = new AsyncDisposableStack();
      const chains = await startAll(runtime, scratch, client, stack);
      const play = (name: string, ms: number) => playWindow(chains, name, client, ms);
      // The runtimes' compilers get their time before anything counts.
      await interleave(names, 2, (name) => play(name, warmUpMs));
      for (const [name, figures] of await interleave(names, roundCount, (name) => play(name, roundMs))) {
        all.get(name)!.push(...figures);
      }
      if (isLast) rates.push(await ratesOf(runtime, chains, all, client, quick));
    }
    costs.push(...names.filter((name) => name !== "plain again").map((name) => costOf(runtime, name, all)));
  }
  return [costTable(costs, `${setCount} sets of processes, ${roundCount} rounds of ${roundMs} ms each`), {
    title: "datagrams: the most a second of which none is lost",
    rows: rates,
    notes: [
      `for a second each, every rate ${search.growth} times the one before, until something is lost twice`,
      "each server has a receive buffer of 1 MiB, which is some 2,700 datagrams",
      "the client takes a processor, or most of one; forwarding has two processes on what is left",
    ],
  }];
}

function costTable(rows: readonly Row[], what: string): Table {
  return {
    title: `datagrams: ${windowCount} on their way all the time, ${what}, interleaved`,
    rows,
    notes: [
      "newest, older: the flows of the process that takes over, or of the one before, which is still there",
      "cpu: processor time of a datagram and its answer, both processes of a chain together",
      "ratio: of median datagrams a second, to both plain servers; cpu ratio: of processor time, to both",
      "noise, cpu noise: the same of one plain server to the other",
    ],
  };
}

async function startAll(
  runtime: RuntimeName,
  scratch: Scratch,
  client: Player,
  stack: AsyncDisposableStack,
): Promise<Map<Contestant["server"], Chain>> {
  const start = (env: Record<string, string>) =>
    stack.use(new Server(runtime, script, env, datagramCommandFor(runtime, script)));
  const chain = async (kind: Contestant["server"], env: Record<string, string>): Promise<Chain> => {
    const path = join(scratch.path, `${runtime} ${kind} ${performance.now()}.sock`);
    const first = start({ TAKEOVER: path, ...env });
    const { port } = await first.event("open");
    // It is to have known its flows before there is a second.
    await client.play("window", port as number, primingMs, windowCount, 1);
    const second = start({ TAKEOVER: path, ...env });
    const { generation } = await second.event("open");
    if (generation !== 2) throw new Error(`Expected a second generation, got ${generation}`);
    if (kind !== "adopted") return [first, second];
    await first.ended;
    return [second];
  };
  return new Map<Contestant["server"], Chain>([
    ["plain", [start({})]],
    ["plain again", [start({})]],
    ["adopted", await chain("adopted", {})],
    ["steered", await chain("steered", { FLOWS: "steered" })],
    ["connected", await chain("connected", { FLOWS: "connected" })],
    ["forwarded", await chain("forwarded", { FLOWS: "forwarded" })],
  ]);
}

async function playWindow(
  chains: ReadonlyMap<Contestant["server"], Chain>,
  name: string,
  client: Player,
  ms: number,
): Promise<Figures> {
  const { server, tag } = contestants[name]!;
  const chain = chains.get(server)!;
  const { port } = await chain.at(-1)!.event("open");
  const before = timeOf(chain);
  const found = await client.play("window", port as number, ms, windowCount, tag);
  const { sent, answered, perSecond, p50Ms, p99Ms } = found as unknown as Record<string, number>;
  if (sent !== answered) throw new Error(`${name}: ${sent! - answered!} of ${sent} datagrams are lost`);
  const cpuUs = (timeOf(chain) - before) / answered! * 1_000;
  return { perSecond: perSecond!, cpuUs, p50Us: p50Ms! * 1_000, p99Us: p99Ms! * 1_000 };
}

function timeOf(chain: Chain): number {
  return chain.reduce((sum, { pid }) => sum + processorTimeOf(pid), 0);
}

function costOf(runtime: RuntimeName, name: string, all: ReadonlyMap<string, readonly Figures[]>): Row {
  const of = (field: keyof Figures, ...which: string[]) =>
    median(which.flatMap((each) => all.get(each)!.map((figures) => figures[field])));
  const both = ["plain", "plain again"];
  const isPlain = name === "plain";
  const which = isPlain ? both : [name];
  const [compared, reference] = isPlain ? [["plain again"], ["plain"]] : [which, both];
  const ratio = (field: keyof Figures) => of(field, ...compared) / of(field, ...reference);
  const { aim } = contestants[name]!;
  return {
    runtime,
    server: name,
    "a second": Math.round(of("perSecond", ...which)),
    "p50 us": Math.round(of("p50Us", ...which)),
    "p99 us": Math.round(of("p99Us", ...which)),
    "cpu us": rounded(of("cpuUs", ...which), 1),
    ...(isPlain
      ? { noise: rounded(ratio("perSecond"), 3), "cpu noise": rounded(ratio("cpuUs"), 3) }
      : { "cpu ratio": rounded(ratio("cpuUs"), 3), ratio: rounded(ratio("perSecond"), 3) }),
    ...(aim === undefined ? {} : atLeast(ratio("perSecond"), aim)),
  };
}

/** The highest rate of each at which every datagram is answered. */
async function ratesOf(
  runtime: RuntimeName,
  chains: ReadonlyMap<Contestant["server"], Chain>,
  all: ReadonlyMap<string, readonly Figures[]>,
  client: Player,
  quick: boolean,
): Promise<Row> {
  const row: Record<string, string | number> = { runtime };
  for (const name of searched) {
    const first = search.from * median(all.get(name)!.map(({ perSecond }) => perSecond));
    row[name] = await mostOf(chains, name, first, client, quick);
  }
  return row;
}

async function mostOf(
  chains: ReadonlyMap<Contestant["server"], Chain>,
  name: string,
  first: number,
  client: Player,
  quick: boolean,
): Promise<number> {
  const { server, tag } = contestants[name]!;
  const { port } = await chains.get(server)!.at(-1)!.event("open");
  const [ms, attemptCount] = quick ? [200, 1] : [1_000, 2];
  let most = 0;
  for (let rate = first;; rate *= search.growth) {
    let reached = 0;
    for (let attempt = 0; attempt < attemptCount && reached === 0; attempt++) {
      const found = await client.play("rate", port as number, ms, Math.round(rate), tag);
      const { sent, answered, perSecond } = found as unknown as Record<string, number>;
      if (sent === answered) reached = perSecond!;
      await sleep(100);
    }
    // A client that cannot send more has found its own limit.
    if (reached < most * 1.02 || reached === 0) return Math.round(most);
    most = reached;
  }
}
