/** Connections that the application speaks on: stopped, put back, taken out and put in again, without a byte lost or doubled. */

import assert from "node:assert/strict";
import { once } from "node:events";
import net from "node:net";
import process from "node:process";
import tls from "node:tls";
import type { Frozen, Json } from "../../src/connections/movable.ts";
import { type Moved, RawConnections, type Served } from "../../src/connections/raw.ts";
import { TakeoverError } from "../../src/errors.ts";
import { disposeAll, linkOf, OwnedDescriptor } from "../../src/sockets/descriptors.ts";
import { cookieOf, duplicate } from "../../src/sockets/socket.ts";
import { registrationCount } from "../support/proc.ts";
import { bunSocket, denoConn, type End, nodeSocket, rawPair, rawRead, rawState, rawWrite } from "./ends.ts";
import { openNull } from "./pair.ts";
import { onBun, onDeno, runtime, sleep, test, until } from "./support.ts";

/** What the application says, as a test wants it. */
interface Script extends Partial<Served> {
  /** Called when a connection is served. */
  served?(connection: net.Socket, moved: Moved | null): void;
}

const empty = new Uint8Array(0);
const text = (bytes: Uint8Array | undefined) => new TextDecoder().decode(bytes ?? empty);

/** Connections of one name, and what became of them. */
function serving<C = net.Socket>(script: Script = {}, open?: (descriptor: OwnedDescriptor) => C | Promise<C>) {
  const errors: unknown[] = [];
  const came: { connection: C; moved: Moved | null }[] = [];
  const log: string[] = [];
  const raw = new RawConnections<C>(runtime, "web", {
    serve(connection, moved) {
      came.push({ connection, moved });
      script.served?.(connection as unknown as net.Socket, moved);
      return {
        leave: () => script.leave ? script.leave() : {},
        left: () => (log.push("left"), script.left?.()),
        stayed: () => (log.push("stayed"), script.stayed?.()),
      };
    },
    ...open && { open },
  }, (error) => void errors.push(error));
  return { raw, errors, came, log };
}

/** A `net.Socket` of this process, and its other end, which only libc touches. */
function socketOver(family: "inet" | "unix" = "inet"): { socket: net.Socket; peer: OwnedDescriptor; cookie: string } {
  const [peer, ours] = rawPair(family);
  const cookie = cookieOf(runtime, ours.number);
  const socket = runtime.openSocket(ours.take(), { writable: true, allowHalfOpen: true }) as net.Socket;
  socket.on("error", () => {});
  return { socket, peer, cookie };
}

/** Freezes the one connection that there is. */
function freeze(raw: RawConnections<never> | RawConnections<net.Socket>): Frozen {
  const frozen = tryToFreeze(raw);
  assert.ok(frozen, "it cannot be frozen");
  return frozen;
}

function tryToFreeze(raw: { ready(limit: number): readonly { freeze(): Frozen | null }[] }): Frozen | null {
  for (let rounds = 0; rounds < 2; rounds++) {
    const [movable] = raw.ready(1);
    if (movable) return movable.freeze();
  }
  return null;
}

/** From one to the other, as it goes from process to process. */
async function move(from: { ready(limit: number): readonly { freeze(): Frozen | null }[] }, to: Pick<RawConnections<unknown>, "prepare">): Promise<void> {
  const frozen = tryToFreeze(from)!;
  const { cookie, state, unread } = frozen;
  const descriptor = new OwnedDescriptor(runtime, duplicate(runtime, frozen.descriptor));
  const [place] = await to.prepare([{ descriptor, cookie, local: null, peer: null, state, unread }]);
  frozen.leave();
  place!.commit();
}

async function gone(socket: net.Socket): Promise<void> {
  if (!socket.closed) await once(socket, "close");
  // It says that it is closed before it tells everybody.
  await sleep(1);
}

