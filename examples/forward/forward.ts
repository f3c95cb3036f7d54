/**
 * The forwarder: receives connections from examples/forward/server.ts, or from
 * any program that sends descriptors, and answers `process by forward`.
 *
 * ```sh
 * deno run --allow-ffi --allow-net --allow-env examples/forward/forward.ts
 * bun examples/forward/forward.ts
 * node examples/forward/forward.ts
 * ```
 *
 * A hand-over is one Unix stream connection with one message: the seven bytes
 * `forward`, and one `SCM_RIGHTS` control message with one descriptor. The
 * connection is closed when the client has been answered, or refused.
 *
 * Environment: `FORWARD_SOCKET` (/tmp/forward_demo.sock; a path that a killed
 * forwarder left is replaced, one at which somebody listens is an error),
 * `REQUEST_MS` (5000: how long a client may take to send its request).
 *
 * SIGTERM or SIGINT: no new connections, the path is removed, those received
 * are answered. What was not received yet stays the server's. Every event is one
 * JSON line on stdout. Exit status: 0, or 1 when it cannot listen.
 */

import process from "node:process";
import { type FdChannel, listenChannel, SystemError, TakeoverError } from "../../mod.ts";
import { answer, report } from "./answer.ts";

const path = process.env.FORWARD_SOCKET ?? "/tmp/forward_demo.sock";
const requestMs = Number(process.env.REQUEST_MS ?? 5_000);

/** How long a sender may take after it has connected. */
const messageMs = 1_000;

/** Connections at the same time; more wait in the queue of the path. */
const mostAtOnce = 256;

const listener = await listenChannel(path, { mode: 0o600, replaceStale: true }).catch(refuse);
for (const signal of ["SIGTERM", "SIGINT"] as const) process.once(signal, () => listener.close());
report("open", { path });

const pending = new Set<Promise<void>>();
for await (const channel of listener) {
  const done: Promise<void> = receive(channel).finally(() => pending.delete(done));
  pending.add(done);
  if (pending.size >= mostAtOnce) await Promise.race(pending);
}
await Promise.all(pending);
report("closed");
process.exit(0);

/** One hand-over. Closing the channel tells the sender that it is done. */
async function receive(channel: FdChannel): Promise<void> {
  try {
    using message = await channel.receive({ minFds: 1, maxFds: 1, maxBytes: 64, timeoutMs: messageMs });
    if (message === null) return; // Somebody looked whether anybody listens.
    const word = new TextDecoder().decode(message.bytes);
    if (word !== "forward") throw new Error(`Cannot take this: expected "forward", got ${JSON.stringify(word)}`);
    report("answered", await answer(message.fds[0]!, "process by forward", { requestMs }));
  } catch (error) {
    report("refused", { message: (error as Error).message });
  } finally {
    channel.close();
  }
}

function refuse(error: unknown): never {
  if (!(error instanceof TakeoverError || error instanceof SystemError)) throw error;
  const isLive = error.code === "EADDRINUSE";
  const why = isLive ? `Cannot listen on ${path}: somebody does already; end it, or set FORWARD_SOCKET` : error.message;
  report("refused", { code: error.code, message: why });
  process.exit(1);
}
