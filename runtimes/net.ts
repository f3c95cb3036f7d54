/**
 * What `node:net` gives on all three runtimes: the control plane.
 *
 * Each runtime takes a descriptor through it (Deno from 2.8, Bun from 1.4), is
 * told of the other side's end without polling, and leaves the path of a
 * listener alone that it did not bind itself.
 *
 * @module
 */

import { lookup as lookupAddress } from "node:dns/promises";
import net from "node:net";
import process from "node:process";
import type { ControlListener, ControlStream, StreamHandlers } from "../src/runtime.ts";
import { formatAddress, type SocketAddress } from "../src/c/sockaddr.ts";

/** What `node:net` objects have inside, the same on all three runtimes. */
interface WithHandle {
  readonly _handle?: { readonly fd?: number } | null;
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
export function present(native: unknown, address: SocketAddress): void {
  if (typeof native !== "object" || native === null) return;
  // Not instanceof: on Bun an http.Server is no net.Server.
  if ("address" in native && typeof native.address === "function") override(native, "address", () => nodeAddress(address));
  else if ("addr" in native) override(native, "addr", denoAddress(address));
  else if (address.family !== "unix" && "hostname" in native && "port" in native) {
    override(native, "hostname", address.hostname);
    override(native, "port", address.port);
    if ("url" in native) override(native, "url", urlOf((native as { url: unknown }).url, address));
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

function denoAddress(address: SocketAddress): Record<string, unknown> {
  if (address.family === "unix") return { transport: "unix", path: address.path };
  return { transport: "tcp", hostname: address.hostname, port: address.port };
}

function urlOf(placeholder: unknown, address: SocketAddress): unknown {
  if (!(placeholder instanceof URL)) return placeholder;
  return new URL(`${placeholder.protocol}//${formatAddress(address)}/`);
}
