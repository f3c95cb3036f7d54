/**
 * The Unix socket of packets that datagrams are forwarded over.
 *
 * @module
 */

import type { Bytes } from "../c/bytes.ts";
import { messageRoom, receiveMessage } from "../channels/message.ts";
import { isShutDown, pause, waitReadable } from "../channels/readiness.ts";
import { TakeoverError } from "../errors.ts";
import type { Runtime } from "../runtime.ts";
import { disposeAll, OwnedDescriptor } from "../sockets/descriptors.ts";
import { integerOption } from "../sockets/socket.ts";

/** When something is tried again for which the machine had no memory. */
export const againMs = 50;

/**
 * Waits for what comes next: a packet, the other side's end, which may have
 * left packets, or that this process closes the channel. A wait that fails says
 * nothing of the channel: it is tried again.
 */
export async function nextAt(runtime: Runtime, channel: OwnedDescriptor): Promise<"packet" | "end" | "closed"> {
  while (channel.number >= 0) {
    try {
      await waitReadable(runtime, channel.number, { keepAlive: false });
      if (channel.number >= 0) return isShutDown(runtime, channel.number) ? "end" : "packet";
    } catch {
      if (channel.number >= 0) await pause(againMs);
    }
  }
  return "closed";
}

/** One packet's bytes, or -errno. Descriptors in it were sent by mistake, or by malice. */
export function receivePacket(runtime: Runtime, descriptor: number): Bytes | number {
  const incoming = receiveMessage(runtime, descriptor, messageRoom);
  if (typeof incoming === "number") return incoming;
  const { descriptors, pidfd } = incoming.ancillary;
  disposeAll([...descriptors, ...pidfd === null ? [] : [pidfd]].map((number) => new OwnedDescriptor(runtime, number)));
  return incoming.bytes;
}

/**
 * Checks that there are such sockets.
 *
 * @throws {TakeoverError} `ERR_TAKEOVER_UNSUPPORTED`.
 */
export function checkForwarding({ abi }: Runtime): void {
  if (abi.platform === "linux") return;
  throw new TakeoverError(
    "ERR_TAKEOVER_UNSUPPORTED",
    `Cannot forward datagrams on ${abi.platform}: expected Linux, whose Unix sockets carry packets`,
  );
}

/**
 * Checks that a descriptor is such a socket.
 *
 * @throws {TakeoverError} `ERR_TAKEOVER_DESCRIPTOR`.
 */
export function checkPacketSocket(runtime: Runtime, { number }: OwnedDescriptor): void {
  const { SO_TYPE, SOCK_SEQPACKET } = runtime.abi.constants;
  if (integerOption(runtime, number, SO_TYPE) === SOCK_SEQPACKET) return;
  throw new TakeoverError(
    "ERR_TAKEOVER_DESCRIPTOR",
    `Cannot forward over the descriptor ${number}: expected a Unix socket of the type seqpacket`,
  );
}
