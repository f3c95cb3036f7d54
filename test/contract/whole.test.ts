import assert from "node:assert/strict";
import http from "node:http";
import type net from "node:net";
import type { Frozen } from "../../src/connections/movable.ts";
import { OwnedDescriptor } from "../../src/sockets/descriptors.ts";
import { unreadSize } from "../../src/sockets/queues.ts";
import { duplicate } from "../../src/sockets/socket.ts";
import type { Drain } from "../../src/handover/drain.ts";
import { rawRead, rawState, rawWrite } from "./ends.ts";
import { answered, asked, found, frozen, frozenAll, type HttpKind, noneFrozen, serving, type Serving } from "./http_ends.ts";
import { runtime, sleep, test, until } from "./support.ts";

// deno-lint-ignore no-explicit-any
type Any = any;
const { Deno, Bun } = globalThis as Any;

/** Lets the kernel's clock go on. */
const tickMs = 12;

/** How many handlers were called. */
let count = 0;

async function answer(request: Request): Promise<Response> {
  count++;
  return new Response(`whole ${await request.text()}`);
}

function plain(drain: Drain): (request: Request, beside: unknown) => unknown {
  const whole = drain.whole((request: Request, _beside: unknown) => answer(request));
  return drain.fetch((request: Request, beside: unknown) =>
    request.method === "GET" ? new Response("hello") : whole(request, beside)
  );
}

const denoKind: HttpKind = {
  open(drain) {
    const server = Deno.serve({ hostname: "127.0.0.1", port: 0, onListen() {} }, plain(drain));
    return Promise.resolve({ port: server.addr.port, close: () => server.shutdown() });
  },
};

const bunKind: HttpKind = {
  open(drain) {
    const server = Bun.serve({ hostname: "127.0.0.1", port: 0, fetch: plain(drain), idleTimeout: 60 });
    return Promise.resolve({ port: server.port, close: () => server.stop(true) });
  },
};

const nodeKind: HttpKind = {
  async open(drain) {
    const whole = drain.wholeListener(async (request: http.IncomingMessage, response: http.ServerResponse) => {
      count++;
      let text = "";
      for await (const bytes of request) text += bytes;
      response.end(`whole ${text}`);
    });
    const server = http.createServer(drain.listener((request: http.IncomingMessage, response: http.ServerResponse) => {
      if (request.method === "GET") response.end("hello");
      else whole(request, response);
    })).listen(0, "127.0.0.1");
    await new Promise((resolve) => server.once("listening", resolve));
    const close = async () => {
      const closed = new Promise((resolve) => server.close(resolve));
      server.closeAllConnections();
      await closed;
    };
    return { port: (server.address() as net.AddressInfo).port, close };
  },
};

/** A server in whose connections only what is proven is frozen. */
async function on(kind: HttpKind, use: (server: Serving) => Promise<void>, quietMs = 1_000_000): Promise<void> {
  const server = await serving(kind, { quietMs });
  count = 0;
  try {
    await use(server);
  } finally {
    await server.close();
  }
}

function post(body: string, more = "", size = body.length): { head: string; text: string } {
  const head = `POST /whole?a=b HTTP/1.1\r\nHost: test\r\n${more}Content-Length: ${size}\r\n\r\n`;
  return { head, text: head + body };
}

/** Names of headers are compared in any case, and headers in any order. */
function message(bytes: Uint8Array): string[] {
  const [head, body] = new TextDecoder().decode(bytes).split("\r\n\r\n");
  const [line, ...headers] = head!.split("\r\n");
  return [line!, ...headers.map((header) => header.toLowerCase()).sort(), body!];
}

/** What a successor does: it keeps a copy, and the server lets go. */
function moved(connection: Frozen): OwnedDescriptor {
  const copy = new OwnedDescriptor(runtime, duplicate(runtime, connection.descriptor));
  connection.leave();
  return copy;
}

const { head, text } = post("hello world");

