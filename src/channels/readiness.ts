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
 * The bell itself is in no epoll, so that the byte wakes nobody. Where there is
 * no epoll (macOS, untested) descriptors are looked at again and again.
 *
 * @module
 */

import { allocate, type Bytes, viewOf, writeField } from "../c/bytes.ts";
import { errnoOf } from "../c/errno.ts";
import { checked, TakeoverError } from "../errors.ts";
import type { ControlStream, Runtime } from "../runtime.ts";
import { disposeAll, OwnedDescriptor, owning } from "../sockets/descriptors.ts";
import { canPause, register, type Registration, registrationsOf, unregister } from "../sockets/event_loop.ts";
import { openPair } from "../sockets/socket.ts";

const EPOLL_CLOEXEC = 0o2000000;
const EPOLL_CTL_ADD = 1;
const EPOLL_CTL_DEL = 2;
const EPOLL_CTL_MOD = 3;
const EPOLLIN = 1;
const EPOLLOUT = 4;
const EPOLLRDHUP = 0x2000;
const EPOLLONESHOT = 0x40000000;

/** Errors and ends are for readers and writers alike. */
const readableEvents = EPOLLIN | EPOLLRDHUP;

/** Descriptors that one epoll_wait(2) reports; it is asked until there are no more. */
const eventCount = 64;

/** How long the byte stays away after it was read for nothing. */
const emptyRingMs = 5;

/** How often the bell is looked for in the event loop after it was made. */
const bellWaitMs = 1;
/** How often a descriptor is looked at where there is no epoll: at first, and at most. */
const firstLookMs = 1;
const longestLookMs = 20;

/** The longest time of a timer; a longer one would end at once. */
const longestTimerMs = 2 ** 31 - 1;

/** How long to wait, and what ends the wait. */
export interface WaitOptions {
  /** Ends the wait; its reason is thrown. */
  readonly signal?: AbortSignal | undefined;
  /** The longest wait in milliseconds; without it there is none. */
  readonly timeoutMs?: number | undefined;
  /** Whether the process goes on for this wait alone; true when left out. */
  readonly keepAlive?: boolean | undefined;
}

/** What a descriptor is waited for. */
type Direction = "readable" | "writable";

/** One wait. */
interface Waiter {
  readonly events: number;
  readonly keepAlive: boolean;
  resolve(): void;
  reject(error: unknown): void;
}

/**
 * Waits until reading would not block: bytes, a connection to accept, the end
 * of the stream, or an error are there. It may be a false alarm.
 *
 * @param descriptor A socket, pipe, pidfd or whatever else poll(2) knows.
 * @throws {TakeoverError} `ERR_TAKEOVER_TIMEOUT`, or `ERR_TAKEOVER_CLOSED` when
 *   this process closes the descriptor meanwhile with {@linkcode stopWaiting}.
 * @throws {SystemError} `EPERM` for a file that cannot be waited for, `EBADF`.
 */
export function waitReadable(runtime: Runtime, descriptor: number, options: WaitOptions = {}): Promise<void> {
  return wait(runtime, descriptor, "readable", options);
}

/** Waits until writing would not block, in the same way. */
export function waitWritable(runtime: Runtime, descriptor: number, options: WaitOptions = {}): Promise<void> {
  return wait(runtime, descriptor, "writable", options);
}

/** Ends every wait for a descriptor; to be called before it is closed. */
export function stopWaiting(runtime: Runtime, descriptor: number): void {
  for (const wait of earlyWaits) if (wait.descriptor === descriptor) wait.isStopped = true;
  opened.get(runtime)?.stop(descriptor);
}

/** Whether the other side has ended its writing (`EPOLLRDHUP`); unread messages may be left. Linux only. */
export function isShutDown(runtime: Runtime, descriptor: number): boolean {
  const { abi, libc } = runtime;
  const event = allocate(abi.epollEvent.size);
  writeField(viewOf(event), abi.epollEvent.events, EPOLLRDHUP);
  return owning(new OwnedDescriptor(runtime, libc.epoll_create1(EPOLL_CLOEXEC)), ({ number }) => {
    checked(abi, "epoll_create1", number);
    checked(abi, "epoll_ctl", libc.epoll_ctl(number, EPOLL_CTL_ADD, descriptor, event));
    return checked(abi, "epoll_wait", libc.epoll_wait(number, event, 1, 0)) > 0;
  });
}

/** Opens what waiting needs, before the first wait does. */
export async function openReadiness(runtime: Runtime): Promise<void> {
  if (canPause(runtime)) await readinessOf(runtime);
}

