/**
 * Runs the benches: `npm run bench`, or
 * `node bench/run.ts [NAME …] [--quick] [--json]`.
 *
 * Prints tables and never fails on a figure. With `--json` the tables go to
 * stderr, and stdout is one JSON object.
 */

import { availableParallelism, loadavg } from "node:os";
import process from "node:process";
import { parseArgs } from "node:util";
import * as adopt from "./adopt.ts";
import * as connections from "./connections.ts";
import * as datagrams from "./datagrams.ts";
import * as descriptors from "./descriptors.ts";
import * as forward from "./forward.ts";
import * as fresh from "./fresh.ts";
import * as handover from "./handover.ts";
import * as keepAlive from "./keep_alive.ts";
import * as requests from "./requests.ts";
import * as start from "./start.ts";
import { type Bench, formatTable, type Table } from "./support.ts";

const benches: Readonly<Record<string, Bench>> = {
  descriptors: descriptors.run,
  adopt: adopt.run,
  requests: requests.run,
  handover: handover.run,
  start: start.run,
  fresh: fresh.run,
  keep_alive: keepAlive.run,
  forward: forward.run,
  connections: connections.run,
  datagrams: datagrams.run,
};

const { values: { quick, json }, positionals } = parseArgs({
  allowPositionals: true,
  options: { quick: { type: "boolean", default: false }, json: { type: "boolean", default: false } },
});
const unknown = positionals.filter((name) => !Object.hasOwn(benches, name));
if (unknown.length > 0) {
  console.error(`No bench is named ${unknown.join(", ")}; there are ${Object.keys(benches).join(", ")}`);
  process.exit(2);
}

const print = json ? console.error : console.log;
const machine = { processors: availableParallelism(), loadBefore: load() };
print(`${machine.processors} processors, load ${machine.loadBefore} before the first bench`);
const found: Record<string, readonly Table[]> = {};
for (const name of positionals.length > 0 ? positionals : Object.keys(benches)) {
  console.error(`${name} …`);
  found[name] = await benches[name]!({ quick });
  for (const table of found[name]) print(formatTable(table));
}
if (json) console.log(JSON.stringify({ quick, machine, benches: found }));

/** Of the last minute; above the number of processors, times say little. */
function load(): number {
  return Number(loadavg()[0]!.toFixed(1));
}
