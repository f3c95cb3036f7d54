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
 * Environment and events are those of examples/service.ts. With `LISTENERS=N`
 * so many listeners share the address (SO_REUSEPORT); with `DISPLACES="PID …"`
 * as well it starts beside servers that share it, and takes their place.
 */

import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import { env } from "node:process";
import { openRuntime, SystemError, TakeoverError, type TcpOpening } from "../mod.ts";
import { address, Bun, counted, Deno, report, run, sleep, type Takeover, type Who } from "./service.ts";

/** Sent through libc, because Deno would want --allow-run for `process.kill`. */
const SIGTERM = 15;

/** Far beyond any client's patience: only the drain ends a kept connection. */
const keepAliveMs = 250_000;

await run("http", (takeover, who) => {
  const fetch = takeover.fetch((request: Request) => answer(request, who));
  const listener = takeover.requestListener((request: IncomingMessage, response: ServerResponse) => {
    void answerNode(request, response, who);
  });
  const open = (at: TcpOpening) => {
    if (Deno) return Deno.serve({ ...at, onListen() {} }, fetch);
    if (Bun) return Bun.serve({ ...at, fetch, idleTimeout: 250 });
    return createServer({ keepAliveTimeout: keepAliveMs }, listener).listen(at);
  };
  if (!env.LISTENERS) return takeover.listen("web", address, open);
  if (env.DISPLACES) {
    const pids = pidsIn(env.DISPLACES);
    takeover.on("ready", () => void displace(takeover, pids).catch(undisplaced));
  }
  return takeover.listenGroup("web", { ...address, count: Number(env.LISTENERS) }, open);
});

/** As a shell gives them: with blanks between them, or on lines. */
function pidsIn(text: string): number[] {
  const pids = text.split(/\s+/).filter(Boolean).map(Number);
  if (pids.length > 0 && pids.every((pid) => Number.isInteger(pid) && pid > 1)) return pids;
  throw new TakeoverError(
    "ERR_TAKEOVER_RANGE",
    `Cannot displace ${JSON.stringify(text)}: expected pids in DISPLACES; give those of the servers`,
  );
}

/** The others serve on, and so does this process. */
function undisplaced(error: unknown): void {
  if (!(error instanceof TakeoverError || error instanceof SystemError)) throw error;
  report("undisplaced", { code: error.code, message: error.message });
}

/** Whoever shares the address is told to end when nobody waits for it any more. */
async function displace(takeover: Takeover, pids: readonly number[]): Promise<void> {
  const { libc } = await openRuntime();
  const end = () => {
    for (const pid of pids) libc.kill(pid, SIGTERM);
  };
  report("displaced", await takeover.displace("web", end));
}

/** `GET /`, `GET /slow?ms=N`, `POST /echo`. */
async function answer(request: Request, who: Who): Promise<Response> {
  counted();
  const { pathname, searchParams } = new URL(request.url);
  if (pathname === "/echo" && request.method === "POST") return new Response(await request.arrayBuffer());
  if (pathname === "/slow") await sleep(Number(searchParams.get("ms") ?? 0));
  else if (pathname !== "/") return new Response("not found\n", { status: 404 });
  return Response.json(who);
}

/** The same for node:http. */
async function answerNode(request: IncomingMessage, response: ServerResponse, who: Who): Promise<void> {
  counted();
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
