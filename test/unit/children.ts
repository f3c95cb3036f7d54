/**
 * Programs run as child processes of the runtime that runs the tests, or of
 * another.
 *
 * @module
 */

import { spawn } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import "./patience.ts";

/** How long a child may take; far beyond what it does take. */
const patienceMs = 60_000;

/** What became of a child. */
export interface Ended {
  /** Its exit status, or the signal that ended it. */
  readonly status: number | string;
  readonly stdout: string;
  readonly stderr: string;
}

/** A folder of one's own in /tmp, removed with everything in it. */
export class TemporaryFolder implements Disposable {
  readonly path: string = mkdtempSync("/tmp/takeover-test-");

  /** A path in it. */
  file(name: string): string {
    return join(this.path, name);
  }

  [Symbol.dispose](): void {
    rmSync(this.path, { recursive: true, force: true });
  }
}

/** Runs a program to its end. */
export function run(command: readonly string[], env: Record<string, string> = {}): Promise<Ended> {
  const [program, ...args] = "Deno" in globalThis ? unseen(command) : command;
  const child = spawn(program!, args, {
    env: { ...process.env, NO_COLOR: "1", PROGRAM: command[0]!, ...env },
    stdio: ["ignore", "pipe", "pipe"],
    timeout: patienceMs,
    killSignal: "SIGKILL",
  });
  let stdout = "";
  let stderr = "";
  child.stdout.on("data", (text) => stdout += text);
  child.stderr.on("data", (text) => stderr += text);
  return new Promise((resolve, reject) => {
    child.once("error", reject);
    child.once("close", (status, signal) => resolve({ status: status ?? signal ?? "gone", stdout, stderr }));
  });
}

/**
 * The same command by way of a shell. Deno looks for itself in the arguments of
 * a child, and gives it --allow-all when it was told no permission.
 */
function unseen([, ...args]: readonly string[]): string[] {
  return ["sh", "-c", 'exec "$PROGRAM" "$@"', "sh", ...args];
}

/**
 * The command that runs a file on the runtime that runs this.
 *
 * @param permissions What it may do on Deno; everything when left out.
 */
export function commandHere(file: string, permissions: readonly string[] = ["--allow-all"]): string[] {
  const { execPath } = process;
  if ("Deno" in globalThis) return [execPath, "run", "--no-prompt", "--quiet", ...permissions, file];
  if ("Bun" in globalThis) return [execPath, file];
  return [execPath, "--no-warnings", file];
}

/** Runs the text of a program on the runtime that runs this. */
export async function runHere(text: string, permissions?: readonly string[]): Promise<Ended> {
  using folder = new TemporaryFolder();
  const file = folder.file("program.mjs");
  writeFileSync(file, text);
  return await run(commandHere(file, permissions));
}
