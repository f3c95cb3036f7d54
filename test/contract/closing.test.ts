/**
 * Listeners that are closed for good: whoever waits there is served by the
 * server that has them. The control lets go of one at once.
 */

import assert from "node:assert/strict";
import type { InetAddress, SocketAddress } from "../../src/c/sockaddr.ts";
import { closeForGood } from "../../src/handover/closing.ts";
import { LastCopies } from "../../src/handover/last_copies.ts";
import { defaultLimits } from "../../src/limits.ts";
import type { Runtime } from "../../src/runtime.ts";
import { disposeAll, OwnedDescriptor } from "../../src/sockets/descriptors.ts";
import { connectPath, unlinkPath } from "../../src/sockets/listener.ts";
import { noteElsewhere, noteGone } from "../../src/sockets/elsewhere.ts";
import { cookieOf, isListening } from "../../src/sockets/socket.ts";
import { waitingCount } from "../../src/steering/accept_queue.ts";
import { anyHops, leastHopsOf, mostHops } from "../../src/steering/least_hops.ts";
import { TemporaryFolder } from "../unit/children.ts";
import { bunListen, bunServe, denoListen, denoServe, type Native, nodeHttp, nodeNet } from "./natives.ts";
import { loopback, served } from "./served.ts";
import { connections, deafConnections, ended, groupOf, lateConnections, outcomes, serve } from "./steering_ends.ts";
import { onBun, onDeno, patienceMs, runtime, sleep, test, until } from "./support.ts";

const everywhere6: SocketAddress = { family: "inet6", hostname: "::", port: 0 };
const shared = { port: 0, reusePort: true };

/** What each client asks; a server of Bun does not see it before. */
const request = new TextEncoder().encode("GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");

function askOn(clients: readonly OwnedDescriptor[]): void {
  for (const { number } of clients) assert.equal(runtime.libc.write(number, request, request.length), request.length);
}

function at(address: SocketAddress, hostname?: string): InetAddress {
  assert.ok(address.family !== "unix");
  if (hostname === undefined) return address;
  return { family: hostname.includes(":") ? "inet6" : "inet", hostname, port: address.port };
}

/** Connections wait, and others are on their way; all are answered, and nobody after them. */
async function servesAll<T>(native: Native<T>, address = loopback, hosts: readonly (string | undefined)[] = [undefined]): Promise<void> {
  const { endpoint, server, identity, copy } = await served(native, address);
  copy[Symbol.dispose]();
  const clients = hosts.flatMap((host) => {
    const to = at(identity.address, host);
    return [...connections(20, to), ...lateConnections(10, to)];
  });
  const closed = closeForGood(runtime, [endpoint], patienceMs);
  // The others' last words come late, and with them what they ask.
  askOn(clients);
  await sleep(1);
  const later = connections(5, at(identity.address, hosts[0]));
  const { migrated, reset, ...rest } = await closed;
  assert.deepEqual({ migrated, reset }, { migrated: 0, reset: 0 });
  assert.ok(rest.served >= 20 * hosts.length, JSON.stringify(rest));
  assert.equal(endpoint.alive, false);
  assert.deepEqual(await ended(clients), { answered: 30 * hosts.length });
  assert.deepEqual(await ended(later), { ECONNREFUSED: 5 });
  disposeAll([...clients, ...later]);
  await native.close(server);
}

test("an endpoint that is released at once resets whoever waits", async () => {
  const { endpoint, server, identity, copy } = await served(nodeNet);
  copy[Symbol.dispose]();
  const clients = [...connections(20, at(identity.address)), ...lateConnections(10, at(identity.address))];
  endpoint.release();
  assert.deepEqual(await ended(clients), { ECONNRESET: 30 });
  disposeAll(clients);
  await nodeNet.close(server);
});

test("closeForGood serves whoever waits at node:net, and whose handshake is under way", () => servesAll(nodeNet));

test("closeForGood serves whoever waits at node:http, of both families", () =>
  servesAll(nodeHttp, everywhere6, ["::1", "127.0.0.1"]));

onDeno("closeForGood serves whoever waits at Deno.serve", () => servesAll(denoServe));

onDeno("closeForGood serves whoever waits at Deno.listen", () => servesAll(denoListen));

onBun("closeForGood serves whoever waits at Bun.serve", () => servesAll(bunServe));

onBun("closeForGood serves whoever waits at Bun.listen", () => servesAll(bunListen));

test("closeForGood serves whoever waits at a Unix listener", async () => {
  using folder = new TemporaryFolder();
  const path = folder.file("web.sock");
  const { endpoint, server, copy } = await served(nodeNet, { family: "unix", path }, { path });
  copy[Symbol.dispose]();
  const clients = Array.from({ length: 10 }, () => connectPath(runtime, path)!);
  unlinkPath(runtime, path);
  askOn(clients);
  assert.deepEqual(await closeForGood(runtime, [endpoint], patienceMs), { served: 10, migrated: 0, reset: 0 });
  assert.deepEqual(await ended(clients), { answered: 10 });
  disposeAll(clients);
  await nodeNet.close(server);
});

