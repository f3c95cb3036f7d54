/**
 * Listening for raw descriptors: what is accepted, in which state, and when.
 */

import assert from "node:assert/strict";
import { existsSync, rmSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import net from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type Acceptor, openAcceptor } from "../../src/channels/acceptor.ts";
import type { OwnedDescriptor } from "../../src/sockets/descriptors.ts";
import { openReadiness } from "../../src/channels/readiness.ts";
import { peerAddress } from "../../src/sockets/socket.ts";
import { TemporaryFolder } from "../unit/children.ts";
import { patienceMs, queuedCount, reachable, runtime, takeoverError, test, until } from "./support.ts";

// What waiting needs stays open for the life of the process.
await openReadiness(runtime);

const { F_GETFL, F_GETFD, O_NONBLOCK, FD_CLOEXEC } = runtime.abi.constants;
const anywhere = { hostname: "127.0.0.1", port: 0 };

test("Acceptor gives a connection that is non-blocking and close-on-exec", async () => {
  const { flags, isCloseOnExec } = await acceptedFlags({});
  assert.equal(flags & O_NONBLOCK, O_NONBLOCK);
  assert.ok(isCloseOnExec);
});

test("Acceptor leaves a connection blocking when it is told to", async () => {
  const { flags, isCloseOnExec } = await acceptedFlags({ blocking: true });
  assert.equal(flags & O_NONBLOCK, 0);
  assert.ok(isCloseOnExec);
});

test("Acceptor on a Unix path removes it when it is closed", async () => {
  const folder = await mkdtemp(join(tmpdir(), "acceptor-"));
  const path = join(folder, "s");
  const acceptor = await openAcceptor(runtime, { path });
  const clients = await connect(acceptor, 1);
  (await acceptor.accept({ timeoutMs: patienceMs }))[Symbol.dispose]();
  acceptor.close();
  assert.ok(!existsSync(path));
  await end(clients);
  await rm(folder, { recursive: true });
});

test("Acceptor.close leaves a path that somebody else has bound meanwhile", async () => {
  using folder = new TemporaryFolder();
  const path = folder.file("s");
  using acceptor = await openAcceptor(runtime, { path });
  rmSync(path);
  using _other = await openAcceptor(runtime, { path });
  acceptor.close();
  assert.ok(existsSync(path));
});

test("Acceptor.accept ends with ERR_TAKEOVER_TIMEOUT, the reason of its signal, and ERR_TAKEOVER_CLOSED", async () => {
  const acceptor = await openAcceptor(runtime, anywhere);
  await assert.rejects(acceptor.accept({ timeoutMs: 5 }), takeoverError("ERR_TAKEOVER_TIMEOUT"));
  const controller = new AbortController();
  const aborted = assert.rejects(acceptor.accept({ signal: controller.signal }), { message: "enough" });
  controller.abort(new Error("enough"));
  await aborted;
  const waiting = assert.rejects(acceptor.accept(), takeoverError("ERR_TAKEOVER_CLOSED"));
  acceptor.close();
  await waiting;
  await assert.rejects(acceptor.accept(), takeoverError("ERR_TAKEOVER_CLOSED"));
  assert.equal(acceptor.descriptor, -1);
});

test("Acceptor's loop ends when it is closed, and takes no more than it is asked for", async () => {
  const acceptor = await openAcceptor(runtime, anywhere);
  const clients = await connect(acceptor, 5);
  const connections: OwnedDescriptor[] = [];
  for await (const connection of acceptor) {
    connections.push(connection);
    if (connections.length === 2) {
      assert.equal(queuedCount(acceptor.descriptor), 3);
      acceptor.close();
    }
  }
  assert.equal(connections.length, 2);
  // They outlive the listener.
  for (const connection of connections) {
    assert.notEqual(peerAddress(runtime, connection.number), null);
    connection[Symbol.dispose]();
  }
  await end(clients);
});

test("Acceptor lets the event loop turn while its queue is never empty", async () => {
  const acceptor = await openAcceptor(runtime, anywhere);
  const clients = await connect(acceptor, 100);
  let isDue = false;
  setTimeout(() => isDue = true);
  for (const start = performance.now(); performance.now() - start < 5;);
  let count = 0;
  for (; count < 100 && !isDue; count++) (await acceptor.accept())[Symbol.dispose]();
  assert.ok(isDue, "100 connections were accepted before a timer that was due");
  for (; count < 100; count++) (await acceptor.accept({ timeoutMs: patienceMs }))[Symbol.dispose]();
  acceptor.close();
  await end(clients);
});

test("Acceptor.accept with no time gives each connection that waits", async () => {
  using acceptor = await openAcceptor(runtime, anywhere);
  const clients = await connect(acceptor, 100);
  for (let count = 0; count < 100; count++) (await acceptor.accept({ timeoutMs: 0 }))[Symbol.dispose]();
  await assert.rejects(acceptor.accept({ timeoutMs: 0 }), takeoverError("ERR_TAKEOVER_TIMEOUT"));
  await end(clients);
});

async function acceptedFlags(options: { blocking?: boolean }): Promise<{ flags: number; isCloseOnExec: boolean }> {
  const acceptor = await openAcceptor(runtime, anywhere, options);
  const clients = await connect(acceptor, 1);
  const connection = await acceptor.accept({ timeoutMs: patienceMs });
  const flags = runtime.libc.fcntl(connection.number, F_GETFL, 0);
  const isCloseOnExec = (runtime.libc.fcntl(connection.number, F_GETFD, 0) & FD_CLOEXEC) !== 0;
  connection[Symbol.dispose]();
  acceptor.close();
  await end(clients);
  return { flags, isCloseOnExec };
}

async function connect({ address }: Acceptor, count: number): Promise<net.Socket[]> {
  const clients = Array.from({ length: count }, () => net.connect(reachable(address)).on("error", () => {}));
  await Promise.all(clients.map((client) => new Promise((resolve) => client.once("connect", resolve))));
  return clients;
}

async function end(clients: readonly net.Socket[]): Promise<void> {
  for (const client of clients) client.destroy();
  await until(() => clients.every((client) => client.destroyed), "the clients to be closed");
}
