/** From native objects back to descriptors: what the peer sees of it, which is nothing. */

import assert from "node:assert/strict";
import { once } from "node:events";
import { existsSync } from "node:fs";
import http from "node:http";
import net from "node:net";
import process from "node:process";
import tls from "node:tls";
import type { SocketAddress } from "../../src/c/sockaddr.ts";
import { adoptConnection, adoptListener } from "../../src/natives/adopt.ts";
import { describe } from "../../src/sockets/describe.ts";
import { detach, type Detached } from "../../src/natives/detach.ts";
import type { OwnedDescriptor } from "../../src/sockets/descriptors.ts";
import { bindListener } from "../../src/sockets/listener.ts";
import { descriptorOf } from "../../src/natives/natives.ts";
import { cookieOf, duplicate, isListening, localAddress } from "../../src/sockets/socket.ts";
import { registrationCount } from "../support/proc.ts";
import { runHere, TemporaryFolder } from "../unit/children.ts";
import {
  bunDatagram,
  bunSocket,
  type DatagramEnd,
  denoConn,
  type End,
  nodeDatagram,
  nodeSocket,
  rawAccepted,
  rawConnection,
  rawDatagram,
  rawListener,
  rawPair,
  rawRead,
  rawSend,
  rawState,
  rawWrite,
} from "./ends.ts";
import { bunListen, bunServe, denoListen, denoServe, type Native, nodeHttp, nodeNet } from "./natives.ts";
import { receiveRaw } from "./raw.ts";
import { eventually, onBun, onDeno, reachable, runtime, sleep, takeoverError, test, until } from "./support.ts";

const { libc } = runtime;

/** A test of what only Node has. */
function onNode(name: string, body: () => Promise<void>): void {
  if (runtime.name === "node") test(name, body);
}

/** A native connection, and its other end, which only libc touches. */
async function connected<T>(end: End<T>): Promise<{ readonly connection: T; readonly peer: OwnedDescriptor }> {
  const { listener, at } = rawListener();
  using _listener = listener;
  const connection = await end.open(at);
  if (connection instanceof net.Socket) await once(connection, "connect");
  return { connection, peer: rawAccepted(listener) };
}

/** Everything up to a length, from the bytes that were detached with the socket and from the socket. */
async function rest({ descriptor, unread }: Detached, size: number): Promise<string> {
  let text = new TextDecoder().decode(unread);
  await until(() => (text += rawRead(descriptor)).length >= size, () => `${size} bytes, got ${text.length}`);
  return text;
}

/** The peer notices nothing, the owner sees its object end, and the event loop knows nothing any more. */
async function staysOpen<T>(end: End<T>): Promise<void> {
  const before = registrationCount(process.pid);
  const { connection, peer } = await connected(end);
  using _peer = peer;
  const reading = end.read(connection);
  await end.write(connection, "hello");
  rawWrite(peer, "answer");
  await until(() => reading.text === "answer", () => `the answer, got ${reading.text}`);
  const detached = await detach(runtime, connection);
  using descriptor = detached.descriptor;
  await until(() => reading.ended, "the object to end");
  rawWrite(peer, "more");
  assert.deepEqual([detached.unread.length, detached.isUnreadKnown, await rest(detached, 4)], [0, true, "more"]);
  assert.deepEqual([rawRead(peer), rawState(peer), describe(runtime, descriptor).tcpState], [
    "hello",
    "open",
    "TCP_ESTABLISHED",
  ]);
  assert.equal(reading.text, "answer");
  await until(() => registrationCount(process.pid) <= before, "the registration to be gone");
}

test("detach leaves the peer of a net.Socket as it was", () => staysOpen(nodeSocket));

onDeno("detach leaves the peer of a Deno.Conn as it was", () => staysOpen(denoConn));

onBun("detach leaves the peer of a Bun.Socket as it was", () => staysOpen(bunSocket));

