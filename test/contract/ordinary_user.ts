/**
 * What an ordinary user cannot do: `ordinary_user.ts USER SOCKET PATH`. Started
 * as root with a low limit of open files.
 */

import assert from "node:assert/strict";
import process from "node:process";
import { channelPair, connectChannel, listenChannel } from "../../src/channels/fd_listener.ts";
import { openReadiness } from "../../src/channels/readiness.ts";
import { outcomeOf, report } from "./outcome.ts";
import { runtime } from "./seam.ts";

const { libc } = runtime;
const [user, socket, path] = process.argv.slice(2) as [string, string, string];
/** As many descriptors as a message of this test has. */
const batchCount = 10;

/** Of this thread only, which is the one that calls libc (setresuid(2)). */
function become(id: number): void {
  const isArm = process.arch === "arm64";
  assert.equal(libc.syscall(isArm ? 149 : 119, id, id, id, 0), 0, "setresgid");
  assert.equal(libc.syscall(isArm ? 147 : 117, id, id, id, 0), 0, "setresuid");
  assert.equal(libc.geteuid(), id);
}

await openReadiness(runtime);
const asRoot = await sentInFlight();
become(Number(user));
const own = { pid: libc.getpid(), uid: Number(user), gid: Number(user) };
const [left, right] = channelPair(runtime);
report({
  connect: await outcomeOf(() => connectChannel(runtime, socket)),
  listen: await outcomeOf(() => listenChannel(runtime, path)),
  foreignCredentials: await outcomeOf(() => left.send(Uint8Array.of(1), [], { credentials: { ...own, uid: 0 } })),
  ownCredentials: await outcomeOf(async () => {
    await left.send(Uint8Array.of(1), [], { credentials: own });
    await right.receive();
    return "sent";
  }),
  rootInFlight: asRoot,
  userInFlight: await sentInFlight(),
});

/**
 * Sends until the kernel takes no more descriptors in flight, or far past the
 * limit; then reads everything while one more message waits.
 */
async function sentInFlight(): Promise<Record<string, unknown>> {
  const [sender, receiver] = channelPair(runtime);
  const batch = new Array<number>(batchCount).fill(0);
  let sentCount = 0;
  const outcome = await outcomeOf(async () => {
    while (sentCount < 200) {
      await sender.send(Uint8Array.of(sentCount), batch, { timeoutMs: 50 });
      sentCount++;
    }
    return "sent";
  });
  const waiting = sender.send(Uint8Array.of(sentCount), batch, { timeoutMs: 10_000 });
  let count = 0;
  const order: boolean[] = [];
  while (count <= sentCount) {
    const message = (await receiver.receive({ timeoutMs: 10_000 }))!;
    order.push(message.bytes.length === 1 && message.bytes[0] === count && message.fds.length === batchCount);
    message[Symbol.dispose]();
    count++;
  }
  await waiting;
  sender.close();
  receiver.close();
  return { ...outcome, sentCount, isInOrder: order.every(Boolean) };
}