test("closeForGood leaves a listener that another process has as it was", async () => {
  const { endpoint, server, identity, copy } = await served(nodeNet);
  using _copy = copy;
  await closeForGood(runtime, [endpoint], patienceMs);
  assert.deepEqual(leastHopsOf(runtime, copy.number, "inet"), anyHops);
  const clients = connections(3, at(identity.address));
  assert.equal(waitingCount(runtime, copy.number), 3);
  disposeAll(clients);
  await nodeNet.close(server);
});

test("closeForGood keeps nobody away from a listener that another program may have too", async () => {
  const { endpoint, server, identity, copy } = await served(nodeNet);
  using _copy = copy;
  noteElsewhere(identity.cookie);
  const clients = connections(3, at(identity.address));
  const half = deafConnections(1, at(identity.address));
  const closed = closeForGood(runtime, [endpoint], 200);
  askOn(clients);
  await sleep(50);
  assert.deepEqual([endpoint.alive, leastHopsOf(runtime, copy.number, "inet")], [true, anyHops]);
  assert.deepEqual(await closed, { served: 3, migrated: 0, reset: 1 });
  assert.deepEqual(await ended(clients), { answered: 3 });
  const later = connections(3, at(identity.address));
  assert.equal(waitingCount(runtime, copy.number), 3);
  disposeAll([...clients, ...half, ...later]);
  await nodeNet.close(server);
});

test("closeForGood keeps new connections away once the other program has gone", async () => {
  const { endpoint, server, identity, copy } = await served(nodeNet);
  using _copy = copy;
  noteElsewhere(identity.cookie);
  noteGone(identity.cookie);
  const half = deafConnections(1, at(identity.address));
  const closed = closeForGood(runtime, [endpoint], 500);
  await until(() => leastHopsOf(runtime, copy.number, "inet").inet === mostHops, "connections to be kept away");
  await closed;
  disposeAll(half);
  await nodeNet.close(server);
});

test("LastCopies.close begins when nothing else steers connections", async () => {
  const { endpoint, server, copy } = await served(nodeNet);
  const failed = (error: unknown) => assert.fail(String(error));
  const copies = new LastCopies({ runtime, limits: defaultLimits, closed: () => {}, failed });
  const steered = Promise.withResolvers<void>();
  copies.close([endpoint], steered.promise);
  await sleep(50);
  assert.deepEqual([endpoint.alive, leastHopsOf(runtime, copy.number, "inet")], [true, anyHops]);
  copy[Symbol.dispose]();
  steered.resolve();
  await copies.closed;
  assert.equal(endpoint.alive, false);
  await nodeNet.close(server);
});

test("closeForGood does not wait for handshakes at another address of the same port", async () => {
  const { endpoint, server, identity, copy } = await served(nodeNet);
  copy[Symbol.dispose]();
  using other = groupOf("stream", 1, at(identity.address, "127.83.79.69"));
  const clients = deafConnections(4, other.group.address);
  assert.deepEqual(await closeForGood(runtime, [endpoint], patienceMs), { served: 0, migrated: 0, reset: 0 });
  disposeAll(clients);
  await nodeNet.close(server);
});

test("closeForGood gives up on handshakes that do not end in time, and counts them", async () => {
  const { endpoint, server, identity, copy } = await served(nodeNet);
  copy[Symbol.dispose]();
  const clients = [...connections(3, at(identity.address)), ...deafConnections(4, at(identity.address))];
  askOn(clients.slice(0, 3));
  assert.deepEqual(await closeForGood(runtime, [endpoint], 500), { served: 3, migrated: 0, reset: 4 });
  disposeAll(clients);
  await nodeNet.close(server);
});

/** Serves everything that waits at listeners of others. */
function serveAt(sockets: readonly OwnedDescriptor[]): void {
  for (const { number } of sockets) {
    for (;;) {
      const connection = runtime.libc.accept4(number, null, null, 0o2004000);
      if (connection < 0) break;
      serve(new OwnedDescriptor(runtime, connection));
    }
  }
}

/** Two servers of one group end beside two listeners of another program, to which new connections go. */
async function endsBeside(used: Runtime): Promise<void> {
  const first = await served(nodeNet, loopback, shared);
  const address = at(first.identity.address);
  using others = groupOf("stream", 2, address);
  const second = await served(nodeNet, address, { ...shared, port: address.port });
  disposeAll([first.copy, second.copy]);
  const clients = [...connections(60, address), ...lateConnections(20, address)];
  const closed = closeForGood(used, [first.endpoint, second.endpoint], patienceMs);
  askOn(clients);
  const timer = setInterval(() => {
    serveAt(others.sockets);
    const later = connections(3, address);
    askOn(later);
    clients.push(...later);
  }, 1);
  const { reset } = await closed;
  clearInterval(timer);
  assert.equal(reset, 0);
  await until(() => (serveAt(others.sockets), others.sockets.every(({ number }) => waitingCount(runtime, number) === 0)), "an empty queue");
  const outcome = ended(clients);
  const serving = setInterval(() => serveAt(others.sockets), 1);
  assert.deepEqual(await outcome, { answered: clients.length });
  clearInterval(serving);
  disposeAll(clients);
  // Nothing is left of the program: one that joins later gets its share.
  using third = groupOf("stream", 1, address);
  const spread = connections(60, address);
  const counts = [...others.sockets, ...third.sockets].map(({ number }) => waitingCount(runtime, number));
  assert.ok(counts.every((count) => count > 0), String(counts));
  disposeAll(spread);
  for (const { server } of [first, second]) await nodeNet.close(server);
}

