/**
 * New sockets for endpoints that were not inherited: bound where the
 * application wants them, a stale Unix path replaced.
 *
 * @module
 */

import { type DatagramAddress, type EndpointAddress, satisfies } from "../sockets/address.ts";
import { bindDatagram, isPathBound } from "../sockets/datagram.ts";
import type { OwnedDescriptor } from "../sockets/descriptors.ts";
import { isSystemError, TakeoverError } from "../errors.ts";
import { bindListener, statusOf, unlinkPath } from "../sockets/listener.ts";
import type { OfferedEndpoint } from "./messages.ts";
import type { Runtime } from "../runtime.ts";
import { formatAddress, type SocketAddress } from "../c/sockaddr.ts";
import { identify, type SocketIdentity } from "../sockets/socket.ts";

/** What the application opens: a server that listens, or a socket that receives datagrams. */
export type OpenedKind = "listener" | "datagram";

/** A socket, inherited or new, that is not in a native object yet. */
export interface Unopened {
  readonly descriptor: OwnedDescriptor;
  readonly identity: SocketIdentity;
  /** Whether its place belongs to a service manager or the like: it is taken wherever it is. */
  readonly isSupervised?: boolean;
}

/**
 * Binds an endpoint.
 *
 * @param options As the application gave them.
 * @param kind Whether it is to listen, or to receive datagrams.
 * @param offered What an incumbent has, by name, for the message when the
 *   address is one of those.
 * @throws {TakeoverError} `ERR_TAKEOVER_ADDRESS` when the incumbent has the
 *   address under another name.
 * @throws {SystemError} For instance `EADDRINUSE`.
 */
export function bindEndpoint(
  runtime: Runtime,
  wanted: SocketAddress,
  options: EndpointAddress | DatagramAddress,
  kind: OpenedKind,
  offered: ReadonlyMap<string, Unopened> = new Map(),
): Unopened {
  try {
    if (wanted.family === "unix") removeStale(runtime, wanted.path);
    const bind = kind === "datagram" ? bindDatagram : bindListener;
    const descriptor = bind(runtime, wanted, options);
    return { descriptor, identity: identify(runtime, descriptor.number)! };
  } catch (error) {
    const other = [...offered].find(([, { identity }]) => isOfKind(identity, kind) && satisfies(identity.address, wanted));
    if (!other || !isSystemError(error, "EADDRINUSE")) throw error;
    throw new TakeoverError(
      "ERR_TAKEOVER_ADDRESS",
      `Cannot bind ${formatAddress(wanted)}: the incumbent has it under the name ${JSON.stringify(other[0])}; use that name`,
      { cause: error },
    );
  }
}

/** Whether a socket is what an endpoint of that kind needs. */
export function isOfKind({ family, type, listening }: SocketIdentity, kind: OfferedEndpoint["kind"]): boolean {
  if (kind === "flows") return family === "unix" && type === "other" && !listening;
  return kind === "datagram" || kind === "member" ? type === "dgram" : type === "stream" && listening;
}

/** A Unix path that nobody answers on was left by a process that was killed. */
function removeStale(runtime: Runtime, path: string): void {
  if (statusOf(runtime, path)?.kind !== "socket") return;
  if (!isPathBound(runtime, path)) unlinkPath(runtime, path);
}
