/**
 * Groups of sockets (SO_REUSEPORT) and their programs, as the kernel runs them.
 */

import assert from "node:assert/strict";
import type { InetAddress } from "../../src/c/sockaddr.ts";
import { disposeAll, OwnedDescriptor } from "../../src/sockets/descriptors.ts";
import { cookieOf, duplicate, localAddress } from "../../src/sockets/socket.ts";
import {
  attachFilter,
  attachToGroup,
  detachFilter,
  detachFromGroup,
  hasFilter,
  whole,
} from "../../src/steering/attach.ts";
import { answer, assemble, load } from "../../src/steering/bpf.ts";
import { byTag, type Destination, everythingTo } from "../../src/steering/programs.ts";
import { noSlot, openGroup, ReuseportGroup } from "../../src/steering/reuseport.ts";
import { halfOpenPairs, listedMembers } from "../../src/steering/socket_diag.ts";
import { interpret, udpPacket } from "../unit/bpf_interpreter.ts";
import { asRoot, commandFor, runChild } from "./fd_children.ts";
import { connections, countsAt, datagramsAt, deafConnections, groupOf, openClient, sendTo } from "./steering_ends.ts";
import { openNull, queuedCount, runtime, takeoverError, test } from "./support.ts";

const inet6: InetAddress = { family: "inet6", hostname: "::1", port: 0 };
const everywhere: InetAddress = { family: "inet", hostname: "0.0.0.0", port: 0 };

/** Each generation's tag is its number, in the first byte. */
function byGeneration(cookies: readonly string[]): Parameters<ReuseportGroup["steer"]>[0] {
  return (slotOf) => {
    const slots = new Map(cookies.map((cookie, index) => [index + 1, slotOf(cookie)]));
    return byTag({ offset: 0, size: 1 }, { slots, otherwise: slotOf(cookies.at(-1)!) });
  };
}

test("byTag sends the flows of four generations each to its socket, and all else to the newest", () => {
  using opened = groupOf("dgram", 4);
  using client = openClient();
  const { group, sockets, cookies } = opened;
  group.steer(byGeneration(cookies));
  for (const tag of [1, 2, 2, 3, 3, 3, 4, 0, 200]) sendTo(client, group.address, tag, 9, 9);
  sendTo(client, group.address);
  assert.deepEqual(countsAt(sockets), [1, 2, 3, 4]);
});

test("byTag sends random datagrams where the interpreter says, as the kernel runs it", () => {
  using opened = groupOf("dgram", 4);
  using client = openClient();
  const { group, sockets } = opened;
  const { port } = localAddress(runtime, client.number) as InetAddress;
  const source = { address: Uint8Array.of(127, 0, 0, 1), port };
  for (const size of [1, 2, 4] as const) {
    const slots = new Map<number, Destination>([[0, 3], [1, 1], [2, [0, 1, 2]], [3, 2]]);
    const lines = byTag({ offset: 2, size, mask: 3 }, { slots, otherwise: [3, 0] });
    group.steer(() => lines);
    for (let round = 0; round < 60; round++) {
      const payload = crypto.getRandomValues(new Uint8Array(round % 8));
      sendTo(client, group.address, ...payload);
      const slot = interpret(assemble(lines), udpPacket(payload, source));
      assert.deepEqual(countsAt(sockets), [0, 1, 2, 3].map((each) => each === slot ? 1 : 0), `${size}: ${payload}`);
    }
  }
});

test("everythingTo several slots keeps connections away from the others, and spreads IPv6 too", () => {
  for (const address of [everywhere, inet6]) {
    using opened = groupOf("stream", 4, address);
    const { group, sockets } = opened;
    group.steer(() => everythingTo([1, 3]));
    const at = address === everywhere ? { ...group.address, hostname: "127.0.0.1" } : group.address;
    const clients = connections(40, at);
    const counts = sockets.map(({ number }) => queuedCount(number));
    assert.deepEqual([counts[0], counts[2], counts[1]! + counts[3]!], [0, 0, 40]);
    assert.ok(counts[1]! > 0 && counts[3]! > 0, JSON.stringify(counts));
    disposeAll(clients);
  }
});

