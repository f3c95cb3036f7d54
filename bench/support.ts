/**
 * What the benches share: tables, medians, C programs, and processes that play
 * rounds when they are told to.
 *
 * @module
 */

import { spawnSync } from "node:child_process";
import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { root } from "../test/support/binaries.mjs";
import { Server, type ServerEvent } from "../test/support/server.ts";

/** How a bench is to be run. */
export interface Options {
  /** Fewer and shorter rounds: shows that a bench works, not what it measures. */
  readonly quick: boolean;
}

/** One line of a table, by column. */
export type Row = Readonly<Record<string, string | number>>;

/** What a bench found out. */
export interface Table {
  readonly title: string;
  readonly rows: readonly Row[];
  /** Sentences under the table; whatever could not be measured is said here. */
  readonly notes: readonly string[];
}

/** Each file of this folder that is named in run.ts has one. */
export type Bench = (options: Options) => Promise<readonly Table[]>;

/** The middle value; of an even count the mean of the two in the middle. */
export function median(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2;
}

/** Rounded for a table. */
export function rounded(value: number, digits: number): number {
  return Number(value.toFixed(digits));
}

/** An aim beside its figure: said, and never a reason to fail. */
export function atLeast(value: number, aim: number): Row {
  return { ratio: rounded(value, 3), aim: `>= ${aim}`, met: value >= aim ? "yes" : "no" };
}

/** A table as text, numbers to the right. */
export function formatTable({ title, rows, notes }: Table): string {
  const columns = [...new Set(rows.flatMap((row) => Object.keys(row)))];
  const lines = [columns, ...rows.map((row) => columns.map((column) => String(row[column] ?? "")))];
  const widths = columns.map((_, at) => Math.max(...lines.map((line) => line[at]!.length)));
  const text = lines.map((line) =>
    line.map((cell, at) => isNumber(rows, columns[at]!) ? cell.padStart(widths[at]!) : cell.padEnd(widths[at]!))
      .join("  ").trimEnd()
  );
  return ["", title, ...text.map((line) => `  ${line}`), ...notes.map((note) => `  * ${note}`), ""].join("\n");
}

function isNumber(rows: readonly Row[], column: string): boolean {
  return rows.every((row) => ["number", "undefined"].includes(typeof row[column]));
}

/** A folder of one's own, for control sockets and C programs; gone afterwards. */
export class Scratch implements Disposable {
  readonly path: string = mkdtempSync(join(tmpdir(), "socket-takeover-bench-"));

  /**
   * Compiles a C file of this folder with `$CC`, or gcc.
   *
   * @returns The program, or null when there is no compiler.
   */
  compile(name: string): string | null {
    const program = join(this.path, name);
    const source = join(root, "bench", `${name}.c`);
    const compiler = process.env.CC ?? "gcc";
    const { error, status, stderr } = spawnSync(compiler, ["-O2", "-o", program, source], { encoding: "utf8" });
    if (error) return null;
    if (status !== 0) throw new Error(`Cannot compile ${source}:\n${stderr}`);
    return program;
  }

  [Symbol.dispose](): void {
    rmSync(this.path, { recursive: true, force: true });
  }
}

/** What to say where a C program should have been. */
export const noCompiler = "no C compiler here: install gcc, or name one with CC";

/** A process that plays one round for each line that it is sent. */
export class Player implements AsyncDisposable {
  readonly server: Server;
  #round = 0;

  constructor(server: Server) {
    this.server = server;
  }

  /** Starts a C program, or anything else by its command line. */
  static start(command: readonly string[]): Player {
    return new Player(new Server("node", "", {}, command));
  }

  /** Plays a round; what it is about follows its number on the line. */
  async play(...words: readonly (string | number)[]): Promise<ServerEvent> {
    await this.server.event("open");
    const round = ++this.#round;
    this.server.child.stdin!.write(`${[round, ...words].join(" ")}\n`);
    return await this.server.event(`round ${round}`, 60_000);
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.server[Symbol.asyncDispose]();
  }
}

/** The client: load.c, or its stand-in where nothing compiles it. */
export function startLoad(scratch: Scratch): { readonly load: Player; readonly notes: readonly string[] } {
  const program = scratch.compile("load");
  if (program) return { load: Player.start([program]), notes: [] };
  const load = new Player(new Server("node", "bench/load.ts", {}));
  return { load, notes: [`${noCompiler}. The client runs on Node instead, and is itself the slower side`] };
}

/**
 * Plays A B C, B C A, C A B …: what disturbs the machine disturbs all alike,
 * and none is always the first.
 *
 * @param play Plays one round of one contestant.
 * @returns The rounds of each contestant.
 */
export async function interleave<K, V>(
  contestants: readonly K[],
  roundCount: number,
  play: (contestant: K) => Promise<V>,
): Promise<Map<K, V[]>> {
  const rounds = new Map<K, V[]>(contestants.map((contestant) => [contestant, []]));
  for (let round = 0; round < roundCount; round++) {
    const first = round % contestants.length;
    for (const contestant of [...contestants.slice(first), ...contestants.slice(0, first)]) {
      rounds.get(contestant)!.push(await play(contestant));
    }
  }
  return rounds;
}

/** Resolves after that long. */
export function sleep(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

/** A field of /proc/PID/status in kilobytes, for instance `VmRSS`. */
export function memoryOf(pid: number, field: string): number {
  const status = readFileSync(`/proc/${pid}/status`, "utf8");
  return Number(new RegExp(`^${field}:\\s*(\\d+) kB`, "m").exec(status)![1]);
}

/** Processor time of all threads so far, in milliseconds (/proc/PID/task/TID/schedstat). */
export function processorTimeOf(pid: number): number {
  const tasks = `/proc/${pid}/task`;
  const lines = readdirSync(tasks).map((task) => readFileSync(`${tasks}/${task}/schedstat`, "utf8"));
  return lines.reduce((sum, line) => sum + Number(line.split(" ")[0]), 0) / 1e6;
}
