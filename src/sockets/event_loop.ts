/**
 * What a runtime's event loop knows about a descriptor, read from and written
 * to the kernel (epoll(7)): how a native object is paused, resumed, and given
 * another socket without its knowledge. Linux only; kqueue does not tell.
 *
 * `/proc/self/fdinfo/<epoll fd>` (fs/eventpoll.c, ep_show_fdinfo) has a line
 * for every registration:
 *
 * ```text
 * tfd:        9 events: 80002019 data:     7f00c0ffee00  pos:0 ino:d6 sdev:9
 * ```
 *
 * @module
 */

import { allocate, viewOf, writeField } from "../c/bytes.ts";
import { linkOf, openDescriptors, readFile } from "./descriptors.ts";
import { errnoOf } from "../c/errno.ts";
import { checked } from "../errors.ts";
import type { Runtime } from "../runtime.ts";

const EPOLL_CTL_ADD = 1;
const EPOLL_CTL_DEL = 2;

/** One descriptor's entry in one epoll instance. */
export interface Registration {
  /** The descriptor of the epoll instance. */
  readonly epoll: number;
  /** The descriptor that is watched. */
  readonly descriptor: number;
  /** The events waited for, a mask of `EPOLLIN` and the like. */
  readonly events: number;
  /** What the runtime gets back with an event: a pointer, a token or a number. */
  readonly data: bigint;
}

/** Whether this platform's event loops can be read and written. */
export function canPause(runtime: Runtime): boolean {
  return runtime.abi.platform === "linux";
}

/**
 * The registration of a descriptor, in the first epoll instance that has one.
 * Deno shows two epoll descriptors, which are copies of one instance.
 *
 * @returns One registration, or none when no event loop watches the descriptor.
 */
export function registrationsOf(runtime: Runtime, descriptor: number): Registration[] {
  for (const epoll of openDescriptors(runtime)) {
    if (linkOf(runtime, epoll) !== "anon_inode:[eventpoll]") continue;
    const found = parseRegistrations(epoll, readFile(runtime, `/proc/self/fdinfo/${epoll}`), descriptor);
    if (found.length > 0) return found;
  }
  return [];
}

/** The `tfd:` lines of an epoll descriptor's fdinfo, all or those of one descriptor. */
export function parseRegistrations(epoll: number, fdinfo: string, wanted?: number): Registration[] {
  const number = wanted === undefined ? "\\d+" : String(wanted);
  return Array.from(
    fdinfo.matchAll(new RegExp(`^tfd:\\s*(${number})\\s+events:\\s*([0-9a-f]+)\\s+data:\\s*([0-9a-f]+)`, "gm")),
    ([, descriptor, events, data]) => ({
      epoll,
      descriptor: Number(descriptor),
      events: parseInt(events!, 16),
      data: BigInt(`0x${data}`),
    }),
  );
}

/**
 * Takes registrations out: from then on the native object hears of nothing.
 *
 * @returns Those that were taken out, to be put back with {@linkcode register}.
 */
export function unregister(runtime: Runtime, registrations: readonly Registration[]): Registration[] {
  const { abi, libc } = runtime;
  return registrations.filter(({ epoll, descriptor }) => {
    const result = libc.epoll_ctl(epoll, EPOLL_CTL_DEL, descriptor, allocate(abi.epollEvent.size));
    if (result === -errnoOf(abi.platform, "ENOENT")) return false;
    checked(abi, "epoll_ctl", result);
    return true;
  });
}

/** Puts registrations in, for whatever socket their descriptor names now. */
export function register(runtime: Runtime, registrations: readonly Registration[]): void {
  const { abi, libc } = runtime;
  for (const { epoll, descriptor, events, data } of registrations) {
    const event = allocate(abi.epollEvent.size);
    writeField(viewOf(event), abi.epollEvent.events, events);
    writeField(viewOf(event), abi.epollEvent.data, data);
    const result = libc.epoll_ctl(epoll, EPOLL_CTL_ADD, descriptor, event);
    // Already there: the runtime has put it in itself.
    if (result !== -errnoOf(abi.platform, "EEXIST")) checked(abi, "epoll_ctl", result);
  }
}
