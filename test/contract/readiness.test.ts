/** Waiting for raw descriptors in the runtime's own event loop. */

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { writeFileSync } from "node:fs";
import { allocate } from "../../src/c/bytes.ts";
import {
  cString,
  disposeAll,
  linkOf,
  openDescriptors,
  OwnedDescriptor,
  readFile,
} from "../../src/sockets/descriptors.ts";
import { isShutDown, stopWaiting, waitReadable, waitWritable } from "../../src/channels/readiness.ts";
import { openPair } from "../../src/sockets/socket.ts";
import { TemporaryFolder } from "../unit/children.ts";
import { commandFor, runChild } from "./fd_children.ts";
import { aborted, pairOf, received, sendRaw, upTo } from "./raw.ts";
import { openNull, patienceMs, runtime, sleep, takeoverError, test } from "./support.ts";

const { abi, libc } = runtime;
const byte = allocate(1);

/** Linux's number of pidfd_open(2), the same on every architecture. */
const SYS_pidfd_open = 434;

/** Pairs of sockets: the ends that are waited for, and those that are written to. */
function pairs(count: number): { ends: OwnedDescriptor[]; others: OwnedDescriptor[] } & Disposable {
  const all = Array.from({ length: count }, () => openPair(runtime));
  return {
    ends: all.map(([end]) => end),
    others: all.map(([, other]) => other),
    [Symbol.dispose]: () => disposeAll(all.flat()),
  };
}

function write({ number }: OwnedDescriptor): void {
  assert.equal(libc.write(number, byte, 1), 1);
}

/** Fills a socket, so that it cannot be written. */
function fill({ number }: OwnedDescriptor): void {
  while (sendRaw(number, new Uint8Array(1_000)) === "sent 1000");
}

/** Entries of every epoll instance of this process. */
function registrationCount(): number {
  return openDescriptors(runtime)
    .filter((number) => linkOf(runtime, number) === "anon_inode:[eventpoll]")
    .map((number) => readFile(runtime, `/proc/self/fdinfo/${number}`).match(/^tfd:/gm)?.length ?? 0)
    .reduce((sum, count) => sum + count, 0);
}

test("waitReadable resolves each of 500 waits once its descriptor is readable, and no other", async () => {
  using pair = pairs(500);
  const before = registrationCount();
  const woken = new Set<number>();
  const waits = pair.ends.map(({ number }, index) => waitReadable(runtime, number).then(() => woken.add(index)));
  await sleep(5);
  const odd = upTo(500).filter((index) => index % 2 === 1);
  for (const index of odd) write(pair.others[index]!);
  await Promise.all(odd.map((index) => waits[index]));
  assert.deepEqual([...woken].toSorted((a, b) => a - b), odd);
  for (const index of upTo(500)) if (index % 2 === 0) write(pair.others[index]!);
  await Promise.all(waits);
  assert.equal(registrationCount(), before);
});

test("waitReadable resolves at once for what is readable already, time after time", async () => {
  using pair = pairs(1);
  write(pair.others[0]!);
  for (const _ of upTo(20)) await waitReadable(runtime, pair.ends[0]!.number, { timeoutMs: patienceMs });
});

test("waitReadable and waitWritable wait for one descriptor at the same time", async () => {
  using pair = pairs(1);
  const [end, other] = [pair.ends[0]!, pair.others[0]!];
  fill(end);
  const order: string[] = [];
  const readable = waitReadable(runtime, end.number).then(() => order.push("readable"));
  const writable = waitWritable(runtime, end.number).then(() => order.push("writable"));
  await sleep(10);
  assert.deepEqual(order, []);
  write(other);
  await readable;
  assert.deepEqual(order, ["readable"]);
  while (libc.read(other.number, allocate(65_536), 65_536) > 0);
  await writable;
  assert.deepEqual(order, ["readable", "writable"]);
});

test("waitReadable wakes everybody who waits for the same descriptor", async () => {
  using pair = pairs(1);
  const { number } = pair.ends[0]!;
  const waits = [1, 2, 3].map(() => waitReadable(runtime, number, { timeoutMs: patienceMs }));
  const late = assert.rejects(waitReadable(runtime, number, { timeoutMs: 5 }), takeoverError("ERR_TAKEOVER_TIMEOUT"));
  await late;
  write(pair.others[0]!);
  await Promise.all(waits);
});

test("waitReadable resolves at the end of a stream, and when the other side is half-closed", async () => {
  using pair = pairs(2);
  const waits = pair.ends.map(({ number }) => waitReadable(runtime, number, { timeoutMs: patienceMs }));
  await sleep(5);
  pair.others[0]![Symbol.dispose]();
  assert.equal(libc.shutdown(pair.others[1]!.number, 1), 0);
  await Promise.all(waits);
});

