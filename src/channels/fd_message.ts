/**
 * A message as a channel receives it: bytes, descriptors that it owns, and what
 * the kernel adds about the sender.
 *
 * @module
 */

import type { Credentials } from "../c/cmsg.ts";
import { errnoName } from "../c/errno.ts";
import type { SocketAddress } from "../c/sockaddr.ts";
import { SystemError, TakeoverError, TruncatedError } from "../errors.ts";
import type { Runtime } from "../runtime.ts";
import { disposeAll, OwnedDescriptor } from "../sockets/descriptors.ts";
import type { SocketType } from "../sockets/socket.ts";
import { type Incoming, isMessageWaiting, messageRoom, receiveMessage } from "./message.ts";
import { isShutDown, type WaitOptions } from "./readiness.ts";

/** How much to take, and how long to wait for it. */
export interface ReceiveOptions extends WaitOptions {
  /** The most bytes of one message, up to 262,144; 65,536 when left out. */
  readonly maxBytes?: number;
  /** Fewer descriptors than these are an error; 0 when left out. */
  readonly minFds?: number;
  /** More descriptors than these are an error; without it any number is right. */
  readonly maxFds?: number;
}

const defaultMaxBytes = 65_536;

/** What one receive brought. Disposing of it closes the descriptors that nobody took. */
export class FdMessage implements Disposable {
  /** Empty when descriptors came alone. */
  readonly bytes: Uint8Array;
  /** In the order sent. Each is closed with the message, unless it was taken (`take()`). */
  readonly fds: readonly OwnedDescriptor[];
  /** Who sent it, as the kernel checked; only after `passCredentials`. */
  readonly credentials?: Credentials;
  /**
   * The sender's pidfd; only after `passPidfd`, and not when this process's
   * table is full. Closed with the message, unless it was taken.
   */
  readonly pidfd?: OwnedDescriptor;
  /** The sender's label of the security module; only after `passSecurity`. */
  readonly securityContext?: string;
  /** The sender's address; only of datagrams from a bound socket. */
  readonly from?: SocketAddress;
  /** Whether a packet or datagram was longer than `maxBytes`; the rest of it is gone (`MSG_TRUNC`). */
  readonly truncated: boolean;

  /**
   * Made by a channel.
   *
   * @param runtime What closes the descriptors.
   * @param incoming What recvmsg(2) brought; its descriptors are the message's.
   */
  constructor(runtime: Runtime, incoming: Incoming) {
    const { descriptors, credentials, pidfd, securityContext } = incoming.ancillary;
    this.bytes = incoming.bytes;
    this.fds = descriptors.map((number) => new OwnedDescriptor(runtime, number));
    this.truncated = incoming.isCut;
    if (credentials) this.credentials = credentials;
    if (pidfd !== null) this.pidfd = new OwnedDescriptor(runtime, pidfd);
    if (securityContext !== null) this.securityContext = securityContext;
    if (incoming.from) this.from = incoming.from;
  }

  /** Closes what nobody took. */
  [Symbol.dispose](): void {
    disposeAll(this.fds);
    this.pidfd?.[Symbol.dispose]();
  }
}

/**
 * Takes the next message of a channel's socket.
 *
 * @returns Undefined when nothing is there, null at the end.
 */
export function takeMessage(
  runtime: Runtime,
  descriptor: number,
  type: SocketType,
  { maxBytes = defaultMaxBytes, minFds = 0, maxFds = Infinity }: ReceiveOptions,
): FdMessage | null | undefined {
  if (!(Number.isInteger(maxBytes) && maxBytes >= 1 && maxBytes <= messageRoom)) {
    throw new TakeoverError("ERR_TAKEOVER_RANGE", `Cannot receive ${maxBytes} bytes: expected 1 to ${messageRoom}`);
  }
  const incoming = receiveMessage(runtime, descriptor, maxBytes);
  if (typeof incoming === "number") {
    const code = errnoName(runtime.abi.platform, -incoming);
    if (code === "EAGAIN" || code === "EINTR") return undefined;
    throw new SystemError(code, incoming, "recvmsg");
  }
  const message = new FdMessage(runtime, incoming);
  const { length } = message.fds;
  if (incoming.isControlCut) return refused(message, new TruncatedError(message.bytes, length));
  if (incoming.bytes.length === 0 && length === 0 && isAtEnd(runtime, descriptor, type)) {
    message[Symbol.dispose]();
    return null;
  }
  if (length < minFds) return refused(message, miscounted("ERR_TAKEOVER_MISSING", length, `at least ${minFds}`));
  if (length > maxFds) return refused(message, miscounted("ERR_TAKEOVER_SURPLUS", length, `at most ${maxFds}`));
  return message;
}

/** Whether what came without a byte or descriptor was the end, and no empty packet. */
function isAtEnd(runtime: Runtime, descriptor: number, type: SocketType): boolean {
  if (type !== "seqpacket") return type === "stream";
  return isShutDown(runtime, descriptor) && !isMessageWaiting(runtime, descriptor);
}

function miscounted(code: "ERR_TAKEOVER_MISSING" | "ERR_TAKEOVER_SURPLUS", count: number, expected: string): TakeoverError {
  return new TakeoverError(code, `Cannot take a message with ${count} descriptors: expected ${expected}; they were closed, see what the sender sends`);
}

function refused(message: FdMessage, error: Error): never {
  message[Symbol.dispose]();
  throw error;
}