/** What is written while nobody reads is read once, in order. */
async function thaws(family: "inet" | "unix"): Promise<void> {
  const { socket, peer, cookie } = socketOver(family);
  using _peer = peer;
  const { raw, log } = serving();
  raw.add(socket);
  const reading = nodeSocket.read(socket);
  rawWrite(peer, "one ");
  await until(() => reading.text === "one ", "the first bytes");
  for (let round = 0; round < 3; round++) {
    const frozen = freeze(raw);
    assert.deepEqual([frozen.cookie, frozen.unread.length], [cookie, 0]);
    const before = reading.text;
    rawWrite(peer, `${round} `);
    await sleep(20);
    assert.equal(reading.text, before);
    frozen.thaw(null);
    await until(() => reading.text === `${before}${round} `, () => `the bytes once, got ${reading.text}`);
  }
  assert.equal(reading.text, "one 0 1 2 ");
  assert.deepEqual(log, ["stayed", "stayed", "stayed"]);
  assert.equal(rawState(peer), "open");
  socket.destroy();
  await gone(socket);
  assert.equal(raw.size, 0);
}

test("RawConnections thaws a TCP connection, and what came meanwhile is read once, in order", () => thaws("inet"));

test("RawConnections thaws a Unix connection, and what came meanwhile is read once, in order", () => thaws("unix"));

/** The old object ends, the peer notices nothing, the new object reads on. */
async function moves(family: "inet" | "unix"): Promise<void> {
  const registrations = registrationCount(process.pid);
  const { socket, peer } = socketOver(family);
  using _peer = peer;
  const old = serving({ leave: () => ({ state: { count: 7 }, unread: new TextEncoder().encode("half") }) });
  old.raw.add(socket);
  const before = nodeSocket.read(socket);
  rawWrite(peer, "one");
  await until(() => before.text === "one", "the first bytes");
  socket.write("two");
  await until(() => socket.writableLength === 0, "the answer to go out");
  const now = serving();
  await move(old.raw, now.raw);
  await gone(socket);
  rawWrite(peer, " and half");
  const [{ connection, moved }] = now.came as [{ connection: net.Socket; moved: Moved }];
  const after = nodeSocket.read(connection);
  await until(() => after.text === "half and half", () => `both halves, got ${after.text}`);
  connection.write("three");
  let answer = "";
  await until(() => (answer += rawRead(peer)) === "twothree", () => `the answers, got ${answer}`);
  assert.deepEqual([moved.state, moved.unread.length, before.text], [{ count: 7 }, 0, "one"]);
  assert.deepEqual([old.log, old.raw.size, now.raw.size, rawState(peer)], [["left"], 0, 1, "open"]);
  assert.deepEqual([...old.errors, ...now.errors], []);
  old.raw.stop();
  connection.destroy();
  await gone(connection);
  assert.deepEqual([rawState(peer), now.raw.size], ["end", 0]);
  await until(() => registrationCount(process.pid) <= registrations, "the registrations to be gone");
}

test("RawConnections moves a TCP connection, of which the peer sees neither FIN nor RST", () => moves("inet"));

test("RawConnections moves a Unix connection, of which the peer sees no end", () => moves("unix"));

/** A paused socket that has read ahead. */
async function ahead(raw: RawConnections<net.Socket>): Promise<{ socket: net.Socket; peer: OwnedDescriptor }> {
  const { socket, peer } = socketOver();
  raw.add(socket);
  socket.once("data", () => socket.pause());
  rawWrite(peer, "first ");
  await once(socket, "data");
  rawWrite(peer, "ahead ");
  await until(() => socket.readableLength > 0, "the socket to read ahead").catch(() => {});
  return { socket, peer };
}

test("RawConnections sends what a paused net.Socket has read ahead, behind what the program has", async () => {
  const { raw } = serving({ leave: () => ({ unread: new TextEncoder().encode("mine ") }) });
  const { socket, peer } = await ahead(raw);
  using _peer = peer;
  const frozen = freeze(raw);
  rawWrite(peer, "later");
  await sleep(10);
  assert.equal(text(frozen.unread), "mine ahead ");
  frozen.leave();
  raw.stop();
  await gone(socket);
});