/** Waits a while; the signal ends it. */
export async function pause(ms: number, { signal, timeoutMs = ms }: WaitOptions = {}): Promise<void> {
  signal?.throwIfAborted();
  await new Promise<void>((resolve, reject) => {
    const end = (): void => {
      clearTimeout(timer);
      signal?.removeEventListener("abort", end);
      if (signal?.aborted) reject(signal.reason);
      else resolve();
    };
    const timer = setTimeout(end, Math.max(0, Math.min(ms, timeoutMs)));
    signal?.addEventListener("abort", end, { once: true });
  });
}

/**
 * Waits for the turn behind others, which comes in any case; the signal and the
 * time limit end the wait, and not theirs.
 *
 * @param others Never rejects.
 */
export function waitForTurn(others: Promise<unknown>, options: WaitOptions): Promise<void> {
  return new Promise<void>((resolve, reject) => {
    const late = (timeoutMs: number): TakeoverError =>
      new TakeoverError("ERR_TAKEOVER_TIMEOUT", `Cannot begin within ${timeoutMs} ms: expected the calls before it to end`);
    if (options.signal?.aborted) return reject(options.signal.reason);
    const stop = limited(options, reject, late);
    others.then(() => (stop(), resolve()));
  });
}

async function wait(runtime: Runtime, descriptor: number, direction: Direction, options: WaitOptions): Promise<void> {
  options.signal?.throwIfAborted();
  if (!canPause(runtime)) return await lookAgain(direction, options);
  const readiness = opened.get(runtime);
  if (readiness) return await waitWith(readiness, descriptor, direction, options);
  const early = { descriptor, isStopped: false };
  earlyWaits.add(early);
  try {
    const readiness = await readinessOf(runtime);
    options.signal?.throwIfAborted();
    if (early.isStopped) throw stopped();
    await waitWith(readiness, descriptor, direction, options);
  } finally {
    earlyWaits.delete(early);
  }
}

/** Where nothing tells, a descriptor is looked at again a little later. */
async function lookAgain(direction: Direction, options: WaitOptions): Promise<void> {
  if (options.timeoutMs !== undefined && options.timeoutMs <= 0) throw late(direction, options.timeoutMs);
  await pause(firstLookMs + Math.random() * longestLookMs, options);
}

/** Registered before this returns. */
function waitWith(readiness: Readiness, descriptor: number, direction: Direction, options: WaitOptions): Promise<void> {
  return new Promise<void>((resolve, reject) => {
    const end = (): void => {
      readiness.remove(descriptor, waiter);
      stop();
    };
    const waiter: Waiter = {
      events: direction === "readable" ? readableEvents : EPOLLOUT,
      keepAlive: options.keepAlive ?? true,
      resolve: () => (end(), resolve()),
      reject: (error) => (end(), reject(error)),
    };
    try {
      readiness.add(descriptor, waiter);
    } catch (error) {
      return reject(error);
    }
    const stop = limited(options, waiter.reject, (timeoutMs) => late(direction, timeoutMs));
  });
}

/** Calls `end` with the signal's reason, or once the time is over, until what it gives is called. */
function limited(
  options: WaitOptions,
  end: (error: unknown) => void,
  lateness: (timeoutMs: number) => Error,
): () => void {
  const { signal, timeoutMs, keepAlive = true } = options;
  const abort = (): void => end(signal!.reason);
  signal?.addEventListener("abort", abort, { once: true });
  const timer = timeoutMs === undefined
    ? undefined
    : setTimeout(() => end(lateness(timeoutMs)), Math.min(timeoutMs, longestTimerMs));
  if (!keepAlive) (timer as { unref?(): void } | undefined)?.unref?.();
  return () => {
    if (timer !== undefined) clearTimeout(timer);
    signal?.removeEventListener("abort", abort);
  };
}

function late(direction: Direction, timeoutMs: number): TakeoverError {
  return new TakeoverError("ERR_TAKEOVER_TIMEOUT", `The descriptor was not ${direction} within ${timeoutMs} ms`);
}

/** Waits that began before there was a bell: until then a descriptor can be closed, and its number another's. */
const earlyWaits = new Set<{ readonly descriptor: number; isStopped: boolean }>();

function stopped(): TakeoverError {
  return new TakeoverError("ERR_TAKEOVER_CLOSED", "The descriptor was closed while it was waited for");
}

const opening = new WeakMap<Runtime, Promise<Readiness>>();
const opened = new WeakMap<Runtime, Readiness>();

