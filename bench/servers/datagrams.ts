/**
 * The smallest UDP server of each runtime, which answers a datagram with itself:
 * without the library, taken over, or with flows of older generations. The
 * servers of the bench "datagrams".
 *
 * Environment: `TAKEOVER`, the path of the control socket; without it the
 * library is not even loaded. `FLOWS`: how flows stay with their generation,
 * whose number is a datagram's first byte. Every event is one JSON line on
 * stdout.
 */

import { createSocket } from "node:dgram";
import process from "node:process";
import type { FlowOptions, Flows, InetAddress } from "../../mod.ts";

// deno-lint-ignore no-explicit-any
const { Deno, Bun } = globalThis as any;
const { env, pid } = process;

/** Room for some 2,700 small datagrams: a moment's, and not a second's. */
const receiveBufferSize = 1024 * 1024;

/** Far longer than the bench: an older generation stays. */
const drainMs = 3_600_000;

type At = { readonly hostname: string; readonly port: number };
/** Reads a datagram, and sends one. */
type Datagram = (bytes: Uint8Array, port: number, hostname: string) => unknown;

const anywhere: At = { hostname: "127.0.0.1", port: 0 };

if (env.TAKEOVER === undefined) await serve();
else await serveReplaceably(env.TAKEOVER);

/** As every server starts. */
async function serve(): Promise<void> {
  let send: Datagram = () => {};
  const socket = await open(anywhere, (bytes, port, hostname) => send(bytes, port, hostname));
  send = senderOf(socket);
  if (Deno) return say("open", { port: socket.addr.port });
  if (Bun) return say("open", { port: socket.port });
  await new Promise((resolve) => socket.once("listening", resolve));
  say("open", { port: socket.address().port });
}

/** The same, the README's way. */
async function serveReplaceably(path: string): Promise<void> {
  const { takeOver } = await import("../../mod.ts");
  const takeover = await takeOver(path, { limits: { settleMs: 0, drainMs } });
  const { generation } = takeover;
  let send: Datagram = () => {};
  const datagram = (bytes: Uint8Array, { port, hostname }: InetAddress) => void send(bytes, port, hostname);
  /** All are on this machine. */
  const known = new Map<number, InetAddress>();
  const ways: Record<string, FlowOptions> = {
    steered: { tag: { offset: 0, size: 1 }, datagram },
    connected: { peers: () => known.values(), datagram },
    forwarded: { route: (bytes) => bytes[0] === generation ? null : bytes[0]!, datagram },
  };
  const opening = async (at: At, flows: Flows) => {
    const socket = await open(at, (bytes, port, hostname) => {
      const peer = { family: "inet", hostname, port } as const;
      if (env.FLOWS === "connected" && bytes[0] === generation) known.set(port, peer);
      if (!flows.take(bytes, peer)) send(bytes, port, hostname);
    });
    send = senderOf(socket);
    return socket;
  };
  const flows = env.FLOWS === undefined ? {} : { flows: ways[env.FLOWS]! };
  await takeover.bind("echo", { ...anywhere, receiveBufferSize }, opening, flows);
  await takeover.ready();
  await takeover.settled;
  const { port } = takeover.addr("echo") as { port: number };
  say("open", { port, generation });
  await takeover.released;
  await takeover.drained();
  process.exit(0);
}

/** Opens a socket of the runtime's own kind. */
// deno-lint-ignore no-explicit-any
async function open(at: At, read: Datagram): Promise<any> {
  if (Deno) {
    const socket = Deno.listenDatagram({ ...at, transport: "udp" });
    void pull(socket, read);
    return socket;
  }
  if (Bun) {
    const data = (_: unknown, bytes: Uint8Array, port: number, hostname: string) => read(bytes, port, hostname);
    return await Bun.udpSocket({ ...at, socket: { data } });
  }
  const socket = createSocket("udp4");
  socket.on("message", (bytes, { port, address }) => read(bytes, port, address));
  return socket.bind(at.port, at.hostname);
}

/** The loop ends when the socket is closed. */
// deno-lint-ignore no-explicit-any
async function pull(socket: any, read: Datagram): Promise<void> {
  for await (const [bytes, { port, hostname }] of socket) read(bytes, port, hostname);
}

// deno-lint-ignore no-explicit-any
function senderOf(socket: any): Datagram {
  if (Deno) return (bytes, port, hostname) => socket.send(bytes, { transport: "udp", hostname, port });
  return (bytes, port, hostname) => socket.send(bytes, port, hostname);
}

function say(event: string, more: object): void {
  console.log(JSON.stringify({ event, pid, ...more }));
}
