/**
 * Receives ten descriptors into a table that has less room, and says what came
 * of it as one JSON line. Started with a low limit of open files.
 */

import process from "node:process";
import { DescriptorChannel } from "../../src/channel.ts";
import { disposeAll, freeDescriptorCount, linkOf, openDescriptors, OwnedDescriptor } from "../../src/descriptors.ts";
import { socketPair } from "./pair.ts";
import { runtime } from "./seam.ts";

const [left, right] = socketPair();
const sender = new DescriptorChannel(runtime, left.number, 256);
const receiver = new DescriptorChannel(runtime, right.number, 256);
await sender.send(Uint8Array.of(1), new Array(10).fill(left.number), 10_000);

const table = () => openDescriptors(runtime).map((number) => `${number} ${linkOf(runtime, number)}`).join("\n");
const free = freeDescriptorCount(runtime);
const before = table();
const fillers: OwnedDescriptor[] = [];
for (let count = free - Number(process.argv[2]); count > 0; count--) fillers.push(filler());

let outcome: Record<string, unknown>;
try {
  const { descriptors } = receiver.receive(256)!;
  outcome = { received: descriptors.length };
  disposeAll(descriptors);
} catch (error) {
  const { code, message } = error as { code?: string; message: string };
  outcome = { code, message };
}
disposeAll(fillers);
console.log(JSON.stringify({ free, leaked: table() !== before, ...outcome }));
process.exit(0);

function filler(): OwnedDescriptor {
  const { abi, libc } = runtime;
  return new OwnedDescriptor(runtime, libc.socket(abi.constants.AF_UNIX, abi.constants.SOCK_DGRAM, 0));
}
