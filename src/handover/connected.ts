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
import { mostWaiting } from "../sockets/queues.ts";
import { drainDatagrams } from "../steering/draining.ts";
import { PinnedSockets } from "../steering/pinned.ts";
import type { FlowHost, KernelFlows, TravellingMember } from "./kernel_flows.ts";

/** The part of the time that a successor waits for its lease in which flows are taken. */
const readyingPart = 1 / 4;

/** How long that may take which is done right before the lease: flows may begin without an end. */
const lastMs = 250;

/** When a program that pulls has what its runtime had read before the lease. */
const lateMs = 10;

/** The flows of one endpoint, as one process has them. */
export class ConnectedFlows implements KernelFlows {
  readonly keepsSocket = false;
  readonly #host: FlowHost;
  readonly #own: Endpoint;
  readonly #pinned: PinnedSockets;
  /** Resolves when flows that were given back are, before others are taken. */
  #givenBack: Promise<void> = Promise.resolve();
  /** How many more flows may be taken in this hand-over. */
  #room = 0;
  /** Flows that have ended since a successor was ready: the application may name them for a while. */
  readonly #over = new Set<string>();
  /** Whether flows are taken, in a hand-over that is in progress. */
  #isTaking = false;
  #isClosed = false;

  /** @throws {TakeoverError} As `PinnedSockets`. */
  constructor(host: FlowHost, own: Endpoint) {
    this.#host = host;
    this.#own = own;
    this.#pinned = new PinnedSockets(host.runtime, own.descriptor, host.datagram, host.changed);
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
    this.#over.clear();
    this.#isTaking = true;
    const { runtime, limits } = this.#host;
    const pace = new Pace();
    const endAt = Date.now() + limits.leaseMs * readyingPart;
    this.#room = Math.min(freeDescriptorCount(runtime) - limits.spareCount, limits.pinnedCount - this.#pinned.count);
    for (const _ of this.#taking(endAt)) await pace.keep();
  }

  /**
   * What a flow has sent before it was taken waits in the main socket, and so
   * does what begins a new one. Once nothing begins any more, everything that
   * waits is the successor's.
   */
  lease(): void {
    const endAt = Date.now() + lastMs;
    this.#takeRest(endAt);
    let taken: Taken;
    do {
      this.#drain(endAt);
      taken = this.#takeRest(endAt);
    } while (taken.count > 0 && Date.now() < endAt);
    if (taken.refusedCount > 0) this.#host.failed(notKept(this.#host.name, taken));
    setTimeout(() => this.#takeLate(), lateMs);
  }

  resume(): void {
    this.#isTaking = false;
    this.#giveBack();
  }

  release(): void {}

  end(peer?: InetAddress): void {
    if (peer) {
      const key = this.#pinned.keyOf(peer);
      if (this.#isTaking) this.#over.add(key);
      this.#pinned.unpin(key);
    } else {
      this.#isTaking = false;
      this.#giveBack();
    }
    if (this.count === 0) this.#host.changed();
  }

  close(): void {
    this.#isClosed = true;
    this.#isTaking = false;
    this.#giveBack();
  }

  #giveBack(): void {
    this.#givenBack = this.#pinned.unpinAll();
  }

  /** Deno has had a datagram of a new flow, and the program not yet. */
  #takeLate(): void {
    if (!this.#isTaking) return;
    this.#takeRest(Date.now() + lastMs);
    this.#isTaking = false;
  }

  #takeRest(endAt: number): Taken {
    const taken: Taken = { count: 0, refusedCount: 0, error: null };
    for (const error of this.#taking(endAt)) {
      if (error === null) taken.count++;
      else taken.refusedCount++;
      taken.error ??= error;
    }
    return taken;
  }

  /** Takes one flow after the other, of all that are not here yet; gives null, or why it could not. */
  *#taking(endAt: number): Generator<unknown> {
    let refusal: TakeoverError | null = null;
    for (const peer of this.#missing()) {
      if (this.#isClosed) return;
      if (this.#room <= 0) refusal ??= noRoom(this.#pinned.count, this.#host.limits.pinnedCount);
      else if (Date.now() >= endAt) refusal ??= late();
      yield refusal ?? this.#take(peer);
    }
  }

  #take(peer: InetAddress): unknown {
    try {
      this.#pinned.pin(peer);
      this.#room--;
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
      const key = this.#pinned.keyOf(peer);
      return this.#pinned.has(key) || this.#over.has(key);
    } catch {
      // It is refused when it is to be taken.
      return false;
    }
  }

  /** What waits now, and hardly more: what comes meanwhile is the successor's, or a flow's that is here. */
  #drain(endAt: number): void {
    if (!this.#own.alive) return;
    const { runtime, datagram } = this.#host;
    const { descriptor } = this.#own;
    let count = mostWaiting(runtime, descriptor);
    drainDatagrams(runtime, descriptor, datagram, () => count-- > 0 && Date.now() < endAt);
  }
}

/** What became of the flows that were to be taken. */
interface Taken {
  count: number;
  refusedCount: number;
  /** Why the first could not be. */
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

function notKept(name: string, { refusedCount, error }: Taken): Error {
  const what = `Cannot keep ${refusedCount} flows of ${JSON.stringify(name)} with this process, ` +
    "they are the successor's";
  if (error instanceof SystemError) return new SystemError(error.code, error.errno, error.syscall, what);
  const code = error instanceof TakeoverError ? error.code : "ERR_TAKEOVER_ADDRESS";
  return new TakeoverError(code, `${what}: ${messageOf(error)}`, { cause: error });
}
