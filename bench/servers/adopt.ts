/**
 * Makes native connections of descriptors and takes them out again: the bench
 * "adopt". The other ends are in this process too, and only libc touches them.
 *
 * Each line on stdin, "ROUND WAY WHAT COUNT", is one round; its answer is one
 * JSON line on stdout. Ways are in `waysOf`; what is `accept` (the runtime's
 * own), `turn` (adopt and detach, one after the other), `together` (all of
 * them at once) or `cycle` (adopt and detach each, eight at a time).
 */

import net from "node:net";
import process from "node:process";
import { createInterface } from "node:readline";
import { adoptConnection, detach, openRuntime } from "../../mod.ts";
import { disposeAll, linkOf, openDescriptors, OwnedDescriptor, readFile } from "../../src/sockets/descriptors.ts";
import { isSystemError } from "../../src/errors.ts";
import { bindListener } from "../../src/sockets/listener.ts";
import { connectSocket, localAddress, openSocket } from "../../src/sockets/socket.ts";

// deno-lint-ignore no-explicit-any
type Any = any;
const { Deno, Bun } = globalThis as Any;

/** Connections at a time in `cycle`. */
const width = 8;

const runtime = await openRuntime();
const { libc, abi } = runtime;
const ways: Readonly<Record<string, (descriptor: OwnedDescriptor) => Promise<unknown>>> = await waysOf();

say("open", { runtime: `${runtime.name} ${runtime.version}`, ffi: runtime.ffi, ways: Object.keys(ways) });
for await (const line of createInterface({ input: process.stdin })) {
  const [round, way, what, count] = line.split(" ");
  say(`round ${round}`, await play(way!, what!, Number(count)));
}

async function waysOf(): Promise<Record<string, (descriptor: OwnedDescriptor) => Promise<unknown>>> {
  const graft = (open: (at: Any) => unknown) => (descriptor: OwnedDescriptor) => adoptConnection(descriptor, open);
  if (Deno) {
    const { socketFrom } = await import("../../runtimes/deno.ts");
    return { "Deno.Conn": graft((at) => Deno.connect(at)), "net.Socket{fd}": (descriptor) => socketFrom(descriptor) };
  }
  if (Bun) {
    const { connectionFrom } = await import("../../runtimes/bun.ts");
    const connect = (at: Any) => Bun.connect({ ...at, socket: { data() {} } });
    return { "Bun.Socket": graft(connect), "Bun.Socket{fd}": (descriptor) => connectionFrom(descriptor, connect) };
  }
  const { connectionFrom } = await import("../../runtimes/node.ts");
  return { "net.Socket": graft((at) => net.connect(at)), "net.Socket{fd}": (descriptor) => connectionFrom(descriptor) };
}

async function play(way: string, what: string, count: number): Promise<Record<string, number>> {
  if (what === "accept") return { acceptUs: await acceptOwn(count) };
  const adopt = ways[way]!;
  const before = table();
  const ours: OwnedDescriptor[] = [];
  const peers: OwnedDescriptor[] = [];
  for (let each = 0; each < (what === "cycle" ? width : count); each++) {
    const [one, other] = pair();
    ours.push(one);
    peers.push(other);
  }
  const figures = what === "cycle" ? await cycle(adopt, ours, count) : await measure(adopt, ours, what === "together");
  disposeAll(peers);
  // A runtime closes some descriptors a turn later.
  await new Promise((resolve) => setTimeout(resolve, 20));
  return { ...figures, ...drift(before) };
}

/** Microseconds a connection. */
async function measure(
  adopt: (descriptor: OwnedDescriptor) => Promise<unknown>,
  ours: readonly OwnedDescriptor[],
  isTogether: boolean,
): Promise<{ adoptUs: number; detachUs: number }> {
  const start = performance.now();
  const natives = await each(ours, adopt, isTogether);
  const middle = performance.now();
  const detached = await each(natives, (native) => detach(native), isTogether);
  const end = performance.now();
  disposeAll(detached.map(({ descriptor }) => descriptor));
  const us = (ms: number) => ms * 1_000 / ours.length;
  return { adoptUs: us(middle - start), detachUs: us(end - middle) };
}

