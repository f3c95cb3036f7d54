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
import { isSystemError, messageOf, TakeoverError } from "../errors.ts";
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

/** How often something moves before others have their turn. */
const stepsAtOnce = 4;

/** How many are looked at before others have their turn. */
const lookedAtOnce = 64;

/** Linux's TCP_QUICKACK (tcp(7)): acknowledges at once, so that it is known that nothing is on the way. */
const IPPROTO_TCP = 6;
const TCP_QUICKACK = 12;

/** Seatings that take longer than a moment. */
export class Feeding {
  readonly #runtime: Runtime;
  readonly #stallMs: number;
  /** Each with the time at which something moved last. */
  readonly #seatings = new Map<Seating, number>();

  /** @param stallMs How long nothing may move: a client need not read, and a server neither. */
  constructor(runtime: Runtime, stallMs: number) {
    this.#runtime = runtime;
    this.#stallMs = stallMs;
  }

  /** How many there are. */
  get size(): number {
    return this.#seatings.size;
  }

  /** Says what is to be said, and puts the socket under the server: at once where that is possible. */
  add(seating: Seating): void {
    if (this.#isSeated(seating)) return;
    this.#seatings.set(seating, Date.now());
    if (this.#seatings.size === 1) void this.#run();
  }

  /** Most have nothing to say, or no more than fits at once. */
  #isSeated(seating: Seating): boolean {
    const { seat, forServer } = seating;
    if (forServer.length > 0) return false;
    let moved: Moved = seat.isSpokenOver ? "some" : "silent";
    for (let tries = 0; moved === "some" && tries < stepsAtOnce; tries++) moved = step(this.#runtime, seating);
    if (moved !== "silent" || seat.registration === null) return false;
    this.#put(seating);
    return true;
  }

  async #run(): Promise<void> {
    for (let waitMs = firstWaitMs; this.#seatings.size > 0; waitMs = Math.min(waitMs * 2, longestWaitMs)) {
      const all = [...this.#seatings.keys()];
      for (let from = 0; from < all.length; from += lookedAtOnce) {
        if (from > 0) await turn();
        if (this.#look(all.slice(from, from + lookedAtOnce))) waitMs = firstWaitMs;
      }
      await turn(waitMs);
    }
  }

  /**
   * In one turn, so that the server can neither read nor write meanwhile.
   *
   * @returns Whether something moved.
   */
  #look(seatings: readonly Seating[]): boolean {
    const looks = seatings.map((seating) => ({ seating, moved: this.#step(seating) }));
    const silent = looks.filter(({ moved }) => moved === "silent").map(({ seating }) => seating);
    this.#readRegistrations(silent.map(({ seat }) => seat).filter(({ registration }) => registration === null));
    for (const seating of silent) {
      if (seating.seat.registration === null) continue;
      this.#seatings.delete(seating);
      this.#put(seating);
    }
    return looks.some(({ moved }) => moved === "some");
  }

  /** Without a free descriptor /proc cannot be read now. */
  #readRegistrations(seats: readonly Seat[]): void {
    try {
      if (seats.length > 0) readRegistrations(this.#runtime, seats);
    } catch (error) {
      if (!isSystemError(error, "EMFILE", "ENFILE")) throw error;
    }
  }

  #put(seating: Seating): void {
    try {
      putUnder(this.#runtime, seating);
    } catch (error) {
      close(seating);
      seating.failed(notSeated(messageOf(error), error));
    }
  }

  #step(seating: Seating): Moved {
    const moved = step(this.#runtime, seating);
    if (moved === "some") this.#seatings.set(seating, Date.now());
    const isLate = moved !== "ended" && Date.now() >= this.#seatings.get(seating)! + this.#stallMs;
    if (moved !== "ended" && !isLate) return moved;
    this.#seatings.delete(seating);
    close(seating);
    if (isLate) seating.failed(notSeated(`neither side has read anything for ${this.#stallMs} ms`));
    return "ended";
  }
}

/** What came of one look: nothing more is to be said, something moved, it has to wait, or one of the two has gone. */
type Moved = "silent" | "some" | "none" | "ended";

/** Moves what can be moved now. */
function step(runtime: Runtime, seating: Seating): Moved {
  const { seat, socket } = seating;
  const given = write(runtime, seat.end.number, seating.forServer);
  // What a server that has closed its end will not read is dropped, and its answer is not.
  seating.forServer = given === null ? new Uint8Array(0) : seating.forServer.subarray(given);
  const answer = seating.forClient.length > 0 ? new Uint8Array(0) : read(runtime, seat.end.number);
  if (answer === null) return "ended";
  if (answer.length > 0) seating.forClient = answer;
  // What a runtime waits for changes with what it reads and writes.
  if (given !== 0 || answer.length > 0) [seat.registration, seat.isSpokenOver] = [null, true];
  const said = write(runtime, socket.number, seating.forClient);
  if (said === null) return "ended";
  seating.forClient = seating.forClient.subarray(said);
  if (given !== 0 || answer.length > 0 || said > 0) return "some";
  const isSaid = seating.forServer.length === 0 && seating.forClient.length === 0;
  return isSaid && seat.isHeld && isSilent(runtime, seat) ? "silent" : "none";
}

/** Puts the true socket under the server's end, which has the registration that was read last. */
function putUnder(runtime: Runtime, { seat, socket, seated }: Seating): void {
  const registrations = unregister(runtime, [seat.registration!]);
  duplicateOver(runtime, socket.number, seat.descriptor);
  // Whatever waits in the socket already is told of by putting it in.
  register(runtime, registrations);
  seated();
  socket[Symbol.dispose]();
  // The server's end is closed first, and ours after it: neither is reset.
  seat.close();
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
 * @returns How much that was; null when the other side has gone.
 */
export function write({ abi, libc }: Runtime, descriptor: number, bytes: Uint8Array): number | null {
  if (bytes.length === 0) return 0;
  const piece = allocate(Math.min(bytes.length, pieceSize));
  piece.set(bytes.subarray(0, piece.length));
  const result = libc.write(descriptor, piece, piece.length);
  if (result >= 0) return result;
  return result === -errnoOf(abi.platform, "EAGAIN") ? 0 : null;
}

/** Whether nothing is on the way between the two ends, in either direction. */
function isSilent(runtime: Runtime, { end, name, descriptor }: Seat): boolean {
  if (name.family !== "unix") setIntegerOption(runtime, end.number, IPPROTO_TCP, TCP_QUICKACK, 1);
  return unsentSize(runtime, end.number) === 0 && unreadSize(runtime, descriptor) === 0 &&
    unsentSize(runtime, descriptor) === 0 && unreadSize(runtime, end.number) === 0;
}

/** Neither the server nor the client hears of the other again. */
function close({ seat, socket }: Seating): void {
  socket[Symbol.dispose]();
  seat.close();
}

function notSeated(why: string, cause?: unknown): TakeoverError {
  return new TakeoverError("ERR_TAKEOVER_ADOPT", `Cannot put a connection under its server: ${why}`, { cause });
}
