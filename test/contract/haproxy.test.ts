/** Taking HAProxy's listeners from whatever answers, and giving ours to whatever asks. */

import assert from "node:assert/strict";
import { existsSync, renameSync, statSync } from "node:fs";
import type { Bytes } from "../../src/c/bytes.ts";
import { formatAddress } from "../../src/c/sockaddr.ts";
import { type HaproxyOptions, type HaproxySocket, socketsFromHaproxy } from "../../src/foreign/haproxy.ts";
import { encodeInteger, encodeRecord } from "../../src/foreign/haproxy_records.ts";
import { type HaproxyListener, HaproxyService, type HaproxyServiceOptions } from "../../src/foreign/haproxy_service.ts";
import { disposeAll, OwnedDescriptor } from "../../src/sockets/descriptors.ts";
import type { FdChannel } from "../../src/channels/fd_channel.ts";
import { connectChannel, listenChannel } from "../../src/channels/fd_listener.ts";
import { bindListener } from "../../src/sockets/listener.ts";
import { openReadiness } from "../../src/channels/readiness.ts";
import { bindSocket, cookieOf, duplicate, localAddress, openSocket } from "../../src/sockets/socket.ts";
import { TemporaryFolder } from "../unit/children.ts";
import { concat } from "../unit/support.ts";
import { openNull, patienceMs, runtime, sleep, socketPair, takeoverError, test, until } from "./support.ts";

const encoder = new TextEncoder();
const decoder = new TextDecoder();
const empty = encodeRecord({ namespace: "", interface: "" })!;

await openReadiness(runtime);

/** A listener that is told from others by its cookie. */
function tcpListener(): OwnedDescriptor {
  return bindListener(runtime, { family: "inet", hostname: "127.0.0.1", port: 0 }, { port: 0 });
}

/** At names that the kernel picks. */
function unixListeners(count: number): OwnedDescriptor[] {
  return Array.from({ length: count }, () => bindListener(runtime, { family: "unix", path: "" }, { path: "" }));
}

function udpSocket(): OwnedDescriptor {
  const socket = new OwnedDescriptor(runtime, openSocket(runtime, "inet", "dgram"));
  bindSocket(runtime, socket.number, { family: "inet", hostname: "127.0.0.1", port: 0 });
  return socket;
}

function copyOf({ number }: OwnedDescriptor): OwnedDescriptor {
  return new OwnedDescriptor(runtime, duplicate(runtime, number));
}

function whereIs({ number }: OwnedDescriptor): string {
  return formatAddress(localAddress(runtime, number)!);
}

function cookies(sockets: readonly { readonly descriptor: OwnedDescriptor }[]): string[] {
  return sockets.map(({ descriptor }) => cookieOf(runtime, descriptor.number));
}

function closeAll(sockets: readonly HaproxySocket[]): void {
  disposeAll(sockets.map(({ descriptor }) => descriptor));
}

/** A batch's payload when no socket has a namespace or an interface. */
function emptyRecords(count: number): Bytes {
  return concat(...new Array<Uint8Array>(count).fill(empty));
}

type Message = readonly [bytes: Uint8Array, descriptors?: OwnedDescriptor[]];

/** Asks a stats socket that answers the command like that, and hangs up. */
async function askWhere(
  answer: (channel: FdChannel) => Promise<unknown>,
  options: HaproxyOptions = {},
): Promise<HaproxySocket[]> {
  using folder = new TemporaryFolder();
  const path = folder.file("stats");
  using listener = listenChannel(runtime, path);
  const asked = socketsFromHaproxy(runtime, path, { timeoutMs: patienceMs, ...options });
  const failed = asked.catch(() => {});
  {
    using channel = await listener.accept();
    const command = await channel.receive().catch(() => null);
    if (command) assert.equal(decoder.decode(command.bytes), "_getsocks\n");
    await answer(channel).catch(() => {});
    // An error ends the conversation; the answer of a whole one is read first.
    if (!command) await failed;
  }
  return await asked;
}

/** The same, when the answer is bytes and descriptors, one message each. */
function askForMessages(...messages: readonly Message[]): Promise<HaproxySocket[]> {
  return askWhere(async (channel) => {
    for (const [bytes, descriptors] of messages) await channel.send(bytes, descriptors);
  });
}