/** The peer sends before, during and after: each byte comes once, in order, to the object or with the socket. */
async function losesNothing<T>(end: End<T>): Promise<void> {
  const { connection, peer } = await connected(end);
  using _peer = peer;
  const reading = end.read(connection);
  let sent = "";
  const send = () => {
    const part = `${sent.length} `.padEnd(10);
    rawWrite(peer, part);
    sent += part;
  };
  for (let count = 0; count < 20; count++) {
    send();
    if (count % 5 === 0) await sleep(1);
  }
  const detaching = detach(runtime, connection);
  for (let count = 0; count < 20; count++) {
    send();
    await Promise.resolve();
  }
  const detached = await detaching;
  using _descriptor = detached.descriptor;
  for (let count = 0; count < 20; count++) send();
  const later = await rest(detached, sent.length - reading.text.length);
  assert.equal(reading.text + later, sent);
}

test("detach loses no byte that comes to a net.Socket meanwhile, and doubles none", () => losesNothing(nodeSocket));

onDeno("detach loses no byte that comes to a Deno.Conn meanwhile, and doubles none", () => losesNothing(denoConn));

onBun("detach loses no byte that comes to a Bun.Socket meanwhile, and doubles none", () => losesNothing(bunSocket));

/** Far more than the kernel takes, so that it waits in user space, and a peer that reads in the end. */
async function flushes(write: (text: string) => unknown, connection: unknown, peer: OwnedDescriptor): Promise<void> {
  const size = 8 * 1024 * 1024;
  const text = "0123456789abcdef".repeat(size / 16);
  void write(text);
  let detached: Detached | null = null;
  const detaching = detach(runtime, connection).then((result) => detached = result);
  await sleep(30);
  assert.equal(detached, null, "what was written cannot have left this process");
  let received = "";
  await until(() => (received += rawRead(peer)).length >= size, () => `${size} bytes, got ${received.length}`);
  using _descriptor = (await detaching).descriptor;
  assert.equal(received === text, true);
  assert.equal(rawState(peer), "open");
}

test("detach waits until what was written to a net.Socket has left the process", async () => {
  const { connection, peer } = await connected(nodeSocket);
  using _peer = peer;
  await flushes((text) => connection.write(text), connection, peer);
});

onDeno("detach waits until what was written to a Deno.Conn has left the process", async () => {
  const { connection, peer } = await connected(denoConn);
  using _peer = peer;
  const writer = connection.writable.getWriter();
  await flushes((text) => writer.write(new TextEncoder().encode(text)), connection, peer);
});

/** The peer does not read: the object stays as it was, and goes on once it does. */
async function givesUp<T>(end: End<T>, write: (connection: T, text: string) => unknown): Promise<void> {
  const { connection, peer } = await connected(end);
  using _peer = peer;
  const reading = end.read(connection);
  const size = 8 * 1024 * 1024;
  const written = write(connection, "x".repeat(size));
  await assert.rejects(detach(runtime, connection, { flushMs: 50 }), takeoverError("ERR_TAKEOVER_TIMEOUT"));
  rawWrite(peer, "still here");
  await until(() => reading.text === "still here", "bytes for the object");
  let received = 0;
  await until(() => (received += rawRead(peer).length) === size, () => `${size} bytes, got ${received}`);
  await written;
  (await detach(runtime, connection)).descriptor[Symbol.dispose]();
}

test("detach throws ERR_TAKEOVER_TIMEOUT when the peer of a net.Socket does not read", () =>
  givesUp(nodeSocket, (socket, text) => void socket.write(text)));

onDeno(
  "detach throws ERR_TAKEOVER_TIMEOUT when the peer of a Deno.Conn does not read",
  () => givesUp(denoConn, (connection, text) => connection.writable.getWriter().write(new TextEncoder().encode(text))),
);

test("detach gives what a paused net.Socket has read ahead", async () => {
  const { connection, peer } = await connected(nodeSocket);
  using _peer = peer;
  connection.once("data", () => connection.pause());
  rawWrite(peer, "first");
  await once(connection, "data");
  rawWrite(peer, "ahead");
  await until(() => connection.readableLength === 5, "the socket to read ahead");
  const seen: string[] = [];
  connection.on("data", (bytes) => seen.push(String(bytes)));
  connection.pause();
  rawWrite(peer, " and more");
  const detached = await detach(runtime, connection);
  using _descriptor = detached.descriptor;
  assert.equal(detached.isUnreadKnown, true);
  assert.equal(await rest(detached, 14), "ahead and more");
  assert.deepEqual(seen, []);
});

