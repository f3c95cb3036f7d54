/** Displacing others that do not end: nothing of it is left, and connections are spread over all as before. */

import assert from "node:assert/strict";
import type { InetAddress } from "../../src/c/sockaddr.ts";
import { openReadiness } from "../../src/channels/readiness.ts";
import { displace, type DisplacingLimits } from "../../src/handover/displacing.ts";
import type { Runtime } from "../../src/runtime.ts";
import { disposeAll, OwnedDescriptor } from "../../src/sockets/descriptors.ts";
import { waitingCount } from "../../src/steering/accept_queue.ts";
import { listedMembers } from "../../src/steering/socket_diag.ts";
import { nodeNet } from "./natives.ts";
import { loopback, served } from "./served.ts";
import { connections, groupOf } from "./steering_ends.ts";
import { patienceMs, runtime, sleep, takeoverError, test } from "./support.ts";

/** A process that may load no program (bpf(2): EPERM). */
const ordinary: Runtime = { ...runtime, libc: { ...runtime.libc, syscall: () => -1 } };

// What waiting needs stays open for the life of the process, and is no leak.
await openReadiness(ordinary);

/** Three listeners of others stay where they are. */
async function failsToDisplace(
  used: Runtime,
  end: () => unknown,
  limits: DisplacingLimits,
  expected: Parameters<typeof assert.rejects>[1],
): Promise<void> {
  const { endpoint, server, identity, copy } = await served(nodeNet, loopback, { port: 0, reusePort: true });
  copy[Symbol.dispose]();
  const address = identity.address as InetAddress;
  using others = groupOf("stream", 3, address);
  await assert.rejects(displace(used, [endpoint], end, limits), expected);
  assert.equal(listedMembers(runtime, address, "stream").length, 4);
  const clients = connections(80, address);
  const counts = others.sockets.map(({ number }) => waitingCount(runtime, number));
  assert.ok(counts.every((count) => count > 0), `the kernel spreads over ${counts}`);
  disposeAll(clients);
  endpoint.release();
  await nodeNet.close(server);
}

const limits = { queueMs: 100, leaveMs: patienceMs };

test("displace gives up when the others have not left in time", () =>
  failsToDisplace(ordinary, () => {}, { ...limits, leaveMs: 50 }, takeoverError("ERR_TAKEOVER_TIMEOUT")));

test("displace tells nobody to end at whom connections still wait", async () => {
  const { endpoint, server, identity, copy } = await served(nodeNet, loopback, { port: 0, reusePort: true });
  copy[Symbol.dispose]();
  using others = groupOf("stream", 3, identity.address as InetAddress);
  const clients = connections(80, others.group.address);
  let isTold = false;
  const displaced = displace(ordinary, [endpoint], () => isTold = true, { queueMs: 20, leaveMs: 100 });
  await assert.rejects(displaced, { ...takeoverError("ERR_TAKEOVER_TIMEOUT"), message: /connections wait/ });
  assert.equal(isTold, false);
  const patient = displace(ordinary, [endpoint], () => disposeAll(others.sockets), { queueMs: 20, leaveMs: patienceMs });
  await sleep(60);
  for (const { number } of others.sockets) while (accepted(number));
  assert.ok((await patient).waitedCount > 0);
  disposeAll(clients);
  endpoint.release();
  await nodeNet.close(server);
});

/** Accepts whoever waits, and says whether somebody did. */
function accepted(listener: number): boolean {
  const connection = runtime.libc.accept4(listener, null, null, 0o2004000);
  if (connection >= 0) new OwnedDescriptor(runtime, connection)[Symbol.dispose]();
  return connection >= 0;
}

const never = () => new Promise<void>(() => {});

test("displace does not wait for its end for ever", () =>
  failsToDisplace(ordinary, never, { ...limits, leaveMs: 50 }, takeoverError("ERR_TAKEOVER_TIMEOUT")));

test("displace does not wait for its end once its signal is aborted", async () => {
  const failure = new Error("no more");
  const controller = new AbortController();
  const end = () => (setTimeout(() => controller.abort(failure), 50), never());
  await failsToDisplace(ordinary, end, { ...limits, signal: controller.signal }, failure);
});

test("displace ends with its signal", async () => {
  const failure = new Error("no more");
  const controller = new AbortController();
  const end = () => setTimeout(() => controller.abort(failure), 50);
  await failsToDisplace(ordinary, end, { ...limits, signal: controller.signal }, failure);
});

test("displace leaves nothing behind without a descriptor for a spare member", async () => {
  const [SO_REUSEPORT, noneLeft] = [15, -24];
  let spareCount = 0;
  const full: Runtime = {
    ...ordinary,
    libc: {
      ...ordinary.libc,
      setsockopt: (...args) => args[2] === SO_REUSEPORT && ++spareCount > 1 ? noneLeft : runtime.libc.setsockopt(...args),
    },
  };
  await failsToDisplace(full, () => {}, limits, { code: "EMFILE" });
});
