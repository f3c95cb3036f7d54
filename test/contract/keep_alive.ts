/**
 * A wait with nothing else to do: `keep_alive.ts true|false [TIMEOUT_MS]`. A
 * child process sends a message after a while.
 */

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import process from "node:process";
import { wrapChannel } from "../../src/channels/fd_listener.ts";
import { openPair } from "../../src/sockets/socket.ts";
import { runtime } from "./seam.ts";

const keepAlive = process.argv[2] === "true";
const timeoutMs = process.argv[3] === undefined ? undefined : Number(process.argv[3]);

let code = "ended";
process.once("exit", () => console.log(JSON.stringify({ code })));

const [left, right] = openPair(runtime);
assert.equal(runtime.libc.fcntl(left.number, runtime.abi.constants.F_SETFL, 0), 0);
if (keepAlive) spawn("sh", ["-c", "sleep 0.2; printf x"], { stdio: ["ignore", left.number, "ignore"] }).unref();
wrapChannel(runtime, right).receive({ keepAlive, timeoutMs }).then((message) => {
  if (message?.bytes.length === 1) code = "received";
});
