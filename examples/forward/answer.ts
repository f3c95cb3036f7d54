/**
 * What the server and the forwarder both do with a connection: read the
 * request, answer, close.
 *
 * @module
 */

import net from "node:net";
import process from "node:process";
import { describe, formatAddress, type OwnedDescriptor } from "../../mod.ts";

// deno-lint-ignore no-explicit-any
const { Deno, Bun } = globalThis as any;
const runtime = Deno ? "deno" : Bun ? "bun" : "node";

/** What was answered, and who asked. */
export interface Answered {
  /** `127.0.0.1:8080`; null once the client has reset the connection. */
  readonly local: string | null;
  readonly remote: string | null;
  /** Empty when nothing came. */
  readonly request: string;
  /** Null when nothing was asked, or nobody was there to be answered. */
  readonly answer: string | null;
  readonly reason?: string;
}

/** How long to wait, in milliseconds, and when to answer. */
export interface Patience {
  /** For the whole request. */
  readonly requestMs: number;
  /** Answers also when no request came: somebody else has read it. */
  readonly unasked?: boolean;
}

/** A request has no mark at its end: it is whole when it looks so, and nothing follows. */
const wholeRequest = /^seq num \d+$/;
const quietMs = 20;
const mostBytes = 1_024;

/** How long the client may take to close after the answer. */
const lingerMs = 1_000;

/**
 * Answers a connection with a socket of the runtime, and closes it.
 *
 * @param connection Taken; one that the client has reset stays the caller's.
 * @param text The answer.
 */
export async function answer(connection: OwnedDescriptor, text: string, patience: Patience): Promise<Answered> {
  const { local, peer } = describe(connection);
  const answered = { local: local && formatAddress(local), remote: peer && formatAddress(peer) };
  const socket = await adopt(connection).catch((error: Error) => error);
  if (socket instanceof Error) return { ...answered, request: "", answer: null, reason: socket.message };
  const ended = new Promise<void>((resolve) => socket.once("close", () => resolve()));
  socket.on("error", () => {}); // Closing follows.
  const request = await requestOn(socket, patience.requestMs);
  const isAnswered = (request !== "" || patience.unasked === true) && !socket.destroyed;
  if (isAnswered) socket.end(text);
  else socket.destroy();
  const timer = setTimeout(() => socket.destroy(), lingerMs);
  await ended;
  clearTimeout(timer);
  return { ...answered, request, answer: isAnswered ? text : null };
}

/** One JSON line. */
export function report(event: string, more: object = {}): void {
  console.log(JSON.stringify({ event, pid: process.pid, runtime, ...more }));
}

/**
 * Each runtime's own way into `node:net`. `adoptConnection` has one for every
 * kind of object, and takes ten times as long. A socket that is half-closed
 * goes on: a client may end its side and wait.
 */
async function adopt(connection: OwnedDescriptor): Promise<net.Socket> {
  const options = { allowHalfOpen: true };
  if (Deno) return await (await import("../../runtimes/deno.ts")).socketFrom(connection, options);
  if (!Bun) return await (await import("../../runtimes/node.ts")).connectionFrom(connection, options);
  const { connectionFrom } = await import("../../runtimes/bun.ts");
  return await connectionFrom(connection, (at) => net.connect({ ...at, ...options } as net.NetConnectOpts));
}

function requestOn(socket: net.Socket, limitMs: number): Promise<string> {
  return new Promise((resolve) => {
    let text = "";
    let quiet: ReturnType<typeof setTimeout> | undefined;
    const whole = (): void => {
      clearTimeout(limit);
      clearTimeout(quiet);
      resolve(text.split("\n")[0]!.trimEnd());
    };
    const limit = setTimeout(whole, limitMs);
    socket.on("data", (bytes) => {
      text += new TextDecoder().decode(bytes as Uint8Array);
      clearTimeout(quiet);
      if (text.includes("\n") || text.length >= mostBytes) whole();
      else if (wholeRequest.test(text)) quiet = setTimeout(whole, quietMs);
    });
    socket.once("end", whole);
    socket.once("close", whole);
  });
}
