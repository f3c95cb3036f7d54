/**
 * What is left to be said over a seat before its true socket takes it: bytes
 * for the server that were read elsewhere, and what the server has answered to
 * them, which goes to the true socket.
 *
 * ```text
 * unread  -> our end -> the server's end      until the server has read all of it
 * client  <- our end <- the server's end      until nothing of it is on the way
 * then the true socket is put under the server's end
 * ```
 *
 * @module
 */

import { allocate } from "../c/bytes.ts";
import { errnoOf } from "../c/errno.ts";
import { checked, TakeoverError } from "../errors.ts";
import type { Runtime } from "../runtime.ts";
import type { OwnedDescriptor } from "../sockets/descriptors.ts";
import { register, unregister } from "../sockets/event_loop.ts";
import { unreadSize, unsentSize } from "../sockets/queues.ts";
import { duplicateOver, setIntegerOption } from "../sockets/socket.ts";
import { readRegistrations, type Seat, turn } from "./seats.ts";

/** A seat and the socket that takes it. */
export interface Seating {
  readonly seat: Seat;
  /** Owned: it is closed when the server holds it, or has ended the connection. */
  readonly socket: OwnedDescriptor;
  /** What the server has not been given yet. */
  forServer: Uint8Array;
  /** What the server has written and the client has not been given yet. */
  forClient: Uint8Array;
  /** Called once the server holds the socket. */
  seated(): void;
  /** Called when it never will. */
  failed(error: TakeoverError): void;
}

/** How much is moved at once. */
const pieceSize = 64 * 1024;

/** The first and the longest wait between two looks. */
const firstWaitMs = 1;
const longestWaitMs = 20;

/** How many are looked at before others have their turn. */
const lookedAtOnce = 64;

/** Linux's TCP_QUICKACK (tcp(7)): acknowledges at once, so that it is known that nothing is on the way. */
const IPPROTO_TCP = 6;
const TCP_QUICKACK = 12;

/** Seatings that take longer than a moment. */
export class Feeding {
  readonly #runtime: Runtime;
  readonly #limitMs: number;
  /** Each with the time at which something moved last. */
  readonly #seatings = new Map<Seating, number>();

  /** @param limitMs How long nothing may move. */
  constructor(runtime: Runtime, limitMs: number) {
    this.#runtime = runtime;
    this.#limitMs = limitMs;
  }

  /** How many there are. */
  get size(): number {
    return this.#seatings.size;
  }