test("detach says that it is not known what a net.Socket has read ahead after setEncoding", async () => {
  const { connection, peer } = await connected(nodeSocket);
  using _peer = peer;
  connection.setEncoding("utf8");
  const detached = await detach(runtime, connection);
  detached.descriptor[Symbol.dispose]();
  assert.equal(detached.isUnreadKnown, false);
});

/** On the others the socket of a request is none of node:net's. */
onNode("detach says that it is not known what the parser of node:http has read ahead", async () => {
  const server = http.createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as net.AddressInfo;
  using client = rawConnection({ family: "inet", hostname: "127.0.0.1", port });
  rawWrite(client, "POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 9\r\n\r\nbody");
  const [request] = await once(server, "request") as [http.IncomingMessage];
  request.on("error", () => {});
  const { descriptor, isUnreadKnown } = await detach(runtime, request.socket);
  descriptor[Symbol.dispose]();
  assert.equal(isUnreadKnown, false);
  await nodeHttp.close(server);
});

test("detach refuses TLS, and what has no descriptor", async () => {
  const [ours, theirs] = rawPair("inet");
  using _theirs = theirs;
  const socket = await adoptConnection(runtime, ours, nodeSocket.open);
  const secure = tls.connect({ socket }).on("error", () => {});
  await assert.rejects(detach(runtime, secure), takeoverError("ERR_TAKEOVER_UNSUPPORTED"));
  await assert.rejects(detach(runtime, {}), takeoverError("ERR_TAKEOVER_UNSUPPORTED"));
  secure.destroy();
  socket.destroy();
});

test("detach throws ERR_TAKEOVER_CLOSED for an object that is closed", async () => {
  const { connection, peer } = await connected(nodeSocket);
  using _peer = peer;
  connection.destroy();
  await assert.rejects(detach(runtime, connection), takeoverError("ERR_TAKEOVER_CLOSED"));
});

const endings = {
  throws: "throw new Error('thrown');",
  ends: "",
  exits: 'const { default: { exit } } = await import("node:process"); exit(3);',
};

/**
 * A process that detaches its connection, sends it here, and ends in that way.
 * The peer goes on with the copy.
 */
async function survives<T>(end: End<T>, ending: keyof typeof endings): Promise<void> {
  using folder = new TemporaryFolder();
  const { listener, at } = rawListener();
  using _listener = listener;
  using channel = bindListener(runtime, { family: "unix", path: folder.file("channel") }, { port: 0 });
  const { status, stderr } = await runHere(`
    import { connectChannel, detach } from "${new URL("../../mod.ts", import.meta.url)}";
    const at = ${JSON.stringify(at)};
    ${end.program}
    const { descriptor } = await detach(connection);
    const channel = await connectChannel("${folder.file("channel")}");
    await channel.send(new Uint8Array(1), [descriptor]);
    ${endings[ending]}
  `);
  assert.equal(status, { throws: 1, ends: 0, exits: 3 }[ending], stderr);
  using peer = rawAccepted(listener);
  using sender = rawAccepted(channel);
  const { descriptors: [copy] } = receiveRaw(sender.number, 1, 64);
  assert.deepEqual([rawRead(peer), rawState(peer)], ["hello", "open"]);
  const connection = await adoptConnection(runtime, copy!, end.open);
  const reading = end.read(connection);
  rawWrite(peer, "again");
  await until(() => reading.text === "again", "the bytes in this process");
  await end.write(connection, "and again");
  let answer = "";
  await until(() => (answer += rawRead(peer)) === "and again", () => `the answer, got ${answer}`);
  (await detach(runtime, connection)).descriptor[Symbol.dispose]();
}

test("a net.Socket that was detached outlives a process that throws", () => survives(nodeSocket, "throws"));

