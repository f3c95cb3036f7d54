/**
 * Servers of WebSockets as an application opens them, and a client that sends
 * exactly the bytes that it is told to.
 *
 * @module
 */

import { once } from "node:events";
import http from "node:http";
import net from "node:net";
import { WebSocketServer } from "ws";
import type { Json } from "../../src/connections/movable.ts";
import { WebSockets } from "../../src/connections/websockets.ts";
import { runtime } from "./seam.ts";
import { until } from "./support.ts";

// deno-lint-ignore no-explicit-any
type Any = any;
const { Deno, Bun } = globalThis as Any;

/** A server's end of a WebSocket, as its application sees it. */
export interface ServerEnd {
  /** What `leave` has given where it comes from. */
  readonly state: Json;
  readonly heard: (string | number)[];
  readonly events: string[];
  /** What `leave` gives. */
  luggage: Json | undefined;
  send(text: string): void;
}

/** A server in this process. To a client that comes from another it says `here I am`. */
export interface Server {
  readonly port: number;
  readonly native: unknown;
  /** The sockets that it has come through another's port, as when both processes have one listener. */
  sharePort(port: number): void;
  readonly webSockets: WebSockets;
  /** In the order of their coming. */
  readonly ends: ServerEnd[];
  close(): Promise<void>;
}

/** One kind of server. */
export type OpenServer = (options?: ServerOptions) => Promise<Server>;

/** What a server may do otherwise. */
export interface ServerOptions {
  readonly compresses?: boolean;
  readonly restMs?: number;
}

/** What a test looks at, and the callbacks that write it. */
function endOf(state: Json, send: (text: string) => void) {
  const end: ServerEnd = { state, heard: [], events: [], luggage: { n: 1 }, send };
  const note = (event: string) => void end.events.push(event);
  const hear = (data: string | ArrayBuffer | { size: number }) =>
    void end.heard.push(typeof data === "string" ? data : "size" in data ? data.size : data.byteLength);
  const options = {
    leave: () => {
      note("leave");
      return end.luggage;
    },
    left: () => note("left"),
    stayed: () => note("stayed"),
  };
  return { end, note, hear, options };
}

function opened(
  { restMs = 60 }: ServerOptions = {},
): { readonly ends: ServerEnd[]; readonly webSockets: WebSockets; at(port: number): number } {
  let port = 0;
  const webSockets = new WebSockets(runtime, {
    endpoints: () => [{ name: "web", address: { family: "inet", hostname: "127.0.0.1", port } }],
    failed: (error) => console.error(error),
    restMs,
  });
  return { ends: [], webSockets, at: (given) => port = given };
}

export const denoServe: OpenServer = (options) => {
  const { ends, webSockets, at } = opened(options);
  const server = Deno.serve({ port: 0, hostname: "127.0.0.1", onListen() {} }, (request: Any, info: Any) => {
    const opening = webSockets.opening(request, info);
    const { socket, response } = Deno.upgradeWebSocket(request);
    const { end, note, hear, options } = endOf(opening.state, (text) => socket.send(text));
    opening.track(socket, options);
    socket.onopen = () => {
      ends.push(end);
      if (opening.isMoved) end.send("here I am");
    };
    socket.onmessage = ({ data }: Any) => hear(data);
    socket.onclose = () => note("close");
    socket.onerror = () => note("error");
    return response;
  });
  const close = async () => await server.shutdown();
  return Promise.resolve({ port: at(server.addr.port), native: server, sharePort: at, webSockets, ends, close });
};

export const bunServe: OpenServer = (options) => {
  const { ends, webSockets, at } = opened(options);
  const of = ({ data }: Any): ReturnType<typeof endOf> => data.own;
  const server = Bun.serve({
    port: 0,
    hostname: "127.0.0.1",
    fetch(request: Any, server: Any) {
      const opening = webSockets.opening(request, server);
      return opening.upgrade({ data: { state: opening.state, isMoved: opening.isMoved } })
        ? undefined
        : new Response("no", { status: 400 });
    },
    websocket: webSockets.handlers({
      perMessageDeflate: options?.compresses === true,
      open(socket: Any) {
        const { state, isMoved } = socket.data;
        socket.data.own = endOf(state, (text) => socket.send(text));
        ends.push(of(socket).end);
        if (isMoved) socket.send("here I am");
      },
      message: (socket: Any, data: Any) => of(socket).hear(data),
      close: (socket: Any) => of(socket).note("close"),
      leave: (socket: Any) => of(socket).options.leave(),
      left: (socket: Any) => of(socket).options.left(),
      stayed: (socket: Any) => of(socket).options.stayed(),
    }),
  });
  const close = async () => await server.stop(true);
  return Promise.resolve({ port: at(server.port), native: server, sharePort: at, webSockets, ends, close });
};