  /** Says what is to be said, and puts the socket under the server. */
  add(seating: Seating): void {
    this.#seatings.set(seating, Date.now());
    if (this.#seatings.size === 1) void this.#run();
  }

  async #run(): Promise<void> {
    for (let waitMs = firstWaitMs; this.#seatings.size > 0; waitMs = Math.min(waitMs * 2, longestWaitMs)) {
      const all = [...this.#seatings.keys()];
      for (let from = 0; from < all.length; from += lookedAtOnce) {
        this.#look(all.slice(from, from + lookedAtOnce));
        await turn(from + lookedAtOnce < all.length ? 0 : waitMs);
      }
    }
  }

  /** In one turn, so that the server can neither read nor write meanwhile. */
  #look(seatings: readonly Seating[]): void {
    const ready = seatings.filter((seating) => this.#step(seating) === "silent");
    readRegistrations(this.#runtime, ready.map(({ seat }) => seat));
    for (const seating of ready) {
      if (seating.seat.registration === null) continue;
      this.#seatings.delete(seating);
      try {
        putUnder(this.#runtime, seating);
      } catch (error) {
        end(seating, error);
      }
    }
  }

  #step(seating: Seating): Moved {
    try {
      const moved = step(this.#runtime, seating);
      if (moved === "some") this.#seatings.set(seating, Date.now());
      if (moved !== "ended" && Date.now() < this.#seatings.get(seating)! + this.#limitMs) return moved;
      this.#seatings.delete(seating);
      // The server has closed it, and the client has got all that it wrote.
      if (moved === "ended") end(seating, "the server has ended the connection");
      else end(seating, `nothing has moved for ${this.#limitMs} ms (limit openMs)`);
      return "ended";
    } catch (error) {
      this.#seatings.delete(seating);
      end(seating, error);
      return "ended";
    }
  }
}

/** What came of one look: nothing more is to be said, something moved or has to wait, or the server has closed its end. */
type Moved = "silent" | "some" | "none" | "ended";

/** Moves what can be moved now. */
export function step(runtime: Runtime, seating: Seating): Moved {
  const { seat, socket } = seating;
  const { number: end } = seat.end;
  const given = write(runtime, end, seating.forServer);
  seating.forServer = seating.forServer.subarray(given);
  const said = write(runtime, socket.number, seating.forClient);
  seating.forClient = seating.forClient.subarray(said);
  if (seating.forClient.length > 0) return given + said > 0 ? "some" : "none";
  const answer = read(runtime, end);
  if (answer === null) return "ended";
  if (answer.length > 0) {
    const taken = write(runtime, socket.number, answer);
    seating.forClient = answer.subarray(taken);
    return "some";
  }
  if (seating.forServer.length > 0 || !seat.isHeld) return given > 0 ? "some" : "none";
  return isSilent(runtime, seat) ? "silent" : given > 0 ? "some" : "none";
}

/** Puts the true socket under the server's end, which has the registration that was read last. */
export function putUnder(runtime: Runtime, { seat, socket, seated }: Seating): void {
  const registrations = unregister(runtime, [seat.registration!]);
  duplicateOver(runtime, socket.number, seat.descriptor);
  // Whatever waits in the socket already is told of by putting it in.
  register(runtime, registrations);
  seated();
  socket[Symbol.dispose]();
  seat.reset();
}

/** Bytes of one's own end that are there now; null at the end, and when the server has reset it. */
export function read({ abi, libc }: Runtime, descriptor: number): Uint8Array | null {
  const piece = allocate(pieceSize);
  const size = libc.read(descriptor, piece, piece.length);
  if (size > 0) return piece.subarray(0, size);
  return size === -errnoOf(abi.platform, "EAGAIN") ? new Uint8Array(0) : null;
}

/**
 * Writes what fits.
 *
 * @returns How much that was.
 * @throws {SystemError} For instance `EPIPE` or `ECONNRESET`, when the other side has gone.
 */
export function write({ abi, libc }: Runtime, descriptor: number, bytes: Uint8Array): number {
  if (bytes.length === 0) return 0;
  const piece = allocate(Math.min(bytes.length, pieceSize));
  piece.set(bytes.subarray(0, piece.length));
  const result = libc.write(descriptor, piece, piece.length);
  return result === -errnoOf(abi.platform, "EAGAIN") ? 0 : checked(abi, "write", result);
}

/** Whether nothing is on the way between the two ends, in either direction. */
function isSilent(runtime: Runtime, { end, name, descriptor }: Seat): boolean {
  if (name.family !== "unix") setIntegerOption(runtime, end.number, IPPROTO_TCP, TCP_QUICKACK, 1);
  return unsentSize(runtime, end.number) === 0 && unreadSize(runtime, descriptor) === 0 &&
    unsentSize(runtime, descriptor) === 0 && unreadSize(runtime, end.number) === 0;
}

/** Neither the server nor the client hears of the other again. */
function end({ seat, socket, failed }: Seating, why: unknown): void {
  socket[Symbol.dispose]();
  seat.reset();
  if (typeof why === "string") return failed(new TakeoverError("ERR_TAKEOVER_ADOPT", `Cannot go on with a connection: ${why}`));
  failed(new TakeoverError("ERR_TAKEOVER_ADOPT", "Cannot go on with a connection", { cause: why }));
}
