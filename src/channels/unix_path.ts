/**
 * Sockets at Unix paths, with an error of its own for each way in which a path
 * can be wrong. Abstract names begin with a NUL.
 *
 * @module
 */

import { cString, OwnedDescriptor, owning } from "../sockets/descriptors.ts";
import { checked, isSystemError, type SystemError, TakeoverError } from "../errors.ts";
import type { Runtime } from "../runtime.ts";
import { statusOf, unlinkPath } from "../sockets/listener.ts";
import { pause, type WaitOptions } from "./readiness.ts";
import { bindSocket, connectSocket, openSocket, type SocketType } from "../sockets/socket.ts";

/** How to make a socket at a path. */
export interface PathOptions {
  /** The permissions of the path, for instance 0o660; what the umask leaves when left out. */
  readonly mode?: number | undefined;
  /** Takes a path over at which nobody listens any more, as after a crash. */
  readonly replaceStale?: boolean | undefined;
}

/** How long to wait before a full accept queue is tried again: at first, and at most. */
const firstPauseMs = 1;
const longestPauseMs = 20;

/**
 * Connects a socket of ours to the socket at a path.
 *
 * @param options A full accept queue is waited for as long as these say.
 * @returns A non-blocking, close-on-exec socket; the caller owns it.
 * @throws {TakeoverError} `ERR_TAKEOVER_PATH` (too long), `ERR_TAKEOVER_PATH_KIND`,
 *   `ERR_TAKEOVER_PATH_STALE`, `ERR_TAKEOVER_PATH_ACCESS`, `ERR_TAKEOVER_TIMEOUT`.
 * @throws {SystemError} `ENOENT` when there is nothing.
 */
export function connectUnix(runtime: Runtime, path: string, type: SocketType, options: WaitOptions): Promise<OwnedDescriptor> {
  return owning(new OwnedDescriptor(runtime, openSocket(runtime, "unix", type)), async (socket) => {
    const until = options.timeoutMs === undefined ? Infinity : Date.now() + options.timeoutMs;
    options.signal?.throwIfAborted();
    for (let pauseMs = firstPauseMs;; pauseMs = Math.min(pauseMs * 2, longestPauseMs)) {
      try {
        connectSocket(runtime, socket.number, { family: "unix", path });
        return new OwnedDescriptor(runtime, socket.take());
      } catch (error) {
        if (!isSystemError(error, "EAGAIN", "EINTR")) throw explained(runtime, "connect to", path, error);
        if (Date.now() >= until) throw full(path, options, error);
      }
      await pause(Math.min(pauseMs, until - Date.now()), { signal: options.signal });
    }
  });
}

/**
 * Binds a socket of ours to a path.
 *
 * @returns The socket, and whether a path has to be removed after it.
 * @throws As {@linkcode connectUnix}; a path that is in use is `EADDRINUSE`.
 */
export function bindUnix(runtime: Runtime, path: string, type: SocketType, options: PathOptions): OwnedDescriptor {
  const { abi, libc } = runtime;
  return owning(new OwnedDescriptor(runtime, openSocket(runtime, "unix", type)), (socket) => {
    const isFile = isNamed(path);
    const { mode } = options;
    // On Linux the path gets the socket's mode less the umask (net/unix/af_unix.c,
    // unix_bind_bsd); what the umask took away comes back below.
    if (isFile && mode !== undefined) checked(abi, "fchmod", libc.fchmod(socket.number, mode));
    try {
      bindSocket(runtime, socket.number, { family: "unix", path });
    } catch (error) {
      if (!isFile || !isSystemError(error, "EADDRINUSE")) throw explained(runtime, "bind", path, error);
      replaceStale(runtime, path, type, options, error);
      bindSocket(runtime, socket.number, { family: "unix", path });
    }
    if (isFile && mode !== undefined) checked(abi, "chmod", libc.chmod(cString(path), mode), path);
    return new OwnedDescriptor(runtime, socket.take());
  });
}

/** Whether there is something in the file system, unlike for abstract names. */
export function isNamed(path: string): boolean {
  return path !== "" && !path.startsWith("\0");
}