test("socketsFromHaproxy takes sockets with their names, namespaces and interfaces", async () => {
  using folder = new TemporaryFolder();
  using tcp = tcpListener();
  using unix = bindListener(runtime, { family: "unix", path: folder.file("web.4711.tmp") }, { path: "" });
  using udp = udpSocket();
  const records = concat(empty, encodeRecord({ namespace: "blue", interface: "lo" })!, empty);
  const sockets = await askForMessages([encodeInteger(3)], [records, [tcp, unix, udp]]);
  assert.deepEqual(sockets.map(({ name, namespace, interface: device }) => [name, namespace, device]), [
    [whereIs(tcp), "", ""],
    [`${folder.file("web")} interface lo namespace blue`, "blue", "lo"],
    [`udp@${whereIs(udp)}`, "", ""],
  ]);
  assert.deepEqual(cookies(sockets), cookies([tcp, unix, udp].map((descriptor) => ({ descriptor }))));
  assert.deepEqual(sockets.map(({ identity }) => [identity.type, identity.listening]), [
    ["stream", true],
    ["stream", true],
    ["dgram", false],
  ]);
  closeAll(sockets);
});

test("socketsFromHaproxy takes a socket once, not the stats socket that it asked, and numbers one address", async () => {
  using folder = new TemporaryFolder();
  const path = folder.file("stats");
  using listener = listenChannel(runtime, `${path}.1.tmp`);
  renameSync(`${path}.1.tmp`, path);
  using stats = new OwnedDescriptor(runtime, duplicate(runtime, listener.descriptor));
  const [first, second] = ["1", "2"].map((pid) =>
    bindListener(runtime, { family: "unix", path: folder.file(`web.${pid}.tmp`) }, { path: "" })
  ) as [OwnedDescriptor, OwnedDescriptor];
  using copy = copyOf(first);
  const asked = socketsFromHaproxy(runtime, path, { timeoutMs: patienceMs });
  using channel = await listener.accept();
  await channel.send(encodeInteger(4));
  await channel.send(emptyRecords(4), [first, stats, copy, second]);
  disposeAll([first, second]);
  channel.close();
  const sockets = await asked;
  assert.deepEqual(sockets.map(({ name }) => name), [folder.file("web"), `${folder.file("web")} #2`]);
  closeAll(sockets);
});

test("socketsFromHaproxy takes batches whose bytes come one by one, and answers each", async () => {
  const listeners = unixListeners(260);
  const answers: number[] = [];
  const sockets = await askWhere(async (channel) => {
    for (const byte of encodeInteger(260)) await channel.send(Uint8Array.of(byte));
    for (const batch of [listeners.slice(0, 252), listeners.slice(252)]) {
      const records = emptyRecords(batch.length);
      await channel.send(records.subarray(0, 1), batch);
      for (let at = 1; at < records.length; at += 100) await channel.send(records.subarray(at, at + 100));
      const answer = await channel.receive();
      answers.push(...new Int32Array(answer!.bytes.slice().buffer));
    }
  });
  assert.deepEqual(answers, [0, 252]);
  assert.deepEqual(cookies(sockets), cookies(listeners.map((descriptor) => ({ descriptor }))));
  closeAll(sockets);
  disposeAll(listeners);
});

test("socketsFromHaproxy says ERR_TAKEOVER_NO_LISTENER without an answer, for a count of 0, and for a stats socket alone", async () => {
  const expected = { ...takeoverError("ERR_TAKEOVER_NO_LISTENER"), message: /expose-fd listeners/ };
  await assert.rejects(askForMessages(), expected);
  await assert.rejects(askForMessages([encodeInteger(0)]), expected);
  using folder = new TemporaryFolder();
  using listener = listenChannel(runtime, folder.file("stats"));
  const asked = assert.rejects(socketsFromHaproxy(runtime, folder.file("stats"), { timeoutMs: patienceMs }), expected);
  using channel = await listener.accept();
  await channel.send(encodeInteger(1));
  await channel.send(empty, [listener.descriptor]);
  channel.close();
  await asked;
});

