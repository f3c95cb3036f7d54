/**
 * The process's own descriptor table: what is in it, how much room is left,
 * and descriptors that have an owner.
 *
 * @module
 */

import { allocate, untilNul, viewOf } from "../c/bytes.ts";
import { checked } from "../errors.ts";
import type { Runtime } from "../runtime.ts";

/**
 * One descriptor with one owner. Whoever holds it closes it, or takes the
 * number out with {@linkcode take} and owns that instead.
 */
export class OwnedDescriptor implements Disposable {
  readonly #runtime: Runtime;
  #number: number;

  /**
   * Owns a descriptor.
   *
   * @param runtime What closes it.
   * @param number An open descriptor, owned by this object from here on.
   */
  constructor(runtime: Runtime, number: number) {
    this.#runtime = runtime;
    this.#number = number;
  }

  /** The number, which stays owned by this object. -1 once taken or closed. */
  get number(): number {
    return this.#number;
  }

  /** Gives the number away: this object will not close it. */
  take(): number {
    const number = this.#number;
    this.#number = -1;
    return number;
  }

  /** Closes descriptors with consecutive numbers (close_range(2), Linux 5.9). */
  static closeRun(run: readonly OwnedDescriptor[]): void {
    const { abi, libc } = run[0]!.#runtime;
    const first = run[0]!.number;
    const isClosed = run.length > 1 && abi.platform === "linux" &&
      libc.syscall(SYS_close_range, first, first + run.length - 1, 0, 0) === 0;
    for (const descriptor of run) {
      if (isClosed) descriptor.take();
      else descriptor[Symbol.dispose]();
    }
  }

