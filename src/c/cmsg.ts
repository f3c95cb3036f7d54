/**
 * Ancillary data (cmsg(3)): `SCM_RIGHTS` control messages as bytes, and back.
 *
 * ```text
 * cmsghdr   | cmsg_len | level | type | fd fd fd … | padding to CMSG_ALIGN
 * CMSG_LEN(n)   = header + n                 what cmsg_len says
 * CMSG_SPACE(n) = header + align(n)          what it takes up
 * ```
 *
 * @module
 */

import type { Abi } from "./abi.ts";
import { allocate, type Bytes, readField, viewOf, writeField } from "./bytes.ts";

/** The size of one descriptor in an `SCM_RIGHTS` array, in bytes. */
export const descriptorSize = 4;

/** One control message as it lies in the buffer. */
export interface ControlMessage {
  /** `cmsg_level`, `SOL_SOCKET` for the messages used here. */
  readonly level: number;
  /** `cmsg_type`, for instance `SCM_RIGHTS`. */
  readonly type: number;
  /** What follows the header, as far as `cmsg_len` and the buffer reach. */
  readonly data: Uint8Array;
}

/**
 * `CMSG_ALIGN`: a length rounded up to the platform's alignment.
 *
 * @param abi The platform.
 * @param length In bytes.
 * @returns Bytes; never less than `length`.
 */
export function cmsgAlign(abi: Abi, length: number): number {
  const { align } = abi.cmsghdr;
  return Math.ceil(length / align) * align;
}

/**
 * `CMSG_LEN`: the value of `cmsg_len` for a message with that much data.
 *
 * @param abi The platform.
 * @param length Bytes of data.
 * @returns Bytes, header included, padding not.
 */
export function cmsgLen(abi: Abi, length: number): number {
  return cmsgAlign(abi, abi.cmsghdr.size) + length;
}

/**
 * `CMSG_SPACE`: the room that a message with that much data takes up.
 *
 * @param abi The platform.
 * @param length Bytes of data.
 * @returns Bytes, header and padding included.
 */
export function cmsgSpace(abi: Abi, length: number): number {
  return cmsgAlign(abi, abi.cmsghdr.size) + cmsgAlign(abi, length);
}

/**
 * Encodes one `SCM_RIGHTS` control message (unix(7)).
 *
 * @param abi The platform.
 * @param descriptors At most `abi.descriptorsPerMessage` (Linux: 253,
 *   `SCM_MAX_FD` in include/net/scm.h).
 * @returns The control buffer, `CMSG_SPACE(4 * descriptors.length)` bytes; an
 *   empty one when there are no descriptors.
 * @throws {RangeError} When there are too many descriptors or one is negative.
 *
 * @example
 * ```ts
 * import { abiOf, decodeRights, encodeRights } from "@socket-takeover/socket-takeover/cmsg";
 *
 * const linux = abiOf("linux", "x64");
 * console.log(decodeRights(linux, encodeRights(linux, [3, 4]))); // [3, 4]
 * ```
 */
export function encodeRights(abi: Abi, descriptors: readonly number[]): Bytes {
  if (descriptors.length === 0) return allocate(0).subarray(0, 0);
  if (descriptors.length > abi.descriptorsPerMessage) {
    throw new RangeError(
      `Cannot send ${descriptors.length} descriptors in one message: ` +
        `expected at most ${abi.descriptorsPerMessage}; send the rest in a further message`,
    );
  }
  const dataSize = descriptors.length * descriptorSize;
  const bytes = allocate(cmsgSpace(abi, dataSize));
  const view = viewOf(bytes);
  writeField(view, abi.cmsghdr.len, cmsgLen(abi, dataSize));
  writeField(view, abi.cmsghdr.level, abi.constants.SOL_SOCKET);
  writeField(view, abi.cmsghdr.type, abi.constants.SCM_RIGHTS);
  let at = cmsgLen(abi, 0);
  for (const descriptor of descriptors) {
    if (!(Number.isInteger(descriptor) && descriptor >= 0)) {
      throw new RangeError(`Cannot send ${descriptor}: expected a descriptor, an integer from 0 on`);
    }
    view.setInt32(at, descriptor, true);
    at += descriptorSize;
  }
  return bytes;
}

/**
 * Walks a control buffer (`CMSG_FIRSTHDR`, `CMSG_NXTHDR`).
 *
 * A header that claims more than the buffer holds ends the walk after what is
 * there, because the kernel has installed the descriptors in that part.
 *
 * @param abi The platform.
 * @param control Exactly `msg_controllen` bytes, as recvmsg(2) left it.
 * @returns The messages in order.
 */
export function decodeControl(abi: Abi, control: Uint8Array): ControlMessage[] {
  const messages: ControlMessage[] = [];
  const view = viewOf(control);
  const headerSize = cmsgLen(abi, 0);
  let at = 0;
  while (at + headerSize <= control.length) {
    const length = readField(view, abi.cmsghdr.len, at);
    if (length < headerSize) break;
    messages.push({
      level: readField(view, abi.cmsghdr.level, at),
      type: readField(view, abi.cmsghdr.type, at),
      data: control.subarray(at + headerSize, Math.min(at + length, control.length)),
    });
    at += cmsgAlign(abi, length);
  }
  return messages;
}

/**
 * Collects the descriptors of every `SCM_RIGHTS` message in a control buffer.
 *
 * Every whole int that `cmsg_len` covers is read, also those that lie in what
 * looks like padding: the kernel uses that room, and one not read would leak.
 *
 * @param abi The platform.
 * @param control Exactly `msg_controllen` bytes, as recvmsg(2) left it.
 * @returns The descriptors, in order; the caller owns each of them.
 */
export function decodeRights(abi: Abi, control: Uint8Array): number[] {
  const descriptors: number[] = [];
  for (const { level, type, data } of decodeControl(abi, control)) {
    if (level !== abi.constants.SOL_SOCKET || type !== abi.constants.SCM_RIGHTS) continue;
    const view = viewOf(data);
    for (let at = 0; at + descriptorSize <= data.length; at += descriptorSize) {
      descriptors.push(view.getInt32(at, true));
    }
  }
  return descriptors;
}

export { abiOf } from "./abi.ts";
export type {
  Abi,
  CmsghdrLayout,
  ConstantName,
  Constants,
  EpollEventLayout,
  Field,
  IovecLayout,
  Layout,
  MsghdrLayout,
  SockaddrIn6Layout,
  SockaddrInLayout,
  SockaddrLayout,
  SockaddrUnLayout,
  StatxLayout,
} from "./abi.ts";
export type { Bytes } from "./bytes.ts";
