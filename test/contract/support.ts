/**
 * The runtime under test, and what every contract test needs around it.
 *
 * @module
 */

import assert from "node:assert/strict";
import net from "node:net";
import runTest from "node:test";
import tls from "node:tls";
import { allocate, viewOf } from "../../src/c/bytes.ts";
import type { TakeoverErrorCode } from "../../src/errors.ts";
import { openReadiness } from "../../src/channels/readiness.ts";
import type { SocketAddress } from "../../src/c/sockaddr.ts";
import { run } from "../unit/children.ts";
import { runtime } from "./seam.ts";
import { changes, descriptorTable, steadyTable } from "./table.ts";
import "../unit/patience.ts";

export { openNull, socketPair } from "./pair.ts";
export { runtime } from "./seam.ts";

// What waiting needs stays open for the life of the process, and is no leak.
await openReadiness(runtime);

/** Far longer than anything here takes. */
export const patienceMs = 30_000;

type Body = () => void | Promise<void>;

/** A test of what only Deno has; on the others there is nothing to skip. */
export function onDeno(name: string, body: Body): void {
  if (runtime.name === "deno") test(name, body);
}

/** A test of what only Bun has. */
export function onBun(name: string, body: Body): void {
  if (runtime.name === "bun") test(name, body);
}

/** What `assert.throws` and `assert.rejects` compare an error with. */
export function takeoverError(code: TakeoverErrorCode): { name: string; code: string } {
  return { name: "TakeoverError", code };
}

/**
 * A test that leaves the descriptor table as it found it. A runtime closes some
 * descriptors a turn later, so the table is given time.
 */
export function test(name: string, body: Body): void;
export function test(name: string, options: { skip: string | boolean }, body: Body): void;
export function test(name: string, ...rest: [Body] | [{ skip: string | boolean }, Body]): void {
  const [options, body] = rest.length === 1 ? [{ skip: false as const }, rest[0]] : rest;
  void runTest(name, options, () => keepingDescriptors(body));
}

async function keepingDescriptors(body: Body): Promise<void> {
  const before = await steadyTable();
  await body();
  const found = () => changes(before, descriptorTable());
  await until(() => found().length === 0, () => `the table to be as before:\n${found().join("\n")}`);
}

/** Looks again when it was not so: threads of the runtimes open files for a moment. */
export async function eventually(assertion: () => void): Promise<void> {
  for (let tries = 20;; tries--) {
    try {
      return assertion();
    } catch (error) {
      if (tries === 0) throw error;
    }
    await sleep(3);
  }
}

/** Waits until something is so. */
export async function until(condition: () => boolean, what: string | (() => string)): Promise<void> {
  const end = Date.now() + patienceMs;
  while (!condition()) {
    if (Date.now() >= end) assert.fail(`waited ${patienceMs} ms for ${typeof what === "string" ? what : what()}`);
    await sleep(5);
  }
}

export function sleep(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

/** Where a client reaches a listener: on loopback when it listens everywhere. */
export function reachable(address: SocketAddress): net.NetConnectOpts {
  if (address.family === "unix") return { path: address.path };
  const { hostname, port } = address;
  return { port, host: hostname === "0.0.0.0" ? "127.0.0.1" : hostname === "::" ? "::1" : hostname };
}

/** Sends one request on a connection of its own, and gives all that comes back. */
export function ask(to: net.NetConnectOpts): Promise<string> {
  return answerOn(net.connect(to));
}

/** The same over TLS, whoever signed the certificate. */
export function askTls(to: net.NetConnectOpts): Promise<string> {
  return answerOn(tls.connect({ ...to, rejectUnauthorized: false }));
}

function answerOn(socket: net.Socket): Promise<string> {
  return new Promise((resolve, reject) => {
    let answer = "";
    const timer = setTimeout(() => socket.destroy(new Error(`no answer within ${patienceMs} ms`)), patienceMs);
    socket.on("data", (bytes) => answer += bytes);
    socket.once("error", reject);
    socket.once("close", () => {
      clearTimeout(timer);
      resolve(answer);
    });
    socket.write("GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
  });
}

/** Linux's TCP_INFO (tcp(7)): of a listener, `tcpi_unacked` is the length of its accept queue. */
const IPPROTO_TCP = 6;
const TCP_INFO = 11;
const unackedOffset = 24;

/** How many connections wait in the accept queue of a TCP listener. */
export function queuedCount(descriptor: number): number {
  const info = allocate(128);
  const size = allocate(4);
  viewOf(size).setUint32(0, info.length, true);
  const result = runtime.libc.getsockopt(descriptor, IPPROTO_TCP, TCP_INFO, info, size);
  assert.equal(result, 0, `descriptor ${descriptor} is no TCP socket`);
  return viewOf(info).getUint32(unackedOffset, true);
}

/** Every runtime opens descriptors for itself when it first uses the network, a timer or a child. */
async function warmUp(): Promise<void> {
  const server = net.createServer((socket) => socket.resume().end("warm")).listen(0, "127.0.0.1");
  await new Promise((resolve) => server.once("listening", resolve));
  await ask({ host: "127.0.0.1", port: (server.address() as net.AddressInfo).port });
  await new Promise((resolve) => server.close(resolve));
  await run(["true"]);
}

await warmUp();
