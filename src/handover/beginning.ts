/**
 * How a process begins: as the first on its path, or as a successor.
 *
 * @module
 */

import { TakeoverError } from "../errors.ts";
import { limitsFrom } from "../limits.ts";
import type { Runtime } from "../runtime.ts";
import { unlinkPath } from "../sockets/listener.ts";
import { identify } from "../sockets/socket.ts";
import type { Unopened } from "./binding.ts";
import { checkedName } from "./messages.ts";
import type { TakeoverOptions } from "./options.ts";
import { meet } from "./rendezvous.ts";
import { isLost, randomHex, Succession } from "./successor.ts";

/** How often a path is met again whose incumbent vanished in the middle of it. */
const meetCount = 20;
const meetAgainMs = 10;

/** What a process has once it knows whether it is the first. */
export interface Beginning {
  readonly control: Unopened;
  readonly succession: Succession | null;
}

let instance: string | null = null;

/** One name for this process, however often it calls. */
export function instanceName(): string {
  return instance ??= randomHex();
}

/** Meets whoever answers on the path, or becomes the first there. */
export async function begin(
  runtime: Runtime,
  path: string,
  instance: string,
  options: TakeoverOptions,
): Promise<Beginning> {
  const limits = limitsFrom(options.limits);
  const required = (options.require ?? []).map((name) => checkedName(name, limits));
  for (let tries = 1;; tries++) {
    const met = await meet(runtime, path, limits);
    if (met.role === "first") {
      if (required.length > 0) {
        met.listener[Symbol.dispose]();
        unlinkPath(runtime, path);
        throw new TakeoverError(
          "ERR_TAKEOVER_UNKNOWN_NAME",
          `Cannot start without ${required.join(", ")}: nobody answers on ${path}; start without require first`,
        );
      }
      const control = { descriptor: met.listener, identity: identify(runtime, met.listener.number)! };
      return { control, succession: null };
    }
    try {
      const allowUsers = options.allowUsers ?? [];
      const succession = await Succession.begin(met.connection, { runtime, limits, path, instance, allowUsers, require: required });
      return { control: succession.control, succession };
    } catch (error) {
      // An incumbent that ended in the middle leaves a stale path behind.
      if (!isLost(error) || tries === meetCount) throw error;
      await new Promise((resolve) => setTimeout(resolve, meetAgainMs));
    }
  }
}
