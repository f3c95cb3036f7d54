/**
 * What an application has set on a datagram socket stays set through hand-overs,
 * a multicast group that it has joined stays joined, and what waits in the
 * socket is answered.
 */

import assert from "node:assert/strict";
import { test } from "node:test";
import { datagramCommandFor } from "../support/datagrams.ts";
import { Asker, type Family, inet, inet6, whyNoMulticast } from "../support/multicast.ts";
import { Relay } from "../support/relay.ts";
import { type RuntimeName, runtimes, type Server } from "../support/server.ts";

const skip = whyNoMulticast();
const fixture = "test/fixtures/datagram_options.ts";
const askedCount = 20;
const queuedCount = 150;

/** Levels and names of options (socket(7), ip(7), ipv6(7)), each with a value that is not the default. */
const SOL_SOCKET = 1;
const IPPROTO_IP = 0;
const IPPROTO_IPV6 = 41;

type Option = readonly [level: number, name: number, value: number];

const shared: readonly Option[] = [
  [SOL_SOCKET, 6, 1], // SO_BROADCAST
  [SOL_SOCKET, 8, 100_000], // SO_RCVBUF
  [SOL_SOCKET, 12, 3], // SO_PRIORITY
];

const optionsOf = new Map<Family, readonly Option[]>([
  [inet, [
    ...shared,
    [IPPROTO_IP, 1, 40], // IP_TOS
    [IPPROTO_IP, 2, 33], // IP_TTL
    [IPPROTO_IP, 10, 2], // IP_MTU_DISCOVER
    [IPPROTO_IP, 11, 1], // IP_RECVERR
    [IPPROTO_IP, 33, 7], // IP_MULTICAST_TTL
    [IPPROTO_IP, 34, 0], // IP_MULTICAST_LOOP
    [IPPROTO_IP, 49, 0], // IP_MULTICAST_ALL
  ]],
  [inet6, [
    ...shared,
    [IPPROTO_IPV6, 16, 33], // IPV6_UNICAST_HOPS
    [IPPROTO_IPV6, 18, 7], // IPV6_MULTICAST_HOPS
    [IPPROTO_IPV6, 19, 0], // IPV6_MULTICAST_LOOP
    [IPPROTO_IPV6, 25, 1], // IPV6_RECVERR
    [IPPROTO_IPV6, 29, 0], // IPV6_MULTICAST_ALL
    [IPPROTO_IPV6, 67, 40], // IPV6_TCLASS
  ]],
]);

/** Each runtime is the first once, and follows another one twice. */
const chains = runtimes.map((_, first) => [0, 1, 2, 3].map((step) => runtimes[(first + step) % runtimes.length]!));

async function open(family: Family, env: Record<string, string> = {}): Promise<Relay> {
  const OPTIONS = JSON.stringify(optionsOf.get(family));
  return await Relay.open({ HOST: family.hostname, GROUP: family.group, OPTIONS, ...env }, fixture);
}

async function next(relay: Relay, runtime: RuntimeName, env: Record<string, string> = {}): Promise<Server> {
  return await relay.next(runtime, env, datagramCommandFor(runtime, fixture));
}

/** Hands over along each chain; the first process alone has set anything. */
async function stays(family: Family): Promise<void> {
  for (const chain of chains) {
    await using relay = await open(family);
    using asker = await Asker.open(family, relay.port);
    const first = await (await next(relay, chain[0]!)).event("ready");
    const [before, options] = [first.before, first.options] as Record<string, number>[];
    for (const [name, value] of Object.entries(options!)) assert.notEqual(value, before![name], `${name} was set`);
    for (const [index, runtime] of chain.slice(1).entries()) {
      const incumbent = relay.current;
      const successor = await next(relay, runtime);
      assert.equal(await incumbent.ended, 0, incumbent.stderr);
      assert.deepEqual((await successor.event("ready")).options, options);
      for (const to of [family.group, family.loopback]) {
        const answers = await asker.answersTo(await asker.send(askedCount, to));
        assert.deepEqual(answers, { [index + 2]: askedCount }, `${to}, ${runtime}`);
      }
    }
  }
}

test("a socket that has joined no group hears nothing of it, and the client notices", { skip }, async () => {
  for (const family of [inet, inet6]) {
    await using relay = await Relay.open({ HOST: family.hostname }, fixture);
    using asker = await Asker.open(family, relay.port);
    await next(relay, "node");
    assert.deepEqual(await asker.answersTo(await asker.send(askedCount, family.loopback)), { 1: askedCount });
    assert.deepEqual(await asker.answersTo(await asker.send(askedCount, family.group), 300), {});
  }
});

test("options and an IPv4 group that the first process has set stay through every runtime", { skip }, () => stays(inet));

test("options and an IPv6 group that the first process has set stay through every runtime", { skip }, () => stays(inet6));

test("datagrams that an incumbent has not read before the hand-over are answered by its successor", { skip }, async () => {
  for (const family of [inet, inet6]) {
    for (const runtime of runtimes) {
      await using relay = await open(family);
      using asker = await Asker.open(family, relay.port);
      // Only Deno reads no more than it is asked for.
      await next(relay, "deno", { DEAF: "1" });
      const queued = await asker.send(queuedCount, family.group);
      await next(relay, runtime);
      assert.deepEqual(await asker.answersTo(queued), { 2: queuedCount }, runtime);
    }
  }
});

test("datagrams that come while a successor is stopped in its lease are answered by it when it goes on", { skip }, async () => {
  for (const runtime of runtimes) {
    await using relay = await open(inet, { SETTLE_MS: "60000" });
    using asker = await Asker.open(inet, relay.port);
    await next(relay, runtimes[(runtimes.indexOf(runtime) + 1) % runtimes.length]!);
    const successor = await next(relay, runtime);
    successor.signal("SIGSTOP");
    const queued = await asker.send(queuedCount, inet.group);
    successor.signal("SIGCONT");
    assert.deepEqual(await asker.answersTo(queued), { 2: queuedCount }, runtime);
  }
});

test("datagrams that came while a successor was stopped are answered by the incumbent when it was killed", { skip }, async () => {
  for (const runtime of runtimes) {
    await using relay = await open(inet, { SETTLE_MS: "60000" });
    using asker = await Asker.open(inet, relay.port);
    await next(relay, runtime);
    const successor = await next(relay, runtimes[(runtimes.indexOf(runtime) + 1) % runtimes.length]!);
    successor.signal("SIGSTOP");
    const queued = await asker.send(queuedCount, inet.group);
    successor.signal("SIGKILL");
    assert.deepEqual(await asker.answersTo(queued), { 1: queuedCount }, runtime);
  }
});
