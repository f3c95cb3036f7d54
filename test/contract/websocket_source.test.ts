/** WebSockets of every runtime that are stopped between two messages, and nowhere else. */

import assert from "node:assert/strict";
import { once } from "node:events";
import net from "node:net";
import process from "node:process";
import { type EmittingServer, giveSocket } from "../../src/connections/given.ts";
import type { Frozen, Movable, Source } from "../../src/connections/movable.ts";
import { FrameScanner } from "../../src/connections/websocket_frames.ts";
import { OwnedDescriptor } from "../../src/sockets/descriptors.ts";
import { duplicate, readAvailable } from "../../src/sockets/socket.ts";
import { registrationCount } from "../support/proc.ts";
import { rawAccepted, rawListener, rawState } from "./ends.ts";
import { onBun, onDeno, runtime, sleep, test, until } from "./support.ts";
import {
  bunServe,
  type ClientEnd,
  connect,
  denoServe,
  frame,
  nodeWs,
  type OpenServer,
  type Server,
  text,
  upgrade,
} from "./web_sockets.ts";

/** What a server would write: a text of less than 126 bytes. */
function writeText({ number }: OwnedDescriptor, message: string): void {
  const bytes = Uint8Array.from([0x81, message.length, ...new TextEncoder().encode(message)]);
  assert.equal(runtime.libc.write(number, bytes, bytes.length), bytes.length);
}

/** A server, clients, and the source that their sockets leave by. */
interface Stage {
  readonly server: Server;
  readonly clients: readonly ClientEnd[];
  readonly source: Source;
}

async function staged(open: OpenServer, count: number, body: (stage: Stage) => Promise<void>): Promise<void> {
  const server = await open();
  const clients: ClientEnd[] = [];
  const source = server.webSockets.source("web");
  try {
    for (let index = 0; index < count; index++) clients.push(await connect(server.port));
    await until(() => server.ends.length === count, "the server to have them all");
    source.start(() => {});
    await body({ server, clients, source });
  } finally {
    source.stop();
    for (const { socket } of clients) socket.destroy();
    await server.close();
  }
}

/** Asks until that many can go, as the mover does. */
async function movables(source: Source, count: number, isLast = false): Promise<readonly Movable[]> {
  let found: readonly Movable[] = [];
  await until(
    () => (found = source.ready(1_000, isLast)).length >= count,
    () => `${count} that may go: ${JSON.stringify(source.census())}`,
  );
  assert.equal(found.length, count);
  return found;
}

async function frozen(source: Source, count = 1): Promise<readonly Frozen[]> {
  return (await movables(source, count)).map((movable) => {
    const connection = movable.freeze();
    assert.ok(connection);
    return connection;
  });
}

/** Nothing may go, asked again and again. */
async function stays(source: Source, ms = 60): Promise<void> {
  for (const end = Date.now() + ms; Date.now() < end;) {
    assert.deepEqual(source.ready(10, false), []);
    await sleep(5);
  }
}

/** Between messages it is stopped: what comes stays in the socket. Thawed, it comes to the application. */
async function thaws(open: OpenServer): Promise<void> {
  await staged(open, 1, async ({ server: { ends: [end] }, clients: [client], source }) => {
    client!.write(text("one"));
    await until(() => end!.heard.length === 1, "the first message");
    const [connection] = await frozen(source);
    client!.write(text("two"));
    await sleep(30);
    assert.deepEqual(end!.heard, ["one"]);
    connection!.thaw(new Error("refused"), true);
    await until(() => end!.heard.length === 2, "the second message");
    end!.send("hello");
    await until(() => client!.heard.length === 1, "the answer");
    assert.deepEqual([end!.heard, end!.events, client!.heard, client!.ended], [["one", "two"], ["leave", "stayed"], [
      "hello",
    ], false]);
  });
}