async function each<T, U>(items: readonly T[], act: (item: T) => Promise<U>, isTogether: boolean): Promise<U[]> {
  if (isTogether) return await Promise.all(items.map(act));
  const results: U[] = [];
  for (const item of items) results.push(await act(item));
  return results;
}

async function cycle(
  adopt: (descriptor: OwnedDescriptor) => Promise<unknown>,
  ours: readonly OwnedDescriptor[],
  count: number,
): Promise<{ cycleUs: number }> {
  const start = performance.now();
  await Promise.all(ours.map(async (first) => {
    let descriptor = first;
    for (let turn = 0; turn < count / ours.length; turn++) {
      ({ descriptor } = await detach(await adopt(descriptor)));
    }
    descriptor[Symbol.dispose]();
  }));
  return { cycleUs: (performance.now() - start) * 1_000 / count };
}

/** What the runtime itself takes from a client's connect(2) to its own handler, all at once. */
async function acceptOwn(count: number): Promise<number> {
  const natives: Any[] = [];
  let done: () => void;
  const all = new Promise<void>((resolve) => done = resolve);
  const accepted = (native: Any) => natives.push(native) === count && done();
  const listener = listen(accepted);
  await listener.listening;
  const start = performance.now();
  const clients = Array.from({ length: count }, () => client(listener.port()));
  await all;
  const us = (performance.now() - start) * 1_000 / count;
  for (const native of natives) native.destroy ? native.destroy() : native.close();
  listener.close();
  disposeAll(clients);
  return us;
}

function listen(accepted: (native: Any) => void): { listening: Promise<unknown>; port(): number; close(): void } {
  const at = { hostname: "127.0.0.1", port: 0 };
  if (Deno) {
    const listener = Deno.listen(at);
    void (async () => {
      for await (const connection of listener) accepted(connection);
    })();
    return { listening: Promise.resolve(), port: () => listener.addr.port, close: () => listener.close() };
  }
  if (Bun) {
    const listener = Bun.listen({ ...at, socket: { open: accepted, data() {} } });
    return { listening: Promise.resolve(), port: () => listener.port, close: () => listener.stop() };
  }
  const server = net.createServer(accepted).listen(0, "127.0.0.1", 4_096);
  return {
    listening: new Promise((resolve) => server.once("listening", resolve)),
    port: () => (server.address() as net.AddressInfo).port,
    close: () => void server.close(),
  };
}

function pair(): [OwnedDescriptor, OwnedDescriptor] {
  using listener = bindListener(runtime, { family: "inet", hostname: "127.0.0.1", port: 0 }, { port: 0 });
  const connecting = client((localAddress(runtime, listener.number) as { port: number }).port);
  const flags = abi.constants.O_NONBLOCK | abi.constants.O_CLOEXEC;
  return [connecting, new OwnedDescriptor(runtime, libc.accept4(listener.number, null, null, flags))];
}

function client(port: number): OwnedDescriptor {
  const socket = new OwnedDescriptor(runtime, openSocket(runtime, "inet", "stream"));
  try {
    connectSocket(runtime, socket.number, { family: "inet", hostname: "127.0.0.1", port });
  } catch (error) {
    if (!isSystemError(error, "EINPROGRESS")) throw error;
  }
  return socket;
}

/** Descriptors and registrations of this process. */
function table(): { descriptors: number; registrations: number } {
  const descriptors = openDescriptors(runtime);
  const epolls = descriptors.filter((number) => linkOf(runtime, number) === "anon_inode:[eventpoll]");
  const lines = epolls.flatMap((epoll) => readFile(runtime, `/proc/self/fdinfo/${epoll}`).split("\n"));
  return { descriptors: descriptors.length, registrations: lines.filter((line) => line.startsWith("tfd:")).length };
}

function drift(before: ReturnType<typeof table>): { descriptorDrift: number; registrationDrift: number } {
  const now = table();
  return {
    descriptorDrift: now.descriptors - before.descriptors,
    registrationDrift: now.registrations - before.registrations,
  };
}

function say(event: string, more: object): void {
  console.log(JSON.stringify({ event, pid: process.pid, ...more }));
}
