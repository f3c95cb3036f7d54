/**
 * BPF_PROG_TYPE_SK_REUSEPORT and `tcp_migrate_req`, where they can be had.
 */

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { disposeAll, OwnedDescriptor } from "../../src/sockets/descriptors.ts";
import { waitingCount } from "../../src/steering/accept_queue.ts";
import { migratesConnections } from "../../src/steering/reuseport.ts";
import { canLoadSkReuseport, openMemberMap, steerAmong, steerByMap } from "../../src/steering/sk_reuseport.ts";
import { connections, countsAt, groupOf, lateConnections, openClient, outcomes, sendTo, serve } from "./steering_ends.ts";
import { runtime, takeoverError, test, until } from "./support.ts";

const { isPossible, code } = canLoadSkReuseport(runtime);
const whereLoaded = { skip: isPossible ? false : `bpf(2) says ${code}` };

test("canLoadSkReuseport says why a program cannot be loaded, or that it can", () => {
  assert.equal(isPossible, code === null);
  assert.match(code ?? "EPERM", /^(EPERM|ENOSYS|EINVAL)$/);
});

test("canLoadSkReuseport gives the errno of bpf(2), and openMemberMap throws it", () => {
  const refusing = { ...runtime, libc: { ...runtime.libc, syscall: () => -1 } };
  const { code } = canLoadSkReuseport(refusing);
  assert.match(code ?? "", /^(EPERM|ENOSYS)$/);
  assert.throws(() => openMemberMap(refusing, 1), { code: code! });
});

test("migratesConnections says what net.ipv4.tcp_migrate_req is", () => {
  const set = readFileSync("/proc/sys/net/ipv4/tcp_migrate_req", "utf8").trim() === "1";
  assert.equal(migratesConnections(runtime), set);
  assert.equal(migratesConnections({ ...runtime, libc: { ...runtime.libc, open: () => -2 } }), false);
});

test("steerAmong sends new connections to some, and what waits at a listener that closes, and what is half open", whereLoaded, async () => {
  using opened = groupOf("stream", 5);
  using members = openMemberMap(runtime, 2);
  const { group, sockets } = opened;
  const clients = [...connections(60, group.address), ...lateConnections(30, group.address)];
  for (const [key, index] of [1, 3].entries()) members.set(key, sockets[index]!.number);
  steerAmong(runtime, sockets[0]!.number, members, 2);
  const before = sockets.map(({ number }) => waitingCount(runtime, number));
  clients.push(...connections(60, group.address));
  const after = sockets.map(({ number }, index) => waitingCount(runtime, number) - before[index]!);
  assert.deepEqual([0, 2, 4].map((index) => after[index]), [0, 0, 0]);
  assert.ok(after[1]! > 0 && after[3]! > 0, JSON.stringify(after));
  for (const index of [2, 0, 4]) sockets[index]![Symbol.dispose]();
  let answeredCount = 0;
  await until(() => {
    for (const index of [1, 3]) {
      for (;;) {
        const connection = runtime.libc.accept4(sockets[index]!.number, null, null, 0o2004000);
        if (connection < 0) break;
        serve(new OwnedDescriptor(runtime, connection));
      }
    }
    const found = outcomes(clients);
    assert.equal(found["ECONNRESET"], undefined);
    answeredCount += found["answered"] ?? 0;
    return answeredCount === clients.length;
  }, () => `${clients.length} clients to be answered, ${answeredCount} were`);
  disposeAll(clients);
});

test("steerByMap chooses by keys of our own, whatever the kernel's order becomes", whereLoaded, () => {
  using opened = groupOf("dgram", 4);
  using client = openClient();
  using members = openMemberMap(runtime, 256);
  const { group, sockets } = opened;
  for (const [index, { number }] of sockets.entries()) members.set(10 + index, number);
  steerByMap(runtime, sockets[0]!.number, members, { offset: 1, size: 2, mask: 0xff }, 13);
  const send = (...tags: readonly number[]) => {
    for (const tag of tags) sendTo(client, group.address, 9, 7, tag);
  };
  send(10, 11, 11, 12, 12, 12, 13, 200);
  sendTo(client, group.address, 1);
  assert.deepEqual(countsAt(sockets), [1, 2, 3, 3]);
  sockets[0]![Symbol.dispose]();
  send(11, 12, 12, 13, 13, 13, 10);
  assert.deepEqual(countsAt(sockets.slice(1)), [1, 2, 4]);
});

test("openMemberMap throws ERR_TAKEOVER_RANGE for no keys, and for more than a group has members", () => {
  for (const count of [0, 65_536, 1.5]) assert.throws(() => openMemberMap(runtime, count), takeoverError("ERR_TAKEOVER_RANGE"));
});
