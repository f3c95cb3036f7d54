/**
 * Whether a suite has a network namespace of its own, whose settings it may change.
 *
 * @module
 */

import { networkInterfaces } from "node:os";

/** Why it has none, or false. */
export function whyNoOwnNamespace(): string | false {
  const others = Object.keys(networkInterfaces()).filter((name) => name !== "lo");
  return others.length === 0 ? false : `this is no network namespace of its own: there is ${others.join(" and ")} as well`;
}
