/**
 * What `node:net` gives on all three runtimes: the control plane.
 *
 * Each runtime takes a descriptor through it (Deno from 2.8, Bun from 1.4), is
 * told of the other side's end without polling, and leaves the path of a
 * listener alone that it did not bind itself.
 *
 * @module
 */

import { Buffer } from "node:buffer";
import type dgram from "node:dgram";
import { lookup as lookupAddress } from "node:dns/promises";
import net from "node:net";
import process from "node:process";
import type { ControlListener, ControlStream, NativeObject, ReadAhead, Runtime, SocketDirections, StreamHandlers } from "../src/runtime.ts";
import { adoptNumber } from "../src/natives/adopt.ts";
import type { Descriptor } from "../src/sockets/descriptors.ts";
import { formatAddress, formatInet6, parseInet6, type SocketAddress } from "../src/c/sockaddr.ts";

/** What `node:net` objects have inside, the same on all three runtimes. */
interface WithHandle {
  readonly _handle?: Handle | null;
}

/** Node and Deno stop and start reading, Bun pauses and resumes. Deno's has a copy of the descriptor instead of it. */
interface Handle {
  readonly fd?: number;
  readonly writeQueueSize?: number;
  reading?: boolean;
  readStop?(): unknown;
  readStart?(): unknown;
  pause?(): unknown;
  resume?(): unknown;
  fdForIpc?(): number;
}

/** The descriptor of a `node:net` object, or -1 once it is closed. */
export function handleDescriptor(native: unknown): number {
  return (native as WithHandle)._handle?.fd ?? -1;
}

/** Wraps an accepted or adopted socket as a stream of the control plane. */
export function streamOf(socket: net.Socket): ControlStream {
  const descriptor = handleDescriptor(socket);
  // Errors are followed by close, which is all that the core needs to know.
  socket.on("error", () => {});
  return {
    descriptor,
    start(handlers: StreamHandlers): void {
      socket.on("data", (bytes) => handlers.data(new Uint8Array(bytes as Uint8Array)));
      // A peer that has ended its side has left: nothing is half-closed here.
      socket.on("end", () => socket.destroy());
      // One that has closed before says so no more.
      if (socket.closed) queueMicrotask(() => handlers.close());
      else socket.once("close", () => handlers.close());
    },
    keepAlive: (isNeeded) => void (isNeeded ? socket.ref() : socket.unref()),
    write: (bytes) => void (socket.destroyed || socket.write(bytes)),
    // A peer that does not close its side must not keep ours open.
    end: () => void socket.end(() => socket.destroy()),
    destroy: () => void socket.destroy(),
  };
}

/** `net.Server.listen({ fd })`, documented on all three runtimes. */
export async function listenOn(
  descriptor: number,
  accept: (stream: ControlStream) => void,
): Promise<ControlListener> {
  const server = net.createServer({ allowHalfOpen: false }, (socket) => accept(streamOf(socket)));
  await new Promise<void>((resolve, reject) => {
    server.once("error", reject);
    server.listen({ fd: descriptor }, () => {
      server.off("error", reject);
      resolve();
    });
  });
  server.on("error", () => {});
  // The program's own servers keep it alive; being replaceable does not.
  server.unref();
  return {
    descriptor: handleDescriptor(server),
    close: () => void server.close(),
  };
}

/** `new net.Socket({ fd })`, which Node and Deno document. */
export function openSocket(fd: number, { writable, allowHalfOpen }: SocketDirections): net.Socket {
  return new net.Socket({ fd, readable: true, writable, allowHalfOpen });
}

/** Makes a server listen on a descriptor: `net.Server.listen({ fd })`. */
export async function listenFrom<S extends net.Server>(
  runtime: Runtime,
  descriptor: Descriptor,
  server: S,
): Promise<S> {
  return await adoptNumber(runtime, descriptor, "listener", async (fd) => {
    await new Promise<void>((resolve, reject) => {
      server.once("error", reject);
      server.listen({ fd }, () => {
        server.off("error", reject);
        resolve();
      });
    });
    return server;
  });
}

/** Makes a socket of a connection: `new net.Socket({ fd })`, which Node and Deno document. */
export async function socketFrom(
  runtime: Runtime,
  descriptor: Descriptor,
  options: net.SocketConstructorOpts,
): Promise<net.Socket> {
  // Without a direction a socket that was made of a descriptor is closed at once.
  const open = (fd: number) => new net.Socket({ readable: true, writable: true, ...options, fd });
  return await adoptNumber(runtime, descriptor, "connection", open);
}

/** What an object of `node:net`, `node:http` or `node:dgram` says of itself; null for anything else. */
export function inspect(native: unknown): NativeObject | null {
  if (native instanceof net.Socket) return inspectSocket(native);
  if (typeof native !== "object" || native === null || !("address" in native)) return null;
  if ("addMembership" in native && "bind" in native) return inspectDatagram(native as dgram.Socket);
  // Not instanceof: on Bun an http.Server is no net.Server.
  return "listen" in native ? inspectServer(native as net.Server) : null;
}

