/**
 * What decides whether a takeover works here.
 *
 * @module
 */

import { messageOf } from "../src/errors.ts";
import type { Diagnosis } from "../src/foreign/diagnosis.ts";
import { diagnose, type DoctorOptions, type Host, hostOf } from "../src/foreign/doctor.ts";
import type { Runtime } from "../src/runtime.ts";
import { openRuntime, runtimePermissions } from "./runtime.ts";

/**
 * Looks at everything that decides whether a takeover works here, and how well:
 * the runtime and its permissions, the kernel, limits, namespaces, and the path
 * of the control socket with who answers there. Each check says what it means
 * and what to do.
 *
 * Nothing is changed, nobody is connected to, and Deno prompts for nothing. What
 * cannot be looked at is a check that says so. A process may ask at any time,
 * while it serves too; it takes a few milliseconds, and up to `searchMs` where
 * there are many processes.
 *
 * @param path The path of the control socket; without one nothing is said of it.
 * @param options `allowUsers` and `limits` as for `takeOver`; `searchMs`, in
 *   milliseconds, for the process that answers (1,000).
 * @returns The checks, and the worst of their statuses.
 * @throws {TakeoverError} `ERR_TAKEOVER_LIMIT` for a limit that is unknown or
 *   out of range; nothing else.
 *
 * @example
 * ```ts ignore
 * const diagnosis = await doctor("/run/shop/takeover.sock");
 * console.log(formatDiagnosis(diagnosis));
 * if (diagnosis.status === "bad") process.exit(1);
 * ```
 */
export async function doctor(path?: string, options: DoctorOptions = {}): Promise<Diagnosis> {
  return await diagnose(await host(), path ?? null, options);
}

/** Deno would prompt for what it may not: so it is asked before libc is. */
async function host(): Promise<Host> {
  const permissions = await runtimePermissions();
  const without = (reason: string): Host => ({
    ...self(),
    runtime: null,
    reason,
    ...(permissions ? { permissions } : {}),
  });
  if (permissions && permissions().ffi !== "granted") return without("run with --allow-ffi --allow-net");
  try {
    return hostOf(await openRuntime());
  } catch (error) {
    return without(messageOf(error));
  }
}

/** All three runtimes have Node's `process.versions`, with their own names in it. */
function self(): Pick<Runtime, "name" | "version"> {
  const { versions } = (globalThis as unknown as { process: { versions: Record<string, string | undefined> } }).process;
  const name = versions.deno ? "deno" : versions.bun ? "bun" : "node";
  return { name, version: versions[name]! };
}
