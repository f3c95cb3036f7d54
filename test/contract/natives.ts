/**
 * Every kind of native server that an endpoint can be, as an application opens
 * and closes it, and what each of them says of its own address.
 *
 * @module
 */

import { once } from "node:events";
import http from "node:http";
import https from "node:https";
import net from "node:net";
import type { TcpOpening, UnixOpening } from "../../src/sockets/address.ts";
import type { SocketAddress } from "../../src/c/sockaddr.ts";
import { ask, askTls } from "./support.ts";

// deno-lint-ignore no-explicit-any
const { Deno, Bun } = globalThis as any;

/** What a server is told to open. */
export type At = TcpOpening | UnixOpening;

/** One kind of server. `T` is what its runtime calls a server. */
export interface Native<T> {
  open(at: At): T;
  close(server: T): Promise<void> | void;
  /** What a client gets that asks for `/`; the body is `hello`. */
  ask(to: net.NetConnectOpts): Promise<string>;
  /** What the server says of itself when it is at that address. */
  presented(address: SocketAddress): unknown;
  /** What it says. */
  present(server: T): unknown;
}

/** The answer of a server that speaks no HTTP of its own. */
const answer = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello";

async function closed(server: net.Server): Promise<void> {
  server.close();
  (server as http.Server).closeAllConnections?.();
  if (server.listening) await once(server, "close");
}

function nodeAddress(address: SocketAddress): unknown {
  if (address.family === "unix") return address.path;
  const family = address.family === "inet" ? "IPv4" : "IPv6";
  return { address: address.hostname, family, port: address.port };
}

const node = {
  close: closed,
  presented: nodeAddress,
  present: (server: net.Server) => server.address(),
};

export const nodeNet: Native<net.Server> = {
  ...node,
  ask,
  open: (at) =>
    net.createServer((socket) => {
      socket.on("error", () => {});
      socket.once("data", () => socket.end(answer));
    }).listen(at),
};

export const nodeHttp: Native<http.Server> = {
  ...node,
  ask,
  open: (at) => http.createServer((_request, response) => response.end("hello")).listen(at),
};

/** `node:https` with a key and a certificate. */
export function nodeHttps(credentials: https.ServerOptions): Native<https.Server> {
  return {
    ...node,
    ask: askTls,
    open: (at) => https.createServer(credentials, (_request, response) => response.end("hello")).listen(at),
  };
}

// deno-lint-ignore no-explicit-any
type Any = any;

function denoAddress(address: SocketAddress): unknown {
  if (address.family === "unix") return { transport: "unix", path: address.path };
  return { transport: "tcp", hostname: address.hostname, port: address.port };
}

const deno = {
  ask,
  presented: denoAddress,
  present: (server: Any) => server.addr,
};

export const denoServe: Native<Any> = {
  ...deno,
  open: (at) => Deno.serve({ ...at, onListen() {} }, () => new Response("hello")),
  close: (server) => server.shutdown(),
};

export const denoListen: Native<Any> = {
  ...deno,
  open: (at) => {
    const listener = Deno.listen(at);
    void answerAll(listener);
    return listener;
  },
  close: (listener) => listener.close(),
};

async function answerAll(listener: Any): Promise<void> {
  for await (const connection of listener) {
    await connection.read(new Uint8Array(1_024));
    await connection.write(new TextEncoder().encode(answer));
    connection.close();
  }
}

/** Bun's servers over Unix have no host name and no port that could be changed. */
function bunAddress(address: SocketAddress): unknown {
  return address.family === "unix" ? undefined : { hostname: address.hostname, port: address.port };
}

export const bunServe: Native<Any> = {
  ask,
  open: (at) => Bun.serve({ ...at, fetch: () => new Response("hello") }),
  close: (server) => server.stop(true),
  presented: bunAddress,
  present: ({ hostname, port }) => hostname === undefined ? undefined : { hostname, port },
};

export const bunListen: Native<Any> = {
  ask,
  open: (at) =>
    Bun.listen({
      ...at,
      socket: {
        data: (socket: Any) => {
          socket.write(answer);
          socket.end();
        },
      },
    }),
  close: (listener) => listener.stop(true),
  presented: bunAddress,
  present: ({ hostname, port }) => hostname === undefined ? undefined : { hostname, port },
};
