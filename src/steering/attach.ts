/**
 * Programs of classic BPF on sockets (socket(7)): one for all sockets of a
 * SO_REUSEPORT group, which says by its place in the group which of them a
 * packet is for, and one for a single datagram socket, which drops packets. An
 * ordinary user may do both.
 *
 * @module
 */

import { allocate, type Bytes, viewOf } from "../c/bytes.ts";
import { checked, SystemError, TakeoverError } from "../errors.ts";
import type { Runtime } from "../runtime.ts";
import { encodeProgram, type Instruction, programSize } from "./bpf.ts";

/** Linux's options (asm-generic/socket.h). */
const SO_ATTACH_FILTER = 26;
const SO_DETACH_FILTER = 27;
const SO_GET_FILTER = 26;
const SO_ATTACH_REUSEPORT_CBPF = 51;
const SO_ATTACH_REUSEPORT_EBPF = 52;
const SO_DETACH_REUSEPORT_BPF = 68;

/** A filter's answer that keeps the packet, and a group's program's that leaves the choice to the kernel. */
export const whole = 0xffffffff;

/** The answer of a filter that drops the packet. */
export const nothing = 0;

/**
 * Gives a group its program, in place of the one it has, for the next packet
 * on. An answer that is no place in the group leaves the choice to the kernel's
 * hash.
 *
 * @param descriptor Any bound socket of the group.
 * @throws {TakeoverError} `ERR_TAKEOVER_UNSUPPORTED` when the kernel refuses
 *   the program, or the socket was bound without SO_REUSEPORT; on macOS always.
 * @throws {SystemError} `EBADF`, `ENOTSOCK`.
 */
export function attachToGroup(runtime: Runtime, descriptor: number, program: readonly Instruction[]): void {
  attach(runtime, descriptor, SO_ATTACH_REUSEPORT_CBPF, program);
}

/** The same with a loaded program of BPF_PROG_TYPE_SK_REUSEPORT. */
export function attachLoadedToGroup(runtime: Runtime, descriptor: number, program: number): void {
  const value = allocate(4);
  viewOf(value).setInt32(0, program, true);
  set(runtime, descriptor, SO_ATTACH_REUSEPORT_EBPF, value, value.length, "a loaded BPF program");
}

/** Takes a group's program away: the kernel's hash chooses. A group without one is fine. */
export function detachFromGroup(runtime: Runtime, descriptor: number): void {
  clear(runtime, descriptor, SO_DETACH_REUSEPORT_BPF);
}

/**
 * Gives a datagram socket a filter, in place of the one it has. A TCP socket
 * takes one with CAP_NET_ADMIN only (EPERM on Linux 6.18).
 *
 * @throws {TakeoverError} As {@linkcode attachToGroup}.
 */
export function attachFilter(runtime: Runtime, descriptor: number, program: readonly Instruction[]): void {
  attach(runtime, descriptor, SO_ATTACH_FILTER, program);
}

/** Takes a socket's filter away; one without is fine. */
export function detachFilter(runtime: Runtime, descriptor: number): void {
  clear(runtime, descriptor, SO_DETACH_FILTER);
}

/** Whether a socket has a filter of whatever kind. */
export function hasFilter({ abi, libc }: Runtime, descriptor: number): boolean {
  const size = allocate(4);
  const result = libc.getsockopt(descriptor, abi.constants.SOL_SOCKET, SO_GET_FILTER, null, size);
  // An eBPF filter has no instructions to show (EACCES); of a classic one the size is their count.
  return result < 0 || viewOf(size).getUint32(0, true) > 0;
}

function attach(runtime: Runtime, descriptor: number, option: number, program: readonly Instruction[]): void {
  const value = encodeProgram(program, (bytes) => runtime.addressOf(bytes));
  set(runtime, descriptor, option, value, programSize, `a BPF program of ${program.length} instructions`);
}

function set(runtime: Runtime, descriptor: number, option: number, value: Bytes, size: number, what: string): void {
  const { abi, libc } = runtime;
  try {
    checked(abi, "setsockopt", libc.setsockopt(descriptor, abi.constants.SOL_SOCKET, option, value, size));
  } catch (error) {
    throw refusal(error as SystemError, descriptor, what);
  }
}

function clear({ abi, libc }: Runtime, descriptor: number, option: number): void {
  const value = allocate(4);
  const result = libc.setsockopt(descriptor, abi.constants.SOL_SOCKET, option, value, value.length);
  try {
    checked(abi, "setsockopt", result);
  } catch (error) {
    if (!(error instanceof SystemError && error.code === "ENOENT")) throw error;
  }
}

/** What has to do with the socket goes through as it is; EINVAL can be either's. */
function refusal(cause: SystemError, descriptor: number, what: string): Error {
  if (!["EINVAL", "ENOMEM", "EPERM", "EACCES", "EFAULT", "ENOPROTOOPT"].includes(cause.code)) return cause;
  return new TakeoverError(
    "ERR_TAKEOVER_UNSUPPORTED",
    `Cannot give the socket ${descriptor} ${what}: the kernel refuses it (${cause.code}); expected a program that it ` +
      "can check, in net.core.optmem_max bytes, and for a group a socket with SO_REUSEPORT and Linux 4.6",
    { cause },
  );
}
