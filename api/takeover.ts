/**
 * Takes over from a running process.
 *
 * @module
 */

import type { TakeoverOptions } from "../src/handover/options.ts";
import { Takeover } from "../src/handover/takeover.ts";
import { openRuntime } from "./runtime.ts";

/**
 * Takes over from the process that answers on a path, or becomes the first.
 *
 * @param path The control socket: a path of at most 107 bytes (macOS 103) in a
 *   folder that not everybody can write. It is made with mode 0600.
 * @param options Limits, users, required names, sockets from elsewhere, what the
 *   service manager hears.
 * @returns The takeover. As a successor, every socket of the incumbent is here
 *   and verified, and the incumbent still serves.
 * @throws {TakeoverError} With a code for every way in which it can fail; the
 *   incumbent, if there is one, serves on untouched.
 *
 * @example
 * ```ts ignore
 * const takeover = await takeOver("/run/shop/takeover.sock", { limits: { settleMs: 2_000 } });
 * console.log(takeover.generation, takeover.inherited);
 * ```
 */
export async function takeOver(path: string, options: TakeoverOptions = {}): Promise<Takeover> {
  return await Takeover.begin(await openRuntime(), path, options);
}
