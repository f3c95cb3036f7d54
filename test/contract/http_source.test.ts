import assert from "node:assert/strict";
import type { Frozen } from "../../src/connections/movable.ts";
import { OwnedDescriptor } from "../../src/sockets/descriptors.ts";
import { bindDatagram } from "../../src/sockets/datagram.ts";
import { unreadSize } from "../../src/sockets/queues.ts";
import { connectSocket, cookieOf, duplicate, localAddress, peerAddress } from "../../src/sockets/socket.ts";
import { rawRead, rawState, rawWrite } from "./ends.ts";
import {
  answered,
  asked,
  bigSize,
  bunHttp,
  denoHttp,
  found,
  frozen,
  frozenAll,
  get,
  type HttpKind,
  nodeHttpKind,
  nodeUpgradeKind,
  noneFrozen,
  serving,
  type Serving,
} from "./http_ends.ts";
import { openClient } from "./steering_ends.ts";
import { runtime, sleep, test, until } from "./support.ts";

/** Long enough that only what is proven is frozen. */
const never = { quietMs: 1_000_000 };

/** Lets the kernel's clock go on. */
const tickMs = 12;

/** A server, and what a test does with it. */
async function on(kind: HttpKind, use: (server: Serving) => Promise<void>, options = {}): Promise<void> {
  const server = await serving(kind, { ...never, ...options });
  try {
    await use(server);
  } finally {
    await server.close();
  }
}

/** What a successor does: it keeps a copy, and the server lets go. */
function moved(connection: Frozen): OwnedDescriptor {
  const copy = new OwnedDescriptor(runtime, duplicate(runtime, connection.descriptor));
  connection.leave();
  return copy;
}