test("isShutDown tells that the other side writes no more, also when something waits to be read", () => {
  using pair = pairs(1);
  const [end, other] = [pair.ends[0]!, pair.others[0]!];
  write(other);
  assert.equal(isShutDown(runtime, end.number), false);
  other[Symbol.dispose]();
  assert.equal(isShutDown(runtime, end.number), true);
});

test("waitWritable resolves when the other side goes while nothing can be written", async () => {
  using pair = pairs(1);
  fill(pair.ends[0]!);
  const waiting = waitWritable(runtime, pair.ends[0]!.number, { timeoutMs: patienceMs });
  await sleep(5);
  pair.others[0]![Symbol.dispose]();
  await waiting;
});

test("waitReadable resolves when a process ends whose pidfd is waited for", async () => {
  const child = spawn("sh", ["-c", "read line"], { stdio: ["pipe", "ignore", "ignore"] });
  using pidfd = new OwnedDescriptor(runtime, libc.syscall(SYS_pidfd_open, child.pid!, 0, 0, 0));
  assert.ok(pidfd.number >= 0);
  await assert.rejects(waitReadable(runtime, pidfd.number, { timeoutMs: 20 }), takeoverError("ERR_TAKEOVER_TIMEOUT"));
  const ended = new Promise((resolve) => child.once("close", resolve));
  child.stdin.end();
  await waitReadable(runtime, pidfd.number, { timeoutMs: patienceMs });
  await ended;
});

test("stopWaiting ends every wait for its descriptor with ERR_TAKEOVER_CLOSED, and no other", async () => {
  using pair = pairs(2);
  fill(pair.ends[0]!);
  const { number } = pair.ends[0]!;
  const waits = [waitReadable(runtime, number), waitWritable(runtime, number), waitReadable(runtime, number)]
    .map((wait) => assert.rejects(wait, takeoverError("ERR_TAKEOVER_CLOSED")));
  const other = waitReadable(runtime, pair.ends[1]!.number, { timeoutMs: patienceMs });
  await sleep(5);
  stopWaiting(runtime, number);
  pair.ends[0]![Symbol.dispose]();
  await Promise.all(waits);
  write(pair.others[1]!);
  await other;
});

test("waitReadable on a number that was closed and given to another socket waits for that one", async () => {
  using pair = pairs(2);
  const { number } = pair.ends[0]!;
  const first = assert.rejects(waitReadable(runtime, number), takeoverError("ERR_TAKEOVER_CLOSED"));
  await sleep(5);
  using kept = new OwnedDescriptor(runtime, libc.fcntl(number, abi.constants.F_DUPFD_CLOEXEC, 0));
  stopWaiting(runtime, number);
  await first;
  assert.equal(libc.dup3(pair.ends[1]!.number, number, abi.constants.O_CLOEXEC), number);
  write(pair.others[0]!);
  await assert.rejects(waitReadable(runtime, number, { timeoutMs: 20 }), takeoverError("ERR_TAKEOVER_TIMEOUT"));
  await waitReadable(runtime, kept.number, { timeoutMs: patienceMs });
  write(pair.others[1]!);
  await waitReadable(runtime, number, { timeoutMs: patienceMs });
});

test("waitReadable on a number whose socket was closed behind its back waits for the one that has it now", async () => {
  using pair = pairs(2);
  const { number } = pair.ends[0]!;
  const first = waitReadable(runtime, number, { timeoutMs: patienceMs });
  await sleep(5);
  assert.equal(libc.dup3(pair.ends[1]!.number, number, abi.constants.O_CLOEXEC), number);
  const second = waitReadable(runtime, number, { timeoutMs: patienceMs });
  write(pair.others[1]!);
  // To the first it is a false alarm.
  await Promise.all([first, second]);
  await waitReadable(runtime, number, { timeoutMs: patienceMs });
});

test("waitWritable fails with EBADF when its number was closed and a copy is ready, and others wait on", async () => {
  using pair = pairs(2);
  const end = pair.ends[0]!;
  fill(end);
  using copy = new OwnedDescriptor(runtime, libc.fcntl(end.number, abi.constants.F_DUPFD_CLOEXEC, 0));
  const readable = waitReadable(runtime, end.number, { timeoutMs: patienceMs });
  const failing = assert.rejects(waitWritable(runtime, end.number, { timeoutMs: patienceMs }), { code: "EBADF" });
  const other = waitReadable(runtime, pair.ends[1]!.number, { timeoutMs: patienceMs });
  await sleep(5);
  end[Symbol.dispose]();
  write(pair.others[0]!);
  await Promise.all([readable, failing]);
  write(pair.others[1]!);
  await other;
  await waitReadable(runtime, copy.number, { timeoutMs: patienceMs });
});

