/** From descriptors to native objects, with bytes both ways. */

import assert from "node:assert/strict";
import http from "node:http";
import net from "node:net";
import type { InetAddress, SocketAddress } from "../../src/c/sockaddr.ts";
import { adoptConnection, adoptDatagram, adoptListener } from "../../src/natives/adopt.ts";
import { describe } from "../../src/sockets/describe.ts";
import { detach } from "../../src/natives/detach.ts";
import { OwnedDescriptor } from "../../src/sockets/descriptors.ts";
import { bindListener } from "../../src/sockets/listener.ts";
import { descriptorOf } from "../../src/natives/natives.ts";
import { cookieOf, duplicate, localAddress, openSocket } from "../../src/sockets/socket.ts";
import { runHere, TemporaryFolder } from "../unit/children.ts";
import {
  bunDatagram,
  bunSocket,
  type DatagramEnd,
  denoConn,
  type End,
  nodeDatagram,
  nodeSocket,
  rawConnection,
  rawDatagram,
  rawPair,
  rawRead,
  rawSend,
  rawState,
  rawWrite,
} from "./ends.ts";
import { bunListen, bunServe, denoListen, denoServe, type Native, nodeHttp, nodeNet } from "./natives.ts";
import { onBun, onDeno, openNull, reachable, runtime, takeoverError, test, until } from "./support.ts";

const { abi, libc } = runtime;

// deno-lint-ignore no-explicit-any
type Any = any;

/** A test of what only Node has. */
function onNode(name: string, body: () => Promise<void>): void {
  if (runtime.name === "node") test(name, body);
}

/** Takes the socket back out, so that the test closes nothing that the peer could see. */
async function closed(native: unknown): Promise<void> {
  (await detach(runtime, native)).descriptor[Symbol.dispose]();
}

/** Both ways, and what had come before; the object says who its peer is. */
async function exchanges<T>(end: End<T>, family: SocketAddress["family"]): Promise<void> {
  const [ours, peer] = rawPair(family);
  using _peer = peer;
  const { cookie, peer: peerAddress } = describe(runtime, ours.number);
  rawWrite(peer, "before ");
  const connection = await adoptConnection(runtime, ours, end.open);
  assert.equal(ours.number, -1);
  assert.equal(cookieOf(runtime, descriptorOf(runtime, connection)), cookie);
  assert.equal(describe(runtime, descriptorOf(runtime, connection)).nonBlocking, true);
  if (family !== "unix") assert.equal(end.peerPort(connection), (peerAddress as InetAddress).port);
  const reading = end.read(connection);
  rawWrite(peer, "after");
  await until(() => reading.text === "before after", () => `the bytes, got ${reading.text}`);
  await end.write(connection, "answer");
  let answer = "";
  await until(() => (answer += rawRead(peer)) === "answer", () => `the answer, got ${answer}`);
  await closed(connection);
}

test("adoptConnection puts an IPv4 connection into net.connect", () => exchanges(nodeSocket, "inet"));

test("adoptConnection puts an IPv6 connection into net.connect", () => exchanges(nodeSocket, "inet6"));

test("adoptConnection puts a Unix connection into net.connect", () => exchanges(nodeSocket, "unix"));

onDeno("adoptConnection puts an IPv4 connection into Deno.connect", () => exchanges(denoConn, "inet"));

onDeno("adoptConnection puts an IPv6 connection into Deno.connect", () => exchanges(denoConn, "inet6"));

onDeno("adoptConnection puts a Unix connection into Deno.connect", () => exchanges(denoConn, "unix"));

onBun("adoptConnection puts an IPv4 connection into Bun.connect", () => exchanges(bunSocket, "inet"));

onBun("adoptConnection puts an IPv6 connection into Bun.connect", () => exchanges(bunSocket, "inet6"));

onBun("adoptConnection puts a Unix connection into Bun.connect", () => exchanges(bunSocket, "unix"));

const SHUT_WR = 1;

