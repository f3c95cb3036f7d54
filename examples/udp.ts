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
 * Each datagram is answered with `{"n":1,"number":7,"pid":4711,"generation":1}`:
 * `n` counts those that this process has answered. The first byte of a datagram
 * is the flow's tag, which tells the generation that issued it, 0 for none; the
 * next four are its number, which the answer repeats.
 *
 * Start it again, on the same runtime or another, and the second takes over.
 * With `FLOWS=steered`, `FLOWS=connected` or `FLOWS=forwarded` the first goes on answering the datagrams with its own
 * tag until `DRAIN_MS` is up; with `connected`, those that come from where one with its own tag has come from before.
 * `FLOWS=best` has means for all three; the event `flows` says which it is. Environment and events are otherwise those
 * of examples/service.ts.
 */

import { createSocket } from "node:dgram";
import { env } from "node:process";
import type { FlowOptions, Flows, InetAddress } from "../mod.ts";
import { address, Bun, Deno, run, type Who } from "./service.ts";

/** What comes while a process starts to serve waits in the socket. */
const receiveBufferSize = 16 * 1024 * 1024;

/** Tags of one byte are 1 to 255, and then 1 again. */
const tagCount = 255;

/** A socket, as all three runtimes have one. */
interface Socket {
  send(bytes: Uint8Array, port: number, hostname: string): unknown;
}

/** Where the placeholder is. */
type At = { readonly hostname: string; readonly port: number; readonly address: string };

/** Is given each datagram that this process reads. */
type Read = (bytes: Uint8Array, port: number, hostname: string) => void;

await run("udp", (takeover, who) => {
  const next = answers(who);
  const known = new Map<string, InetAddress>();
  const { generation } = who;
  const issuer = ([tag]: Uint8Array) => tag ? generation - (generation - tag) % tagCount : null;
  let socket: Socket;
  const answer = (bytes: Uint8Array, peer: InetAddress) => {
    if (issuer(bytes) === generation) known.set(`${peer.hostname} ${peer.port}`, peer);
    socket.send(next(bytes), peer.port, peer.hostname);
  };
  const open = async (at: At, flows: Flows) => {
    const family = at.hostname.includes(":") ? "inet6" : "inet";
    return socket = await receive(at, (bytes, port, hostname) => {
      const peer = { family, hostname, port } as const;
      if (!flows.take(bytes, peer)) answer(bytes, peer);
    });
  };
  const tag = { offset: 0, size: 1 } as const;
  const peers = () => known.values();
  const ways: Record<string, FlowOptions> = {
    steered: { tag, datagram: answer },
    connected: { peers, datagram: answer },
    forwarded: { route: issuer, datagram: answer },
    best: { tag, peers, route: issuer, datagram: answer },
  };
  const flows = ways[env.FLOWS ?? ""];
  return takeover.bind("web", { ...address, receiveBufferSize }, open, flows ? { flows } : {});
});

/** Gives one answer after the other. */
function answers({ pid, generation }: Who): (bytes: Uint8Array) => Uint8Array {
  const encoder = new TextEncoder();
  let n = 0;
  return (bytes) => encoder.encode(JSON.stringify({ n: ++n, number: numberOf(bytes), pid, generation }));
}

function numberOf(bytes: Uint8Array): number {
  return bytes.length < 5 ? 0 : new DataView(bytes.buffer, bytes.byteOffset).getUint32(1);
}

/** Opens a socket of the runtime's own kind. */
async function receive(at: At, read: Read): Promise<Socket> {
  if (Deno) return pull(Deno.listenDatagram({ ...at, transport: "udp" }), read);
  if (Bun) {
    const data = (_: unknown, bytes: Uint8Array, port: number, hostname: string) => read(bytes, port, hostname);
    return await Bun.udpSocket({ ...at, socket: { data } });
  }
  const socket = createSocket(at.hostname.includes(":") ? "udp6" : "udp4");
  socket.on("message", (bytes, from) => read(bytes, from.port, from.address));
  return socket.bind(at);
}

/** The part of Deno's socket that is used. */
interface DenoSocket extends AsyncIterable<[Uint8Array, { readonly hostname: string; readonly port: number }]> {
  send(bytes: Uint8Array, to: unknown): Promise<number>;
}

/** The loop ends when the socket is closed. */
function pull(socket: DenoSocket, read: Read): DenoSocket & Socket {
  void (async () => {
    for await (const [bytes, { port, hostname }] of socket) read(bytes, port, hostname);
  })();
  const { send } = socket;
  const sendTo = (bytes: Uint8Array, port: number, hostname: string) => {
    return send.call(socket, bytes, { transport: "udp", hostname, port });
  };
  return Object.assign(socket, { send: sendTo });
}
