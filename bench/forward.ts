/**
 * Accepted TCP connections a second from one process to another: accept, send,
 * receive there, close. Through the library on each runtime, beside the same in
 * C, and beside `child.send(message, socket)`.
 *
 * The client is not what is measured: it fills the accept queue before a round
 * begins, and rests until the round is over. So a round is as long as the queue.
 *
 * @module
 */

import { readFileSync } from "node:fs";
import { join } from "node:path";
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
  type Table,
} from "./support.ts";

const aim = 0.7;
const aimPerSecond = 20_000;

/** Connections in the queue; some room is left, because a full one drops. */
const queueLength = 4_000;

/** Over one Unix connection, or over one each. */
type Mode = "one" | "each";

/** How fast, and the processor time of both processes for a connection, in microseconds. */
type Figures = Record<"perSecond" | "cpu", number>;

/** Who passes connections on. */
interface Contestant {
  readonly server: Player;
  /** Null for the child of `child.send`, which its parent plays with. */
  readonly receiver: Player | null;
  readonly mode: Mode;
}

export async function run({ quick }: Options): Promise<readonly Table[]> {
  const [roundCount, count] = quick ? [3, 500] : [15, Math.min(queueLength, somaxconn() - 96)];
  using scratch = new Scratch();
  await using stack = new AsyncDisposableStack();
  const program = scratch.compile("forward");
  if (!program) {
    return [{ title: "forward", rows: [], notes: [`SKIPPED: ${noCompiler}. The client is written in C`] }];
  }
  const client = stack.use(Player.start([program, "client"]));
  const contestants = new Map<string, Contestant>();
  for (const name of ["C", ...runtimes] as const) {
    const [server, receiver] = pairOf(name, program, scratch);
    stack.use(server);
    stack.use(receiver);
    contestants.set(`${name}, one`, { server, receiver, mode: "one" });
    contestants.set(`${name}, each`, { server, receiver, mode: "each" });
  }
  for (const name of ["node", "bun"] as const) {
    const server = stack.use(new Player(new Server(name, "bench/servers/forward_child.ts", {})));
    contestants.set(`${name}, child.send`, { server, receiver: null, mode: "one" });
  }
  const play = (name: string) => playRound(contestants.get(name)!, client, count);
  await interleave([...contestants.keys()], quick ? 1 : 3, play);
  const rounds = await interleave([...contestants.keys()], roundCount, play);
  const of = (name: string, field: keyof Figures) => median(rounds.get(name)!.map((figures) => figures[field]));
  const rows = [...contestants].map(([name, { receiver, mode }]): Row => {
    const perSecond = of(name, "perSecond");
    const row = { through: name, "connections/s": Math.round(perSecond), "cpu us each": rounded(of(name, "cpu"), 1) };
    if (name.startsWith("C,")) return row;
    const ratio = perSecond / of(`C, ${mode}`, "perSecond");
    if (!receiver) return { ...row, ratio: rounded(ratio, 3) };
    const met = ratio >= aim || perSecond >= aimPerSecond;
    return { ...row, ...atLeast(ratio, aim), met: met ? "yes" : "no" };
  });
  return [{
    title: `forward: ${roundCount} rounds of ${count} connections, interleaved`,
    rows,
    notes: [
      "one: over one Unix connection; each: over one each, as examples/forward does; one descriptor a message in both",
      `ratio: of medians, to C in the same run; met also from ${aimPerSecond} a second on`,
      "cpu: of both processes, closing the TCP connection included; the client rests meanwhile",
      "child.send: Node's own, to a forked child only; Bun's is beside it",
    ],
  }];
}

/** A server and a receiver of one kind. */
function pairOf(name: RuntimeName | "C", program: string, scratch: Scratch): [Player, Player] {
  const env = { FORWARD_SOCKET: join(scratch.path, `${name}.sock`) };
  const start = (ROLE: "server" | "receiver") =>
    name === "C"
      ? new Player(new Server("node", "", env, [program, ROLE]))
      : new Player(new Server(name, "bench/servers/forward.ts", { ...env, ROLE }));
  return [start("server"), start("receiver")];
}

async function playRound({ server, receiver, mode }: Contestant, client: Player, count: number): Promise<Figures> {
  const { port, pid, childPid } = await server.server.event("open");
  const pids = [pid, receiver ? (await receiver.server.event("open")).pid : childPid as number];
  await client.play("fill", count, port as number);
  const timeBefore = sumOf(pids, processorTimeOf);
  const receiving = receiver?.play(mode, count);
  const { perSecond } = await server.play(mode, count);
  await receiving;
  const cpu = (sumOf(pids, processorTimeOf) - timeBefore) / count * 1_000;
  await client.play("close", count);
  return { perSecond: perSecond as number, cpu };
}

function sumOf(pids: readonly number[], of: (pid: number) => number): number {
  return pids.reduce((sum, pid) => sum + of(pid), 0);
}

/** The longest accept queue (listen(2)). */
function somaxconn(): number {
  return Number(readFileSync("/proc/sys/net/core/somaxconn", "utf8"));
}
