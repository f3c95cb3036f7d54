/**
 * Flows that the kernel keeps with the process that has a socket connected to
 * their peers (`pinned.ts`). Those sockets are there before a successor reads:
 * so it is never given a datagram of a flow that it does not know.
 *
 * ```text
 * successor: ready      sockets for all peers, some in each turn, while this process serves on;
 *                       what waits in the main socket is read, and the flows that it begins are taken
 * before lease          the main socket is paused; the same with what has come in the last turn
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
import { takeDatagram } from "../steering/draining.ts";
import { PinnedSockets } from "../steering/pinned.ts";
import type { FlowHost, KernelFlows, TravellingMember } from "./kernel_flows.ts";

/** The part of `leaseMs` that each of both steps may take: flows may begin without an end, and a successor waits. */
const stepPart = 1 / 4;

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
  /** Flows that could not be taken: the successor's, or forwarded by it. */
  readonly #left = new Set<string>();
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

  /** Whether the application has flows that could not be taken. */
  get hasLeft(): boolean {
    return this.#left.size > 0;
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
    this.#left.clear();
    this.#isTaking = true;
    const { runtime, limits } = this.#host;
    const pace = new Pace();
    const endAt = this.#stepEnd();
    this.#room = Math.min(freeDescriptorCount(runtime) - limits.spareCount, limits.pinnedCount - this.#pinned.count);
    for (const _ of this.#taking(endAt)) await pace.keep();
    let count;
    do {
      count = 0;
      for (const _ of this.#reading(endAt)) await pace.keep();
      for (const error of this.#taking(endAt)) {
        if (error === null) count++;
        await pace.keep();
      }
    } while (count > 0 && Date.now() < endAt);
  }

  /**
   * What a flow has sent before it was taken waits in the main socket, and so
   * does what begins a new one. Once nothing begins any more, everything that
   * waits is the successor's.
   */
  lease(): void {
    const endAt = this.#stepEnd();
    this.#takeRest(endAt);
    let taken: Taken;
    do {
      for (const _ of this.#reading(endAt));
      taken = this.#takeRest(endAt);
    } while (taken.count > 0 && Date.now() < endAt);
    if (taken.refusedCount > 0) this.#host.failed(notKept(this.#host.name, taken));
    if (Date.now() >= endAt && this.#waitingCount() > 0) this.#host.failed(notRead(this.#host));
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
      this.#left.delete(key);
      this.#pinned.unpin(key);
    } else {
      this.#isTaking = false;
      this.#giveBack();
    }
    this.#host.changed();
  }

  close(): void {
    this.#isClosed = true;
    this.#isTaking = false;
    this.#giveBack();
  }

  #stepEnd(): number {
    return Date.now() + this.#host.limits.leaseMs * stepPart;
  }

  #giveBack(): void {
    this.#left.clear();
    this.#givenBack = this.#pinned.unpinAll();
  }

  /** Deno has had a datagram of a new flow, and the program not yet. */
  #takeLate(): void {
    if (!this.#isTaking) return;
    this.#takeRest(this.#stepEnd());
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
      const error = refusal ?? this.#take(peer);
      if (error !== null) this.#leave(peer);
      yield error;
    }
  }

  #take(peer: InetAddress): unknown {
    try {
      this.#pinned.pin(peer);
      this.#left.delete(this.#pinned.keyOf(peer));
      this.#room--;
      return null;
    } catch (error) {
      return isSystemError(error, "EMFILE", "ENFILE", "ENOMEM", "ENOBUFS") ? full(error) : error;
    }
  }

  #leave(peer: InetAddress): void {
    try {
      this.#left.add(this.#pinned.keyOf(peer));
    } catch {
      // It is nobody's.
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

  /** Reads what waits now, and hardly more: what comes meanwhile is the successor's, or a flow's that is here. */
  *#reading(endAt: number): Generator<void> {
    const { runtime, datagram } = this.#host;
    for (let count = this.#waitingCount(); count > 0 && this.#own.alive && Date.now() < endAt; count--) {
      if (takeDatagram(runtime, this.#own.descriptor, datagram) === "nothing") return;
      yield;
    }
  }

  #waitingCount(): number {
    return this.#own.alive ? mostWaiting(this.#host.runtime, this.#own.descriptor) : 0;
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

function notRead({ name, limits }: FlowHost): TakeoverError {
  return new TakeoverError(
    "ERR_TAKEOVER_TIMEOUT",
    `Cannot serve everything that waits at ${JSON.stringify(name)} before the successor reads: expected it to take at ` +
      `most ${limits.leaseMs * stepPart} ms (a quarter of the limit leaseMs); what is left is the successor's, ` +
      "also of flows that begin with it",
  );
}
