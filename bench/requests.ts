/**
 * Requests a second of a server that was taken over, beside the same server
 * without the library. Both are alive all the time; one at a time has load.
 *
 * @module
 */

import { join } from "node:path";
import { type RuntimeName, runtimes, Server } from "../test/support/server.ts";
import {
  atLeast,
  interleave,
  median,
  type Options,
  type Player,
  processorTimeOf,
  rounded,
  type Row,
  Scratch,
  startLoad,
  type Table,
} from "./support.ts";

const aim = 0.98;
const script = "bench/servers/hello.ts";
const connectionCount = 32;
const warmUpMs = 200;

/** The second plain server is there to show how far two equal ones lie apart. */
const contestants = ["plain", "adopted", "plain again"] as const;
type Contestant = (typeof contestants)[number];

interface Figures {
  readonly perSecond: number;
  /** Requests per millisecond of the server's processor time: others on the machine disturb it less. */
  readonly perProcessorMs: number;
}

export async function run({ quick }: Options): Promise<readonly Table[]> {
  // Two processes of one program differ by as much as a tenth, so there are several of each.
  const [setCount, roundCount, roundMs] = quick ? [1, 3, 100] : [8, 4, 200];
  using scratch = new Scratch();
  const { load, notes } = startLoad(scratch);
  await using client = load;
  const rows: Row[] = [];
  for (const runtime of runtimes) {
    const all = new Map<Contestant, Figures[]>(contestants.map((name) => [name, []]));
    for (let set = 0; set < setCount; set++) {
      const rounds = await playSet(runtime, scratch, client, roundCount, roundMs);
      for (const [name, figures] of rounds) all.get(name)!.push(...figures);
    }
    rows.push(rowOf(runtime, all));
  }
  return [{
    title: `requests: ${connectionCount} kept connections, ${setCount} sets of processes, ` +
      `${roundCount} rounds of ${roundMs} ms each, interleaved`,
    rows,
    notes: [
      "ratio: of median requests a second, adopted to both plain; noise: plain again to plain",
      "cpu ratio, cpu noise: the same of requests per processor time of the server",
      ...notes,
    ],
  }];
}

async function playSet(
  runtime: RuntimeName,
  scratch: Scratch,
  client: Player,
  roundCount: number,
  roundMs: number,
): Promise<Map<Contestant, Figures[]>> {
  await using stack = new AsyncDisposableStack();
  const servers: Record<Contestant, Server> = {
    plain: stack.use(new Server(runtime, script, {})),
    adopted: stack.use(await startAdopted(runtime, scratch)),
    "plain again": stack.use(new Server(runtime, script, {})),
  };
  // The runtimes' compilers get their time before anything counts.
  await interleave(contestants, 3, (name) => playRound(servers[name], client, warmUpMs));
  return await interleave(contestants, roundCount, (name) => playRound(servers[name], client, roundMs));
}

async function playRound(server: Server, client: Player, roundMs: number): Promise<Figures> {
  const { port } = await server.event("open");
  const before = processorTimeOf(server.pid);
  const { answered, perSecond, failed } = await client.play("kept", port as number, roundMs, connectionCount);
  if (failed !== 0) throw new Error(`${failed} connections to a ${server.runtime} server failed`);
  const perProcessorMs = (answered as number) / (processorTimeOf(server.pid) - before);
  return { perSecond: perSecond as number, perProcessorMs };
}

/** A second generation: its socket came from a first one, which has ended. */
async function startAdopted(runtime: RuntimeName, scratch: Scratch): Promise<Server> {
  const env = { TAKEOVER: join(scratch.path, `${runtime}.sock`) };
  await using first = new Server(runtime, script, env);
  await first.event("open");
  const second = new Server(runtime, script, env);
  const { generation } = await second.event("open");
  if (generation !== 2) throw new Error(`Expected a second generation, got ${generation}`);
  await first.ended;
  return second;
}

function rowOf(runtime: RuntimeName, all: Map<Contestant, Figures[]>): Row {
  const of = (field: keyof Figures, ...names: Contestant[]) =>
    median(names.flatMap((name) => all.get(name)!.map((figures) => figures[field])));
  const ratio = (field: keyof Figures) => of(field, "adopted") / of(field, "plain", "plain again");
  const noise = (field: keyof Figures) => rounded(of(field, "plain again") / of(field, "plain"), 3);
  return {
    runtime,
    "plain/s": Math.round(of("perSecond", "plain", "plain again")),
    "adopted/s": Math.round(of("perSecond", "adopted")),
    ...atLeast(ratio("perSecond"), aim),
    noise: noise("perSecond"),
    "cpu ratio": rounded(ratio("perProcessorMs"), 3),
    "cpu noise": noise("perProcessorMs"),
  };
}
