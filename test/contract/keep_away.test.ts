/**
 * Keeping new connections away from some listeners of a group until nobody is
 * left there. The control closes one at once.
 */

import assert from "node:assert/strict";
import type { InetAddress } from "../../src/c/sockaddr.ts";
import type { Runtime } from "../../src/runtime.ts";
import { disposeAll, OwnedDescriptor } from "../../src/sockets/descriptors.ts";
import { duplicate } from "../../src/sockets/socket.ts";
import { waitingCount } from "../../src/steering/accept_queue.ts";
import { emptyListener } from "../../src/steering/empty_listener.ts";
import { keepAwayFromOthers, type KeepingAway } from "../../src/steering/keep_away.ts";
import { everythingTo } from "../../src/steering/programs.ts";
import { openGroup } from "../../src/steering/reuseport.ts";
import { connections, deafConnections, ended, groupOf, lateConnections, openClient, serve } from "./steering_ends.ts";
import { openNull, patienceMs, runtime, sleep, takeoverError, test } from "./support.ts";

/** A process that may load no program (bpf(2): EPERM). */
const ordinary: Runtime = { ...runtime, libc: { ...runtime.libc, syscall: () => -1 } };

/** Serves everything that waits at listeners. */
function serveAll(sockets: readonly OwnedDescriptor[]): void {
  for (const { number } of sockets.filter(({ number }) => number >= 0)) {
    for (;;) {
      const connection = runtime.libc.accept4(number, null, null, 0o2004000);
      if (connection < 0) break;
      serve(new OwnedDescriptor(runtime, connection));
    }
  }
}

const counts = (sockets: readonly OwnedDescriptor[]) => sockets.map(({ number }) => waitingCount(runtime, number));

/** Closes those that are not kept, the last first. */
function closeAll(surplus: readonly OwnedDescriptor[], cookies: readonly string[], away: KeepingAway): void {
  for (const [index, socket] of [...surplus.entries()].toReversed()) {
    socket[Symbol.dispose]();
    away.closed(cookies[index]!);
  }
}

test("a listener that is closed at once resets what waits, and what is half open", async () => {
  using opened = groupOf("stream", 3);
  const { group, sockets } = opened;
  group.steer(() => everythingTo(1));
  const clients = [...connections(40, group.address), ...lateConnections(20, group.address)];
  group.close(sockets[1]!);
  assert.deepEqual(await ended(clients), { ECONNRESET: 60 });
  disposeAll(clients);
});

/** Two of five are emptied and closed, while connections come all the time; then the kernel spreads over the others. */
async function losesNobody(used: Runtime, address?: InetAddress): Promise<KeepingAway> {
  using opened = groupOf("stream", 5, address);
  const { group: { address: at }, sockets, cookies } = opened;
  const isKept = (cookie: string) => [0, 3, 4].some((index) => cookies[index] === cookie);
  const [kept, surplus] = [[0, 3, 4].map((index) => sockets[index]!), [sockets[1]!, sockets[2]!]];
  const clients = [...connections(100, at), ...lateConnections(50, at)];
  const away = await keepAwayFromOthers(used, sockets.map(({ number }) => number), isKept);
  const before = counts(surplus);
  clients.push(...connections(50, at));
  assert.deepEqual(counts(surplus), before);
  const timer = setInterval(() => {
    clients.push(...connections(3, at));
    serveAll(kept);
  }, 1);
  const serveSurplus = () => {
    serveAll(surplus);
    return counts(surplus).every((count) => count === 0);
  };
  const emptied = await emptyListener(used, at, { serve: serveSurplus, timeoutMs: patienceMs });
  assert.deepEqual({ ...emptied, halfOpenCount: 0 }, { isEmpty: true, halfOpenCount: 0, unfinishedCount: 0 });
  closeAll(surplus, [cookies[1]!, cookies[2]!], away);
  await sleep(10);
  clearInterval(timer);
  serveAll(kept);
  away.end();
  clients.push(...connections(60, at));
  assert.ok(counts(kept).every((count) => count > 0), `the kernel spreads over ${counts(kept)}`);
  const answered = ended(clients);
  const serving = setInterval(() => serveAll(kept), 1);
  assert.deepEqual(await answered, { answered: clients.length });
  clearInterval(serving);
  disposeAll(clients);
  return away;
}

test("keepAwayFromOthers loses nobody, by a program that any user may attach", async () => {
  const { steering } = await losesNobody(ordinary);
  assert.equal(steering.program, "classic");
  assert.match(steering.code!, /^EPERM$/);
});

test("keepAwayFromOthers loses nobody of IPv6", async () => {
  await losesNobody(ordinary, { family: "inet6", hostname: "::1", port: 0 });
});

/** A machine whose loopback has no IPv6 (net.ipv6.conf.lo.disable_ipv6). */
const withoutInet6: Runtime = {
  ...ordinary,
  libc: {
    ...ordinary.libc,
    bind: (descriptor, address, size) => {
      const EADDRNOTAVAIL = 99;
      const host = address!.subarray(8, 24);
      const isLoopback = size === 28 && host.every((byte, index) => byte === (index === 15 ? 1 : 0));
      return isLoopback ? -EADDRNOTAVAIL : ordinary.libc.bind(descriptor, address, size);
    },
  },
};

const everywhere: InetAddress = { family: "inet6", hostname: "::", port: 0 };

