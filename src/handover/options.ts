/**
 * What an application can set.
 *
 * @module
 */

import type { Limits } from "../limits.ts";
import type { PassedDescriptor } from "./foreign_sockets.ts";

/** How to take over. */
export interface TakeoverOptions {
  /** Limits that differ from the defaults. */
  readonly limits?: Partial<Limits>;
  /** User ids that may be at the other end, besides this process's own. */
  readonly allowUsers?: readonly number[];
  /** Names of endpoints without which an incumbent is refused. */
  readonly require?: readonly string[];
  /**
   * Sockets from elsewhere, which the takeover then owns: seized, from HAProxy,
   * or what a service manager passed to this process at its start, which is
   * what is taken when this is left out (`inheritedDescriptors()`). Without an
   * incumbent `listen` takes its sockets from them; with one, and when
   * `takeOver` throws, they are closed.
   */
  readonly inherit?: readonly PassedDescriptor[];
  /** Whether the service manager that `$NOTIFY_SOCKET` names is told (sd_notify(3)); true when left out. */
  readonly notify?: boolean;
  /**
   * Whether its descriptor store keeps the listeners (systemd: `FileDescriptorStoreMax=`),
   * so that the process that it starts after a crash has them; false when left
   * out. Names of endpoints are then printable ASCII without colons.
   */
  readonly store?: boolean;
}
