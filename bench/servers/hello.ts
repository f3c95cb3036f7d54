/**
 * The smallest HTTP server of each runtime, with the library or without it: the
 * two sides of the benches "requests" and "start".
 *
 * Environment: `TAKEOVER`, the path of the control socket; without it the
 * library is not even loaded. `MODULE`: the library, if not the sources.
 * Every event is one JSON line on stdout.
 */

import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import process from "node:process";
import type * as Library from "../../mod.ts";

// deno-lint-ignore no-explicit-any
const { Deno, Bun } = globalThis as any;
const { env, pid } = process;

type Handlers = {
  fetch(request: Request): Response;
  listener(request: IncomingMessage, response: ServerResponse): void;
};
type Opening = { readonly hostname: string; readonly port: number };

const handlers: Handlers = {
  fetch: (_request) => new Response("hello\n"),
  listener: (_request, response) => void response.end("hello\n"),
};

if (env.TAKEOVER === undefined) await serve();
else await serveReplaceably(env.TAKEOVER);

/** As every server starts. */
async function serve(): Promise<void> {
  const server = open({ hostname: "127.0.0.1", port: 0 }, handlers);
  if (Deno) return say("open", { port: server.addr.port });
  if (Bun) return say("open", { port: server.port });
  await new Promise((resolve) => server.once("listening", resolve));
  say("open", { port: (server.address() as AddressInfo).port });
}

/** The same, the README's way. */
async function serveReplaceably(path: string): Promise<void> {
  const start = performance.now();
  // Deno reads without a permission only what it can tell beforehand.
  const library: typeof Library = await (env.MODULE ? import(env.MODULE) : import("../../mod.ts"));
  const imported = performance.now();
  await library.openRuntime();
  const bound = performance.now();
  const takeover = await library.takeOver(path, { limits: { settleMs: 0 } });
  const wrapped = { fetch: takeover.fetch(handlers.fetch), listener: takeover.requestListener(handlers.listener) };
  await takeover.listen("web", { hostname: "127.0.0.1", port: 0 }, (at) => open(at, wrapped));
  await takeover.ready();
  await takeover.settled;
  const { port } = takeover.addr("web") as { port: number };
  say("open", { port, generation: takeover.generation, importMs: imported - start, bindMs: bound - imported });
  await takeover.released;
  process.exit(0);
}

// deno-lint-ignore no-explicit-any
function open({ hostname, port }: Opening, { fetch, listener }: Handlers): any {
  if (Deno) return Deno.serve({ hostname, port, onListen() {} }, fetch);
  if (Bun) return Bun.serve({ hostname, port, fetch });
  return createServer(listener).listen(port, hostname);
}

function say(event: string, more: object): void {
  console.log(JSON.stringify({ event, pid, ...more }));
}
