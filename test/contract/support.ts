/**
 * The runtime under test, and what every contract test needs around it.
 *
 * @module
 */

import assert from "node:assert/strict";
import net from "node:net";
import tls from "node:tls";
import { toHex } from "../../src/bytes.ts";
import { linkOf, openDescriptors, readFile } from "../../src/descriptors.ts";
import type { TakeoverErrorCode } from "../../src/errors.ts";
import type { Runtime } from "../../src/runtime.ts";
import { type InetAddress, parseInet, type SocketAddress } from "../../src/sockaddr.ts";
import { run } from "../unit/children.ts";
import { runtime } from "./seam.ts";

export { openNull, socketPair } from "./pair.ts";
export { runtime } from "./seam.ts";

/** Far longer than anything here takes. */
export const patienceMs = 30_000;

/** Options of a test that only one runtime can run. */
export const onDeno = only("deno");
export const onBun = only("bun");

function only(name: Runtime["name"]): { skip: string | false } {
  return { skip: runtime.name === name ? false : `only ${name} has this` };
}

/** What `assert.throws` and `assert.rejects` compare an error with. */
export function takeoverError(code: TakeoverErrorCode): { name: string; code: string } {
  return { name: "TakeoverError", code };
}

/**
 * The body of a test that leaves the descriptor table as it found it. A runtime
 * closes some descriptors a turn later, so the table is given time.
 */
export function keeping(body: () => void | Promise<void>): () => Promise<void> {
  return async () => {
    const before = descriptorTable();
    await body();
    await until(() => sameTable(before, descriptorTable()), () =>
      `descriptors before:\n${shown(before, descriptorTable())}\nand after:\n${shown(descriptorTable(), before)}`);
  };
}

type Table = ReadonlyMap<number, string>;

function descriptorTable(): Table {
  return new Map(openDescriptors(runtime).map((number) => [number, linkOf(runtime, number)]));
}

function sameTable(a: Table, b: Table): boolean {
  return a.size === b.size && [...a].every(([number, link]) => b.get(number) === link);
}

function shown(table: Table, other: Table): string {
  return [...table].filter(([number, link]) => other.get(number) !== link).map(([n, link]) => `${n} ${link}`).join("\n");
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

/** How many connections wait in the accept queue of a TCP listener over IPv4 (proc_net_tcp). */
export function queuedCount(address: SocketAddress): number {
  const { hostname, port } = address as InetAddress;
  const inReverse = toHex(parseInet(hostname)!.toReversed()).toUpperCase();
  const local = `${inReverse}:${port.toString(16).toUpperCase().padStart(4, "0")}`;
  const listening = "0A";
  const lines = readFile(runtime, "/proc/self/net/tcp").split("\n").map((line) => line.trim().split(/\s+/));
  const line = lines.find((columns) => columns[1] === local && columns[3] === listening);
  assert.ok(line, `nothing listens on ${hostname}:${port}`);
  return parseInt(line[4]!.split(":")[1]!, 16);
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