test("waitReadable throws ERR_TAKEOVER_TIMEOUT, ends with a signal's reason, and leaves no registration", async () => {
  using pair = pairs(1);
  const { number } = pair.ends[0]!;
  const before = registrationCount();
  await assert.rejects(waitReadable(runtime, number, { timeoutMs: 0 }), takeoverError("ERR_TAKEOVER_TIMEOUT"));
  await assert.rejects(waitReadable(runtime, number, { timeoutMs: 10 }), {
    ...takeoverError("ERR_TAKEOVER_TIMEOUT"),
    message: "Cannot go on within 10 ms: expected the descriptor to be readable",
  });
  await assert.rejects(waitReadable(runtime, number, { signal: aborted("before") }), { message: "before" });
  const controller = new AbortController();
  const waiting = assert.rejects(waitReadable(runtime, number, { signal: controller.signal }), {
    message: "meanwhile",
  });
  await sleep(5);
  assert.equal(registrationCount(), before + 1);
  controller.abort(new Error("meanwhile"));
  await waiting;
  assert.equal(registrationCount(), before);
});

test("waitReadable that is a process's first ends when its descriptor is closed, and with its signal", async () => {
  const { closed, aborted, received } = await runChild(commandFor("first_wait.ts"));
  assert.deepEqual([closed!.code, aborted!.message, received!.code], ["ERR_TAKEOVER_CLOSED", "meanwhile", "received"]);
});

test("waitReadable waits for longer than a timer can, when it is told so", async () => {
  using pair = pairs(1);
  const waiting = waitReadable(runtime, pair.ends[0]!.number, { timeoutMs: 2 ** 31 });
  await sleep(20);
  write(pair.others[0]!);
  await waiting;
});

test("waitReadable throws EPERM for a file, which is always ready, and EBADF for what is closed", async () => {
  using folder = new TemporaryFolder();
  writeFileSync(folder.file("file"), "content");
  using file = new OwnedDescriptor(runtime, libc.open(cString(folder.file("file")), abi.constants.O_CLOEXEC, 0));
  using device = openNull();
  const waiting = (number: number) => waitReadable(runtime, number, { timeoutMs: patienceMs });
  await assert.rejects(waiting(file.number), { name: "SystemError", code: "EPERM", syscall: "epoll_ctl" });
  await assert.rejects(waiting(device.number), { name: "SystemError", code: "EPERM" });
  await assert.rejects(waiting(100_000), { name: "SystemError", code: "EBADF" });
  await assert.rejects(waiting(-1), { name: "SystemError", code: "EBADF" });
});

test("FdChannel leaves as many registrations as there were, after thousands of waits", async () => {
  const before = registrationCount();
  {
    using pair = pairOf();
    for (const count of upTo(1_000)) {
      const receiving = received(pair.right);
      await pair.left.send(Uint8Array.of(count & 0xff));
      assert.deepEqual([...(await receiving).bytes], [count & 0xff]);
    }
  }
  assert.equal(registrationCount(), before);
});

test("FdChannel lets timers run while thousands of messages pass that are always there", async () => {
  using pair = pairOf("seqpacket");
  let tickCount = 0;
  let sentCount = 0;
  const timer = setInterval(() => tickCount++, 1);
  while (tickCount < 3) {
    await pair.left.send(Uint8Array.of(1));
    await received(pair.right);
    if (++sentCount === 200_000) break;
  }
  clearInterval(timer);
  assert.ok(tickCount >= 3, `${tickCount} ticks in ${sentCount} messages`);
});

test("FdChannel.receive with no time gives what is there, message after message", async () => {
  using pair = pairOf("seqpacket");
  for (const count of upTo(300)) {
    await pair.left.send(Uint8Array.of(count & 0xff), [], { timeoutMs: 0 });
    const { bytes } = await received(pair.right, { timeoutMs: 0 });
    assert.deepEqual([...bytes], [count & 0xff]);
  }
});

test("FdListener and FdChannel cost no processor time at rest, with waits and without", async () => {
  const { withoutWaits, withWaits } = await runChild(commandFor("at_rest.ts"));
  for (const { share } of [withoutWaits!, withWaits!]) assert.ok((share as number) < 0.05, `${share} of a processor`);
});

test("FdChannel keeps the process alive for a wait, unless keepAlive says no", async () => {
  const child = (...args: readonly string[]): Promise<object> => runChild([...commandFor("keep_alive.ts"), ...args]);
  assert.deepEqual(await Promise.all([child("true"), child("false")]), [{ code: "received" }, { code: "ended" }]);
});

test("FdChannel.receive with keepAlive false lets the process end before its time is over", async () => {
  const found: object = await runChild([...commandFor("keep_alive.ts"), "false", "600000"]);
  assert.deepEqual(found, { code: "ended" });
});
