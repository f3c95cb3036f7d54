/**
 * How two processes find each other: the path of the control socket. Either
 * somebody answers there, and we are the successor, or nobody does, and we bind
 * it. A stale path (nobody answers) is replaced, under a lock file, so that of
 * two processes that start at once one becomes the other's successor.
 *
 * @module
 */

import { cString, OwnedDescriptor, owning } from "../sockets/descriptors.ts";
import { checked, isSystemError, SystemError, TakeoverError } from "../errors.ts";
import { errnoOf } from "../c/errno.ts";
import type { Limits } from "../limits.ts";
import { bindListener, connectPath, type FileStatus, statusOf, statusOfDescriptor, unlinkPath } from "../sockets/listener.ts";
import type { Runtime } from "../runtime.ts";
import { encodeSockaddr } from "../c/sockaddr.ts";

/** Who we are: connected to an incumbent, or the first, with the path bound. */
export type Rendezvous =
  | { readonly role: "successor"; readonly connection: OwnedDescriptor }
  | { readonly role: "first"; readonly listener: OwnedDescriptor };

/** How long to wait before asking for the lock, or connecting, once more. */
const retryMs = 5;

/** The permissions of the control socket and of its lock file. */
const ownerOnly = 0o600;

/**
 * Meets the incumbent at the path, or takes its place.
 *
 * @throws {TakeoverError} `ERR_TAKEOVER_PATH` when the path cannot be used,
 *   `ERR_TAKEOVER_TIMEOUT` when it stays locked or its queue stays full.
 */
export async function meet(runtime: Runtime, path: string, limits: Limits): Promise<Rendezvous> {
  checkPath(runtime, path);
  const connection = await connectWithin(runtime, path, limits.offerMs);
  if (connection) return { role: "successor", connection };
  const lock = await lockBeside(runtime, path, limits.lockMs);
  try {
    // Whoever had the lock before us may have bound the path.
    const found = await connectWithin(runtime, path, limits.offerMs);
    if (found) return { role: "successor", connection: found };
    unlinkPath(runtime, path);
    return { role: "first", listener: bindListener(runtime, { family: "unix", path }, { path, mode: ownerOnly }) };
  } catch (error) {
    throw unusable(path, error);
  } finally {
    owning(lock, () => removeLock(runtime, lockPath(path)));
  }
}

/** One that stays locks nobody out: what counts is who holds it. */
function removeLock(runtime: Runtime, path: string): void {
  try {
    unlinkPath(runtime, path);
  } catch (error) {
    if (!(error instanceof SystemError)) throw error;
  }
}

/** Says at once, and in words, what would otherwise be an errno later. */
function checkPath(runtime: Runtime, path: string): void {
  if (typeof path !== "string" || path === "" || path.startsWith("\0")) {
    throw new TakeoverError(
      "ERR_TAKEOVER_PATH",
      `Cannot use ${JSON.stringify(path)} as the control socket: expected the path of a file; ` +
        "abstract names are open to every user",
    );
  }
  encodeSockaddr(runtime.abi, { family: "unix", path });
  const folder = folderOf(path);
  const folderStatus = statusAt(runtime, folder, true);
  if (runtime.abi.platform === "linux" && folderStatus === null) {
    throw new TakeoverError("ERR_TAKEOVER_PATH", `Cannot use ${path}: the folder ${folder} does not exist; create it`);
  }
  const openToOthers = folderStatus !== null && folderStatus.kind === "folder" &&
    (folderStatus.mode & 0o1002) === 0o0002;
  if (openToOthers) {
    throw new TakeoverError(
      "ERR_TAKEOVER_PATH",
      `Cannot use ${path}: every user can replace it, because ${folder} is writable for others; ` +
        "run chmod o-w on the folder, or choose one of your own",
    );
  }
  const status = statusAt(runtime, path);
  if (status === null || status.kind === "socket") return;
  const kind = status.symbolicLink ? "a symbolic link" : status.kind === "folder" ? "a folder" : "a file";
  throw new TakeoverError("ERR_TAKEOVER_PATH", `Cannot use ${path}: it is ${kind}, expected a socket or nothing`);
}

