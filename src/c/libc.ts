/**
 * The one table of the libc functions used. Each runtime binds it through its
 * own FFI, so a new call is one entry here and nothing anywhere else.
 *
 * Bound functions take numbers and bytes, never block, run on the calling
 * thread, and return a value from 0 on or -errno.
 *
 * @module
 */

import type { Abi } from "./abi.ts";
import type { Bytes } from "./bytes.ts";
import { errnoOf } from "./errno.ts";
import { messageOf, TakeoverError } from "../errors.ts";

/** A C type as the table names it; `bytes` is a pointer that may be NULL. */
export type CType = "int" | "unsigned" | "size_t" | "ssize_t" | "bytes";

/** A C function: its parameters in order and what it returns. */
export interface CFunction {
  readonly parameters: readonly CType[];
  readonly result: CType;
  /** How many parameters are fixed, when the rest are variadic (`...`). */
  readonly fixed?: number;
  /** Present when only one platform has the function. */
  readonly only?: "linux" | "darwin";
}

/** The functions, with their C declarations. */
export const functions = {
  /** `int socket(int domain, int type, int protocol)` */
  socket: { parameters: ["int", "int", "int"], result: "int" },
  /** `int bind(int fd, const struct sockaddr *addr, socklen_t len)` */
  bind: { parameters: ["int", "bytes", "unsigned"], result: "int" },
  /** `int listen(int fd, int backlog)` */
  listen: { parameters: ["int", "int"], result: "int" },
  /** `int connect(int fd, const struct sockaddr *addr, socklen_t len)` */
  connect: { parameters: ["int", "bytes", "unsigned"], result: "int" },
  /** `int socketpair(int domain, int type, int protocol, int fds[2])` */
  socketpair: { parameters: ["int", "int", "int", "bytes"], result: "int" },
  /** `int getsockname(int fd, struct sockaddr *addr, socklen_t *len)` */
  getsockname: { parameters: ["int", "bytes", "bytes"], result: "int" },
  /** `int getpeername(int fd, struct sockaddr *addr, socklen_t *len)` */
  getpeername: { parameters: ["int", "bytes", "bytes"], result: "int" },
  /** `int getsockopt(int fd, int level, int name, void *value, socklen_t *len)` */
  getsockopt: { parameters: ["int", "int", "int", "bytes", "bytes"], result: "int" },
  /** `int setsockopt(int fd, int level, int name, const void *value, socklen_t len)` */
  setsockopt: { parameters: ["int", "int", "int", "bytes", "unsigned"], result: "int" },
  /** `int accept4(int fd, struct sockaddr *addr, socklen_t *len, int flags)` */
  accept4: { parameters: ["int", "bytes", "bytes", "int"], result: "int", only: "linux" },
  /** `int accept(int fd, struct sockaddr *addr, socklen_t *len)` */
  accept: { parameters: ["int", "bytes", "bytes"], result: "int" },
  /** `int shutdown(int fd, int how)` */
  shutdown: { parameters: ["int", "int"], result: "int" },
  /** `ssize_t sendmsg(int fd, const struct msghdr *msg, int flags)` */
  sendmsg: { parameters: ["int", "bytes", "int"], result: "ssize_t" },
  /** `ssize_t recvmsg(int fd, struct msghdr *msg, int flags)` */
  recvmsg: { parameters: ["int", "bytes", "int"], result: "ssize_t" },
  /** `int close(int fd)` */
  close: { parameters: ["int"], result: "int" },
  /** `int dup2(int from, int to)` */
  dup2: { parameters: ["int", "int"], result: "int" },
  /** `int dup3(int from, int to, int flags)` */
  dup3: { parameters: ["int", "int", "int"], result: "int", only: "linux" },
  /** `int fcntl(int fd, int command, ...)` */
  fcntl: { parameters: ["int", "int", "int"], result: "int", fixed: 2 },
  /** `int open(const char *path, int flags, ...)` */
  open: { parameters: ["bytes", "int", "int"], result: "int", fixed: 2 },
  /** `int ioctl(int fd, unsigned long request, ...)` */
  ioctl: { parameters: ["int", "unsigned", "bytes"], result: "int", fixed: 2 },
  /** `ssize_t read(int fd, void *buffer, size_t size)` */
  read: { parameters: ["int", "bytes", "size_t"], result: "ssize_t" },
  /** `ssize_t write(int fd, const void *buffer, size_t size)` */
  write: { parameters: ["int", "bytes", "size_t"], result: "ssize_t" },
  /** `ssize_t readlink(const char *path, char *buffer, size_t size)` */
  readlink: { parameters: ["bytes", "bytes", "size_t"], result: "ssize_t" },
  /** `int unlink(const char *path)` */
  unlink: { parameters: ["bytes"], result: "int" },
  /** `int fchmod(int fd, mode_t mode)` */
  fchmod: { parameters: ["int", "unsigned"], result: "int" },
  /** `int chmod(const char *path, mode_t mode)` */
  chmod: { parameters: ["bytes", "unsigned"], result: "int" },
  /** `int flock(int fd, int operation)` */
  flock: { parameters: ["int", "int"], result: "int" },
  /** `int getrlimit(int resource, struct rlimit *limit)` */
  getrlimit: { parameters: ["int", "bytes"], result: "int" },
  /** `pid_t getpid(void)` */
  getpid: { parameters: [], result: "int" },
  /** `uid_t geteuid(void)` */
  geteuid: { parameters: [], result: "unsigned" },
  /** `gid_t getegid(void)` */
  getegid: { parameters: [], result: "unsigned" },
  /** `int unsetenv(const char *name)` */
  unsetenv: { parameters: ["bytes"], result: "int" },
  /** `int clock_gettime(clockid_t clock, struct timespec *time)` */
  clock_gettime: { parameters: ["int", "bytes"], result: "int" },
  /** `int kill(pid_t pid, int signal)` */
  kill: { parameters: ["int", "int"], result: "int" },
  /** `int getpeereid(int fd, uid_t *uid, gid_t *gid)` */
  getpeereid: { parameters: ["int", "bytes", "bytes"], result: "int", only: "darwin" },
  /** `ssize_t getdents64(int fd, void *entries, size_t size)` */
  getdents64: { parameters: ["int", "bytes", "size_t"], result: "ssize_t", only: "linux" },
  /** `int statx(int folder, const char *path, int flags, unsigned mask, struct statx *status)` */
  statx: { parameters: ["int", "bytes", "int", "unsigned", "bytes"], result: "int", only: "linux" },
  /**
   * `long syscall(long number, ...)`, here with an unsigned, an address or a number, and two int: close_range(2),
   * pidfd_getfd(2), pidfd_send_signal(2), bpf(2). All four are always passed: what is left out is whatever the register holds.
   */
  syscall: { parameters: ["int", "unsigned", "size_t", "int", "int"], result: "ssize_t", fixed: 1, only: "linux" },
  /** `int poll(struct pollfd *descriptors, nfds_t count, int timeout)` */
  poll: { parameters: ["bytes", "size_t", "int"], result: "int" },
  /** `int epoll_create1(int flags)` */
  epoll_create1: { parameters: ["int"], result: "int", only: "linux" },
  /** `int epoll_wait(int epoll, struct epoll_event *events, int count, int timeout)` */
  epoll_wait: { parameters: ["int", "bytes", "int", "int"], result: "int", only: "linux" },
  /** `int epoll_ctl(int epoll, int operation, int fd, struct epoll_event *event)` */
  epoll_ctl: { parameters: ["int", "int", "int", "bytes"], result: "int", only: "linux" },
} as const;

