/**
 * Servers of an ordinary user: without root, without a capability, and without a
 * way to get one.
 *
 * @module
 */

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { chownSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import process from "node:process";
import { binaries, root } from "./binaries.mjs";
import { Relay } from "./relay.ts";
import type { RuntimeName, Server } from "./server.ts";

/** Nobody's; it has no name, no home and no group. */
export const ordinaryUser = 61_234;

/** The command that runs another one as that user. */
export function asOrdinaryUser(command: readonly string[]): string[] {
  return [
    "setpriv",
    `--reuid=${ordinaryUser}`,
    `--regid=${ordinaryUser}`,
    "--clear-groups",
    "--inh-caps=-all",
    "--bounding-set=-all",
    "--no-new-privs",
    ...command,
  ];
}

/** Why no server can run as that user here, or false. */
export function whyNotOrdinaryUser(): string | false {
  if (process.getuid!() !== 0) return "only root can run a process as another user";
  const [program, ...args] = asOrdinaryUser(["test", "-r", join(root, "mod.ts")]);
  const { error, status, stderr } = spawnSync(program!, args, { encoding: "utf8" });
  if (error) return "setpriv is not installed (Debian's package util-linux)";
  if (status !== 0) return stderr.trim() || `another user cannot read ${root}`;
  const unreachable = [binaries.deno, binaries.bun, binaries.node26].find((path) => {
    const [, ...rest] = asOrdinaryUser(["test", "-x", path]);
    return spawnSync(program!, rest).status !== 0;
  });
  return unreachable === undefined ? false : `another user cannot run ${unreachable}`;
}

/** A chain of that user's servers, in a folder of its own. */
export async function openOrdinaryRelay(env: Record<string, string>, file: string): Promise<Relay> {
  const relay = await Relay.open(env, file);
  chownSync(homeOf(relay), ordinaryUser, ordinaryUser);
  return relay;
}

/**
 * Starts the next server of such a chain, and waits until it is ready.
 *
 * @param command As root would run it.
 */
export async function nextOrdinary(
  relay: Relay,
  runtime: RuntimeName,
  env: Record<string, string>,
  command: readonly string[],
): Promise<Server> {
  const home = homeOf(relay);
  const own = { HOME: home, DENO_DIR: join(home, "deno"), ...env };
  const server = await relay.next(runtime, own, asOrdinaryUser(command));
  assertOrdinary(server);
  return server;
}

/** As the kernel sees it (proc(5), /proc/PID/status). */
function assertOrdinary({ pid }: Server): void {
  const status = readFileSync(`/proc/${pid}/status`, "utf8");
  const of = (field: string) => new RegExp(`^${field}:[ \\t]*(.*)$`, "m").exec(status)![1]!.trim();
  assert.equal(of("Uid"), Array(4).fill(ordinaryUser).join("\t"));
  assert.equal(of("Groups"), "");
  for (const set of ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"]) assert.equal(BigInt(`0x${of(set)}`), 0n, set);
  assert.equal(of("NoNewPrivs"), "1");
}

function homeOf({ path }: Relay): string {
  return dirname(path);
}
