/**
 * The Unix socket of packets that datagrams are forwarded over.
 *
 * @module
 */

import type { Bytes } from "../c/bytes.ts";
import { messageRoom, receiveMessage } from "../channels/message.ts";
import { TakeoverError } from "../errors.ts";
import type { Runtime } from "../runtime.ts";
import { disposeAll, OwnedDescriptor } from "../sockets/descriptors.ts";
import { integerOption } from "../sockets/socket.ts";

/** One packet's bytes, or -errno. Descriptors in it were sent by mistake, or by malice. */
export function receivePacket(runtime: Runtime, descriptor: number): Bytes | number {
  const incoming = receiveMessage(runtime, descriptor, messageRoom);
  if (typeof incoming === "number") return incoming;
  const { descriptors, pidfd } = incoming.ancillary;
  disposeAll([...descriptors, ...pidfd === null ? [] : [pidfd]].map((number) => new OwnedDescriptor(runtime, number)));
  return incoming.bytes;
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
