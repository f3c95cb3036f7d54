/**
 * An HTTP server that replaces its predecessor without losing a request. One
 * file for three runtimes:
 *
 * ```sh
 * deno run --allow-ffi --allow-net --allow-env examples/http.ts
 * bun examples/http.ts
 * node examples/http.ts
 * ```
 *
 * Start it again, on the same runtime or another, and the second takes over.
 *
 * Environment: `PORT` (8080), `HOST` (127.0.0.1), `TAKEOVER` (the path of the
 * control socket), `SETTLE_MS` (10000), `DRAIN_MS` (30000), `STALL_MS` (blocks
 * the event loop that long on every idle turn, for tests), `WARM_MS` (rests that
 * long before it is ready, for tests), `CRASH` (`before-ready`
 * or `after-ready`: kills itself there).
 *
 * Every event is one JSON line on stdout. Exit status: 0 after a drain, 1 after
 * a refusal.
 */

import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import process from "node:process";
import { formatAddress, openRuntime, SystemError, takeOver, TakeoverError } from "../mod.ts";

// deno-lint-ignore no-explicit-any
const { Deno, Bun } = globalThis as any;
const { env, pid } = process;
const runtime = Deno ? "deno" : Bun ? "bun" : "node";

/** Requests of this turn of the event loop, for `STALL_MS`. */
let requestCount = 0;

/** Far beyond any client's patience: only the drain ends a kept connection. */
const keepAliveMs = 250_000;

stall(Number(env.STALL_MS ?? 0));
await main().catch((error) => {
  refused(error);
  process.exit(1);
});

async function main(): Promise<void> {
  const takeover = await takeOver(env.TAKEOVER ?? "/tmp/socket-takeover-http.sock", {
    limits: { settleMs: Number(env.SETTLE_MS ?? 10_000), drainMs: Number(env.DRAIN_MS ?? 30_000) },
  });
  const { generation } = takeover;
  const say = (event: string, more = {}) => report(event, { generation, ...more });

  takeover.on("ready", ({ inherited }) => {
    say("ready", { inherited: inherited.length > 0, addr: formatAddress(takeover.addr("web")) });
  });
  // The lease begins: a successor serves now. It ends in one of the next two.
  takeover.on("leased", ({ to }) => say("released", { to }));
  takeover.on("resumed", ({ code }) => say("resumed", { code }));
  takeover.on("released", ({ role, leaseMs }) => say("settled", { role, leaseMs }));
  takeover.on("settled", ({ role, leaseMs }) => say("settled", { role, leaseMs }));
  takeover.on("drained", ({ remaining, ms }) => say("drained", { remaining, ms }));

  const who = { pid, runtime, generation };
  const address = { hostname: env.HOST ?? "127.0.0.1", port: Number(env.PORT ?? 8080) };
  const fetch = takeover.fetch((request: Request) => answer(request, who));
  const listener = takeover.requestListener((request: IncomingMessage, response: ServerResponse) => {
    void answerNode(request, response, who);
  });
  await takeover.listen("web", address, (at) => {
    if (Deno) return Deno.serve({ ...at, onListen() {} }, fetch);
    if (Bun) return Bun.serve({ ...at, fetch, idleTimeout: 250 });
    return createServer({ keepAliveTimeout: keepAliveMs }, listener).listen(at);
  });

  await sleep(Number(env.WARM_MS ?? 0));
  if (env.CRASH === "before-ready") await crash();
  await takeover.ready();
  if (env.CRASH === "after-ready") await crash();

  const stopped = new Promise<number>((resolve) => process.once("SIGTERM", () => resolve(0)));
  // One whose lease was revoked accepts no more, and answers what it has.
  const replaced = takeover.released.then(() => 0, (error) => (refused(error), 1));
  const status = await Promise.race([replaced, stopped]);
  await takeover.close();
  await takeover.drained();
  process.exit(status);
}

/** `GET /`, `GET /slow?ms=N`, `POST /echo`. */
async function answer(request: Request, who: object): Promise<Response> {
  requestCount++;
  const { pathname, searchParams } = new URL(request.url);
  if (pathname === "/echo" && request.method === "POST") return new Response(await request.arrayBuffer());
  if (pathname === "/slow") await sleep(Number(searchParams.get("ms") ?? 0));
  else if (pathname !== "/") return new Response("not found\n", { status: 404 });
  return Response.json(who);
}

/** The same for node:http. */
async function answerNode(request: IncomingMessage, response: ServerResponse, who: object): Promise<void> {
  requestCount++;
  const { pathname, searchParams } = new URL(request.url ?? "/", "http://localhost");
  if (pathname === "/echo" && request.method === "POST") {
    const chunks: Uint8Array[] = [];
    try {
      for await (const chunk of request) chunks.push(chunk);
    } catch {
      return; // The client has gone.
    }
    response.end(Buffer.concat(chunks));
    return;
  }
  if (pathname === "/slow") await sleep(Number(searchParams.get("ms") ?? 0));
  else if (pathname !== "/") response.statusCode = 404;
  response.setHeader("Content-Type", "application/json");
  response.end(JSON.stringify(who));
}

function refused(error: unknown): void {
  if (!(error instanceof TakeoverError || error instanceof SystemError)) throw error;
  report("refused", { code: error.code, message: error.message });
}

function report(event: string, more: object): void {
  console.log(JSON.stringify({ event, pid, runtime, ...more }));
}

function sleep(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

/** SIGKILL through libc, because Deno would want --allow-run for it. */
async function crash(): Promise<never> {
  const { libc } = await openRuntime();
  libc.kill(pid, 9);
  throw new Error("still alive after SIGKILL");
}

/**
 * Blocks the event loop for that long on every turn that had no request to
 * answer. Not on the others: libuv accepts one connection a turn, so that Node
 * would serve 50 a second, with this library or without. The next turn is a
 * timer's: Deno looks for input and output only once in 61 turns while there is
 * an immediate.
 */
function stall(ms: number): void {
  if (ms <= 0) return;
  const never = new Int32Array(new SharedArrayBuffer(4));
  const turn = () => {
    if (requestCount === 0) Atomics.wait(never, 0, 0, ms);
    requestCount = 0;
    setTimeout(turn);
  };
  setTimeout(turn);
}
