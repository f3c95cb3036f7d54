/**
 * A server with any number of listeners that says how long each step of its
 * hand-over took: the subject of the bench "handover".
 *
 * Environment: `TAKEOVER`, `LISTENERS`. It says `settled` when it has taken
 * over, and ends when it has been replaced. Every event is one JSON line on
 * stdout.
 */

import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import process from "node:process";
import { openRuntime, takeOver } from "../../mod.ts";

// deno-lint-ignore no-explicit-any
const { Deno, Bun } = globalThis as any;
const { env, pid } = process;
const listenerCount = Number(env.LISTENERS);

/** The application's own: from the call of `Deno.serve`, `Bun.serve` or `listen` until the server listens. */
let openMs = 0;

/** When the successor wrote each of its frames. */
const writtenMs: Record<string, number> = {};

const bindMs = await timed(openRuntime);
await watchFrames();
// What the process itself took to come this far.
const startMs = performance.now();
const takeover = await takeOver(env.TAKEOVER!);
const offeredMs = performance.now() - startMs;
const listenMs = await timed(async () => {
  for (let at = 0; at < listenerCount; at++) await listen(`web ${at}`);
});
const readyMs = await timed(() => takeover.ready());
const settleMs = await timed(() => takeover.settle());
say("settled", {
  generation: takeover.generation,
  bindMs,
  startMs,
  offeredMs,
  listenMs: listenMs - openMs,
  openMs,
  readyMs,
  settleMs,
  helloToReadyMs: writtenMs.ready === undefined ? 0 : writtenMs.ready - writtenMs.hello! - openMs,
});
await takeover.released;
await takeover.drained();
process.exit(0);

/** Notes the time at which the frames of the control connection are handed to the runtime. */
async function watchFrames(): Promise<void> {
  const runtime = await openRuntime();
  const { adoptStream } = runtime;
  Object.assign(runtime, {
    adoptStream(descriptor: number) {
      const stream = adoptStream(descriptor);
      const write = stream.write;
      return Object.assign(stream, {
        write(bytes: Uint8Array) {
          const type = /"type":"(\w+)"/.exec(new TextDecoder().decode(bytes))?.[1];
          if (type !== undefined) writtenMs[type] ??= performance.now();
          write(bytes);
        },
      });
    },
  });
}

async function listen(name: string): Promise<void> {
  await takeover.listen(name, { hostname: "127.0.0.1", port: 0 }, (at) => {
    const start = performance.now();
    const listening = () => void (openMs += performance.now() - start);
    if (!Deno && !Bun) return createServer(answer).listen(at.port, at.hostname, listening);
    const server = Deno ? Deno.serve({ ...at, onListen() {} }, fetch) : Bun.serve({ ...at, fetch });
    listening();
    return server;
  });
}

function answer(_request: IncomingMessage, response: ServerResponse): void {
  response.end("hello\n");
}

function fetch(): Response {
  return new Response("hello\n");
}

async function timed(step: () => Promise<unknown>): Promise<number> {
  const start = performance.now();
  await step();
  return performance.now() - start;
}

function say(event: string, more: object): void {
  console.log(JSON.stringify({ event, pid, ...more }));
}
