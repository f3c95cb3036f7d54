import assert from "node:assert/strict";
import { once } from "node:events";
import http from "node:http";
import net from "node:net";
import type { SocketAddress } from "../../src/c/sockaddr.ts";
import {
  type AcceptedOptions,
  acceptedSink,
  batchCount,
  saysNothing,
  SeatedSink,
} from "../../src/connections/accepted.ts";
import type { Arrival, Place, Sink } from "../../src/connections/movable.ts";
import { replayedSink, type ReplayedOptions } from "../../src/connections/replayed.ts";
import { correctInfo, TruePeers } from "../../src/connections/true_peers.ts";
import { defaultLimits } from "../../src/limits.ts";
import { adopt } from "../../src/natives/graft.ts";
import { freeDescriptorCount, OwnedDescriptor } from "../../src/sockets/descriptors.ts";
import { register } from "../../src/sockets/event_loop.ts";
import { bindListener } from "../../src/sockets/listener.ts";
import { cookieOf, identify, localAddress, peerAddress } from "../../src/sockets/socket.ts";
import { TemporaryFolder } from "../unit/children.ts";
import type { At } from "./natives.ts";
import { onBun, onDeno, patienceMs, reachable, runtime, takeoverError, test, until } from "./support.ts";

// deno-lint-ignore no-explicit-any
type Any = any;
const { Deno, Bun } = globalThis as Any;

const loopback: SocketAddress = { family: "inet", hostname: "127.0.0.1", port: 0 };

/** A request as the servers here see it: who asks, the path, the body. */
type Answer = (peerPort: number, path: string, body: string) => string;

/** Answers `/size` with so many bytes, and everything else with what was asked. */
const answer: Answer = (peerPort, path, body) =>
  path.startsWith("/big") ? "x".repeat(Number(path.slice(4))) : `port ${peerPort} path ${path} body ${body}`;

/** One kind of HTTP server. */
interface Kind {
  open(at: At, peers: TruePeers): unknown;
  close(server: Any): unknown;
}

const served: Kind = runtime.name === "deno"
  ? {
    open: (at, peers) =>
      Deno.serve({ ...at, onListen() {} }, async (request: Request, info: Any) => {
        correctInfo(info, peers);
        const { pathname } = new URL(request.url);
        return new Response(answer(info.remoteAddr.port, pathname, await request.text()));
      }),
    close: (server) => server.shutdown(),
  }
  : {
    open: (at) =>
      Bun.serve({
        ...at,
        async fetch(request: Request, server: Any) {
          const { port } = server.requestIP(request) ?? {};
          return new Response(answer(port, new URL(request.url).pathname, await request.text()));
        },
      }),
    close: (server) => server.stop(true),
  };

/** The sockets of a server of node:http here. */
const nodeHttp: Kind = {
  open: (at) =>
    http.createServer(async (request, response) => {
      let body = "";
      for await (const chunk of request) body += chunk;
      response.end(answer(request.socket.remotePort!, request.url!, body));
    }).listen(at),
  async close(server: http.Server) {
    const isClosed = once(server, "close");
    server.close();
    server.closeAllConnections();
    await isClosed;
  },
};

/** A server in this process, and the sinks for it. */
interface Own {
  readonly native: unknown;
  readonly options: AcceptedOptions;
  readonly failures: unknown[];
}

/** Runs something with a server that was opened as an endpoint's is. */
async function serving(
  { open, close }: Kind,
  address: SocketAddress,
  use: (own: Own) => Promise<void>,
  more: Partial<AcceptedOptions> & { ipv6Only?: boolean } = {},
): Promise<void> {
  const peers = new TruePeers(runtime);
  const failures: unknown[] = [];
  const socket = bindListener(runtime, address, { port: 0, ipv6Only: more.ipv6Only ?? false });
  const identity = identify(runtime, socket.number)!;
  const { native, descriptor, registrations } = await adopt(
    runtime,
    defaultLimits,
    "web",
    socket,
    identity,
    ((at: At) => open(at, peers)) as never,
  );
  register(runtime, registrations);
  const options: AcceptedOptions = {
    address: identity.address,
    listener: descriptor,
    native,
    openMs: patienceMs,
    spareCount: 32,
    peers,
    failed: (error) => failures.push(error),
    ...more,
  };
  try {
    await use({ native, options, failures });
    assert.deepEqual(failures, []);
  } finally {
    await close(native);
  }
}

