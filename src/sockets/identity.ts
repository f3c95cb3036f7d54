/**
 * Who is at the other end of a connected Unix socket (unix(7), socket(7)).
 *
 * ```text
 * SO_PEERCRED      pid, user, group     frozen at connect
 * SO_PEERGROUPS    further groups       frozen at connect
 * SO_PEERSEC       security label       frozen at connect
 * SO_PEERPIDFD     the process          frozen at connect; Linux 6.5
 * getpeereid(3)    user                 frozen at connect; macOS
 * ```
 *
 * The kernel took these down when the connection was made: of a client when it
 * called connect(2), of a server when it called listen(2), of both ends of a
 * socketpair(2) when that was called. A process that was given the socket
 * later, or changed its user since, does not show; the heir of a listener does,
 * for later connections, once it has called listen(2) itself.
 *
 * So the user can be relied on. The pid cannot: its process can have ended, and
 * the number can be another's by now. It is for log lines, and is never
 * signalled; the pidfd is what can be signalled and waited for. The switches
 * below ask for the same of the sender of every single message.
 *
 * @module
 */

import { allocate, type Bytes, viewOf } from "../c/bytes.ts";
import { type Credentials, decodeCredentials, decodeLabel } from "../c/cmsg.ts";
import { errnoName, errnoOf } from "../c/errno.ts";
import { checked, TakeoverError } from "../errors.ts";
import type { Runtime } from "../runtime.ts";
import { OwnedDescriptor } from "./descriptors.ts";

/** Linux's options of Unix sockets (asm-generic/socket.h). */
const SO_PASSCRED = 16;
const SO_PEERCRED = 17;
const SO_PEERSEC = 31;
const SO_PASSSEC = 34;
const SO_PEERGROUPS = 59;
const SO_PASSPIDFD = 76;
const SO_PEERPIDFD = 77;

/** The ids that SO_PEERCRED gives where there is no other end (net/core/sock.c, cred_to_ucred). */
const noId = 0xffffffff;

/** The most bytes that an option has: NGROUPS_MAX group ids (linux/limits.h). */
const largestOptionSize = 65_536 * 4;

/**
 * The process, user and group at the other end (`SO_PEERCRED`), frozen when the
 * connection was made. The pid is never signalled: see {@linkcode peerPidfd}.
 *
 * A listening socket gives the process that called listen(2).
 *
 * @param runtime The runtime's libc.
 * @param descriptor A connected Unix socket; it stays the caller's.
 * @returns As this process's namespaces number them: a pid from outside is 0,
 *   an id without a number here is 65534 (/proc/sys/kernel/overflowuid).
 * @throws {SystemError} `ENOTCONN` when it has no other end, as a TCP socket
 *   never does, `ENOTSOCK` when it is no socket, `EBADF` when it is closed.
 * @throws {TakeoverError} `ERR_TAKEOVER_UNSUPPORTED` on macOS.
 *
 * @example
 * ```ts
 * const { pid, uid } = peerCredentials(runtime, connection.number);
 * console.log(`connected: process ${pid} of user ${uid}`);
 * ```
 */
export function peerCredentials(runtime: Runtime, descriptor: number): Credentials {
  expectLinux(runtime);
  const { abi } = runtime;
  const credentials = decodeCredentials(abi, checkedOption(runtime, readOption(runtime, descriptor, SO_PEERCRED, 12)))!;
  if (credentials.uid === noId) checked(abi, "getsockopt", -errnoOf(abi.platform, "ENOTCONN"));
  return credentials;
}

/**
 * The effective user of the process at the other end, frozen when the
 * connection was made; on macOS too (getpeereid(3)).
 *
 * @param runtime The runtime's libc.
 * @param descriptor A connected Unix socket; it stays the caller's.
 * @returns The user id.
 * @throws {SystemError} As {@linkcode peerCredentials} does.
 */
export function peerUser(runtime: Runtime, descriptor: number): number {
  const { abi, libc } = runtime;
  if (abi.platform === "linux") return peerCredentials(runtime, descriptor).uid;
  const uid = allocate(4);
  checked(abi, "getpeereid", libc.getpeereid(descriptor, uid, allocate(4)));
  return viewOf(uid).getUint32(0, true);
}

/**
 * Checks that the other end runs as this process's user, or as one that the
 * application named.
 *
 * @param allowed Further user ids.
 * @param role What the other end is, for the message.
 * @throws {TakeoverError} `ERR_TAKEOVER_USER` when it does not.
 */
