/**
 * Waiting for raw descriptors in the runtime's own event loop: no thread, no
 * polling, and nothing read, because a runtime's own read drops descriptors.
 *
 * No runtime watches a descriptor that it does not read itself. So it is given
 * a stream of its own to read, the *bell*, whose entry in its epoll is replaced
 * by one for an epoll instance of ours, under the same data:
 *
 * ```text
 * runtime's epoll ── entry: our epoll, data of the bell ──> our epoll ── descriptors waited for
 *        │ ready
 *        └─> the runtime reads the bell: one byte, which always lies there
 *              └─> our epoll says which descriptors are ready; the byte is put back
 * ```
 *
 * The bell itself is in no epoll, so that the byte wakes nobody.
 *
 * @module
 */

import { allocate, type Bytes, viewOf, writeField } from "../c/bytes.ts";
import { errnoOf } from "../c/errno.ts";
import { checked } from "../errors.ts";
import type { ControlStream, Runtime } from "../runtime.ts";
import { disposeAll, OwnedDescriptor } from "../sockets/descriptors.ts";
import { register, type Registration, registrationsOf, unregister } from "../sockets/event_loop.ts";
import { openPair } from "../sockets/socket.ts";

const EPOLL_CLOEXEC = 0o2000000;
const EPOLL_CTL_ADD = 1;
const EPOLL_CTL_DEL = 2;
const EPOLL_CTL_MOD = 3;
const EPOLLIN = 1;
const EPOLLOUT = 4;
const EPOLLRDHUP = 0x2000;
const EPOLLONESHOT = 0x40000000;

/** What a wait is for; errors and ends are for readers and writers alike. */
export const readableEvents: number = EPOLLIN | EPOLLRDHUP;
export const writableEvents: number = EPOLLOUT;

/** Descriptors that one epoll_wait(2) reports; it is asked until there are no more. */
const eventCount = 64;

/** How long the byte stays away after it was read for nothing. */
const emptyRingMs = 5;

/** How often the bell is looked for in the event loop after it was made. */
const bellWaitMs = 1;

/** One wait. */
export interface Waiter {
  readonly events: number;
  readonly keepAlive: boolean;
  resolve(): void;
  reject(error: unknown): void;
}

/** Opens the bell, which the runtime watches itself for a moment, until its entry is known. */
export async function openBell(runtime: Runtime): Promise<Bell> {
  const { abi, libc } = runtime;
  const [end, rope] = openPair(runtime);
  const epoll = new OwnedDescriptor(runtime, libc.epoll_create1(EPOLL_CLOEXEC));
  try {
    checked(abi, "epoll_create1", epoll.number);
    const stream = runtime.adoptStream(end.take());
    const bell = new Bell(runtime, stream, rope.number, epoll.number);
    let entries: Registration[] = [];
    while (entries.length === 0) {
      await new Promise((resolve) => setTimeout(resolve, bellWaitMs));
      entries = registrationsOf(runtime, stream.descriptor);
    }
    unregister(runtime, entries);
    register(runtime, entries.map((entry) => ({ ...entry, descriptor: epoll.number })));
    // They stay open for the life of the process.
    rope.take();
    epoll.take();
    bell.start();
    return bell;
  } catch (error) {
    disposeAll([end, rope, epoll]);
    throw error;
  }
}

/** Everything that is waited for in this process. */
export class Bell {
  readonly #runtime: Runtime;
  readonly #stream: ControlStream;
  /** Its other end. */
  readonly #rope: number;
  readonly #epoll: number;
  readonly #waiters = new Map<number, Set<Waiter>>();
  readonly #events: Bytes;
  readonly #event: Bytes;
  readonly #byte = allocate(1);
  #keepAliveCount = 0;