test("RawConnections puts back what a paused net.Socket has read ahead, and it is read once, in order", async () => {
  const { raw } = serving();
  const { socket, peer } = await ahead(raw);
  using _peer = peer;
  let read = "";
  socket.on("data", (bytes) => read += bytes);
  socket.pause();
  for (let round = 0; round < 2; round++) {
    const frozen = freeze(raw);
    assert.equal(text(frozen.unread), "ahead ");
    frozen.thaw(null);
    await sleep(10);
    assert.deepEqual([read, socket.isPaused()], ["", true]);
  }
  rawWrite(peer, "later");
  socket.resume();
  await until(() => read === "ahead later", () => `all of it, got ${read}`);
  socket.destroy();
  await gone(socket);
});

test("RawConnections sends a character of which setEncoding has seen a part as the bytes that it was", async () => {
  const { raw } = serving();
  const { socket, peer } = socketOver();
  using _peer = peer;
  socket.setEncoding("utf8");
  raw.add(socket);
  let read = "";
  socket.on("data", (chunk) => read += chunk);
  const bytes = new TextEncoder().encode("a€😀");
  for (let at = 0; at < bytes.length; at++) {
    rawWriteBytes(peer, bytes.subarray(at, at + 1));
    await until(() => socket.bytesRead === at + 1, "a byte");
    const frozen = freeze(raw);
    const rest = bytes.subarray(new TextEncoder().encode(read).length, at + 1);
    assert.deepEqual([...frozen.unread], [...rest], `after ${at + 1} bytes`);
    frozen.thaw(null);
  }
  await until(() => read === "a€😀", () => `the text, got ${read}`);
  socket.destroy();
  await gone(socket);
});

function rawWriteBytes({ number }: OwnedDescriptor, bytes: Uint8Array): void {
  assert.equal(runtime.libc.write(number, bytes.slice(), bytes.length), bytes.length);
}

test("RawConnections sends text that setEncoding has made and nobody has read as the bytes that it was", async () => {
  const { raw } = serving();
  const { socket, peer } = socketOver();
  using _peer = peer;
  socket.setEncoding("utf8");
  raw.add(socket);
  socket.once("data", () => socket.pause());
  rawWrite(peer, "first");
  await once(socket, "data");
  const bytes = new TextEncoder().encode("é😀");
  rawWriteBytes(peer, bytes.subarray(0, 4));
  await until(() => socket.readableLength > 0, "the socket to read ahead");
  const frozen = freeze(raw);
  assert.deepEqual([...frozen.unread], [...bytes.subarray(0, 4)]);
  frozen.thaw(null);
  rawWriteBytes(peer, bytes.subarray(4));
  let read = "";
  socket.on("data", (chunk) => read += chunk);
  socket.resume();
  await until(() => read === "é😀", () => `the text, got ${read}`);
  socket.destroy();
  await gone(socket);
});

test("RawConnections keeps a connection whose leave() throws, says so, and asks again", async () => {
  let count = 0;
  const error = new Error("not now");
  const { raw, errors, log } = serving({
    leave() {
      if (count++ === 0) throw error;
      return {};
    },
  });
  const { socket, peer } = socketOver();
  using _peer = peer;
  raw.add(socket);
  const reading = nodeSocket.read(socket);
  assert.equal(tryToFreeze(raw), null);
  assert.deepEqual([errors.length, (errors[0] as TakeoverError).code, (errors[0] as Error).cause], [1, "ERR_TAKEOVER_STATE", error]);
  rawWrite(peer, "hello");
  await until(() => reading.text === "hello", "it to be read on");
  assert.deepEqual([log, raw.census()], [[], { waiting: 1, staying: {} }]);
  freeze(raw).leave();
  raw.stop();
  await gone(socket);
});

test("RawConnections keeps a connection whose leave() gives null, and asks again", async () => {
  let isReady = false;
  const { raw, log } = serving({ leave: () => isReady ? {} : null });
  const { socket, peer } = socketOver();
  using _peer = peer;
  raw.add(socket);
  const reading = nodeSocket.read(socket);
  for (let round = 0; round < 3; round++) assert.equal(tryToFreeze(raw), null);
  rawWrite(peer, "hello");
  await until(() => reading.text === "hello", "it to be read on");
  assert.deepEqual(log, []);
  isReady = true;
  freeze(raw).thaw(null);
  assert.deepEqual(log, ["stayed"]);
  socket.destroy();
  await gone(socket);
});

