/**
 * Classic BPF (linux/filter.h, linux/bpf_common.h): instructions as objects,
 * labels, and the bytes that the kernel takes. A program sees one packet, has
 * an accumulator A and an index register X, and ends with a number.
 *
 * ```text
 * struct sock_filter   code 2 | jt 1 | jf 1 | k 4
 * struct sock_fprog    len 2 | padding 6 | filter 8, a pointer
 * ```
 *
 * A load outside the packet ends the program with 0, which is an answer like
 * any other: whoever loads asks for the length before (`loadLength`).
 *
 * @module
 */

import { allocate, type Bytes, viewOf } from "../c/bytes.ts";
import { TakeoverError } from "../errors.ts";

/** How many bytes a load takes; they are in network order. */
export type LoadSize = 1 | 2 | 4;

/** What A and another number become. */
export type Operation = keyof typeof operations;

/** What a jump asks of A; numbers are unsigned. */
export type Test = keyof typeof tests;

/** A number, or the other register: X of an operation or a jump. */
export type Operand = number | "x";

/** An instruction whose jumps still name labels; `null` goes on with the next one. */
export interface Step {
  readonly code: number;
  readonly k: number;
  readonly ifTrue?: string | null;
  readonly ifFalse?: string | null;
  /** Where an unconditional jump goes. */
  readonly to?: string;
}

/** A line of a program: an instruction, or the label of the next one. */
export type Line = Step | string;

/** An instruction as the kernel reads it (`struct sock_filter`). */
export interface Instruction {
  readonly code: number;
  /** Instructions to skip when the jump's test is true. */
  readonly jt: number;
  /** The same when it is false. */
  readonly jf: number;
  /** From 0 to 2^32 - 1. */
  readonly k: number;
}

/** The most instructions of a program (linux/bpf_common.h, BPF_MAXINSNS). */
export const instructionLimit = 4_096;

/** The furthest that a conditional jump goes: its distance is a byte. */
export const jumpLimit = 255;

/** Where the IP header begins, and what the kernel knows of a packet (linux/filter.h, SKF_NET_OFF, SKF_AD_OFF). */
export const networkHeader: number = -0x100000;
const ancillary = -0x1000;

/** Classes, sizes and modes of instructions (linux/bpf_common.h). */
const classes = { ld: 0x00, ldx: 0x01, alu: 0x04, jmp: 0x05, ret: 0x06, misc: 0x07 } as const;
const sizes = { 4: 0x00, 2: 0x08, 1: 0x10 } as const;
const modes = { abs: 0x20, ind: 0x40, len: 0x80, msh: 0xa0 } as const;
const operations = {
  add: 0x00,
  sub: 0x10,
  mul: 0x20,
  div: 0x30,
  or: 0x40,
  and: 0x50,
  lsh: 0x60,
  rsh: 0x70,
  mod: 0x90,
  xor: 0xa0,
} as const;
const tests = { equal: 0x10, greater: 0x20, greaterOrEqual: 0x30, anyBit: 0x40 } as const;
const fromX = 0x08;
const always = 0x00;
const returnA = 0x10;
const toX = 0x00;
const toA = 0x80;

/** What the kernel knows of a packet beside its bytes, by its offset there (linux/filter.h, SKF_AD_…). */
const knowledge = { protocol: 0, processor: 36, receiveHash: 32, random: 56 } as const;

const instructionSize = 8;
const filterOffset = 8;

/**
 * `A = packet[offset]`. Offset 0 is the first byte behind the UDP or TCP header
 * for a program that chooses a socket of a group; from {@linkcode networkHeader}
 * on it is the IP header.
 */
export function load(size: LoadSize, offset: number): Step {
  return { code: classes.ld | sizes[size] | modes.abs, k: offset };
}

/** `A = packet[X + offset]`. */
export function loadIndexed(size: LoadSize, offset: number): Step {
  return { code: classes.ld | sizes[size] | modes.ind, k: offset };
}

/** `A =` the bytes behind the UDP or TCP header. */
export function loadLength(): Step {
  return { code: classes.ld | sizes[4] | modes.len, k: 0 };
}

/** `X = 4 * (packet[offset] & 15)`, the length of the IPv4 header that begins there. */
export function loadHeaderLength(offset: number): Step {
  return { code: classes.ldx | sizes[1] | modes.msh, k: offset };
}

/**
 * `A =` what the kernel knows of the packet: its Ethernet protocol, the
 * processor that it came in on, the hash that the network card or the sender's
 * socket gave it (0 where neither did), or a random number.
 */
export function loadKnown(what: keyof typeof knowledge): Step {
  return load(4, ancillary + knowledge[what]);
}

/** `A = A operation operand`. */
export function compute(operation: Operation, operand: Operand): Step {
  const code = classes.alu | operations[operation];
  return operand === "x" ? { code: code | fromX, k: 0 } : { code, k: operand };
}

/** `X = A`. */
export function moveToX(): Step {
  return { code: classes.misc | toX, k: 0 };
}

/** `A = X`. */
export function moveToA(): Step {
  return { code: classes.misc | toA, k: 0 };
}