/** Answers on a copy, as a successor would. */
async function answerOn(copy: OwnedDescriptor): Promise<void> {
  let text = "";
  await until(() => (text += rawRead(copy)).endsWith("\r\n\r\n"), () => `a request, came ${JSON.stringify(text)}`);
  assert.match(text, /^GET \S+ HTTP\/1\.1\r\n/);
  rawWrite(copy, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nmoved");
}

function tests(name: string, kind: HttpKind): void {
  test(`${name}: an idle connection is frozen, and its client goes on with the successor`, () =>
    on(kind, async (server) => {
      using client = server.connect();
      await asked(client, "/slow");
      server.start();
      const connection = await frozen(server);
      const { descriptor } = connection;
      assert.equal(cookieOf(runtime, descriptor), connection.cookie);
      assert.equal(connection.unread.length, 0);
      using copy = moved(connection);
      await until(() => localAddress(runtime, descriptor)?.family !== "inet", "the server to let go");
      await sleep(tickMs);
      assert.equal(rawState(client), "open");
      rawWrite(client, get("/next"));
      await answerOn(copy);
      await answered(client, "moved");
    }));

  test(`${name}: a frozen connection is not read, and thawed it answers what has come meanwhile`, () =>
    on(kind, async (server) => {
      using client = server.connect();
      await asked(client, "/slow");
      server.start();
      const connection = await frozen(server);
      rawWrite(client, get("/next"));
      await sleep(2 * tickMs);
      assert.equal(unreadSize(runtime, connection.descriptor), get("/next").length);
      connection.thaw(new Error("it was refused"), true);
      await answered(client);
      assert.deepEqual(server.source.census(), { waiting: 0, staying: { refused: 1 } });
      await asked(client);
    }));

  test(`${name}: a connection on which nothing was said is frozen`, () =>
    on(kind, async (server) => {
      using client = server.connect();
      await sleep(tickMs);
      server.start();
      using copy = moved(await frozen(server));
      rawWrite(client, get("/"));
      await answerOn(copy);
      await answered(client, "moved");
    }));

  test(`${name}: a request that is half-read keeps its connection, wherever it is cut`, () =>
    on(kind, async (server) => {
      const request = get("/");
      const cuts = [1, 3, 4, 10, request.length - 3, request.length - 1];
      const clients = cuts.map(() => server.connect());
      for (const [index, cut] of cuts.entries()) rawWrite(clients[index]!, request.slice(0, cut));
      await sleep(tickMs);
      server.start();
      await found(server, cuts.length);
      await noneFrozen(server, 60, true);
      for (const [index, cut] of cuts.entries()) rawWrite(clients[index]!, request.slice(cut));
      for (const client of clients) await answered(client);
      const connections = await frozenAll(server, cuts.length);
      for (const connection of connections) connection.thaw(new Error("it was refused"), true);
      for (const client of clients) client[Symbol.dispose]();
    }));

  test(`${name}: a request that begins in the tick of the answer before keeps its connection`, () =>
    on(kind, async (server) => {
      using client = server.connect();
      await asked(client);
      rawWrite(client, "GET /ne");
      await sleep(tickMs);
      server.start();
      await found(server, 1);
      await noneFrozen(server);
      rawWrite(client, "xt HTTP/1.1\r\nHost: test\r\n\r\n");
      await answered(client);
      using copy = moved(await frozen(server));
      rawWrite(client, get("/"));
      await answerOn(copy);
      await answered(client, "moved");
    }));

  test(`${name}: a request that begins after an answer that was watched keeps its connection`, () =>
    on(kind, async (server) => {
      using client = server.connect();
      server.start();
      await found(server, 1);
      await asked(client);
      rawWrite(client, "GET /ne");
      const parked = server.source.ready(1, false).map((movable) => movable.freeze());
      for (const connection of parked) connection?.thaw(new Error("it was refused"), true);
      await sleep(tickMs);
      rawWrite(client, "xt HTTP/1.1\r\nHost: test\r\n\r\n");
      await answered(client);
    }));

  test(`${name}: a body that is on its way keeps its connection`, () =>
    on(kind, async (server) => {
      using client = server.connect();
      await asked(client, "/slow");
      rawWrite(client, "POST /body HTTP/1.1\r\nHost: test\r\nContent-Length: 11\r\n\r\nhel");
      await sleep(tickMs);
      server.start();
      await noneFrozen(server, 80, true);
      rawWrite(client, "lo world");
      await answered(client, "hello world");
    }));

  test(`${name}: an answer that comes before the body is whole is no boundary`, () =>
    on(kind, async (server) => {
      using client = server.connect();
      await asked(client, "/slow");
      rawWrite(client, "POST /slow HTTP/1.1\r\nHost: test\r\nContent-Length: 10\r\n\r\nhel");
      await answered(client);
      await sleep(tickMs);
      server.start();
      await noneFrozen(server, 80, true);
    }));

  test(`${name}: a request whose handler is running keeps its connection`, () =>
    on(kind, async (server) => {
      using client = server.connect();
      await asked(client, "/slow");
      rawWrite(client, get("/held"));
      await sleep(tickMs);
      server.start();
      await noneFrozen(server, 80, true);
      assert.deepEqual(server.source.census(), { waiting: 1, staying: {} });
      server.release();
      await answered(client);
      (await frozen(server)).thaw(new Error("it was refused"), true);
    }));

  test(`${name}: an answer that is streamed keeps its connection, between two of its parts too`, () =>
    on(kind, async (server) => {
      using client = server.connect();
      rawWrite(client, get("/stream"));
      await answered(client, "begun");
      await sleep(2 * tickMs);
      server.start();
      await noneFrozen(server, 80, true);
      // Of a request that Node was answering already nothing is known but that its parser has not ended.
      const reason = runtime.name === "node" ? { waiting: 1, staying: {} } : { waiting: 0, staying: { streaming: 1 } };
      assert.deepEqual(server.source.census(), reason);
      server.release();
      await answered(client, "done");
      (await frozen(server)).thaw(new Error("it was refused"), true);
    }));

  test(`${name}: an answer that does not fit into the kernel keeps its connection`, () =>
    on(kind, async (server) => {
      using client = server.connect();
      rawWrite(client, get("/big"));
      await sleep(10 * tickMs);
      server.start();
      await noneFrozen(server, 80, true);
      let size = 0;
      await until(() => (size += rawRead(client).length) >= bigSize, () => `${bigSize} bytes, came ${size}`);
      using copy = moved(await frozen(server));
      rawWrite(client, get("/"));
      await answerOn(copy);
      await answered(client, "moved");
    }, { quietMs: 200 }));

  test(`${name}: a client that asks without a pause is frozen after an answer, and loses nothing`, () =>
    on(kind, async (server) => {
      const clients = Array.from({ length: 4 }, () => server.connect());
      for (const client of clients) await asked(client);
      server.start();
      await found(server, clients.length);
      const asking = clients.map((client) => ({ client, text: "" }));
      for (const client of clients) rawWrite(client, get("/"));
      const copies: OwnedDescriptor[] = [];
      await until(() => {
        for (const each of asking) {
          each.text += rawRead(each.client);
          if (!each.text.endsWith("hello")) continue;
          each.text = "";
          rawWrite(each.client, get("/"));
        }
        for (const movable of server.source.ready(4, false)) {
          const connection = movable.freeze();
          if (connection) copies.push(moved(connection));
        }
        return copies.length === clients.length;
      }, () => `4 connections, ${copies.length} were frozen; ${JSON.stringify(server.source.census())}`);
      for (const copy of copies) void answerOn(copy);
      for (const { client } of asking) await answered(client, "moved");
      for (const end of [...clients, ...copies]) end[Symbol.dispose]();
    }));

  test(`${name}: requests that come together are all answered`, () =>
    on(kind, async (server) => {
      using client = server.connect();
      await asked(client, "/slow");
      server.start();
      (await frozen(server)).thaw(new Error("it was refused"), true);
      rawWrite(client, get("/").repeat(4));
      let text = "";
      await until(() => {
        for (const movable of server.source.ready(1, false)) movable.freeze()?.thaw(new Error("it was refused"), true);
        return (text += rawRead(client)).split("HTTP/1.1 200").length === 5;
      }, () => `four answers, came ${text}`);
    }));

  test(`${name}: a connection that its client has ended is not frozen`, () =>
    on(kind, async (server) => {
      const client = server.connect();
      await asked(client, "/held/not");
      client[Symbol.dispose]();
      server.start();
      await noneFrozen(server, 60, true);
    }));

  test(`${name}: excluded connections are not touched`, () =>
    on(kind, async (server) => {
      using client = server.connect();
      await asked(client, "/slow");
      server.start();
      await noneFrozen(server, 60, true);
      assert.deepEqual(server.source.census(), { waiting: 0, staying: {} });
    }, { isExcluded: () => true }));

  test(`${name}: what is parked when it stops is answered`, () =>
    on(kind, async (server) => {
      using client = server.connect();
      await asked(client, "/slow");
      server.start();
      server.source.ready(0, false);
      rawWrite(client, get("/"));
      await answered(client);
      rawWrite(client, get("/"));
      server.source.stop();
      await answered(client);
    }));
}

const handshake = "GET /socket HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" +
  "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

function upgradeTests(name: string, kind: HttpKind): void {
  test(`${name}: a WebSocket that nobody watches is not frozen, whenever it was opened`, () =>
    on(kind, async (server) => {
      const clients = [server.connect(), server.connect(), server.connect()] as const;
      const [early, late, plain] = clients;
      await asked(plain, "/slow");
      rawWrite(early, handshake);
      await answered(early, "\r\n\r\n");
      await sleep(tickMs);
      server.start();
      await found(server, clients.length);
      rawWrite(late, handshake);
      await answered(late, "\r\n\r\n");
      await sleep(tickMs);
      await asked(plain, "/slow");
      const connection = await frozen(server);
      rawWrite(plain, get("/"));
      connection.thaw(new Error("it was refused"), true);
      await answered(plain);
      await noneFrozen(server, 80, true);
      for (const client of clients) client[Symbol.dispose]();
    }, { quietMs: 20 }));
}

/** What a wrong decision would do: it is known that the tests above can see it. */
test("a connection that is taken in the middle of a request gives its successor something else", () =>
  on(nodeHttpKind, async (server) => {
    using client = server.connect();
    rawWrite(client, "GET /ne");
    await sleep(tickMs);
    server.start();
    await found(server, 1);
    const [known] = server.connections.of("web");
    using copy = new OwnedDescriptor(runtime, duplicate(runtime, known!.descriptor));
    rawWrite(client, "xt HTTP/1.1\r\nHost: test\r\n\r\n");
    // Before the server has had its turn.
    await assert.rejects(answerOn(copy), assert.AssertionError);
  }));

test("a flow of datagrams at the same address and port is no connection", () =>
  on(nodeHttpKind, async (server) => {
    using client = server.connect();
    await asked(client, "/slow");
    using flow = bindDatagram(runtime, peerAddress(runtime, client.number)!, { port: 0 });
    using peer = openClient();
    connectSocket(runtime, flow.number, localAddress(runtime, peer.number)!);
    server.start();
    using _copy = moved(await frozen(server));
    await found(server, 0);
  }));

tests("node:http", nodeHttpKind);
upgradeTests("node:http", nodeUpgradeKind);
if (runtime.name === "deno") {
  tests("Deno.serve", denoHttp);
  upgradeTests("Deno.serve", denoHttp);
}
if (runtime.name === "bun") {
  tests("Bun.serve", bunHttp);
  upgradeTests("Bun.serve", bunHttp);
}
