/**
 * Accepts TCP connections and hands each to another process, or answers it
 * itself when nobody takes it:
 *
 * ```sh
 * deno run --allow-ffi --allow-net --allow-env examples/forward/server.ts
 * bun examples/forward/server.ts
 * node examples/forward/server.ts
 * ```
 *
 * Beside it examples/forward/forward.ts takes connections, and
 * examples/forward/client.ts makes some. Each of the three runs on any runtime,
 * and may be any program that speaks plain `SCM_RIGHTS`: a hand-over is one Unix
 * stream connection with one message, the seven bytes `forward`, and one control
 * message with one descriptor.
 *
 * Environment: `PORT` (8080), `HOST` (127.0.0.1), `FORWARD_SOCKET`
 * (/tmp/forward_demo.sock), `REQUEST_MS` (5000: how long a client may take to
 * send its request, and how long a hand-over is watched over).
 *
 * SIGTERM or SIGINT: no new connections, those under way are answered. Every
 * event is one JSON line on stdout. Exit status: 0, or 1 when it cannot listen.
 */

import process from "node:process";
import {
  connectChannel,
  formatAddress,
  openAcceptor,
  type OwnedDescriptor,
  SystemError,
  TakeoverError,
} from "../../mod.ts";
import { answer, report } from "./answer.ts";
import { whoAnswers } from "./watch.ts";

const { env } = process;
const path = env.FORWARD_SOCKET ?? "/tmp/forward_demo.sock";
const requestMs = Number(env.REQUEST_MS ?? 5_000);
const word = new TextEncoder().encode("forward");

/** How long the forwarder's queue may be full. */
const sendMs = 1_000;

/** Connections at the same time; more wait in the accept queue. */
const mostAtOnce = 256;

const address = { hostname: env.HOST ?? "127.0.0.1", port: Number(env.PORT ?? 8080) };
// A forwarder in C or Python reads what it receives as if nobody had made it non-blocking.
const acceptor = await openAcceptor(address, { blocking: true }).catch(refuse);
for (const signal of ["SIGTERM", "SIGINT"] as const) process.once(signal, () => acceptor.close());
report("open", { address: formatAddress(acceptor.address), path });

const pending = new Set<Promise<void>>();
for await (const connection of acceptor) {
  const done: Promise<void> = serve(connection).finally(() => pending.delete(done));
  pending.add(done);
  if (pending.size >= mostAtOnce) await Promise.race(pending);
}
await Promise.all(pending);
report("closed");
process.exit(0);

/** Hands a connection over; the copy here is closed when somebody else answers. */
async function serve(accepted: OwnedDescriptor): Promise<void> {
  using connection = accepted;
  const outcome = await handOver(connection);
  report(outcome.event, outcome);
  if (outcome.event === "forwarded") return;
  // Of a connection that came back the request may have been read.
  const patience = outcome.event === "returned" ? { requestMs: 100, unasked: true } : { requestMs };
  report("answered", await answer(connection, "process by server", patience));
}

interface Outcome {
  /** `kept`: nobody took it. `returned`: who took it ended without an answer. */
  readonly event: "forwarded" | "kept" | "returned";
  readonly reason?: string;
}

async function handOver(connection: OwnedDescriptor): Promise<Outcome> {
  try {
    using channel = await connectChannel(path, { timeoutMs: sendMs });
    await channel.send(word, [connection], { timeoutMs: sendMs });
    return { event: await whoAnswers(channel, connection, requestMs) };
  } catch (error) {
    return { event: "kept", reason: (error as Error).message };
  }
}

function refuse(error: unknown): never {
  if (!(error instanceof TakeoverError || error instanceof SystemError)) throw error;
  report("refused", { code: error.code, message: error.message });
  process.exit(1);
}
