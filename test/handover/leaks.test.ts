/**
 * Nothing is left behind: descriptors, registrations, sockets, children, time.
 */

import assert from "node:assert/strict";
import { readdirSync } from "node:fs";
import net from "node:net";
import { dirname } from "node:path";
import { test } from "node:test";
import { assertServes } from "../support/http.ts";
import {
  childCount, cpuTicks, descriptorKinds, inheritableSockets, kernelSockets, registrationCount,
} from "../support/proc.ts";
import { Relay, sleep } from "../support/relay.ts";
import { type RuntimeName, runtimes, type Server } from "../support/server.ts";

/** What a process holds. */
function holdings({ pid }: Server): object {
  return { descriptors: descriptorKinds(pid), registrations: registrationCount(pid), children: childCount(pid) };
}

/** Waits until two things are the same; the last comparison is the one that fails. */
async function becomes(actual: () => object, expected: object, limitMs = 10_000): Promise<void> {
  const wanted = JSON.stringify(expected);
  for (let waitedMs = 0; JSON.stringify(actual()) !== wanted && waitedMs < limitMs; waitedMs += 20) await sleep(20);
  assert.deepEqual(actual(), expected);
}

function runtimeOf(index: number): RuntimeName {
  return runtimes[index % runtimes.length]!;
}

test("an incumbent holds after 34 failed hand-overs what it held after the first, on each runtime", async () => {
  for (const runtime of runtimes) {
    await using relay = await Relay.open({ SETTLE_MS: "60000" });
    const incumbent = await relay.next(runtime);
    const fail = async (crash: string) => {
      await using successor = relay.start("bun", { CRASH: crash });
      assert.equal(await successor.ended, "SIGKILL", successor.stderr);
    };
    await fail("after-ready");
    await incumbent.event("resumed");
    await assertServes(relay.port);
    await sleep(300);
    const before = holdings(incumbent);
    for (let index = 0; index < 33; index++) await fail(index % 3 === 0 ? "after-ready" : "before-ready");
    await assertServes(relay.port);
    await becomes(() => holdings(incumbent), before);
  }
});

test("after 100 hand-overs each runtime holds what it held the first time, and the kernel has no socket more", async () => {
  const sockets = kernelSockets();
  {
    await using relay = await Relay.open({ SETTLE_MS: "1", DRAIN_MS: "1000" });
    const first = new Map<RuntimeName, object>();
    for (let index = 0; index <= 100; index++) {
      const server = await relay.next(runtimeOf(index));
      await relay.settled();
      if (index > 0) assert.equal(await relay.servers[index - 1]!.ended, 0, relay.servers[index - 1]!.stderr);
      // The first process has bound what the others inherit, in the same number.
      if (index < 3 || index > 97) await assertServes(relay.port, 2);
      if (index >= 3 && index < 6) first.set(server.runtime, (await sleep(300), holdings(server)));
      if (index > 97) await becomes(() => holdings(server), first.get(server.runtime)!);
    }
    assert.deepEqual(inheritableSockets(relay.current.pid), []);
    assert.deepEqual(readdirSync(dirname(relay.path)), ["takeover.sock"], "no lock and no placeholder is left");
  }
  for (let waitedMs = 0; waitedMs < 10_000 && isMore(kernelSockets(), sockets); waitedMs += 100) await sleep(100);
  assert.ok(!isMore(kernelSockets(), sockets), `${JSON.stringify(kernelSockets())}, before ${JSON.stringify(sockets)}`);
});

function isMore(now: { tcp: number; unix: number }, before: { tcp: number; unix: number }): boolean {
  return now.tcp > before.tcp || now.unix > before.unix;
}

test("no socket would be inherited by a child process, on each runtime", async () => {
  for (const runtime of runtimes) {
    await using own = await Relay.open({ SETTLE_MS: "60000" });
    await own.next(runtime);
    const successor = await own.next(runtime);
    assert.deepEqual(inheritableSockets(own.servers[0]!.pid), [], `incumbent on ${runtime}`);
    assert.deepEqual(inheritableSockets(successor.pid), [], `successor on ${runtime}`);
  }
});

test("an incumbent takes no processor time during the lease, nor while a connection keeps it draining", async () => {
  for (const runtime of runtimes) {
    await using relay = await Relay.open({ SETTLE_MS: "3000", DRAIN_MS: "60000" });
    const incumbent = await relay.next(runtime);
    // A request that is not whole keeps its connection here; any other would move.
    const socket = net.connect(relay.port, "127.0.0.1");
    socket.write("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    await new Promise((resolve) => socket.once("data", resolve));
    socket.write("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n1");
    await relay.next(runtime);
    await incumbent.event("released");
    const leased = await ticksIn(incumbent, 1_500);
    await incumbent.event("settled");
    const draining = await ticksIn(incumbent, 1_500);
    console.log(`${runtime}: ${leased} ticks of 10 ms in 1.5 s of the lease, ${draining} in 1.5 s of draining`);
    // A descriptor that spins takes 150; to see whether a connection may move takes a few.
    assert.ok(leased <= 40, `${leased} ticks in the lease`);
    assert.ok(draining <= 40, `${draining} ticks while draining`);
    socket.destroy();
    assert.equal(await incumbent.ended, 0, incumbent.stderr);
  }
});

async function ticksIn({ pid }: Server, ms: number): Promise<number> {
  const before = cpuTicks(pid);
  await sleep(ms);
  return cpuTicks(pid) - before;
}