function inspectSocket(socket: net.Socket): NativeObject {
  const handle = (socket as WithHandle)._handle;
  return {
    kind: "connection",
    descriptor: handleDescriptor(socket),
    // Asking costs two system calls the first time.
    get local() {
      return socketAddress(socket.localAddress, socket.localPort);
    },
    get peer() {
      return socketAddress(socket.remoteAddress, socket.remotePort);
    },
    isOpen: !socket.connecting,
    isEncrypted: (socket as { encrypted?: boolean }).encrypted === true,
    isPulled: false,
    // Deno's sends a FIN.
    isClosedAlone: !("Deno" in globalThis),
    allowHalfOpen: socket.allowHalfOpen,
    hasEnded: socket.writableEnded,
    unsentCount: socket.writableLength + (handle?.writeQueueSize ?? 0) + (socket.connecting ? 1 : 0),
    takeUnread: () => takeBuffered(socket),
    readAhead: () => socket.readableLength > 0 || undecoded(socket).length > 0 ? readAhead(socket) : null,
    pause: () => handle ? pauseHandle(socket, handle) : null,
    ...handle?.fdForIpc && { duplicate: () => handle.fdForIpc!() },
    unref: () => void socket.unref(),
    close: () => void socket.destroy(),
  };
}

/**
 * What the stream has read ahead. An HTTP parser reads the handle itself, and
 * a decoder has made text of the bytes: then it is not known.
 */
function takeBuffered(socket: net.Socket): Uint8Array | null {
  // Neither is anybody told of these bytes, nor does taking them start to read.
  socket.removeAllListeners("data");
  socket._read = () => {};
  socket.pause();
  const chunks: Uint8Array[] = [];
  for (let chunk = socket.read(); chunk !== null; chunk = socket.read()) chunks.push(chunk);
  const isParsed = Boolean((socket as { parser?: unknown }).parser);
  return isParsed || socket.readableEncoding !== null ? null : new Uint8Array(Buffer.concat(chunks));
}

/** The program's own pause stays one. */
function pauseHandle(socket: net.Socket, handle: Handle): () => void {
  let isReading = handle.readStop ? handle.reading === true : !socket.isPaused();
  stopReading(handle);
  const { _read } = socket;
  // A stream that has just had something asks for more a tick later, and would start it again.
  socket._read = () => void (isReading = true);
  return () => {
    socket._read = _read;
    if (isReading) startReading(handle);
  };
}

function stopReading(handle: Handle): void {
  if (!handle.readStop) return void handle.pause?.();
  handle.readStop();
  handle.reading = false;
}

function startReading(handle: Handle): void {
  if (!handle.readStart) return void handle.resume?.();
  handle.reading = true;
  handle.readStart();
}

/** Who listens hears nothing of these bytes, and reading them asks for no more. */
function readAhead(socket: net.Socket): ReadAhead {
  const listeners = socket.listeners("data") as ((bytes: unknown) => void)[];
  socket.removeAllListeners("data");
  const { readableEncoding } = socket;
  const { _read } = socket;
  socket._read = () => {};
  const chunks: unknown[] = [];
  for (let chunk = socket.read(); chunk !== null; chunk = socket.read()) chunks.push(chunk);
  socket._read = _read;
  const decoded = chunks.map((chunk) => typeof chunk === "string" ? Buffer.from(chunk, readableEncoding!) : chunk as Buffer);
  return {
    bytes: new Uint8Array(Buffer.concat([...decoded, ...undecoded(socket)])),
    putBack() {
      for (const chunk of chunks.reverse()) socket.unshift(chunk, readableEncoding ?? undefined);
      for (const listener of listeners) socket.on("data", listener);
    },
  };
}

/** The beginning of a character, which a decoder keeps until it has the rest. */
function undecoded(socket: net.Socket): Uint8Array[] {
  const { decoder } = (socket as { _readableState?: { decoder?: Decoder | null } })._readableState ?? {};
  if (!decoder?.lastChar || !decoder.lastNeed || !decoder.lastTotal) return [];
  return [decoder.lastChar.subarray(0, decoder.lastTotal - decoder.lastNeed)];
}

/** What a StringDecoder has inside, on all three runtimes. */
interface Decoder {
  readonly lastChar?: Uint8Array;
  readonly lastNeed?: number;
  readonly lastTotal?: number;
}

function inspectServer(server: net.Server): NativeObject {
  const isPlain = Object.getPrototypeOf(server) === net.Server.prototype;
  return {
    kind: isPlain ? "listener" : "server",
    descriptor: handleDescriptor(server),
    local: boundAddress(server),
    peer: null,
    isOpen: server.listening,
    isEncrypted: false,
    isPulled: false,
    isClosedAlone: false,
    allowHalfOpen: false,
    hasEnded: false,
    unsentCount: 0,
    takeUnread: () => new Uint8Array(0),
    readAhead: () => null,
    pause: () => null,
    unref: () => void server.unref(),
    close: () => void server.close(),
  };
}

