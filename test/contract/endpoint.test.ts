import assert from "node:assert/strict";
import { existsSync } from "node:fs";
import net from "node:net";
import process from "node:process";
import { OwnedDescriptor } from "../../src/sockets/descriptors.ts";
import { Endpoint } from "../../src/natives/endpoint.ts";
import { registrationsOf, unregister } from "../../src/sockets/event_loop.ts";
import { bindListener, connectPath } from "../../src/sockets/listener.ts";
import { cookieOf, duplicateOver, identify, isListening, localAddress } from "../../src/sockets/socket.ts";
import { TemporaryFolder } from "../unit/children.ts";
import { bunListen, bunServe, denoListen, denoServe, type Native, nodeHttp, nodeNet } from "./natives.ts";
import { loopback, served } from "./served.ts";
import { ask, onBun, onDeno, queuedCount, reachable, runtime, sleep, test, until } from "./support.ts";

const { libc } = runtime;

/** How much of one processor this process takes while it has nothing to do: 1 is all of it. */
async function cpuShare(): Promise<number> {
  const start = performance.now();
  const before = process.cpuUsage();
  await sleep(500);
  const { user, system } = process.cpuUsage(before);
  return (user + system) / 1_000 / (performance.now() - start);
}

/** A loop that spins never stops; what a runtime tidies up after a test does. */
async function isIdle(): Promise<void> {
  let share = 1;
  for (let tries = 0; tries < 10 && share >= 0.2; tries++) share = await cpuShare();
  assert.ok(share < 0.2, `${Math.round(share * 100)} % of a processor is in use`);
}

/** Paused, connections wait in the queue; resumed, they are answered; and so again. */
async function pausesAndResumes<T>(native: Native<T>): Promise<void> {
  const { endpoint, server, identity, copy } = await served(native);
  try {
    for (const _round of [1, 2]) {
      endpoint.pause();
      endpoint.pause();
      const answers = [1, 2].map(() => native.ask(reachable(identity.address)));
      await until(() => queuedCount(copy.number) === 2, "two connections in the queue");
      endpoint.resume();
      endpoint.resume();
      for (const answer of answers) assert.match(await answer, /hello/);
    }
  } finally {
    copy[Symbol.dispose]();
    await native.close(server);
  }
}

/**
 * Released, the server has another listener, is closed without an error, and
 * nothing spins, though a connection waits in the queue of the copy.
 */
async function releases<T>(native: Native<T>): Promise<void> {
  const { endpoint, server, identity, copy } = await served(native);
  const { descriptor } = endpoint;
  endpoint.release();
  assert.equal(endpoint.alive, false);
  assert.notEqual(cookieOf(runtime, descriptor), identity.cookie);
  // The server still has a descriptor of its own under the number, so closing it closes nobody else's.
  assert.equal(isListening(runtime, descriptor), true);
  const waiting = ask(reachable(identity.address)).catch((error: { code?: string }) => error.code);
  await until(() => queuedCount(copy.number) === 1, "a connection in the queue of the copy");
  await isIdle();
  await native.close(server);
  await isIdle();
  // The last copy goes, and with it the connection that nobody accepted.
  copy[Symbol.dispose]();
  assert.equal(await waiting, "ECONNRESET");
}

test("Endpoint.pause leaves connections in the queue of node:net, and resume answers them", () =>
  pausesAndResumes(nodeNet));

test("Endpoint.pause leaves connections in the queue of node:http, and resume answers them", () =>
  pausesAndResumes(nodeHttp));

onDeno(
  "Endpoint.pause leaves connections in the queue of Deno.serve, and resume answers them",
  () => pausesAndResumes(denoServe),
);

onDeno(
  "Endpoint.pause leaves connections in the queue of Deno.listen, and resume answers them",
  () => pausesAndResumes(denoListen),
);

onBun(
  "Endpoint.pause leaves connections in the queue of Bun.serve, and resume answers them",
  () => pausesAndResumes(bunServe),
);

onBun(
  "Endpoint.pause leaves connections in the queue of Bun.listen, and resume answers them",
  () => pausesAndResumes(bunListen),
);

test("Endpoint.pause finds the registration by itself when it was not known", async () => {
  const { endpoint, server, identity, copy } = await served(nodeNet);
  const { descriptor } = endpoint;
  const parts = { kind: "listener", name: "web", descriptor, identity, registrations: [], paused: false, isSupervised: false } as const;
  const unknown = new Endpoint(runtime, parts);
  unknown.pause();
  const answer = nodeNet.ask(reachable(identity.address));
  await until(() => queuedCount(copy.number) === 1, "a connection in the queue");
  unknown.resume();
  assert.match(await answer, /hello/);
  copy[Symbol.dispose]();
  await nodeNet.close(server);
});

test("Endpoint.release leaves node:net to be closed, and nothing spins", () => releases(nodeNet));

test("Endpoint.release leaves node:http to be closed, and nothing spins", () => releases(nodeHttp));

onDeno("Endpoint.release leaves Deno.serve to be closed, and nothing spins", () => releases(denoServe));

onDeno("Endpoint.release leaves Deno.listen to be closed, and nothing spins", () => releases(denoListen));

onBun("Endpoint.release leaves Bun.serve to be closed, and nothing spins", () => releases(bunServe));

onBun("Endpoint.release leaves Bun.listen to be closed, and nothing spins", () => releases(bunListen));

