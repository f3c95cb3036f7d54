/**
 * Descriptors a second, sent, received and closed in batches of 253 over a
 * socketpair: through the library on each FFI, beside the same calls in C.
 *
 * @module
 */

import { Server } from "../test/support/server.ts";
import {
  atLeast,
  interleave,
  median,
  noCompiler,
  type Options,
  Player,
  rounded,
  type Row,
  Scratch,
  type Table,
} from "./support.ts";

const aim = 0.9;
const script = "bench/servers/channel.ts";

/** Descriptors a second, with the closing and without. */
type Figures = Record<"perSecond" | "openPerSecond", number>;

export async function run({ quick }: Options): Promise<readonly Table[]> {
  const [roundCount, roundMs] = quick ? [3, 50] : [25, 150];
  using scratch = new Scratch();
  await using stack = new AsyncDisposableStack();
  const program = scratch.compile("descriptors");
  const players = new Map<string, Player>();
  if (program) {
    players.set("C", Player.start([program, "close"]));
    players.set("C, close_range", Player.start([program, "close_range"]));
  }
  players
    .set("deno", new Player(new Server("deno", script, {})))
    .set("bun", new Player(new Server("bun", script, {})))
    .set("node, koffi", new Player(new Server("node", script, { FFI: "koffi" })))
    .set("node, node:ffi", new Player(new Server("node", script, { FFI: "node:ffi" })));
  for (const player of players.values()) stack.use(player);

  // Compilers of the runtimes get their time before anything counts.
  await interleave([...players.keys()], quick ? 1 : 3, (name) => players.get(name)!.play(roundMs));
  const rounds = await interleave([...players.keys()], roundCount, async (name) => {
    const { perSecond, openPerSecond } = await players.get(name)!.play(roundMs);
    return { perSecond, openPerSecond } as Figures;
  });
  const of = (name: string, field: keyof Figures) => median(rounds.get(name)!.map((figures) => figures[field]));
  const rows = [...rounds.keys()].map((name) => {
    const perSecond = of(name, "perSecond");
    const row = { through: name, "descriptors/s": Math.round(perSecond), "ns each": rounded(1e9 / perSecond, 1) };
    if (!program || name === "C") return row;
    const ratio = (field: keyof Figures, to: string) => rounded(of(name, field) / of(to, field), 3);
    const toC = ratio("perSecond", "C");
    const judged: Row = name === "C, close_range" ? { ratio: toC, aim: "", met: "" } : atLeast(toC, aim);
    return {
      ...row,
      ...judged,
      "to close_range": ratio("perSecond", "C, close_range"),
      "open ratio": ratio("openPerSecond", "C"),
    };
  });
  const notes = [
    "ratio: of medians, to C closing one by one in the same run",
    "to close_range: to C that closes a run of numbers in one call; open ratio: without the time that closing takes",
  ];
  if (!program) notes.push(`SKIPPED the ratios: ${noCompiler}`);
  return [{ title: `descriptors: ${roundCount} rounds of ${roundMs} ms, interleaved`, rows, notes }];
}