test("socketsFromHaproxy says ERR_TAKEOVER_PROTOCOL for a negative count, text, and bytes that are too many", async () => {
  using socket = tcpListener();
  const expected = takeoverError("ERR_TAKEOVER_PROTOCOL");
  await assert.rejects(askForMessages([encodeInteger(-1)]), expected);
  await assert.rejects(askForMessages([encoder.encode("Unknown command\n")]), { ...expected, message: /"Unkn" …/ });
  await assert.rejects(askForMessages([encodeInteger(1)], [emptyRecords(2), [socket]]), expected);
  await assert.rejects(askForMessages([encodeInteger(1)], [concat(empty, Uint8Array.of(9)), [socket]]), expected);
  await assert.rejects(askForMessages([encodeInteger(1)], [empty, [socket]], [Uint8Array.of(1)]), expected);
});

test("socketsFromHaproxy says ERR_TAKEOVER_LIMIT and ERR_TAKEOVER_NO_ROOM before a socket has come", async () => {
  const two = (channel: FdChannel) => channel.send(encodeInteger(2));
  await assert.rejects(askWhere(two, { limits: { endpointCount: 1 } }), takeoverError("ERR_TAKEOVER_LIMIT"));
  await assert.rejects(askWhere(two, { limits: { spareCount: 2 ** 30 } }), takeoverError("ERR_TAKEOVER_NO_ROOM"));
});

test("socketsFromHaproxy says ERR_TAKEOVER_SURPLUS for more sockets than announced, in a batch or after the last", async () => {
  using socket = tcpListener();
  const expected = takeoverError("ERR_TAKEOVER_SURPLUS");
  await assert.rejects(askForMessages([encodeInteger(1)], [emptyRecords(2), [socket, socket]]), expected);
  await assert.rejects(askForMessages([encodeInteger(1)], [empty, [socket]], [empty, [socket]]), expected);
  await assert.rejects(askForMessages([encodeInteger(1), [socket]]), expected);
});

test("socketsFromHaproxy says ERR_TAKEOVER_MISSING for a record without a socket", async () => {
  using socket = tcpListener();
  const expected = takeoverError("ERR_TAKEOVER_MISSING");
  await assert.rejects(askForMessages([encodeInteger(3)], [emptyRecords(3), [socket, socket]]), expected);
  await assert.rejects(askForMessages([encodeInteger(1)], [empty]), expected);
  await assert.rejects(askForMessages([encodeInteger(2)], [empty, [socket]], [Uint8Array.of(0)]), expected);
});

test("socketsFromHaproxy says ERR_TAKEOVER_LOST when the other side hangs up in the middle, wherever", async () => {
  using socket = tcpListener();
  const expected = takeoverError("ERR_TAKEOVER_LOST");
  await assert.rejects(askForMessages([encodeInteger(1).subarray(0, 3)]), expected);
  await assert.rejects(askForMessages([encodeInteger(2)]), expected);
  await assert.rejects(askForMessages([encodeInteger(2)], [empty, [socket]]), expected);
  for (let size = 1; size < empty.length; size++) {
    await assert.rejects(askForMessages([encodeInteger(1)], [empty.subarray(0, size), [socket]]), expected);
  }
});

test("socketsFromHaproxy says ERR_TAKEOVER_DESCRIPTOR for what is no socket, or does not listen", async () => {
  using socket = tcpListener();
  using file = openNull();
  const [left, right] = socketPair();
  for (const other of [file, left]) {
    const asked = askForMessages([encodeInteger(2)], [emptyRecords(2), [socket, other]]);
    await assert.rejects(asked, { ...takeoverError("ERR_TAKEOVER_DESCRIPTOR"), message: /number 2 of 2/ });
  }
  disposeAll([left, right]);
});

test("socketsFromHaproxy waits no longer than timeoutMs, whatever comes meanwhile, and not after an abort", async () => {
  using socket = tcpListener();
  const slow = async (channel: FdChannel) => {
    await channel.send(encodeInteger(300));
    for (;;) {
      await channel.send(empty, [socket]);
      await channel.receive();
      await sleep(5);
    }
  };
  const silent = (channel: FdChannel) => channel.receive();
  await assert.rejects(askWhere(slow, { timeoutMs: 20 }), takeoverError("ERR_TAKEOVER_TIMEOUT"));
  await assert.rejects(askWhere(silent, { timeoutMs: 20 }), takeoverError("ERR_TAKEOVER_TIMEOUT"));
  const controller = new AbortController();
  const reason = new Error("enough");
  const aborting = (channel: FdChannel) => {
    controller.abort(reason);
    return silent(channel);
  };
  await assert.rejects(askWhere(aborting, { signal: controller.signal }), reason);
});

