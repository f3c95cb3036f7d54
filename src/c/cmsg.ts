/**
 * Ancillary data (cmsg(3), unix(7)): control messages as bytes, and back.
 *
 * ```text
 * cmsghdr   | cmsg_len | level | type | data … | padding to CMSG_ALIGN
 * CMSG_LEN(n)   = header + n                 what cmsg_len says
 * CMSG_SPACE(n) = header + align(n)          what it takes up
 *
 * SCM_RIGHTS        fd fd fd …          an int each
 * SCM_CREDENTIALS   pid | uid | gid     struct ucred          Linux
 * SCM_SECURITY      a label             NUL or not            Linux
 * SCM_PIDFD         fd                  an int                Linux 6.5
 * ```
 *
 * @module
 */

import type { Abi } from "./abi.ts";
import { allocate, type Bytes, readField, untilNul, viewOf, writeField } from "./bytes.ts";
import { TakeoverError } from "../errors.ts";

/** The size of one descriptor in an `SCM_RIGHTS` array, in bytes. */
export const descriptorSize = 4;

/** Linux's types beside `SCM_RIGHTS` (include/linux/socket.h); on macOS the same numbers mean others. */
const SCM_CREDENTIALS = 2;
const SCM_SECURITY = 3;
const SCM_PIDFD = 4;

/** One control message as it lies in the buffer. */
export interface ControlMessage {
  /** `cmsg_level`, `SOL_SOCKET` for the messages used here. */
  readonly level: number;
  /** `cmsg_type`, for instance `SCM_RIGHTS`. */
  readonly type: number;
  /** What follows the header, as far as `cmsg_len` and the buffer reach. */
  readonly data: Uint8Array;
}

/** A process and its user, as the kernel vouches for them (`struct ucred`, unix(7)). */
export interface Credentials {
  /** In the reader's pid namespace; 0 when the process is in none that the reader sees. It may have ended since. */
  readonly pid: number;
  /** The user id. */
  readonly uid: number;
  /** The group id. */
  readonly gid: number;
}

