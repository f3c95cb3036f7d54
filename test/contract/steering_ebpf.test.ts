/**
 * BPF_PROG_TYPE_SK_REUSEPORT and `tcp_migrate_req`, where they can be had.
 */

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import type { SystemError } from "../../src/errors.ts";
import { disposeAll, OwnedDescriptor } from "../../src/sockets/descriptors.ts";
import { waitingCount } from "../../src/steering/accept_queue.ts";
import { migratesConnections } from "../../src/steering/reuseport.ts";
import { steerAmong } from "../../src/steering/sk_reuseport.ts";
import { connections, groupOf, lateConnections, outcomes, serve } from "./steering_ends.ts";
import { runtime, test, until } from "./support.ts";

/** Why this process may load no program, or false. */
function whyNotLoaded(): string | false {
  using opened = groupOf("stream", 1);
  try {
    steerAmong(runtime, [opened.sockets[0]!.number]);
    return false;
  } catch (error) {
    return `bpf(2) says ${(error as SystemError).code}`;
  }
}

const whereLoaded = { skip: whyNotLoaded() };

test("steerAmong throws what bpf(2) says to a process that may not load a program", () => {
  const refusing = { ...runtime, libc: { ...runtime.libc, syscall: () => -1 } };
  using opened = groupOf("stream", 1);
  assert.throws(() => steerAmong(refusing, [opened.sockets[0]!.number]), { code: "EPERM", syscall: "bpf" });
});

test("steerAmong throws EBUSY for a listener that another program knows, which goes on", whereLoaded, () => {
  using opened = groupOf("stream", 2);
  const [first, second] = opened.sockets.map(({ number }) => number);
  steerAmong(runtime, [first!]);
  assert.throws(() => steerAmong(runtime, [first!, second!]), { code: "EBUSY" });
  const clients = connections(20, opened.group.address);
  assert.deepEqual([first, second].map((each) => waitingCount(runtime, each!)), [20, 0]);
  disposeAll(clients);
});

test("migratesConnections says what net.ipv4.tcp_migrate_req is", () => {
  const set = readFileSync("/proc/sys/net/ipv4/tcp_migrate_req", "utf8").trim() === "1";
  assert.equal(migratesConnections(runtime), set);
  assert.equal(migratesConnections({ ...runtime, libc: { ...runtime.libc, open: () => -2 } }), false);
});

test("steerAmong sends new connections to some, and what waits at a listener that closes, and what is half open", whereLoaded, async () => {
  using opened = groupOf("stream", 5);
  const { group, sockets } = opened;
  const clients = [...connections(60, group.address), ...lateConnections(30, group.address)];
  steerAmong(runtime, [1, 3].map((index) => sockets[index]!.number));
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
