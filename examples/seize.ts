/**
 * Replaces any server that listens on a port by a small HTTP server, without
 * losing a connection. The old one need not know this library: nginx, Python,
 * an older version of your own. Linux; run it as the same user, or as root.
 *
 * ```sh
 * deno run --allow-ffi --allow-net --allow-env examples/seize.ts PID PORT
 * bun examples/seize.ts PID PORT
 * node examples/seize.ts PID PORT
 * ```
 *
 * Environment: `TAKEOVER` (the path of the control socket, over which the next
 * process can take over), `DEADLINE_MS` (how long the old server's connections
 * may take, 30000), `DRAIN_SIGNAL` (the signal on which the old server drains
 * by itself: `SIGQUIT` for nginx).
 *
 * Every event is one JSON line on stdout.
 */

import { createServer } from "node:http";
import process from "node:process";
import { formatAddress, seize, type Signal, SystemError, takeOver, TakeoverError } from "../mod.ts";

// deno-lint-ignore no-explicit-any
const { Deno, Bun } = globalThis as any;
const { argv, env, pid } = process;
const runtime = Deno ? "deno" : Bun ? "bun" : "node";

await main(Number(argv[2]), Number(argv[3])).catch((error) => {
  if (!(error instanceof TakeoverError || error instanceof SystemError)) throw error;
  report("refused", { code: error.code, message: error.message });
  process.exit(1);
});

async function main(oldPid: number, port: number): Promise<void> {
  // First of all: the other process is easier to pause while few descriptors are open here.
  const seized = await seize({ pid: oldPid, port });
  const [web] = seized.sockets;
  const path = env.TAKEOVER ?? `/tmp/socket-takeover-seize-${port}.sock`;
  const takeover = await takeOver(path, { inherit: seized.sockets });
  const { hostname } = web!.identity.address as { hostname: string };
  await takeover.listen(web!.name, { hostname, port }, (at) => {
    if (Deno) return Deno.serve({ ...at, onListen() {} }, answer);
    if (Bun) return Bun.serve({ ...at, fetch: answer });
    return createServer((_request, response) => response.end(body())).listen(at);
  });
  await takeover.ready();
  report("ready", { addr: formatAddress(takeover.addr(web!.name)) });

  const { DEADLINE_MS, DRAIN_SIGNAL } = env;
  const deadlineMs = Number(DEADLINE_MS ?? 30_000);
  const drainSignal = DRAIN_SIGNAL as Signal | undefined;
  report("retired", { ...await seized.retire(drainSignal ? { deadlineMs, drainSignal } : { deadlineMs }) });

  process.once("SIGTERM", async () => {
    await takeover.close();
    await takeover.drained();
    process.exit(0);
  });
}

function answer(): Response {
  return new Response(body());
}

function body(): string {
  return JSON.stringify({ pid, runtime, generation: 1 });
}

function report(event: string, more: object): void {
  console.log(JSON.stringify({ event, pid, runtime, ...more }));
}
