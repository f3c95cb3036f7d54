/**
 * The runtime that this runs on, bound when it is first needed.
 *
 * @module
 */

import { TakeoverError } from "../src/errors.ts";
import type { Runtime } from "../src/runtime.ts";

let opened: Promise<Runtime> | null = null;
let current: Runtime | null = null;

/**
 * Binds libc on the runtime that this runs on, once.
 *
 * @returns The runtime, with libc as functions over numbers and bytes.
 * @throws {TakeoverError} `ERR_TAKEOVER_PERMISSION` or `ERR_TAKEOVER_UNSUPPORTED`.
 *
 * @example
 * ```ts ignore
 * const { libc } = await openRuntime();
 * console.log(libc.getpid());
 * ```
 */
export function openRuntime(): Promise<Runtime> {
  return opened ??= load();
}

async function load(): Promise<Runtime> {
  const { openRuntime } = await importRuntime();
  return current = await openRuntime();
}

/** What answers at once cannot wait for libc. */
export function openedRuntime(what: string): Runtime {
  if (current) return current;
  throw new TakeoverError(
    "ERR_TAKEOVER_STATE",
    `Cannot ${what} before libc is bound: await openRuntime() once, or anything else of this module`,
  );
}

/** What the runtime permits; nothing where it has no permissions. Nothing is bound for it. */
export async function runtimePermissions(): Promise<Runtime["permissions"]> {
  return (await importRuntime()).permissions;
}

function importRuntime(): Promise<{ openRuntime(): Promise<Runtime>; permissions?: Runtime["permissions"] }> {
  if ("Deno" in globalThis) return import("../runtimes/deno.ts");
  if ("Bun" in globalThis) return import("../runtimes/bun.ts");
  return import("../runtimes/node.ts");
}