test("socketsFromHaproxy does not mind a last answer that nobody reads, nor a stats socket that stays open", async () => {
  using socket = tcpListener();
  const sockets = await askWhere(async (channel) => {
    await channel.send(encodeInteger(1));
    await channel.send(empty, [socket]);
    await channel.receive();
    await channel.receive();
  });
  assert.equal(sockets.length, 1);
  closeAll(sockets);
});

test("socketsFromHaproxy asks nobody who runs as a user that is not allowed", async () => {
  const stranger = { ...runtime, libc: { ...runtime.libc, geteuid: () => 4_711 } };
  using folder = new TemporaryFolder();
  using _listener = listenChannel(runtime, folder.file("stats"));
  await assert.rejects(socketsFromHaproxy(stranger, folder.file("stats")), takeoverError("ERR_TAKEOVER_USER"));
});

/** Longer than any test waits. */
const forever = { helloMs: 2 * patienceMs, batchMs: 2 * patienceMs };

/** A service on a path of its own, and what it reported. */
class Serving implements Disposable {
  readonly #folder = new TemporaryFolder();
  readonly path: string = this.#folder.file("stats");
  readonly taken: number[] = [];
  readonly refused: { readonly code?: string; readonly message: string }[] = [];
  readonly service: HaproxyService;

  constructor(listeners: () => Iterable<HaproxyListener>, options: HaproxyServiceOptions = {}) {
    this.service = new HaproxyService(runtime, this.path, listeners, {
      onTaken: (count) => this.taken.push(count),
      onRefused: (error) => this.refused.push(error as Error),
      ...options,
    });
  }

  connect(): Promise<FdChannel> {
    return connectChannel(runtime, this.path);
  }

  /** Waits until so many clients got nothing. */
  async refusals(count: number): Promise<(string | undefined)[]> {
    await until(() => this.refused.length >= count, `${count} refusals`);
    return this.refused.map(({ code }) => code);
  }

  [Symbol.dispose](): void {
    this.service.close();
    this.#folder[Symbol.dispose]();
  }
}

test("HaproxyService gives the sockets of the moment with their namespaces to one client after another", async () => {
  const current: HaproxyListener[] = [];
  using serving = new Serving(() => current);
  const ask = () => socketsFromHaproxy(runtime, serving.path, { timeoutMs: patienceMs });
  await assert.rejects(ask(), takeoverError("ERR_TAKEOVER_NO_LISTENER"));
  using first = tcpListener();
  using second = tcpListener();
  current.push({ descriptor: first }, { descriptor: second.number, namespace: "blue", interface: "lo" });
  for (const _ of [1, 2]) {
    const sockets = await ask();
    assert.deepEqual(cookies(sockets), cookies([{ descriptor: first }, { descriptor: second }]));
    assert.deepEqual(sockets.map(({ namespace }) => namespace), ["", "blue"]);
    closeAll(sockets);
  }
  await until(() => serving.taken.length === 3, "all reports");
  assert.deepEqual([serving.taken, serving.refused], [[0, 2, 2], []]);
});

test("HaproxyService gives more than one batch, the next when the one before is answered", async () => {
  const listeners = unixListeners(253);
  using serving = new Serving(() => listeners.map((descriptor) => ({ descriptor })));
  using client = await serving.connect();
  await client.send(encoder.encode("_getsocks\n"));
  using count = await client.receive({ maxBytes: 4 });
  assert.deepEqual(count!.bytes, encodeInteger(253));
  using first = await client.receive();
  assert.deepEqual([first!.fds.length, first!.bytes], [252, emptyRecords(252)]);
  // It would be there at once.
  await assert.rejects(client.receive({ timeoutMs: 20 }), takeoverError("ERR_TAKEOVER_TIMEOUT"));
  await client.send(encodeInteger(0));
  using second = await client.receive();
  assert.deepEqual([second!.fds.length, second!.bytes], [1, empty]);
  assert.deepEqual(serving.taken, []);
  await client.send(encodeInteger(252));
  assert.equal(await client.receive(), null);
  assert.deepEqual(serving.taken, [253]);
  disposeAll(listeners);
});

