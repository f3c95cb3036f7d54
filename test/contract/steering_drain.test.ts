/**
 * Closing a listener: who waited is served, and nobody is reset. The control
 * closes it at once.
 */

import assert from "node:assert/strict";
import { disposeAll, OwnedDescriptor } from "../../src/sockets/descriptors.ts";
import type { Runtime } from "../../src/runtime.ts";
import type { InetAddress } from "../../src/c/sockaddr.ts";
import { drainListener } from "../../src/steering/drain_listener.ts";
import { anyHops, leastHopsOf } from "../../src/steering/least_hops.ts";
import { everythingTo } from "../../src/steering/programs.ts";
import type { ReuseportGroup } from "../../src/steering/reuseport.ts";
import { connections, deafConnections, ended, groupOf, lateConnections, openClient, serve } from "./steering_ends.ts";
import { openNull, patienceMs, queuedCount, runtime, sleep, takeoverError, test } from "./support.ts";

const everywhere6: InetAddress = { family: "inet6", hostname: "::", port: 0 };

/** Keeps new connections away from the members that are to be closed. */
function steerTo(group: ReuseportGroup, cookies: readonly string[]): void {
  group.steer((slotOf) => everythingTo(cookies.map(slotOf)));
}

/** Serves everything that waits at the members that are left. */
function serveAll(sockets: readonly OwnedDescriptor[]): void {
  for (const { number } of sockets) {
    for (;;) {
      const connection = runtime.libc.accept4(number, null, null, 0o2004000);
      if (connection < 0) break;
      serve(new OwnedDescriptor(runtime, connection));
    }
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

test("drainListener serves what waits at two of five members, and what is half open, and resets nobody", async () => {
  using opened = groupOf("stream", 5);
  const { group, sockets, cookies } = opened;
  const clients = [...connections(100, group.address), ...lateConnections(50, group.address)];
  const surplus = [sockets[1]!, sockets[2]!];
  const queued = surplus.map(({ number }) => queuedCount(number));
  steerTo(group, [0, 3, 4].map((index) => cookies[index]!));
  const later = connections(50, group.address);
  assert.deepEqual(surplus.map(({ number }) => queuedCount(number)), queued);
  const drained = await Promise.all(surplus.map((socket) =>
    drainListener(runtime, socket, { keepAway() {}, accepted: serve, timeoutMs: patienceMs })
  ));
  for (const index of [1, 2]) group.left(cookies[index]!);
  serveAll(sockets.filter(({ number }) => number >= 0));
  assert.deepEqual(await ended([...clients, ...later]), { answered: 200 });
  // On a machine that is busy for 200 ms none is half open any more.
  assert.ok(drained.every(({ halfOpenCount, unfinishedCount }) => halfOpenCount <= 50 && unfinishedCount === 0));
  assert.ok(drained.every(({ acceptedCount }, index) => acceptedCount >= queued[index]!));
  disposeAll([...clients, ...later]);
});

test("drainListener alone serves what waits and what is half open, of both families", async () => {
  using opened = groupOf("stream", 1, everywhere6);
  const { port } = opened.group.address;
  const addresses: InetAddress[] = [
    { family: "inet6", hostname: "::1", port },
    { family: "inet", hostname: "127.0.0.1", port },
  ];
  const clients = addresses.flatMap((address) => [...connections(20, address), ...lateConnections(10, address)]);
  const accepted: OwnedDescriptor[] = [];
  const drained = await drainListener(runtime, opened.sockets[0]!, {
    accepted: (connection) => accepted.push(connection),
    timeoutMs: patienceMs,
  });
  // A client that delays its last word for 200 ms has said it on a machine that is busy for longer.
  const { halfOpenCount, ...counts } = drained;
  assert.deepEqual(counts, { acceptedCount: 60, unfinishedCount: 0 });
  assert.ok(halfOpenCount <= 20, String(halfOpenCount));
  for (const { number } of accepted) assert.deepEqual(leastHopsOf(runtime, number, "inet6"), anyHops);
  for (const connection of accepted) serve(connection);
  assert.deepEqual(await ended(clients), { answered: 60 });
  disposeAll(clients);
});

test("drainListener alone keeps those who come later away: they are refused, and none is reset", async () => {
  using opened = groupOf("stream", 1);
  const { address } = opened.group;
  const clients = lateConnections(5, address);
  const drained = drainListener(runtime, opened.sockets[0]!, { accepted: serve, timeoutMs: patienceMs });
  const later = connections(20, address);
  assert.equal((await drained).acceptedCount, 5);
  assert.deepEqual(await ended(clients), { answered: 5 });
  assert.deepEqual(await ended(later), { ECONNREFUSED: 20 });
  disposeAll([...clients, ...later]);
});

test("drainListener gives up on handshakes that do not end in time, and counts them", async () => {
  using opened = groupOf("stream", 1);
  const clients = [...connections(3, opened.group.address), ...deafConnections(4, opened.group.address)];
  const drained = await drainListener(runtime, opened.sockets[0]!, { accepted: serve, timeoutMs: 50 });
  assert.deepEqual(drained, { acceptedCount: 3, halfOpenCount: 4, unfinishedCount: 4 });
  assert.equal(opened.sockets[0]!.number, -1);
  disposeAll(clients);
});

test("drainListener leaves a listener that accepts when its callback throws, or its signal aborts", async () => {
  using opened = groupOf("stream", 1);
  const { group, sockets } = opened;
  const [listener] = sockets;
  const clients = connections(3, group.address);
  const failure = new Error("no more");
  await assert.rejects(drainListener(runtime, listener!, { accepted: () => { throw failure; } }), failure);
  const controller = new AbortController();
  const half = deafConnections(1, group.address);
  setTimeout(() => controller.abort(failure), 20);
  await assert.rejects(drainListener(runtime, listener!, { accepted: serve, signal: controller.signal }), failure);
  const later = connections(2, group.address);
  assert.equal(queuedCount(listener!.number), 2);
  disposeAll([...clients, ...half, ...later]);
});

test("drainListener throws ERR_TAKEOVER_NO_ROOM instead of closing over connections that it cannot accept", async () => {
  using opened = groupOf("stream", 1);
  const clients = connections(2, opened.group.address);
  const full: Runtime = { ...runtime, libc: { ...runtime.libc, accept4: () => -24 } };
  const drained = drainListener(full, opened.sockets[0]!, { accepted: serve, timeoutMs: 20 });
  await assert.rejects(drained, takeoverError("ERR_TAKEOVER_NO_ROOM"));
  serveAll(opened.sockets);
  assert.deepEqual(await ended(clients), { answered: 2 });
  disposeAll(clients);
});

test("drainListener throws ERR_TAKEOVER_DESCRIPTOR for what is no TCP listener, which stays open", async () => {
  using datagrams = openClient();
  using file = openNull();
  for (const wrong of [datagrams, file]) {
    await assert.rejects(drainListener(runtime, wrong, { accepted: serve }), takeoverError("ERR_TAKEOVER_DESCRIPTOR"));
    assert.ok(wrong.number >= 0);
  }
});

test("drainListener loses nobody while connections come to the group all the time", async () => {
  using opened = groupOf("stream", 4);
  const { group, sockets, cookies } = opened;
  const clients: OwnedDescriptor[] = [];
  const [kept, surplus] = [sockets.slice(0, 2), sockets.slice(2)];
  const timer = setInterval(() => {
    clients.push(...connections(5, group.address));
    serveAll(kept);
  }, 1);
  await sleep(20);
  steerTo(group, cookies.slice(0, 2));
  for (const socket of surplus.toReversed()) {
    await drainListener(runtime, socket, { keepAway() {}, accepted: serve });
    group.left(cookies[sockets.indexOf(socket)]!);
  }
  await sleep(10);
  clearInterval(timer);
  serveAll(kept);
  assert.deepEqual(await ended(clients), { answered: clients.length });
  disposeAll(clients);
});
