/**
 * Receives into a descriptor table that has less room than what comes, and says
 * what came of it. Started with a low limit of open files.
 */

import { allocate } from "../../src/c/bytes.ts";
import { disposeAll, OwnedDescriptor } from "../../src/sockets/descriptors.ts";
import type { FdChannelOptions, FdListener } from "../../src/channels/fd_listener.ts";
import { channelPair, connectChannel, listenChannel } from "../../src/channels/fd_listener.ts";
import { openReadiness } from "../../src/channels/readiness.ts";
import { outcomeOf, report } from "./outcome.ts";
import { runtime } from "./seam.ts";
import { changes, steadyTable } from "./table.ts";

const { abi, libc } = runtime;
await openReadiness(runtime);

report({
  ten: await receiveWithRoom(10, 10),
  nine: await receiveWithRoom(10, 9),
  one: await receiveWithRoom(10, 1),
  none: await receiveWithRoom(10, 0),
  pidfd: await receiveWithRoom(0, 0, { type: "seqpacket", passPidfd: true, passCredentials: true }),
  all: await receiveWithRoom(10, 0, { type: "seqpacket", passPidfd: true, passCredentials: true }),
  accept: await acceptWithoutRoom(),
});

/** As many descriptors as there are numbers left, but for so many. */
function fill(roomCount: number): OwnedDescriptor[] {
  const descriptors: OwnedDescriptor[] = [];
  for (;;) {
    const number = libc.socket(abi.constants.AF_UNIX, abi.constants.SOCK_DGRAM, 0);
    if (number < 0) break;
    descriptors.push(new OwnedDescriptor(runtime, number));
  }
  disposeAll(descriptors.splice(descriptors.length - roomCount));
  return descriptors;
}

/** Two messages: the first into a table with so much room, the second into one that has enough. */
async function receiveWithRoom(count: number, roomCount: number, options: FdChannelOptions = {}): Promise<unknown> {
  const [left, right] = channelPair(runtime, options);
  for (const first of [1, 2]) await left.send(Uint8Array.of(first), new Array(count).fill(left.descriptor));
  const before = await steadyTable();
  const fillers = fill(roomCount);
  const outcome = await outcomeOf(receive);
  disposeAll(fillers);
  const next = await outcomeOf(receive);
  const found = { ...outcome, next: next.code, changes: changes(before, await steadyTable()) };
  left.close();
  right.close();
  return found;

  async function receive(): Promise<string> {
    const message = (await right.receive({ timeoutMs: 5_000 }))!;
    const { bytes, fds, credentials, pidfd } = message;
    message[Symbol.dispose]();
    const parts = [`byte ${bytes[0]}`, `${fds.length} descriptors`, credentials && "credentials", pidfd && "pidfd"];
    return parts.filter(Boolean).join(", ");
  }
}

/** A connection that finds no free descriptor: an error for accept, a wait for the loop. */
async function acceptWithoutRoom(): Promise<unknown> {
  const path = `\0takeover-test-${libc.getpid()}`;
  const listener: FdListener = listenChannel(runtime, path);
  const client = await connectChannel(runtime, path);
  const fillers = fill(0);
  const outcome = await outcomeOf(() => listener.accept());
  setTimeout(() => disposeAll(fillers), 150);
  for await (const channel of listener) {
    await client.send(allocate(1), [0]);
    const message = (await channel.receive())!;
    const found = { ...outcome, next: `${message.fds.length} descriptors` };
    message[Symbol.dispose]();
    channel.close();
    client.close();
    listener.close();
    return found;
  }
  return outcome;
}