test("HaproxyService makes a path of mode 0600, and removes it when it is still its own", async () => {
  using serving = new Serving(() => []);
  assert.equal(statSync(serving.path).mode & 0o777, 0o600);
  serving.service.close();
  assert.equal(existsSync(serving.path), false);
  serving.service.close();
  using folder = new TemporaryFolder();
  using renamed = listenChannel(runtime, folder.file("stats.1.tmp"));
  const service = new HaproxyService(runtime, folder.file("stats"), () => []);
  renameSync(folder.file("stats.1.tmp"), folder.file("stats"));
  service.close();
  using client = await connectChannel(runtime, folder.file("stats"));
  using accepted = await renamed.accept();
  assert.equal(client.type, accepted.type);
});

test("HaproxyService answers other commands as HAProxy's command line does, and gives nothing", async () => {
  using socket = tcpListener();
  using serving = new Serving(() => [{ descriptor: socket }]);
  for (const command of ["show info\n", "\n", "_getsocks2\n", "x".repeat(2_000), "_GETSOCKS\n"]) {
    using client = await serving.connect();
    await client.send(encoder.encode(command));
    using answer = await client.receive();
    assert.match(decoder.decode(answer!.bytes), /^Unknown command\. [\s\S]*_getsocks[\s\S]*\n\n$/);
    assert.equal(answer!.fds.length, 0);
  }
  assert.deepEqual(await serving.refusals(5), new Array(5).fill("ERR_TAKEOVER_PROTOCOL"));
  assert.deepEqual(serving.taken, []);
});

test("HaproxyService takes a command in pieces, with the end of a line as on Windows", async () => {
  using socket = tcpListener();
  using serving = new Serving(() => [{ descriptor: socket }]);
  using client = await serving.connect();
  for (const piece of "_getsocks\r\n") await client.send(encoder.encode(piece));
  using count = await client.receive({ maxBytes: 4 });
  assert.deepEqual(count!.bytes, encodeInteger(1));
  using batch = await client.receive();
  assert.equal(batch!.fds.length, 1);
});

test("HaproxyService serves while others say nothing, a byte, or no answer", async () => {
  using socket = tcpListener();
  using serving = new Serving(() => [{ descriptor: socket }], { limits: forever });
  using _silent = await serving.connect();
  using slow = await serving.connect();
  await slow.send(encoder.encode("_"));
  using deaf = await serving.connect();
  await deaf.send(encoder.encode("_getsocks\n"));
  using _count = await deaf.receive({ maxBytes: 4 });
  closeAll(await socketsFromHaproxy(runtime, serving.path, { timeoutMs: patienceMs }));
  await until(() => serving.taken.length === 1, "the report");
  assert.deepEqual(serving.refused, []);
});

test("HaproxyService hangs up on those when helloMs or batchMs is over", async () => {
  using socket = tcpListener();
  using serving = new Serving(() => [{ descriptor: socket }], { limits: { helloMs: 20, batchMs: 20 } });
  using silent = await serving.connect();
  using slow = await serving.connect();
  await slow.send(encoder.encode("_"));
  using deaf = await serving.connect();
  await deaf.send(encoder.encode("_getsocks\n"));
  assert.deepEqual(await serving.refusals(3), new Array(3).fill("ERR_TAKEOVER_TIMEOUT"));
  assert.equal(await silent.receive(), null);
  assert.deepEqual(serving.taken, []);
});

test("HaproxyService hangs up on the oldest of more than pendingCount clients", async () => {
  using socket = tcpListener();
  using serving = new Serving(() => [{ descriptor: socket }], { limits: { pendingCount: 2 } });
  using oldest = await serving.connect();
  using second = await serving.connect();
  using _third = await serving.connect();
  assert.equal(await oldest.receive(), null);
  assert.deepEqual(await serving.refusals(1), ["ERR_TAKEOVER_BUSY"]);
  closeAll(await socketsFromHaproxy(runtime, serving.path, { timeoutMs: patienceMs }));
  assert.equal(await second.receive(), null);
});