/** A connection that another process has accepted: its client, and the socket as it arrives. */
interface Pair {
  readonly client: net.Socket;
  readonly arrival: Arrival;
}

async function pairs(count: number, address: SocketAddress = loopback, unread = new Uint8Array(0)): Promise<Pair[]> {
  const made: Pair[] = [];
  const listener = bindListener(runtime, address, { port: 0 });
  const to = reachable(localAddress(runtime, listener.number)!);
  for (let index = 0; index < count; index++) {
    const client = net.connect({ ...to, allowHalfOpen: true } as net.NetConnectOpts);
    client.on("error", () => {});
    await once(client, "connect");
    let number = -1;
    await until(() => {
      number = runtime.libc.accept4(listener.number, null, null, 0o2004000);
      return number >= 0;
    }, "a connection");
    made.push({
      client,
      arrival: {
        descriptor: new OwnedDescriptor(runtime, number),
        cookie: cookieOf(runtime, number),
        local: localAddress(runtime, number)!,
        peer: peerAddress(runtime, number)!,
        state: null,
        unread,
      },
    });
  }
  listener[Symbol.dispose]();
  return made;
}

/** Puts connections where they belong; every one has a place. */
async function move(sink: Sink, moved: readonly Pair[]): Promise<void> {
  for (let from = 0; from < moved.length; from += batchCount) {
    const places = await sink.prepare(moved.slice(from, from + batchCount).map(({ arrival }) => arrival));
    for (const place of places) committed(place);
  }
  for (const { arrival } of moved) assert.equal(arrival.descriptor.number, -1);
}

function committed(place: Place | Error | undefined): void {
  if (place instanceof Error) throw place;
  place!.commit();
}

/** The next answer on a connection, read to the length that it says; what comes after is kept. */
async function nextAnswer(client: net.Socket): Promise<string> {
  const text = await textUntil(client, (text) => {
    const head = text.indexOf("\r\n\r\n");
    const length = Number(/content-length: (\d+)/i.exec(text)?.[1]);
    return head >= 0 && text.length >= head + 4 + length ? head + 4 + length : -1;
  });
  return text.slice(text.indexOf("\r\n\r\n") + 4);
}

/** Reads until a function says where the end is. */
async function textUntil(client: net.Socket, endOf: (text: string) => number): Promise<string> {
  let text = "";
  let hasEnded = false;
  const onData = (bytes: Uint8Array) => text += new TextDecoder("latin1").decode(bytes);
  const onEnd = () => hasEnded = true;
  client.on("data", onData).on("end", onEnd).on("close", onEnd);
  await until(() => hasEnded || endOf(text) >= 0, () => `an answer after ${JSON.stringify(text.slice(0, 200))}`);
  client.off("data", onData).off("end", onEnd).off("close", onEnd);
  assert.ok(endOf(text) >= 0, `the connection has ended after ${JSON.stringify(text.slice(0, 200))}`);
  return text.slice(0, endOf(text));
}

const get = (path: string) => `GET ${path} HTTP/1.1\r\nHost: test\r\n\r\n`;

async function asks(client: net.Socket, path: string): Promise<string> {
  client.write(get(path));
  return await nextAnswer(client);
}

/** What the servers answer to somebody who is at that port. */
const expected = (client: net.Socket, path: string, body = "") => answer(client.localPort!, path, body);

/** Every connection asks twice, and gets its own answers. */
async function speaks(moved: readonly Pair[]): Promise<void> {
  const ask = async ({ client }: Pair) => {
    for (const path of ["/first", "/second"]) assert.equal(await asks(client, path), expected(client, path));
  };
  await Promise.all(moved.map(ask));
}

async function gone(moved: readonly Pair[]): Promise<void> {
  for (const { client } of moved) client.destroy();
  await until(() => moved.every(({ client }) => client.closed), "the clients to close");
}

/** Those connections, moved, go on. */
const movesMany = (kind: Kind, count: number, address = loopback, from = loopback, ipv6Only = false) =>
  serving(kind, address, async ({ options }) => {
    const moved = await pairs(count, from);
    await move(acceptedSink(runtime, options), moved);
    await speaks(moved);
    await gone(moved);
  }, { ipv6Only });

/** Of those that node:http would be given, too. */
const seated = (own: Own) => new SeatedSink(runtime, own.options, saysNothing);

