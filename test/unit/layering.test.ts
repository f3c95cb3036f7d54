/**
 * Who imports whom, and what an import does.
 *
 * @module
 */

import assert from "node:assert/strict";
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import process from "node:process";
import test from "node:test";
import { binaries } from "../support/binaries.mjs";
import { run, TemporaryFolder } from "./children.ts";

const root = new URL("../..", import.meta.url);

interface Import {
  /** Relative to the project's folder, or a bare specifier. */
  readonly target: string;
  readonly isLazy: boolean;
}

/** What a file imports; examples in comments left out. */
function importsOf(file: string): Import[] {
  const text = readFileSync(new URL(file, root), "utf8").replace(/\/\*[\s\S]*?\*\/|^\s*\/\/.*$/gm, "");
  const found = text.matchAll(/\bfrom\s+"([^"]+)"|\bimport\s+"([^"]+)"|\bimport\s*\(\s*"([^"]+)"/g);
  return Array.from(found, ([, from, bare, lazy]) => ({
    target: targetOf(file, (from ?? bare ?? lazy)!),
    isLazy: lazy !== undefined,
  }));
}

function targetOf(file: string, specifier: string): string {
  if (!specifier.startsWith(".")) return specifier;
  return new URL(specifier, new URL(file, root)).href.slice(root.href.length);
}

/** Imports of every file in a folder that are not allowed there, as `file -> target`. */
function strayImports(folder: string, isAllowed: (target: string) => boolean): string[] {
  return filesIn(folder).flatMap((file) =>
    importsOf(file).filter(({ target }) => !isAllowed(target)).map(({ target }) => `${file} -> ${target}`)
  );
}

function filesIn(folder: string): string[] {
  const names = readdirSync(new URL(`${folder}/`, root), { recursive: true }) as string[];
  return names.filter((name) => name.endsWith(".ts")).map((name) => `${folder}/${name}`);
}

const isCore = (target: string) => /^src\/([a-z]+\/)?[a-z_]+\.ts$/.test(target);

/** The folders of src/, from the bottom up; each imports those below it, and the files beside them. */
const layers = ["c", "sockets", "channels", "natives", "connections", "steering", "foreign", "handover"];

test("src/ imports src/ and nothing else", () => {
  assert.ok(importsOf("src/handover/opening.ts").some(({ target }) => target === "src/natives/graft.ts"));
  assert.deepEqual(strayImports("src", isCore), []);
});

test("src/ has layers, and none imports one above it", () => {
  for (const [index, layer] of layers.entries()) {
    const above = layers.slice(index + 1).map((name) => `src/${name}/`);
    assert.deepEqual(strayImports(`src/${layer}`, (target) => !above.some((folder) => target.startsWith(folder))), []);
  }
});

test("src/ requires nothing and imports nothing lazily", () => {
  for (const file of filesIn("src")) {
    assert.doesNotMatch(readFileSync(new URL(file, root), "utf8"), /\brequire\(|createRequire|\bimport\(/, file);
  }
});

test("src/runtime.ts has types only, so that the seam costs nothing", () => {
  const text = readFileSync(new URL("src/runtime.ts", root), "utf8");
  assert.doesNotMatch(text, /^import (?!type )|^export (?!interface |type )/m);
});

test("runtimes/ imports src/, what its runtimes share and the built-ins of Node, and no runtime imports another", () => {
  const shared = ["runtimes/net.ts", "runtimes/http_sockets.ts"];
  const isAllowed = (target: string) => isCore(target) || shared.includes(target) || target.startsWith("node:");
  assert.ok(importsOf("runtimes/deno.ts").some(({ target }) => target === "runtimes/net.ts"));
  assert.deepEqual(strayImports("runtimes", isAllowed), []);
});

test("api/ imports src/, and each runtime lazily in one place", () => {
  const lazy = importsOf("api/runtime.ts").filter(({ isLazy }) => isLazy).map(({ target }) => target);
  assert.deepEqual(lazy, ["runtimes/deno.ts", "runtimes/bun.ts", "runtimes/node.ts"]);
  const isAllowed = (target: string) => isCore(target) || lazy.includes(target) || target === "api/runtime.ts";
  assert.deepEqual(strayImports("api", isAllowed), []);
});

test("mod.ts imports api/ and src/", () => {
  assert.deepEqual(importsOf("mod.ts").filter(({ target }) => !target.startsWith("api/") && !isCore(target)), []);
});

test("mod.ts and runtimes/deno.ts need no permission of Deno to be imported", async () => {
  for (const file of ["mod.ts", "runtimes/deno.ts"]) {
    const { status, stdout, stderr } = await run([
      binaries.deno,
      "run",
      "--no-prompt",
      "--quiet",
      new URL(file, root).pathname,
    ]);
    assert.deepEqual({ file, status, stdout, stderr }, { file, status: 0, stdout: "", stderr: "" });
  }
});

/**
 * The libraries that a program loads when it imports mod.ts and the runtime's
 * module, and the ones that it loads when it binds libc, as the dynamic loader
 * of glibc tells (ld.so(8), LD_DEBUG).
 */
async function librariesLoaded(
  command: readonly string[],
  runtime: string,
): Promise<{ import: string[]; open: string[] }> {
  using folder = new TemporaryFolder();
  const file = folder.file("program.mjs");
  writeFileSync(
    file,
    `import { writeSync } from "node:fs";
    writeSync(2, "== import\\n");
    const { openRuntime } = await import("${new URL("mod.ts", root)}");
    await import("${new URL(`runtimes/${runtime}.ts`, root)}");
    writeSync(2, "== open\\n");
    await openRuntime();
    writeSync(2, "== done\\n");`,
  );
  const { status, stderr } = await run([...command, file], { LD_DEBUG: "files" });
  assert.equal(status, 0, stderr.slice(-2_000));
  const [, imported, opened] = stderr.split(/== (?:import|open|done)\n/);
  const loaded = (text: string) => Array.from(text.matchAll(/opening file=(\S+)/g), ([, library]) => library!);
  return { import: loaded(imported!), open: loaded(opened!) };
}

/** Binding libc loads a library, which shows that the loader tells; importing loads none. */
async function loadsNothing(command: readonly string[], runtime: string): Promise<void> {
  const loaded = await librariesLoaded(command, runtime);
  assert.ok(loaded.open.length > 0);
  assert.deepEqual(loaded.import, []);
}

const { platform } = process;
const isGlibc = platform === "linux" && !readdirSync("/lib").some((name) => name.startsWith("ld-musl"));
const withGlibc = { skip: isGlibc ? false : "only the dynamic loader of glibc tells what it loads" };

test("mod.ts and runtimes/deno.ts load no library when they are imported on Deno", withGlibc, async () => {
  await loadsNothing([binaries.deno, "run", "--no-prompt", "--quiet", "--allow-read", "--allow-ffi"], "deno");
});

test("mod.ts and runtimes/bun.ts load no library when they are imported on Bun", withGlibc, async () => {
  await loadsNothing([binaries.bun], "bun");
});

test("mod.ts and runtimes/node.ts load no library when they are imported on Node", withGlibc, async () => {
  await loadsNothing([binaries.node26, "--no-warnings"], "node");
});
