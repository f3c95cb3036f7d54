/**
 * A UDP server that replaces its predecessor without losing a datagram. One
 * file for three runtimes:
 *
 * ```sh
 * deno run --unstable-net --allow-ffi --allow-net --allow-env examples/udp.ts
 * bun examples/udp.ts
 * node examples/udp.ts
 * ```
 *
 * Each datagram is answered with `{"n":1,"pid":4711,"generation":1}`: `n` counts
 * those that this process has answered. The first byte of a datagram is the
 * generation that issued the flow's tag, 0 for none.
 *
 * Start it again, on the same runtime or another, and the second takes over.
 * With `FLOWS=forwarded` the first goes on answering the datagrams with its own
 * tag until `DRAIN_MS` is up. Environment and events are otherwise those of
 * examples/service.ts.
 */

import { createSocket } from "node:dgram";
import { env } from "node:process";
import type { Flows } from "../mod.ts";
import { address, Bun, Deno, run, type Who } from "./service.ts";

/** What comes while a process starts to serve waits in the socket. */
const receiveBufferSize = 4 * 1024 * 1024;

/** Sends an answer. */
type Send = (bytes: Uint8Array, port: number, hostname: string) => unknown;

await run("udp", async (takeover, who) => {
  const next = answers(who);
  let send: Send = () => {};
  const route = (bytes: Uint8Array) => bytes[0] === 0 || bytes[0] === who.generation ? null : bytes[0]!;
  // What a newer process has read for this one.
  const datagram = (_: Uint8Array, { port, hostname }: { port: number; hostname: string }) => send(next(), port, hostname);
  const open = (at: { hostname: string; port: number; address: string }, flows: Flows) => {
    const family = at.hostname.includes(":") ? "inet6" : "inet";
    return receive(at, (bytes, port, hostname, reply) => {
      send = reply;
      if (!flows.take(bytes, { family, hostname, port })) send(next(), port, hostname);
    });
  };
  const options = env.FLOWS === "forwarded" ? { flows: { route, datagram } } : {};
  return await takeover.bind("web", { ...address, receiveBufferSize }, open, options);
});

/** Gives one answer after the other. */
function answers({ pid, generation }: Who): () => Uint8Array {
  const encoder = new TextEncoder();
  let n = 0;
  return () => encoder.encode(JSON.stringify({ n: ++n, pid, generation }));
}

/** Opens a socket of the runtime's own kind. */
function receive(
  at: { hostname: string; port: number; address: string },
  datagram: (bytes: Uint8Array, port: number, hostname: string, send: Send) => void,
): unknown {
  if (Deno) return pull(Deno.listenDatagram({ ...at, transport: "udp" }), datagram);
  if (Bun) {
    return Bun.udpSocket({
      ...at,
      socket: {
        data(socket: { send: Send }, bytes: Uint8Array, port: number, hostname: string) {
          datagram(bytes, port, hostname, (...answer) => socket.send(...answer));
        },
      },
    });
  }
  const socket = createSocket(at.hostname.includes(":") ? "udp6" : "udp4");
  const send: Send = (...answer) => socket.send(...answer);
  socket.on("message", (bytes, from) => datagram(bytes, from.port, from.address, send));
  return socket.bind(at);
}

/** The part of Deno's socket that is used. */
interface DenoSocket extends AsyncIterable<[Uint8Array, { readonly hostname: string; readonly port: number }]> {
  send(bytes: Uint8Array, to: unknown): Promise<number>;
}

/** Returns at once; the loop ends when the socket is closed. */
function pull(socket: DenoSocket, datagram: (bytes: Uint8Array, port: number, hostname: string, send: Send) => void): DenoSocket {
  const send: Send = (bytes, port, hostname) => socket.send(bytes, { transport: "udp", hostname, port });
  void (async () => {
    for await (const [bytes, { port, hostname }] of socket) datagram(bytes, port, hostname, send);
  })();
  return socket;
}
