/**
 * Child processes of the runtime under test: with few descriptors left, as an
 * ordinary user, under strace. Each runs once, and several tests look at what
 * it found.
 *
 * @module
 */

import assert from "node:assert/strict";
import { chmodSync, mkdirSync, readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { listenChannel } from "../../src/channels/fd_listener.ts";
import { commandHere, run, TemporaryFolder } from "../unit/children.ts";
import { runtime } from "./seam.ts";

/** What became of one attempt: a word, or an error's code and message. */
export interface Outcome {
  readonly code: string;
  readonly message?: string;
  readonly [detail: string]: unknown;
}

/** What a child prints: the outcome of each thing that it tried. */
export type Found = Readonly<Record<string, Outcome>>;

/** For tests that need to become another user. */
export const asRoot = { skip: runtime.libc.geteuid() === 0 ? false : "only root can become another user" };

/** A user that no other program here runs as: the kernel counts descriptors in flight by user. */
const ordinaryUser = 61_234;

/** What crowded.ts finds, when 64 files may be open. */
export const foundInCrowd: () => Promise<Found> = once(() => runChild(limited(commandFor("crowded.ts"))));

/** What ordinary_user.ts finds, when 64 files may be open. */
export const foundByOrdinaryUser: () => Promise<Found> = once(async () => {
  using folder = new TemporaryFolder();
  chmodSync(folder.path, 0o755);
  mkdirSync(folder.file("private"), 0o700);
  using _listener = listenChannel(runtime, folder.file("socket"), { mode: 0o600 });
  const arguments_ = [String(ordinaryUser), folder.file("socket"), folder.file("private/socket")];
  return await runChild(limited([...commandFor("ordinary_user.ts"), ...arguments_]));
});

/** What interrupted.ts finds, and how often each of its calls was interrupted. */
export const foundWhileInterrupted: () => Promise<{ found: Found; counts: Record<string, number> }> = once(async () => {
  using folder = new TemporaryFolder();
  const calls = ["sendmsg", "recvmsg", "accept4", "epoll_wait"];
  const inject = calls.flatMap((call) => ["-e", `inject=${call}:error=EINTR:when=1+2`]);
  const strace = ["strace", "-f", "-qq", "-o", folder.file("log"), "-e", `trace=${calls.join(",")}`, ...inject];
  const found = await runChild([...strace, ...commandFor("interrupted.ts")]);
  const log = readFileSync(folder.file("log"), "utf8");
  const counts = calls.map((call) => [call, log.match(new RegExp(`${call}\\(.*EINTR.*INJECTED`, "g"))?.length ?? 0]);
  return { found, counts: Object.fromEntries(counts) };
});

/** A file of this folder as a child of the runtime under test. */
export function commandFor(name: string): string[] {
  return commandHere(fileURLToPath(new URL(name, import.meta.url)));
}

/** Runs a child, which prints one JSON line. */
export async function runChild(command: readonly string[]): Promise<Found> {
  const { status, stdout, stderr } = await run(command, { NODE_NO_WARNINGS: "1" });
  assert.equal(status, 0, `${stdout}${stderr}`);
  return JSON.parse(stdout) as Found;
}

function limited(command: readonly string[]): string[] {
  return ["sh", "-c", 'ulimit -n 64 && exec "$@"', "sh", ...command];
}

function once<T>(get: () => Promise<T>): () => Promise<T> {
  let found: Promise<T> | null = null;
  return () => found ??= get();
}