function onServed(name: string, body: (kind: Kind) => Promise<void>): void {
  onDeno(`${name} (Deno.serve)`, () => body(served));
  onBun(`${name} (Bun.serve)`, () => body(served));
}

onServed("acceptedSink puts a connection under the server, which tells its true peer", (kind) => movesMany(kind, 1));

test("acceptedSink gives node:http a connection, which tells its true peer", () => movesMany(nodeHttp, 1));

onServed("acceptedSink puts 300 connections under the server", (kind) => movesMany(kind, 300));

test("acceptedSink gives node:http 300 connections", () => movesMany(nodeHttp, 300));

const all4: SocketAddress = { family: "inet", hostname: "0.0.0.0", port: 0 };
const all6: SocketAddress = { family: "inet6", hostname: "::", port: 0 };
const loopback6: SocketAddress = { family: "inet6", hostname: "::1", port: 0 };

onServed("acceptedSink reaches a server at 0.0.0.0", (kind) => movesMany(kind, 3, all4));

onServed("acceptedSink reaches a server at ::", (kind) => movesMany(kind, 3, all6, loopback6));

onServed(
  "acceptedSink reaches a server at :: that takes IPv6 only",
  (kind) => movesMany(kind, 3, all6, loopback6, true),
);

onServed("acceptedSink reaches a server at ::1", (kind) => movesMany(kind, 3, loopback6, loopback6));

onServed("acceptedSink reaches a server on a Unix path", async (kind) => {
  using folder = new TemporaryFolder();
  await serving(kind, { family: "unix", path: folder.file("web") }, async ({ options }) => {
    const moved = await pairs(3, { family: "unix", path: folder.file("old") });
    await move(acceptedSink(runtime, options), moved);
    for (const { client } of moved) assert.match(await asks(client, "/unix"), /path \/unix body $/);
    await gone(moved);
  });
});

test("acceptedSink gives node:http connections of a Unix path", async () => {
  using folder = new TemporaryFolder();
  await serving(nodeHttp, { family: "unix", path: folder.file("web") }, async ({ options }) => {
    const moved = await pairs(3, { family: "unix", path: folder.file("old") });
    await move(acceptedSink(runtime, options), moved);
    for (const { client } of moved) assert.match(await asks(client, "/unix"), /path \/unix body $/);
    await gone(moved);
  });
});

test("SeatedSink puts connections under a server of node:http", () =>
  serving(nodeHttp, loopback, async (own) => {
    const moved = await pairs(20);
    await move(seated(own), moved);
    await speaks(moved);
    await gone(moved);
  }));

/** What has come already is told of. */
const readsWhatWaits = (kind: Kind) =>
  serving(kind, loopback, async ({ options }) => {
    const moved = await pairs(10);
    for (const { client } of moved) await new Promise((resolve) => client.write(get("/waits"), resolve));
    await move(acceptedSink(runtime, options), moved);
    for (const { client } of moved) assert.equal(await nextAnswer(client), expected(client, "/waits"));
    await gone(moved);
  });

onServed("acceptedSink reads what waits in a connection already", readsWhatWaits);

test("acceptedSink reads what waits in a connection of node:http already", () => readsWhatWaits(nodeHttp));

/** Clients that come meanwhile are answered as who they are. */
const tellsApart = (kind: Kind) =>
  serving(kind, loopback, async ({ options }) => {
    const moved = await pairs(100);
    let isMoving = true;
    let freshCount = 0;
    const fresh = async () => {
      do {
        const client = net.connect(reachable(options.address));
        await once(client, "connect");
        assert.equal(await asks(client, "/fresh"), expected(client, "/fresh"));
        client.destroy();
        freshCount++;
      } while (isMoving);
    };
    const asking = Promise.all([fresh(), fresh(), fresh()]);
    await move(acceptedSink(runtime, options), moved);
    await speaks(moved);
    isMoving = false;
    await asking;
    assert.ok(freshCount >= 3);
    await gone(moved);
  });

onServed("acceptedSink takes no client of the server for its own", tellsApart);

/** A request of which the old process has read some; the rest comes from the client. */
const post = "POST /post HTTP/1.1\r\nHost: test\r\nContent-Length: 10\r\n\r\n0123456789";

const bytesOf = (text: string) => new TextEncoder().encode(text);