/** It goes without the client's notice, with what waits in the socket, and its application hears no `close`. */
async function leaves(open: OpenServer): Promise<void> {
  await staged(open, 1, async ({ server: { ends: [end], webSockets }, clients: [client], source }) => {
    client!.write(text("one"));
    end!.send("hello");
    await until(() => end!.heard.length === 1, "the first message");
    const watchedCount = registrationCount(process.pid);
    const [connection] = await frozen(source);
    using copy = new OwnedDescriptor(runtime, duplicate(runtime, connection!.descriptor));
    client!.write(text("two"));
    connection!.leave();
    await until(() => end!.events.includes("left"), "left to be called");
    await sleep(30);
    client!.write(text("three"));
    const rest: number[] = [];
    const expected = [...text("two"), ...text("three")];
    await until(
      () => rest.push(...readAvailable(runtime, copy.number)) >= expected.length,
      "what comes after it has left",
    );
    assert.deepEqual(rest, expected);
    writeText(copy, "from the next");
    await until(() => client!.heard.length === 2, "what the next process says");
    assert.deepEqual(client!.heard, ["hello", "from the next"]);
    assert.deepEqual([end!.heard, end!.events, client!.ended], [["one"], ["leave", "left"], false]);
    assert.equal(rawState(copy), "open");
    assert.equal(webSockets.size, 0);
    await until(() => registrationCount(process.pid) < watchedCount, "the event loop to forget it");
    const { request, readSize, state } = connection!.state as {
      request: { target: string };
      readSize: number;
      state: unknown;
    };
    assert.deepEqual([request.target, state], ["/chat?room=1", { n: 1 }]);
    assert.ok(readSize > text("one").length);
  });
}

/** Half a frame, cut anywhere, keeps it; its other half lets it go. */
async function waitsForFrames(open: OpenServer): Promise<void> {
  await staged(open, 1, async ({ server: { ends: [end] }, clients: [client], source }) => {
    const message = text("over there");
    client!.answers = false;
    for (let cut = 1; cut < message.length; cut++) {
      source.stop();
      client!.write(message.slice(0, cut));
      // Time for the runtime to read it: what waits in the socket may go.
      await sleep(15);
      source.start(() => {});
      await stays(source, 25);
      client!.write(message.slice(cut));
      await until(() => end!.heard.length === cut, "the message");
      const [connection] = await frozen(source);
      connection!.thaw(null);
    }
    assert.ok(end!.heard.every((heard) => heard === "over there"));
  });
}

/** How a client connects. */
type Connect = (server: Server) => Promise<ClientEnd>;

/**
 * What nobody tells of keeps it until the client was asked. The answer is taken
 * out of the socket.
 */
async function asksTheClient(
  open: OpenServer,
  connects: Connect,
  unseen: (client: ClientEnd) => void = () => {},
): Promise<void> {
  await staged(open, 0, async ({ server, source }) => {
    const client = await connects(server);
    try {
      client.write(text("one"));
      await until(() => server.ends[0]?.heard.length === 1, "the first message");
      unseen(client);
      await sleep(20);
      const pongs: Uint8Array[] = [];
      client.answers = false;
      client.asked = (payload) => pongs.push(payload);
      await until(() => (source.ready(10, false), client.pingCount > 0), "a ping");
      // Half of the answer is none.
      const answer = frame(10, pongs[0]!);
      client.write(answer.slice(0, 9));
      await stays(source, 30);
      client.write(answer.slice(9));
      const [connection] = await frozen(source);
      client.write(text("two"));
      connection!.thaw(null);
      await until(() => server.ends[0]!.heard.length === 2, "the second message");
      assert.deepEqual([server.ends[0]!.heard, server.ends[0]!.events, client.ended], [["one", "two"], [
        "leave",
        "stayed",
      ], false]);
    } finally {
      client.socket.destroy();
    }
  });
}

/** A message in frames keeps it until its last one, whatever comes between them. */
async function waitsForMessages(open: OpenServer): Promise<void> {
  const restMs = 600;
  await staged(
    (options) => open({ ...options, restMs }),
    1,
    async ({ server: { ends: [end] }, clients: [client], source }) => {
      source.stop();
      client!.write(frame(1, "one ", false));
      await sleep(15);
      source.start(() => {});
      // The client answers pings, also in the middle of a message.
      await stays(source, 150);
      client!.write(frame(0, "message", true));
      await until(() => {
        assert.deepEqual(source.ready(10, false), []);
        return end!.heard.length === 1;
      }, "the message");
      const next = setInterval(() => client!.write(text("next")), 30);
      try {
        // What comes next tells that the message before it was whole.
        const [connection] = await frozen(source);
        connection!.thaw(null);
      } finally {
        clearInterval(next);
      }
      client!.write(text("next"));
      await until(() => end!.heard.length > 1, "the next message");
      assert.deepEqual([end!.heard[0], end!.heard[1], client!.ended], ["one message", "next", false]);
    },
  );
}