function readinessOf(runtime: Runtime): Promise<Readiness> {
  let found = opening.get(runtime);
  if (!found) {
    found = openFor(runtime);
    found.catch(() => opening.delete(runtime));
    opening.set(runtime, found);
  }
  return found;
}

/** The bell is watched by the runtime for a moment, until its entry is known. */
async function openFor(runtime: Runtime): Promise<Readiness> {
  const { abi, libc } = runtime;
  const [end, rope] = openPair(runtime);
  const epoll = new OwnedDescriptor(runtime, libc.epoll_create1(EPOLL_CLOEXEC));
  try {
    checked(abi, "epoll_create1", epoll.number);
    const bell = runtime.adoptStream(end.take());
    const readiness = new Readiness(runtime, bell, rope.number, epoll.number);
    let entries: Registration[] = [];
    while (entries.length === 0) {
      await pause(bellWaitMs);
      entries = registrationsOf(runtime, bell.descriptor);
    }
    unregister(runtime, entries);
    register(runtime, entries.map((entry) => ({ ...entry, descriptor: epoll.number })));
    // They stay open for the life of the process.
    rope.take();
    epoll.take();
    readiness.start();
    opened.set(runtime, readiness);
    return readiness;
  } catch (error) {
    disposeAll([end, rope, epoll]);
    throw error;
  }
}

/** Everything that is waited for in this process. */
class Readiness {
  readonly #runtime: Runtime;
  readonly #bell: ControlStream;
  /** The bell's other end. */
  readonly #rope: number;
  readonly #epoll: number;
  readonly #waiters = new Map<number, Set<Waiter>>();
  readonly #events: Bytes;
  readonly #event: Bytes;
  readonly #byte = allocate(1);
  #keepAliveCount = 0;

  constructor(runtime: Runtime, bell: ControlStream, rope: number, epoll: number) {
    this.#runtime = runtime;
    this.#bell = bell;
    this.#rope = rope;
    this.#epoll = epoll;
    this.#events = allocate(eventCount * runtime.abi.epollEvent.size);
    this.#event = allocate(runtime.abi.epollEvent.size);
    bell.start({ data: () => this.#ring(), close() {} });
  }

  /** Puts the byte in and lets the process end, until somebody waits. */
  start(): void {
    this.#bell.keepAlive(false);
    this.#arm();
  }

  add(descriptor: number, waiter: Waiter): void {
    const waiters = this.#waiters.get(descriptor) ?? new Set();
    const operation = waiters.size === 0 ? EPOLL_CTL_ADD : EPOLL_CTL_MOD;
    waiters.add(waiter);
    try {
      this.#watch(descriptor, waiters, operation);
    } catch (error) {
      waiters.delete(waiter);
      throw error;
    }
    this.#waiters.set(descriptor, waiters);
    if (waiter.keepAlive && ++this.#keepAliveCount === 1) this.#bell.keepAlive(true);
  }

  remove(descriptor: number, waiter: Waiter): void {
    const waiters = this.#waiters.get(descriptor);
    if (!waiters?.delete(waiter)) return;
    if (waiter.keepAlive && --this.#keepAliveCount === 0) this.#bell.keepAlive(false);
    if (waiters.size > 0) return;
    this.#waiters.delete(descriptor);
    // A descriptor that is closed by now has no entry any more.
    this.#runtime.libc.epoll_ctl(this.#epoll, EPOLL_CTL_DEL, descriptor, this.#event);
  }

  stop(descriptor: number): void {
    for (const waiter of [...this.#waiters.get(descriptor) ?? []]) waiter.reject(stopped());
  }

  #watch(descriptor: number, waiters: ReadonlySet<Waiter>, operation: number): void {
    const { abi, libc } = this.#runtime;
    let events = EPOLLONESHOT;
    for (const waiter of waiters) events |= waiter.events;
    const view = viewOf(this.#event);
    writeField(view, abi.epollEvent.events, events);
    writeField(view, abi.epollEvent.data, descriptor);
    const result = libc.epoll_ctl(this.#epoll, operation, descriptor, this.#event);
    // An entry that outlived its descriptor, because a copy of the socket did.
    const isStale = operation === EPOLL_CTL_ADD && result === -errnoOf(abi.platform, "EEXIST");
    if (isStale) return this.#watch(descriptor, waiters, EPOLL_CTL_MOD);
    checked(abi, "epoll_ctl", result);
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
    if (waiters.size > 0) this.#watch(descriptor, waiters, EPOLL_CTL_MOD);
  }
}