async function goesOnAt(own: Own, sink: Sink, sizes: readonly number[]): Promise<void> {
  const moved: Pair[] = [];
  for (const size of sizes) moved.push(...await pairs(1, loopback, bytesOf(post.slice(0, size))));
  for (const [index, { client }] of moved.entries()) client.write(post.slice(sizes[index]));
  await move(sink, moved);
  for (const { client } of moved) assert.equal(await nextAnswer(client), expected(client, "/post", "0123456789"));
  await speaks(moved);
  await gone(moved);
  assert.deepEqual(own.failures, []);
}

/** Every third byte, the end of the head, and the whole request. */
const thirds = Array.from({ length: Math.floor(post.length / 3) }, (_, index) => 1 + 3 * index);
const splits = [...thirds, post.indexOf("0123"), post.length - 1, post.length];

onServed("acceptedSink has the server read what was read elsewhere, wherever that ends", (kind) =>
  serving(kind, loopback, (own) => goesOnAt(own, acceptedSink(runtime, own.options), splits)));

test("acceptedSink has node:http read what was read elsewhere, wherever that ends", () =>
  serving(nodeHttp, loopback, (own) => goesOnAt(own, acceptedSink(runtime, own.options), splits)));

test("SeatedSink has a server of node:http read what was read elsewhere, wherever that ends", () =>
  serving(nodeHttp, loopback, (own) => goesOnAt(own, seated(own), splits)));

const bigSize = 5_000_000;

/** The whole request was read elsewhere, and the answer is more than any buffer holds. */
const answersSlowReader = (kind: Kind, sinkOf: (own: Own) => Sink) =>
  serving(kind, loopback, async (own) => {
    const moved = await pairs(2, loopback, bytesOf(get(`/big${bigSize}`)));
    for (const { client } of moved) client.pause();
    await move(sinkOf(own), moved);
    await new Promise((resolve) => setTimeout(resolve, 50));
    for (const { client } of moved) {
      client.resume();
      assert.equal((await nextAnswer(client)).length, bigSize);
    }
    await speaks(moved);
    await gone(moved);
  });

onServed("acceptedSink passes an answer on to a client that reads slowly", (kind) =>
  answersSlowReader(kind, ({ options }) => acceptedSink(runtime, options)));

test("acceptedSink gives node:http a connection with a client that reads slowly", () =>
  answersSlowReader(nodeHttp, ({ options }) => acceptedSink(runtime, options)));

test("SeatedSink passes an answer on to a client that reads slowly", () => answersSlowReader(nodeHttp, seated));

/** A request after which the server closes: the client gets the answer and the end. */
const closesAfter = (kind: Kind, sinkOf: (own: Own) => Sink) =>
  serving(kind, loopback, async (own) => {
    const last = get("/last").replace("Host", "Connection: close\r\nHost");
    const moved = await pairs(2, loopback, bytesOf(last));
    await move(sinkOf(own), moved);
    for (const { client } of moved) {
      const ended = once(client, "end");
      assert.equal(await nextAnswer(client), expected(client, "/last"));
      await ended;
    }
    await gone(moved);
  });

test("SeatedSink ends a connection that its server ends, after the answer", () => closesAfter(nodeHttp, seated));

/** It stays with the incumbent, which reads what comes then. */
const cancels = (kind: Kind, sinkOf: (own: Own) => Sink) =>
  serving(kind, loopback, async (own) => {
    const [pair] = await pairs(1);
    const { client, arrival } = pair!;
    const [place] = await sinkOf(own).prepare([arrival]);
    (place as Place).cancel();
    using descriptor = arrival.descriptor;
    client.write("stays");
    const bytes = new Uint8Array(new ArrayBuffer(16));
    await until(() => runtime.libc.read(descriptor.number, bytes, bytes.length) === 5, "the bytes");
    await gone([pair!]);
  });

onServed("a place that is cancelled leaves the connection as it was", (kind) =>
  cancels(kind, ({ options }) => acceptedSink(runtime, options)));

test("a place in a server of node:http that is cancelled leaves the connection as it was", async () => {
  await cancels(nodeHttp, ({ options }) => acceptedSink(runtime, options));
  await cancels(nodeHttp, seated);
});