  /** Closes it, unless it was taken or closed before. */
  [Symbol.dispose](): void {
    if (this.#number >= 0) this.#runtime.libc.close(this.take());
  }
}

/** A descriptor by its number, or as this library owns it. */
export type Descriptor = number | OwnedDescriptor;

/**
 * Runs something with a descriptor and closes it afterwards, unless it was
 * taken. Node 22 runs these sources as they are, and knows no `using`.
 */
export function owning<T>(descriptor: OwnedDescriptor, use: (descriptor: OwnedDescriptor) => T): T {
  let isPending = false;
  try {
    const result = use(descriptor);
    isPending = result instanceof Promise;
    return isPending ? (result as Promise<unknown>).finally(() => descriptor[Symbol.dispose]()) as T : result;
  } finally {
    if (!isPending) descriptor[Symbol.dispose]();
  }
}

/** Linux's number of close_range(2), the same on every architecture; older libcs have no name for it. */
const SYS_close_range = 436;

/**
 * Closes all of them. Descriptors that arrived together have consecutive
 * numbers, and a run of those is closed by one call.
 */
export function disposeAll(descriptors: readonly OwnedDescriptor[]): void {
  for (let from = 0; from < descriptors.length;) {
    const first = descriptors[from]!.number;
    let to = from + 1;
    while (to < descriptors.length && first >= 0 && descriptors[to]!.number === first + to - from) to++;
    OwnedDescriptor.closeRun(descriptors.slice(from, to));
    from = to;
  }
}

/** A path as C reads it. */
export function cString(text: string): Uint8Array<ArrayBuffer> {
  const encoded = new TextEncoder().encode(text);
  const bytes = allocate(encoded.length + 1);
  bytes.set(encoded);
  return bytes;
}

/**
 * Every descriptor of this process, ascending. Read through libc, because Deno
 * hides /proc from JavaScript unless it was given --allow-all.
 *
 * On macOS, which has no getdents64, every number below the limit is listed;
 * asking a closed one for its socket name is harmless.
 */
export function openDescriptors(runtime: Runtime): number[] {
  if (runtime.abi.platform !== "linux") return Array.from({ length: softLimit(runtime) }, (_, number) => number);
  return numbersIn(runtime, "/proc/self/fd");
}

/**
 * Every descriptor of this process, a few hundred at a time: for a walk that
 * lets others have their turn. Linux only. It holds a descriptor of its own
 * until it is at its end, or `return` is called.
 */
export function* walkDescriptors(runtime: Runtime): Generator<number> {
  const { abi, libc } = runtime;
  const { O_RDONLY, O_DIRECTORY, O_CLOEXEC } = abi.constants;
  const folder = checked(abi, "open", libc.open(cString("/proc/self/fd"), O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0));
  try {
    for (const number of numbersOf(runtime, folder, 8 * 1024)) if (number !== folder) yield number;
  } finally {
    libc.close(folder);
  }
}

/**
 * The entries of a folder of /proc that are numbers, ascending; the descriptor
 * that reads them left out.
 *
 * @throws {SystemError} For instance `ENOENT` when the process has gone, or
 *   `EACCES` when it is another user's.
 */
export function numbersIn(runtime: Runtime, path: string): number[] {
  const { abi, libc } = runtime;
  const { O_RDONLY, O_DIRECTORY, O_CLOEXEC } = abi.constants;
  const folder = checked(abi, "open", libc.open(cString(path), O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0), path);
  try {
    const found = readNumbers(runtime, folder).sort((a, b) => a - b);
    return path === "/proc/self/fd" ? found.filter((number) => number !== folder) : found;
  } finally {
    libc.close(folder);
  }
}

/** What /proc says a descriptor is, for instance `socket:[4711]` or `anon_inode:[eventpoll]`. */
export function linkOf(runtime: Runtime, descriptor: number): string {
  return linkAt(runtime, `/proc/self/fd/${descriptor}`);
}

/** Where a link of /proc points, cut at that many bytes; an empty text when it cannot be read. */
export function linkAt({ libc }: Runtime, path: string, limitSize = 256): string {
  const target = allocate(limitSize);
  const size = libc.readlink(cString(path), target, target.length);
  return size < 0 ? "" : new TextDecoder().decode(target.subarray(0, size));
}

/** A small file of /proc, whole, in pieces of at most that many bytes. */
export function readFile({ abi, libc }: Pick<Runtime, "abi" | "libc">, path: string, pieceSize = 65_536): string {
  const { O_RDONLY, O_CLOEXEC } = abi.constants;
  const file = checked(abi, "open", libc.open(cString(path), O_RDONLY | O_CLOEXEC, 0), path);
  try {
    const decoder = new TextDecoder();
    const chunk = allocate(pieceSize);
    let text = "";
    for (;;) {
      const size = checked(abi, "read", libc.read(file, chunk, chunk.length), path);
      if (size === 0) return text;
      text += decoder.decode(chunk.subarray(0, size), { stream: true });
    }
  } finally {
    libc.close(file);
  }
}

/** How many more descriptors this process may open (RLIMIT_NOFILE, soft). */
export function freeDescriptorCount(runtime: Runtime): number {
  const used = runtime.abi.platform === "linux"
    ? openDescriptors(runtime).length
    : openDescriptors(runtime).filter((number) => runtime.libc.fcntl(number, runtime.abi.constants.F_GETFD, 0) >= 0)
      .length;
  return Math.max(0, softLimit(runtime) - used);
}

/** The soft RLIMIT_NOFILE (getrlimit(2)); an unlimited one counts as 2^31 - 1. */
function softLimit({ abi, libc }: Runtime): number {
  const limit = allocate(16);
  checked(abi, "getrlimit", libc.getrlimit(abi.constants.RLIMIT_NOFILE, limit));
  return Number(viewOf(limit).getBigUint64(0, true) & 0x7fffffffn);
}

function readNumbers(runtime: Runtime, folder: number): number[] {
  return [...numbersOf(runtime, folder, 64 * 1024)];
}

/**
 * `struct linux_dirent64` (getdents(2)):
 * inode 8 | offset 8 | record length 2 | type 1 | name, NUL-terminated.
 */
function* numbersOf({ abi, libc }: Runtime, folder: number, pieceSize: number): Generator<number> {
  const entries = allocate(pieceSize);
  const view = viewOf(entries);
  for (;;) {
    const size = checked(abi, "getdents64", libc.getdents64(folder, entries, entries.length));
    if (size === 0) return;
    for (let at = 0; at < size;) {
      const length = view.getUint16(at + 16, true);
      const number = decimal(untilNul(entries.subarray(at + 19, at + length)));
      if (number >= 0) yield number;
      at += length;
    }
  }
}

/** Digits as a number, or -1: a decoder for every entry would cost more than the walk. */
function decimal(digits: Uint8Array): number {
  let value = 0;
  for (const digit of digits) {
    if (digit < 48 || digit > 57) return -1;
    value = value * 10 + digit - 48;
  }
  return value;
}
