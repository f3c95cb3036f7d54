/**
 * Messages as a program makes them that knows nothing of this library: one
 * sendmsg(2), one recvmsg(2), any control data, any room for them.
 *
 * @module
 */

import assert from "node:assert/strict";
import { allocate, viewOf } from "../../src/c/bytes.ts";
import { type ControlMessage, decodeAncillary, encodeControl } from "../../src/c/cmsg.ts";
import { errnoName } from "../../src/c/errno.ts";
import { Msghdr } from "../../src/c/msghdr.ts";
import { disposeAll, OwnedDescriptor } from "../../src/sockets/descriptors.ts";
import type { FdChannel } from "../../src/channels/fd_channel.ts";
import type { FdMessage } from "../../src/channels/fd_message.ts";
import type { Descriptor } from "../../src/sockets/descriptors.ts";
import { channelPair, type FdChannelOptions } from "../../src/channels/fd_listener.ts";
import { cookieOf, openPair, setIntegerOption, type SocketType } from "../../src/sockets/socket.ts";
import { runtime } from "./seam.ts";

const { abi, libc } = runtime;
const { constants } = abi;

/** Linux's SO_SNDBUF (asm-generic/socket.h). */
const SO_SNDBUF = 7;

/** What one recvmsg brought. */
export interface RawReceived {
  /** Bytes of data, or -errno. */
  readonly size: number;
  readonly bytes: readonly number[];
  readonly flags: number;
  /** Its descriptors; the caller owns them. */
  readonly descriptors: readonly OwnedDescriptor[];
}

/** Sends bytes with any control messages. Gives `sent 4`, or the errno's name. */
export function sendRaw(descriptor: number, bytes: Uint8Array, control: Uint8Array = new Uint8Array(0)): string {
  const message = new Msghdr(abi, (each) => runtime.addressOf(each), allocate(bytes.length), allocate(control.length));
  message.data.set(bytes);
  message.control.set(control);
  message.aim(0, bytes.length, control.length);
  const result = libc.sendmsg(descriptor, message.bytes, constants.MSG_DONTWAIT | constants.MSG_NOSIGNAL);
  return result < 0 ? errnoName(abi.platform, -result) : `sent ${result}`;
}

/** Receives with exactly that much room. */
export function receiveRaw(descriptor: number, size: number, controlSize: number): RawReceived {
  const message = new Msghdr(abi, (each) => runtime.addressOf(each), allocate(size), allocate(controlSize));
  message.aim(0, size, controlSize);
  const result = libc.recvmsg(descriptor, message.bytes, constants.MSG_DONTWAIT | constants.MSG_CMSG_CLOEXEC);
  const numbers = result < 0 ? [] : decodeAncillary(abi, message.received).descriptors;
  return {
    size: result,
    bytes: [...message.data.subarray(0, Math.max(0, result))],
    flags: message.flags,
    descriptors: numbers.map((number) => new OwnedDescriptor(runtime, number)),
  };
}

/** A control message of any type and data, padded as the kernel wants it. */
export function controlOf(...messages: readonly ControlMessage[]): Uint8Array {
  return encodeControl(abi, messages);
}

/** Two channels that are connected; they are closed together. */
export interface Pair extends Disposable {
  readonly left: FdChannel;
  readonly right: FdChannel;
}

/** A pair of channels that is closed at the end of the block. */
export function pairOf(type: SocketType = "stream", options: FdChannelOptions = {}): Pair {
  const [left, right] = channelPair(runtime, { ...options, type });
  return {
    left,
    right,
    [Symbol.dispose]() {
      left.close();
      right.close();
    },
  };
}

/** What has been sent on a Unix socket is there at once. */
export async function received(channel: FdChannel, options = {}): Promise<FdMessage> {
  const message = await channel.receive({ timeoutMs: 10_000, ...options });
  assert.ok(message, "the channel is at its end");
  return message;
}

/** Makes a socket's send buffer as small as the kernel lets it be. */
export function shrink(channel: FdChannel): void {
  setIntegerOption(runtime, channel.descriptor, constants.SOL_SOCKET, SO_SNDBUF, 1);
}

/** Descriptors that each hold their own number: a socket whose other end wrote it, and closed. */
export function numbered(count: number, first = 0): OwnedDescriptor[] {
  return Array.from({ length: count }, (_, index) => {
    const [writer, reader] = openPair(runtime);
    const bytes = allocate(4);
    viewOf(bytes).setUint32(0, first + index, true);
    assert.equal(libc.write(writer.number, bytes, 4), 4);
    writer[Symbol.dispose]();
    return reader;
  });
}

/** The number that a descriptor holds, which is read out of it. */
export function numberIn(descriptor: Descriptor): number {
  const bytes = allocate(4);
  const number = typeof descriptor === "number" ? descriptor : descriptor.number;
  assert.equal(libc.read(number, bytes, 4), 4, `descriptor ${number} holds no number`);
  return viewOf(bytes).getUint32(0, true);
}

/** The numbers that the descriptors of a message hold; they are closed. */
export function numbersIn(descriptors: readonly OwnedDescriptor[]): number[] {
  try {
    return descriptors.map(numberIn);
  } finally {
    disposeAll(descriptors);
  }
}

/** A signal that has ended everything before it began. */
export function aborted(reason: string): AbortSignal {
  const controller = new AbortController();
  controller.abort(new Error(reason));
  return controller.signal;
}

/** 0, 1, 2 … */
export function upTo(count: number, first = 0): number[] {
  return Array.from({ length: count }, (_, index) => first + index);
}

/** The socket's own number in the kernel, the same in every process. */
export function cookie(descriptor: number): string {
  return cookieOf(runtime, descriptor);
}