  constructor(runtime: Runtime, stream: ControlStream, rope: number, epoll: number) {
    this.#runtime = runtime;
    this.#stream = stream;
    this.#rope = rope;
    this.#epoll = epoll;
    this.#events = allocate(eventCount * runtime.abi.epollEvent.size);
    this.#event = allocate(runtime.abi.epollEvent.size);
    stream.start({ data: () => this.#ring(), close() {} });
  }

  /** Puts the byte in and lets the process end, until somebody waits. */
  start(): void {
    this.#stream.keepAlive(false);
    this.#arm();
  }

  /** Begins a wait. */
  add(descriptor: number, waiter: Waiter): void {
    const waiters = this.#waiters.get(descriptor) ?? new Set();
    waiters.add(waiter);
    try {
      this.#watch(descriptor, waiters);
    } catch (error) {
      waiters.delete(waiter);
      throw error;
    }
    this.#waiters.set(descriptor, waiters);
    if (waiter.keepAlive && ++this.#keepAliveCount === 1) this.#stream.keepAlive(true);
  }

  /** Ends a wait; one that has ended is fine. */
  remove(descriptor: number, waiter: Waiter): void {
    const waiters = this.#waiters.get(descriptor);
    if (!waiters?.delete(waiter)) return;
    if (waiter.keepAlive && --this.#keepAliveCount === 0) this.#stream.keepAlive(false);
    if (waiters.size > 0) return;
    this.#waiters.delete(descriptor);
    // A descriptor that is closed by now has no entry any more.
    this.#runtime.libc.epoll_ctl(this.#epoll, EPOLL_CTL_DEL, descriptor, this.#event);
  }

  /** Ends every wait for a descriptor. */
  stop(descriptor: number, error: () => Error): void {
    for (const waiter of [...this.#waiters.get(descriptor) ?? []]) waiter.reject(error());
  }

  /**
   * Whether there is an entry already is not for us to know: one outlives its
   * descriptor when a copy of the socket does, and goes with it otherwise, while
   * the number becomes another socket's.
   */
  #watch(descriptor: number, waiters: ReadonlySet<Waiter>): void {
    const { abi, libc } = this.#runtime;
    let events = EPOLLONESHOT;
    for (const waiter of waiters) events |= waiter.events;
    const view = viewOf(this.#event);
    writeField(view, abi.epollEvent.events, events);
    writeField(view, abi.epollEvent.data, descriptor);
    const added = libc.epoll_ctl(this.#epoll, EPOLL_CTL_ADD, descriptor, this.#event);
    const isThere = added === -errnoOf(abi.platform, "EEXIST");
    checked(abi, "epoll_ctl", isThere ? libc.epoll_ctl(this.#epoll, EPOLL_CTL_MOD, descriptor, this.#event) : added);
  }

  /**
   * The runtime has read the byte. It is not put back at once: Deno reads on
   * until there is nothing, two turns later, and would read it again and again.
   * A ring for nothing is a sign of that, so that Deno is given more time.
   */
  #ring(): void {
    if (this.#dispatch()) setImmediate(() => setImmediate(() => this.#arm()));
    else setTimeout(() => this.#arm(), emptyRingMs);
  }

  /** What became ready while the byte was away rang nobody. */
  #arm(): void {
    const result = this.#runtime.libc.write(this.#rope, this.#byte, 1);
    checked(this.#runtime.abi, "write", result);
    this.#dispatch();
  }

  /** Whether anything was ready. */
  #dispatch(): boolean {
    const { abi, libc } = this.#runtime;
    const { size, events, data } = abi.epollEvent;
    const view = viewOf(this.#events);
    let total = 0;
    for (let count = eventCount; count === eventCount; total += count) {
      do count = libc.epoll_wait(this.#epoll, this.#events, eventCount, 0);
      while (count === -errnoOf(abi.platform, "EINTR"));
      count = Math.max(0, count);
      for (let index = 0; index < count; index++) {
        const at = index * size;
        this.#wake(Number(view.getBigUint64(at + data.offset, true)), view.getUint32(at + events.offset, true));
      }
    }
    return total > 0;
  }

  #wake(descriptor: number, events: number): void {
    const waiters = this.#waiters.get(descriptor);
    if (!waiters) return;
    const isOver = (events & ~(EPOLLIN | EPOLLOUT | EPOLLRDHUP)) !== 0;
    for (const waiter of [...waiters]) {
      if (isOver || (waiter.events & events) !== 0) waiter.resolve();
    }
    if (waiters.size === 0) return;
    try {
      this.#watch(descriptor, waiters);
    } catch (error) {
      // It is closed, and a copy keeps its socket open: no affair of those who wait for others.
      for (const waiter of [...waiters]) waiter.reject(error);
    }
  }
}
