/** Opening channels: listening, connecting, binding, wrapping, pairs. */

import assert from "node:assert/strict";
import { existsSync, mkdirSync, rmdirSync, rmSync, statSync, writeFileSync } from "node:fs";
import net from "node:net";
import process from "node:process";
import { disposeAll } from "../../src/sockets/descriptors.ts";
import type { FdChannel } from "../../src/channels/fd_channel.ts";
import {
  bindChannel,
  channelPair,
  connectChannel,
  type FdListener,
  listenChannel,
  wrapChannel,
} from "../../src/channels/fd_listener.ts";
import { openPair } from "../../src/sockets/socket.ts";
import { TemporaryFolder } from "../unit/children.ts";
import { aborted, cookie, numbered, numbersIn, received, upTo } from "./raw.ts";
import { openNull, patienceMs, runtime, sleep, takeoverError, test, until } from "./support.ts";

const { abi, libc } = runtime;
const { constants } = abi;
const word = new TextEncoder().encode("word");
const own = { pid: libc.getpid(), uid: libc.geteuid(), gid: libc.getegid() };

/** A descriptor from a client to the accepted channel, and one back. */
async function passesBothWays(client: FdChannel, channel: FdChannel): Promise<void> {
  const sent = numbered(2);
  await client.send(word, sent.slice(0, 1));
  await channel.send(word, sent.slice(1));
  disposeAll(sent);
  assert.deepEqual(numbersIn((await received(channel)).fds), [0]);
  assert.deepEqual(numbersIn((await received(client)).fds), [1]);
}

test("listenChannel accepts streams and packets that connectChannel makes", async () => {
  using folder = new TemporaryFolder();
  for (const type of ["stream", "seqpacket"] as const) {
    using listener = listenChannel(runtime, folder.file(type), { type });
    using client = await connectChannel(runtime, folder.file(type), { type });
    using channel = await listener.accept();
    assert.deepEqual([client.type, channel.type], [type, type]);
    await passesBothWays(client, channel);
  }
});

test("listenChannel takes an abstract name, of which no path remains", async () => {
  const name = `\0takeover-test-${own.pid}`;
  using listener = listenChannel(runtime, name);
  using client = await connectChannel(runtime, name);
  using channel = await listener.accept();
  await passesBothWays(client, channel);
});

test("listenChannel, connectChannel and accept make non-blocking, close-on-exec sockets", async () => {
  using folder = new TemporaryFolder();
  using listener = listenChannel(runtime, folder.file("x"));
  using client = await connectChannel(runtime, folder.file("x"));
  using channel = await listener.accept();
  for (const { descriptor } of [listener, client, channel]) {
    assert.ok(libc.fcntl(descriptor, constants.F_GETFL, 0) & constants.O_NONBLOCK);
    assert.equal(libc.fcntl(descriptor, constants.F_GETFD, 0), constants.FD_CLOEXEC);
  }
});

test("listenChannel gives its path the mode of the application, whatever the umask", () => {
  using folder = new TemporaryFolder();
  for (const [mode, umask] of [[0o600, 0o022], [0o666, 0o077]] as const) {
    const before = process.umask(umask);
    try {
      using _listener = listenChannel(runtime, folder.file("x"), { mode });
      assert.equal(statSync(folder.file("x")).mode & 0o777, mode);
    } finally {
      process.umask(before);
    }
  }
});

test("listenChannel takes a path over at which nobody listens, when it is told to", async () => {
  using folder = new TemporaryFolder();
  leaveStale(folder.file("x"));
  assert.throws(() => listenChannel(runtime, folder.file("x")), takeoverError("ERR_TAKEOVER_PATH_STALE"));
  using listener = listenChannel(runtime, folder.file("x"), { replaceStale: true });
  using _client = await connectChannel(runtime, folder.file("x"));
  using _channel = await listener.accept();
});

test("listenChannel does not take a path over at which somebody listens", async () => {
  using folder = new TemporaryFolder();
  using listener = listenChannel(runtime, folder.file("x"));
  for (const replaceStale of [false, true]) {
    assert.throws(() => listenChannel(runtime, folder.file("x"), { replaceStale }), { code: "EADDRINUSE" });
    assert.throws(() => bindChannel(runtime, folder.file("x"), { replaceStale }), { code: "EADDRINUSE" });
  }
  assert.equal(existsSync(folder.file("x")), true);
  // Each attempt looked whether somebody listens: a connection that has ended.
  for (const _ of [1, 2]) {
    using probe = await listener.accept();
    assert.equal(await probe.receive({ timeoutMs: patienceMs }), null);
  }
  using client = await connectChannel(runtime, folder.file("x"));
  using channel = await listener.accept();
  await passesBothWays(client, channel);
});

/** A socket that is left at a path, as after a crash. */
function leaveStale(path: string): void {
  bindChannel(runtime, path).close();
  assert.ok(existsSync(path));
}

