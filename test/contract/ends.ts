/**
 * Every kind of native connection and datagram socket, as an application opens
 * and uses it, and connections that only libc touches, for the other end.
 *
 * @module
 */

import assert from "node:assert/strict";
import dgram from "node:dgram";
import net from "node:net";
import type { SocketAddress } from "../../src/c/sockaddr.ts";
import { OwnedDescriptor } from "../../src/sockets/descriptors.ts";
import { bindListener } from "../../src/sockets/listener.ts";
import {
  bindSocket,
  connectSocket,
  localAddress,
  openPair,
  openSocket,
  readAvailable,
} from "../../src/sockets/socket.ts";
import { isSystemError } from "../../src/errors.ts";
import { runtime } from "./seam.ts";

// deno-lint-ignore no-explicit-any
type Any = any;
const { Deno, Bun } = globalThis as Any;

const { abi, libc } = runtime;

/** What came to a native connection. */
export interface Reading {
  text: string;
  /** Whether the peer has ended. */
  ended: boolean;
}

/** One kind of connection. `T` is what its runtime calls it. */
export interface End<T> {
  /** Connects to what the adoption gives. */
  open(at: Any): T | Promise<T>;
  /** Reads from now on. */
  read(connection: T): Reading;
  write(connection: T, text: string): unknown;
  /** What it says of its peer's port; undefined when it says nothing. */
  peerPort(connection: T): number | undefined;
  /** A program's text that connects `connection` to `at` and writes `hello`. */
  readonly program: string;
}

export const nodeSocket: End<net.Socket> = {
  open: (at) => net.connect({ ...at, allowHalfOpen: true }),
  read(socket) {
    const reading = { text: "", ended: false };
    socket.on("error", () => {});
    socket.on("data", (bytes) => reading.text += bytes);
    socket.on("end", () => reading.ended = true);
    socket.on("close", () => reading.ended = true);
    return reading;
  },
  write: (socket, text) => socket.write(text),
  peerPort: ({ remotePort }) => remotePort,
  program: `
    const { default: net } = await import("node:net");
    const connection = await new Promise((resolve) => { const socket = net.connect(at, () => resolve(socket)); });
    connection.write("hello");
  `,
};

export const denoConn: End<Any> = {
  open: (at) => Deno.connect(at),
  read(connection) {
    const reading = { text: "", ended: false };
    void readAll(connection, reading);
    return reading;
  },
  write: (connection, text) => connection.write(new TextEncoder().encode(text)),
  peerPort: ({ remoteAddr }) => remoteAddr.port,
  program: `
    const connection = await Deno.connect(at);
    await connection.write(new TextEncoder().encode("hello"));
  `,
};

async function readAll(connection: Any, reading: Reading): Promise<void> {
  const room = new Uint8Array(64 * 1024);
  for (let size = await connection.read(room); size !== null; size = await connection.read(room)) {
    reading.text += new TextDecoder().decode(room.subarray(0, size));
  }
  reading.ended = true;
}

/** Bun's handlers are there before anybody reads. */
export const bunSocket: End<Any> = {
  open: (at) =>
    Bun.connect({
      ...at,
      allowHalfOpen: true,
      data: { text: "", ended: false },
      socket: {
        data: ({ data }: Any, bytes: Uint8Array) => void (data.text += new TextDecoder().decode(bytes)),
        end: ({ data }: Any) => void (data.ended = true),
        close: ({ data }: Any) => void (data.ended = true),
      },
    }),
  read: ({ data }) => data,
  write: (socket, text) => socket.write(text),
  peerPort: ({ remotePort }) => remotePort,
  program: `
    const connection = await Bun.connect({ ...at, socket: { data() {} } });
    connection.write("hello");
  `,
};

/** One kind of datagram socket. */
export interface DatagramEnd<T> {
  open(at: Any): T | Promise<T>;
  /** The texts that come from now on. */
  read(socket: T): string[];
  send(socket: T, text: string, to: SocketAddress): unknown;
  close(socket: T): void;
}