test("SeatedSink gives up a connection when its server reads nothing for stallMs", async () => {
  const deaf: Kind = { ...nodeHttp, open: (at) => http.createServer(() => {}).listen(at) };
  await serving(deaf, loopback, async (own) => {
    const head = "POST /deaf HTTP/1.1\r\nHost: test\r\nContent-Length: 20000000\r\n\r\n";
    const moved = await pairs(1, loopback, bytesOf(head + "z".repeat(20_000_000)));
    const ended = once(moved[0]!.client, "close");
    await move(seated(own), moved);
    moved[0]!.client.resume().on("end", () => moved[0]!.client.destroy());
    await ended;
    const [error] = own.failures.splice(0) as Error[];
    assert.match(error!.message, /under its server: neither side has read anything for 100 ms$/);
    await gone(moved);
  }, { stallMs: 100 });
});

test("SeatedSink connects again when the server has closed a place before it was taken", async () => {
  await serving(nodeHttp, loopback, async (own) => {
    const accepted: net.Socket[] = [];
    (own.native as http.Server).on("connection", (socket) => accepted.push(socket));
    const moved = await pairs(2);
    const places = await seated(own).prepare(moved.map(({ arrival }) => arrival));
    accepted[0]!.destroy();
    await until(() => accepted[0]!.closed, "the server's end to close");
    for (const place of places) committed(place);
    await speaks(moved);
    assert.equal(accepted.length, 3);
    await gone(moved);
  });
});

/** The number of those that have a place; the others say why. */
async function placesWith(more: Partial<AcceptedOptions>, count: number, code: string): Promise<number> {
  let placeCount = 0;
  await serving(nodeHttp, loopback, async (own) => {
    const moved = await pairs(count);
    for (const place of await seated(own).prepare(moved.map(({ arrival }) => arrival))) {
      if (place instanceof Error) assert.equal((place as Error & { code: string }).code, code);
      else {
        placeCount++;
        place.cancel();
      }
    }
    for (const { arrival } of moved) arrival.descriptor[Symbol.dispose]();
    await gone(moved);
  }, more);
  return placeCount;
}

test("SeatedSink refuses with ERR_TAKEOVER_NO_ROOM what the descriptor table has no room for", async () => {
  // Server, listener, clients and arrivals come on top.
  const spareCount = freeDescriptorCount(runtime) - 70;
  const count = await placesWith({ spareCount }, 30, "ERR_TAKEOVER_NO_ROOM");
  assert.ok(count > 0 && count < 30, `${count} places`);
  assert.equal(await placesWith({ spareCount: 10_000_000 }, 2, "ERR_TAKEOVER_NO_ROOM"), 0);
});

test("SeatedSink prepares 256 connections at once", async () => {
  assert.equal(await placesWith({}, batchCount + 1, "ERR_TAKEOVER_NO_ROOM"), batchCount);
});

test("SeatedSink refuses with ERR_TAKEOVER_ADOPT when the server does not accept in time", async () => {
  using queue = bindListener(runtime, loopback, { port: 0 });
  const address = localAddress(runtime, queue.number)!;
  assert.equal(await placesWith({ address, listener: queue.number, openMs: 100 }, 2, "ERR_TAKEOVER_ADOPT"), 0);
});

test("SeatedSink refuses with ERR_TAKEOVER_ADOPT when nothing listens", async () => {
  const queue = bindListener(runtime, loopback, { port: 0 });
  const address = localAddress(runtime, queue.number)!;
  queue[Symbol.dispose]();
  assert.equal(await placesWith({ address, openMs: 100 }, 2, "ERR_TAKEOVER_ADOPT"), 0);
});

test("SeatedSink refuses a connection of another family", async () => {
  await serving(nodeHttp, loopback, async (own) => {
    const moved = await pairs(1, loopback6);
    const [place] = await seated(own).prepare([moved[0]!.arrival]);
    const { message } = place as Error;
    assert.match(message, /^Cannot put the connection at \[::1\]:\d+ under .* expected one of the family inet$/);
    moved[0]!.arrival.descriptor[Symbol.dispose]();
    await gone(moved);
  });
});

/** A body in chunks that is more than any buffer holds. */
const takesChunks = (kind: Kind) =>
  serving(kind, loopback, async ({ options }) => {
    const moved = await pairs(1);
    const { client } = moved[0]!;
    await move(acceptedSink(runtime, options), moved);
    client.write("POST /chunks HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n");
    const chunk = "y".repeat(50_000);
    for (let count = 0; count < 20; count++) client.write(`${chunk.length.toString(16)}\r\n${chunk}\r\n`);
    const whole = expected(client, "/chunks", chunk.repeat(20));
    client.write("0\r\n\r\n");
    assert.ok(await nextAnswer(client) === whole);
    await gone(moved);
  });

