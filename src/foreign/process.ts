/**
 * Another process, held by a pidfd (pidfd_open(2), Linux 5.3): its descriptors
 * copied, signals sent to it and never to another that got its number.
 *
 * What /proc says under the number is about this process for as long as it has
 * not been reaped, which is asked after the reading, not before.
 *
 * @module
 */

import { errnoName, errnoOf } from "../c/errno.ts";
import { linkAt, numbersIn, OwnedDescriptor, readFile } from "../sockets/descriptors.ts";
import { checked, isSystemError, TakeoverError } from "../errors.ts";
import type { Runtime } from "../runtime.ts";
import { isStill, type ProcessStatus, statusAt } from "./status.ts";

/** The name of a signal. */
export type Signal =
  | "SIGHUP"
  | "SIGINT"
  | "SIGQUIT"
  | "SIGKILL"
  | "SIGUSR1"
  | "SIGUSR2"
  | "SIGTERM"
  | "SIGCONT"
  | "SIGSTOP"
  | "SIGWINCH";

/** Signals by name (signal(7)); the numbers are those of x86 and ARM. */
export const signals: Readonly<Record<Signal, number>> = {
  SIGHUP: 1,
  SIGINT: 2,
  SIGQUIT: 3,
  SIGKILL: 9,
  SIGUSR1: 10,
  SIGUSR2: 12,
  SIGTERM: 15,
  SIGCONT: 18,
  SIGSTOP: 19,
  SIGWINCH: 28,
};

/** Linux's numbers, the same on every architecture. */
const SYS_pidfd_send_signal = 424;
const SYS_pidfd_open = 434;
const SYS_pidfd_getfd = 438;

/** Another process. Whoever opened it disposes it. */
export class ForeignProcess implements Disposable {
  readonly pid: number;
  readonly #runtime: Runtime;
  readonly #pidfd: OwnedDescriptor;

  /** The same as the constructor, but null when there is no such process. */
  static find(runtime: Runtime, pid: number): ForeignProcess | null {
    try {
      return new ForeignProcess(runtime, pid);
    } catch (error) {
      if (error instanceof TakeoverError && error.code === "ERR_TAKEOVER_PROCESS") return null;
      throw error;
    }
  }

  /**
   * Opens a process.
   *
   * @throws {TakeoverError} `ERR_TAKEOVER_PROCESS` when there is none,
   *   `ERR_TAKEOVER_UNSUPPORTED` before Linux 5.3 and elsewhere.
   */
  constructor(runtime: Runtime, pid: number) {
    const { abi, libc } = runtime;
    this.#runtime = runtime;
    this.pid = pid;
    const result = libc.syscall(SYS_pidfd_open, pid, 0, 0, 0);
    switch (result < 0 ? errnoName(abi.platform, -result) : "") {
      case "ENOSYS":
        throw unsupported(abi.platform, "pidfd_open(2), Linux 5.3");
      // The number is a thread's, which is no process: EINVAL, ENOENT from Linux 6.9 on.
      case "EINVAL":
      case "ENOENT":
      case "ESRCH":
        throw new TakeoverError(
          "ERR_TAKEOVER_PROCESS",
          `Cannot open process ${pid}: expected the pid of a running process, there is none; look the pid up again`,
        );
    }
    this.#pidfd = movedUp(runtime, new OwnedDescriptor(runtime, checked(abi, "pidfd_open", result)));
  }

  /** Whether it still runs, and has its descriptors. */
  get alive(): boolean {
    const status = this.status;
    return status !== null && !"ZXx".includes(status.state);
  }

  /** Its status, or null once it has been waited for: the number can be another's then. */
  get status(): ProcessStatus | null {
    const status = this.#asked(() => statusAt(this.#runtime, `/proc/${this.pid}/stat`));
    return this.#exists ? status : null;
  }

