/**
 * One listener of examples/workers/server.ts, in a thread of its own.
 */

import { Readable } from "node:stream";
import { Bun, Deno, runtime, sleep } from "../service.ts";

/** Where to listen, and what each answer tells. */
interface Task {
  readonly at: { readonly hostname: string; readonly port: number };
  readonly who: object;
}

// deno-lint-ignore no-explicit-any
const globals = globalThis as any;
const pieceMs = 50;

if (runtime === "node") {
  const { workerData } = await import("node:worker_threads");
  await serve(JSON.parse(workerData));
} else {
  globals.onmessage = ({ data }: { readonly data: string }) => void serve(JSON.parse(data));
}

async function serve({ at, who }: Task): Promise<unknown> {
  if (Deno) return Deno.serve({ ...at, onListen() {} }, (request: Request) => answer(request.url, who));
  if (Bun) return Bun.serve({ ...at, fetch: (request: Request) => answer(request.url, who), idleTimeout: 250 });
  const { createServer } = await import("node:http");
  return createServer({ keepAliveTimeout: 250_000 }, (request, response) => {
    const ms = streamMs(`http://localhost${request.url}`);
    if (ms === null) response.end(JSON.stringify(who));
    else Readable.fromWeb(pieces(ms, who) as Parameters<typeof Readable.fromWeb>[0]).pipe(response);
  }).listen(at.port, at.hostname);
}

function answer(url: string, who: object): Response {
  const ms = streamMs(url);
  return ms === null ? Response.json(who) : new Response(pieces(ms, who));
}

/** How long the answer takes; null for one that comes at once. */
function streamMs(url: string): number | null {
  const { pathname, searchParams } = new URL(url);
  return pathname === "/stream" ? Number(searchParams.get("ms") ?? 0) : null;
}

/** The same line again and again, for that long. */
function pieces(ms: number, who: object): ReadableStream<Uint8Array> {
  const line = new TextEncoder().encode(`${JSON.stringify(who)}\n`);
  let left = Math.max(1, Math.round(ms / pieceMs));
  return new ReadableStream({
    async pull(controller) {
      await sleep(pieceMs);
      controller.enqueue(line);
      if (--left === 0) controller.close();
    },
  });
}