/** The peer has ended its side before the adoption, with bytes that nobody has read: they come, then the end; it still hears. */
async function isHalfClosed<T>(end: End<T>): Promise<void> {
  const [ours, peer] = rawPair("inet");
  using _peer = peer;
  rawWrite(peer, "last words");
  assert.equal(libc.shutdown(peer.number, SHUT_WR), 0);
  const connection = await adoptConnection(runtime, ours, end.open);
  const reading = end.read(connection);
  await until(() => reading.ended, "the end");
  assert.equal(reading.text, "last words");
  await end.write(connection, "still here");
  let answer = "";
  await until(() => (answer += rawRead(peer)) === "still here", () => `the answer, got ${answer}`);
  await closed(connection);
}

test("adoptConnection puts a half-closed connection into net.connect", () => isHalfClosed(nodeSocket));

onDeno("adoptConnection puts a half-closed connection into Deno.connect", () => isHalfClosed(denoConn));

onBun("adoptConnection puts a half-closed connection into Bun.connect", () => isHalfClosed(bunSocket));

/** This side has ended before the adoption: the peer goes on, and is heard. */
async function hasEnded<T>(end: End<T>): Promise<void> {
  const [ours, peer] = rawPair("inet");
  using _peer = peer;
  assert.equal(libc.shutdown(ours.number, SHUT_WR), 0);
  const connection = await adoptConnection(runtime, ours, end.open);
  const reading = end.read(connection);
  rawWrite(peer, "listen");
  await until(() => reading.text === "listen", () => `the bytes, got ${reading.text}`);
  await closed(connection);
}

test("adoptConnection puts a connection that has ended on this side into net.connect", () => hasEnded(nodeSocket));

onDeno("adoptConnection puts a connection that has ended on this side into Deno.connect", () => hasEnded(denoConn));

onBun("adoptConnection puts a connection that has ended on this side into Bun.connect", () => hasEnded(bunSocket));

test("adoptConnection sends on what the callback writes", async () => {
  const [ours, peer] = rawPair("inet");
  using _peer = peer;
  const connection = await adoptConnection(runtime, ours, (at: net.NetConnectOpts) => {
    const socket = net.connect(at);
    socket.once("connect", () => socket.write("hello "));
    return new Promise<net.Socket>((resolve) => socket.once("connect", () => resolve(socket)));
  });
  connection.write("and on");
  let answer = "";
  await until(() => (answer += rawRead(peer)) === "hello and on", () => `the bytes, got ${answer}`);
  await closed(connection);
});

test("adoptConnection waits for a callback that wraps its connection", async () => {
  const [ours, peer] = rawPair("inet");
  using _peer = peer;
  const { socket } = await adoptConnection(runtime, ours, (at: net.NetConnectOpts) => ({ socket: net.connect(at) }));
  const reading = nodeSocket.read(socket);
  rawWrite(peer, "wrapped");
  await until(() => reading.text === "wrapped", "the bytes");
  await closed(socket);
});

/** Big both ways, so that the runtime changes what it waits for again and again. */
async function carries<T>(end: End<T>, size: number): Promise<void> {
  const [ours, peer] = rawPair("inet");
  using _peer = peer;
  const connection = await adoptConnection(runtime, ours, end.open);
  const reading = end.read(connection);
  void end.write(connection, "x".repeat(size));
  let received = 0;
  let sent = 0;
  const chunk = new Uint8Array(64 * 1024).fill(121);
  await until(() => {
    received += rawRead(peer).length;
    const written = sent < size ? libc.write(peer.number, chunk, Math.min(chunk.length, size - sent)) : 0;
    sent += Math.max(0, written);
    return received >= size && reading.text.length >= size;
  }, () => `${size} bytes both ways: ${received} received, ${sent} sent, ${reading.text.length} read`);
  assert.deepEqual([received, reading.text], [size, "y".repeat(size)]);
  await closed(connection);
}

const megabytes = 4 * 1024 * 1024;

test("net.connect carries megabytes both ways over an adopted connection", () => carries(nodeSocket, megabytes));

/** A listener in a native server, which answers, and whose descriptor is the true one. */
async function answers<T>(native: Native<T>, address: SocketAddress): Promise<void> {
  const socket = bindListener(runtime, address, { port: 0 });
  const { cookie, local } = describe(runtime, socket);
  const server = await adoptListener(runtime, socket, native.open) as T;
  try {
    assert.equal(cookieOf(runtime, descriptorOf(runtime, server)), cookie);
    assert.match(await native.ask(reachable(local!)), /hello/);
    assert.deepEqual(native.present(server), native.presented(local!));
  } finally {
    await native.close(server);
  }
}

