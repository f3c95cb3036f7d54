/**
 * Who is at the other end of a Unix connection: SO_PEERCRED (unix(7)), on
 * macOS getpeereid(3).
 *
 * The kernel froze the answer when the connection was made, so the user can be
 * relied on; the pid can have ended since, and is never signalled.
 *
 * @module
 */

import { allocate, viewOf } from "../c/bytes.ts";
import { checked, TakeoverError } from "../errors.ts";
import type { Runtime } from "../runtime.ts";

/** Linux's SO_PEERCRED; `struct ucred` is pid, uid, gid, four bytes each. */
const SO_PEERCRED = 17;
const ucredSize = 12;

/**
 * The effective user of the process at the other end.
 *
 * @throws {SystemError} When the descriptor is no connected Unix socket.
 */
export function peerUser({ abi, libc }: Runtime, descriptor: number): number {
  if (abi.platform === "darwin") {
    const uid = allocate(4);
    checked(abi, "getpeereid", libc.getpeereid(descriptor, uid, allocate(4)));
    return viewOf(uid).getUint32(0, true);
  }
  const credentials = allocate(ucredSize);
  const size = allocate(4);
  viewOf(size).setUint32(0, ucredSize, true);
  checked(abi, "getsockopt", libc.getsockopt(descriptor, abi.constants.SOL_SOCKET, SO_PEERCRED, credentials, size));
  return viewOf(credentials).getUint32(4, true);
}

/**
 * Checks that the other end runs as this process's user, or as one that the
 * application named.
 *
 * @param allowed Further user ids.
 * @param role What the other end is, for the message.
 * @throws {TakeoverError} `ERR_TAKEOVER_USER` when it does not.
 */
export function checkPeerUser(
  runtime: Runtime,
  descriptor: number,
  allowed: readonly number[],
  role: "incumbent" | "successor",
): void {
  const user = peerUser(runtime, descriptor);
  const own = runtime.libc.geteuid();
  if (user === own || allowed.includes(user)) return;
  throw new TakeoverError(
    "ERR_TAKEOVER_USER",
    `Cannot trust the ${role}: it runs as user ${user}, expected ${[own, ...allowed].join(" or ")}; ` +
      "run both as one user, or name the other's in the option allowUsers",
  );
}