test("closeForGood sends new connections to others of the group, and leaves nothing behind", () => endsBeside(runtime));

test("closeForGood drops new connections where the group cannot be steered", async () => {
  const SO_ATTACH_REUSEPORT_CBPF = 51;
  const refusing: Runtime = {
    ...runtime,
    libc: {
      ...runtime.libc,
      setsockopt: (...args) => args[2] === SO_ATTACH_REUSEPORT_CBPF ? -1 : runtime.libc.setsockopt(...args),
    },
  };
  const { endpoint, server, identity, copy } = await served(nodeNet, loopback, shared);
  copy[Symbol.dispose]();
  using others = groupOf("stream", 1, at(identity.address));
  const clients = connections(40, at(identity.address));
  askOn(clients);
  const { served: servedCount, reset } = await closeForGood(refusing, [endpoint], patienceMs);
  assert.equal(reset, 0);
  assert.ok(servedCount > 0);
  serveAt(others.sockets);
  assert.deepEqual(await ended(clients), { answered: 40 });
  disposeAll(clients);
  await nodeNet.close(server);
});

test("closeForGood only lets go of one that does not accept, or is closed", async () => {
  const { endpoint, server, identity, copy } = await served(nodeNet);
  using _copy = copy;
  endpoint.pause();
  const clients = connections(2, at(identity.address));
  assert.deepEqual(await closeForGood(runtime, [endpoint], patienceMs), { served: 0, migrated: 0, reset: 0 });
  assert.notEqual(cookieOf(runtime, endpoint.descriptor), identity.cookie);
  assert.equal(waitingCount(runtime, copy.number), 2);
  assert.deepEqual(outcomes(clients), { EAGAIN: 2 });
  disposeAll(clients);
  await nodeNet.close(server);
  assert.deepEqual(await closeForGood(runtime, [endpoint], patienceMs), { served: 0, migrated: 0, reset: 0 });
});

/** What a call gives when the process has all the descriptors that it may have (EMFILE), or the number is closed (EBADF). */
const [noneLeft, closedNumber] = [-24, -9];

/** Two listeners of one group end in a process that can make so many copies of descriptors. */
async function endsWithCopies(mostCount: number): Promise<void> {
  const { F_DUPFD_CLOEXEC } = runtime.abi.constants;
  let copyCount = 0;
  const full: Runtime = {
    ...runtime,
    libc: {
      ...runtime.libc,
      fcntl: (...args) => args[1] === F_DUPFD_CLOEXEC && ++copyCount > mostCount ? noneLeft : runtime.libc.fcntl(...args),
    },
  };
  const first = await served(nodeNet, loopback, shared);
  const address = at(first.identity.address);
  const second = await served(nodeNet, address, { ...shared, port: address.port });
  const clients = connections(20, address);
  askOn(clients);
  const { reset } = await closeForGood(full, [first.endpoint, second.endpoint], patienceMs);
  assert.equal(reset, 0);
  assert.deepEqual(await ended(clients), { answered: 20 });
  for (const { copy } of [first, second]) assert.deepEqual(leastHopsOf(runtime, copy.number, "inet"), anyHops);
  disposeAll([...clients, first.copy, second.copy]);
  for (const { server } of [first, second]) await nodeNet.close(server);
}

test("closeForGood leaves no listener that drops connections when there are no descriptors for copies", async () => {
  for (const mostCount of [0, 1, 2]) await endsWithCopies(mostCount);
});

test("closeForGood goes on when another thread closes connections meanwhile", async () => {
  const IP_MINTTL = 21;
  const { endpoint, server, identity, copy } = await served(nodeNet);
  const clients = connections(5, at(identity.address));
  const busy: Runtime = {
    ...runtime,
    libc: {
      ...runtime.libc,
      getsockopt: (...args) => {
        const isConnection = args[1] === 0 && args[2] === IP_MINTTL && !isListening(runtime, args[0]);
        return isConnection ? closedNumber : runtime.libc.getsockopt(...args);
      },
    },
  };
  const closed = closeForGood(busy, [endpoint], patienceMs);
  askOn(clients);
  assert.deepEqual(await closed, { served: 5, migrated: 0, reset: 0 });
  assert.equal(endpoint.alive, false);
  assert.deepEqual(leastHopsOf(runtime, copy.number, "inet"), anyHops);
  disposeAll([...clients, copy]);
  await nodeNet.close(server);
});