onServed("a connection that was moved takes a body in chunks", takesChunks);

test("a connection that node:http was given takes a body in chunks", () => takesChunks(nodeHttp));

test("acceptedSink gives node:http connections that it counts, and waits for when it closes", async () => {
  await serving({ ...nodeHttp, close: () => {} }, loopback, async ({ native, options }) => {
    const server = native as http.Server;
    const moved = await pairs(2);
    await move(acceptedSink(runtime, options), moved);
    await speaks(moved);
    const isClosed = once(server, "close");
    let hasClosed = false;
    void isClosed.then(() => hasClosed = true);
    if (runtime.name !== "bun") {
      assert.equal(await new Promise((resolve) => server.getConnections((_, count) => resolve(count))), 2);
    }
    server.close();
    server.closeAllConnections();
    await isClosed;
    await gone(moved);
    assert.equal(hasClosed, true);
  });
});

test("TruePeers forgets a connection that has ended", async () => {
  const peers = new TruePeers(runtime);
  const [pair] = await pairs(1);
  const { client, arrival: { descriptor, peer, cookie } } = pair!;
  const name: SocketAddress = { family: "inet", hostname: "127.9.9.9", port: 999 };
  peers.add(name, peer!, descriptor.number, cookie);
  assert.deepEqual(peers.of("127.9.9.9", 999), peer);
  assert.deepEqual(peers.of("::ffff:127.9.9.9", 999), peer);
  assert.equal(peers.of("127.9.9.9", 998), null);
  assert.equal(peers.has(name), true);
  descriptor[Symbol.dispose]();
  assert.equal(peers.of("127.9.9.9", 999), null);
  assert.equal(peers.size, 0);
  await gone([{ client, arrival: pair!.arrival }]);
});

test("TruePeers does not grow with connections that have ended", () => {
  const peers = new TruePeers(runtime);
  for (let port = 1; port <= 2_000; port++) {
    peers.add({ family: "inet", hostname: "127.9.9.9", port }, loopback, -1, "ended");
  }
  assert.ok(peers.size <= 256, `${peers.size} are kept`);
});

const key = "dGhlIHNhbXBsZSBub25jZQ==";

const upgrade = (path: string) =>
  bytesOf(
    `GET ${path} HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n` +
      `Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: ${key}\r\n\r\n`,
  );

/** A text message of a client, masked with zeros (RFC 6455, section 5.2). */
const fromClient = (text: string) => Uint8Array.of(0x81, 0x80 | text.length, 0, 0, 0, 0, ...bytesOf(text));

/** A text message of a server. */
const fromServer = (text: string) => String.fromCharCode(0x81, text.length) + text;

/** Echoes, says hello first, and refuses every path but `/ws`. */
const websockets: Kind = runtime.name === "deno"
  ? {
    open: (at) =>
      Deno.serve({ ...at, onListen() {} }, (request: Request) => {
        if (new URL(request.url).pathname !== "/ws") return new Response("no", { status: 404 });
        const { socket, response } = Deno.upgradeWebSocket(request);
        socket.onopen = () => socket.send("hello");
        socket.onmessage = ({ data }: Any) => socket.send(`echo ${data}`);
        socket.onerror = () => {};
        return response;
      }),
    close: (server) => server.shutdown(),
  }
  : {
    open: (at) =>
      Bun.serve({
        ...at,
        fetch(request: Request, server: Any) {
          const isUpgraded = new URL(request.url).pathname === "/ws" && server.upgrade(request);
          return isUpgraded ? undefined : new Response("no", { status: 404 });
        },
        websocket: {
          open: (socket: Any) => void socket.send("hello"),
          message: (socket: Any, data: string) => void socket.send(`echo ${data}`),
        },
      }),
    close: (server) => server.stop(true),
  };

