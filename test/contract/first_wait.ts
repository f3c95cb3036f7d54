/**
 * What ends a wait that began before the process had anything to wait with.
 */

import { channelPair } from "../../src/channels/fd_listener.ts";
import { outcomeOf, report } from "./outcome.ts";
import { runtime } from "./seam.ts";

/** A few steps later the first wait has begun to open the bell, which takes a turn of the event loop. */
async function steps(): Promise<void> {
  for (let count = 0; count < 8; count++) await null;
}

const [left, right] = channelPair(runtime);
const [kept, other] = channelPair(runtime);
const controller = new AbortController();
const closed = outcomeOf(() => left.receive());
const aborted = outcomeOf(() => kept.receive({ signal: controller.signal }));
await steps();
const { descriptor } = left;
left.close();
// The number is another's now: a socket that is never readable.
runtime.libc.dup2(kept.descriptor, descriptor);
controller.abort(new Error("meanwhile"));
const found = { closed: await closed, aborted: await aborted };
const received = outcomeOf(async () => (await kept.receive()) ? "received" : "the end");
await other.send(Uint8Array.of(1));
right.close();
report({ ...found, received: await received });
