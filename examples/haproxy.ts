/**
 * Replaces a running HAProxy by a small HTTP server, without losing a
 * connection. HAProxy's configuration needs
 * `stats socket STATS expose-fd listeners level admin`. Linux; run it as the
 * user that started HAProxy.
 *
 * ```sh
 * deno run --allow-all examples/haproxy.ts STATS PID
 * bun examples/haproxy.ts STATS PID
 * node examples/haproxy.ts STATS PID
 * ```
 *
 * Environment: `TAKEOVER` (the path of the control socket, over which the next
 * process can take over).
 *
 * Every event is one JSON line on stdout. SIGTERM ends it.
 */

import { createServer } from "node:http";
import process from "node:process";
import { openRuntime, socketsFromHaproxy, SystemError, takeOver, TakeoverError, type TcpEndpoint } from "../mod.ts";

// deno-lint-ignore no-explicit-any
const { Deno, Bun } = globalThis as any;
const { argv, env, pid } = process;
const runtime = Deno ? "deno" : Bun ? "bun" : "node";

/** On which HAProxy accepts nothing more, serves what it has, and ends. */
const SIGUSR1 = 10;

const [stats, haproxy] = [argv[2], Number(argv[3])];
if (stats === undefined || !(Number.isInteger(haproxy) && haproxy > 1)) {
  console.error("expected two arguments: the path of HAProxy's stats socket, and HAProxy's pid");
  process.exit(2);
}
await main(stats, haproxy).catch((error) => {
  if (!(error instanceof TakeoverError || error instanceof SystemError)) throw error;
  report("refused", { code: error.code, message: error.message });
  process.exit(1);
});

async function main(stats: string, haproxy: number): Promise<void> {
  const sockets = await socketsFromHaproxy(stats);
  const takeover = await takeOver(env.TAKEOVER ?? "/tmp/socket-takeover-haproxy.sock", { inherit: sockets });
  const streams = sockets.filter(({ identity }) => identity.type === "stream");
  for (const { name, identity } of streams) {
    await takeover.listen(name, identity.address as TcpEndpoint, (at) => {
      if (Deno) return Deno.serve({ ...at, onListen() {} }, takeover.fetch(answer));
      if (Bun) return Bun.serve({ ...at, fetch: takeover.fetch(answer) });
      return createServer(takeover.requestListener((_, response) => response.end(body()))).listen(at);
    });
  }
  await takeover.ready();
  report("ready", { names: streams.map(({ name }) => name) });
  const { libc } = await openRuntime();
  libc.kill(haproxy, SIGUSR1);
  const stopped = new Promise<void>((resolve) => process.once("SIGTERM", () => resolve()));
  await Promise.race([takeover.released.catch(() => {}), stopped]);
  await takeover.close();
  await takeover.drained();
  process.exit(0);
}

function answer(): Response {
  return new Response(body());
}

function body(): string {
  return JSON.stringify({ pid, runtime, generation: 2 });
}

function report(event: string, more: object): void {
  console.log(JSON.stringify({ event, pid, runtime, ...more }));
}
