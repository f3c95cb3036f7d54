/**
 * A socket that did not come from a process that knows this library.
 *
 * @module
 */

import type { OwnedDescriptor } from "../sockets/descriptors.ts";
import type { SocketIdentity } from "../sockets/socket.ts";

/** A socket from elsewhere, in this process. */
export interface ForeignSocket {
  /** What the application claims it by. */
  readonly name: string;
  /** This process's copy; whoever holds the object owns it. */
  readonly descriptor: OwnedDescriptor;
  /** What it is: where it is bound, and its `SO_COOKIE`. */
  readonly identity: SocketIdentity;
  /** Whether its place belongs to whoever passed it, a service manager for instance: a path is left to that one. */
  readonly isSupervised?: boolean;
}