  /** The file that it runs; an empty text when this user may not know. */
  get executable(): string {
    return linkAt(this.#runtime, `/proc/${this.pid}/exe`, 4_096);
  }

  /** Whether none of its threads runs: SIGSTOP reaches them one by one. */
  get still(): boolean {
    const folder = `/proc/${this.pid}/task`;
    const threads = this.#asked(() => numbersIn(this.#runtime, folder)) ?? [];
    return threads.every((thread) => isStill(this.#runtime, `${folder}/${thread}/stat`));
  }

  /**
   * Its descriptors by number: what each of them is, for instance
   * `socket:[4711]`. None when it has ended.
   *
   * @throws {TakeoverError} `ERR_TAKEOVER_PTRACE` when this user may not know.
   */
  descriptors(): Map<number, string> {
    const numbers = this.#allowed(() => numbersIn(this.#runtime, `/proc/${this.pid}/fd`)) ?? [];
    return new Map(numbers.map((number) => [number, this.link(number)]));
  }

  /** What one of its descriptors is; an empty text when it was closed. */
  link(descriptor: number): string {
    return linkAt(this.#runtime, `/proc/${this.pid}/fd/${descriptor}`);
  }

  /** What /proc/PID/fdinfo says of a descriptor; an empty text when it was closed. */
  fdinfo(descriptor: number): string {
    return this.#allowed(() => readFile(this.#runtime, `/proc/${this.pid}/fdinfo/${descriptor}`)) ?? "";
  }

  /**
   * A copy of one of its descriptors in this process (pidfd_getfd(2), Linux
   * 5.6), close-on-exec.
   *
   * @returns The copy, which the caller owns, or null when it was closed.
   * @throws {TakeoverError} `ERR_TAKEOVER_PTRACE` when this user may not,
   *   `ERR_TAKEOVER_UNSUPPORTED`.
   * @throws {SystemError} For instance `EMFILE`.
   */
  copy(descriptor: number): OwnedDescriptor | null {
    const { abi, libc } = this.#runtime;
    const result = libc.syscall(SYS_pidfd_getfd, this.#pidfd.number, descriptor, 0, 0);
    switch (result < 0 ? errnoName(abi.platform, -result) : "") {
      case "EBADF":
      case "ESRCH":
        return null;
      case "EPERM":
        throw this.#denied();
      case "ENOSYS":
        throw unsupported(abi.platform, "pidfd_getfd(2), Linux 5.6");
    }
    return new OwnedDescriptor(this.#runtime, checked(abi, "pidfd_getfd", result));
  }

  /**
   * Sends a signal (pidfd_send_signal(2)).
   *
   * @returns Whether there was still somebody to get it.
   * @throws {TakeoverError} `ERR_TAKEOVER_PTRACE` when this user may not.
   */
  send(signal: Signal): boolean {
    const { abi } = this.#runtime;
    const result = this.#send(signals[signal]);
    const errno = result < 0 ? errnoName(abi.platform, -result) : "";
    if (errno === "ESRCH") return false;
    if (errno === "EPERM") throw this.#denied();
    checked(abi, "pidfd_send_signal", result, signal);
    return true;
  }

  /** The error for a process that has ended meanwhile. */
  gone(): TakeoverError {
    return new TakeoverError(
      "ERR_TAKEOVER_PROCESS",
      `Cannot look into process ${this.pid}: expected it to run, it has ended; look the pid up again`,
    );
  }

  /** Closes the pidfd. */
  [Symbol.dispose](): void {
    this.#pidfd[Symbol.dispose]();
  }

  /** Signal 0 is sent to nobody, and asks. */
  get #exists(): boolean {
    return this.#send(0) !== -errnoOf(this.#runtime.abi.platform, "ESRCH");
  }

  #send(signal: number): number {
    return this.#runtime.libc.syscall(SYS_pidfd_send_signal, this.#pidfd.number, signal, 0, 0);
  }

  /** What /proc says, or null when the process has gone. */
  #asked<T>(read: () => T): T | null {
    try {
      return read();
    } catch (error) {
      if (isSystemError(error, "ENOENT", "ESRCH")) return null;
      throw error;
    }
  }

  /** The same of what only who may trace it can read; one that has ended is nobody's. */
  #allowed<T>(read: () => T): T | null {
    try {
      return this.#asked(read);
    } catch (error) {
      if (!isSystemError(error, "EACCES", "EPERM")) throw error;
      if (!this.alive) return null;
      throw this.#denied(error);
    }
  }

  #denied(cause?: unknown): TakeoverError {
    return new TakeoverError(
      "ERR_TAKEOVER_PTRACE",
      `Cannot take descriptors out of process ${this.pid}: expected the permission to trace it (ptrace(2)), which ` +
        `this process (user ${this.#runtime.libc.geteuid()}) has not; run as the same user, with ` +
        `/proc/sys/kernel/yama/ptrace_scope at 0 (it is ${scopeOf(this.#runtime)}), ` +
        "or give this program CAP_SYS_PTRACE",
      { cause },
    );
  }
}

/** Above the numbers that descriptors of most processes have. */
const highNumber = 512;

/**
 * Moves a descriptor to a high number, if there may be one. The low numbers are
 * those that the sockets of other processes have, which may be needed here
 * (`Accepting`).
 */
export function movedUp(runtime: Runtime, descriptor: OwnedDescriptor): OwnedDescriptor {
  const { abi, libc } = runtime;
  const number = libc.fcntl(descriptor.number, abi.constants.F_DUPFD_CLOEXEC, highNumber);
  if (number < 0) return descriptor;
  descriptor[Symbol.dispose]();
  return new OwnedDescriptor(runtime, number);
}

/** Yama is a module that a kernel may lack. */
function scopeOf(runtime: Runtime): string {
  try {
    return readFile(runtime, "/proc/sys/kernel/yama/ptrace_scope").trim();
  } catch {
    return "not there";
  }
}

function unsupported(platform: string, needed: string): TakeoverError {
  return new TakeoverError(
    "ERR_TAKEOVER_UNSUPPORTED",
    `Cannot take sockets out of another process on this system (${platform}): expected ${needed}; ` +
      "use Linux 5.6 or later",
  );
}
