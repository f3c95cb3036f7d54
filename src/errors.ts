/**
 * Every error that the library throws or reports, by its code.
 *
 * `-errno` stays inside; {@linkcode SystemError} is what it becomes at the
 * edge, in the shape of Node's own system errors.
 *
 * @module
 */

import { errnoName } from "./c/errno.ts";

/** What can go wrong, one line each; README.md has a section for every code. */
export type TakeoverErrorCode =
  /** The other process is in the middle of a hand-over. */
  | "ERR_TAKEOVER_BUSY"
  /** The two processes share no version of the protocol. */
  | "ERR_TAKEOVER_VERSION"
  /** The process at the other end runs as a user that is not allowed. */
  | "ERR_TAKEOVER_USER"
  /** A name was asked for, or claimed, that the incumbent does not offer. */
  | "ERR_TAKEOVER_UNKNOWN_NAME"
  /** A process tried to take over from itself. */
  | "ERR_TAKEOVER_SELF"
  /** The successor's descriptor table has no room for what would come. */
  | "ERR_TAKEOVER_NO_ROOM"
  /** The other process broke the protocol. */
  | "ERR_TAKEOVER_PROTOCOL"
  /** A size or count was over its limit. */
  | "ERR_TAKEOVER_LIMIT"
  /** A step took longer than its limit. */
  | "ERR_TAKEOVER_TIMEOUT"
  /** The other process went away in the middle of a step. */
  | "ERR_TAKEOVER_LOST"
  /** The incumbent ended the lease because the successor had fallen silent. */
  | "ERR_TAKEOVER_REVOKED"
  /** Ancillary data did not arrive whole. */
  | "ERR_TAKEOVER_TRUNCATED"
  /** A descriptor that arrived is not the socket that was announced. */
  | "ERR_TAKEOVER_DESCRIPTOR"
  /** The path of the control socket cannot be used. */
  | "ERR_TAKEOVER_PATH"
  /** An address is malformed, or not the one that was inherited. */
  | "ERR_TAKEOVER_ADDRESS"
  /** A path names something else than a socket. */
  | "ERR_TAKEOVER_PATH_KIND"
  /** Nobody listens on the socket that a path names. */
  | "ERR_TAKEOVER_PATH_STALE"
  /** This user may not connect to, or make, the socket at a path. */
  | "ERR_TAKEOVER_PATH_ACCESS"
  /** A descriptor is closed. */
  | "ERR_TAKEOVER_CLOSED"
  /** A number cannot be a descriptor. */
  | "ERR_TAKEOVER_RANGE"
  /** A descriptor is open, and no socket. */
  | "ERR_TAKEOVER_NOT_SOCKET"
  /** More descriptors than one message can carry. */
  | "ERR_TAKEOVER_TOO_MANY"
  /** Descriptors without a byte to carry them. */
  | "ERR_TAKEOVER_EMPTY"
  /** A message came with fewer descriptors than expected. */
  | "ERR_TAKEOVER_MISSING"
  /** A message came with more descriptors than expected; all were closed. */
  | "ERR_TAKEOVER_SURPLUS"
  /** A process is not there, or not the one that was meant. */
  | "ERR_TAKEOVER_PROCESS"
  /** This user may not take descriptors out of a process. */
  | "ERR_TAKEOVER_PTRACE"
  /** Another program has no such listener, or none that it gives. */
  | "ERR_TAKEOVER_NO_LISTENER"
  /** A runtime did not take the socket that it was given. */
  | "ERR_TAKEOVER_ADOPT"
  /** A method was called at a time, or twice, when it cannot be. */
  | "ERR_TAKEOVER_STATE"
  /** This runtime or platform cannot do what was asked. */
  | "ERR_TAKEOVER_UNSUPPORTED"
  /** The runtime was not given the permissions that calling libc needs. */
  | "ERR_TAKEOVER_PERMISSION";

/** An error with a stable {@linkcode TakeoverErrorCode}. */
export class TakeoverError extends Error {
  /** `TakeoverError`. */
  override readonly name: string = "TakeoverError";
  /** Stable: compare this, never the message. */
  readonly code: TakeoverErrorCode;

  /**
   * Makes an error.
   *
   * @param code One of {@linkcode TakeoverErrorCode}.
   * @param message What was expected, what came, and what to do.
   * @param options `cause`: the error behind this one.
   */
  constructor(code: TakeoverErrorCode, message: string, options?: ErrorOptions) {
    super(message, options);
    this.code = code;
  }
}

/**
 * The other process has gone, as opposed to having said so: a refusal can carry
 * the same code, and is obeyed.
 */
export class PeerLostError extends TakeoverError {
  /**
   * Makes an error with the code `ERR_TAKEOVER_LOST`.
   *
   * @param message Who has gone, and in the middle of what.
   * @param options `cause`: how that was noticed.
   */
  constructor(message: string, options?: ErrorOptions) {
    super("ERR_TAKEOVER_LOST", message, options);
  }
}

/** A message of which descriptors were lost on the way in; those that came were closed. */
export class TruncatedError extends TakeoverError {
  /** The message's bytes, which came whole. */
  readonly bytes: Uint8Array;
  /** How many of its descriptors came, and were closed. */
  readonly closedCount: number;

  /**
   * Makes an error with the code `ERR_TAKEOVER_TRUNCATED`.
   *
   * @param bytes What came with the descriptors.
   * @param closedCount How many of them came.
   */
  constructor(bytes: Uint8Array, closedCount: number) {
    super(
      "ERR_TAKEOVER_TRUNCATED",
      `Cannot receive all descriptors of a message: ${closedCount} arrived and were closed, the kernel dropped ` +
        "the others (MSG_CTRUNC); raise the limit of open files (ulimit -n) or send fewer",
    );
    this.bytes = bytes;
    this.closedCount = closedCount;
  }
}

/** A failed libc call, in the shape of Node's system errors. */
export class SystemError extends Error {
  /** `SystemError`. */
  override readonly name: string = "SystemError";
  /** The errno's name, for instance `ECONNREFUSED`. */
  readonly code: string;
  /** The errno, negative as in Node. */
  readonly errno: number;
  /** The libc function that failed. */
  readonly syscall: string;

  /**
   * Makes an error.
   *
   * @param code The errno's name.
   * @param errno The errno, negative.
   * @param syscall The libc function that failed.
   * @param detail What it was called for, for instance a path.
   */
  constructor(code: string, errno: number, syscall: string, detail?: string) {
    super(`${syscall} ${code}${detail === undefined ? "" : ` ${detail}`}`);
    this.code = code;
    this.errno = errno;
    this.syscall = syscall;
  }
}

/**
 * Passes a libc result through, or throws when it is a -errno.
 *
 * @param abi The platform, for the errno's name.
 * @param syscall The libc function that was called.
 * @param result What it returned: a value from 0 on, or -errno.
 * @param detail What it was called for.
 * @throws {SystemError} When `result` is negative.
 */
export function checked(abi: { readonly platform: "linux" | "darwin" }, syscall: string, result: number, detail?: string): number {
  if (result >= 0) return result;
  throw new SystemError(errnoName(abi.platform, -result), result, syscall, detail);
}

/** Whether an error is a {@linkcode SystemError} with one of these errno names. */
export function isSystemError(error: unknown, ...codes: string[]): error is SystemError {
  return error instanceof SystemError && codes.includes(error.code);
}

/** The message of anything that was thrown. */
export function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/** A value of the peer's in a message: never more than a short text. */
export function shown(value: unknown): string {
  return typeof value === "string" ? JSON.stringify(value.slice(0, 80)) : `a value of type ${typeof value}`;
}