/** Goes on at one label or another; `null` is the next instruction. */
export function jumpIf(test: Test, operand: Operand, ifTrue: string | null, ifFalse: string | null = null): Step {
  const code = classes.jmp | tests[test];
  return operand === "x" ? { code: code | fromX, k: 0, ifTrue, ifFalse } : { code, k: operand, ifTrue, ifFalse };
}

/** Goes on at a label, however far. */
export function jump(to: string): Step {
  return { code: classes.jmp | always, k: 0, to };
}

/** Ends with a number, or with A. */
export function answer(value: number | "a"): Step {
  return value === "a" ? { code: classes.ret | returnA, k: 0 } : { code: classes.ret, k: value };
}

/**
 * Turns lines into instructions: labels become distances, numbers 32 bits.
 *
 * @param lines At most 4,096 instructions, and their labels.
 * @throws {TakeoverError} `ERR_TAKEOVER_LIMIT` when it is empty or too long,
 *   `ERR_TAKEOVER_RANGE` for a label that is missing, double, behind or too far
 *   away, a number of more than 32 bits, a shift or division that has no
 *   result, and for a program that does not end with an answer.
 *
 * @example
 * ```ts
 * const evenToFirst = assemble([load(1, 0), compute("and", 1), answer("a")]);
 * ```
 */
export function assemble(lines: readonly Line[]): Instruction[] {
  const { steps, labels } = placed(lines);
  if (steps.length === 0 || steps.length > instructionLimit) {
    throw new TakeoverError(
      "ERR_TAKEOVER_LIMIT",
      `Cannot assemble a BPF program of ${steps.length} instructions: expected 1 to ${instructionLimit}`,
    );
  }
  if ((steps.at(-1)!.code & 0x07) !== classes.ret) throw unfit(steps.length - 1, "is the last", "an answer");
  return steps.map((step, index) => instructionOf(step, index, labels));
}

/** The size of `struct sock_fprog`, as setsockopt(2) is told it; the instructions lie behind it. */
export const programSize = 16;

/**
 * A program as the kernel takes it: `struct sock_fprog`, and the instructions
 * in the same memory, so that they live as long.
 *
 * @param addressOf Where memory lies.
 */
export function encodeProgram(instructions: readonly Instruction[], addressOf: (bytes: Bytes) => bigint): Bytes {
  const bytes = allocate(programSize + instructions.length * instructionSize);
  const view = viewOf(bytes);
  view.setUint16(0, instructions.length, true);
  view.setBigUint64(filterOffset, addressOf(bytes) + BigInt(programSize), true);
  for (const [index, { code, jt, jf, k }] of instructions.entries()) {
    const at = programSize + index * instructionSize;
    view.setUint16(at, code, true);
    view.setUint8(at + 2, jt);
    view.setUint8(at + 3, jf);
    view.setUint32(at + 4, k, true);
  }
  return bytes;
}

function placed(lines: readonly Line[]): { steps: Step[]; labels: Map<string, number> } {
  const steps: Step[] = [];
  const labels = new Map<string, number>();
  for (const line of lines) {
    if (typeof line !== "string") {
      steps.push(line);
    } else if (labels.has(line)) {
      throw unassembled(`it has the label ${line} twice, expected it once`);
    } else {
      labels.set(line, steps.length);
    }
  }
  return { steps, labels };
}

function instructionOf(step: Step, index: number, labels: ReadonlyMap<string, number>): Instruction {
  const distance = (label: string | null | undefined) => label == null ? 0 : distanceTo(label, index, labels);
  const [jt, jf] = [distance(step.ifTrue), distance(step.ifFalse)];
  if (Math.max(jt, jf) > jumpLimit) {
    throw unfit(index, `jumps over ${Math.max(jt, jf)} instructions`, `at most ${jumpLimit}; jump to a nearer jump`);
  }
  checkNumber(step, index);
  return { code: step.code, jt, jf, k: (step.to === undefined ? step.k : distance(step.to)) >>> 0 };
}

function distanceTo(label: string, index: number, labels: ReadonlyMap<string, number>): number {
  const target = labels.get(label);
  if (target === undefined) throw unfit(index, `jumps to ${label}, which is nowhere`, "a label of the program");
  if (target <= index) throw unfit(index, `jumps back to ${label}`, "a label behind it; classic BPF has no loops");
  return target - index - 1;
}

/** What the kernel refuses (net/core/filter.c, bpf_check_classic), and what it would cut. */
function checkNumber({ code, k }: Step, index: number): void {
  const fits = Number.isInteger(k) && k >= -(2 ** 31) && k < 2 ** 32;
  if (!fits) throw unfit(index, `has the number ${k}`, "an integer of 32 bits");
  if ((code & 0x07) !== classes.alu || (code & fromX) !== 0) return;
  const operation = code & 0xf0;
  const divides = operation === operations.div || operation === operations.mod;
  if (divides && k === 0) throw unfit(index, "divides by 0", "another divisor");
  const shifts = operation === operations.lsh || operation === operations.rsh;
  if (shifts && (k < 0 || k > 31)) throw unfit(index, `shifts by ${k}`, "0 to 31 bits");
}

function unfit(index: number, what: string, expected: string): TakeoverError {
  return unassembled(`instruction ${index} ${what}, expected ${expected}`);
}

function unassembled(why: string): TakeoverError {
  return new TakeoverError("ERR_TAKEOVER_RANGE", `Cannot assemble a BPF program: ${why}`);
}
