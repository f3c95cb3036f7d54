/**
 * Closing a TCP listener for good without resetting anybody (tcp(7)), where no
 * server accepts from it: each connection is given to a callback.
 *
 * close(2) resets whatever waits in the accept queue, and every handshake whose
 * last packet is still on its way: a client that believes itself connected. So
 * new connections are kept away first, then everything that waits is accepted,
 * and what is half open is waited for.
 *
 * @module
 */

import { errnoName } from "../c/errno.ts";
import { formatAddress, type InetAddress } from "../c/sockaddr.ts";
import type { WaitOptions } from "../channels/readiness.ts";
import { Pace } from "../channels/turns.ts";
import { SystemError, TakeoverError } from "../errors.ts";
import type { Runtime } from "../runtime.ts";
import { OwnedDescriptor } from "../sockets/descriptors.ts";
import { identify, setNonBlocking } from "../sockets/socket.ts";
import { emptyListener } from "./empty_listener.ts";
import { KeptAway } from "./least_hops.ts";

/** How a listener is drained. */
export interface DrainListenerOptions extends WaitOptions {
  /**
   * Keeps new connections away from this listener, for instance by steering the
   * others of its group. Without it they are dropped as long as the listener
   * is there: a client tries again a second later.
   */
  readonly keepAway?: () => void;
  /**
   * Is given every connection that waited: non-blocking, close-on-exec, and the
   * callback's to close. When it throws, the drain ends with what was thrown,
   * and the listener is not closed.
   */
  readonly accepted: (connection: OwnedDescriptor) => void;
  /** How long handshakes may take; 4,000 ms, which is one lost packet, or two. What is left then is reset. */
  readonly timeoutMs?: number;
}

/** What became of whoever was connecting. */
export interface DrainedListener {
  /** Connections that the callback was given. */
  readonly acceptedCount: number;
  /** Handshakes that were under way when new connections were kept away, in the whole group. */
  readonly halfOpenCount: number;
  /** Those of them that were not complete at the end; null when the kernel does not tell. */
  readonly unfinishedCount: number | null;
}

/** Linux's flags of accept4(2). */
const SOCK_CLOEXEC = 0o2000000;
const SOCK_NONBLOCK = 0o4000;

/** What accept(2) says of one connection that has gone again, and when there is no room for one (accept(2)). */
const passing = ["EINTR", "ECONNABORTED", "EPROTO", "ENOPROTOOPT", "ENETDOWN", "ENETUNREACH", "EHOSTUNREACH"];
const roomless = ["EMFILE", "ENFILE", "ENOBUFS", "ENOMEM"];

/**
 * Empties a TCP listener and closes it. Nothing else may accept from it
 * meanwhile, or close it: pause the server that has it, and give this a copy.
 *
 * Closing is the end of the listener only when no other process has a copy. One
 * that does goes on with it: then this is not for you, because new connections
 * would be kept away from it as well.
 *
 * @param listener A TCP listener, taken: closed in the end, unless this throws.
 * @returns How many were served, and how many were not.
 * @throws {TakeoverError} `ERR_TAKEOVER_DESCRIPTOR` when it is no TCP listener,
 *   `ERR_TAKEOVER_NO_ROOM` when this process has no descriptor for a connection.
 *
 * @example
 * ```ts
 * const { acceptedCount } = await drainListener(runtime, listener, {
 *   keepAway: () => group.steer((slotOf) => everythingTo(kept.map(slotOf))),
 *   accepted: (connection) => serve(connection),
 * });
 * ```
 */
export async function drainListener(
  runtime: Runtime,
  listener: OwnedDescriptor,
  options: DrainListenerOptions,
): Promise<DrainedListener> {
  const address = checkedAddress(runtime, listener.number);
  const { keepAway, accepted, signal, timeoutMs } = options;
  setNonBlocking(runtime, listener.number);
  const kept = keepAway ? null : new KeptAway(runtime, listener.number, address);
  keepAway?.();
  const queue = new Queue(runtime, listener.number, (connection) => {
    kept?.letIn(connection.number);
    accepted(connection);
  });
  try {
    const serve = () => queue.empty(signal);
    const { isEmpty, ...handshakes } = await emptyListener(runtime, address, { serve, signal, timeoutMs });
    if (!isEmpty) throw noRoom(listener.number);
    listener[Symbol.dispose]();
    return { acceptedCount: queue.acceptedCount, ...handshakes };
  } catch (error) {
    kept?.end();
    throw error;
  }
}

/** What waits in a listener's accept queue. */
class Queue {
  readonly #runtime: Runtime;
  readonly #listener: number;
  readonly #accepted: (connection: OwnedDescriptor) => void;
  readonly #pace = new Pace();
  acceptedCount = 0;

  constructor(runtime: Runtime, listener: number, accepted: (connection: OwnedDescriptor) => void) {
    this.#runtime = runtime;
    this.#listener = listener;
    this.#accepted = accepted;
  }

  /** Accepts all that is there. False when this process has no room for more. */
  async empty(signal: AbortSignal | undefined): Promise<boolean> {
    const { abi, libc } = this.#runtime;
    for (;;) {
      signal?.throwIfAborted();
      const result = libc.accept4(this.#listener, null, null, SOCK_CLOEXEC | SOCK_NONBLOCK);
      if (result >= 0) {
        this.#give(result);
        await this.#pace.keep();
        continue;
      }
      const code = errnoName(abi.platform, -result);
      if (code === "EAGAIN") return true;
      if (roomless.includes(code)) return false;
      if (!passing.includes(code)) throw new SystemError(code, result, "accept4");
    }
  }

  #give(number: number): void {
    const connection = new OwnedDescriptor(this.#runtime, number);
    try {
      this.#accepted(connection);
    } catch (error) {
      connection[Symbol.dispose]();
      throw error;
    }
    this.acceptedCount++;
  }
}

function checkedAddress(runtime: Runtime, descriptor: number): InetAddress {
  const found = identify(runtime, descriptor);
  if (found && found.listening && found.address.family !== "unix") return found.address;
  const shown = found ? `${found.type} at ${formatAddress(found.address)}` : "no socket";
  throw new TakeoverError(
    "ERR_TAKEOVER_DESCRIPTOR",
    `Cannot drain the descriptor ${descriptor}: expected a TCP listener, it is ${shown}`,
  );
}

function noRoom(listener: number): TakeoverError {
  return new TakeoverError(
    "ERR_TAKEOVER_NO_ROOM",
    `Cannot drain the listener ${listener}: connections wait, and this process has no descriptor for them; ` +
      "raise the limit of open files (ulimit -n)",
  );
}