test("a net.Socket that was detached outlives a process that ends", () => survives(nodeSocket, "ends"));

test("a net.Socket that was detached outlives a process that exits", () => survives(nodeSocket, "exits"));

onDeno("a Deno.Conn that was detached outlives a process that throws", () => survives(denoConn, "throws"));

onDeno("a Deno.Conn that was detached outlives a process that ends", () => survives(denoConn, "ends"));

onDeno("a Deno.Conn that was detached outlives a process that exits", () => survives(denoConn, "exits"));

onBun("a Bun.Socket that was detached outlives a process that throws", () => survives(bunSocket, "throws"));

onBun("a Bun.Socket that was detached outlives a process that ends", () => survives(bunSocket, "ends"));

onBun("a Bun.Socket that was detached outlives a process that exits", () => survives(bunSocket, "exits"));

/** Deno ends the connections of a program that ends: without detach the peer sees it. The test above can fail. */
onDeno("a Deno.Conn that was not detached does not outlive a process that ends", async () => {
  const { listener, at } = rawListener();
  using _listener = listener;
  const { status } = await runHere(`
    import { describe, descriptorOf, openRuntime } from "${new URL("../../mod.ts", import.meta.url)}";
    const at = ${JSON.stringify(at)};
    ${denoConn.program}
    await openRuntime();
    console.log(describe(descriptorOf(connection)).cookie);
  `);
  assert.equal(status, 0);
  using peer = rawAccepted(listener);
  assert.deepEqual([rawRead(peer), rawState(peer)], ["hello", "end"]);
});

const loopback: SocketAddress = { family: "inet", hostname: "127.0.0.1", port: 0 };