test("FdListener.close removes the path, and the channels that were accepted stay", async () => {
  using folder = new TemporaryFolder();
  const listener = listenChannel(runtime, folder.file("x"));
  using client = await connectChannel(runtime, folder.file("x"));
  using channel = await listener.accept();
  listener.close();
  listener.close();
  assert.deepEqual([existsSync(folder.file("x")), listener.descriptor], [false, -1]);
  await passesBothWays(client, channel);
  await assert.rejects(listener.accept(), takeoverError("ERR_TAKEOVER_CLOSED"));
});

test("FdListener.close leaves a path that somebody else has bound meanwhile", async () => {
  using folder = new TemporaryFolder();
  const listener = listenChannel(runtime, folder.file("x"));
  rmSync(folder.file("x"));
  using _other = listenChannel(runtime, folder.file("x"));
  listener.close();
  using _client = await connectChannel(runtime, folder.file("x"));
});

test("FdListener.close closes its socket where a file has the place of its folder", () => {
  using folder = new TemporaryFolder();
  mkdirSync(folder.file("run"));
  const listener = listenChannel(runtime, folder.file("run/x"));
  rmSync(folder.file("run/x"));
  rmdirSync(folder.file("run"));
  writeFileSync(folder.file("run"), "");
  listener.close();
  assert.deepEqual([listener.descriptor, existsSync(folder.file("run"))], [-1, true]);
});

/** A listener in whose queue so many connections wait. */
async function withQueue(count: number, body: (listener: FdListener) => Promise<void>): Promise<void> {
  using folder = new TemporaryFolder();
  using listener = listenChannel(runtime, folder.file("x"));
  const clients: FdChannel[] = [];
  try {
    for (const _ of upTo(count)) clients.push(await connectChannel(runtime, folder.file("x")));
    await body(listener);
  } finally {
    for (const client of clients) client.close();
  }
}

test("FdListener lets the event loop turn while its queue is never empty", () =>
  withQueue(100, async (listener) => {
    let isDue = false;
    setTimeout(() => isDue = true);
    for (const start = performance.now(); performance.now() - start < 5;);
    let count = 0;
    for (; count < 100 && !isDue; count++) (await listener.accept()).close();
    assert.ok(isDue, "100 connections were accepted before a timer that was due");
  }));

test("FdListener.accept with no time gives each connection that waits", () =>
  withQueue(100, async (listener) => {
    for (const _ of upTo(100)) (await listener.accept({ timeoutMs: 0 })).close();
    await assert.rejects(listener.accept({ timeoutMs: 0 }), takeoverError("ERR_TAKEOVER_TIMEOUT"));
  }));

test("FdListener iterates over connections until it is closed", async () => {
  using folder = new TemporaryFolder();
  const listener = listenChannel(runtime, folder.file("x"));
  const clients = [await connectChannel(runtime, folder.file("x"))];
  let count = 0;
  for await (const channel of listener) {
    channel.close();
    if (++count === 3) setTimeout(() => listener.close(), 5);
    else clients.push(await connectChannel(runtime, folder.file("x")));
  }
  for (const client of clients) client.close();
  assert.equal(count, 3);
});

test("FdListener.accept gives connections that wait at the same time one each", async () => {
  using folder = new TemporaryFolder();
  using listener = listenChannel(runtime, folder.file("x"));
  const accepting = Array.from({ length: 5 }, () => listener.accept({ timeoutMs: patienceMs }));
  const clients: FdChannel[] = [];
  for (const _ of accepting) clients.push(await connectChannel(runtime, folder.file("x")));
  const channels = await Promise.all(accepting);
  assert.equal(new Set(channels.map(({ descriptor }) => descriptor)).size, 5);
  for (const channel of [...clients, ...channels]) channel.close();
});

test("FdListener.accept throws ERR_TAKEOVER_TIMEOUT when nobody connects", async () => {
  using folder = new TemporaryFolder();
  using listener = listenChannel(runtime, folder.file("x"));
  await assert.rejects(listener.accept({ timeoutMs: 20 }), takeoverError("ERR_TAKEOVER_TIMEOUT"));
  await assert.rejects(listener.accept({ timeoutMs: 0 }), takeoverError("ERR_TAKEOVER_TIMEOUT"));
});

test("FdListener.accept ends with the signal's reason before and while it waits, and loses nothing", async () => {
  using folder = new TemporaryFolder();
  using listener = listenChannel(runtime, folder.file("x"));
  using _client = await connectChannel(runtime, folder.file("x"));
  await assert.rejects(listener.accept({ signal: aborted("before") }), { message: "before" });
  using _channel = await listener.accept();
  const controller = new AbortController();
  const accepting = assert.rejects(listener.accept({ signal: controller.signal }), { message: "while it waits" });
  await sleep(5);
  controller.abort(new Error("while it waits"));
  await accepting;
});

