/**
 * Makes a fresh clone ready: installs the pinned development dependencies
 * (Deno, Bun and three Nodes among them) unless they are there already.
 * Plain JavaScript, because it runs on whichever Node is installed.
 */

import { execFileSync } from "node:child_process";
import { existsSync, statSync } from "node:fs";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("../..", import.meta.url));

/** Installs when the lock file is newer than what is installed. */
export function setUp() {
  const installed = `${root}node_modules/.package-lock.json`;
  const lock = `${root}package-lock.json`;
  if (existsSync(installed) && statSync(installed).mtimeMs >= statSync(lock).mtimeMs) return;
  console.log("installing Deno, Bun, Node 20, 24 and 26, and the other development dependencies …");
  execFileSync("npm", ["install", "--no-audit", "--no-fund", "--loglevel=error"], { cwd: root, stdio: "inherit" });
}

if (process.argv[1] === fileURLToPath(import.meta.url)) setUp();
