/**
 * What the tests of hostile peers share: the peer in Python, a folder for the
 * control socket, and a process's descriptor table as the kernel shows it.
 *
 * @module
 */

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { chmod, mkdtemp, readdir, readlink, rm } from "node:fs/promises";
import { get as httpGet } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { root } from "../support/binaries.mjs";
import { type RuntimeName, runtimes, Server, type ServerEvent } from "../support/server.ts";

const patienceMs = 30_000;

const isPythonThere = spawnSync("python3", ["--version"]).status === 0;
const isRoot = process.getuid!() === 0;

/** Where everything has to be there: what is missing makes the tests fail, and not skip. */
const isStrict = process.env.CI === "true";

/** Why these tests cannot run here, or false. */
export const skipReason: string | false = isPythonThere || isStrict
  ? false
  : "python3 is not installed: the peer that they need is written in it";

/** The same for tests that run a process as another user. */
export const skipReasonForUsers: string | false = skipReason ||
  (isRoot || isStrict ? false : "only root can run a process as another user");

/** Where Python keeps what it has compiled, so that it need not do so in every test. */
const cache = mkdtempSync(join(tmpdir(), "takeover-peer-"));
process.once("exit", () => rmSync(cache, { recursive: true, force: true }));

/** How a peer is to differ from an honest one. */
export interface PeerOptions {
  /** A name of test/peers/misbehave.py, with its arguments. */
  readonly misbehave?: string;
  readonly user?: number;
}

/** Starts the peer in Python. */
export function startPeer(env: Record<string, string>, { misbehave, user }: PeerOptions = {}): Server {
  if (!isPythonThere) throw new Error("python3 is not installed");
  // Without site-packages and the environment, which are not the peer's business.
  const command = ["python3", "-ESs", "-X", `pycache_prefix=${cache}`, join(root, "test/peers/peer.py")];
  if (misbehave !== undefined) command.push("--misbehave", misbehave);
  if (user !== undefined) command.push("--user", String(user));
  return new Server("python" as RuntimeName, "", env, command);
}

/** How a process ends, within the limits of patience. */
export async function endOf(server: Server): Promise<number | string> {
  let timer: NodeJS.Timeout | undefined;
  const expiry = new Promise<never>((_, reject) => {
    const events = () => server.events.map((event) => JSON.stringify(event)).join("\n");
    timer = setTimeout(() => reject(new Error(`pid ${server.pid} does not end; it said:\n${events()}`)), patienceMs);
  });
  return await Promise.race([server.ended, expiry]).finally(() => clearTimeout(timer));
}

/** A folder for a control socket, removed with all that is in it. */
export class Scratch implements AsyncDisposable {
  readonly folder: string;

  private constructor(folder: string) {
    this.folder = folder;
  }

  static async make(): Promise<Scratch> {
    const folder = await mkdtemp(join(tmpdir(), "takeover-"));
    await chmod(folder, 0o755);
    return new Scratch(folder);
  }

  /** The path of the control socket. */
  get path(): string {
    return join(this.folder, "control.sock");
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await rm(this.folder, { recursive: true, force: true });
  }
}

/** A successor that lives on: hostile_target.ts on one runtime. */
export class Target implements AsyncDisposable {
  readonly server: Server;
  #round = 0;

  constructor(runtime: RuntimeName) {
    this.server = new Server(runtime, "test/handover/hostile_target.ts", {});
  }

  /** What comes of one attempt to take over on that path. */
  async attempt(path: string): Promise<ServerEvent> {
    await this.server.event("listening");
    this.server.child.stdin!.write(`${path}\n`);
    return await this.server.event(`round ${++this.#round}`);
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.server[Symbol.asyncDispose]();
  }
}

/** Does a thing for every runtime at the same time, and fails with the name of those that failed. */
export async function onEvery<T>(scenes: readonly T[], use: (scene: T) => Promise<void>): Promise<void> {
  const results = await Promise.allSettled(scenes.map(use));
  const reasons = results.flatMap((result, index) =>
    result.status === "rejected" ? [`${runtimes[index]}: ${result.reason?.stack ?? result.reason}`] : []
  );
  assert.equal(reasons.length, 0, reasons.join("\n\n"));
}

/** The answer to `GET /` on a connection of its own. */
export async function get(port: number): Promise<Record<string, unknown>> {
  const text = await new Promise<string>((resolve, reject) => {
    const request = httpGet({ host: "127.0.0.1", port, agent: false, timeout: patienceMs }, (response) => {
      let body = "";
      response.setEncoding("utf8").on("data", (part) => body += part).on("end", () => resolve(body));
    });
    request.on("error", reject).on("timeout", () => request.destroy(new Error("no answer")));
  });
  return JSON.parse(text);
}

/** The port of a `ready` or `listening` event. */
export function portOf({ addr }: ServerEvent): number {
  return Number(String(addr).split(":").at(-1));
}

/**
 * A process's descriptor table: what every open descriptor is, without its
 * number, because Deno copies its stdin from one number to another.
 */
export async function descriptorsOf(pid: number): Promise<string[]> {
  const folder = `/proc/${pid}/fd`;
  const links = await Promise.all(
    (await readdir(folder)).map((number) => readlink(join(folder, number)).catch(() => "")),
  );
  return links.filter((link) => link !== "").sort();
}

/** Waits until two looks at the table are the same: what a runtime does late at its start is done. */
export async function stableDescriptors(pid: number): Promise<void> {
  let last = "";
  await until(() => descriptorsOf(pid), (now) => {
    const isSame = last === now.join("\n");
    last = now.join("\n");
    return isSame;
  });
}

/** Waits until a process has no descriptor open that it had not before. */
export async function hasNoMoreDescriptors(pid: number, before: readonly string[]): Promise<void> {
  const more = await until(async () => without(await descriptorsOf(pid), before), (found) => found.length === 0);
  assert.deepEqual(more, [], `pid ${pid} has left these open`);
}

/** The items of one list that are not in the other, each as often as it is there more often. */
function without(items: readonly string[], others: readonly string[]): string[] {
  const rest = [...others];
  return items.filter((item) => {
    const at = rest.indexOf(item);
    if (at >= 0) rest.splice(at, 1);
    return at < 0;
  });
}

/** Asks until the answer is right, or patience ends; then with the last answer. */
export async function until<T>(ask: () => Promise<T>, right: (answer: T) => boolean): Promise<T> {
  for (const end = Date.now() + patienceMs / 2;;) {
    const answer = await ask();
    if (right(answer) || Date.now() >= end) return answer;
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

/** An error as it is reported has its code, and says in a sentence what was expected. */
export function assertReport(event: ServerEvent, code: string, sentence: RegExp): void {
  assert.equal(event.code, code, `${event.code}: ${event.message}`);
  assert.match(String(event.message), /^[A-Z].{20,}/);
  assert.match(String(event.message), sentence);
}