export function checkPeerUser(
  runtime: Runtime,
  descriptor: number,
  allowed: readonly number[],
  role: "incumbent" | "successor",
): void {
  const user = peerUser(runtime, descriptor);
  const own = runtime.libc.geteuid();
  if (user === own || allowed.includes(user)) return;
  throw new TakeoverError(
    "ERR_TAKEOVER_USER",
    `Cannot trust the ${role}: it runs as user ${user}, expected ${[own, ...allowed].join(" or ")}; ` +
      "run both as one user, or name the other's in the option allowUsers",
  );
}

/**
 * The process at the other end as a pidfd (`SO_PEERPIDFD`, pidfd_open(2)): the
 * one that made the connection and never another, which makes it safe to signal
 * (pidfd_send_signal(2)). It becomes readable when that process ends.
 *
 * @param runtime The runtime's libc.
 * @param descriptor A connected Unix socket; it stays the caller's.
 * @returns The pidfd, close-on-exec; the caller owns it. From Linux 6.16 on
 *   there is one for a process that has ended, too; to signal that gives `ESRCH`.
 * @throws {TakeoverError} `ERR_TAKEOVER_UNSUPPORTED` before Linux 6.5 and on
 *   macOS, `ERR_TAKEOVER_PROCESS` before Linux 6.16 when the process has ended.
 * @throws {SystemError} As {@linkcode peerCredentials} does, and `EMFILE`.
 *
 * @example
 * ```ts
 * const SYS_pidfd_getfd = 438;
 * const pidfd = peerPidfd(runtime, connection.number);
 * try {
 *   const copyOfItsInput = runtime.libc.syscall(SYS_pidfd_getfd, pidfd.number, 0, 0, 0);
 * } finally {
 *   pidfd[Symbol.dispose]();
 * }
 * ```
 */
export function peerPidfd(runtime: Runtime, descriptor: number): OwnedDescriptor {
  const { pid } = peerCredentials(runtime, descriptor);
  const pidfd = readOption(runtime, descriptor, SO_PEERPIDFD, 4);
  if (typeof pidfd === "number" && ["ESRCH", "EINVAL"].includes(errnoName(runtime.abi.platform, -pidfd))) {
    throw new TakeoverError(
      "ERR_TAKEOVER_PROCESS",
      `Cannot open a pidfd of the process at the other end: expected it to run, process ${pid} has ended; ` +
        "another process may hold the connection, which this does not tell",
    );
  }
  return new OwnedDescriptor(runtime, viewOf(checkedOption(runtime, pidfd)).getInt32(0, true));
}

/**
 * The label that a security module, such as SELinux or AppArmor, has for the
 * other end (`SO_PEERSEC`), frozen when the connection was made.
 *
 * @param runtime The runtime's libc.
 * @param descriptor A connected Unix socket; it stays the caller's.
 * @returns The label, or null when no module labels sockets.
 * @throws {SystemError} As {@linkcode peerCredentials} does.
 * @throws {TakeoverError} `ERR_TAKEOVER_UNSUPPORTED` on macOS.
 */
export function peerSecurityContext(runtime: Runtime, descriptor: number): string | null {
  peerCredentials(runtime, descriptor);
  const label = readOption(runtime, descriptor, SO_PEERSEC);
  return label === -errnoOf(runtime.abi.platform, "ENOPROTOOPT") ? null : decodeLabel(checkedOption(runtime, label));
}

/**
 * The supplementary groups of the process at the other end (`SO_PEERGROUPS`,
 * Linux 4.13), frozen when the connection was made. Its first group is in
 * {@linkcode peerCredentials}.
 *
 * @param runtime The runtime's libc.
 * @param descriptor A connected Unix socket; it stays the caller's.
 * @returns The group ids, at most 65536, in the kernel's order.
 * @throws {SystemError} As {@linkcode peerCredentials} does.
 * @throws {TakeoverError} `ERR_TAKEOVER_UNSUPPORTED` on macOS.
 */
export function peerGroups(runtime: Runtime, descriptor: number): number[] {
  peerCredentials(runtime, descriptor);
  const bytes = checkedOption(runtime, readOption(runtime, descriptor, SO_PEERGROUPS));
  const view = viewOf(bytes);
  return Array.from({ length: bytes.length / 4 }, (_, index) => view.getUint32(index * 4, true));
}

