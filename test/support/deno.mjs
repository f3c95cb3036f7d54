/** Runs the pinned Deno: the checks that only it has, for `npm run check`. */

import { execFileSync } from "node:child_process";
import { binaries, root } from "./binaries.mjs";

const entryPoints = ["mod.ts", "runtimes/deno.ts", "runtimes/bun.ts", "runtimes/node.ts", "src/c/cmsg.ts"];

for (const args of [
  ["check", ...entryPoints],
  ["lint", "--quiet"],
  ["doc", "--lint", "--quiet", ...entryPoints],
  ["publish", "--dry-run", "--allow-dirty", "--quiet"],
]) {
  execFileSync(binaries.deno, args, { cwd: root, stdio: ["ignore", args[0] === "doc" ? "ignore" : "inherit", "inherit"] });
}
