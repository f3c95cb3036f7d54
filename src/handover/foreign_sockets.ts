/**
 * Sockets that the first process of a chain has from elsewhere (a service
 * manager, HAProxy, a process that was seized), as its endpoints find them.
 *
 * @module
 */

import { allocate, viewOf } from "../c/bytes.ts";
import type { SocketAddress } from "../c/sockaddr.ts";
import type { InheritedDescriptor } from "../foreign/activation.ts";
import type { ForeignSocket } from "../foreign/foreign_socket.ts";
import type { Runtime } from "../runtime.ts";
import { satisfies } from "../sockets/address.ts";
import { disposeAll } from "../sockets/descriptors.ts";
import { isOfKind, type OpenedKind, type Unopened } from "./binding.ts";

/** Sockets, and what else a service manager passed. */
export type PassedDescriptor = ForeignSocket | InheritedDescriptor;

/** One that an endpoint has claimed. */
export type ClaimedSocket = PassedDescriptor & Unopened;

/** What was passed and nobody has claimed yet. */
export class ForeignSockets implements Disposable {
  readonly #runtime: Runtime;
  readonly #isOwnStore: boolean;
  #waiting: readonly PassedDescriptor[];
  #isDisposed = false;

  /**
   * @param descriptors Owned by this object, until they are claimed.
   * @param isOwnStore Whether a name was given by this program, when it stored
   *   the socket, rather than by whoever configured the service.
   */
  constructor(runtime: Runtime, descriptors: readonly PassedDescriptor[], isOwnStore: boolean) {
    this.#runtime = runtime;
    this.#waiting = descriptors;
    this.#isOwnStore = isOwnStore;
  }

  /**
   * The socket for an endpoint: one of that name, for which its own address
   * counts (a service manager's configuration), else one at the address that is wanted. A socket
   * that the program stored itself has to be where the program wants it now.
   *
   * @param kind Whether it is to listen, or to receive datagrams.
   * @returns Null when there is none. Else the caller owns it.
   */
  claim(name: string, wanted: SocketAddress, kind: OpenedKind = "listener"): ClaimedSocket | null {
    const sockets = this.#waiting.filter(({ identity }) => {
      return identity && isOfKind(identity, kind) && (identity.family === "unix") === (wanted.family === "unix");
    });
    const isThere = ({ descriptor, identity }: PassedDescriptor) => {
      return serves(this.#runtime, { descriptor, identity: identity! }, wanted);
    };
    const named = sockets.filter((each) => each.name === name);
    const anyPort = wanted.family !== "unix" && wanted.port === 0;
    const found = named.find(isThere) ?? (this.#isOwnStore ? undefined : named[0]) ??
      (anyPort ? undefined : sockets.find(isThere));
    if (!found) return null;
    this.#waiting = this.#waiting.filter((each) => each !== found);
    return { ...found, identity: found.identity! };
  }

  /** What could not be opened can be claimed again. @param socket Taken. */
  giveBack(socket: ClaimedSocket): void {
    if (this.#isDisposed) return socket.descriptor[Symbol.dispose]();
    this.#waiting = [socket, ...this.#waiting];
  }

  /** The names of what nobody has claimed. */
  get names(): string[] {
    return this.#waiting.map(({ name }) => name);
  }

  /** Closes what nobody claimed; whoever passed it has copies of its own. */
  [Symbol.dispose](): void {
    this.#isDisposed = true;
    disposeAll(this.#waiting.map(({ descriptor }) => descriptor));
    this.#waiting = [];
  }
}

/**
 * Whether a socket that is there already does what an endpoint wants. A dual
 * stack listener does for all IPv4 addresses what one at `0.0.0.0` would, and
 * systemd binds one when it is given a port alone.
 */
export function serves(runtime: Runtime, { descriptor, identity, isSupervised }: Unopened, wanted: SocketAddress): boolean {
  const { address } = identity;
  if (satisfies(address, wanted) || isSupervised && (address.family === "unix") === (wanted.family === "unix")) return true;
  if (address.family !== "inet6" || address.hostname !== "::" || wanted.family !== "inet") return false;
  return satisfies({ ...wanted, port: address.port }, wanted) && wanted.hostname === "0.0.0.0" &&
    isDualStack(runtime, descriptor.number);
}

/** IPV6_V6ONLY (ipv6(7)) is not set. */
function isDualStack({ abi, libc }: Runtime, descriptor: number): boolean {
  const { IPPROTO_IPV6, IPV6_V6ONLY } = abi.constants;
  const [value, size] = [allocate(4), allocate(4)];
  viewOf(size).setUint32(0, 4, true);
  return libc.getsockopt(descriptor, IPPROTO_IPV6, IPV6_V6ONLY, value, size) === 0 &&
    viewOf(value).getInt32(0, true) === 0;
}