/**
 * The inode of the socket at a path, by which the path is known again; to be
 * asked once the socket is bound.
 *
 * @returns Null when there is nothing, and where it cannot be told: macOS has
 *   no statx, and a folder may have been closed to this user.
 */
export function inodeAt(runtime: Runtime, path: string): number | null {
  try {
    return isNamed(path) ? statusOf(runtime, path)?.inode ?? null : null;
  } catch {
    return null;
  }
}

/**
 * Removes a path, unless somebody else has bound it meanwhile. To be called
 * while the socket is open: until it is closed nobody else gets its inode's
 * number, and nobody takes its path for one at which nobody listens.
 *
 * @param inode What {@linkcode inodeAt} said of it; where it could not tell,
 *   and cannot now, the path counts as the same.
 * @throws {SystemError} For instance `EACCES`.
 */
export function unlinkIfSame(runtime: Runtime, path: string, inode: number | null): void {
  if (isNamed(path) && inodeAt(runtime, path) === inode) unlinkPath(runtime, path);
}

/** Removes a path at which nobody listens, when that was asked for. */
function replaceStale(runtime: Runtime, path: string, type: SocketType, options: PathOptions, inUse: SystemError): void {
  if (statusOf(runtime, path)?.kind !== "socket") throw explained(runtime, "bind", path, inUse);
  owning(new OwnedDescriptor(runtime, openSocket(runtime, "unix", type)), ({ number }) => {
    try {
      connectSocket(runtime, number, { family: "unix", path });
    } catch (error) {
      if (isSystemError(error, "ECONNREFUSED", "ENOENT")) return;
    }
    throw inUse;
  });
  if (!options.replaceStale) throw stale("bind", path, inUse);
  unlinkPath(runtime, path);
}

function explained(runtime: Runtime, verb: string, path: string, cause: unknown): unknown {
  if (isSystemError(cause, "EACCES", "EPERM")) {
    return new TakeoverError(
      "ERR_TAKEOVER_PATH_ACCESS",
      `Cannot ${verb} ${shownPath(path)}: user ${runtime.libc.geteuid()} may not; connecting needs write permission for ` +
        "the socket, making one for its folder",
      { cause },
    );
  }
  const kind = isSystemError(cause, "ECONNREFUSED", "EADDRINUSE", "EPROTOTYPE", "ENOTSOCK") ? kindOf(runtime, path) : null;
  if (kind !== null && kind !== "socket") {
    const found = kind === "folder" ? "a folder; name a path in it" : "a file; name another path, or remove it";
    return new TakeoverError("ERR_TAKEOVER_PATH_KIND", `Cannot ${verb} ${shownPath(path)}: expected a socket, it is ${found}`, { cause });
  }
  if (isSystemError(cause, "EPROTOTYPE")) {
    return new TakeoverError(
      "ERR_TAKEOVER_PATH_KIND",
      `Cannot ${verb} ${shownPath(path)}: the socket there is of another type (stream, seqpacket, dgram)`,
      { cause },
    );
  }
  return kind === "socket" && isSystemError(cause, "ECONNREFUSED") ? stale(verb, path, cause) : cause;
}

/** What is at a path, as far as it can be told. */
function kindOf(runtime: Runtime, path: string): "socket" | "folder" | "other" | null {
  if (!isNamed(path)) return null;
  try {
    return statusOf(runtime, path, true)?.kind ?? null;
  } catch {
    return null;
  }
}

function stale(verb: string, path: string, cause: unknown): TakeoverError {
  return new TakeoverError(
    "ERR_TAKEOVER_PATH_STALE",
    `Cannot ${verb} ${shownPath(path)}: nobody listens there any more; start its server, remove the path, ` +
      "or take it over with the option replaceStale",
    { cause },
  );
}

function full(path: string, { timeoutMs }: WaitOptions, cause: unknown): TakeoverError {
  return new TakeoverError(
    "ERR_TAKEOVER_TIMEOUT",
    `Cannot connect to ${shownPath(path)} within ${timeoutMs} ms: its accept queue is full`,
    { cause },
  );
}

function shownPath(path: string): string {
  return JSON.stringify(path.replaceAll("\0", "@"));
}