function inspectDatagram(socket: dgram.Socket): NativeObject {
  const local = boundAddress(socket);
  return {
    kind: "datagram",
    descriptor: datagramHandle(socket)?.fd ?? -1,
    local,
    peer: null,
    isOpen: local !== null,
    isEncrypted: false,
    isPulled: false,
    isClosedAlone: false,
    allowHalfOpen: false,
    hasEnded: false,
    unsentCount: socket.getSendQueueCount?.() ?? 0,
    takeUnread: () => new Uint8Array(0),
    readAhead: () => null,
    pause: () => null,
    unref: () => void socket.unref(),
    close: () => void socket.close(),
  };
}

/** `_handle` of a datagram socket warns that it is deprecated. */
function datagramHandle(socket: dgram.Socket): { readonly fd?: number } | null {
  const state = Object.getOwnPropertySymbols(socket).find(({ description = "" }) => /state/i.test(description));
  return state ? (socket as unknown as Record<symbol, { handle?: { fd?: number } }>)[state]!.handle ?? null : null;
}

/** Throws, or gives null, when it is not bound. */
function boundAddress(bound: { address(): unknown }): SocketAddress | null {
  try {
    const address = bound.address() as net.AddressInfo | string | null;
    if (typeof address === "string") return { family: "unix", path: address };
    return address && socketAddress(address.address, address.port);
  } catch {
    return null;
  }
}

/** An address in the words of the runtimes; null when it is none. */
export function socketAddress(hostname: string | undefined, port: number | undefined): SocketAddress | null {
  if (!hostname || port === undefined) return null;
  const [numeric = ""] = hostname.split("%");
  const inet6 = parseInet6(numeric);
  return inet6 ? { family: "inet6", hostname: formatInet6(inet6), port } : { family: "inet", hostname, port };
}

/** `process.env`, which on Deno asks for a permission. */
export function env(name: string): string | undefined {
  return process.env[name];
}

/** Deleting sets nothing: children see it no more. */
export function unsetEnv(name: string): void {
  delete process.env[name];
}

/** The numeric addresses of a host name, as the system resolves it. */
export async function lookup(hostname: string): Promise<string[]> {
  const found = await lookupAddress(hostname, { all: true });
  return found.map(({ address }) => address);
}

/**
 * Overrides what a native server says of its own address, which after a graft
 * is the placeholder's. Objects that cannot be changed keep saying that;
 * `takeover.addr` is always right.
 */
export function present(native: unknown, address: SocketAddress, peer: SocketAddress | null = null): void {
  if (typeof native !== "object" || native === null) return;
  if (peer) return presentConnection(native, address, peer);
  // Not instanceof: on Bun an http.Server is no net.Server.
  if ("address" in native && typeof native.address === "function") {
    override(native, "address", () => nodeAddress(address));
  } else if ("addr" in native) override(native, "addr", denoAddress(address, "receive" in native));
  else if (address.family !== "unix" && "hostname" in native && "port" in native) {
    override(native, "hostname", address.hostname);
    override(native, "port", address.port);
    if ("address" in native) override(native, "address", nodeAddress(address));
    if ("url" in native) override(native, "url", urlOf((native as { url: unknown }).url, address));
  }
}

function presentConnection(native: object, local: SocketAddress, peer: SocketAddress): void {
  if ("localAddr" in native) {
    override(native, "localAddr", denoAddress(local));
    override(native, "remoteAddr", denoAddress(peer));
  } else if ("localAddress" in native && local.family !== "unix" && peer.family !== "unix") {
    override(native, "localAddress", local.hostname);
    override(native, "localPort", local.port);
    override(native, "remoteAddress", peer.hostname);
    override(native, "remotePort", peer.port);
  }
}

function override(native: object, name: string, value: unknown): void {
  try {
    Object.defineProperty(native, name, { value, configurable: true });
  } catch {
    // Sealed by the runtime: it goes on reporting the placeholder.
  }
}

function nodeAddress(address: SocketAddress): net.AddressInfo | string {
  if (address.family === "unix") return address.path;
  const family = address.family === "inet" ? "IPv4" : "IPv6";
  return { address: address.hostname, family, port: address.port };
}

function denoAddress(address: SocketAddress, isDatagram = false): Record<string, unknown> {
  if (address.family === "unix") return { transport: isDatagram ? "unixpacket" : "unix", path: address.path || null };
  return { transport: isDatagram ? "udp" : "tcp", hostname: address.hostname, port: address.port };
}

function urlOf(placeholder: unknown, address: SocketAddress): unknown {
  if (!(placeholder instanceof URL)) return placeholder;
  return new URL(`${placeholder.protocol}//${formatAddress(address)}/`);
}