test("RawConnections goes on when left() or stayed() throws, and says so", async () => {
  const error = new Error("thrown");
  const script = {
    left() {
      throw error;
    },
    stayed() {
      throw error;
    },
  };
  const { raw, errors } = serving(script);
  const { socket, peer } = socketOver();
  using _peer = peer;
  raw.add(socket);
  freeze(raw).thaw(null);
  freeze(raw).leave();
  raw.stop();
  assert.deepEqual(errors, [error, error]);
  await gone(socket);
});

test("RawConnections keeps a connection whose bytes have not left this process, until they have", async () => {
  const { raw } = serving();
  const { socket, peer } = socketOver();
  using _peer = peer;
  raw.add(socket);
  const size = 8 * 1024 * 1024;
  socket.write(new Uint8Array(size));
  await sleep(20);
  assert.equal(tryToFreeze(raw), null);
  let received = 0;
  await until(() => (received += rawRead(peer).length) === size && socket.writableLength === 0, () => `all bytes, got ${received}`);
  await until(() => {
    const frozen = tryToFreeze(raw);
    frozen?.thaw(null);
    return frozen !== null;
  }, "it to be ready to go");
  socket.destroy();
  await gone(socket);
});

test("RawConnections keeps a connection that leave() has written to, until that has left this process", async () => {
  const size = 8 * 1024 * 1024;
  let isWritten = false;
  const { raw, log } = serving({
    leave() {
      if (!isWritten) socket.write(new Uint8Array(size));
      isWritten = true;
      return {};
    },
  });
  const { socket, peer } = socketOver();
  using _peer = peer;
  raw.add(socket);
  assert.equal(tryToFreeze(raw), null);
  assert.deepEqual(log, ["stayed"]);
  let received = 0;
  await until(() => (received += rawRead(peer).length) === size, () => `all bytes, got ${received}`);
  socket.destroy();
  await gone(socket);
});

test("RawConnections lets TLS stay, and counts it until it closes", async () => {
  const { raw } = serving();
  const { socket, peer } = socketOver();
  using _peer = peer;
  const secure = tls.connect({ socket }).on("error", () => {});
  raw.add(secure);
  const other = socketOver();
  using _other = other.peer;
  raw.add(other.socket);
  assert.equal(tryToFreeze({ ready: () => raw.ready(9).slice(0, 1) }), null);
  assert.deepEqual(raw.census(), { waiting: 1, staying: { tls: 1 } });
  freeze(raw).leave();
  assert.deepEqual(raw.census(), { waiting: 0, staying: { tls: 1 } });
  raw.stop();
  raw.start();
  assert.deepEqual(raw.census(), { waiting: 1, staying: {} });
  secure.destroy();
  socket.destroy();
  await gone(secure);
  assert.deepEqual(raw.census(), { waiting: 0, staying: {} });
  await gone(other.socket);
});

test("RawConnections asks one that was refused only the next successor", async () => {
  const { raw } = serving();
  const { socket, peer } = socketOver();
  using _peer = peer;
  raw.add(socket);
  freeze(raw).thaw(new TakeoverError("ERR_TAKEOVER_ADOPT", "no"), true);
  assert.equal(tryToFreeze(raw), null);
  assert.deepEqual(raw.census(), { waiting: 0, staying: { refused: 1 } });
  raw.stop();
  raw.start();
  freeze(raw).thaw(null);
  socket.destroy();
  await gone(socket);
});

/** The program closes it while it is frozen, and something else gets its number. */
async function survives(use: (frozen: Frozen) => void): Promise<void> {
  const { raw, errors } = serving();
  const { socket, peer } = socketOver();
  using _peer = peer;
  raw.add(socket);
  const frozen = freeze(raw);
  socket.destroy();
  await gone(socket);
  const others: OwnedDescriptor[] = [];
  await until(() => {
    others.push(openNull());
    return others.some(({ number }) => number === frozen.descriptor) || others.length > 20;
  }, "the number");
  use(frozen);
  raw.stop();
  for (const { number } of others) assert.equal(linkOf(runtime, number), "/dev/null");
  disposeAll(others);
  assert.deepEqual([errors, raw.size], [[], 0]);
}

