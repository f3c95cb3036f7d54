/**
 * Runs the tests on every runtime: `npm test`, or `npm test -- NAME …` for the
 * suites whose names begin so. Plain JavaScript, because it runs on whichever
 * Node is installed; the tests themselves run on the pinned runtimes.
 *
 * The last line counts the tests of all suites together.
 */

import { spawn, spawnSync } from "node:child_process";
import { readdirSync } from "node:fs";
import { join } from "node:path";
import { setUp } from "./support/setup.mjs";

setUp();
const { binaries, root } = await import("./support/binaries.mjs");

const files = (folder) => readdirSync(join(root, folder)).filter((name) => name.endsWith(".test.ts"))
  .map((name) => join(folder, name));

/** @param concurrency How many files at a time. */
const nodeTest = (node, paths, concurrency = 1) =>
  [node, "--no-warnings", "--test", `--test-concurrency=${concurrency}`, "--test-reporter=spec", ...paths];

/**
 * A network namespace of its own, where the machine lets us have one: sockets
 * that other programs open do not count there.
 */
function alone(command) {
  const wrap = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"];
  const possible = spawnSync(wrap[0], [...wrap.slice(1), "true"]).status === 0;
  return possible ? [...wrap, ...command] : command;
}

/** Suites that load the machine, or measure it, have it to themselves. */
const loads = [
  "load", "connections", "keep_alive", "datagrams", "groups", "ordinary_user", "haproxy", "kill", "connections_kill",
];

/** Those that load it a little come two at a time. */
const smallLoads = ["displace", "seize", "workers", "websockets", "whole"];

const inProcesses = (kind, file) => {
  const name = file.replace(/^.*\/|\.test\.ts$/g, "");
  return {
    name: `${kind}: ${name}`,
    command: alone(nodeTest(binaries.node26, [file])),
    lane: loads.includes(name) ? "alone" : smallLoads.includes(name) ? "late" : "beside",
  };
};

/**
 * Every suite: its name, its command, what it gets in its environment, and its
 * lane. Contract suites share a user's limits, so they follow each other; what
 * is `beside` them is run at the same time, then what is `late`, and whoever is
 * done helps with both.
 */
const suites = [
  { name: "check", command: ["npm", "run", "--silent", "check"] },
  { name: "build", command: ["npm", "run", "--silent", "build"] },
  { name: "unit on Node 26", command: nodeTest(binaries.node26, files("test/unit")) },
  { name: "unit on Deno", command: [binaries.deno, "test", "--allow-all", "--no-check", "test/unit"] },
  { name: "unit on Bun", command: [binaries.bun, "test", "./test/unit"] },
  { name: "contract on Node 26 with koffi", lane: "contract", command: nodeTest(binaries.node26, files("test/contract"), 2) },
  {
    name: "contract on Node 26 with node:ffi",
    lane: "contract",
    command: nodeTest(binaries.node26, files("test/contract"), 2),
    env: { SEAM_FFI: "node:ffi" },
  },
  { name: "contract on Deno", lane: "contract", command: [binaries.deno, "test", "--allow-all", "--no-check", "test/contract"] },
  { name: "contract on Bun", lane: "contract", command: [binaries.bun, "test", "./test/contract"] },
  ...files("test/handover").map((file) => inProcesses("hand-over", file)),
  ...files("test/foreign").map((file) => inProcesses("foreign", file)),
];

/** What the three test runners and the steps without tests say at their end. */
function counted(output, status) {
  const number = (pattern) => [...output.matchAll(pattern)].reduce((sum, [, value]) => sum + Number(value), 0);
  const plain = output.replace(/\u001b\[[0-9;]*m/g, "");
  output = plain;
  const passed = number(/^ℹ pass (\d+)$/gm) + number(/^ *(\d+) pass$/gm) + number(/(\d+) passed(?: \(\d+ steps?\))? \|/g);
  const failed = number(/^ℹ (?:fail|cancelled) (\d+)$/gm) + number(/^ *(\d+) fail$/gm) + number(/\| (\d+) failed/g);
  const skipped = number(/^ℹ skipped (\d+)$/gm) + number(/^ *(\d+) skip$/gm) + number(/\| (\d+) ignored/g);
  return { passed, failed: failed === 0 && status !== 0 ? 1 : failed, skipped };
}

/** A suite that hangs fails; the slowest takes a few minutes. */
const limitMs = 10 * 60_000;

/** Its output comes whole, so that two at a time can be read. */
function run({ name, command: [program, ...args], env }) {
  const start = Date.now();
  return new Promise((resolve) => {
    const child = spawn(program, args, { cwd: root, env: { ...process.env, NO_COLOR: "1", ...env }, stdio: ["ignore", "pipe", "pipe"] });
    const timer = setTimeout(() => child.kill("SIGKILL"), limitMs);
    let output = "";
    for (const stream of [child.stdout, child.stderr]) stream.on("data", (chunk) => output += chunk);
    child.on("close", (status) => {
      clearTimeout(timer);
      console.log(`\n── ${name}\n${output}`);
      resolve({ name, ...counted(output, status), seconds: (Date.now() - start) / 1_000 });
    });
  });
}

const wanted = process.argv.slice(2);
const chosen = suites.filter(({ name }) => wanted.length === 0 || wanted.some((part) => name.includes(part)));
const results = [];

/** One after the other, each taken out. */
async function runAll(queue) {
  for (let suite = queue.shift(); suite; suite = queue.shift()) results.push(await run(suite));
}

const laneOf = (lane) => chosen.filter((suite) => (suite.lane ?? "beside") === lane);
const beside = [...laneOf("beside"), ...laneOf("late")];
await Promise.all([runAll(laneOf("contract")).then(() => runAll(beside)), runAll(beside)]);
await runAll(laneOf("alone"));
const sum = (key) => results.reduce((total, result) => total + result[key], 0);
console.log("\n── summary");
for (const { name, passed, failed, skipped, seconds } of results) {
  const tests = passed + failed + skipped > 0 ? `${passed} passed, ${failed} failed, ${skipped} skipped` : "done";
  console.log(`${name.padEnd(36)} ${tests.padEnd(36)} ${seconds.toFixed(1)} s`);
}
console.log(`\n${sum("passed")} passed, ${sum("failed")} failed, ${sum("skipped")} skipped`);
process.exit(sum("failed") > 0 || sum("passed") === 0 ? 1 : 0);
