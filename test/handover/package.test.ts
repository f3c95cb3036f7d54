/**
 * The built npm package on the Nodes that it is for.
 */

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { copyFileSync, cpSync, existsSync, mkdirSync, readFileSync, symlinkSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { binaries, root } from "../support/binaries.mjs";
import { assertServes } from "../support/http.ts";
import { freePort, Scratch } from "../support/relay.ts";
import { Server, startHttp } from "../support/server.ts";

/** A project that has installed the package, and koffi if it wants to. */
function install(folder: string, withKoffi: boolean): string {
  if (!existsSync(join(root, "dist/mod.js"))) execFileSync("npm", ["run", "--silent", "build"], { cwd: root });
  const modules = join(folder, "node_modules");
  mkdirSync(join(modules, "socket-takeover"), { recursive: true });
  cpSync(join(root, "dist"), join(modules, "socket-takeover/dist"), { recursive: true });
  copyFileSync(join(root, "package.json"), join(modules, "socket-takeover/package.json"));
  if (withKoffi) symlinkSync(join(root, "node_modules/koffi"), join(modules, "koffi"));
  copyFileSync(join(root, "test/fixtures/package.mjs"), join(folder, "server.mjs"));
  return join(folder, "server.mjs");
}

function start(node: string, file: string, env: Record<string, string>): Server {
  return new Server("node", "", env, [node, "--no-warnings", file]);
}

test("the built package on Node 20, 24 and 26 and the sources on Deno follow each other", async () => {
  using scratch = new Scratch();
  const file = install(scratch.path, true);
  const env = { PORT: String(await freePort()), TAKEOVER: join(scratch.path, "t.sock"), SETTLE_MS: "50" };
  const chain = [
    () => start(binaries.node20, file, env),
    () => start(binaries.node24, file, env),
    () => startHttp("deno", env),
    () => start(binaries.node20, file, env),
    () => start(binaries.node26, file, env),
  ];
  const servers: Server[] = [];
  try {
    for (const [index, next] of chain.entries()) {
      const server = next();
      servers.push(server);
      assert.equal((await server.event("ready")).generation, index + 1);
      assert.equal((await assertServes(Number(env.PORT), 3)).pid, server.pid);
      if (index > 0) assert.equal(await servers[index - 1]!.ended, 0, servers[index - 1]!.stderr);
    }
  } finally {
    for (const server of servers) await server[Symbol.asyncDispose]();
  }
});

test("the sources run unbuilt on Node 22.18 and 24", async () => {
  using scratch = new Scratch();
  const file = join(root, "examples/http.ts");
  const env = { PORT: String(await freePort()), TAKEOVER: join(scratch.path, "t.sock"), SETTLE_MS: "50" };
  await using first = start(binaries.node22, file, env);
  await first.event("ready");
  await using second = start(binaries.node24, file, env);
  await second.event("settled");
  await using third = start(binaries.node22, file, env);
  await third.event("settled");
  assert.equal((await assertServes(Number(env.PORT), 3)).pid, third.pid);
});

test("Node 26 without koffi takes node:ffi", async () => {
  using scratch = new Scratch();
  const file = install(scratch.path, false);
  const env = { PORT: String(await freePort()), TAKEOVER: join(scratch.path, "t.sock") };
  await using first = start(binaries.node26, file, env);
  assert.equal((await first.event("ready")).ffi, "node:ffi");
  await using second = start(binaries.node26, file, env);
  await second.event("settled");
  assert.equal((await assertServes(Number(env.PORT), 3)).pid, second.pid);
});

test("Node 24 without koffi says how to install it", async () => {
  using scratch = new Scratch();
  const file = install(scratch.path, false);
  await using server = start(binaries.node24, file, { PORT: "0", TAKEOVER: join(scratch.path, "t.sock") });
  const { code, message } = await server.event("refused");
  assert.equal(code, "ERR_TAKEOVER_UNSUPPORTED");
  assert.match(String(message), /npm i koffi/);
});

test("the package holds what its exports name", () => {
  const [packed] = JSON.parse(execFileSync("npm", ["pack", "--dry-run", "--json", "--ignore-scripts"], { cwd: root, encoding: "utf8" }));
  const paths: string[] = packed.files.map(({ path }: { path: string }) => path);
  const { exports } = JSON.parse(readFileSync(join(root, "package.json"), "utf8")) as {
    exports: Record<string, { types: string; default: string } | string>;
  };
  const named = Object.values(exports).flatMap((entry) => typeof entry === "string" ? [] : [entry.types, entry.default]);
  assert.equal(named.length, 10);
  for (const path of named) assert.ok(paths.includes(path.replace("./", "")), path);
  assert.ok(!paths.some((path) => path.startsWith("test/")), "no tests in it");
});