test("HaproxyService survives clients that hang up or send descriptors, and reports them", async () => {
  using socket = tcpListener();
  using serving = new Serving(() => [{ descriptor: socket }]);
  (await serving.connect()).close();
  assert.deepEqual(await serving.refusals(1), ["ERR_TAKEOVER_LOST"]);
  using giver = await serving.connect();
  await giver.send(encoder.encode("_getsocks\n"), [socket]);
  assert.equal((await serving.refusals(2))[1], "ERR_TAKEOVER_SURPLUS");
  const leaver = await serving.connect();
  await leaver.send(encoder.encode("_getsocks\n"));
  using _count = await leaver.receive({ maxBytes: 4 });
  leaver.close();
  assert.match((await serving.refusals(3))[2]!, /ERR_TAKEOVER_LOST|ECONNRESET|EPIPE/);
  closeAll(await socketsFromHaproxy(runtime, serving.path, { timeoutMs: patienceMs }));
});

test("HaproxyService gives nothing when one of the sockets cannot be given", async () => {
  using socket = tcpListener();
  const gone = tcpListener();
  gone[Symbol.dispose]();
  using file = openNull();
  const wrong: [HaproxyListener, string][] = [
    [{ descriptor: gone }, "ERR_TAKEOVER_DESCRIPTOR"],
    [{ descriptor: file }, "ERR_TAKEOVER_DESCRIPTOR"],
    [{ descriptor: socket, interface: "i".repeat(16) }, "ERR_TAKEOVER_LIMIT"],
    [{ descriptor: socket, namespace: "n".repeat(256) }, "ERR_TAKEOVER_LIMIT"],
  ];
  for (const [listener, code] of wrong) {
    using serving = new Serving(() => [{ descriptor: socket }, listener]);
    const asked = socketsFromHaproxy(runtime, serving.path, { timeoutMs: patienceMs });
    await assert.rejects(asked, takeoverError("ERR_TAKEOVER_NO_LISTENER"));
    assert.deepEqual(await serving.refusals(1), [code]);
  }
  using serving = new Serving(() => [{ descriptor: socket }, { descriptor: socket }], { limits: { endpointCount: 1 } });
  const asked = socketsFromHaproxy(runtime, serving.path, { timeoutMs: patienceMs });
  await assert.rejects(asked, takeoverError("ERR_TAKEOVER_NO_LISTENER"));
  assert.deepEqual(await serving.refusals(1), ["ERR_TAKEOVER_LIMIT"]);
});

test("HaproxyService answers no user that is not allowed, and answers one that is", async () => {
  using socket = tcpListener();
  const { geteuid } = runtime.libc;
  const libc = runtime.libc as { geteuid: () => number };
  const own = geteuid();
  using serving = new Serving(() => [{ descriptor: socket }]);
  using allowing = new Serving(() => [{ descriptor: socket }], { allowUsers: [own] });
  try {
    libc.geteuid = () => own + 1;
    using client = await serving.connect();
    assert.deepEqual(await serving.refusals(1), ["ERR_TAKEOVER_USER"]);
    assert.equal(await client.receive(), null);
    closeAll(await socketsFromHaproxy(runtime, allowing.path, { timeoutMs: patienceMs, allowUsers: [own] }));
  } finally {
    libc.geteuid = geteuid;
  }
});

test("HaproxyService hangs up on clients when it is closed, and does not report them", async () => {
  using socket = tcpListener();
  using serving = new Serving(() => [{ descriptor: socket }], { limits: forever });
  using silent = await serving.connect();
  using deaf = await serving.connect();
  await deaf.send(encoder.encode("_getsocks\n"));
  using _count = await deaf.receive({ maxBytes: 4 });
  serving.service.close();
  assert.equal(await silent.receive({ timeoutMs: patienceMs }), null);
  await assert.rejects(serving.connect(), { code: "ENOENT" });
  await sleep(20);
  assert.deepEqual(serving.refused, []);
});
