/**
 * Microseconds a connection: from descriptor to native object and back, beside
 * what the runtime's own accept takes in the same run; and what thousands of
 * such cycles leave behind.
 *
 * @module
 */

import { type RuntimeName, runtimes, Server } from "../test/support/server.ts";
import {
  interleave,
  median,
  type Options,
  Player,
  processorTimeOf,
  rounded,
  type Row,
  sleep,
  type Table,
} from "./support.ts";

const script = "bench/servers/adopt.ts";

/** What one round is about; `accept` needs no way. */
type What = "accept" | "turn" | "together";

interface Contestant {
  readonly runtime: RuntimeName;
  readonly way: string;
}

type Figures = Readonly<Record<string, number>>;

export async function run({ quick }: Options): Promise<readonly Table[]> {
  const [roundCount, count, cycleCount, restMs] = quick ? [2, 20, 200, 300] : [15, 100, 10_000, 3_000];
  await using stack = new AsyncDisposableStack();
  const players = new Map(runtimes.map((runtime) => [runtime, stack.use(new Player(new Server(runtime, script, {})))]));
  const contestants: Contestant[] = [];
  for (const [runtime, player] of players) {
    const { ways } = await player.server.event("open") as unknown as { ways: readonly string[] };
    contestants.push(...ways.map((way) => ({ runtime, way })));
  }
  const play = (contestant: Contestant, what: What | "cycle", size: number) =>
    players.get(contestant.runtime)!.play(contestant.way, what, size) as Promise<unknown> as Promise<Figures>;
  const playAll = async (contestant: Contestant) => ({
    accept: await play(contestant, "accept", count),
    turn: await play(contestant, "turn", count),
    together: await play(contestant, "together", count),
  });
  await interleave(contestants, quick ? 1 : 3, playAll);
  const rounds = await interleave(contestants, roundCount, playAll);
  const speed = contestants.map((contestant) => speedOf(contestant, rounds.get(contestant)!));
  const left: Row[] = [];
  for (const contestant of contestants) {
    const figures = await play(contestant, "cycle", cycleCount);
    left.push({ ...contestant, ...await restOf(players.get(contestant.runtime)!.server.pid, figures, restMs) });
  }
  return [{
    title: `adopt: ${roundCount} rounds of ${count} connections, interleaved; microseconds a connection, medians`,
    rows: speed,
    notes: [
      "accept: the runtime's own, from connect(2) to its handler, all at once; ratio: adopt at once to it",
      "one by one: each is awaited before the next, so turns of the event loop and timers count; at once: none waits for another",
      "{fd}: the way that the runtime documents; otherwise a graft under an object that it connected to a placeholder",
    ],
  }, {
    title: `adopt: what ${cycleCount} cycles of adopt and detach leave, eight at a time`,
    rows: left,
    notes: [`drift: descriptors, and entries of the event loop; cpu: of all threads over ${restMs} ms afterwards`],
  }];
}

function speedOf({ runtime, way }: Contestant, rounds: readonly Record<What, Figures>[]): Row {
  const of = (what: What, field: string) => median(rounds.map((round) => round[what][field]!));
  const [accept, adopt] = [of("accept", "acceptUs"), of("together", "adoptUs")];
  return {
    runtime,
    way,
    accept: rounded(accept, 1),
    "adopt at once": rounded(adopt, 1),
    ratio: rounded(adopt / accept, 2),
    "adopt one by one": rounded(of("turn", "adoptUs"), 1),
    "detach at once": rounded(of("together", "detachUs"), 1),
    "detach one by one": rounded(of("turn", "detachUs"), 1),
  };
}

async function restOf(
  pid: number,
  { cycleUs, descriptorDrift, registrationDrift }: Figures,
  restMs: number,
): Promise<Row> {
  await sleep(restMs / 3);
  const before = processorTimeOf(pid);
  await sleep(restMs);
  const share = (processorTimeOf(pid) - before) / restMs;
  return {
    "us a cycle": rounded(cycleUs!, 1),
    "descriptor drift": descriptorDrift!,
    "registration drift": registrationDrift!,
    "cpu %": rounded(share * 100, 2),
    aim: "< 1 %",
    met: share < 0.01 ? "yes" : "no",
  };
}
