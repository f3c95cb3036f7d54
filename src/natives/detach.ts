/**
 * From native objects back to descriptors: a live connection, listener or
 * datagram socket leaves its runtime, and nobody at the other end notices.
 *
 * ```text
 * waits     until what the program has written is in the kernel
 * dup       a copy of the socket, which is the result
 * unwatch   out of the event loop: a registration lives as long as any copy
 * unread    what the runtime has read ahead
 * dup3      a dead socket over the native object's number
 * close     the native object closes the dead one: no FIN, no RST
 * ```
 *
 * @module
 */

import type { SocketAddress } from "../c/sockaddr.ts";
import { TakeoverError } from "../errors.ts";
import type { NativeObject, Runtime } from "../runtime.ts";
import { OwnedDescriptor, owning } from "../sockets/descriptors.ts";
import { canPause, register, type Registration } from "../sockets/event_loop.ts";
import { deadListener } from "./graft.ts";
import { descriptorOf, inspected, remembered } from "./natives.ts";
import { isQuiet } from "./quiet.ts";
import { cookieOf, duplicate, duplicateOver, localAddress, openPair, openSocket } from "../sockets/socket.ts";
import { unwatch, watchesOf } from "../sockets/watches.ts";

/** A socket that was in a native object. */
export interface Detached {
  /** The socket; whoever holds the object owns it. */
  readonly descriptor: OwnedDescriptor;
  /** What the runtime had read from the socket and not given to the program: it comes before what the socket holds. */
  readonly unread: Uint8Array;
  /** Whether `unread` is all of that. */
  readonly isUnreadKnown: boolean;
}

/** How long detaching may take. */
export interface DetachOptions {
  /** Until what the program has written is in the kernel, in milliseconds; 10,000. Past it: ERR_TAKEOVER_TIMEOUT. */
  readonly flushMs?: number;
}

const defaultFlushMs = 10_000;

/** The first and the longest wait between two looks at what is unsent. */
const firstWaitMs = 1;
const longestWaitMs = 20;

/** Turns of the event loop in which a read that is waiting learns of the end. */
const endTurns = 2;

/** Takes a socket out of its native object; see `detach` of mod.ts. */
export async function detach(runtime: Runtime, native: unknown, options: DetachOptions = {}): Promise<Detached> {
  const object = inspected(runtime, native);
  const number = descriptorOf(runtime, native);
  checkDetachable(runtime, object);
  const cookie = cookieOf(runtime, number);
  await flushed(runtime, native, number, options.flushMs ?? defaultFlushMs);
  if (cookieOf(runtime, number) !== cookie) {
    throw new TakeoverError("ERR_TAKEOVER_CLOSED", `Cannot detach the ${object.kind}: it was closed meanwhile`);
  }
  // From here on nothing waits until the socket is out.
  const copy = new OwnedDescriptor(runtime, duplicate(runtime, number));
  try {
    const isPathBound = object.kind === "listener" && localAddress(runtime, number)?.family === "unix" &&
      remembered(runtime, native) < 0;
    const unread = takeOut(runtime, object, number);
    if (object.isPulled) await turns(endTurns);
    if (object.kind === "server" || isPathBound) object.unref();
    else close(object);
    return { descriptor: copy, unread: unread ?? new Uint8Array(0), isUnreadKnown: unread !== null };
  } catch (error) {
    copy[Symbol.dispose]();
    throw error;
  }
}

function checkDetachable(runtime: Runtime, { kind, isEncrypted }: NativeObject): void {
  if (isEncrypted) {
    throw new TakeoverError(
      "ERR_TAKEOVER_UNSUPPORTED",
      `Cannot detach a TLS ${kind}: its keys are in the runtime; detach what is below it, or end it`,
    );
  }
  if (!canPause(runtime)) {
    throw new TakeoverError(
      "ERR_TAKEOVER_UNSUPPORTED",
      `Cannot detach on ${runtime.abi.platform}: expected linux, which has epoll`,
    );
  }
}

/** What the runtime had read ahead, or null where that cannot be known. */
function takeOut(runtime: Runtime, object: NativeObject, number: number): Uint8Array | null {
  const { family } = localAddress(runtime, number)!;
  return owning(deadSocket(runtime, object.kind, family), (dead) => {
    const entries: readonly Registration[] = object.isPulled ? watchesOf(runtime, number) : [];
    unwatch(runtime, number);
    const unread = object.takeUnread();
    duplicateOver(runtime, dead.number, number);
    // A read that the program is waiting for ends with an end of file.
    register(runtime, entries);
    return unread;
  });
}

/** A socket that a native object of that kind can hold and close. */
function deadSocket(runtime: Runtime, kind: NativeObject["kind"], family: SocketAddress["family"]): OwnedDescriptor {
  if (kind === "datagram") return new OwnedDescriptor(runtime, openSocket(runtime, family, "dgram"));
  return kind === "connection" ? deadConnection(runtime) : deadListener(runtime, family);
}

/** One end of a pair whose other end is closed: nothing to read but the end. */
function deadConnection(runtime: Runtime): OwnedDescriptor {
  const [dead, other] = openPair(runtime);
  other[Symbol.dispose]();
  return dead;
}

/** The program may have closed its object at the end of file that it saw. */
function close(object: NativeObject): void {
  try {
    object.close();
  } catch {
    // Then there is nothing left to close.
  }
}

/** Waits until nothing that the program has written is in user space any more. */
async function flushed(runtime: Runtime, native: unknown, number: number, flushMs: number): Promise<void> {
  const until = Date.now() + flushMs;
  for (let waitMs = firstWaitMs;; waitMs = Math.min(waitMs * 2, longestWaitMs)) {
    const { unsentCount } = inspected(runtime, native);
    if (unsentCount === null ? await isQuiet(runtime, number, flushMs) : unsentCount === 0) return;
    if (Date.now() >= until) {
      throw new TakeoverError(
        "ERR_TAKEOVER_TIMEOUT",
        `Cannot detach within ${flushMs} ms (limit flushMs): what was written has not left this process; ` +
          "the peer does not read, or the stream is corked",
      );
    }
    await new Promise((resolve) => setTimeout(resolve, waitMs));
  }
}

async function turns(count: number): Promise<void> {
  for (let turn = 0; turn < count; turn++) await new Promise((resolve) => setTimeout(resolve, 0));
}
