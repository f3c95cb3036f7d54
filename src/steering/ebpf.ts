/**
 * eBPF (linux/bpf.h): instructions as objects, and the bytes that bpf(2) takes.
 * Ten registers: `r1` is what the kernel passes, `r0` the answer, `r6` to `r9`
 * outlast calls, `r10` points behind the stack.
 *
 * ```text
 * struct bpf_insn   code 1 | destination 4 bits, source 4 bits | offset 2 | immediate 4
 * ```
 *
 * @module
 */

import { allocate, type Bytes, viewOf } from "../c/bytes.ts";

/** A register's number. */
export type Register = 0 | 1 | 2 | 3 | 4 | 5 | 6 | 7 | 8 | 9 | 10;

/** An instruction. */
export interface ExtendedStep {
  readonly code: number;
  readonly destination?: Register;
  readonly source?: number;
  readonly offset?: number;
  readonly immediate?: number;
  /** Its second half is the upper 32 bits of the number, which are 0. */
  readonly isWide?: boolean;
}

const instructionSize = 8;

/** Sizes of memory accesses (linux/bpf_common.h). */
const sizes = { 4: 0x00, 2: 0x08, 1: 0x10 } as const;

/** `destination = source`, all 64 bits. */
export function copyRegister(destination: Register, source: Register): ExtendedStep {
  return { code: 0xbf, destination, source };
}

/** `destination = value`. */
export function setRegister(destination: Register, value: number): ExtendedStep {
  return { code: 0xb7, destination, immediate: value };
}

/** `destination += value`, of 64 bits. */
export function addTo(destination: Register, value: number): ExtendedStep {
  return { code: 0x07, destination, immediate: value };
}

/** `destination %= value`, of 32 bits without a sign. */
export function moduloRegister(destination: Register, value: number): ExtendedStep {
  return { code: 0x94, destination, immediate: value };
}

/** `destination =` a map, by its descriptor (BPF_PSEUDO_MAP_FD). */
export function loadMap(destination: Register, descriptor: number): ExtendedStep {
  return { code: 0x18, destination, source: 1, immediate: descriptor, isWide: true };
}

/** `destination =` the bytes at `source + offset`, in the machine's order. */
export function loadFrom(size: 1 | 2 | 4, destination: Register, source: Register, offset: number): ExtendedStep {
  return { code: 0x61 | sizes[size], destination, source, offset };
}

/** The 32 bits at `destination + offset` = a register's. */
export function storeTo(destination: Register, offset: number, source: Register): ExtendedStep {
  return { code: 0x63, destination, source, offset };
}

/** `r0 =` what one of the kernel's helpers says of `r1` to `r5`, which are lost. */
export function callHelper(helper: number): ExtendedStep {
  return { code: 0x85, immediate: helper };
}

/** Ends with `r0`. */
export function exit(): ExtendedStep {
  return { code: 0x95 };
}

/** A program as bpf(2) takes it. The kernel checks it. */
export function encodeExtended(steps: readonly ExtendedStep[]): Bytes {
  const count = steps.reduce((sum, { isWide }) => sum + (isWide ? 2 : 1), 0);
  const bytes = allocate(count * instructionSize);
  const view = viewOf(bytes);
  let at = 0;
  for (const { code, destination = 0, source = 0, offset = 0, immediate = 0, isWide } of steps) {
    view.setUint8(at, code);
    view.setUint8(at + 1, destination | source << 4);
    view.setInt16(at + 2, offset, true);
    view.setInt32(at + 4, immediate, true);
    at += isWide ? 2 * instructionSize : instructionSize;
  }
  return bytes;
}
