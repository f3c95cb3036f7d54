/**
 * The assembler of classic BPF: labels, limits, and the bytes that C's own
 * macros make.
 *
 * @module
 */

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { writeFileSync } from "node:fs";
import process from "node:process";
import test from "node:test";
import {
  answer,
  assemble,
  compute,
  encodeProgram,
  instructionLimit,
  jump,
  jumpIf,
  jumpLimit,
  type Line,
  load,
  loadHeaderLength,
  loadIndexed,
  loadKnown,
  loadLength,
  moveToA,
  moveToX,
  networkHeader,
  programSize,
} from "../../src/steering/bpf.ts";
import { toHex } from "../../src/c/bytes.ts";
import { interpret, udpPacket } from "./bpf_interpreter.ts";
import { run, TemporaryFolder } from "./children.ts";
import { takeoverError } from "./support.ts";

const hasGcc = process.platform === "linux" && spawnSync("gcc", ["--version"]).status === 0;
const onLinux = { skip: hasGcc ? false : "needs gcc and Linux's headers" };

/** One of each, beside how C says it. */
const pairs: readonly [Line, string][] = [
  [load(4, 8), "BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 8)"],
  [load(2, networkHeader + 20), "BPF_STMT(BPF_LD | BPF_H | BPF_ABS, SKF_NET_OFF + 20)"],
  [load(1, 0), "BPF_STMT(BPF_LD | BPF_B | BPF_ABS, 0)"],
  [loadIndexed(2, 4), "BPF_STMT(BPF_LD | BPF_H | BPF_IND, 4)"],
  [loadLength(), "BPF_STMT(BPF_LD | BPF_W | BPF_LEN, 0)"],
  [loadHeaderLength(networkHeader), "BPF_STMT(BPF_LDX | BPF_B | BPF_MSH, SKF_NET_OFF)"],
  [loadKnown("protocol"), "BPF_STMT(BPF_LD | BPF_W | BPF_ABS, SKF_AD_OFF + SKF_AD_PROTOCOL)"],
  [loadKnown("processor"), "BPF_STMT(BPF_LD | BPF_W | BPF_ABS, SKF_AD_OFF + SKF_AD_CPU)"],
  [loadKnown("receiveHash"), "BPF_STMT(BPF_LD | BPF_W | BPF_ABS, SKF_AD_OFF + SKF_AD_RXHASH)"],
  [loadKnown("random"), "BPF_STMT(BPF_LD | BPF_W | BPF_ABS, SKF_AD_OFF + SKF_AD_RANDOM)"],
  [compute("add", 1), "BPF_STMT(BPF_ALU | BPF_ADD | BPF_K, 1)"],
  [compute("sub", 1), "BPF_STMT(BPF_ALU | BPF_SUB | BPF_K, 1)"],
  [compute("mul", 0x9e3779b1), "BPF_STMT(BPF_ALU | BPF_MUL | BPF_K, 0x9e3779b1)"],
  [compute("div", 3), "BPF_STMT(BPF_ALU | BPF_DIV | BPF_K, 3)"],
  [compute("mod", 3), "BPF_STMT(BPF_ALU | BPF_MOD | BPF_K, 3)"],
  [compute("and", 255), "BPF_STMT(BPF_ALU | BPF_AND | BPF_K, 255)"],
  [compute("or", 1), "BPF_STMT(BPF_ALU | BPF_OR | BPF_K, 1)"],
  [compute("xor", "x"), "BPF_STMT(BPF_ALU | BPF_XOR | BPF_X, 0)"],
  [compute("lsh", 2), "BPF_STMT(BPF_ALU | BPF_LSH | BPF_K, 2)"],
  [compute("rsh", 16), "BPF_STMT(BPF_ALU | BPF_RSH | BPF_K, 16)"],
  [moveToX(), "BPF_STMT(BPF_MISC | BPF_TAX, 0)"],
  [moveToA(), "BPF_STMT(BPF_MISC | BPF_TXA, 0)"],
  [jumpIf("equal", 7, "end"), "BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 7, 5, 0)"],
  [jumpIf("greater", "x", null, "end"), "BPF_JUMP(BPF_JMP | BPF_JGT | BPF_X, 0, 0, 4)"],
  [jumpIf("greaterOrEqual", 7, "end"), "BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, 7, 3, 0)"],
  [jumpIf("anyBit", 128, "end"), "BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, 128, 2, 0)"],
  [jump("end"), "BPF_STMT(BPF_JMP | BPF_JA, 1)"],
  [answer("a"), "BPF_STMT(BPF_RET | BPF_A, 0)"],
  ["end", ""],
  [answer(0xffffffff), "BPF_STMT(BPF_RET | BPF_K, 0xffffffff)"],
];

