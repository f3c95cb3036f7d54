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
import { address, run } from "../service.ts";
import { startWorker } from "./start.ts";

const count = Number(env.LISTENERS ?? 2);

await run("workers", (takeover, who) => {
  const open = (at: TcpOpening, index: number) => startWorker(at, { ...who, worker: index });
  return takeover.listenGroup("web", { ...address, count }, open);
});