/** What a control buffer brought. */
export interface Ancillary {
  /** Of every `SCM_RIGHTS` message, in order; whoever received them owns each. */
  readonly descriptors: number[];
  /** `SCM_CREDENTIALS`; null when there are none, or they were cut short. */
  readonly credentials: Credentials | null;
  /** `SCM_PIDFD`, the sender as a descriptor to own; null when there is none, or the kernel had none to give. */
  readonly pidfd: number | null;
  /**
   * `SCM_SECURITY`, the label that a security module has for the sender; null
   * when there is none. After `MSG_CTRUNC` it may be cut short.
   */
  readonly securityContext: string | null;
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
 * `CMSG_FIRSTHDR`: where the first control message begins.
 *
 * @param abi The platform.
 * @param control Exactly `msg_controllen` bytes, as recvmsg(2) left it.
 * @returns 0, or -1 when no whole header is there, or one whose `cmsg_len` is
 *   less than the header itself.
 */
export function cmsgFirst(abi: Abi, control: Uint8Array): number {
  return headerAt(abi, control, 0);
}

/**
 * `CMSG_NXTHDR`: where the control message behind another begins.
 *
 * C's macro also ends at a last message that claims more than the buffer
 * holds. This one does not, for the sake of what is there of it.
 *
 * @param abi The platform.
 * @param control Exactly `msg_controllen` bytes, as recvmsg(2) left it.
 * @param offset What `cmsgFirst` or `cmsgNext` gave, but not -1.
 * @returns Bytes from the start of the buffer, always more than `offset`; -1
 *   at the end.
 *
 * @example
 * ```ts
 * import { abiOf, cmsgFirst, cmsgNext, encodeControl, rightsMessage } from "@socket-takeover/socket-takeover/cmsg";
 *
 * const linux = abiOf("linux", "x64");
 * const control = encodeControl(linux, [rightsMessage(linux, [3]), rightsMessage(linux, [4])]);
 * for (let at = cmsgFirst(linux, control); at >= 0; at = cmsgNext(linux, control, at)) console.log(at); // 0, 24
 * ```
 */
export function cmsgNext(abi: Abi, control: Uint8Array, offset: number): number {
  return headerAt(abi, control, offset + cmsgAlign(abi, readField(viewOf(control), abi.cmsghdr.len, offset)));
}

/**
 * An `SCM_RIGHTS` message (unix(7)): descriptors for the receiver.
 *
 * @param abi The platform.
 * @param descriptors At most `abi.descriptorsPerMessage` (Linux: 253,
 *   `SCM_MAX_FD` in include/net/scm.h). They stay the sender's.
 * @returns The message, for {@linkcode encodeControl}.
 * @throws {RangeError} When there are too many descriptors or one is negative.
 */
export function rightsMessage(abi: Abi, descriptors: readonly number[]): ControlMessage {
  if (descriptors.length > abi.descriptorsPerMessage) {
    throw new RangeError(
      `Cannot send ${descriptors.length} descriptors in one message: ` +
        `expected at most ${abi.descriptorsPerMessage}; send the rest in a further message`,
    );
  }
  const wrong = descriptors.find((each) => !isInteger(each, 0x7fffffff));
  if (wrong !== undefined) throw new RangeError(`Cannot send ${wrong}: expected a descriptor, an integer from 0 on`);
  const data = new Uint8Array(new Int32Array(descriptors).buffer);
  return { level: abi.constants.SOL_SOCKET, type: abi.constants.SCM_RIGHTS, data };
}

/**
 * An `SCM_CREDENTIALS` message (unix(7)): who the sender says it is. The kernel
 * refuses what is not so with `EPERM`, unless the sender is privileged.
 *
 * The receiver gets it when it has set `SO_PASSCRED`, and then gets the
 * sender's own also without such a message.
 *
 * @param abi The platform; macOS has no such message.
 * @param credentials The sender's pid, and its real, effective or saved ids.
 * @returns The message, for {@linkcode encodeControl}.
 * @throws {TakeoverError} `ERR_TAKEOVER_UNSUPPORTED` on macOS.
 * @throws {RangeError} When a number is none that C's type holds.
 *
 * @example
 * ```ts
 * import { abiOf, credentialsMessage, encodeControl, rightsMessage } from "@socket-takeover/socket-takeover/cmsg";
 *
 * const linux = abiOf("linux", "x64");
 * const sender = credentialsMessage(linux, { pid: 4711, uid: 1000, gid: 1000 });
 * console.log(encodeControl(linux, [sender, rightsMessage(linux, [3])]).length); // 56
 * ```
 */
export function credentialsMessage(abi: Abi, credentials: Credentials): ControlMessage {
  if (abi.platform !== "linux") {
    throw new TakeoverError(
      "ERR_TAKEOVER_UNSUPPORTED",
      `Cannot send credentials on ${abi.platform}: expected linux; ask the kernel at the other end (getpeereid)`,
    );
  }
  const { pid, uid, gid } = credentials;
  if (!isInteger(pid, 0x7fffffff) || !isInteger(uid, 0xffffffff) || !isInteger(gid, 0xffffffff)) {
    throw new RangeError(
      `Cannot send the credentials pid ${pid}, uid ${uid}, gid ${gid}: ` +
        "expected a pid up to 2147483647 and ids up to 4294967295, integers from 0 on",
    );
  }
  const data = allocate(abi.ucred.size);
  const view = viewOf(data);
  writeField(view, abi.ucred.pid, pid);
  writeField(view, abi.ucred.uid, uid);
  writeField(view, abi.ucred.gid, gid);
  return { level: abi.constants.SOL_SOCKET, type: SCM_CREDENTIALS, data };
}

/**
 * Encodes control messages behind each other, each padded to `CMSG_ALIGN`.
 *
 * @param abi The platform.
 * @param messages In order. The kernel joins the descriptors of several
 *   `SCM_RIGHTS` messages into one, and refuses more than 253 of them together.
 * @returns The control buffer, `CMSG_SPACE` bytes for each message; an empty
 *   one when there are none.
 *
 * @example
 * ```ts
 * import { abiOf, decodeAncillary, encodeControl, rightsMessage } from "@socket-takeover/socket-takeover/cmsg";
 *
 * const linux = abiOf("linux", "x64");
 * const control = encodeControl(linux, [rightsMessage(linux, [3]), rightsMessage(linux, [4])]);
 * console.log(decodeAncillary(linux, control).descriptors); // [3, 4]
 * ```
 */
export function encodeControl(abi: Abi, messages: readonly ControlMessage[]): Bytes {
  const size = messages.reduce((sum, { data }) => sum + cmsgSpace(abi, data.length), 0);
  const control = allocate(size).subarray(0, size);
  const view = viewOf(control);
  let at = 0;
  for (const { level, type, data } of messages) {
    writeField(view, abi.cmsghdr.len, cmsgLen(abi, data.length), at);
    writeField(view, abi.cmsghdr.level, level, at);
    writeField(view, abi.cmsghdr.type, type, at);
    control.set(data, at + cmsgLen(abi, 0));
    at += cmsgSpace(abi, data.length);
  }
  return control;
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
  return encodeControl(abi, descriptors.length === 0 ? [] : [rightsMessage(abi, descriptors)]);
}

/**
 * Walks a control buffer ({@linkcode cmsgFirst}, {@linkcode cmsgNext}).
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
  for (let at = cmsgFirst(abi, control); at >= 0; at = cmsgNext(abi, control, at)) {
    const length = readField(view, abi.cmsghdr.len, at);
    messages.push({
      level: readField(view, abi.cmsghdr.level, at),
      type: readField(view, abi.cmsghdr.type, at),
      data: control.subarray(at + cmsgLen(abi, 0), at + length),
    });
  }
  return messages;
}

/**
 * Collects what a control buffer brought, in one walk. Other messages are
 * passed over.
 *
 * Every whole int that an `SCM_RIGHTS` message covers is a descriptor that the
 * kernel has installed, also in a message that the buffer cuts short, and in
 * what looks like padding: the kernel uses that room, and one not read would
 * leak. Of the other messages the kernel gives at most one each.
 *
 * @param abi The platform; on macOS only descriptors are read.
 * @param control Exactly `msg_controllen` bytes, as recvmsg(2) left it.
 * @returns All of it; the caller owns the descriptors and the pidfd.
 *
 * @example
 * ```ts
 * import { abiOf, credentialsMessage, decodeAncillary, encodeControl } from "@socket-takeover/socket-takeover/cmsg";
 *
 * const linux = abiOf("linux", "x64");
 * const control = encodeControl(linux, [credentialsMessage(linux, { pid: 4711, uid: 1000, gid: 1000 })]);
 * console.log(decodeAncillary(linux, control).credentials?.uid); // 1000
 * ```
 */
export function decodeAncillary(abi: Abi, control: Uint8Array): Ancillary {
  const descriptors: number[] = [];
  let credentials: Credentials | null = null;
  let pidfd: number | null = null;
  let securityContext: string | null = null;
  for (const { level, type, data } of decodeControl(abi, control)) {
    if (level !== abi.constants.SOL_SOCKET) continue;
    if (type === abi.constants.SCM_RIGHTS) for (const each of wholeInts(data)) descriptors.push(each);
    if (abi.platform !== "linux") continue;
    if (type === SCM_CREDENTIALS) credentials ??= decodeCredentials(abi, data);
    if (type === SCM_PIDFD) pidfd ??= wholeInts(data).find((each) => each >= 0) ?? null;
    if (type === SCM_SECURITY) securityContext ??= decodeLabel(data);
  }
  return { descriptors, credentials, pidfd, securityContext };
}

/**
 * Collects the descriptors of every `SCM_RIGHTS` message in a control buffer,
 * as {@linkcode decodeAncillary} does.
 *
 * @param abi The platform.
 * @param control Exactly `msg_controllen` bytes, as recvmsg(2) left it.
 * @returns The descriptors, in order; the caller owns each of them.
 */
export function decodeRights(abi: Abi, control: Uint8Array): number[] {
  return decodeAncillary(abi, control).descriptors;
}

/**
 * Reads `struct ucred`, as `SCM_CREDENTIALS` and Linux's `SO_PEERCRED` give it.
 *
 * @param abi The platform.
 * @param bytes The struct.
 * @returns The credentials, or null when there are fewer bytes than it has.
 */
export function decodeCredentials({ ucred }: Abi, bytes: Uint8Array): Credentials | null {
  if (bytes.length < ucred.size) return null;
  const view = viewOf(bytes);
  return { pid: readField(view, ucred.pid), uid: readField(view, ucred.uid), gid: readField(view, ucred.gid) };
}

/**
 * Reads a security label, as `SCM_SECURITY` and Linux's `SO_PEERSEC` give it.
 *
 * @param bytes The label; some security modules end it with a NUL.
 * @returns The text without that.
 */
export function decodeLabel(bytes: Uint8Array): string {
  return new TextDecoder().decode(untilNul(bytes));
}

/** The offset, when a whole header lies there that counts at least itself. */
function headerAt(abi: Abi, control: Uint8Array, offset: number): number {
  const headerSize = cmsgLen(abi, 0);
  if (offset + headerSize > control.length) return -1;
  return readField(viewOf(control), abi.cmsghdr.len, offset) < headerSize ? -1 : offset;
}

function wholeInts(data: Uint8Array): number[] {
  const view = viewOf(data);
  const ints: number[] = [];
  for (let at = 0; at + 4 <= data.length; at += 4) ints.push(view.getInt32(at, true));
  return ints;
}

function isInteger(value: number, most: number): boolean {
  return Number.isInteger(value) && value >= 0 && value <= most;
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
  UcredLayout,
} from "./abi.ts";
export type { Bytes } from "./bytes.ts";
