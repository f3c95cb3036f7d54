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
 * Environment and events are those of examples/service.ts.
 */

import { createSocket } from "node:dgram";
import { address, Bun, Deno, run, type Who } from "./service.ts";

/** What comes while a process starts to serve waits in the socket. */
const receiveBufferSize = 4 * 1024 * 1024;

await run("udp", (takeover, who) => {
  const answer = answerer(who);
  return takeover.bind("web", { ...address, receiveBufferSize }, (at) => {
    if (Deno) return serve(Deno.listenDatagram({ ...at, transport: "udp" }), answer);
    if (Bun) {
      const data = (socket: BunSocket, _: unknown, port: number, hostname: string) => void socket.send(answer(), port, hostname);
      return Bun.udpSocket({ ...at, socket: { data } });
    }
    const socket = createSocket(at.hostname.includes(":") ? "udp6" : "udp4");
    socket.on("message", (_, from) => socket.send(answer(), from.port, from.address));
    return socket.bind(at);
  });
});

/** Gives one answer after the other. */
function answerer({ pid, generation }: Who): () => Uint8Array {
  const encoder = new TextEncoder();
  let n = 0;
  return () => encoder.encode(JSON.stringify({ n: ++n, pid, generation }));
}

/** The part of Bun's socket that is used. */
interface BunSocket {
  send(bytes: Uint8Array, port: number, hostname: string): boolean;
}

/** The part of Deno's socket that is used. */
interface DenoSocket extends AsyncIterable<[Uint8Array, unknown]> {
  send(bytes: Uint8Array, to: unknown): Promise<number>;
}

/** Returns at once; the loop ends when the socket is closed. */
function serve(socket: DenoSocket, answer: () => Uint8Array): DenoSocket {
  void (async () => {
    for await (const [, from] of socket) await socket.send(answer(), from);
  })();
  return socket;
}
