/**
 * Where the pinned runtimes are. Their own files, not the wrappers in
 * node_modules/.bin: a signal has to reach the runtime itself.
 */

import { existsSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

export const root = fileURLToPath(new URL("../..", import.meta.url));

const packages = createRequire(import.meta.url);

/** The first of these files that is there. */
function first(name, candidates) {
  const found = candidates.find((candidate) => existsSync(candidate));
  if (!found) throw new Error(`Cannot find ${name}: run npm install first; looked for ${candidates.join(", ")}`);
  return found;
}

function folderOf(name) {
  try {
    return dirname(packages.resolve(`${name}/package.json`));
  } catch {
    return join(root, "node_modules", name);
  }
}

const { platform, arch } = process;

export const binaries = {
  get deno() {
    const libc = platform === "linux" ? "-glibc" : "";
    return first("Deno", [join(root, `node_modules/@deno/${platform}-${arch}${libc}/deno`), join(folderOf("deno"), "deno")]);
  },
  get bun() {
    return first("Bun", [join(folderOf("bun"), "bin/bun.exe"), join(folderOf("bun"), "bin/bun")]);
  },
  get node20() {
    return first("Node 20", [join(folderOf("node20"), "bin/node")]);
  },
  get node22() {
    return first("Node 22", [join(folderOf("node22"), "bin/node")]);
  },
  get node24() {
    return first("Node 24", [join(folderOf("node24"), "bin/node")]);
  },
  get node26() {
    return first("Node 26", [join(folderOf("node26"), "bin/node")]);
  },
};

/** The command that runs a TypeScript file on a runtime, as the examples say it. */
export function commandFor(runtime, file, args = []) {
  if (runtime === "deno") {
    return [binaries.deno, "run", "--allow-ffi", "--allow-net", "--allow-env", file, ...args];
  }
  if (runtime === "bun") return [binaries.bun, file, ...args];
  return [binaries.node26, "--no-warnings", file, ...args];
}
