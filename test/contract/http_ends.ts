/**
 * HTTP servers of every kind that answer the same paths, and clients that only
 * libc touches, so that each byte goes when a test says so.
 *
 * @module
 */

import assert from "node:assert/strict";
import http from "node:http";
import type net from "node:net";
import { HttpConnections, type HttpConnectionsOptions } from "../../src/connections/http_connections.ts";
import { HttpSource } from "../../src/connections/http_source.ts";
import type { Frozen, Movable } from "../../src/connections/movable.ts";
import { Drain } from "../../src/handover/drain.ts";
import type { OwnedDescriptor } from "../../src/sockets/descriptors.ts";
import { rawConnection, rawRead, rawWrite } from "./ends.ts";
import { runtime, sleep, until } from "./support.ts";

// deno-lint-ignore no-explicit-any
type Any = any;
const { Deno, Bun } = globalThis as Any;

/** What a server does for as long as a test wants it to. */
export interface Held {
  /** Lets go of answers that wait: `/held`, `/stream`. */
  release(): void;
}

/** One kind of server. */
export interface HttpKind {
  open(drain: Drain, held: { wait(): Promise<void> }): Promise<{ port: number; close(): Promise<void> | void }>;
}

export const bigSize = 5_000_000;

async function answerTo(request: Request, wait: () => Promise<void>): Promise<Response> {
  const { pathname } = new URL(request.url);
  if (pathname === "/held") await wait();
  if (pathname === "/slow") await sleep(20);
  if (pathname === "/stream") return new Response(streamUntil(wait));
  if (pathname === "/big") return new Response(new Uint8Array(bigSize).fill(46));
  if (pathname === "/body") return new Response(await request.text());
  return new Response("hello");
}

function streamUntil(wait: () => Promise<void>): ReadableStream {
  return new ReadableStream({
    async start(controller) {
      controller.enqueue(new TextEncoder().encode("begun"));
      await wait();
      controller.enqueue(new TextEncoder().encode("done"));
      controller.close();
    },
  });
}

export const denoHttp: HttpKind = {
  open(drain, { wait }) {
    const handler = drain.fetch((request: Request) =>
      request.url.endsWith("/socket") ? Deno.upgradeWebSocket(request).response : answerTo(request, wait)
    );
    const server = Deno.serve({ hostname: "127.0.0.1", port: 0, onListen() {} }, handler);
    return Promise.resolve({ port: server.addr.port, close: () => server.shutdown() });
  },
};

export const bunHttp: HttpKind = {
  open(drain, { wait }) {
    const fetch = drain.fetch((request: Request, server: Any) =>
      request.url.endsWith("/socket") ? void server.upgrade(request) : answerTo(request, wait)
    );
    const websocket = { message() {} };
    const server = Bun.serve({ hostname: "127.0.0.1", port: 0, fetch, websocket, idleTimeout: 60 });
    return Promise.resolve({ port: server.port, close: () => server.stop(true) });
  },
};

/** `node:http`, on all three. */
export const nodeHttpKind: HttpKind = { open: (drain, { wait }) => openNode(drain, wait) };

/** The same with upgrades, of which no handler of requests hears. */
export const nodeUpgradeKind: HttpKind = {
  open: (drain, { wait }) =>
    openNode(drain, wait, (server) => {
      server.on("upgrade", (_request, socket) => {
        socket.on("error", () => {}).on("end", () => socket.destroy()).resume();
        socket.write("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n");
      });
    }),
};

async function openNode(
  drain: Drain,
  wait: () => Promise<void>,
  prepare: (server: http.Server) => void = () => {},
): ReturnType<HttpKind["open"]> {
  const server = http.createServer(drain.listener((request: http.IncomingMessage, response: http.ServerResponse) => {
    void respond(request, response, wait);
  })).listen(0, "127.0.0.1");
  prepare(server);
  await new Promise((resolve) => server.once("listening", resolve));
  const close = async () => {
    const closed = new Promise((resolve) => server.close(resolve));
    server.closeAllConnections();
    await closed;
  };
  return { port: (server.address() as net.AddressInfo).port, close };
}

