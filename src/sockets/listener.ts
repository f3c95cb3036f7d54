/**
 * Listening sockets of our own: bound through libc, so that no runtime unlinks
 * a Unix path when it closes its copy, and every option is the same everywhere.
 *
 * @module
 */

import { allocate, readField, viewOf } from "../c/bytes.ts";
import { cString, OwnedDescriptor, owning } from "./descriptors.ts";
import { defaultBacklog, type EndpointAddress } from "./address.ts";
import { checked, isSystemError } from "../errors.ts";
import { errnoOf } from "../c/errno.ts";
import type { Runtime } from "../runtime.ts";
import type { SocketAddress } from "../c/sockaddr.ts";
import { bindSocket, connectSocket, openSocket, setIntegerOption, setShared } from "./socket.ts";

/** Linux's flags of statx(2). */
const AT_FDCWD = -100;
const AT_EMPTY_PATH = 0x1000;
const AT_SYMLINK_NOFOLLOW = 0x100;
const STATX_BASIC_STATS = 0x7ff;

/** What statx(2) says of a path. */
export interface FileStatus {
  readonly kind: "socket" | "folder" | "other";
  readonly symbolicLink: boolean;
  /** The permission bits, sticky included. */
  readonly mode: number;
  readonly uid: number;
  readonly inode: number;
}

/**
 * Binds and listens.
 *
 * @param options `ipv6Only`, `backlog`, `mode` as the application gave them.
 * @returns A non-blocking listener; the caller owns it.
 * @throws {SystemError} For instance `EADDRINUSE`.
 */
export function bindListener(
  runtime: Runtime,
  address: SocketAddress,
  options: EndpointAddress,
): OwnedDescriptor {
  const { abi, libc } = runtime;
  const { SOL_SOCKET, SO_REUSEADDR, IPPROTO_IPV6, IPV6_V6ONLY } = abi.constants;
  return owning(new OwnedDescriptor(runtime, openSocket(runtime, address.family, "stream")), (socket) => {
    const mode = "mode" in options ? options.mode : undefined;
    if (address.family === "unix") {
      // On Linux the path gets the mode of the socket less the umask, so that
      // there is no moment with more than was asked for (net/unix/af_unix.c,
      // unix_bind_bsd); what the umask took away comes back below.
      if (mode !== undefined) checked(abi, "fchmod", libc.fchmod(socket.number, mode));
    } else {
      setIntegerOption(runtime, socket.number, SOL_SOCKET, SO_REUSEADDR, 1);
    }
    if (address.family === "inet6") {
      const only = "ipv6Only" in options && options.ipv6Only === true;
      setIntegerOption(runtime, socket.number, IPPROTO_IPV6, IPV6_V6ONLY, only ? 1 : 0);
    }
    if ("reusePort" in options && options.reusePort) setShared(runtime, socket.number);
    bindSocket(runtime, socket.number, address);
    if (address.family === "unix" && mode !== undefined) {
      checked(abi, "chmod", libc.chmod(cString(address.path), mode), address.path);
    }
    checked(abi, "listen", libc.listen(socket.number, options.backlog ?? defaultBacklog));
    return new OwnedDescriptor(runtime, socket.take());
  });
}

/**
 * Connects to a Unix path.
 *
 * @returns The connection, which the caller owns, or null when nobody listens:
 *   the path is missing or stale.
 * @throws {SystemError} When it cannot be told, for instance `EACCES`, or
 *   `EAGAIN` for a full accept queue.
 */
export function connectPath(runtime: Runtime, path: string): OwnedDescriptor | null {
  return owning(new OwnedDescriptor(runtime, openSocket(runtime, "unix", "stream")), (socket) => {
    try {
      connectSocket(runtime, socket.number, { family: "unix", path });
    } catch (error) {
      if (isSystemError(error, "ENOENT", "ECONNREFUSED")) return null;
      throw error;
    }
    return new OwnedDescriptor(runtime, socket.take());
  });
}

/** Removes a path; one that is gone already is fine. */
export function unlinkPath({ abi, libc }: Runtime, path: string): void {
  const result = libc.unlink(cString(path));
  if (result !== -errnoOf(abi.platform, "ENOENT")) checked(abi, "unlink", result, path);
}

/**
 * What a path is.
 *
 * @param followLink Whether a symbolic link stands for what it points to.
 * @returns Null when there is nothing, and on macOS, which has no statx.
 * @throws {SystemError} When it cannot be told, for instance `EACCES`.
 */
export function statusOf(runtime: Runtime, path: string, followLink = false): FileStatus | null {
  return statusAt(runtime, AT_FDCWD, path, followLink ? 0 : AT_SYMLINK_NOFOLLOW);
}

/** The same of an open descriptor. */
export function statusOfDescriptor(runtime: Runtime, descriptor: number): FileStatus | null {
  return statusAt(runtime, descriptor, "", AT_EMPTY_PATH);
}

function statusAt({ abi, libc }: Runtime, folder: number, path: string, flags: number): FileStatus | null {
  const status = allocate(abi.statx.size);
  const result = libc.statx(folder, cString(path), flags, STATX_BASIC_STATS, status);
  if (["ENOENT", "ENOSYS"].some((name) => result === -errnoOf(abi.platform, name))) return null;
  checked(abi, "statx", result, path);
  const view = viewOf(status);
  const mode = readField(view, abi.statx.mode);
  const type = mode & 0o170000;
  return {
    kind: type === 0o140000 ? "socket" : type === 0o040000 ? "folder" : "other",
    symbolicLink: type === 0o120000,
    mode: mode & 0o7777,
    uid: readField(view, abi.statx.uid),
    inode: readField(view, abi.statx.inode),
  };
}