/** A client that connected while nobody accepted is served after the listener has gone from one object to another. */
async function keepsQueue<T>(native: Native<T>): Promise<void> {
  const socket = bindListener(runtime, loopback, { port: 0 });
  const { local, cookie } = describe(runtime, socket);
  const first = await adoptListener(runtime, socket, native.open) as T;
  assert.match(await native.ask(reachable(local!)), /hello/);
  const { descriptor } = await detach(runtime, first);
  assert.equal(cookieOf(runtime, descriptor.number), cookie);
  using early = rawConnection(local!);
  rawWrite(early, "GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
  await sleep(20);
  assert.deepEqual([isListening(runtime, descriptor.number), rawState(early)], [true, "open"]);
  const second = await adoptListener(runtime, descriptor, native.open) as T;
  let answer = "";
  await until(() => (answer += rawRead(early)).endsWith("hello"), () => `an answer, got ${answer}`);
  await native.close(second);
  await Promise.resolve(native.close(first)).catch(() => {});
}

test("detach takes the listener of node:net, with the queue", () => keepsQueue(nodeNet));

test("detach takes the listener of node:http, with the queue", () => keepsQueue(nodeHttp));

onDeno("detach takes the listener of Deno.serve, with the queue", () => keepsQueue(denoServe));

onBun("detach takes the listener of Bun.serve, with the queue", () => keepsQueue(bunServe));

onBun("detach takes the listener of Bun.listen, with the queue", () => keepsQueue(bunListen));

onDeno("detach takes the listener of Deno.listen, and its loop ends", async () => {
  const socket = bindListener(runtime, loopback, { port: 0 });
  const listener = await adoptListener(runtime, socket, denoListen.open);
  const { descriptor } = await detach(runtime, listener);
  using _descriptor = descriptor;
  assert.equal(isListening(runtime, descriptor.number), true);
});

test("detach leaves the connections of an HTTP server alone", async () => {
  const server = nodeHttp.open({ hostname: "127.0.0.1", host: "127.0.0.1", port: 0 }) as http.Server;
  await once(server, "listening");
  const { port } = server.address() as net.AddressInfo;
  using client = rawConnection({ family: "inet", hostname: "127.0.0.1", port });
  const ask = async () => {
    rawWrite(client, "GET / HTTP/1.1\r\nHost: test\r\n\r\n");
    let answer = "";
    await until(() => (answer += rawRead(client)).includes("hello"), () => `an answer, got ${answer}`);
  };
  await ask();
  const { descriptor } = await detach(runtime, server);
  using _descriptor = descriptor;
  await ask();
  await nodeHttp.close(server);
});

test("detach leaves the path of a Unix listener that the runtime bound, also when the process exits", async () => {
  using folder = new TemporaryFolder();
  const path = folder.file("web");
  const { status, stdout, stderr } = await runHere(`
    import { detach, describe, openRuntime } from "${new URL("../../mod.ts", import.meta.url)}";
    import net from "node:net";
    import process from "node:process";
    import { existsSync } from "node:fs";
    const server = net.createServer().listen(${JSON.stringify(path)});
    await new Promise((resolve) => server.once("listening", resolve));
    const { descriptor } = await detach(server);
    console.log(describe(descriptor).listening, existsSync(${JSON.stringify(path)}));
    process.exit();
  `);
  assert.deepEqual({ status, stderr, stdout: stdout.trim() }, { status: 0, stderr: "", stdout: "true true" });
  assert.equal(existsSync(path), true);
});

/** Datagrams that came and were not read go with the socket. */
async function keepsDatagrams<T>(end: DatagramEnd<T>): Promise<void> {
  const { socket: peer } = rawDatagram();
  using _peer = peer;
  const { socket: free, address } = rawDatagram();
  free[Symbol.dispose]();
  const { hostname, port } = address as { hostname: string; port: number };
  const socket = await end.open({ hostname, address: hostname, port });
  await eventually(() => void descriptorOf(runtime, socket));
  const texts = end.read(socket);
  const arrives = () => {
    rawSend(peer, "first", address);
    return texts.length > 0;
  };
  await until(arrives, "a datagram");
  const { descriptor, isUnreadKnown } = await detach(runtime, socket);
  using _descriptor = descriptor;
  const before = texts.length;
  assert.equal(isUnreadKnown, true);
  let later = rawRead(descriptor);
  rawSend(peer, "second", address);
  await until(() => (later += rawRead(descriptor)).endsWith("second"), () => `the datagram, got ${later}`);
  assert.equal(texts.length, before);
}

test("detach takes the socket of node:dgram", () => keepsDatagrams(nodeDatagram));

onBun("detach takes the socket of Bun.udpSocket", () => keepsDatagrams(bunDatagram));

/** Eight connections in and out of native objects, again and again, side by side. */
async function leavesNothing<T>(end: End<T>, count: number): Promise<void> {
  const before = registrationCount(process.pid);
  await Promise.all(Array.from({ length: 8 }, () => circles(end, count / 8)));
  await until(() => registrationCount(process.pid) <= before, "every registration to be gone");
}

async function circles<T>(end: End<T>, count: number): Promise<void> {
  const [first, peer] = rawPair("inet");
  using _peer = peer;
  let socket: OwnedDescriptor = first;
  for (let cycle = 0; cycle < count; cycle++) {
    const connection = await adoptConnection(runtime, socket, end.open);
    ({ descriptor: socket } = await detach(runtime, connection));
  }
  rawWrite(peer, "still here");
  assert.deepEqual([rawRead(socket), rawState(peer)], ["still here", "open"]);
  socket[Symbol.dispose]();
}

test("connections go in and out of net.Socket 200 times and leave nothing", () => leavesNothing(nodeSocket, 200));

onDeno("connections go in and out of Deno.Conn 200 times and leave nothing", () => leavesNothing(denoConn, 200));

onBun("connections go in and out of Bun.Socket 200 times and leave nothing", () => leavesNothing(bunSocket, 200));

test("detach gives a copy that is close-on-exec, and the number is the object's until then", async () => {
  const { connection, peer } = await connected(nodeSocket);
  using _peer = peer;
  const { descriptor } = await detach(runtime, connection);
  const copy = duplicate(runtime, descriptor.number);
  assert.equal(describe(runtime, descriptor).closeOnExec, true);
  assert.deepEqual(localAddress(runtime, copy), localAddress(runtime, descriptor.number));
  libc.close(copy);
  descriptor[Symbol.dispose]();
});