async function respond(
  request: http.IncomingMessage,
  response: http.ServerResponse,
  wait: () => Promise<void>,
): Promise<void> {
  if (request.url === "/held") await wait();
  if (request.url === "/slow") await sleep(20);
  if (request.url === "/big") return void response.end(Buffer.alloc(bigSize, "."));
  if (request.url === "/stream") {
    response.write("begun");
    await wait();
    return void response.end("done");
  }
  if (request.url !== "/body") return void response.end("hello");
  let text = "";
  for await (const bytes of request) text += bytes;
  response.end(text);
}

/** A server with a source of its connections. */
export interface Serving extends Held {
  readonly drain: Drain;
  readonly source: HttpSource;
  readonly connections: HttpConnections;
  connect(): OwnedDescriptor;
  /** Begins to move. */
  start(): void;
  close(): Promise<void>;
}

/** Opens a server of a kind. */
export async function serving(kind: HttpKind, options: Partial<HttpConnectionsOptions> = {}): Promise<Serving> {
  const drain = new Drain();
  let release = () => {};
  const held = new Promise<void>((resolve) => release = resolve);
  const { port, close } = await kind.open(drain, { wait: () => held });
  const address = { family: "inet", hostname: "127.0.0.1", port } as const;
  const connections = new HttpConnections(runtime, {
    endpoints: () => [{ name: "web", address }],
    requests: drain.requests,
    quietMs: 3_000,
    ...options,
  });
  const source = new HttpSource(connections, "web");
  return {
    drain,
    source,
    connections,
    release: () => release(),
    connect: () => rawConnection(address),
    start() {
      drain.mode = "moving";
      source.start(() => {});
    },
    async close() {
      release();
      source.stop();
      await close();
    },
  };
}

/** A request without a body. */
export function get(path: string): string {
  return `GET ${path} HTTP/1.1\r\nHost: test\r\n\r\n`;
}

/** Waits for an answer that ends with a text. */
export async function answered(client: OwnedDescriptor, ending = "hello"): Promise<string> {
  let text = "";
  const isThere = () => (text += rawRead(client)).includes(ending);
  await until(isThere, () => `an answer with ${ending}, came ${JSON.stringify(text)}`);
  return text;
}

/** Sends a request and waits for its answer. */
export async function asked(client: OwnedDescriptor, path = "/"): Promise<string> {
  rawWrite(client, get(path));
  return await answered(client);
}

/** Asks again and again, until one is frozen. */
export async function frozen({ source }: Serving): Promise<Frozen> {
  const [first] = await frozenAll({ source } as Serving, 1);
  return first!;
}

/** The same for several. */
export async function frozenAll({ source }: Serving, count: number): Promise<Frozen[]> {
  const found: Frozen[] = [];
  const look = () => {
    for (const movable of source.ready(count - found.length, false)) found.push(...freeze(movable));
    return found.length === count;
  };
  await until(look, () => `${count} to be frozen, ${found.length} were; ${JSON.stringify(source.census())}`);
  return found;
}

function freeze(movable: Movable): Frozen[] {
  const one = movable.freeze();
  return one ? [one] : [];
}

/** Waits until so many connections have been found. */
export async function found({ source, connections }: Serving, count: number): Promise<void> {
  const areThere = () => (source.ready(0, false), [...connections.of("web")].length === count);
  await until(areThere, () => `${count} connections, ${JSON.stringify(source.census())}`);
}

/** Asks for a while, and expects none to be frozen. */
export async function noneFrozen({ source, connections }: Serving, ms = 80, isLast = false): Promise<void> {
  const end = Date.now() + ms;
  while (Date.now() < end) {
    for (const movable of source.ready(64, isLast)) {
      const connection = movable.freeze();
      const reasons = [...connections.of("web")].map(({ isFrozen, verdict }) => `${isFrozen}: ${verdict.reason}`);
      assert.equal(connection, null, `it was frozen (${reasons.join(", ")})`);
    }
    await sleep(5);
  }
}