test("ReuseportGroup.open joins in the last slot, and gets nothing until the plan says so", () => {
  using opened = groupOf("dgram", 1);
  using client = openClient();
  const { group, sockets: [old], cookies } = opened;
  group.steer((slotOf) => everythingTo(slotOf(cookies[0]!)));
  using young = group.open();
  for (let count = 0; count < 50; count++) sendTo(client, group.address, 1);
  assert.deepEqual(countsAt([old!, young]), [50, 0]);
  const added = cookieOf(runtime, young.number);
  group.steer((slotOf) => {
    return byTag({ offset: 0, size: 1 }, { slots: new Map([[1, slotOf(cookies[0]!)]]), otherwise: slotOf(added) });
  });
  for (const tag of [1, 0, 2, 1, 0]) sendTo(client, group.address, tag);
  assert.deepEqual(countsAt([old!, young]), [2, 3]);
});

test("ReuseportGroup.close follows the kernel, which moves the last member into the slot", () => {
  using opened = groupOf("dgram", 5);
  using client = openClient();
  const { group, sockets, cookies } = opened;
  group.steer(byGeneration(cookies));
  group.close(sockets[1]!);
  group.close(sockets[0]!);
  assert.deepEqual(group.members.map(({ cookie }) => cookies.indexOf(cookie)), [3, 4, 2]);
  for (const tag of [3, 4, 4, 5, 5, 5]) sendTo(client, group.address, tag);
  assert.deepEqual(countsAt(sockets.slice(2)), [1, 2, 3]);
  // A plan that names a member that has left still steers; the kernel's hash chooses for that one.
  sendTo(client, group.address, 1);
  assert.deepEqual(countsAt(sockets.slice(2)).toSorted(), [0, 0, 1]);
});

test("ReuseportGroup without a plan for it would send to the wrong member after one has left", () => {
  using opened = groupOf("dgram", 3);
  using client = openClient();
  const { group, sockets } = opened;
  attachToGroup(runtime, sockets[0]!.number, assemble(everythingTo(0)));
  sockets[0]![Symbol.dispose]();
  sendTo(client, group.address, 1);
  assert.deepEqual(countsAt(sockets.slice(1)), [0, 1]);
});

test("ReuseportGroup changes nobody's slot when a spare member joins before one leaves", () => {
  using opened = groupOf("dgram", 3);
  using client = openClient();
  const { group, sockets, cookies } = opened;
  group.steer(byGeneration(cookies));
  using spare = group.open();
  sockets[0]![Symbol.dispose]();
  // The program of before is right for everybody else.
  for (const tag of [2, 3, 3]) sendTo(client, group.address, tag);
  assert.deepEqual(countsAt([spare, ...sockets.slice(1)]), [0, 1, 2]);
  group.left(cookies[0]!);
  assert.deepEqual(group.members.map(({ cookie }) => cookies.indexOf(cookie)), [-1, 1, 2]);
});

test("ReuseportGroup.close keeps a member in its slot while another copy is open", () => {
  using opened = groupOf("dgram", 3);
  using client = openClient();
  const { group, sockets, cookies } = opened;
  group.steer(byGeneration(cookies));
  using copy = new OwnedDescriptor(runtime, duplicate(runtime, sockets[0]!.number));
  group.close(sockets[0]!);
  assert.deepEqual(group.members.map(({ cookie }) => cookie), cookies);
  for (const tag of [1, 2, 3]) sendTo(client, group.address, tag);
  assert.deepEqual(countsAt([copy, ...sockets.slice(1)]), [1, 1, 1]);
  copy[Symbol.dispose]();
  group.left(cookies[0]!);
  for (const tag of [2, 2, 3]) sendTo(client, group.address, tag);
  assert.deepEqual(countsAt(sockets.slice(1)), [2, 1]);
});