/** Messages that come all the time: each comes once, to the application or to who has the socket next. */
async function losesNothing(open: OpenServer): Promise<void> {
  await staged(open, 1, async ({ server: { ends: [end] }, clients: [client], source }) => {
    let count = 0;
    const sending = setInterval(() => {
      for (let burst = 0; burst < 3; burst++) client!.write(text(`message ${count++}`));
    }, 1);
    let connection: Frozen | undefined;
    try {
      await until(() => end!.heard.length > 20, "some messages");
      for (let thaws = 0; thaws < 5; thaws++) {
        source.stop();
        source.start(() => {});
        const [again] = await frozen(source);
        await sleep(10);
        again!.thaw(null);
      }
      source.stop();
      source.start(() => {});
      [connection] = await frozen(source);
      await sleep(10);
    } finally {
      clearInterval(sending);
    }
    using copy = new OwnedDescriptor(runtime, duplicate(runtime, connection!.descriptor));
    connection!.leave();
    const rest = new FrameScanner();
    const heard = end!.heard.length;
    await until(
      () => (rest.push(readAvailable(runtime, copy.number)), heard + rest.count >= count),
      () => `${count} messages, got ${heard} and ${rest.count}`,
    );
    assert.deepEqual(end!.heard, Array.from({ length: heard }, (_, index) => `message ${index}`));
    assert.deepEqual([heard + rest.count, rest.isBetween, client!.ended], [count, true, false]);
  });
}

/** A hundred sockets, one of which has half a message: the others go. */
async function takesMany(open: OpenServer): Promise<void> {
  await staged(open, 100, async ({ server: { ends }, clients, source }) => {
    clients[50]!.answers = false;
    clients[50]!.write(text("half").slice(0, 5));
    for (const client of clients) if (client !== clients[50]) client.write(text("whole"));
    await until(() => ends.filter(({ heard }) => heard.length === 1).length === 99, "the messages");
    const connections: Frozen[] = [];
    await until(() => {
      connections.push(...source.ready(30, false).flatMap((movable) => movable.freeze() ?? []));
      return connections.length === 99;
    }, () => `99 of 100, got ${connections.length}`);
    await stays(source, 30);
    assert.equal(new Set(connections.map(({ descriptor }) => descriptor)).size, 99);
    assert.deepEqual(source.census(), { waiting: 100, staying: {} });
    for (const connection of connections) connection.leave();
    assert.deepEqual(source.census(), { waiting: 1, staying: {} });
    source.ready(10, true);
    assert.deepEqual(source.census(), { waiting: 0, staying: { unproven: 1 } });
    assert.deepEqual(clients.filter(({ ended }) => ended), []);
  });
}

/** An application that cannot let it go now, or throws, is asked again. */
async function heedsTheApplication(open: OpenServer): Promise<void> {
  await staged(open, 1, async ({ server: { ends: [end] }, clients: [client], source }) => {
    end!.luggage = undefined;
    for (const movable of await movables(source, 1)) assert.equal(movable.freeze(), null);
    client!.write(text("on"));
    await until(() => end!.heard.length === 1, "the message");
    end!.luggage = [1, "two", null];
    const [connection] = await frozen(source);
    assert.deepEqual((connection!.state as { state: unknown }).state, [1, "two", null]);
    connection!.thaw(null, true);
    assert.deepEqual([source.census(), end!.events], [{ waiting: 0, staying: { refused: 1 } }, [
      "leave",
      "leave",
      "stayed",
    ]]);
  });
}

/** A socket with an extension has a state that nobody tells of. */
async function keepsCompressed(open: OpenServer): Promise<void> {
  await staged(() => open({ compresses: true }), 0, async ({ server, source }) => {
    const client = await connect(server.port, ["Sec-WebSocket-Extensions: permessage-deflate"]);
    assert.match(client.head, /permessage-deflate/);
    await until(() => server.ends.length === 1, "the server to have it");
    await stays(source, 30);
    assert.deepEqual(source.census(), { waiting: 0, staying: { compressed: 1 } });
    client.socket.destroy();
    await until(() => server.webSockets.size === 0, "its end to be noticed");
  });
}

