/**
 * eBPF (linux/bpf.h): instructions as objects, labels, and the bytes that
 * bpf(2) takes. Ten registers: `r1` is what the kernel passes, `r0` the answer,
 * `r6` to `r9` outlast calls, `r10` points behind the stack.
 *
 * ```text
 * struct bpf_insn   code 1 | destination 4 bits, source 4 bits | offset 2 | immediate 4
 * ```
 *
 * @module
 */

import { allocate, type Bytes, viewOf } from "../c/bytes.ts";
import { TakeoverError } from "../errors.ts";

/** A register's number. */
export type Register = 0 | 1 | 2 | 3 | 4 | 5 | 6 | 7 | 8 | 9 | 10;

/** An instruction; a jump names its label. */
export interface ExtendedStep {
  readonly code: number;
  readonly destination?: Register;
  readonly source?: number;
  readonly offset?: number;
  readonly immediate?: number;
  readonly to?: string;
  /** Its second half is the upper 32 bits of the number, which are 0. */
  readonly isWide?: boolean;
}

/** A line of a program: an instruction, or the label of the next one. */
export type ExtendedLine = ExtendedStep | string;

const instructionSize = 8;

/** The most instructions that anybody may load; far more than any program here has. */
const instructionLimit = 4_096;

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

/** `destination &= mask`, of 32 bits. */
export function maskRegister(destination: Register, mask: number): ExtendedStep {
  return { code: 0x54, destination, immediate: mask };
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

/** Turns 2 or 4 bytes from network order. */
export function toHostOrder(size: 2 | 4, destination: Register): ExtendedStep {
  return { code: 0xdc, destination, immediate: size * 8 };
}

/** Goes on at a label when 32 bits of a register are, or are not, a value. */
export function jumpWhen(test: "equal" | "different", register: Register, value: number, to: string): ExtendedStep {
  return { code: test === "equal" ? 0x16 : 0x56, destination: register, immediate: value, to };
}

/** `r0 =` what one of the kernel's helpers says of `r1` to `r5`, which are lost. */
export function callHelper(helper: number): ExtendedStep {
  return { code: 0x85, immediate: helper };
}

/** Ends with `r0`. */
export function exit(): ExtendedStep {
  return { code: 0x95 };
}

/**
 * Turns lines into the bytes that bpf(2) takes. The kernel checks the program;
 * here only what could not be written is an error.
 *
 * @throws {TakeoverError} `ERR_TAKEOVER_RANGE` for a label that is missing or
 *   behind, `ERR_TAKEOVER_LIMIT` for more than 4,096 instructions.
 */
export function assembleExtended(lines: readonly ExtendedLine[]): Bytes {
  const labels = new Map<string, number>();
  const steps: { step: ExtendedStep; at: number }[] = [];
  let count = 0;
  for (const line of lines) {
    if (typeof line === "string") {
      labels.set(line, count);
    } else {
      steps.push({ step: line, at: count });
      count += line.isWide ? 2 : 1;
    }
  }
  if (count > instructionLimit) {
    throw new TakeoverError(
      "ERR_TAKEOVER_LIMIT",
      `Cannot assemble an eBPF program of ${count} instructions: expected at most ${instructionLimit}`,
    );
  }
  const bytes = allocate(count * instructionSize);
  for (const { step, at } of steps) write(bytes.subarray(at * instructionSize), step, distanceOf(step, at, labels));
  return bytes;
}

function write(bytes: Bytes, step: ExtendedStep, distance: number): void {
  const { code, destination = 0, source = 0, offset = 0, immediate = 0 } = step;
  const view = viewOf(bytes);
  view.setUint8(0, code);
  view.setUint8(1, destination | source << 4);
  view.setInt16(2, offset + distance, true);
  view.setInt32(4, immediate, true);
}

function distanceOf({ to }: ExtendedStep, at: number, labels: ReadonlyMap<string, number>): number {
  if (to === undefined) return 0;
  const target = labels.get(to);
  if (target !== undefined && target > at) return target - at - 1;
  throw new TakeoverError(
    "ERR_TAKEOVER_RANGE",
    `Cannot assemble an eBPF program: instruction ${at} jumps to ${to}, expected a label behind it`,
  );
}
