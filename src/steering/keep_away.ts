/**
 * Keeping new connections away from some listeners of a SO_REUSEPORT group, so
 * that these can be closed.
 *
 * ```text
 * a loaded program (SK_REUSEPORT)   chooses among sockets of a map, whatever the kernel's order; what waits at a
 *                                   listener that closes goes on to those
 * a classic one                     chooses among slots; the order is found out before, and followed afterwards
 * ```
 *
 * The first needs CAP_BPF, and every listener that stays; the second neither.
 *
 * @module
 */

import { SystemError, TakeoverError } from "../errors.ts";
import type { Runtime } from "../runtime.ts";
import { cookieOf } from "../sockets/socket.ts";
import { detachFromGroup, whole } from "./attach.ts";
import { answer, type Line } from "./bpf.ts";
import { everythingTo } from "./programs.ts";
import { type GroupMember, migratesConnections, ReuseportGroup } from "./reuseport.ts";
import { steerAmong } from "./sk_reuseport.ts";

/** How long a packet of our own hardly ever takes within one machine. */
const quickMs = 50;

/** By which program new connections are kept away from some listeners of a group. */
export interface Steering {
  /** `loaded`: one of SK_REUSEPORT; `classic`: one that anybody may attach, which follows the kernel's order. */
  readonly program: "loaded" | "classic";
  /** Why it is not a loaded one: an errno's name, for instance `EPERM` without CAP_BPF, or null when none was tried. */
  readonly code: string | null;
  /** Whether what waits at a listener that closes goes on to the others by itself. */
  readonly migrates: boolean;
}

/** How new connections are kept away. */
export interface KeepingAway {
  readonly steering: Steering;
  /** A listener of this process has joined, and is kept out, or has another number. */
  joined(descriptor: number): void;
  /** This process has closed a listener, of which another may have a copy. */
  closed(cookie: string): void;
  /** Listeners of others have left: the order is found out anew. */
  refresh(): Promise<void>;
  /** The kernel's hash chooses again, among all that are there. */
  end(): void;
}

/**
 * Begins.
 *
 * @param descriptors Listeners of this process in one group, which stay their owners'.
 * @param isKept Whether a listener goes on, by its `SO_COOKIE`.
 * @throws {TakeoverError} `ERR_TAKEOVER_STATE` when the kernel's order cannot be
 *   told, `ERR_TAKEOVER_DESCRIPTOR` for what is no group,
 *   `ERR_TAKEOVER_UNSUPPORTED` when the kernel refuses the program.
 */
export async function keepAwayFromOthers(
  runtime: Runtime,
  descriptors: readonly number[],
  isKept: (cookie: string) => boolean,
): Promise<KeepingAway> {
  const group = new ReuseportGroup(runtime, descriptors);
  const kept = group.members.filter(({ cookie }) => isKept(cookie));
  // A stranger's listener cannot be put into a map.
  if (kept.length === 0 || hasStrangers(group, isKept)) return await bySlots(runtime, group, isKept, null);
  try {
    return byMap(runtime, group, kept);
  } catch (error) {
    // EPERM: it may not. EBUSY: the map of the process before has not gone yet.
    if (error instanceof SystemError) return await bySlots(runtime, group, isKept, error.code);
    throw error;
  }
}

/** @throws {SystemError} Where it cannot be, for instance without the capabilities. */
function byMap(runtime: Runtime, group: ReuseportGroup, kept: readonly GroupMember[]): KeepingAway {
  steerAmong(runtime, kept.map(({ descriptor }) => descriptor));
  let members: readonly GroupMember[] = group.members;
  return {
    steering: { program: "loaded", code: null, migrates: true },
    refresh: () => Promise.resolve(),
    joined: (descriptor) => members = [{ cookie: cookieOf(runtime, descriptor), descriptor }, ...members],
    closed: () => {},
    end: () => release(runtime, members),
  };
}

async function bySlots(
  runtime: Runtime,
  group: ReuseportGroup,
  isKept: (cookie: string) => boolean,
  code: string | null,
): Promise<KeepingAway> {
  await refresh(group);
  group.steer((_, members) => toKept(members, isKept));
  return {
    steering: { program: "classic", code, migrates: migratesConnections(runtime) },
    refresh: () => refresh(group),
    joined: (descriptor) => group.joined(descriptor),
    closed: (cookie) => group.closed(cookie),
    end: () => release(runtime, group.members),
  };
}

/** A slot of somebody else's tells nothing, and costs the whole time. */
async function refresh(group: ReuseportGroup): Promise<void> {
  try {
    await group.refresh(quickMs);
  } catch (error) {
    if (!(error instanceof TakeoverError && error.code === "ERR_TAKEOVER_STATE")) throw error;
    await group.refresh();
  }
}

function toKept(members: readonly GroupMember[], isKept: (cookie: string) => boolean): readonly Line[] {
  const slots = members.flatMap(({ cookie }, slot) => isKept(cookie) ? [slot] : []);
  return slots.length > 0 ? everythingTo(slots) : [answer(whole)];
}

function hasStrangers(group: ReuseportGroup, isKept: (cookie: string) => boolean): boolean {
  try {
    return group.changes().joined.some(isKept);
  } catch (error) {
    // Where nobody tells, none of them can be named either.
    if (error instanceof TakeoverError) return false;
    throw error;
  }
}

/** Any listener that is still open will do; where there is none, the group has gone. */
function release(runtime: Runtime, members: readonly GroupMember[]): void {
  const isOpen = ({ cookie, descriptor }: GroupMember) => descriptor >= 0 && cookieOf(runtime, descriptor) === cookie;
  const found = members.find(isOpen);
  if (found) detachFromGroup(runtime, found.descriptor);
}
