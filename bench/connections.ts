/**
 * Established connections from one process to the next: how long all of them
 * take, and how long one of them waits, while a client in C goes on asking on a
 * sample. Beside it `child.send(message, socket)` of Node, on as many.
 *
 * @module
 */

import { readFileSync } from "node:fs";
import { join } from "node:path";
import { nineHandOvers, type RuntimeName, runtimes, Server } from "../test/support/server.ts";
import { freePort } from "../test/support/relay.ts";
import {
  median,
  memoryOf,
  noCompiler,
  type Options,
  Player,
  rounded,
  type Row,
  Scratch,
  sleep,
  type Table,
} from "./support.ts";

const aimMs = 250;
const aimSilenceMs = 20;

/** Connections that the client asks on all the time. */
const watchedCount = 50;

/** Descriptors that a process has for other things. */
const spareCount = 1_000;

/** What one hand-over took. */
interface Figures {
  readonly pair: string;
  readonly moved: number;
  /** From the first `move` to the last `kept`. */
  readonly ms: number;
  /** The longest time to an answer, from the successor's start until the incumbent's end. */
  readonly silenceMs: number;
  /** The same in half a second before. */
  readonly restMs: number;
  /** The longest turn of either event loop. */
  readonly turnMs: number;
  /** Of the successor, with the connections. */
  readonly memoryKb: number;
}

export async function run({ quick }: Options): Promise<readonly Table[]> {
  const wanted = quick ? 2_000 : 19_000;
  const count = Math.min(wanted, descriptorLimit() - spareCount);
  const walk = quick ? (["node", "deno", "bun", "node"] as const) : nineHandOvers;
  using scratch = new Scratch();
  const program = scratch.compile("connections");
  if (!program) {
    return [{ title: "connections", rows: [], notes: [`SKIPPED: ${noCompiler}. The client is written in C`] }];
  }
  await using client = Player.start([program]);
  const sent = [await sendToChild(client, count)];
  const empty = new Map<RuntimeName, number>();
  for (const runtime of runtimes) empty.set(runtime, await emptyMemory(runtime, scratch));
  const figures = await moveAll(client, walk, count, scratch);
  sent.push(await sendToChild(client, count));
  const childMs = median(sent);
  const rows = figures.map(({ pair, moved, ms, silenceMs, restMs, turnMs, memoryKb }): Row => ({
    pair,
    moved,
    ms: rounded(ms, 1),
    "us each": usEach(ms, moved),
    aim: `< ${aimMs}`,
    met: ms < aimMs ? "yes" : "no",
    ratio: rounded(ms / childMs, 3),
    silence: rounded(silenceMs, 1),
    "at rest": rounded(restMs, 1),
    "aim ": `< ${aimSilenceMs}`,
    "met ": silenceMs < aimSilenceMs ? "yes" : "no",
    turn: rounded(turnMs, 1),
    "MB per 1000": rounded((memoryKb - empty.get(pair.split(" ").at(-1) as RuntimeName)!) / 1_024 / moved * 1_000, 2),
  }));
  const sentRow = { pair: "node, child.send", moved: count, ms: rounded(childMs, 1), "us each": usEach(childMs, count) };
  return [{
    title: `connections: ${count} held TCP connections, ${figures.length} hand-overs, ms`,
    rows: [...rows, sentRow],
    notes: [
      "ms: from the first move to the last kept, as the incumbent counts it; ratio: to child.send",
      `silence: the longest time to an answer on ${watchedCount} of them, each asked again 10 ms after its answer`,
      "at rest: the same in half a second before; turn: the longest turn of either event loop while they moved",
      "MB per 1000: VmRSS of the successor with the connections, less one that has none",
      "child.send: to a forked child, from the first send until it has the last; nobody asks meanwhile",
    ],
  }];
}

function usEach(ms: number, count: number): number {
  return rounded(ms / count * 1_000, 1);
}

/** One chain of processes; the client's connections are the same from its first to its last. */
async function moveAll(
  client: Player,
  walk: readonly RuntimeName[],
  count: number,
  scratch: Scratch,
): Promise<Figures[]> {
  const env = { TAKEOVER: join(scratch.path, "connections.sock"), PORT: String(await freePort()) };
  const start = (runtime: RuntimeName) => new Server(runtime, "bench/servers/connections.ts", env);
  let incumbent = start(walk[0]!);
  const figures: Figures[] = [];
  try {
    await incumbent.event("ready");
    await client.play("open", env.PORT, count);
    await askAll(client, count);
    for (const runtime of walk.slice(1)) {
      await using replaced = incumbent;
      const restMs = await watch(client, () => sleep(500));
      const successor = incumbent = start(runtime);
      const silenceMs = await watch(client, () => replaced.ended);
      await askAll(client, count);
      const drained = await replaced.event("drained");
      const settled = await successor.event("settled");
      const moved = Number(drained.moved);
      if (moved !== count) throw new Error(`${replaced.runtime} -> ${runtime}: ${moved} of ${count} have moved`);
      figures.push({
        pair: `${replaced.runtime} -> ${runtime}`,
        moved,
        ms: moved / Number(drained.rate) * 1_000,
        silenceMs,
        restMs,
        turnMs: Math.max(Number(drained.longestTurnMs), Number(settled.longestTurnMs)),
        memoryKb: memoryOf(successor.pid, "VmRSS"),
      });
    }
    await client.play("close");
    return figures;
  } finally {
    await incumbent[Symbol.asyncDispose]();
  }
}

/** The longest time to an answer while something happens. */
async function watch(client: Player, what: () => Promise<unknown>): Promise<number> {
  await client.play("watch", watchedCount);
  await what();
  const { longestMs, wrong, ended, unanswered } = await client.play("rest");
  if (wrong || ended || unanswered) throw new Error(`${wrong} wrong, ${ended} ended, ${unanswered} unanswered`);
  return Number(longestMs);
}

/** Every connection has to answer, and to count on. */
async function askAll(client: Player, count: number): Promise<void> {
  const { answers, wrong, ended } = await client.play("ask");
  if (answers === count && !wrong && !ended) return;
  throw new Error(`${answers} of ${count} answered, ${wrong} wrong, ${ended} ended`);
}

async function sendToChild(client: Player, count: number): Promise<number> {
  await using server = new Player(new Server("node", "bench/servers/connections_child.ts", {}));
  const { port } = await server.server.event("open");
  await client.play("open", port as number, count);
  await askAll(client, count);
  const { ms } = await server.play();
  await askAll(client, count);
  await client.play("close");
  return Number(ms);
}

async function emptyMemory(runtime: RuntimeName, scratch: Scratch): Promise<number> {
  const env = { TAKEOVER: join(scratch.path, `${runtime}.sock`), PORT: String(await freePort()) };
  await using server = new Server(runtime, "bench/servers/connections.ts", env);
  await server.event("ready");
  await sleep(300);
  return memoryOf(server.pid, "VmRSS");
}

/** Of this process, which its children inherit. */
function descriptorLimit(): number {
  const limits = readFileSync("/proc/self/limits", "utf8");
  return Number(/^Max open files\s+(\d+)/m.exec(limits)?.[1] ?? 1_024);
}