export const nodeWs: OpenServer = async (options) => {
  const { ends, webSockets, at } = opened(options);
  const server = http.createServer();
  const sockets = new WebSocketServer({ server, perMessageDeflate: options?.compresses === true });
  sockets.on("connection", (socket: Any, request: Any) => {
    const opening = webSockets.opening(request);
    const { end, note, hear, options } = endOf(opening.state, (text) => socket.send(text));
    opening.track(socket, options);
    socket.on("message", (data: Any, isBinary: boolean) => hear(isBinary ? data : String(data)));
    socket.on("close", () => note("close"));
    socket.on("error", () => note("error"));
    ends.push(end);
    if (opening.isMoved) end.send("here I am");
  });
  await once(server.listen(0, "127.0.0.1"), "listening");
  const close = async () => {
    for (const socket of sockets.clients) socket.terminate();
    sockets.close();
    server.close();
    server.closeAllConnections?.();
    await once(server, "close");
  };
  return {
    port: at((server.address() as net.AddressInfo).port),
    native: server,
    sharePort: at,
    webSockets,
    ends,
    close,
  };
};

/** A client's frame; the mask is always the same. */
export function frame(opcode: number, payload: string | Uint8Array, isFinal = true): Uint8Array {
  const bytes = typeof payload === "string" ? new TextEncoder().encode(payload) : payload;
  const size = bytes.length;
  const extended = size < 126
    ? []
    : size < 65_536
    ? [size >> 8, size & 255]
    : [0, 0, 0, 0, size >>> 24, size >> 16 & 255, size >> 8 & 255, size & 255];
  const code = size < 126 ? size : size < 65_536 ? 126 : 127;
  const mask = [0x12, 0xe4, 0x56, 0x78];
  const masked = bytes.map((byte, at) => byte ^ mask[at % 4]!);
  return Uint8Array.from([(isFinal ? 0x80 : 0) | opcode, 0x80 | code, ...extended, ...mask, ...masked]);
}

/** A text message. */
export function text(message: string): Uint8Array {
  return frame(1, message);
}

/** A client's end. */
export interface ClientEnd {
  readonly socket: net.Socket;
  /** The head of the answer. */
  readonly head: string;
  /** The texts that have come. */
  readonly heard: string[];
  /** Whether a FIN or a RST has come. */
  readonly ended: boolean;
  /** Whether pings are answered. */
  answers: boolean;
  /** Is told of them. */
  asked: (payload: Uint8Array) => void;
  readonly pingCount: number;
  write(bytes: Uint8Array): void;
}

/** Connects, with further headers. The request is written as lines are. */
export async function connect(port: number, headers: string[] = [], separator = ": "): Promise<ClientEnd> {
  const socket = net.connect(port, "127.0.0.1");
  await once(socket, "connect");
  return await upgrade(socket, headers, separator);
}

/** Makes a WebSocket of a connection. */
export async function upgrade(socket: net.Socket, headers: string[] = [], separator = ": "): Promise<ClientEnd> {
  socket.setNoDelay(true);
  const client = {
    socket,
    head: "",
    heard: [] as string[],
    ended: false,
    answers: true,
    asked: (_: Uint8Array) => {},
    pingCount: 0,
    write: (bytes: Uint8Array) => void socket.write(bytes),
  };
  let rest = new Uint8Array(0);
  socket.on("error", () => {});
  socket.on("close", () => client.ended = true);
  socket.on("end", () => client.ended = true);
  socket.on("data", (bytes) => {
    rest = Uint8Array.from([...rest, ...bytes]);
    if (client.head === "") {
      const all = new TextDecoder("latin1").decode(rest);
      const end = all.indexOf("\r\n\r\n") + 4;
      if (end < 4) return;
      client.head = all.slice(0, end);
      rest = rest.slice(end);
    }
    while (rest.length >= 2 && rest.length >= 2 + rest[1]!) {
      const payload = rest.slice(2, 2 + rest[1]!);
      if ((rest[0]! & 15) === 9) {
        client.pingCount++;
        client.asked(payload);
        if (client.answers) client.write(frame(10, payload));
      } else client.heard.push(new TextDecoder().decode(payload));
      rest = rest.slice(2 + payload.length);
    }
  });
  const lines = [
    `Host${separator}127.0.0.1`,
    `Upgrade${separator}websocket`,
    `Connection${separator}Upgrade`,
    `Sec-WebSocket-Version${separator}13`,
    `Sec-WebSocket-Key${separator}dGhlIHNhbXBsZSBub25jZQ==`,
    ...headers,
  ];
  socket.write(`GET /chat?room=1 HTTP/1.1\r\n${lines.map((line) => `${line}\r\n`).join("")}\r\n`);
  await until(() => client.head !== "" || client.ended, "an answer to the upgrade");
  return client;
}
