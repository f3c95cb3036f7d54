/**
 * What the examples share: the environment, an event a line on stdout, progress
 * on stderr, and the life of a process that replaces its predecessor.
 *
 * Environment: `PORT` (8080), `HOST` (127.0.0.1), `TAKEOVER` (the path of the
 * control socket), `SETTLE_MS` (10000), `DRAIN_MS` (30000), `STALL_MS` (blocks
 * the event loop that long on every idle turn, for tests), `WARM_MS` (rests that
 * long before it is ready, for tests), `CRASH` (`before-ready`
 * or `after-ready`: kills itself there).
 *
 * Every event is one JSON line on stdout. Exit status: 0 after a drain, 1 after
 * a refusal.
 */

import process from "node:process";
import { formatAddress, openRuntime, SystemError, takeOver, TakeoverError, type TakeoverOptions } from "../mod.ts";
import { ProgressLine } from "./progress.ts";

// deno-lint-ignore no-explicit-any
const globals = globalThis as any;
const { env, pid } = process;

/** Which of the three this is. */
export const runtime: "deno" | "bun" | "node" = globals.Deno ? "deno" : globals.Bun ? "bun" : "node";

/** `Deno` or `Bun`, where it is that one. */
export const { Deno, Bun } = globals;

/** Where the environment wants the server. */
export const address = { hostname: env.HOST ?? "127.0.0.1", port: Number(env.PORT ?? 8080) };

/** What each answer tells of the process that gave it. */
export interface Who {
  readonly pid: number;
  readonly runtime: string;
  readonly generation: number;
}

/** A takeover. */
export type Takeover = Awaited<ReturnType<typeof takeOver>>;

/** Requests of this turn of the event loop, for `STALL_MS`. */
let requestCount = 0;

/** Counts a request, so that `STALL_MS` does not stop a turn that had one. */
export function counted(): void {
  requestCount++;
}

/**
 * Lives the whole life: takes over, opens, is ready, is replaced, drains, ends.
 *
 * @param name The example's, for its control socket.
 * @param open Opens the endpoint `web`.
 */
export async function run(
  name: string,
  open: (takeover: Takeover, who: Who) => Promise<unknown>,
  options: TakeoverOptions = {},
): Promise<void> {
  stall(Number(env.STALL_MS ?? 0));
  try {
    process.exit(await live(name, open, options));
  } catch (error) {
    refused(error);
    process.exit(1);
  }
}

async function live(
  name: string,
  open: (takeover: Takeover, who: Who) => Promise<unknown>,
  options: TakeoverOptions,
): Promise<number> {
  const takeover = await takeOver(env.TAKEOVER ?? `/tmp/socket-takeover-${name}.sock`, {
    limits: { settleMs: Number(env.SETTLE_MS ?? 10_000), drainMs: Number(env.DRAIN_MS ?? 30_000) },
    ...options,
  });
  const { generation } = takeover;
  const say = (event: string, more = {}) => report(event, { generation, ...more });
  const progress = new ProgressLine(process.stderr);

  takeover.on("ready", ({ inherited }) => {
    say("ready", { inherited: inherited.length > 0, addr: formatAddress(takeover.addr("web")) });
  });
  // The lease begins: a successor serves now. It ends in one of the next two.
  takeover.on("leased", ({ to }) => say("released", { to }));
  takeover.on("resumed", ({ code }) => say("resumed", { code }));
  takeover.on("released", ({ role, leaseMs, connections }) => say("settled", { role, leaseMs, ...connections }));
  takeover.on("settled", ({ role, leaseMs, connections }) => say("settled", { role, leaseMs, ...connections }));
  takeover.on("drained", ({ remaining, ms, connections, queues }) => {
    say("drained", { remaining, ms, ...connections, queues });
  });
  takeover.on("steering", (how) => say("steering", how));
  takeover.on("closed", (queues) => say("closed", queues));
  takeover.on("unserved", (error) => say("unserved", error));
  takeover.on("flows", ({ strategy, refused }) => say("flows", { strategy, refused }));
  takeover.on("progress", (now) => progress.show(now));

  await open(takeover, { pid, runtime, generation });
  await sleep(Number(env.WARM_MS ?? 0));
  if (env.CRASH === "before-ready") await crash();
  await takeover.ready();
  if (env.CRASH === "after-ready") await crash();

  const stopped = new Promise<number>((resolve) => process.once("SIGTERM", () => resolve(0)));
  // One whose lease was revoked accepts no more, and answers what it has.
  const replaced = takeover.released.then(() => 0, (error) => (refused(error), 1));
  const status = await Promise.race([replaced, stopped]);
  await takeover.close();
  await takeover.drained();
  progress.end();
  return status;
}

function refused(error: unknown): void {
  if (!(error instanceof TakeoverError || error instanceof SystemError)) throw error;
  report("refused", { code: error.code, message: error.message });
}

/** One event, as a line of JSON. */
export function report(event: string, more: object): void {
  console.log(JSON.stringify({ event, pid, runtime, ...more }));
}

/** Rests. */
export function sleep(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

/** SIGKILL through libc, because Deno would want --allow-run for it. */
async function crash(): Promise<never> {
  const { libc } = await openRuntime();
  libc.kill(pid, 9);
  throw new Error("still alive after SIGKILL");
}

/**
 * Blocks the event loop for that long on every turn that had no request to
 * answer. Not on the others: libuv accepts one connection a turn, so that Node
 * would serve 50 a second, with this library or without. The next turn is a
 * timer's: Deno looks for input and output only once in 61 turns while there is
 * an immediate.
 */
function stall(ms: number): void {
  if (ms <= 0) return;
  const never = new Int32Array(new SharedArrayBuffer(4));
  const turn = () => {
    if (requestCount === 0) Atomics.wait(never, 0, 0, ms);
    requestCount = 0;
    setTimeout(turn);
  };
  setTimeout(turn);
}
