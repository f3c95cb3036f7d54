/**
 * `net.ipv4.tcp_migrate_req`, in a network namespace that is nobody else's.
 *
 * @module
 */

import { spawnSync } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";
import { whyNoOwnNamespace } from "./own_namespace.ts";
import { whyNotOrdinaryUser } from "./ordinary_user.ts";

const setting = "/proc/sys/net/ipv4/tcp_migrate_req";

/** Why it cannot be set here for servers of an ordinary user, or false. */
export function whyNoMigration(): string | false {
  const shared = whyNoOwnNamespace();
  if (shared) return shared;
  if (spawnSync("test", ["-w", setting]).status !== 0) return `${setting} cannot be written (Linux 5.14)`;
  return whyNotOrdinaryUser();
}

/** Runs something with it. */
export async function withMigration<T>(run: () => Promise<T>): Promise<T> {
  const before = readFileSync(setting, "utf8");
  writeFileSync(setting, "1");
  try {
    return await run();
  } finally {
    writeFileSync(setting, before);
  }
}
