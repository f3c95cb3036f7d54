/**
 * Starts a worker that listens, on each of the three runtimes.
 */

import type { TcpOpening } from "../../mod.ts";
import { runtime } from "../service.ts";

// deno-lint-ignore no-explicit-any
const { Worker: WebWorker } = globalThis as any;
const program = new URL("./worker.ts", import.meta.url);

/**
 * A worker that listens there; it need not have begun when this resolves.
 *
 * @param who What each of its answers tells.
 */
export async function startWorker({ hostname, port }: TcpOpening, who: object): Promise<unknown> {
  const message = JSON.stringify({ at: { hostname, port }, who });
  if (runtime === "node") {
    const { Worker } = await import("node:worker_threads");
    return new Worker(program, { workerData: message });
  }
  const worker = new WebWorker(program.href, { type: "module" });
  worker.postMessage(message);
  return worker;
}