function tests(name: string, kind: HttpKind): void {
  test(`${name}: a body that is on its way is at hand, wherever it is cut`, () =>
    on(kind, async (server) => {
      const cuts = Array.from({ length: 11 }, (_, index) => head.length + index);
      const clients = cuts.map(() => server.connect());
      for (const [index, cut] of cuts.entries()) rawWrite(clients[index]!, text.slice(0, Math.min(cut, 30)));
      await sleep(tickMs);
      for (const [index, cut] of cuts.entries()) if (cut > 30) rawWrite(clients[index]!, text.slice(30, cut));
      await sleep(tickMs);
      server.start();
      const connections = await frozenAll(server, cuts.length);
      const unread = connections.map((connection) => new TextDecoder().decode(connection.unread).length);
      assert.deepEqual(unread.toSorted((one, other) => one - other), cuts);
      for (const connection of connections) {
        const cut = connection.unread.length;
        assert.deepEqual(message(connection.unread), message(new TextEncoder().encode(text.slice(0, cut))));
        const client = clients[cuts.indexOf(cut)]!;
        using copy = moved(connection);
        rawWrite(client, text.slice(cut));
        await sleep(tickMs);
        assert.equal(rawRead(copy), text.slice(cut));
        rawWrite(copy, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nmoved");
        assert.match(await answered(client, "moved"), /^HTTP\/1.1 200 OK\r\nContent-Length: 5\r\n\r\nmoved$/);
        assert.equal(rawState(client), "open");
        client[Symbol.dispose]();
      }
      assert.equal(count, 0, "no handler was called");
    }));

  test(`${name}: a head that is cut keeps its connection until its body begins`, () =>
    on(kind, async (server) => {
      const cuts = [1, 10, 40, head.length - 3, head.length - 1];
      const clients = cuts.map(() => server.connect());
      for (const [index, cut] of cuts.entries()) rawWrite(clients[index]!, text.slice(0, cut));
      await sleep(tickMs);
      server.start();
      await found(server, cuts.length);
      await noneFrozen(server, 60, true);
      for (const [index, cut] of cuts.entries()) rawWrite(clients[index]!, text.slice(cut, -3));
      const connections = await frozenAll(server, cuts.length);
      for (const connection of connections) {
        assert.deepEqual(message(connection.unread), message(new TextEncoder().encode(text.slice(0, -3))));
        connection.thaw(new Error("it was refused"), true);
      }
      for (const client of clients) {
        rawWrite(client, text.slice(-3));
        await answered(client, "whole hello world");
        client[Symbol.dispose]();
      }
      assert.equal(count, cuts.length);
    }));

  test(`${name}: thawed, it goes on collecting, what came meanwhile included, and its connection moves later`, () =>
    on(kind, async (server) => {
      using client = server.connect();
      rawWrite(client, text.slice(0, -6));
      await sleep(tickMs);
      server.start();
      const connection = await frozen(server);
      rawWrite(client, text.slice(-6, -3));
      await sleep(2 * tickMs);
      assert.equal(unreadSize(runtime, connection.descriptor), 3);
      connection.thaw(new Error("it was lost"));
      const again = await frozen(server);
      // On Deno and Bun what waits in the kernel need not have been read when it is taken out again.
      const left = unreadSize(runtime, again.descriptor);
      assert.equal(again.unread.length + left, text.length - 3);
      again.thaw(new Error("it was lost"));
      rawWrite(client, text.slice(-3));
      await answered(client, "whole hello world");
      assert.equal(count, 1);
      (await frozen(server)).thaw(new Error("it was lost"));
      await asked(client);
    }));

  test(`${name}: a body that comes without a pause is caught in its middle`, () =>
    on(kind, async (server) => {
      using client = server.connect();
      const { text } = post("x".repeat(400_000));
      server.start();
      let at = 0;
      const feed = setInterval(() => {
        if (at < text.length) rawWrite(client, text.slice(at, at += 2_000));
      }, 2);
      try {
        const connection = await frozen(server);
        assert.ok(connection.unread.length < text.length, "it is in the middle");
        using copy = moved(connection);
        let size = connection.unread.length;
        await until(() => (size += rawRead(copy).length) >= text.length, () => `${text.length} bytes, came ${size}`);
        assert.equal(size, text.length);
        rawWrite(copy, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nmoved");
        await answered(client, "moved");
      } finally {
        clearInterval(feed);
      }
      assert.equal(count, 0);
    }));

  test(`${name}: after a request that was watched the next one's body is at hand`, () =>
    on(kind, async (server) => {
      using client = server.connect();
      await asked(client);
      server.start();
      await found(server, 1);
      await asked(client);
      rawWrite(client, text.slice(0, -3));
      await until(() => {
        const [movable] = server.source.ready(1, false);
        const connection = movable?.freeze();
        connection?.thaw(new Error("it was lost"));
        return connection?.unread.length === text.length - 3;
      }, () => JSON.stringify(server.source.census()));
      rawWrite(client, text.slice(-3));
      await answered(client, "whole hello world");
      assert.equal(count, 1);
    }));

  test(`${name}: after a request that nobody watched, and where a head is not what it could be, it stays`, () =>
    on(kind, async (server) => {
      using late = server.connect();
      using wasteful = server.connect();
      await asked(late);
      rawWrite(late, text.slice(0, -3));
      const spaced = post("hello world", "X-Spaced:    x  \r\n").text;
      rawWrite(wasteful, spaced.slice(0, -3));
      await sleep(tickMs);
      server.start();
      await noneFrozen(server, 400, true);
      assert.deepEqual(server.source.census(), { waiting: 2, staying: {} });
      rawWrite(late, text.slice(-3));
      rawWrite(wasteful, spaced.slice(-3));
      await answered(late, "whole hello world");
      await answered(wasteful, "whole hello world");
      for (const connection of await frozenAll(server, 2)) {
        assert.equal(connection.unread.length, 0);
        connection.thaw(new Error("it was lost"));
      }
      assert.equal(count, 2);
    }, 50));

  test(`${name}: what is too large, in chunks, the last or waits for leave goes to its handler as it comes`, () =>
    on(kind, async (server) => {
      server.drain.bodySize = 10;
      const chunked = "POST / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n";
      const begun = [
        text.slice(0, -3),
        chunked,
        post("hell", "Connection: close\r\n", 5).text,
        post("hell", "Expect: 100-continue\r\n", 5).text,
      ];
      const clients = begun.map(() => server.connect());
      for (const [index, part] of begun.entries()) rawWrite(clients[index]!, part);
      await until(() => count === begun.length, () => `4 handlers to be called, ${count} were`);
      for (const [index, rest] of ["rld", "0\r\n\r\n", "o", "o"].entries()) rawWrite(clients[index]!, rest);
      for (const [index, body] of ["hello world", "hello", "hello", "hello"].entries()) {
        const said = await answered(clients[index]!, `whole ${body}`);
        assert.equal(said.includes("100 Continue"), index === 3);
        clients[index]![Symbol.dispose]();
      }
    }));

  test(`${name}: a client that ends in the middle of a body has no handler called`, () =>
    on(kind, async (server) => {
      const client = server.connect();
      rawWrite(client, text.slice(0, -3));
      await sleep(tickMs);
      client[Symbol.dispose]();
      using other = server.connect();
      rawWrite(other, text);
      await answered(other, "whole hello world");
      await sleep(2 * tickMs);
      assert.equal(count, 1);
    }));

  test(`${name}: a body that is whole is answered, and no body is there to take`, () =>
    on(kind, async (server) => {
      using client = server.connect();
      rawWrite(client, text);
      await answered(client, "whole hello world");
      server.start();
      await found(server, 1);
      rawWrite(client, text);
      await answered(client, "whole hello world");
      const connection = await frozen(server);
      assert.equal(connection.unread.length, 0);
      connection.thaw(new Error("it was lost"));
      assert.equal(count, 2);
    }));
}

tests("node:http", nodeKind);
if (runtime.name === "deno") tests("Deno.serve", denoKind);
if (runtime.name === "bun") tests("Bun.serve", bunKind);