/** The name of a function in the table. */
export type FunctionName = keyof typeof functions;

/** What a parameter of a C type takes. */
export type Argument<T> = T extends "bytes" ? Bytes | null : number;
/** What the parameters of a C function take. */
export type Arguments<T extends readonly CType[]> = { -readonly [K in keyof T]: Argument<T[K]> };

/**
 * libc over bytes, as a runtime binds it. A function that the platform does
 * not have returns -ENOSYS.
 */
export type Libc = {
  readonly [K in FunctionName]: (...args: Arguments<(typeof functions)[K]["parameters"]>) => number;
};

/** A function as an FFI gives it: the raw C result, errno still to be asked for. */
// deno-lint-ignore no-explicit-any
export type RawFunction = (...args: any[]) => number | bigint;

/** A function's declaration in an FFI's own words for types. */
export interface Declaration {
  readonly parameters: readonly string[];
  readonly result: string;
}

/**
 * Declares every function that the platform has, in an FFI's own words.
 *
 * @param abi The platform.
 * @param types The FFI's name for each C type.
 */
export function declarations(abi: Abi, types: Readonly<Record<CType, string>>): Record<string, Declaration> {
  const declared: Record<string, Declaration> = {};
  for (const [name, signature] of Object.entries<CFunction>(functions)) {
    if (signature.only !== undefined && signature.only !== abi.platform) continue;
    const parameters = signature.parameters.map((type) => types[type]);
    const padding = new Array<string>(variadicPadding(abi, signature)).fill(types.int);
    parameters.splice(signature.fixed ?? parameters.length, 0, ...padding);
    declared[name] = { parameters, result: types[signature.result] };
  }
  return declared;
}