const connects: Connect = ({ port }) => connect(port);
const writesOddly: Connect = ({ port }) => connect(port, [], ":");
const pings = (client: ClientEnd) => client.write(frame(9, "are you there"));

/** A connection that this process has read nothing of before, as one that came from another process. */
async function cameEarlier({ native, sharePort }: Server): Promise<ClientEnd> {
  const { listener, at } = rawListener();
  using _listener = listener;
  const socket = net.connect(at);
  await once(socket, "connect");
  socket.write("GET / HTTP/1.1");
  const accepted = rawAccepted(listener);
  await until(() => readAvailable(runtime, accepted.number).length > 0, "what another process has read");
  giveSocket(runtime, native as EmittingServer, accepted, new Uint8Array(0));
  sharePort(at.port);
  return await upgrade(socket);
}

test("WebSocketSource stops a socket of ws between two messages, and thaws it", () => thaws(nodeWs));

test("WebSocketSource lets a socket of ws leave, and its client does not notice", () => leaves(nodeWs));

test("WebSocketSource waits for the end of a frame of a socket of ws", () => waitsForFrames(nodeWs));

test("WebSocketSource waits for the last frame of a message of a socket of ws", () => waitsForMessages(nodeWs));

test("WebSocketSource loses no message of a socket of ws, and changes no order", () => losesNothing(nodeWs));

test("WebSocketSource takes a hundred sockets of ws but for the one with half a message", () => takesMany(nodeWs));

test("WebSocketSource asks the application of a socket of ws again that cannot let it go", () =>
  heedsTheApplication(nodeWs));

test("WebSocketSource keeps compressed sockets of ws", () => keepsCompressed(nodeWs));

if (runtime.name !== "bun") {
  test("WebSocketSource asks the client of a socket of ws whose connection came from another process", () =>
    asksTheClient(nodeWs, cameEarlier));
}

onDeno("WebSocketSource stops a socket of Deno.serve between two messages, and thaws it", () => thaws(denoServe));

onDeno("WebSocketSource lets a socket of Deno.serve leave, and its client does not notice", () => leaves(denoServe));

onDeno("WebSocketSource waits for the end of a frame of a socket of Deno.serve", () => waitsForFrames(denoServe));

onDeno(
  "WebSocketSource waits for the last frame of a message of a socket of Deno.serve",
  () => waitsForMessages(denoServe),
);

onDeno(
  "WebSocketSource loses no message of a socket of Deno.serve, and changes no order",
  () => losesNothing(denoServe),
);

onDeno(
  "WebSocketSource takes a hundred sockets of Deno.serve but for the one with half a message",
  () => takesMany(denoServe),
);

onDeno(
  "WebSocketSource asks the application of a socket of Deno.serve again that cannot let it go",
  () => heedsTheApplication(denoServe),
);

onDeno(
  "WebSocketSource asks the client of a socket of Deno.serve that has sent a ping",
  () => asksTheClient(denoServe, connects, pings),
);

onDeno(
  "WebSocketSource asks the client of a socket of Deno.serve that has written its request oddly",
  () => asksTheClient(denoServe, writesOddly),
);

onBun("WebSocketSource stops a socket of Bun.serve between two messages, and thaws it", () => thaws(bunServe));

onBun("WebSocketSource lets a socket of Bun.serve leave, and its client does not notice", () => leaves(bunServe));

onBun("WebSocketSource waits for the end of a frame of a socket of Bun.serve", () => waitsForFrames(bunServe));

onBun(
  "WebSocketSource waits for the last frame of a message of a socket of Bun.serve",
  () => waitsForMessages(bunServe),
);

onBun("WebSocketSource loses no message of a socket of Bun.serve, and changes no order", () => losesNothing(bunServe));

onBun(
  "WebSocketSource takes a hundred sockets of Bun.serve but for the one with half a message",
  () => takesMany(bunServe),
);

onBun(
  "WebSocketSource asks the application of a socket of Bun.serve again that cannot let it go",
  () => heedsTheApplication(bunServe),
);

onBun("WebSocketSource keeps compressed sockets of Bun.serve", () => keepsCompressed(bunServe));

onBun(
  "WebSocketSource asks the client of a socket of Bun.serve that has written its request oddly",
  () => asksTheClient(bunServe, writesOddly),
);