test("ReuseportGroup.check throws ERR_TAKEOVER_STATE when somebody joined or left, and refresh takes it up", async () => {
  using opened = groupOf("dgram", 4);
  using client = openClient();
  const { group, sockets, cookies } = opened;
  group.steer(byGeneration(cookies));
  group.check();
  using other = groupOf("dgram", 1, group.address);
  for (const index of [2, 0]) sockets[index]![Symbol.dispose]();
  assert.deepEqual(group.changes(), { joined: other.cookies, left: [cookies[0], cookies[2]] });
  assert.throws(() => group.check(), {
    ...takeoverError("ERR_TAKEOVER_STATE"),
    message: /expected its 4 members, 1 more have joined and 2 have left/,
  });
  await group.refresh(50);
  // 0 1 2 3 4 -> 0 1 4 3 -> 3 1 4: the stranger is the last.
  assert.deepEqual(group.members.map(({ cookie }) => cookies.indexOf(cookie)), [3, 1, -1]);
  assert.deepEqual(group.members[2], { cookie: other.cookies[0], descriptor: -1 });
  group.check();
  datagramsAt(other.sockets[0]!);
  for (const tag of [2, 4, 4]) sendTo(client, group.address, tag);
  assert.deepEqual(countsAt([sockets[1]!, sockets[3]!, other.sockets[0]!]), [1, 2, 0]);
});

test("ReuseportGroup.refresh finds the order of datagram sockets and listeners, and the application sees nothing", async () => {
  for (const type of ["dgram", "stream"] as const) {
    for (const address of [everywhere, inet6]) {
      using opened = groupOf(type, 6, address);
      const { sockets, cookies } = opened;
      for (const index of [1, 4]) sockets[index]![Symbol.dispose]();
      const left = [0, 2, 3, 5].map((index) => sockets[index]!);
      const group = new ReuseportGroup(runtime, left.map(({ number }) => number));
      await group.refresh();
      // 0 1 2 3 4 5 -> 0 5 2 3 4 -> 0 5 2 3
      assert.deepEqual(group.members.map(({ cookie }) => cookies.indexOf(cookie)), [0, 5, 2, 3]);
      if (type === "dgram") assert.deepEqual(countsAt(left), [0, 0, 0, 0]);
      else assert.deepEqual(left.map(({ number }) => queuedCount(number)), [0, 0, 0, 0]);
      assert.ok(left.every(({ number }) => !hasFilter(runtime, number)));
    }
  }
});

test("ReuseportGroup.refresh leaves datagrams that come meanwhile where the plan sends them", async () => {
  using opened = groupOf("dgram", 3);
  using client = openClient();
  const { group, sockets, cookies } = opened;
  group.steer(byGeneration(cookies));
  let [isDone, sentCount] = [false, 0];
  const refreshed = group.refresh().finally(() => isDone = true);
  for (; !isDone || sentCount === 0; sentCount++) {
    sendTo(client, group.address, 1 + sentCount % 3, 5, 5);
    await new Promise((resolve) => setTimeout(resolve));
  }
  await refreshed;
  const found = sockets.map(datagramsAt);
  assert.equal(found.flat().length, sentCount);
  for (const [index, datagrams] of found.entries()) assert.ok(datagrams.every(([tag]) => tag === index + 1));
});

test("ReuseportGroup.refresh throws ERR_TAKEOVER_STATE when a member has a filter of its own, and leaves it", async () => {
  using opened = groupOf("dgram", 2);
  using client = openClient();
  const { group, sockets, cookies } = opened;
  group.steer(byGeneration(cookies));
  attachFilter(runtime, sockets[1]!.number, assemble([load(1, 8), answer("a")]));
  await assert.rejects(group.refresh(), { ...takeoverError("ERR_TAKEOVER_STATE"), message: /has a filter of its own/ });
  assert.ok(hasFilter(runtime, sockets[1]!.number));
  detachFilter(runtime, sockets[1]!.number);
  for (const tag of [1, 2, 2]) sendTo(client, group.address, tag);
  assert.deepEqual(countsAt(sockets), [1, 2]);
});

test("ReuseportGroup.release leaves the choice to the kernel, as an answer does that is no slot", () => {
  using opened = groupOf("dgram", 4);
  const { group, sockets } = opened;
  const spread = () => {
    for (let count = 0; count < 60; count++) {
      using client = openClient();
      sendTo(client, group.address, 1);
    }
    return countsAt(sockets).filter((count) => count > 0).length;
  };
  group.steer(() => everythingTo(2));
  assert.equal(spread(), 1);
  group.steer(() => everythingTo(noSlot));
  assert.ok(spread() > 1);
  group.steer(() => everythingTo(2));
  group.release();
  assert.ok(spread() > 1);
  detachFromGroup(runtime, sockets[0]!.number);
});