test("assemble and encodeProgram give the bytes that C gives", onLinux, async () => {
  using folder = new TemporaryFolder();
  writeFileSync(
    folder.file("bpf.c"),
    `#include <linux/filter.h>
    #include <stddef.h>
    #include <stdio.h>
    struct sock_filter filter[] = { ${pairs.map(([, c]) => c).filter(Boolean).join(",")} };
    int main(void) {
      for (size_t at = 0; at < sizeof filter; at++) printf("%02x", ((unsigned char *)filter)[at]);
      printf(" %zu %zu %d\\n", sizeof(struct sock_fprog), offsetof(struct sock_fprog, filter), BPF_MAXINSNS);
    }`,
  );
  const compiled = await run(["gcc", "-o", folder.file("bpf"), folder.file("bpf.c")]);
  assert.equal(compiled.status, 0, compiled.stderr);
  const [instructions, size, offset, limit] = (await run([folder.file("bpf")])).stdout.trim().split(" ");
  const bytes = encodeProgram(assemble(pairs.map(([line]) => line)), () => 0x1000n);
  assert.equal(toHex(bytes.subarray(programSize)), instructions);
  assert.deepEqual([programSize, 8, instructionLimit], [size, offset, limit].map(Number));
  const view = new DataView(bytes.buffer);
  assert.equal(view.getUint16(0, true), pairs.length - 1);
  assert.equal(view.getBigUint64(8, true), 0x1000n + BigInt(programSize));
});

test("assemble resolves labels, several of one place too", () => {
  const test = jumpIf("equal", 1, "one", "other");
  const program = assemble([load(1, 0), test, "one", answer(1), "other", "else", answer(2)]);
  assert.deepEqual(program.slice(1), [
    { code: 0x15, jt: 0, jf: 1, k: 1 },
    { code: 0x06, jt: 0, jf: 0, k: 1 },
    { code: 0x06, jt: 0, jf: 0, k: 2 },
  ]);
});

test("assemble takes the longest jump and the longest program, and no longer ones", () => {
  const idle = (count: number) => new Array<Line>(count).fill(moveToX());
  const far = (count: number) => [jumpIf("equal", 0, "end"), ...idle(count), "end", answer(0)];
  assert.equal(assemble(far(jumpLimit))[0]!.jt, 255);
  assert.throws(() => assemble(far(jumpLimit + 1)), {
    ...takeoverError("ERR_TAKEOVER_RANGE"),
    message: /^Cannot assemble a BPF program: instruction 0 jumps over 256 instructions, expected at most 255;/,
  });
  const long = (count: number) => [...idle(count - 1), answer(0)];
  assert.equal(assemble(long(4_096)).length, 4_096);
  assert.throws(() => assemble(long(4_097)), takeoverError("ERR_TAKEOVER_LIMIT"));
  assert.throws(() => assemble([]), takeoverError("ERR_TAKEOVER_LIMIT"));
  assert.equal(assemble([jump("end"), ...idle(4_000), "end", answer(0)])[0]!.k, 4_000);
});

test("assemble refuses what the kernel would refuse, and says where", () => {
  const wrong: readonly [readonly Line[], string][] = [
    [[jump("nowhere"), answer(0)], "instruction 0 jumps to nowhere, which is nowhere, expected a label of the program"],
    [
      ["start", load(1, 0), jumpIf("equal", 1, "start"), answer(0)],
      "instruction 1 jumps back to start, expected a label behind it; classic BPF has no loops",
    ],
    [["twice", load(1, 0), "twice", answer(0)], "it has the label twice twice, expected it once"],
    [[load(1, 0)], "instruction 0 is the last, expected an answer"],
    [[compute("mod", 0), answer(0)], "instruction 0 divides by 0, expected another divisor"],
    [[compute("lsh", 32), answer(0)], "instruction 0 shifts by 32, expected 0 to 31 bits"],
    [[answer(2 ** 32)], "instruction 0 has the number 4294967296, expected an integer of 32 bits"],
    [[answer(0.5)], "instruction 0 has the number 0.5, expected an integer of 32 bits"],
  ];
  for (const [lines, message] of wrong) {
    const expected = { ...takeoverError("ERR_TAKEOVER_RANGE"), message: `Cannot assemble a BPF program: ${message}` };
    assert.throws(() => assemble(lines), expected);
  }
});

test("interpret computes as C does with 32 bits, and ends a load outside the packet with 0", () => {
  const packet = udpPacket(Uint8Array.of(1, 2, 3, 4), { address: Uint8Array.of(10, 0, 0, 7), port: 4_242 }, 3);
  const value = (...lines: Line[]) => interpret(assemble([...lines, answer("a")]), packet);
  assert.equal(value(load(4, 0), compute("mul", 0x9e3779b1)), Math.imul(0x01020304, 0x9e3779b1) >>> 0);
  assert.equal(value(load(1, 3), compute("sub", 5)), 0xffffffff);
  assert.equal(value(load(2, 3), compute("add", 5)), 0);
  assert.equal(value(loadHeaderLength(networkHeader), loadIndexed(2, networkHeader)), 4_242);
  assert.equal(value(loadLength()), 4);
});
