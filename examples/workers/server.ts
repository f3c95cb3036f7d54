/**
 * An HTTP server that uses several processors, and replaces its predecessor
 * without losing a request: a group of listeners (SO_REUSEPORT), each in a
 * worker, over which the kernel spreads connections. One file for three
 * runtimes:
 *
 * ```sh
 * deno run --allow-ffi --allow-net --allow-env --allow-read examples/workers/server.ts
 * bun examples/workers/server.ts
 * node examples/workers/server.ts
 * ```
 *
 * `LISTENERS` is how many (2); the next process may want another number.
 * Environment and events are otherwise those of examples/service.ts. It answers
 * `GET /` and `GET /stream?ms=N`, which takes that long. Connections of workers
 * do not move to the next process: they end with the old one, `DRAIN_MS` after
 * it was replaced at the latest.
 */

import { env } from "node:process";
import type { TcpOpening } from "../../mod.ts";
import { address, run, runtime } from "../service.ts";

// deno-lint-ignore no-explicit-any
const { Worker: WebWorker } = globalThis as any;
const count = Number(env.LISTENERS ?? 2);
const program = new URL("./worker.ts", import.meta.url);

await run("workers", (takeover, who) => {
  const open = ({ hostname, port }: TcpOpening, index: number) => {
    return start(JSON.stringify({ at: { hostname, port }, who: { ...who, worker: index } }));
  };
  return takeover.listenGroup("web", { ...address, count }, open);
});

/** A worker that listens there; it need not have begun when this returns. */
async function start(message: string): Promise<unknown> {
  if (runtime === "node") {
    const { Worker } = await import("node:worker_threads");
    return new Worker(program, { workerData: message });
  }
  const worker = new WebWorker(program.href, { type: "module" });
  worker.postMessage(message);
  return worker;
}