/** What comes to its own address waits meanwhile, and is answered when it is resumed; released, it is nobody's. */
async function acceptsInPrivate<T>(native: Native<T>): Promise<void> {
  const { endpoint, server, identity, copy } = await served(native);
  try {
    await endpoint.whileAccepting((address) => Promise.resolve(assert.deepEqual(address, identity.address)));
    endpoint.pause();
    const waiting = native.ask(reachable(identity.address));
    await until(() => queuedCount(copy.number) === 1, "a connection in the queue");
    await endpoint.whileAccepting(async (address, isOver) => {
      assert.notDeepEqual(address, identity.address);
      assert.match(await native.ask(reachable(address)), /hello/);
      assert.deepEqual([endpoint.alive, isOver(), queuedCount(copy.number)], [true, false, 1]);
    });
    assert.equal(cookieOf(runtime, endpoint.descriptor), identity.cookie);
    await endpoint.whileAccepting(async (_, isOver) => {
      endpoint.resume();
      assert.equal(isOver(), true);
      assert.match(await waiting, /hello/);
    });
    endpoint.release();
    await endpoint.whileAccepting(async (address) => assert.match(await native.ask(reachable(address)), /hello/));
  } finally {
    copy[Symbol.dispose]();
    await native.close(server);
  }
  const isClosed = { code: "ERR_TAKEOVER_ADOPT", message: /it has been closed$/ };
  await assert.rejects(endpoint.whileAccepting(() => Promise.resolve()), isClosed);
}

test("Endpoint.whileAccepting has a paused node:http accept what nobody else can", () => acceptsInPrivate(nodeHttp));

onDeno("Endpoint.whileAccepting has a paused Deno.serve accept what nobody else can", () => acceptsInPrivate(denoServe));

onBun("Endpoint.whileAccepting has a paused Bun.serve accept what nobody else can", () => acceptsInPrivate(bunServe));

/** A descriptor that nothing else gets, as long as lower ones are free. */
const farNumber = 900;

/** Deno asks for an event once for every change (EPOLLET), so that nothing spins there. */
const levelTriggered = runtime.name === "deno" ? () => {} : test;

levelTriggered(
  "isIdle sees a registration that was left behind, which shows that it can fail",
  async () => {
    using copy = bindListener(runtime, loopback, { port: 0 });
    const { address } = identify(runtime, copy.number)!;
    assert.equal(libc.dup2(copy.number, farNumber), farNumber);
    const server = net.createServer().listen({ fd: farNumber }).on("error", () => {});
    await until(() => registrationsOf(runtime, farNumber).length > 0, "the server to listen");
    const registrations = registrationsOf(runtime, farNumber);
    // Behind the runtime's back: its epoll goes on with the open file, which lives in the copy.
    libc.close(farNumber);
    const waiting = ask(reachable(address)).catch((error: { code?: string }) => error.code);
    await until(() => queuedCount(copy.number) === 1, "a connection in the queue of the copy");
    const share = await cpuShare();
    duplicateOver(runtime, copy.number, farNumber);
    unregister(runtime, registrations);
    await nodeNet.close(server);
    copy[Symbol.dispose]();
    assert.equal(await waiting, "ECONNRESET");
    assert.ok(share >= 0.2, `${Math.round(share * 100)} % of a processor is in use`);
  },
);

test("Endpoint.release leaves a Unix server to be closed, and the path where it is", async () => {
  using folder = new TemporaryFolder();
  const address = { family: "unix", path: folder.file("web") } as const;
  const { endpoint, server, identity, copy } = await served(nodeNet, address);
  endpoint.release();
  await nodeNet.close(server);
  assert.deepEqual(localAddress(runtime, copy.number), identity.address);
  assert.equal(existsSync(address.path), true);
  connectPath(runtime, address.path)![Symbol.dispose]();
  copy[Symbol.dispose]();
  assert.equal(connectPath(runtime, address.path), null);
});

test("Endpoint.release leaves the connections of its server alone", async () => {
  const { endpoint, server, identity, copy } = await served(nodeNet);
  using _copy = copy;
  const client = net.connect(reachable(identity.address));
  const accepted = new Promise((resolve) => server.once("connection", resolve));
  await accepted;
  endpoint.release();
  const answer = new Promise<string>((resolve) => client.once("data", (bytes) => resolve(String(bytes))));
  client.write("GET / HTTP/1.1\r\n\r\n");
  assert.match(await answer, /hello/);
  client.destroy();
  await nodeNet.close(server);
});

test("Endpoint.alive is true until the application closes its server", async () => {
  const { endpoint, server, copy } = await served(nodeNet);
  using _copy = copy;
  assert.equal(endpoint.alive, true);
  await nodeNet.close(server);
  assert.equal(endpoint.alive, false);
});

test("Endpoint touches nothing once the application has closed its server", async () => {
  const { endpoint, server, copy } = await served(nodeNet);
  using _copy = copy;
  await nodeNet.close(server);
  // The number is another socket's by now.
  using other = takeNumber(endpoint.descriptor);
  const cookie = cookieOf(runtime, other.number);
  endpoint.pause();
  endpoint.resume();
  endpoint.release();
  assert.equal(cookieOf(runtime, endpoint.descriptor), cookie);
});

/** A listener under that number, or under any when the runtime was faster. */
function takeNumber(number: number): OwnedDescriptor {
  const listener = bindListener(runtime, loopback, { port: 0 });
  if (listener.number === number) return listener;
  duplicateOver(runtime, listener.number, number);
  listener[Symbol.dispose]();
  return new OwnedDescriptor(runtime, number);
}
