/** Listeners that a process has and does not want: without a descriptor to spare, and when somebody else has them. */

import assert from "node:assert/strict";
import type { InetAddress } from "../../src/c/sockaddr.ts";
import type { Unopened } from "../../src/handover/binding.ts";
import { ListenerGroup } from "../../src/handover/listener_group.ts";
import { Stragglers } from "../../src/handover/stragglers.ts";
import { Surplus } from "../../src/handover/surplus.ts";
import { Endpoint } from "../../src/natives/endpoint.ts";
import type { Runtime } from "../../src/runtime.ts";
import { disposeAll, OwnedDescriptor } from "../../src/sockets/descriptors.ts";
import { bindListener } from "../../src/sockets/listener.ts";
import { registrationsOf } from "../../src/sockets/event_loop.ts";
import { duplicate, identify } from "../../src/sockets/socket.ts";
import { waitingCount } from "../../src/steering/accept_queue.ts";
import { emptyListener } from "../../src/steering/empty_listener.ts";
import { nodeNet } from "./natives.ts";
import { loopback, served } from "./served.ts";
import { connections, deafConnections, ended, groupOf } from "./steering_ends.ts";
import { patienceMs, runtime, sleep, takeoverError, test } from "./support.ts";

/** What a call gives when the process has all the descriptors that it may have (EMFILE). */
const none = -24;

/** Nobody is waited for. */
const stragglers = new Stragglers(runtime, () => false);

test("Surplus serves whoever waits once there is a descriptor again", async () => {
  let isFull = true;
  const { F_DUPFD_CLOEXEC } = runtime.abi.constants;
  const full: Runtime = {
    ...runtime,
    libc: {
      ...runtime.libc,
      fcntl: (...args) => isFull && args[1] === F_DUPFD_CLOEXEC ? none : runtime.libc.fcntl(...args),
    },
  };
  const { endpoint: { descriptor }, server, identity, copy } = await served(nodeNet);
  const registrations = registrationsOf(runtime, descriptor);
  const parts = { kind: "listener", name: "web", descriptor, identity, registrations, paused: false, isSupervised: false } as const;
  const endpoint = new Endpoint(full, parts);
  const listener = bindListener(runtime, loopback, { port: 0 });
  const surplus = new Surplus(runtime, [listener], () => [endpoint]);
  surplus.serve();
  const clients = connections(3, identify(runtime, listener.number)!.address as InetAddress);
  await sleep(100);
  assert.equal(waitingCount(runtime, listener.number), 3);
  isFull = false;
  const request = new TextEncoder().encode("GET / HTTP/1.1\r\n\r\n");
  for (const { number } of clients) runtime.libc.write(number, request, request.length);
  assert.deepEqual(await ended(clients), { answered: 3 });
  surplus[Symbol.dispose]();
  disposeAll([...clients, copy]);
  await nodeNet.close(server);
});

test("emptyListener goes on without a descriptor to ask the kernel with", async () => {
  const netlinkFamily = 16;
  let askedCount = 0;
  const full = (after: number): Runtime => ({
    ...runtime,
    libc: {
      ...runtime.libc,
      socket: (...args) => args[0] === netlinkFamily && ++askedCount > after ? none : runtime.libc.socket(...args),
    },
  });
  using opened = groupOf("stream", 1);
  const half = deafConnections(2, opened.group.address);
  const never = await emptyListener(full(0), opened.group.address, { serve: () => true, timeoutMs: 50 });
  assert.deepEqual(never, { isEmpty: true, halfOpenCount: 0, unfinishedCount: null });
  askedCount = 0;
  const once = await emptyListener(full(1), opened.group.address, { serve: () => true, timeoutMs: 50 });
  assert.deepEqual(once, { isEmpty: true, halfOpenCount: 2, unfinishedCount: 2 });
  disposeAll(half);
});

test("ListenerGroup.prepare refuses to leave a service manager's listener without a server", async () => {
  using opened = groupOf("stream", 2);
  const inherited = opened.sockets.map((descriptor, index): [string, Unopened] => {
    return [`web.${index}`, { descriptor, identity: identify(runtime, descriptor.number)!, isSupervised: true }];
  });
  const group = new ListenerGroup(runtime, false, stragglers);
  await assert.rejects(group.prepare(inherited, 1), takeoverError("ERR_TAKEOVER_STATE"));
  assert.equal(group.steering, null);
  const own = new ListenerGroup(runtime, true, stragglers);
  await own.prepare(inherited, 1);
  assert.deepEqual(own.surplusNames, ["web.1"]);
  own[Symbol.dispose]();
});

test("ListenerGroup.settle keeps connections away from a surplus listener that a service manager has still", async () => {
  using opened = groupOf("stream", 2);
  using copy = new OwnedDescriptor(runtime, duplicate(runtime, opened.sockets[1]!.number));
  const inherited = opened.sockets.map((descriptor, index): [string, Unopened] => {
    return [`web.${index}`, { descriptor, identity: identify(runtime, descriptor.number)!, isSupervised: true }];
  });
  using waiting = new Stragglers(runtime, () => false);
  const group = new ListenerGroup(runtime, true, waiting);
  await group.prepare(inherited, 1);
  await group.settle(patienceMs, Promise.resolve());
  const clients = connections(40, opened.group.address);
  assert.deepEqual([opened.sockets[1]!.number, waitingCount(runtime, copy.number)], [-1, 0]);
  disposeAll(clients);
});