/** The same, written by hand over node:http; one short frame at a time. */
const upgraded: Kind = {
  open: (at) =>
    http.createServer().on("upgrade", (request, socket: net.Socket) => {
      if (request.url !== "/ws") return void socket.end("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
      socket.on("error", () => {});
      socket.on("end", () => socket.end());
      socket.write("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n");
      socket.write(fromServer("hello"), "latin1");
      let bytes = new Uint8Array(0);
      socket.on("data", (chunk: Uint8Array) => {
        bytes = Uint8Array.from([...bytes, ...chunk]);
        while (bytes.length >= 6 && bytes.length >= 6 + (bytes[1]! & 0x7f)) {
          const size = 6 + (bytes[1]! & 0x7f);
          socket.write(fromServer(`echo ${new TextDecoder().decode(bytes.subarray(6, size))}`), "latin1");
          bytes = bytes.slice(size);
        }
      });
    }).listen(at),
  close: nodeHttp.close,
};

function replaying(own: Own, more: Partial<ReplayedOptions> = {}): Sink {
  return replayedSink(runtime, { ...own.options, requestOf: () => upgrade("/ws"), checkHead: () => null, ...more });
}

/** Reads exactly that text, and nothing before it. */
async function says(client: net.Socket, text: string): Promise<void> {
  assert.equal(await textUntil(client, (found) => found.length >= text.length ? text.length : -1), text);
}

/** What the open handler has sent comes first, then the echo of what was read elsewhere, then of what is sent. */
const replays = (kind: Kind, count: number) =>
  serving(kind, loopback, async (own) => {
    const moved = await pairs(count, loopback, fromClient("half").slice(0, 8));
    for (const { client } of moved) client.write(fromClient("half").slice(8));
    await move(replaying(own), moved);
    for (const { client } of moved) await says(client, fromServer("hello") + fromServer("echo half"));
    for (const { client } of moved) {
      client.write(fromClient("more"));
      await says(client, fromServer("echo more"));
    }
    await gone(moved);
    await new Promise((resolve) => setTimeout(resolve, 50));
  });

onServed("replayedSink upgrades connections once more, and loses nothing that is said", () => replays(websockets, 20));

test("replayedSink upgrades connections of node:http once more, and loses nothing that is said", () =>
  replays(upgraded, 20));

/** Nothing was read elsewhere: the greeting is there before anything else. */
const greets = (kind: Kind) =>
  serving(kind, loopback, async (own) => {
    const moved = await pairs(20);
    await move(replaying(own), moved);
    for (const { client } of moved) {
      await says(client, fromServer("hello"));
      client.write(fromClient("more"));
      await says(client, fromServer("echo more"));
    }
    await gone(moved);
    await new Promise((resolve) => setTimeout(resolve, 50));
  });

onServed("replayedSink gives the client what the open handler sends", () => greets(websockets));

test("replayedSink gives the client what the open handler of node:http sends", () => greets(upgraded));

/** Why a connection is refused; it is the incumbent's still. */
async function refusal(kind: Kind, more: Partial<ReplayedOptions>): Promise<Error> {
  let found: unknown;
  await serving(kind, loopback, async (own) => {
    const moved = await pairs(1);
    [found] = await replaying(own, more).prepare([moved[0]!.arrival]);
    moved[0]!.arrival.descriptor[Symbol.dispose]();
    await gone(moved);
    await new Promise((resolve) => setTimeout(resolve, 50));
  });
  assert.ok(found instanceof Error);
  return found;
}

onServed("replayedSink refuses what the server does not upgrade", async () => {
  const { message } = await refusal(websockets, { requestOf: () => upgrade("/other") });
  assert.match(message, /expected 101 Switching Protocols, "HTTP\/1\.1 404 Not Found" came/);
});

test("replayedSink refuses what a server of node:http does not upgrade", async () => {
  const { message, ...error } = await refusal(upgraded, { requestOf: () => upgrade("/other") });
  assert.match(message, /expected 101 Switching Protocols, "HTTP\/1\.1 404 Not Found" came/);
  assert.equal((error as { code?: string }).code, takeoverError("ERR_TAKEOVER_ADOPT").code);
});

test("replayedSink refuses what checkHead finds wrong", async () => {
  const wrong = new Error("another subprotocol");
  let seen = "";
  const error = await refusal(upgraded, {
    checkHead(head) {
      seen = head;
      return wrong;
    },
  });
  assert.equal(error, wrong);
  assert.match(seen, /^HTTP\/1\.1 101 .*\r\n\r\n$/s);
});

test("replayedSink refuses when requestOf throws, and when no answer comes", async () => {
  const thrown = new Error("no request");
  const throws = () => {
    throw thrown;
  };
  assert.equal(await refusal(upgraded, { requestOf: throws }), thrown);
  const { message } = await refusal(upgraded, { requestOf: () => bytesOf("GET /ws HTTP/1.1\r\n"), openMs: 200 });
  assert.match(message, /nothing within 200 ms \(limit openMs\)/);
});

