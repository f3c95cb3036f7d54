/**
 * strace, which sends a signal to a process at exactly the N-th of its calls, so
 * that a run is the same on every machine. Only the main thread is traced:
 * JavaScript stays on it, and strace can hang when all threads of a process are
 * killed under it.
 *
 * @module
 */

import { spawn, spawnSync } from "node:child_process";
import { sleep } from "./relay.ts";

/** Whether it is here. */
export function hasStrace(): boolean {
  return spawnSync("strace", ["-V"]).status === 0;
}

/** The command that runs another one under strace. */
export function straced(command: readonly string[], log: string, options: readonly string[]): string[] {
  return ["strace", "-D", "-qq", "-o", log, ...options, ...command];
}

/** strace, attached to a process. */
export interface Tracer {
  detach(): Promise<void>;
}

/** Attaches strace to a server that runs; resolves once it is attached. */
export async function attach(pid: number, log: string, options: readonly string[]): Promise<Tracer> {
  const child = spawn("strace", ["-o", log, ...options, "-p", String(pid)], { stdio: ["ignore", "ignore", "pipe"] });
  const ended = new Promise<void>((resolve) => child.once("close", () => resolve()));
  let text = "";
  child.stderr.on("data", (chunk) => text += chunk);
  for (let waitedMs = 0; !text.includes("attached"); waitedMs += 10) {
    if (waitedMs > 10_000) throw new Error(`strace did not attach: ${text}`);
    await sleep(10);
  }
  return { detach: () => (child.kill("SIGINT"), ended) };
}
