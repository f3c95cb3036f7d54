/**
 * One sendmsg(2), one recvmsg(2): never blocks, never retries. Every call of a
 * process goes through the same buffers, because none outlasts its turn.
 *
 * @module
 */

import { allocate, type Bytes } from "../c/bytes.ts";
import { type Ancillary, cmsgSpace, decodeAncillary, descriptorSize } from "../c/cmsg.ts";
import { Msghdr } from "../c/msghdr.ts";
import { decodeSockaddr, encodeSockaddr, type SocketAddress, sockaddrSize } from "../c/sockaddr.ts";
import type { Runtime } from "../runtime.ts";

/** The most bytes of one call; the kernel's default for a whole datagram is less (net.core.wmem_default). */
export const messageRoom: number = 256 * 1024;

/**
 * Room for control data: more descriptors than any sender can put into a
 * message, so that too many are noticed by their number (macOS lets 512
 * through, and leaks what does not fit), and credentials, a pidfd and a
 * security label, the longest of which has a page.
 */
const receivableCount = 512;
const otherControlSize = 5 * 1024;

/** The same number on Linux and macOS. */
const MSG_PEEK = 2;

/** What is sent. */
export interface Outgoing {
  /** At most {@linkcode messageRoom} bytes. */
  readonly bytes: Uint8Array;
  /** Control messages (`encodeControl`). */
  readonly control?: Uint8Array | undefined;
  /** Whom to, for a datagram socket that is not connected. */
  readonly to?: SocketAddress | undefined;
}

/** What was received. */
export interface Incoming {
  /** A copy. */
  readonly bytes: Bytes;
  /** Its descriptors are the caller's. */
  readonly ancillary: Ancillary;
  /** `MSG_TRUNC`: a datagram was longer than the room for it. */
  readonly isCut: boolean;
  /** `MSG_CTRUNC`: control data, descriptors above all, are lost. */
  readonly isControlCut: boolean;
  /** Who sent it; null on a connected socket, and from an unnamed one. */
  readonly from: SocketAddress | null;
}

const buffers = new WeakMap<Runtime, Msghdr>();

/**
 * Sends a message.
 *
 * @returns How many bytes went, on a stream perhaps not all, or -errno. The
 *   control data go with the first byte: never repeat them after a short send.
 */
export function sendMessage(runtime: Runtime, descriptor: number, { bytes, control, to }: Outgoing): number {
  const { abi, libc } = runtime;
  const message = messageOf(runtime);
  message.data.set(bytes);
  if (control) message.control.set(control);
  const name = to && encodeSockaddr(abi, to);
  if (name) message.name.set(name);
  message.aim(0, bytes.length, control?.length ?? 0, name?.length ?? 0);
  return libc.sendmsg(descriptor, message.bytes, abi.constants.MSG_DONTWAIT | abi.constants.MSG_NOSIGNAL);
}

/**
 * Receives a message, its descriptors close-on-exec.
 *
 * @param size The most bytes to take, from 1 to {@linkcode messageRoom}.
 * @returns The message, or -errno. No bytes and no descriptors are the end of a stream.
 */
export function receiveMessage(runtime: Runtime, descriptor: number, size: number): Incoming | number {
  const { abi, libc } = runtime;
  const { MSG_DONTWAIT, MSG_CMSG_CLOEXEC, MSG_CTRUNC, MSG_TRUNC } = abi.constants;
  const message = messageOf(runtime);
  message.aim(0, size, message.control.length, sockaddrSize);
  const result = libc.recvmsg(descriptor, message.bytes, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  if (result < 0) return result;
  return {
    bytes: message.data.slice(0, result),
    ancillary: decodeAncillary(abi, message.received),
    isCut: (message.flags & MSG_TRUNC) !== 0,
    isControlCut: (message.flags & MSG_CTRUNC) !== 0,
    from: senderOf(runtime, message),
  };
}

/** Whether a message that is not empty is there; it stays. An end and an empty packet look the same to recvmsg(2). */
export function isMessageWaiting(runtime: Runtime, descriptor: number): boolean {
  const message = messageOf(runtime);
  message.aim(0, 1, 0);
  return runtime.libc.recvmsg(descriptor, message.bytes, runtime.abi.constants.MSG_DONTWAIT | MSG_PEEK) > 0;
}

function senderOf({ abi }: Runtime, message: Msghdr): SocketAddress | null {
  const { sender } = message;
  const address = sender.length > 0 ? decodeSockaddr(abi, sender) : null;
  return address?.family === "unix" && address.path === "" ? null : address;
}

function messageOf(runtime: Runtime): Msghdr {
  let message = buffers.get(runtime);
  if (!message) {
    const { abi } = runtime;
    const control = allocate(cmsgSpace(abi, receivableCount * descriptorSize) + otherControlSize);
    message = new Msghdr(abi, (bytes) => runtime.addressOf(bytes), allocate(messageRoom), control);
    buffers.set(runtime, message);
  }
  return message;
}
