/**
 * What an application can set.
 *
 * @module
 */

import type { Json } from "../connections/movable.ts";
import { TakeoverError } from "../errors.ts";
import { jsonSize } from "./frame.ts";
import type { Limits } from "../limits.ts";
import type { OfferedState } from "./messages.ts";
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
  /** What a successor finds in `takeover.state`: counters and the like. */
  readonly state?: StateOptions;
}

/** What a process gives its successor, beside its sockets. */
export interface StateOptions {
  /** The application's own number for the shape of the value; the successor looks at it before it uses the value. */
  readonly version: number;
  /** Called when a successor asks, while this process still serves. At most `stateSize` bytes of JSON. */
  save(): Json;
}

/**
 * What the application gives a successor.
 *
 * @throws {TakeoverError} `ERR_TAKEOVER_LIMIT` when it is too large, or cannot
 *   be sent as JSON: the successor is refused, and this process serves on.
 */
export function stateOf({ state }: TakeoverOptions, { stateSize }: Limits): OfferedState | null {
  if (!state) return null;
  const value = state.save();
  const size = jsonSize(value);
  if (size <= stateSize && Number.isSafeInteger(state.version) && state.version >= 0) {
    return { version: state.version, value };
  }
  throw new TakeoverError(
    "ERR_TAKEOVER_LIMIT",
    `Cannot give a successor a state of version ${state.version} ${
      size === Infinity ? "that is no JSON" : `with ${size} bytes of JSON`
    }: expected a version from 0 on, and at most ${stateSize} bytes (limit stateSize)`,
  );
}
