/**
 * The main job on real traffic: `npm run demo`.
 *
 * An incumbent serves, a client that is not made of this library loads it, and
 * all nine pairs of Deno, Bun and Node follow each other. At the end one
 * successor is killed right after it was ready, and the incumbent accepts again.
 *
 * `npm run demo -- --naive` deploys the usual way instead: stop, then start.
 * Exit status 1 when a request failed, or a connection was closed unannounced.
 */

import process from "node:process";
import type { LoadReport } from "../test/support/load.ts";
import { Relay, sleep, startLoad } from "../test/support/relay.ts";
import { nineHandOvers } from "../test/support/server.ts";

const help = `npm run demo -- [--naive] [--rate N]

  --naive    stop the old process, then start the new one, and see what it costs
  --rate N   fresh connections a second (2000)
`;

const args = process.argv.slice(2);
if (args.includes("--help")) {
  console.log(help);
  process.exit(0);
}
const naive = args.includes("--naive");
const rate = Number(args[args.indexOf("--rate") + 1] ?? 2_000) || 2_000;
const isTerminal = process.stdout.isTTY === true && process.env.NO_COLOR === undefined;

/** How long each generation serves before the next one comes. */
const everyMs = 1_000;

const plan = { freshPerSecond: rate, busyCount: 8, idleCount: 100, idleMs: 1_500, slowPostCount: 8 };

let step = "starting";
let latest: LoadReport | null = null;

const report = naive ? await stopThenStart() : await takeOverNineTimes();
finish(report);
process.exit(report.failed > 0 ? 1 : 0);

async function takeOverNineTimes(): Promise<LoadReport> {
  await using relay = await Relay.open({ SETTLE_MS: "200", DRAIN_MS: "10000" });
  const begin = nineHandOvers[0]!;
  await relay.next(begin);
  const load = startLoad({ ...plan, port: relay.port, seconds: 600 }, progress);
  await sleep(everyMs);
  for (const [index, runtime] of nineHandOvers.slice(1).entries()) {
    say(`hand-over ${index + 1} of 9: ${nineHandOvers[index]} → ${runtime}`);
    const incumbent = relay.current;
    await relay.next(runtime);
    await relay.settled();
    const { moved } = await incumbent.event("settled");
    say(`hand-over ${index + 1} of 9: ${moved} connections have moved`);
    await sleep(everyMs);
  }
  await killOne(relay);
  await sleep(everyMs);
  load.stop();
  return await load.report;
}

/** A successor dies right after ready, before it has accepted anything: nothing may be lost. */
async function killOne(relay: Relay): Promise<void> {
  say("a successor is killed right after ready");
  const incumbent = relay.current;
  await using successor = relay.start("bun", { CRASH: "after-ready" });
  await successor.ended;
  await incumbent.event("resumed");
  say(`generation ${incumbent.events[0]!.generation} accepts again`);
}

async function stopThenStart(): Promise<LoadReport> {
  await using relay = await Relay.open({ SETTLE_MS: "200", DRAIN_MS: "200" });
  await relay.next(nineHandOvers[0]!);
  const load = startLoad({ ...plan, port: relay.port, seconds: 600 }, progress);
  await sleep(everyMs);
  for (const [index, runtime] of nineHandOvers.slice(1).entries()) {
    say(`restart ${index + 1} of 9: ${nineHandOvers[index]}, then ${runtime}`);
    const old = relay.current;
    old.signal("SIGTERM");
    await old.ended;
    await relay.next(runtime);
    await sleep(everyMs);
  }
  load.stop();
  return await load.report;
}

function say(what: string): void {
  step = what;
  show();
}

function progress(report: LoadReport): void {
  latest = report;
  show();
}

/** One line that stays where it is on a terminal, a line each elsewhere. */
function show(): void {
  const { answered, failed, seconds } = latest ?? { answered: 0, failed: 0, seconds: 0 };
  const line = `${seconds.toFixed(0).padStart(3)} s  ${String(answered).padStart(7)} answered  ` +
    `${String(failed).padStart(4)} failed  ${step}`;
  if (isTerminal) process.stdout.write(`\r\x1b[2K${line}`);
  else console.log(line);
}

function finish(report: LoadReport): void {
  if (isTerminal) process.stdout.write("\n");
  console.log(`\n${naive ? "Stop, then start" : "Socket takeover"}: ${report.answered} requests answered\n`);
  table("by runtime and generation", naive ? byRuntime(report.byServer) : report.byServer);
  table("by kind of load", report.byLoad);
  table("failures by kind", Object.keys(report.failures).length > 0 ? report.failures : { none: 0 });
  console.log("  fresh connections, from connect to the whole answer");
  for (const [name, value] of [["p50", report.p50], ["p99", report.p99], ["maximum", report.max]] as const) {
    console.log(`    ${name.padEnd(34)} ${value.toFixed(1).padStart(9)} ms`);
  }
  console.log(`  ${"the longest time without any answer".padEnd(36)} ${report.silence.toFixed(1).padStart(9)} ms`);
  console.log(`  ${"closes announced (Connection: close)".padEnd(36)} ${String(report.announced).padStart(9)}\n`);
  const verdict = report.failed === 0 ? "Nothing was lost." : `${report.failed} requests failed or connections were closed unannounced.`;
  console.log(verdict);
}

/** Without a takeover every process is the first generation. */
function byRuntime(byServer: Readonly<Record<string, number>>): Record<string, number> {
  const sums: Record<string, number> = {};
  for (const [server, count] of Object.entries(byServer)) {
    const runtime = server.split(" ")[0]!;
    sums[runtime] = (sums[runtime] ?? 0) + count;
  }
  return sums;
}

function table(title: string, rows: Readonly<Record<string, number>>): void {
  console.log(`  ${title}`);
  for (const [name, count] of Object.entries(rows)) console.log(`    ${name.padEnd(34)} ${String(count).padStart(9)}`);
  console.log();
}
