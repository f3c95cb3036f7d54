/**
 * Servers as real processes: started, listened to, ended by their own id.
 *
 * @module
 */

import { type ChildProcess, spawn } from "node:child_process";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { commandFor, root } from "./binaries.mjs";

/** A runtime to run a server on. */
export type RuntimeName = "deno" | "bun" | "node";

/** All three. */
export const runtimes: readonly RuntimeName[] = ["deno", "bun", "node"];

/** Every ordered pair of runtimes, as one closed walk: each follows each other once. */
export const nineHandOvers: readonly RuntimeName[] = [
  "deno", "deno", "bun", "bun", "node", "node", "deno", "node", "bun", "deno",
];

/** One JSON line of a server's stdout. */
export type ServerEvent = { readonly event: string; readonly pid: number } & Readonly<Record<string, unknown>>;

/** How long an event may take in a test; far beyond what it does take. */
const patienceMs = 30_000;

/** A server process. */
export class Server implements AsyncDisposable {
  readonly runtime: RuntimeName;
  readonly child: ChildProcess;
  readonly events: ServerEvent[] = [];
  /** What it wrote to stderr. */
  stderr = "";
  /** Its exit status, or the signal that ended it. */
  readonly ended: Promise<number | string>;
  readonly #waiting = new Set<() => void>();
  #isOver = false;

  constructor(runtime: RuntimeName, file: string, env: Record<string, string>, command?: readonly string[]) {
    this.runtime = runtime;
    const [program, ...args] = command ?? commandFor(runtime, join(root, file));
    this.child = spawn(program!, args, { cwd: root, env: { ...process.env, NO_COLOR: "1", ...env } });
    this.child.stderr!.on("data", (text) => this.stderr += text);
    createInterface({ input: this.child.stdout! }).on("line", (line) => this.#line(line));
    this.ended = new Promise((resolve) => {
      this.child.once("close", (status, signal) => {
        this.#isOver = true;
        this.#wake();
        resolve(status ?? signal ?? "gone");
      });
    });
  }

  get pid(): number {
    return this.child.pid!;
  }

  /** The first event of that name, now or later. */
  async event(name: string, limitMs = patienceMs): Promise<ServerEvent> {
    return (await this.firstOf([name], limitMs))!;
  }

  /** The first event of one of those names, now or later. */
  async firstOf(names: readonly string[], limitMs = patienceMs): Promise<ServerEvent> {
    const until = Date.now() + limitMs;
    for (;;) {
      const found = this.events.find(({ event }) => names.includes(event));
      if (found) return found;
      if (this.#isOver || Date.now() >= until) throw new Error(this.#missing(names));
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, until - Date.now());
        this.#waiting.add(() => (clearTimeout(timer), resolve()));
      });
    }
  }

  /** Sends a signal to this process and no other. */
  signal(name: NodeJS.Signals): void {
    this.child.kill(name);
  }

  /** Kills it, unless it has ended. */
  async [Symbol.asyncDispose](): Promise<void> {
    if (!this.#isOver) this.child.kill("SIGKILL");
    await this.ended;
  }

  #line(line: string): void {
    try {
      this.events.push(JSON.parse(line));
    } catch {
      this.stderr += `${line}\n`;
    }
    this.#wake();
  }

  #wake(): void {
    for (const wake of this.#waiting) wake();
    this.#waiting.clear();
  }

  #missing(names: readonly string[]): string {
    const seen = this.events.map((event) => JSON.stringify(event)).join("\n") || "nothing";
    return `${this.runtime} (pid ${this.pid}) did not say ${names.join(" or ")}; it said:\n${seen}\n${this.stderr}`;
  }
}

/** Starts examples/http.ts on a runtime. */
export function startHttp(runtime: RuntimeName, env: Record<string, string>): Server {
  return new Server(runtime, "examples/http.ts", env);
}