const loopback: SocketAddress = { family: "inet", hostname: "127.0.0.1", port: 0 };

test("adoptListener puts a listener into node:http, and it accepts", () => answers(nodeHttp, loopback));

test("adoptListener puts a listener into node:net, and it accepts", () => answers(nodeNet, loopback));

onDeno("adoptListener puts a listener into Deno.serve, and it accepts", () => answers(denoServe, loopback));

onDeno("adoptListener puts a listener into Deno.listen, and it accepts", () => answers(denoListen, loopback));

onBun("adoptListener puts a listener into Bun.serve, and it accepts", () => answers(bunServe, loopback));

onBun("adoptListener puts a listener into Bun.listen, and it accepts", () => answers(bunListen, loopback));

test("adoptListener puts a Unix listener into node:http", async () => {
  using folder = new TemporaryFolder();
  await answers(nodeHttp, { family: "unix", path: folder.file("web") });
});

onBun("adoptListener puts a Unix listener into Bun.serve", async () => {
  using folder = new TemporaryFolder();
  await answers(bunServe, { family: "unix", path: folder.file("web") });
});

onDeno("adoptListener puts a Unix listener into Deno.serve", async () => {
  using folder = new TemporaryFolder();
  await answers(denoServe, { family: "unix", path: folder.file("web") });
});