/**
 * Makes every message received from now on say which process, user and group
 * sent it (`SO_PASSCRED`, an `SCM_CREDENTIALS` message). Of a stream the kernel
 * never joins bytes of different senders then.
 *
 * It takes `CMSG_SPACE(12)` bytes of the control buffer, and is written first:
 * a buffer that has room for the descriptors alone loses some.
 *
 * @param runtime The runtime's libc.
 * @param descriptor A Unix socket; one that listens gives it to all that it accepts.
 * @param isOn Whether the messages are to say so.
 * @throws {SystemError} `ENOTSOCK` when it is no socket, `EBADF` when it is
 *   closed, `EOPNOTSUPP` when it is no Unix socket (before Linux 6.16 nothing).
 * @throws {TakeoverError} `ERR_TAKEOVER_UNSUPPORTED` on macOS.
 */
export function passCredentials(runtime: Runtime, descriptor: number, isOn: boolean): void {
  setSwitch(runtime, descriptor, SO_PASSCRED, isOn);
}

/**
 * Makes every message received from now on bring a pidfd of its sender
 * (`SO_PASSPIDFD`, an `SCM_PIDFD` message), which the receiver then owns.
 *
 * @param runtime The runtime's libc.
 * @param descriptor A Unix socket; one that listens gives it to all that it accepts.
 * @param isOn Whether the messages are to bring one.
 * @throws {SystemError} As {@linkcode passCredentials} does.
 * @throws {TakeoverError} `ERR_TAKEOVER_UNSUPPORTED` before Linux 6.5 and on macOS.
 */
export function passPidfd(runtime: Runtime, descriptor: number, isOn: boolean): void {
  setSwitch(runtime, descriptor, SO_PASSPIDFD, isOn);
}

/**
 * Makes every message received from now on bring its sender's security label
 * (`SO_PASSSEC`, an `SCM_SECURITY` message), where a security module has one.
 *
 * @param runtime The runtime's libc.
 * @param descriptor A Unix socket; one that listens gives it to all that it accepts.
 * @param isOn Whether the messages are to bring one.
 * @throws {SystemError} As {@linkcode passCredentials} does.
 * @throws {TakeoverError} `ERR_TAKEOVER_UNSUPPORTED` on macOS.
 */
export function passSecurity(runtime: Runtime, descriptor: number, isOn: boolean): void {
  setSwitch(runtime, descriptor, SO_PASSSEC, isOn);
}

function setSwitch(runtime: Runtime, descriptor: number, name: number, isOn: boolean): void {
  expectLinux(runtime);
  const { abi, libc } = runtime;
  const value = allocate(4);
  viewOf(value).setInt32(0, isOn ? 1 : 0, true);
  const result = libc.setsockopt(descriptor, abi.constants.SOL_SOCKET, name, value, value.length);
  expectKnown(runtime, result);
  checked(abi, "setsockopt", result);
}

/**
 * An option's value, or -errno. Linux says how large one is when there is too
 * little room for it (ERANGE); it is asked again then.
 */
function readOption(runtime: Runtime, descriptor: number, name: number, size = 0): Bytes | number {
  const { abi, libc } = runtime;
  const value = allocate(size);
  const sizeBytes = allocate(4);
  viewOf(sizeBytes).setUint32(0, size, true);
  const result = libc.getsockopt(descriptor, abi.constants.SOL_SOCKET, name, value, sizeBytes);
  const trueSize = viewOf(sizeBytes).getUint32(0, true);
  if (result === 0) return value.subarray(0, trueSize);
  const isTooSmall = result === -errnoOf(abi.platform, "ERANGE") && trueSize > size && trueSize <= largestOptionSize;
  return isTooSmall ? readOption(runtime, descriptor, name, trueSize) : result;
}

function checkedOption(runtime: Runtime, value: Bytes | number): Bytes {
  const result = typeof value === "number" ? value : 0;
  expectKnown(runtime, result);
  checked(runtime.abi, "getsockopt", result);
  return value as Bytes;
}

function expectKnown({ abi }: Runtime, result: number): void {
  if (result !== -errnoOf(abi.platform, "ENOPROTOOPT")) return;
  throw unsupported("this kernel", "Linux 4.13 for SO_PEERGROUPS, 6.5 for SO_PEERPIDFD and SO_PASSPIDFD");
}

function expectLinux({ abi }: Runtime): void {
  if (abi.platform !== "linux") throw unsupported(abi.platform, "linux; only the user is known here (getpeereid)");
}

function unsupported(where: string, expected: string): TakeoverError {
  return new TakeoverError(
    "ERR_TAKEOVER_UNSUPPORTED",
    `Cannot tell who is at the other end on ${where}: expected ${expected}`,
  );
}