test("keepAwayFromOthers loses nobody of a dual stack group where there is no ::1", async () => {
  await losesNobody(withoutInet6, everywhere);
});

test("keepAwayFromOthers throws ERR_TAKEOVER_STATE for a group of IPv6 alone where there is no ::1", async () => {
  const { sockets } = openGroup(runtime, everywhere, "stream", 2, { ipv6Only: true });
  const away = keepAwayFromOthers(withoutInet6, sockets.map(({ number }) => number), () => false);
  await assert.rejects(away, { ...takeoverError("ERR_TAKEOVER_STATE"), message: /this machine has no ::1/ });
  disposeAll(sockets);
});

test("keepAwayFromOthers loses nobody, by the best program that this process may load", async () => {
  const { steering } = await losesNobody(runtime);
  assert.equal(steering.program === "loaded", steering.code === null);
});

test("keepAwayFromOthers keeps out a listener that joins, and follows one of others that leaves", async () => {
  using others = groupOf("stream", 3);
  const at = others.group.address;
  using own = groupOf("stream", 2, at);
  const kept = new Set(own.cookies);
  const away = await keepAwayFromOthers(ordinary, own.sockets.map(({ number }) => number), (cookie) => kept.has(cookie));
  // Each of the others was asked whether it has a slot.
  serveAll(others.sockets);
  using spares = groupOf("stream", 2, at);
  for (const { number } of spares.sockets) away.joined(number);
  const clients = connections(30, at);
  assert.deepEqual([...counts(others.sockets), ...counts(spares.sockets)], [0, 0, 0, 0, 0]);
  // The spares are moved first: the others may leave in any order.
  for (const index of [1, 0]) {
    others.sockets[index]![Symbol.dispose]();
    clients.push(...connections(30, at));
    assert.deepEqual([...counts([others.sockets[2]!]), ...counts(spares.sockets)], [0, 0, 0]);
  }
  others.sockets[2]![Symbol.dispose]();
  await away.refresh();
  clients.push(...connections(30, at));
  serveAll([...own.sockets, ...spares.sockets]);
  closeAll(spares.sockets, spares.cookies, away);
  away.end();
  serveAll(own.sockets);
  assert.deepEqual(await ended(clients), { answered: 120 });
  disposeAll(clients);
});

test("keepAwayFromOthers keeps out a listener that was closed here while somebody else has a copy", async () => {
  using opened = groupOf("stream", 5);
  const { group: { address: at }, sockets, cookies } = opened;
  const isKept = (cookie: string) => [0, 3, 4].some((index) => cookies[index] === cookie);
  const away = await keepAwayFromOthers(ordinary, sockets.map(({ number }) => number), isKept);
  const surplus = [sockets[1]!, sockets[2]!];
  const copies = surplus.map(({ number }) => new OwnedDescriptor(runtime, duplicate(runtime, number)));
  closeAll(surplus, cookies.slice(1, 3), away);
  const clients = connections(60, at);
  assert.deepEqual(counts(copies), [0, 0]);
  disposeAll(copies);
  away.end();
  serveAll(sockets);
  assert.deepEqual(await ended(clients), { answered: 60 });
  disposeAll(clients);
});

test("emptyListener gives up on handshakes that do not end in time, and on what nobody serves", async () => {
  using opened = groupOf("stream", 1);
  const at = opened.group.address;
  const clients = [...connections(3, at), ...deafConnections(4, at)];
  const serveNone = () => waitingCount(runtime, opened.sockets[0]!.number) === 0;
  const left = await emptyListener(runtime, at, { serve: serveNone, timeoutMs: 50 });
  assert.deepEqual(left, { isEmpty: false, halfOpenCount: 4, unfinishedCount: 4 });
  disposeAll(clients);
});

test("emptyListener ends with its signal", async () => {
  using opened = groupOf("stream", 1);
  const half = deafConnections(1, opened.group.address);
  const failure = new Error("no more");
  const controller = new AbortController();
  setTimeout(() => controller.abort(failure), 20);
  const emptied = emptyListener(runtime, opened.group.address, { serve: () => true, signal: controller.signal });
  await assert.rejects(emptied, failure);
  disposeAll(half);
});

test("keepAwayFromOthers throws ERR_TAKEOVER_DESCRIPTOR for what is no group, and ERR_TAKEOVER_UNSUPPORTED for a refused program", async () => {
  using datagrams = openClient();
  using file = openNull();
  for (const { number } of [datagrams, file]) {
    await assert.rejects(keepAwayFromOthers(runtime, [number], () => true), takeoverError("ERR_TAKEOVER_DESCRIPTOR"));
  }
  const SO_ATTACH_REUSEPORT_CBPF = 51;
  const refusing: Runtime = {
    ...ordinary,
    libc: {
      ...ordinary.libc,
      setsockopt: (...args) => args[2] === SO_ATTACH_REUSEPORT_CBPF ? -1 : runtime.libc.setsockopt(...args),
    },
  };
  using opened = groupOf("stream", 2);
  const [first] = opened.cookies;
  const away = keepAwayFromOthers(refusing, opened.sockets.map(({ number }) => number), (cookie) => cookie === first);
  await assert.rejects(away, takeoverError("ERR_TAKEOVER_UNSUPPORTED"));
  const clients = connections(40, opened.group.address);
  assert.ok(counts(opened.sockets).every((count) => count > 0), "the kernel's hash chooses as before");
  disposeAll(clients);
});
