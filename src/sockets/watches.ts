/**
 * Registrations of a connection, where there may be thousands: the epoll
 * instances are looked for once, and a registration is taken out of all of
 * them without being read.
 *
 * @module
 */

import { allocate } from "../c/bytes.ts";
import { errnoOf } from "../c/errno.ts";
import type { Runtime } from "../runtime.ts";
import { linkOf, openDescriptors, readFile } from "./descriptors.ts";
import { canPause, parseRegistrations, type Registration } from "./event_loop.ts";

const EPOLL_CTL_DEL = 2;

const eventpoll = "anon_inode:[eventpoll]";

/** The epoll descriptors of each runtime, as they were last found. */
const known = new WeakMap<Runtime, readonly number[]>();

function findEpolls(runtime: Runtime): readonly number[] {
  const epolls = openDescriptors(runtime).filter((descriptor) => linkOf(runtime, descriptor) === eventpoll);
  known.set(runtime, epolls);
  return epolls;
}

/**
 * The registration of a descriptor, in the first epoll instance that has one.
 *
 * @returns One registration, or none when no event loop watches the descriptor.
 */
export function watchesOf(runtime: Runtime, descriptor: number): Registration[] {
  const remembered = (known.get(runtime) ?? []).filter((epoll) => linkOf(runtime, epoll) === eventpoll);
  const found = firstOf(runtime, remembered, descriptor);
  return found.length > 0 ? found : firstOf(runtime, findEpolls(runtime), descriptor);
}

function firstOf(runtime: Runtime, epolls: readonly number[], descriptor: number): Registration[] {
  for (const epoll of epolls) {
    const found = entriesOf(runtime, epoll, descriptor);
    if (found.length === 0) continue;
    // The next one is most likely there too.
    known.set(runtime, [epoll, ...epolls.filter((other) => other !== epoll)]);
    return found;
  }
  return [];
}

function entriesOf(runtime: Runtime, epoll: number, descriptor?: number): Registration[] {
  return parseRegistrations(epoll, readFile(runtime, `/proc/self/fdinfo/${epoll}`), descriptor);
}

/**
 * The registrations of many descriptors, in the first epoll instance that has
 * one of each. The kernel writes down a whole instance for every question, so
 * there is one question for all.
 */
export function watchesOfAll(runtime: Runtime, descriptors: Iterable<number>): Map<number, Registration> {
  const found = new Map<number, Registration>();
  const missing = new Set(descriptors);
  const look = (epolls: readonly number[]) => {
    for (const epoll of epolls) {
      if (missing.size === 0) return;
      for (const entry of entriesAmong(runtime, epoll, missing)) {
        found.set(entry.descriptor, entry);
        missing.delete(entry.descriptor);
      }
    }
  };
  look((known.get(runtime) ?? []).filter((epoll) => linkOf(runtime, epoll) === eventpoll));
  if (missing.size > 0) look(findEpolls(runtime));
  return found;
}

/** To read all lines at once costs a fraction of what it costs to look at each. */
function entriesAmong(runtime: Runtime, epoll: number, wanted: ReadonlySet<number>): Registration[] {
  return entriesOf(runtime, epoll).filter(({ descriptor }) => wanted.has(descriptor));
}

/** Every descriptor that an event loop of this process watches. */
export function watchedDescriptors(runtime: Runtime): ReadonlySet<number> {
  if (!canPause(runtime)) return new Set();
  return new Set(findEpolls(runtime).flatMap((epoll) => entriesOf(runtime, epoll)).map(({ descriptor }) => descriptor));
}

/** Takes a descriptor out of every event loop. */
export function unwatch(runtime: Runtime, descriptor: number): void {
  if (!canPause(runtime)) return;
  const epolls = known.get(runtime) ?? findEpolls(runtime);
  const results = epolls.map((epoll) => remove(runtime, epoll, descriptor));
  // What was an epoll instance is none any more.
  const { platform } = runtime.abi;
  const isStale = results.some((result) =>
    result === -errnoOf(platform, "EINVAL") || result === -errnoOf(platform, "EBADF")
  );
  if (!isStale) return;
  for (const epoll of findEpolls(runtime)) remove(runtime, epoll, descriptor);
}

/** 0, or -errno: ENOENT when the descriptor is not in that one. */
function remove({ abi, libc }: Runtime, epoll: number, descriptor: number): number {
  return libc.epoll_ctl(epoll, EPOLL_CTL_DEL, descriptor, allocate(abi.epollEvent.size));
}