export const nodeDatagram: DatagramEnd<dgram.Socket> = {
  open: (at) => dgram.createSocket(at.hostname.includes(":") ? "udp6" : "udp4").bind(at),
  read(socket) {
    const texts: string[] = [];
    socket.on("message", (bytes) => texts.push(String(bytes)));
    return texts;
  },
  send: (socket, text, to) => socket.send(text, (to as Any).port, (to as Any).hostname),
  close: (socket) => void socket.close(),
};

export const bunDatagram: DatagramEnd<Any> = {
  open(at) {
    const texts: string[] = [];
    const opened = Bun.udpSocket({
      ...at,
      socket: { data: (_: Any, bytes: Uint8Array) => void texts.push(String(bytes)) },
    });
    return opened.then((socket: Any) => (bunTexts.set(socket, texts), socket));
  },
  read: (socket) => bunTexts.get(socket)!,
  send: (socket, text, to) => socket.send(text, (to as Any).port, (to as Any).hostname),
  close: (socket) => socket.close(),
};

const bunTexts = new WeakMap<object, string[]>();

/** Two connected streams that only libc touches; over TCP in the order connecting, accepting. */
export function rawPair(family: SocketAddress["family"]): [OwnedDescriptor, OwnedDescriptor] {
  if (family === "unix") return openPair(runtime);
  using listener = bindListener(runtime, { family, hostname: family === "inet" ? "127.0.0.1" : "::1", port: 0 }, {
    port: 0,
  });
  return [rawConnection(localAddress(runtime, listener.number)!), rawAccepted(listener)];
}

/** Connects over loopback, where that is done at once. */
export function rawConnection(to: SocketAddress): OwnedDescriptor {
  const socket = new OwnedDescriptor(runtime, openSocket(runtime, to.family, "stream"));
  try {
    connectSocket(runtime, socket.number, to);
  } catch (error) {
    if (!isSystemError(error, "EINPROGRESS")) throw error;
  }
  return socket;
}

/** The next connection in a listener's queue. */
export function rawAccepted(listener: OwnedDescriptor): OwnedDescriptor {
  const flags = abi.constants.O_NONBLOCK | abi.constants.O_CLOEXEC;
  const number = libc.accept4(listener.number, null, null, flags);
  assert.ok(number >= 0, `nobody is connected: ${number}`);
  return new OwnedDescriptor(runtime, number);
}

/** A TCP listener that only libc touches. */
export function rawListener(): {
  readonly listener: OwnedDescriptor;
  readonly at: { hostname: string; host: string; port: number };
} {
  const listener = bindListener(runtime, { family: "inet", hostname: "127.0.0.1", port: 0 }, { port: 0 });
  const { port } = localAddress(runtime, listener.number) as { port: number };
  return { listener, at: { hostname: "127.0.0.1", host: "127.0.0.1", port } };
}

/** A UDP socket that only libc touches. */
export function rawDatagram(
  hostname = "127.0.0.1",
): { readonly socket: OwnedDescriptor; readonly address: SocketAddress } {
  const family = hostname.includes(":") ? "inet6" : "inet";
  const socket = new OwnedDescriptor(runtime, openSocket(runtime, family, "dgram"));
  bindSocket(runtime, socket.number, { family, hostname, port: 0 });
  return { socket, address: localAddress(runtime, socket.number)! };
}

/** Writes a text whole. */
export function rawWrite({ number }: OwnedDescriptor, text: string): void {
  const bytes = new TextEncoder().encode(text);
  assert.equal(libc.write(number, bytes, bytes.length), bytes.length);
}

/** Sends a datagram. */
export function rawSend(from: OwnedDescriptor, text: string, to: SocketAddress): void {
  // A connected socket that is connected again sends there, and still hears everybody who sends to it from there.
  connectSocket(runtime, from.number, to);
  rawWrite(from, text);
}

/** What has come since the last look. */
export function rawRead({ number }: OwnedDescriptor): string {
  return new TextDecoder().decode(readAvailable(runtime, number));
}

/** What the next read says: bytes, `end` for a FIN, the errno for a RST, or `open` when there is nothing. */
export function rawState({ number }: OwnedDescriptor): string {
  const result = libc.read(number, new Uint8Array(1), 1);
  return result === 0 ? "end" : result === -11 ? "open" : result > 0 ? "bytes" : `errno ${-result}`;
}
