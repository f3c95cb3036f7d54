/**
 * How much processor time a process takes that has used channels and does
 * nothing: with no wait, and with a receive and an accept that wait.
 */

import process from "node:process";
import { channelPair, connectChannel, listenChannel } from "../../src/channels/fd_listener.ts";
import { report } from "./outcome.ts";
import { runtime } from "./seam.ts";

const windowMs = 500;
/** A runtime's own threads may have something to do after the start; what spins, spins in every window. */
const windowCount = 6;

/** The share of a processor that the quietest window takes; more windows only when one was not quiet. */
async function restingShare(): Promise<number> {
  let least = Infinity;
  for (let count = 0; count < windowCount && least >= 0.05; count++) {
    const before = process.cpuUsage();
    await new Promise((resolve) => setTimeout(resolve, windowMs));
    const { user, system } = process.cpuUsage(before);
    least = Math.min(least, (user + system) / 1_000 / windowMs);
  }
  return least;
}

const path = `\0takeover-test-${runtime.libc.getpid()}`;
const listener = listenChannel(runtime, path);
const [left, right] = channelPair(runtime);
for (let count = 0; count < 200; count++) {
  const receiving = right.receive();
  await left.send(Uint8Array.of(1), [left.descriptor]);
  (await receiving)![Symbol.dispose]();
}
const withoutWaits = { share: await restingShare() };
const receiving = right.receive();
const accepting = listener.accept();
const withWaits = { share: await restingShare() };
const client = await connectChannel(runtime, path);
(await accepting).close();
await left.send(Uint8Array.of(1));
await receiving;
client.close();
report({ withoutWaits, withWaits });
