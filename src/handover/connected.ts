/**
 * Flows that the kernel keeps with the process that has a socket connected to
 * their peers (`pinned.ts`). Those sockets are there before a successor reads:
 * so it is never given a datagram of a flow that it does not know.
 *
 * ```text
 * successor: ready      sockets for all peers, some in each turn, while this process serves on
 * before lease          those for peers that have come meanwhile; the main socket is paused,
 *                       and this process reads what waits in it
 * lease                 the successor reads what is left, and what comes
 * lost                  the flows are given back, and the main socket has them again
 * ```
 *
 * @module
 */

import type { InetAddress } from "../c/sockaddr.ts";
import { Pace } from "../channels/turns.ts";
import { isSystemError, messageOf, SystemError, TakeoverError } from "../errors.ts";
import type { Endpoint } from "../natives/endpoint.ts";
import { freeDescriptorCount } from "../sockets/descriptors.ts";
import { drainDatagrams } from "../steering/draining.ts";
import { PinnedSockets } from "../steering/pinned.ts";
import type { FlowHost, KernelFlows, TravellingMember } from "./flow_strategy.ts";

/** The part of the time that a successor waits for its lease in which flows are taken. */
const readyingPart = 1 / 4;

/** How long what waits in the main socket is read: under a load without an end it would never be empty. */
const drainMs = 20;

/** How long the last flows may take that have come meanwhile; neither process reads then. */
const lastMs = 100;

/** The flows of one endpoint, as one process has them. */
export class ConnectedFlows implements KernelFlows {
  readonly keepsSocket = false;
  readonly #host: FlowHost;
  readonly #own: Endpoint;
  readonly #pinned: PinnedSockets;
  /** Resolves when flows that were given back are, before others are taken. */
  #givenBack: Promise<void> = Promise.resolve();
  #isClosed = false;

  /** @throws {TakeoverError} As `PinnedSockets`. */
  constructor(host: FlowHost, own: Endpoint) {
    this.#host = host;
    this.#own = own;
    this.#pinned = new PinnedSockets(host.runtime, own.descriptor, host.datagram);
  }

  get count(): number {
    return this.#pinned.count;
  }

  serve(): void {}

  olderEnded(): void {}

  spare(): null {
    return null;
  }

  async check(): Promise<void> {}

  travel(): TravellingMember[] {
    return [];
  }

  async readying(): Promise<void> {
    await this.#givenBack;
    const endAt = Date.now() + this.#host.limits.leaseMs * readyingPart;
    const pace = new Pace();
    for (const _ of this.#taking(endAt)) await pace.keep();
  }

  /** What a flow has sent before it was taken lies in the main socket, and so does what begins a new one. */
  lease(): void {
    const [drainedAt, endAt] = [Date.now() + drainMs, Date.now() + lastMs];
    let refused = this.#takeAll(endAt);
    while (this.#drain(drainedAt) > 0) refused = this.#takeAll(endAt);
    if (refused.count > 0) this.#host.failed(notKept(this.#host.name, refused));
  }

  resume(): void {
    this.#giveBack();
  }

  release(): void {}

  end(peer?: InetAddress): void {
    if (peer) this.#pinned.unpin(this.#pinned.keyOf(peer));
    else this.#giveBack();
    if (this.count === 0) this.#host.changed();
  }

  close(): void {
    this.#isClosed = true;
    this.#giveBack();
  }

  #giveBack(): void {
    this.#givenBack = this.#pinned.unpinAll().then(() => this.#host.changed());
  }

  #takeAll(endAt: number): Refused {
    const refused: Refused = { count: 0, error: null };
    for (const error of this.#taking(endAt)) {
      if (error === null) continue;
      refused.count++;
      refused.error ??= error;
    }
    return refused;
  }

  /** Takes one flow after the other, of all that are not here yet; gives null, or why it could not. */
  *#taking(endAt: number): Generator<unknown> {
    const missing = this.#missing();
    if (missing.length === 0) return;
    const { runtime, limits } = this.#host;
    const room = Math.min(
      freeDescriptorCount(runtime) - limits.spareCount,
      limits.pinnedCount - this.#pinned.count,
    );
    for (const [index, peer] of missing.entries()) {
      if (this.#isClosed) return;
      yield index >= room ? noRoom(this.#pinned.count, limits.pinnedCount) : Date.now() >= endAt ? late() : this.#take(peer);
    }
  }

  #take(peer: InetAddress): unknown {
    try {
      this.#pinned.pin(peer);
      return null;
    } catch (error) {
      return isSystemError(error, "EMFILE", "ENFILE", "ENOMEM", "ENOBUFS") ? full(error) : error;
    }
  }

  /** The application may have others by now whenever it is asked. */
  #missing(): InetAddress[] {
    try {
      return [...this.#host.options.peers!()].filter((peer) => !this.#has(peer));
    } catch (error) {
      this.#host.failed(error);
      return [];
    }
  }

  #has(peer: InetAddress): boolean {
    try {
      return this.#pinned.has(this.#pinned.keyOf(peer));
    } catch {
      // It is refused when it is to be taken.
      return false;
    }
  }

  #drain(endAt: number): number {
    if (!this.#own.alive) return 0;
    return drainDatagrams(this.#host.runtime, this.#own.descriptor, this.#host.datagram, () => Date.now() < endAt);
  }
}

/** Flows that could not be taken. */
interface Refused {
  count: number;
  /** Why the first could not. */
  error: unknown;
}

function noRoom(count: number, limit: number): TakeoverError {
  if (count >= limit) return new TakeoverError("ERR_TAKEOVER_LIMIT", `expected at most ${limit} (limit pinnedCount)`);
  return full(undefined);
}

function full(cause: unknown): TakeoverError {
  const message = "expected a free descriptor for each beside spareCount; raise the limit of open files (ulimit -n)";
  return new TakeoverError("ERR_TAKEOVER_NO_ROOM", message, { cause });
}

function late(): TakeoverError {
  return new TakeoverError("ERR_TAKEOVER_TIMEOUT", "expected it to take no longer than a successor waits");
}

function notKept(name: string, { count, error }: Refused): Error {
  const what = `Cannot keep ${count} flows of ${JSON.stringify(name)} with this process, they are the successor's`;
  if (error instanceof SystemError) return new SystemError(error.code, error.errno, error.syscall, what);
  const code = error instanceof TakeoverError ? error.code : "ERR_TAKEOVER_ADDRESS";
  return new TakeoverError(code, `${what}: ${messageOf(error)}`, { cause: error });
}