test("FdListener.close ends accepts that wait with ERR_TAKEOVER_CLOSED", async () => {
  using folder = new TemporaryFolder();
  using listener = listenChannel(runtime, folder.file("x"));
  const waits = [1, 2].map(() => assert.rejects(listener.accept(), takeoverError("ERR_TAKEOVER_CLOSED")));
  await sleep(5);
  listener.close();
  await Promise.all(waits);
});

/** A listener whose accept queue is full, and the connections in it. */
async function withFullQueue(body: (path: string, listener: FdListener) => Promise<void>): Promise<void> {
  using folder = new TemporaryFolder();
  using listener = listenChannel(runtime, folder.file("x"), { backlog: 0 });
  using _queued = await connectChannel(runtime, folder.file("x"));
  await body(folder.file("x"), listener);
}

test("connectChannel waits for room in the accept queue", () =>
  withFullQueue(async (path, listener) => {
    const connecting = connectChannel(runtime, path, { timeoutMs: patienceMs });
    await sleep(10);
    using _first = await listener.accept();
    using client = await connecting;
    using channel = await listener.accept();
    await passesBothWays(client, channel);
  }));

test("connectChannel throws ERR_TAKEOVER_TIMEOUT when the accept queue stays full, and closes its socket", () =>
  withFullQueue(async (path) => {
    const expected = {
      ...takeoverError("ERR_TAKEOVER_TIMEOUT"),
      message: /within (20|0) ms: its accept queue is full/,
    };
    await assert.rejects(connectChannel(runtime, path, { timeoutMs: 20 }), expected);
    await assert.rejects(connectChannel(runtime, path, { timeoutMs: 0 }), expected);
  }));

test("connectChannel ends with the signal's reason before it begins and while it waits", () =>
  withFullQueue(async (path, listener) => {
    const controller = new AbortController();
    const connecting = connectChannel(runtime, path, { signal: controller.signal });
    const ended = assert.rejects(connecting, { message: "while it waits" });
    await sleep(5);
    controller.abort(new Error("while it waits"));
    await ended;
    using _channel = await listener.accept();
    const signal = aborted("before");
    await assert.rejects(connectChannel(runtime, path, { signal }), { message: "before" });
  }));

test("bindChannel receives from many senders, and leaves its path when it is closed", async () => {
  using folder = new TemporaryFolder();
  const receiver = bindChannel(runtime, folder.file("x"), { mode: 0o600, passCredentials: true });
  assert.equal(statSync(folder.file("x")).mode & 0o777, 0o600);
  using file = openNull();
  for (const byte of [1, 2, 3]) {
    using sender = await connectChannel(runtime, folder.file("x"), { type: "dgram" });
    await sender.send(Uint8Array.of(byte), [file]);
  }
  for (const byte of [1, 2, 3]) {
    using message = await received(receiver);
    assert.deepEqual([[...message.bytes], message.fds.length, message.credentials], [[byte], 1, own]);
  }
  receiver.close();
  assert.ok(existsSync(folder.file("x")));
  using _next = bindChannel(runtime, folder.file("x"), { replaceStale: true });
});

test("wrapChannel takes every type of Unix socket, and makes it non-blocking and close-on-exec", async () => {
  for (const type of ["stream", "seqpacket", "dgram"] as const) {
    const [left, right] = openPair(runtime, type);
    for (const { number } of [left, right]) {
      assert.equal(libc.fcntl(number, constants.F_SETFL, 0), 0);
      assert.equal(libc.fcntl(number, constants.F_SETFD, 0), 0);
    }
    const before = cookie(left.number);
    using byNumber = wrapChannel(runtime, left.take());
    using owned = wrapChannel(runtime, right, { passCredentials: true });
    assert.deepEqual([byNumber.type, owned.type, right.number], [type, type, -1]);
    assert.equal(cookie(byNumber.descriptor), before);
    for (const { descriptor } of [byNumber, owned]) {
      assert.ok(libc.fcntl(descriptor, constants.F_GETFL, 0) & constants.O_NONBLOCK);
      assert.equal(libc.fcntl(descriptor, constants.F_GETFD, 0), constants.FD_CLOEXEC);
    }
    await byNumber.send(word);
    assert.deepEqual((await received(owned)).credentials, own);
  }
});

test("channelPair gives two ends that pass descriptors both ways", async () => {
  const [left, right] = channelPair(runtime);
  using _left = left;
  using _right = right;
  await passesBothWays(left, right);
});

test("A listener's connections of the runtime's own net.connect are channels as others are", async () => {
  using folder = new TemporaryFolder();
  using listener = listenChannel(runtime, folder.file("x"));
  const socket = net.connect(folder.file("x"));
  let answer = "";
  socket.on("data", (bytes) => answer += bytes).write("word");
  using channel = await listener.accept({ timeoutMs: patienceMs });
  assert.deepEqual([...(await received(channel)).bytes], [...word]);
  using file = openNull();
  await channel.send(word, [file]);
  await until(() => answer === "word", "the bytes, whose descriptors a runtime's own read drops");
  socket.destroy();
  assert.equal(await channel.receive({ timeoutMs: patienceMs }), null);
});
