/**
 * Receives ten descriptors into a table that has less room, and says what came
 * of it as one JSON line. Started with a low limit of open files.
 */

import process from "node:process";
import { DescriptorChannel } from "../../src/sockets/channel.ts";
import { disposeAll, OwnedDescriptor } from "../../src/sockets/descriptors.ts";
import { socketPair } from "./pair.ts";
import { runtime } from "./seam.ts";
import { changes, steadyTable } from "./table.ts";

const roomCount = Number(process.argv[2]);
const [left, right] = socketPair();
const sender = new DescriptorChannel(runtime, left.number, 256);
const receiver = new DescriptorChannel(runtime, right.number, 256);
await sender.send(Uint8Array.of(1), new Array(10).fill(left.number), 10_000);

const before = await steadyTable();
const fillers = filled();
const filledCount = fillers.length;
disposeAll(fillers.splice(0, roomCount));
const outcome = received();
disposeAll(fillers);
console.log(JSON.stringify({ filledCount, changes: changes(before, await steadyTable()), ...outcome }));
process.exit(0);

/** As many descriptors as there are numbers left. */
function filled(): OwnedDescriptor[] {
  const { abi, libc } = runtime;
  const descriptors: OwnedDescriptor[] = [];
  for (;;) {
    const number = libc.socket(abi.constants.AF_UNIX, abi.constants.SOCK_DGRAM, 0);
    if (number < 0) return descriptors;
    descriptors.push(new OwnedDescriptor(runtime, number));
  }
}

function received(): Record<string, unknown> {
  try {
    const { descriptors } = receiver.receive(256)!;
    disposeAll(descriptors);
    return { received: descriptors.length };
  } catch (error) {
    const { code, message } = error as { code?: string; message: string };
    return { code, message };
  }
}
