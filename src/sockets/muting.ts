/**
 * Registrations of which nothing is read: a socket whose other events the
 * runtime still hears.
 *
 * A datagram socket is muted and not taken out, because its native object sends
 * while it reads nothing. When the send buffer is full libuv changes the
 * registration, and aborts the process if that has gone (src/unix/linux.c,
 * uv__io_poll). It reads again then, until it is muted anew: no datagram is lost
 * by it, since each is read once.
 *
 * @module
 */

import { allocate, viewOf, writeField } from "../c/bytes.ts";
import { errnoOf } from "../c/errno.ts";
import { checked } from "../errors.ts";
import type { Runtime } from "../runtime.ts";
import { register, type Registration } from "./event_loop.ts";

const EPOLL_CTL_MOD = 3;
const EPOLLIN = 1;
const EPOLLOUT = 4;
const EPOLLET = 0x80000000;

/** Puts registrations in, muted. */
export function registerMuted(runtime: Runtime, registrations: readonly Registration[]): void {
  register(runtime, registrations.map(muted));
}

/** Mutes registrations: what comes waits in the socket. */
export function mute(runtime: Runtime, registrations: readonly Registration[]): void {
  change(runtime, registrations.map(muted));
}

/** Ends that; what waits is told of at once, edge-triggered or not. */
export function unmute(runtime: Runtime, registrations: readonly Registration[]): void {
  change(runtime, registrations);
}

/** Whether a runtime will leave these as they are: Bun begins by waiting for room to send, once. */
export function isAtRest(registrations: readonly Registration[]): boolean {
  return registrations.length > 0 &&
    registrations.every(({ events }) => (events & EPOLLOUT) === 0 || events >= EPOLLET);
}

function muted(registration: Registration): Registration {
  return { ...registration, events: (registration.events & ~EPOLLIN) >>> 0 };
}

function change(runtime: Runtime, registrations: readonly Registration[]): void {
  const { abi, libc } = runtime;
  for (const registration of registrations) {
    const event = allocate(abi.epollEvent.size);
    writeField(viewOf(event), abi.epollEvent.events, registration.events);
    writeField(viewOf(event), abi.epollEvent.data, registration.data);
    const result = libc.epoll_ctl(registration.epoll, EPOLL_CTL_MOD, registration.descriptor, event);
    if (result === -errnoOf(abi.platform, "ENOENT")) register(runtime, [registration]);
    else checked(abi, "epoll_ctl", result);
  }
}