test("attachToGroup throws ERR_TAKEOVER_UNSUPPORTED for a program that the kernel refuses, and traffic goes on", () => {
  using opened = groupOf("dgram", 2);
  using client = openClient();
  const { group, sockets } = opened;
  group.steer(() => everythingTo(1));
  const refused = [{ code: 0xffff, jt: 0, jf: 0, k: 0 }, ...assemble([answer(0)])];
  assert.throws(() => attachToGroup(runtime, sockets[0]!.number, refused), {
    ...takeoverError("ERR_TAKEOVER_UNSUPPORTED"),
    message: /^Cannot give the socket \d+ a BPF program of 2 instructions: the kernel refuses it \(EINVAL\); expected/,
  });
  const impossible = () => byTag({ offset: 0, size: 1 }, { slots: new Map([[999, 0]]), otherwise: 0 });
  assert.throws(() => group.steer(impossible), takeoverError("ERR_TAKEOVER_RANGE"));
  assert.throws(() => group.steer((slotOf) => everythingTo(slotOf("nobody"))), takeoverError("ERR_TAKEOVER_STATE"));
  for (let count = 0; count < 20; count++) sendTo(client, group.address, 1);
  assert.deepEqual(countsAt(sockets), [0, 20]);
});

test("attachToGroup throws for a socket of no group, and what is no socket", () => {
  using client = openClient();
  using file = openNull();
  const program = assemble([answer(whole)]);
  assert.throws(() => attachToGroup(runtime, client.number, program), takeoverError("ERR_TAKEOVER_UNSUPPORTED"));
  assert.throws(() => attachToGroup(runtime, file.number, program), { code: "ENOTSOCK" });
  assert.throws(() => attachToGroup(runtime, 1_000_000, program), { code: "EBADF" });
});

test("ReuseportGroup throws ERR_TAKEOVER_DESCRIPTOR for sockets that are no group", () => {
  using one = groupOf("dgram", 2);
  using another = groupOf("dgram", 1);
  using client = openClient();
  const wrong = [[], [client.number], [one.sockets[0]!.number, another.sockets[0]!.number], [1_000_000]];
  for (const numbers of wrong) assert.throws(() => new ReuseportGroup(runtime, numbers), takeoverError("ERR_TAKEOVER_DESCRIPTOR"));
});

test("ReuseportGroup throws ERR_TAKEOVER_CLOSED when this process has none of its members any more", () => {
  using opened = groupOf("dgram", 1);
  const { group, sockets } = opened;
  sockets[0]![Symbol.dispose]();
  assert.throws(() => group.steer(() => everythingTo(0)), takeoverError("ERR_TAKEOVER_CLOSED"));
});

test("openGroup closes what it has opened when the address is taken", () => {
  using opened = groupOf("stream", 1);
  using plain = openClient();
  const taken = localAddress(runtime, plain.number) as InetAddress;
  assert.throws(() => openGroup(runtime, taken, "dgram", 2), { code: "EADDRINUSE" });
  const elsewhere = { ...opened.group.address, hostname: "192.0.2.1" };
  assert.throws(() => openGroup(runtime, elsewhere, "stream", 2), { code: "EADDRNOTAVAIL" });
});

test("listedMembers and halfOpenPairs see one address and port, and nobody else's", () => {
  using opened = groupOf("stream", 3);
  using other = groupOf("stream", 2, { ...opened.group.address, hostname: "127.0.0.2" });
  const { group, cookies } = opened;
  const listed = listedMembers(runtime, group.address, "stream").map(({ cookie }) => cookie);
  assert.deepEqual(listed.toSorted(), cookies.toSorted());
  assert.equal(listedMembers(runtime, other.group.address, "stream").length, 2);
  assert.equal(listedMembers(runtime, group.address, "dgram").length, 0);
  const clients = [...deafConnections(5, group.address), ...connections(3, group.address)];
  assert.equal(halfOpenPairs(runtime, group.address).size, 5);
  disposeAll(clients);
});

test("ReuseportGroup, keepAwayFromOthers, ForwardLink and PinnedSockets work for an ordinary user, who may load no SK_REUSEPORT", asRoot, async () => {
  const found = await runChild(commandFor("steering_user.ts"));
  assert.deepEqual(found, {
    steered: { code: "0,5" },
    refreshed: { code: "1,0" },
    keptAway: { code: "0,10 classic EPERM" },
    forwarded: { code: "1" },
    pinned: { code: "1,1" },
  });
});