test("adoptListener accepts who waits in the queue already", async () => {
  const socket = bindListener(runtime, loopback, { port: 0 });
  using early = rawConnection(localAddress(runtime, socket.number)!);
  rawWrite(early, "GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
  const server = await adoptListener(runtime, socket, nodeHttp.open) as http.Server;
  let answer = "";
  await until(() => (answer += rawRead(early)).endsWith("hello"), () => `an answer, got ${answer}`);
  await nodeHttp.close(server);
});

/** Datagrams both ways, one that had come before among them. */
async function exchangesDatagrams<T>(end: DatagramEnd<T>, hostname: string): Promise<void> {
  const { socket: ours, address } = rawDatagram(hostname);
  const { socket: peer, address: peerAddress } = rawDatagram(hostname);
  using _peer = peer;
  const { cookie } = describe(runtime, ours);
  rawSend(peer, "before", address);
  const socket = await adoptDatagram(runtime, ours, end.open);
  assert.equal(cookieOf(runtime, descriptorOf(runtime, socket)), cookie);
  const texts = end.read(socket);
  rawSend(peer, "after", address);
  await until(() => texts.length === 2, () => `two datagrams, got ${texts}`);
  assert.deepEqual(texts, ["before", "after"]);
  end.send(socket, "answer", peerAddress);
  let answer = "";
  await until(() => (answer += rawRead(peer)) === "answer", () => `the answer, got ${answer}`);
  await closed(socket);
}

test("adoptDatagram puts an IPv4 socket into node:dgram", () => exchangesDatagrams(nodeDatagram, "127.0.0.1"));

test("adoptDatagram puts an IPv6 socket into node:dgram", () => exchangesDatagrams(nodeDatagram, "::1"));

onBun("adoptDatagram puts an IPv4 socket into Bun.udpSocket", () => exchangesDatagrams(bunDatagram, "127.0.0.1"));

onBun("adoptDatagram puts an IPv6 socket into Bun.udpSocket", () => exchangesDatagrams(bunDatagram, "::1"));

/** Deno.listenDatagram is there with --unstable-net only. */
onDeno("adoptDatagram puts UDP and Unix sockets into Deno.listenDatagram", async () => {
  using folder = new TemporaryFolder();
  const { status, stdout, stderr } = await runHere(
    `
    import { adoptDatagram, descriptorOf, describe, detach, openRuntime } from "${new URL(
      "../../mod.ts",
      import.meta.url,
    )}";
    const { libc, abi } = await openRuntime();
    const root = new URL("../..", "${import.meta.url}");
    const { openSocket, bindSocket, localAddress, connectSocket } = await import(new URL("src/sockets/socket.ts", root));
    const runtime = await openRuntime();
    async function echoes(address, peerAddress, open) {
      const [ours, peer] = [address, peerAddress].map((at) => {
        const socket = openSocket(runtime, at.family, "dgram");
        bindSocket(runtime, socket, at);
        return socket;
      });
      const { cookie, local } = describe(ours);
      connectSocket(runtime, peer, local);
      libc.write(peer, new TextEncoder().encode("before"), 6);
      const socket = await adoptDatagram(ours, open);
      libc.write(peer, new TextEncoder().encode("after"), 5);
      for (let count = 0; count < 2; count++) {
        const [bytes, from] = await socket.receive();
        await socket.send(bytes, from);
      }
      const texts = [];
      for (let bytes = new Uint8Array(9); texts.length < 2;) {
        const size = libc.read(peer, bytes, 9);
        if (size > 0) texts.push(new TextDecoder().decode(bytes.subarray(0, size)));
        else await new Promise((resolve) => setTimeout(resolve, 1));
      }
      console.log(texts.join(" "), describe(descriptorOf(socket)).cookie === cookie, socket.addr.transport);
      const detached = await detach(socket);
      console.log(describe(detached.descriptor).cookie === cookie);
    }
    for (const hostname of ["127.0.0.1", "::1"]) {
      const at = { family: hostname === "::1" ? "inet6" : "inet", hostname, port: 0 };
      await echoes(at, at, (at) => Deno.listenDatagram({ ...at, transport: "udp" }));
    }
    const [path, other] = ["${folder.file("ours")}", "${folder.file("peer")}"];
    await echoes({ family: "unix", path }, { family: "unix", path: other }, (at) => Deno.listenDatagram(at));
  `,
    ["--allow-all", "--unstable-net"],
  );
  assert.deepEqual({ status, stderr, stdout: stdout.trim().split("\n") }, {
    status: 0,
    stderr: "",
    stdout: ["before after true udp", "true", "before after true udp", "true", "before after true unixpacket", "true"],
  });
});

/** Bad input, which is refused before anything is opened, and stays the caller's. */
async function refuses(
  code: Parameters<typeof takeoverError>[0],
  descriptor: number | OwnedDescriptor,
  adopt: typeof adoptListener,
): Promise<void> {
  const unexpected = () => assert.fail("the callback was called");
  await assert.rejects(adopt(runtime, descriptor, unexpected), takeoverError(code));
}

test("adoptListener, adoptConnection and adoptDatagram refuse a closed descriptor", async () => {
  const gone = openNull();
  const { number } = gone;
  gone[Symbol.dispose]();
  for (const adopt of [adoptListener, adoptConnection, adoptDatagram]) {
    await refuses("ERR_TAKEOVER_CLOSED", number, adopt);
    await refuses("ERR_TAKEOVER_CLOSED", gone, adopt);
  }
});

test("adoptListener, adoptConnection and adoptDatagram refuse what is no descriptor", async () => {
  for (const adopt of [adoptListener, adoptConnection, adoptDatagram]) {
    for (const number of [-1, 1.5, NaN, 2 ** 31, "3" as unknown as number]) {
      await refuses("ERR_TAKEOVER_RANGE", number, adopt);
    }
  }
});

test("adoptListener, adoptConnection and adoptDatagram refuse what is no socket", async () => {
  using file = openNull();
  using epoll = new OwnedDescriptor(runtime, libc.epoll_create1(0o2000000));
  for (const adopt of [adoptListener, adoptConnection, adoptDatagram]) {
    for (const descriptor of [file, epoll]) await refuses("ERR_TAKEOVER_NOT_SOCKET", descriptor, adopt);
  }
});

test("adoptListener, adoptConnection and adoptDatagram refuse sockets of another kind", async () => {
  using listener = bindListener(runtime, loopback, { port: 0 });
  const [connection, peer] = rawPair("inet");
  using _connection = connection;
  using _peer = peer;
  using datagram = rawDatagram().socket;
  using fresh = new OwnedDescriptor(runtime, openSocket(runtime, "inet", "stream"));
  using netlink = new OwnedDescriptor(runtime, libc.socket(16, abi.constants.SOCK_DGRAM, 0));
  for (const wrong of [connection, datagram, fresh, netlink]) {
    await refuses("ERR_TAKEOVER_DESCRIPTOR", wrong, adoptListener);
  }
  for (const wrong of [listener, datagram, fresh, netlink]) {
    await refuses("ERR_TAKEOVER_DESCRIPTOR", wrong, adoptConnection);
  }
  for (const wrong of [listener, connection, fresh, netlink]) {
    await refuses("ERR_TAKEOVER_DESCRIPTOR", wrong, adoptDatagram);
  }
  assert.ok([listener, connection, datagram].every(({ number }) => number >= 0));
});

test("adoptConnection throws ERR_TAKEOVER_ADOPT when the callback does not connect, and the socket is still the caller's", async () => {
  const [ours, peer] = rawPair("inet");
  using _ours = ours;
  using _peer = peer;
  await assert.rejects(adoptConnection(runtime, ours, () => null, { openMs: 50 }), takeoverError("ERR_TAKEOVER_ADOPT"));
  const copy = duplicate(runtime, ours.number);
  await assert.rejects(adoptConnection(runtime, copy, () => null, { openMs: 50 }), takeoverError("ERR_TAKEOVER_ADOPT"));
  assert.equal(libc.close(copy), 0);
  assert.equal(rawState(peer), "open");
});

test("adoptConnection throws ERR_TAKEOVER_CLOSED when its socket is closed meanwhile", async () => {
  const [ours, peer] = rawPair("inet");
  using _peer = peer;
  const opened: net.Socket[] = [];
  const adopting = adoptConnection(runtime, ours, (at: net.NetConnectOpts) => {
    ours[Symbol.dispose]();
    opened.push(net.connect(at));
    return opened[0];
  });
  await assert.rejects(adopting, takeoverError("ERR_TAKEOVER_CLOSED"));
  for (const socket of opened) socket.on("error", () => {}).destroy();
});

test("adoptDatagram passes on what the callback throws", async () => {
  using datagram = rawDatagram().socket;
  await assert.rejects(adoptDatagram(runtime, datagram, () => Promise.reject(new Error("thrown"))), {
    message: "thrown",
  });
});

test("adoptConnection keeps fifty adoptions at once apart", async () => {
  const pairs = Array.from({ length: 50 }, () => rawPair("inet"));
  const cookies = pairs.map(([ours]) => cookieOf(runtime, ours.number));
  const sockets = await Promise.all(pairs.map(([ours]) => adoptConnection(runtime, ours, nodeSocket.open)));
  assert.deepEqual(sockets.map((socket) => cookieOf(runtime, descriptorOf(runtime, socket))), cookies);
  for (const socket of sockets) await closed(socket);
  for (const [, peer] of pairs) peer[Symbol.dispose]();
});

test("adoptListener puts a listener with an abstract name into node:net", async () => {
  const path = `\0takeover-test-${runtime.libc.getpid()}-${Date.now()}`;
  const socket = bindListener(runtime, { family: "unix", path }, { port: 0 });
  const server = await adoptListener(runtime, socket, nodeNet.open) as net.Server;
  using client = rawConnection({ family: "unix", path });
  rawWrite(client, "anything");
  let answer = "";
  await until(() => (answer += rawRead(client)).endsWith("hello"), () => `an answer, got ${answer}`);
  await nodeNet.close(server);
});

// deno-lint-ignore no-explicit-any
const entry: any = await import(`../../runtimes/${runtime.name}.ts`);

/** A shortcut of this runtime's own entry, given a listener, makes a server that answers. */
async function listens(make: (descriptor: OwnedDescriptor) => unknown, close: (server: Any) => unknown): Promise<void> {
  const socket = bindListener(runtime, loopback, { port: 0 });
  const { local, cookie } = describe(runtime, socket);
  const server = await make(socket);
  assert.deepEqual([socket.number, cookieOf(runtime, descriptorOf(runtime, server))], [-1, cookie]);
  assert.match(await nodeNet.ask(reachable(local!)), /hello/);
  await close(server);
}

/** The same for a connection, over TCP and over Unix. */
async function connects(make: (descriptor: OwnedDescriptor) => unknown, end: End<Any>): Promise<void> {
  for (const family of ["inet", "unix"] as const) {
    const [ours, peer] = rawPair(family);
    using _peer = peer;
    rawWrite(peer, "before");
    const connection = await make(ours);
    const reading = end.read(connection);
    await until(() => reading.text === "before", () => `the bytes, got ${reading.text}`);
    await end.write(connection, "answer");
    let answer = "";
    await until(() => (answer += rawRead(peer)) === "answer", () => `the answer, got ${answer}`);
    assert.equal(ours.number, -1);
    await closed(connection);
  }
}

/** The same for a datagram socket. */
async function hears(make: (descriptor: OwnedDescriptor) => unknown, end: DatagramEnd<Any>): Promise<void> {
  const { socket: ours, address } = rawDatagram();
  const { socket: peer } = rawDatagram();
  using _peer = peer;
  const socket = await make(ours);
  const texts = end.read(socket);
  rawSend(peer, "heard", address);
  await until(() => texts.length > 0, "a datagram");
  assert.deepEqual([texts, ours.number], [["heard"], -1]);
  await closed(socket);
}

onNode(
  "listenerFrom makes an http.Server of a listener",
  () =>
    listens(
      (descriptor) => entry.listenerFrom(descriptor, http.createServer((_, response) => response.end("hello"))),
      nodeHttp.close,
    ),
);

onNode("connectionFrom makes a net.Socket of a connection", () => connects(entry.connectionFrom, nodeSocket));

onNode("datagramFrom makes a dgram.Socket of a UDP socket", () => hears(entry.datagramFrom, nodeDatagram));

onDeno(
  "serverFrom makes a server of a listener",
  () =>
    listens(
      (descriptor) => entry.serverFrom(descriptor, () => new Response("hello"), { onListen() {} }),
      denoServe.close,
    ),
);

onDeno("listenerFrom makes a Deno.Listener of a listener", async () => {
  const socket = bindListener(runtime, loopback, { port: 0 });
  using client = rawConnection(describe(runtime, socket).local!);
  const listener = await entry.listenerFrom(socket);
  rawWrite(client, "hello");
  const connection = await listener.accept();
  const bytes = new Uint8Array(5);
  assert.equal(await connection.read(bytes), 5);
  connection.close();
  listener.close();
});

onDeno("connectionFrom makes a Deno.Conn of a connection", () => connects(entry.connectionFrom, denoConn));

onDeno("socketFrom makes a net.Socket of a connection", () => connects(entry.socketFrom, nodeSocket));

onBun(
  "listenerFrom makes a listener of a listening socket",
  () => listens((descriptor) => entry.listenerFrom(descriptor, bunListen.open), bunListen.close),
);

onBun(
  "serverFrom makes a server of a listener",
  () => listens((descriptor) => entry.serverFrom(descriptor, bunServe.open), bunServe.close),
);

onBun(
  "connectionFrom makes a Bun.Socket of a connection",
  () => connects((descriptor) => entry.connectionFrom(descriptor, bunSocket.open), bunSocket),
);

onBun(
  "datagramFrom makes a socket of a UDP socket",
  () => hears((descriptor) => entry.datagramFrom(descriptor, bunDatagram.open), bunDatagram),
);

test("mod.ts says that libc is not bound yet, and knows the descriptor afterwards", async () => {
  const { status, stdout, stderr } = await runHere(`
    import { adoptConnection, descriptorOf, describe, openRuntime } from "${new URL("../../mod.ts", import.meta.url)}";
    import net from "node:net";
    const server = net.createServer().listen(0, "127.0.0.1");
    await new Promise((resolve) => server.once("listening", resolve));
    for (const call of [() => descriptorOf(server), () => describe(0)]) {
      try { call(); } catch ({ code }) { console.log(code); }
    }
    await openRuntime();
    console.log(describe(descriptorOf(server)).tcpState);
    server.close();
  `);
  assert.deepEqual({ status, stderr, stdout: stdout.trim().split("\n") }, {
    status: 0,
    stderr: "",
    stdout: ["ERR_TAKEOVER_STATE", "ERR_TAKEOVER_STATE", "TCP_LISTEN"],
  });
});
