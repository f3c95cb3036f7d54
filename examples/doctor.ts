/**
 * Says whether a takeover works here, and what to do where it does not.
 *
 * ```sh
 * deno run --allow-ffi --allow-net --allow-env examples/doctor.ts /run/shop/takeover.sock
 * bun examples/doctor.ts /run/shop/takeover.sock
 * node examples/doctor.ts /run/shop/takeover.sock
 * ```
 *
 * Without a path it says nothing of one. `--json` prints the diagnosis as JSON.
 * Exit status: 1 when something is bad, else 0.
 */

import process from "node:process";
import { doctor, formatDiagnosis } from "../mod.ts";

const arguments_ = process.argv.slice(2);
const diagnosis = await doctor(arguments_.find((each) => each !== "--json"));
const text = arguments_.includes("--json") ? `${JSON.stringify(diagnosis)}\n` : formatDiagnosis(diagnosis);
process.stdout.write(text);
process.exitCode = diagnosis.status === "bad" ? 1 : 0;
