/**
 * Waiting for raw descriptors in the runtime's own event loop (bell.ts), with
 * a time limit and a signal. Where there is no epoll (macOS, untested)
 * descriptors are looked at again and again.
 *
 * @module
 */

import { allocate, viewOf } from "../c/bytes.ts";
import { errnoOf } from "../c/errno.ts";
import { checked, TakeoverError } from "../errors.ts";
import type { Runtime } from "../runtime.ts";
import { canPause } from "../sockets/event_loop.ts";
import { type Bell, openBell, readableEvents, type Waiter, writableEvents } from "./bell.ts";

const POLLRDHUP = 0x2000;

/** `struct pollfd`: descriptor 4 | events asked for 2 | events found 2. */
const pollfdSize = 8;
const eventsOffset = 4;

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

/** When a wait that begins now is over, as `Date.now` counts. */
export function deadlineOf({ timeoutMs }: WaitOptions): number {
  if (Number.isNaN(timeoutMs)) {
    throw new TakeoverError("ERR_TAKEOVER_RANGE", "Cannot wait for NaN ms: expected a time, or none to wait for as long as it takes");
  }
  return timeoutMs === undefined ? Infinity : Date.now() + timeoutMs;
}

/** Ends every wait for a descriptor; to be called before it is closed. */
export function stopWaiting(runtime: Runtime, descriptor: number): void {
  for (const wait of earlyWaits) if (wait.descriptor === descriptor) wait.isStopped = true;
  opened.get(runtime)?.stop(descriptor, stopped);
}

/**
 * Whether the other side has ended its writing (`POLLRDHUP`); unread messages
 * may be left. It needs no descriptor of its own. Linux only.
 */
export function isShutDown({ abi, libc }: Runtime, descriptor: number): boolean {
  const asked = allocate(pollfdSize);
  const view = viewOf(asked);
  view.setInt32(0, descriptor, true);
  view.setInt16(eventsOffset, POLLRDHUP, true);
  let count = libc.poll(asked, 1, 0);
  while (count === -errnoOf(abi.platform, "EINTR")) count = libc.poll(asked, 1, 0);
  return checked(abi, "poll", count) > 0;
}

/** Opens what waiting needs, before the first wait does. */
export async function openReadiness(runtime: Runtime): Promise<void> {
  if (canPause(runtime)) await bellOf(runtime);
}

/** Waits a while; the signal ends it. */
export async function pause(
  ms: number,
  { signal, timeoutMs = ms, keepAlive = true }: WaitOptions = {},
): Promise<void> {
  signal?.throwIfAborted();
  await new Promise<void>((resolve, reject) => {
    const end = (): void => {
      clearTimeout(timer);
      signal?.removeEventListener("abort", end);
      if (signal?.aborted) reject(signal.reason);
      else resolve();
    };
    const timer = setTimeout(end, Math.max(0, Math.min(ms, timeoutMs)));
    if (!keepAlive) letGo(timer);
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
  const late = (timeoutMs: number): TakeoverError =>
    new TakeoverError("ERR_TAKEOVER_TIMEOUT", `Cannot begin within ${timeoutMs} ms: expected the calls before it to end`);
  return waitFor(others, options, late).then(() => {});
}

/**
 * Waits for what something gives; the signal and the time limit end the wait,
 * and not that.
 *
 * @param lateness Makes the error for when the time is over.
 */
export function waitFor<T>(
  something: Promise<T>,
  options: WaitOptions,
  lateness: (timeoutMs: number) => Error = (timeoutMs) =>
    new TakeoverError("ERR_TAKEOVER_TIMEOUT", `Cannot go on within ${timeoutMs} ms: expected what is waited for to end`),
): Promise<T> {
  return new Promise<T>((resolve, reject) => {
    if (options.signal?.aborted) return reject(options.signal.reason);
    const stop = limited(options, (error) => (stop(), reject(error)), lateness);
    something.then((value) => (stop(), resolve(value)), (error) => (stop(), reject(error)));
  });
}

async function wait(runtime: Runtime, descriptor: number, direction: Direction, options: WaitOptions): Promise<void> {
  options.signal?.throwIfAborted();
  if (!canPause(runtime)) return await lookAgain(direction, options);
  const bell = opened.get(runtime);
  if (bell) return await waitWith(bell, descriptor, direction, options);
  const early = { descriptor, isStopped: false };
  earlyWaits.add(early);
  try {
    const bell = await bellOf(runtime);
    options.signal?.throwIfAborted();
    if (early.isStopped) throw stopped();
    await waitWith(bell, descriptor, direction, options);
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
function waitWith(bell: Bell, descriptor: number, direction: Direction, options: WaitOptions): Promise<void> {
  return new Promise<void>((resolve, reject) => {
    const end = (): void => {
      bell.remove(descriptor, waiter);
      stop();
    };
    const waiter: Waiter = {
      events: direction === "readable" ? readableEvents : writableEvents,
      keepAlive: options.keepAlive ?? true,
      resolve: () => (end(), resolve()),
      reject: (error) => (end(), reject(error)),
    };
    try {
      bell.add(descriptor, waiter);
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
  if (!keepAlive) letGo(timer);
  return () => {
    if (timer !== undefined) clearTimeout(timer);
    signal?.removeEventListener("abort", abort);
  };
}

function late(direction: Direction, timeoutMs: number): TakeoverError {
  return new TakeoverError("ERR_TAKEOVER_TIMEOUT", `Cannot go on within ${timeoutMs} ms: expected the descriptor to be ${direction}`);
}

/** Waits that began before there was a bell: until then a descriptor can be closed, and its number another's. */
const earlyWaits = new Set<{ readonly descriptor: number; isStopped: boolean }>();

function stopped(): TakeoverError {
  return new TakeoverError("ERR_TAKEOVER_CLOSED", "Cannot wait any longer: the descriptor has been closed meanwhile");
}

const opening = new WeakMap<Runtime, Promise<Bell>>();
const opened = new WeakMap<Runtime, Bell>();

async function bellOf(runtime: Runtime): Promise<Bell> {
  let found = opening.get(runtime);
  if (!found) {
    found = openBell(runtime);
    found.then((bell) => opened.set(runtime, bell), () => opening.delete(runtime));
    opening.set(runtime, found);
  }
  return await found;
}

/** A timer that does not keep the process alive, where the runtime has such. */
function letGo(timer: ReturnType<typeof setTimeout> | undefined): void {
  (timer as { unref?(): void } | undefined)?.unref?.();
}
