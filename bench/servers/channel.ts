/**
 * Sends descriptors to itself through the library's `FdChannel`, batch
 * by batch, and closes what it receives: the other half of the bench
 * "descriptors", beside `descriptors.c`.
 *
 * Each line on stdin, "ROUND MS", is one round of that many milliseconds; its
 * answer is one JSON line on stdout. Environment: `FFI` (Node: `koffi` or
 * `node:ffi`).
 */

import process from "node:process";
import { createInterface } from "node:readline";
import { openRuntime } from "../../mod.ts";
import { allocate, viewOf } from "../../src/c/bytes.ts";
import { FdChannel } from "../../src/channels/fd_channel.ts";
import { disposeAll, OwnedDescriptor } from "../../src/sockets/descriptors.ts";
import { checked } from "../../src/errors.ts";
import { openSocket } from "../../src/sockets/socket.ts";

const headSize = 16;
const limitMs = 10_000;

const runtime = await openBound(process.env.FFI);
const { abi, libc } = runtime;
const head = allocate(headSize);
const sent = Array.from({ length: abi.descriptorsPerMessage }, () => openSocket(runtime, "inet", "stream"));
const [sender, receiver] = socketPair().map((end) => new FdChannel(runtime, new OwnedDescriptor(runtime, end), "stream"));

say("open", { runtime: `${runtime.name} ${runtime.version}`, ffi: runtime.ffi });
for await (const line of createInterface({ input: process.stdin })) {
  const [round, ms] = line.split(" ").map(Number);
  say(`round ${round}`, await passFor(ms!));
}

/** Descriptors a second, over that many milliseconds: with the closing, and without it. */
async function passFor(ms: number): Promise<{ perSecond: number; openPerSecond: number }> {
  const start = performance.now();
  for (let passed = 0, closing = 0;;) {
    const received = await passBatch();
    const arrived = performance.now();
    disposeAll(received);
    const end = performance.now();
    passed += received.length;
    closing += end - arrived;
    const elapsed = end - start;
    if (elapsed < ms) continue;
    return { perSecond: perSecond(passed, elapsed), openPerSecond: perSecond(passed, elapsed - closing) };
  }
}

async function passBatch(): Promise<readonly OwnedDescriptor[]> {
  await sender!.send(head, sent, { timeoutMs: limitMs });
  const received = await receiver!.receive({ maxBytes: headSize });
  if (received?.fds.length === sent.length) return received.fds;
  throw new Error("A batch did not arrive whole");
}

function perSecond(count: number, ms: number): number {
  return Math.round(count / ms * 1_000);
}

/** AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, as Linux numbers them. */
function socketPair(): number[] {
  const pair = allocate(8);
  checked(abi, "socketpair", libc.socketpair(abi.constants.AF_UNIX, abi.constants.SOCK_STREAM | 0o2004000, 0, pair));
  return [0, 4].map((at) => viewOf(pair).getInt32(at, true));
}

async function openBound(ffi: string | undefined) {
  if (ffi === undefined) return await openRuntime();
  const node = await import("../../runtimes/node.ts");
  return await node.openRuntime({ ffi: ffi as "koffi" | "node:ffi" });
}

function say(event: string, more: object): void {
  console.log(JSON.stringify({ event, pid: process.pid, ...more }));
}