/**
 * Loads libc under the first of the platform's names for it that loads.
 *
 * @param abi The platform.
 * @param open Opens a library by name; throws when it cannot.
 * @throws {TakeoverError} `ERR_TAKEOVER_UNSUPPORTED` when none loads; one that
 *   `open` throws itself goes through.
 */
export function loadFirst<T>(abi: Abi, open: (library: string) => T): T {
  let cause: unknown;
  for (const library of abi.libraries) {
    try {
      return open(library);
    } catch (error) {
      if (error instanceof TakeoverError) throw error;
      cause = error;
    }
  }
  throw new TakeoverError(
    "ERR_TAKEOVER_UNSUPPORTED",
    `Cannot load libc as any of ${abi.libraries.join(", ")}: ${messageOf(cause)}`,
    { cause },
  );
}

/**
 * Makes the table from an FFI's functions.
 *
 * @param abi The platform.
 * @param library The raw functions by name, declared as {@linkcode declarations} says.
 * @param errno Reads errno; called right after a call that returned -1.
 */
export function bindTable(
  abi: Abi,
  library: Readonly<Record<string, RawFunction | undefined>>,
  errno: () => number,
): Libc {
  const enosys = errnoOf(abi.platform, "ENOSYS");
  const table: Partial<Record<FunctionName, RawFunction>> = {};
  for (const [name, signature] of Object.entries<CFunction>(functions)) {
    const raw = library[name];
    table[name as FunctionName] = raw
      ? returningErrno(padded(abi, raw, signature), signature.parameters.length, errno)
      : () => -enosys;
  }
  return table as Libc;
}

/** Spelled out by arity: a rest parameter would cost an array on every call. */
function returningErrno(raw: RawFunction, arity: number, errno: () => number): RawFunction {
  const result = (value: number | bigint) => value < 0 ? -errno() : Number(value);
  switch (arity) {
    case 0:
      return () => result(raw());
    case 1:
      return (a) => result(raw(a));
    case 2:
      return (a, b) => result(raw(a, b));
    case 3:
      return (a, b, c) => result(raw(a, b, c));
    case 4:
      return (a, b, c, d) => result(raw(a, b, c, d));
    default:
      return (a, b, c, d, e) => result(raw(a, b, c, d, e));
  }
}

/**
 * Apple's arm64 calling convention looks for variadic arguments on the stack,
 * behind eight registers; unused integers fill those. Untested.
 */
function variadicPadding(abi: Abi, { fixed }: CFunction): number {
  return fixed !== undefined && abi.platform === "darwin" && abi.arch === "arm64" ? 8 - fixed : 0;
}

function padded(abi: Abi, raw: RawFunction, signature: CFunction): RawFunction {
  const padding = new Array<number>(variadicPadding(abi, signature)).fill(0);
  if (padding.length === 0) return raw;
  return (...args) => raw(...args.slice(0, signature.fixed), ...padding, ...args.slice(signature.fixed));
}
