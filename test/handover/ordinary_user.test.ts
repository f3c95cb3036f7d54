/**
 * What root's servers do, an ordinary user's do as well: no process of these
 * chains has a capability.
 */

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { commandFor, root } from "../support/binaries.mjs";
import { datagramCommandFor, handsOver, keepsFlows, perSecond, type Runner } from "../support/datagrams.ts";
import { nextOrdinary, openOrdinaryRelay, whyNotOrdinaryUser } from "../support/ordinary_user.ts";
import { sleep, startLoad, summaryOf } from "../support/relay.ts";
import { nineHandOvers } from "../support/server.ts";

const skip = whyNotOrdinaryUser();
const restMs = 200;

/** A small datagram takes as much of a receive buffer, twice whose size the kernel gives (socket(7)). */
const bufferedSize = 768;

/** How long a process of a loaded machine may come to nothing. */
const stallMs = 1_000;

const runner: Runner = {
  open: (env) => openOrdinaryRelay({ SETTLE_MS: "50", DRAIN_MS: "2000", ...env }, "examples/udp.ts"),
  next: (relay, runtime, env = {}) => nextOrdinary(relay, runtime, env, datagramCommandFor(runtime)),
  // Only root may pass net.core.rmem_max, and what finds no room is lost, whoever reads.
  perSecond: Math.min(perSecond, Math.floor(2 * largestBuffer() / bufferedSize / stallMs * 1_000)),
};

function largestBuffer(): number {
  return Number(readFileSync("/proc/sys/net/core/rmem_max", "utf8"));
}

test("an ordinary user's nine hand-overs of a TCP listener lose nothing of fresh and kept connections", { skip }, async () => {
  const file = "examples/http.ts";
  await using relay = await openOrdinaryRelay({ SETTLE_MS: "20", DRAIN_MS: "60000" }, file);
  const [first, ...others] = nineHandOvers.map((runtime) => () =>
    nextOrdinary(relay, runtime, {}, commandFor(runtime, join(root, file)))
  );
  await first!();
  using load = startLoad({ port: relay.port, seconds: 600, freshPerSecond: 4_000, busyCount: 8, idleCount: 100 });
  for (const next of others) {
    await sleep(restMs);
    await next();
    await relay.settled();
  }
  await sleep(restMs);
  load.stop();
  const report = await load.report;
  console.log(summaryOf(report));
  assert.deepEqual(report.failures, {});
  assert.equal(report.announced, 0, "no kept connection is told to end: they move");
  assert.equal(Object.keys(report.byServer).length, nineHandOvers.length, "every generation answered");
  for (const server of relay.servers.slice(0, -1)) assert.equal(await server.ended, 0, server.stderr);
});

test("an ordinary user's nine hand-overs lose and double no datagram", { skip }, () => handsOver(9, undefined, runner));

test("an ordinary user's steered flows stay with four generations, and go to the newest afterwards", { skip }, () =>
  keepsFlows("steered", runner));

test("an ordinary user's connected flows stay with four generations, and go to the newest afterwards", { skip }, () =>
  keepsFlows("connected", runner));

test("an ordinary user's forwarded flows stay with four generations, and go to the newest afterwards", { skip }, () =>
  keepsFlows("forwarded", runner));
