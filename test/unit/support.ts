/**
 * Fakes for the pure core: a runtime on a page, a stream that keeps what was
 * written, random numbers that are the same on every run.
 *
 * @module
 */

import { type Abi, abiOf } from "../../src/c/abi.ts";
import type { TakeoverErrorCode } from "../../src/errors.ts";
import { encodeFrame, type FrameHead, FrameReader } from "../../src/handover/frame.ts";
import { bindTable } from "../../src/c/libc.ts";
import type { ControlStream, Runtime, StreamHandlers } from "../../src/runtime.ts";
import "./patience.ts";

/** The layouts of Linux, on the most common machine. */
export const linux: Abi = abiOf("linux", "x64");

/** The layouts of macOS. */
export const darwin: Abi = abiOf("darwin", "arm64");

/** What `assert.throws` and `assert.rejects` compare an error with. */
export function takeoverError(code: TakeoverErrorCode): { name: string; code: string } {
  return { name: "TakeoverError", code };
}

/** A runtime without a single libc function; the parts given replace its own. */
export function fakeRuntime(parts: Partial<Runtime> = {}): Runtime {
  const unexpected = () => {
    throw new Error("the fake runtime was not told what to do");
  };
  return {
    name: "node",
    version: "0.0.0",
    ffi: "fake",
    abi: linux,
    libc: bindTable(linux, {}, () => 0),
    addressOf: unexpected,
    adoptStream: unexpected,
    openSocket: unexpected,
    adoptListener: unexpected,
    env: () => undefined,
    unsetEnv: unexpected,
    lookup: unexpected,
    present: unexpected,
    inspect: unexpected,
    listenExtras: () => ({}),
    ...parts,
  };
}

/** A control stream whose other end is the test. */
export class FakeStream implements ControlStream {
  readonly descriptor = -1;
  /** What became of it. */
  ended = false;
  destroyed = false;
  readonly #reader = new FrameReader(1024 * 1024);
  readonly #written: FrameHead[] = [];
  #handlers: StreamHandlers | null = null;

  start(handlers: StreamHandlers): void {
    this.#handlers = handlers;
  }

  keepAlive(): void {}

  write(bytes: Uint8Array): void {
    this.#written.push(...this.#reader.push(bytes));
  }

  end(): void {
    this.ended = true;
  }

  destroy(): void {
    this.destroyed = true;
  }

  /** The frames that were written so far. */
  get written(): readonly FrameHead[] {
    return this.#written;
  }

  /** Bytes come in. */
  arrive(bytes: Uint8Array): void {
    this.#handlers!.data(bytes);
  }

  /** Frames come in, all in one chunk. */
  arriveFrames(...heads: object[]): void {
    this.arrive(concat(...heads.map((head) => encodeFrame(head))));
  }

  /** The connection ends. */
  close(): void {
    this.#handlers!.close();
  }
}

/** Joins bytes. */
export function concat(...parts: readonly Uint8Array[]): Uint8Array<ArrayBuffer> {
  const joined = new Uint8Array(parts.reduce((size, part) => size + part.length, 0));
  let at = 0;
  for (const part of parts) {
    joined.set(part, at);
    at += part.length;
  }
  return joined;
}

/** Random integers that a seed repeats (mulberry32); `below(n)` gives 0 to n - 1. */
export function seeded(seed: number): { below(count: number): number } {
  let state = seed;
  const next = () => {
    state = state + 0x6d2b79f5 | 0;
    let value = Math.imul(state ^ state >>> 15, 1 | state);
    value = value + Math.imul(value ^ value >>> 7, 61 | value) ^ value;
    return (value ^ value >>> 14) >>> 0;
  };
  return { below: (count) => next() % count };
}
