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
 * It ends when the next process has taken over in its turn; examples/http.ts
 * with the same `TAKEOVER`, `HOST` and `PORT` can be that one.
 *
 * Environment: `TAKEOVER` (the path of the control socket, over which it can,
 * /tmp/socket-takeover-seize-PORT.sock), `DEADLINE_MS` (how long the old server's connections
 * may take, 30000), `DRAIN_SIGNAL` (the signal on which the old server drains
 * by itself: `SIGQUIT` for nginx), `ALLOW_BLOCKING` (1 for an old server that
 * polls a blocking listener, and goes on when accept fails: Python's http.server).
 *
 * Every event is one JSON line on stdout.
 */

import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import process from "node:process";
import { formatAddress, seize, type Signal, SystemError, takeOver, TakeoverError } from "../mod.ts";

// deno-lint-ignore no-explicit-any
const { Deno, Bun } = globalThis as any;
const { argv, env, pid } = process;
const runtime = Deno ? "deno" : Bun ? "bun" : "node";

if (!(Number(argv[2]) > 0 && Number(argv[3]) > 0)) {
  console.error("expected two arguments: the pid of the old server, and its port");
  process.exit(2);
}
await main(Number(argv[2]), Number(argv[3])).catch((error) => {
  if (!(error instanceof TakeoverError || error instanceof SystemError)) throw error;
  report("refused", { code: error.code, message: error.message });
  process.exit(1);
});

async function main(oldPid: number, port: number): Promise<void> {
  // First of all: the other process is easier to pause while few descriptors are open here.
  const seized = await seize({ pid: oldPid, port, name: "web", allowBlocking: env.ALLOW_BLOCKING === "1" });
  const [web] = seized.sockets;
  const path = env.TAKEOVER ?? `/tmp/socket-takeover-seize-${port}.sock`;
  const takeover = await takeOver(path, { inherit: seized.sockets });
  const { hostname } = web!.identity.address as { hostname: string };
  const body = JSON.stringify({ pid, runtime, generation: takeover.generation });
  const fetch = takeover.fetch(() => new Response(body));
  const listener = takeover.requestListener((_: IncomingMessage, response: ServerResponse) => void response.end(body));
  await takeover.listen("web", { hostname, port }, (at) => {
    if (Deno) return Deno.serve({ ...at, onListen() {} }, fetch);
    if (Bun) return Bun.serve({ ...at, fetch });
    return createServer(listener).listen(at);
  });
  await takeover.ready();
  report("ready", { addr: formatAddress(takeover.addr("web")) });

  const stopped = new Promise<void>((resolve) => process.once("SIGTERM", () => resolve()));
  const { DEADLINE_MS, DRAIN_SIGNAL } = env;
  const deadlineMs = Number(DEADLINE_MS ?? 30_000);
  const drainSignal = DRAIN_SIGNAL as Signal | undefined;
  report("retired", { ...await seized.retire(drainSignal ? { deadlineMs, drainSignal } : { deadlineMs }) });

  await Promise.race([takeover.released.catch(() => {}), stopped]);
  await takeover.close();
  await takeover.drained();
  process.exit(0);
}

function report(event: string, more: object): void {
  console.log(JSON.stringify({ event, pid, runtime, ...more }));
}
