/**
 * Programs that know nothing of hand-overs and share their address
 * (SO_REUSEPORT): replaced in the safe order they lose nobody, in their own
 * they do. Every turn of every event loop takes 20 ms longer.
 */

import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";
import { commandFor, root } from "../support/binaries.mjs";
import { asOrdinaryUser, nextOrdinary, openOrdinaryRelay, whyNotOrdinaryUser } from "../support/ordinary_user.ts";
import { Relay, sleep, startLoad, summaryOf } from "../support/relay.ts";
import { type RuntimeName, runtimes, Server } from "../support/server.ts";
import { whyNoMigration, withMigration } from "../support/migration.ts";

const example = "examples/http.ts";
const other = "test/fixtures/reuseport.ts";
const stalls = { STALL_MS: "20" };
const roundCount = runtimes.length;
const everyMs = 400;
const freshPerSecond = 1_000;

/** Who runs the servers. */
interface Way {
  open(): Promise<Relay>;
  other(relay: Relay, env?: Record<string, string>): Server;
  next(relay: Relay, runtime: RuntimeName, env: Record<string, string>): Promise<Server>;
  /** By which program connections go to some listeners alone. */
  readonly steering: object;
}

const otherCommand = commandFor("bun", join(root, other));
const otherEnv = (relay: Relay) => ({ PORT: String(relay.port), ...stalls });

const asRoot: Way = {
  open: () => Relay.open({ ...stalls, DRAIN_MS: "5000" }, example),
  other: (relay, env) => new Server("bun", other, { ...otherEnv(relay), ...env }),
  next: (relay, runtime, env) => relay.next(runtime, env),
  steering: { program: "loaded", code: null, migrates: true },
};

const asUser: Way = {
  open: () => openOrdinaryRelay({ ...stalls, DRAIN_MS: "5000" }, example),
  other: (relay, env) => new Server("bun", other, { ...otherEnv(relay), ...env }, asOrdinaryUser(otherCommand)),
  next: (relay, runtime, env) => nextOrdinary(relay, runtime, env, commandFor(runtime, join(root, example))),
  steering: { program: "classic", code: "EPERM", migrates: false },
};

/**
 * Servers that share an address follow each other: one that knows nothing of
 * hand-overs, then one that takes its place, then again one of the first kind,
 * beside which the second is told to end, and so on.
 */
async function alternate(way: Way, othersAtOnce: number, listenerCount: number): Promise<void> {
  await using relay = await way.open();
  await using stack = new AsyncDisposableStack();
  const startOthers = async () => {
    const started = Array.from({ length: othersAtOnce }, () => stack.use(way.other(relay)));
    for (const each of started) await each.event("ready");
    return started;
  };
  let others = await startOthers();
  using load = startLoad({ port: relay.port, seconds: 600, freshPerSecond });
  await sleep(everyMs);
  for (let round = 0; round < roundCount; round++) {
    const env = { LISTENERS: String(listenerCount), DISPLACES: others.map(({ pid }) => pid).join(" ") };
    const server = await way.next(relay, runtimes[round % runtimes.length]!, env);
    const { otherCount, waitedCount, steering } = await server.event("displaced");
    console.log(JSON.stringify({ runtime: server.runtime, otherCount, waitedCount, steering }));
    assert.equal(otherCount, othersAtOnce);
    assert.deepEqual(steering, way.steering);
    for (const each of others) assert.equal(await each.ended, 0, each.stderr);
    await sleep(everyMs);
    if (round === roundCount - 1) break;
    others = await startOthers();
    await sleep(everyMs);
    server.signal("SIGTERM");
    const { reset } = await server.event("closed");
    assert.equal(reset, 0);
    assert.equal(await server.ended, 0, server.stderr);
  }
  load.stop();
  const report = await load.report;
  console.log(summaryOf(report));
  assert.deepEqual(report.failures, {});
}

test("servers that share an address and follow each other lose connections", async () => {
  await using relay = await Relay.open();
  await using stack = new AsyncDisposableStack();
  let last = stack.use(asRoot.other(relay));
  await last.event("ready");
  using load = startLoad({ port: relay.port, seconds: 600, freshPerSecond });
  await sleep(everyMs);
  for (let round = 0; round < roundCount; round++) {
    const next = stack.use(asRoot.other(relay));
    await next.event("ready");
    last.signal("SIGTERM");
    last = next;
    await sleep(everyMs);
  }
  load.stop();
  const report = await load.report;
  console.log(summaryOf(report));
  assert.ok((report.failures["fresh request: ECONNRESET"] ?? 0) > 0);
});

test("a server whose others do not end says so, and serves on", async () => {
  await using relay = await Relay.open({ DRAIN_MS: "300" }, example);
  await using first = asRoot.other(relay);
  await using second = asRoot.other(relay);
  for (const each of [first, second]) await each.event("ready");
  // A stopped process does not end of SIGTERM.
  for (const each of [first, second]) each.signal("SIGSTOP");
  const server = await relay.next("node", { LISTENERS: "1", DISPLACES: `${first.pid}\n${second.pid}\n` });
  const { code } = await server.event("undisplaced");
  assert.equal(code, "ERR_TAKEOVER_TIMEOUT");
  server.signal("SIGTERM");
  assert.equal(await server.ended, 0, server.stderr);
  await using wrong = new Server("node", example, { ...otherEnv(relay), TAKEOVER: relay.path, LISTENERS: "1", DISPLACES: "server" });
  assert.equal((await wrong.event("refused")).code, "ERR_TAKEOVER_RANGE");
  assert.equal(await wrong.ended, 1);
});

test("a server that displaces another, and ends beside one, loses none", () => alternate(asRoot, 1, 1));

test("the same with three others and two listeners as an ordinary user", { skip: whyNotOrdinaryUser() }, () =>
  alternate(asUser, 3, 2));

test("the same with net.ipv4.tcp_migrate_req", { skip: whyNoMigration() }, () =>
  withMigration(() => alternate({ ...asUser, steering: { ...asUser.steering, migrates: true } }, 1, 1)));