test("RawConnections touches nothing when a connection leaves that the program has closed meanwhile", () =>
  survives((frozen) => frozen.leave()));

test("RawConnections touches nothing when a connection stays that the program has closed meanwhile", () =>
  survives((frozen) => frozen.thaw(null)));

/** Puts one end of a pair in, as it comes from an incumbent. */
async function arrive(
  to: Pick<RawConnections<unknown>, "prepare">,
  descriptor: OwnedDescriptor,
  state: Json,
  unread: Uint8Array = empty,
): Promise<void> {
  const cookie = cookieOf(runtime, descriptor.number);
  const [place] = await to.prepare([{ descriptor, cookie, local: null, peer: null, state, unread }]);
  place!.commit();
}

test("RawConnections gives null as the state where what came has none of the right shape", async () => {
  for (const state of [null, 1, "x", [], { other: 1 }]) {
    const [peer, ours] = rawPair("inet");
    const { raw, came } = serving();
    await arrive(raw, ours, state);
    assert.deepEqual([came[0]!.moved!.state, came[0]!.connection.allowHalfOpen], [null, false]);
    came[0]!.connection.destroy();
    await gone(came[0]!.connection);
    peer[Symbol.dispose]();
  }
});

test("RawConnections moves a connection whose peer has ended its side: the end is read, and the answer goes out", async () => {
  const { socket, peer } = socketOver();
  using _peer = peer;
  const old = serving();
  old.raw.add(socket);
  const before = nodeSocket.read(socket);
  rawWrite(peer, "last");
  runtime.libc.shutdown(peer.number, 1);
  await until(() => before.ended, "the end");
  // Whoever listens later does not hear of the end.
  const after: { text: string; ended: boolean }[] = [];
  const now = serving({ served: (connection) => void after.push(nodeSocket.read(connection)) });
  await move(old.raw, now.raw);
  await gone(socket);
  old.raw.stop();
  const { connection } = now.came[0]!;
  await until(() => after[0]!.ended, "the end once more");
  assert.equal(rawState(peer), "open");
  connection.end("answer");
  let answer = "";
  await until(() => (answer += rawRead(peer)) === "answer", () => `the answer, got ${answer}`);
  await gone(connection);
});

test("RawConnections moves a connection whose own side has ended: it reads on", async () => {
  const { socket, peer } = socketOver();
  using _peer = peer;
  const old = serving();
  old.raw.add(socket);
  nodeSocket.read(socket);
  socket.end("bye");
  let answer = "";
  await until(() => (answer += rawRead(peer)) === "bye" && rawState(peer) === "end", () => `the end, got ${answer}`);
  const now = serving();
  await until(() => tryMove(old.raw, now), "it to go");
  await gone(socket);
  old.raw.stop();
  const { connection } = now.came[0]!;
  const after = nodeSocket.read(connection);
  rawWrite(peer, "more");
  await until(() => after.text === "more", "the bytes");
  connection.destroy();
  await gone(connection);
});

/** Moves it when it can go. */
function tryMove(from: RawConnections<net.Socket>, to: ReturnType<typeof serving<net.Socket>>): boolean {
  const frozen = tryToFreeze(from);
  if (!frozen) return false;
  const descriptor = new OwnedDescriptor(runtime, duplicate(runtime, frozen.descriptor));
  void arrive(to.raw, descriptor, frozen.state, frozen.unread);
  frozen.leave();
  return true;
}

test("RawConnections closes what its open has not taken, or has thrown at, and says why", async () => {
  const boom = new Error("boom");
  for (const open of [() => ({}) as net.Socket, () => { throw boom; }, () => Promise.reject(boom)]) {
    const [peer, ours] = rawPair("inet");
    const { raw, errors } = serving({}, open);
    await arrive(raw, ours, null);
    await until(() => rawState(peer) === "end", "the connection to be closed");
    assert.ok(errors.every((error) => error === boom));
    peer[Symbol.dispose]();
  }
});