function statusAt(runtime: Runtime, path: string, followLink = false): FileStatus | null {
  try {
    return statusOf(runtime, path, followLink);
  } catch (cause) {
    throw unusable(path, cause);
  }
}

/** What libc says when it is the path that is wrong. */
const pathErrors = [
  "EACCES", "EPERM", "EISDIR", "ENOTDIR", "ENAMETOOLONG", "ELOOP", "EROFS", "EPROTOTYPE", "ENOSPC",
];

function unusable(path: string, cause: unknown): unknown {
  if (!isSystemError(cause, ...pathErrors)) {
    return cause;
  }
  return new TakeoverError(
    "ERR_TAKEOVER_PATH",
    `Cannot use ${path}: ${cause.message}; expected a path in a folder that this user can write, ` +
      "whose socket belongs to this user",
    { cause },
  );
}

/** A full accept queue is a busy incumbent, not a missing one. */
async function connectWithin(runtime: Runtime, path: string, limitMs: number): Promise<OwnedDescriptor | null> {
  const until = Date.now() + limitMs;
  for (;;) {
    try {
      return connectPath(runtime, path);
    } catch (error) {
      if (!isSystemError(error, "EAGAIN")) throw unusable(path, error);
      if (Date.now() >= until) throw stuck(`connect to ${path}: its queue is full`, "offerMs", limitMs, error);
    }
    await pause();
  }
}

/**
 * Takes the lock file. Its holder removes it before letting go, so a lock that
 * was waited for may be on a file that is no longer there: then once more.
 */
async function lockBeside(runtime: Runtime, path: string, limitMs: number): Promise<OwnedDescriptor> {
  const { abi, libc } = runtime;
  const { O_RDWR, O_CREAT, O_CLOEXEC, O_NOFOLLOW, LOCK_EX, LOCK_NB } = abi.constants;
  const name = cString(lockPath(path));
  const until = Date.now() + limitMs;
  for (;;) {
    const opened = libc.open(name, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, ownerOnly);
    if (opened < 0) throw openFailure(runtime, path, opened);
    const file = new OwnedDescriptor(runtime, opened);
    const result = libc.flock(opened, LOCK_EX | LOCK_NB);
    if (result === 0 && isStillAt(runtime, opened, lockPath(path))) return file;
    file[Symbol.dispose]();
    if (result < 0 && result !== -errnoOf(abi.platform, "EAGAIN")) checked(abi, "flock", result, lockPath(path));
    if (Date.now() >= until) throw stuck(`lock ${lockPath(path)}`, "lockMs", limitMs, undefined);
    await pause();
  }
}

function openFailure({ abi }: Runtime, path: string, result: number): unknown {
  try {
    return checked(abi, "open", result, lockPath(path));
  } catch (cause) {
    return unusable(path, cause);
  }
}

/** Compares inodes; macOS has no statx and trusts the lock. */
function isStillAt(runtime: Runtime, file: number, path: string): boolean {
  return statusOf(runtime, path)?.inode === statusOfDescriptor(runtime, file)?.inode;
}

function stuck(what: string, limitName: keyof Limits, limitMs: number, cause: unknown): TakeoverError {
  return new TakeoverError(
    "ERR_TAKEOVER_TIMEOUT",
    `Cannot ${what} within ${limitMs} ms (limit ${limitName}): another process holds it`,
    { cause },
  );
}

function lockPath(path: string): string {
  return `${path}.lock`;
}

function folderOf(path: string): string {
  const at = path.lastIndexOf("/");
  return at < 0 ? "." : at === 0 ? "/" : path.slice(0, at);
}

function pause(): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, retryMs));
}
