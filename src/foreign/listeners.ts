/**
 * The sockets of another process that matter when it is replaced: those that
 * listen, and the connections that came in through them.
 *
 * Each is copied and asked itself, rather than looked up in /proc/PID/net: a
 * socket belongs to the network namespace it was made in, which need not be
 * its process's, and a copy is asked whatever the kernel's tables hold.
 *
 * @module
 */

import { cameThrough } from "../sockets/address.ts";
import { disposeAll, type OwnedDescriptor, owning } from "../sockets/descriptors.ts";
import { type ForeignProcess, movedUp } from "./process.ts";
import type { Runtime } from "../runtime.ts";
import type { SocketAddress } from "../c/sockaddr.ts";
import { identify, isListening, isStream, localAddress, peerAddress, type SocketIdentity } from "../sockets/socket.ts";

/** A listening socket of another process, and this process's copy of it. */
export interface SeizedListener {
  /** What /proc calls it, in every process that has it: `socket:[4711]`. */
  readonly link: string;
  readonly descriptor: OwnedDescriptor;
  readonly identity: SocketIdentity;
}

/**
 * Copies every listening stream socket of a process, each once.
 *
 * @returns In the order of their descriptors there; the caller owns the copies.
 * @throws {TakeoverError} `ERR_TAKEOVER_PTRACE`, `ERR_TAKEOVER_PROCESS`, `ERR_TAKEOVER_UNSUPPORTED`.
 */
export function copyListeners(runtime: Runtime, process: ForeignProcess): SeizedListener[] {
  const found: SeizedListener[] = [];
  const seen = new Set<string>();
  try {
    for (const [number, link] of process.descriptors()) {
      // Without a link this user may not trace the process, which copying tells, or it was closed.
      if (seen.has(link) || link !== "" && !link.startsWith("socket:")) continue;
      if (link !== "") seen.add(link);
      const descriptor = process.copy(number);
      if (!descriptor) continue;
      const identity = isListening(runtime, descriptor.number) ? identify(runtime, descriptor.number) : null;
      if (identity?.type === "stream") found.push({ link, descriptor: movedUp(runtime, descriptor), identity });
      else descriptor[Symbol.dispose]();
    }
    return found;
  } catch (error) {
    disposeAll(found.map(({ descriptor }) => descriptor));
    throw error;
  }
}

/**
 * The descriptors of a process that are connections through one of these
 * listeners, whatever becomes of them there.
 *
 * @param likely Where to look first.
 */
export function* connectionsOf(
  runtime: Runtime,
  process: ForeignProcess,
  addresses: readonly SocketAddress[],
  likely = -1,
): Generator<number> {
  if (likely >= 0 && isConnection(runtime, process, likely, addresses)) yield likely;
  for (const [number, link] of process.descriptors()) {
    if (number === likely || !link.startsWith("socket:")) continue;
    if (isConnection(runtime, process, number, addresses)) yield number;
  }
}

function isConnection(
  runtime: Runtime,
  process: ForeignProcess,
  number: number,
  addresses: readonly SocketAddress[],
): boolean {
  const descriptor = process.copy(number);
  if (!descriptor) return false;
  return owning(descriptor, (copy) => {
    const local = localAddress(runtime, copy.number);
    return local !== null && addresses.some((address) => cameThrough(local, address)) &&
      isStream(runtime, copy.number) && !isListening(runtime, copy.number) &&
      peerAddress(runtime, copy.number) !== null;
  });
}