test("RawConnections says why a connection that came cannot be served, and the peer sees its end", async () => {
  const boom = new Error("boom");
  const [peer, ours] = rawPair("inet");
  using _peer = peer;
  const { raw, errors, came } = serving({ served: () => { throw boom; } });
  await arrive(raw, ours, null);
  assert.deepEqual(errors, [boom]);
  await until(() => rawState(peer) === "end", "the connection to be closed");
  await gone(came[0]!.connection);
});

/** The runtime's own connections, through `open`: round and round. */
async function goesRound<C>(end: End<C>, open: (descriptor: OwnedDescriptor) => Promise<C>, close: (connection: C) => unknown): Promise<void> {
  const [peer, ours] = rawPair("inet");
  using _peer = peer;
  const state = { state: 1, allowHalfOpen: true };
  const sides = [0, 1, 2].map(() => serving<C>({ leave: () => ({ state: 1 }) }, open));
  await arrive(sides[0]!.raw, ours, state, new TextEncoder().encode("unread"));
  const texts: string[] = [];
  for (const [index, { raw, came }] of sides.entries()) {
    await until(() => came.length === 1, "the connection");
    const { connection, moved } = came[0]!;
    assert.deepEqual([moved!.state, text(moved!.unread)], [1, index === 0 ? "unread" : ""]);
    const reading = end.read(connection);
    rawWrite(peer, `${index} `);
    await until(() => reading.text === `${index} `, () => `the bytes, got ${reading.text}`);
    await end.write(connection, `answer ${index}`);
    let answer = "";
    await until(() => (answer += rawRead(peer)) === `answer ${index}`, () => `the answer, got ${answer}`);
    const frozen = tryToFreeze(raw)!;
    rawWrite(peer, "meanwhile ");
    await sleep(20);
    assert.equal(reading.text, `${index} `);
    frozen.thaw(null);
    await until(() => reading.text === `${index} meanwhile `, () => `the bytes once, got ${reading.text}`);
    texts.push(reading.text);
    const next = sides[index + 1];
    if (!next) {
      raw.delete(connection);
      peer[Symbol.dispose]();
      await until(() => reading.ended, "the end");
      close(connection);
      break;
    }
    await move(raw, next.raw);
    await until(() => reading.ended, "a read that waits to end");
    assert.equal(reading.text, `${index} meanwhile `);
    raw.stop();
    assert.equal(rawState(peer), "open");
  }
  assert.deepEqual(sides.flatMap(({ errors }) => errors), []);
}

onDeno("RawConnections moves a Deno.Conn: a read that waits ends, and the bytes come to the next", async () => {
  const { connectionFrom } = await import("../../runtimes/deno.ts");
  await goesRound(denoConn, (descriptor) => connectionFrom(descriptor), (connection) => connection.close());
});

onDeno("RawConnections closes what it holds when the program closes a Deno.Conn that is frozen", async () => {
  const { connectionFrom } = await import("../../runtimes/deno.ts");
  const [peer, ours] = rawPair("inet");
  using _peer = peer;
  const { raw, came } = serving<Deno.Conn>({}, (descriptor) => connectionFrom(descriptor));
  await arrive(raw, ours, null);
  await until(() => came.length === 1, "the connection");
  const frozen = tryToFreeze(raw)!;
  came[0]!.connection.close();
  frozen.thaw(null);
  await until(() => rawState(peer) === "end", "the end");
});

onBun("RawConnections moves a Bun.Socket", async () => {
  const { connectionFrom } = await import("../../runtimes/bun.ts");
  const open = (descriptor: OwnedDescriptor) => connectionFrom(descriptor, (at) => bunSocket.open(at) as Promise<unknown>);
  await goesRound(bunSocket, open, (socket) => (socket as { end(): void }).end());
});

test("RawConnections lets what is no connection stay", () => {
  const { raw, errors } = serving<object>();
  raw.add({});
  raw.add(net.createServer());
  assert.equal(raw.ready(9).map((movable) => movable.freeze()).every((frozen) => frozen === null), true);
  assert.deepEqual([raw.census(), errors], [{ waiting: 0, staying: { unknown: 2 } }, []]);
});
