/**
 * A listening socket that did not come from a process that knows this library.
 *
 * @module
 */

import type { OwnedDescriptor } from "../sockets/descriptors.ts";
import type { SocketIdentity } from "../sockets/socket.ts";

/** A listening socket from elsewhere, in this process and verified. */
export interface ForeignSocket {
  /** What the application claims it by. */
  readonly name: string;
  /** This process's copy; whoever holds the object owns it. */
  readonly descriptor: OwnedDescriptor;
  /** What it is: where it is bound, and its `SO_COOKIE`. */
  readonly identity: SocketIdentity;
}
