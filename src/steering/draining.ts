/**
 * What waits in a datagram socket, read beside whatever else reads there.
 *
 * @module
 */

import { errnoOf } from "../c/errno.ts";
import type { InetAddress } from "../c/sockaddr.ts";
import { messageRoom, receiveMessage } from "../channels/message.ts";
import type { Runtime } from "../runtime.ts";

/** Is given a datagram, and who sent it. */
export type TakeDatagram = (bytes: Uint8Array, peer: InetAddress) => void;

/** Errors in a row after which a socket counts as empty: what an ICMP message said of a peer is told once. */
const errorCount = 16;

/** Reads one datagram, and says what there was. */
export function takeDatagram(
  runtime: Runtime,
  descriptor: number,
  take: TakeDatagram,
): "datagram" | "nothing" | "error" {
  const incoming = receiveMessage(runtime, descriptor, messageRoom);
  if (typeof incoming === "number") {
    return -incoming === errnoOf(runtime.abi.platform, "EAGAIN") ? "nothing" : "error";
  }
  if (incoming.from && incoming.from.family !== "unix") take(incoming.bytes, incoming.from);
  return "datagram";
}

/**
 * Reads everything that waits in a socket.
 *
 * @param goesOn Asked before each datagram; all when left out.
 */
export function drainDatagrams(
  runtime: Runtime,
  descriptor: number,
  take: TakeDatagram,
  goesOn: () => boolean = () => true,
): void {
  for (let errors = 0; errors < errorCount && goesOn();) {
    const found = takeDatagram(runtime, descriptor, take);
    if (found === "nothing") return;
    if (found === "error") errors++;
  }
}
