/**
 * Connections come to the successor: batch by batch, each with a place before
 * it is kept, and in its place once the incumbent has let go of it.
 *
 * An end without `back` is the incumbent's death: whatever has come is this
 * process's then, because nobody else has it any more.
 *
 * @module
 */

import type { Arrival, Json, Place, Sink } from "../connections/movable.ts";
import type { FdMessage } from "../channels/fd_message.ts";
import type { FdChannel } from "../channels/fd_channel.ts";
import { disposeAll, freeDescriptorCount, type OwnedDescriptor } from "../sockets/descriptors.ts";
import { isSystemError, messageOf, TakeoverError, TruncatedError } from "../errors.ts";
import { encodeFrame, type Frame, FrameReader } from "./frame.ts";
import type { Limits } from "../limits.ts";
import { type Move, type Party, parseMove, parseYours, type RefusedConnection } from "./move_messages.ts";
import type { Runtime } from "../runtime.ts";
import type { SocketAddress } from "../c/sockaddr.ts";
import { cookieOf, isConnected, localAddress, peerAddress, setNonBlocking } from "../sockets/socket.ts";

/** Where connections come in: an endpoint's, of one kind. */
export interface Entrance extends Party {
  readonly sink: Sink;
}

/** A connection that is here and not this process's yet. */
interface Waiting {
  readonly descriptor: OwnedDescriptor;
  readonly place: Place;
}

/** A piece of the stream. */
type Piece = Pick<FdMessage, "bytes" | "fds">;

/** An incumbent sends no third move before it has said yours to the first. */
const keptCount = 2;

/** How much is read at once. */
const readSize = 256 * 1024;

/** When there is room for fewer, it is counted every time. */
const scarceCount = 1_024;

/** The successor's side of the connections' way. */
export class Arrivals {
  readonly #runtime: Runtime;
  readonly #limits: Limits;
  readonly #channel: FdChannel;
  readonly #entrances: () => readonly Entrance[];
  readonly #reader: FrameReader;
  readonly #descriptors: OwnedDescriptor[] = [];
  readonly #waiting = new Map<number, readonly Waiting[]>();
  #nextNumber = 0;
  #room = 0;
  #isOver = false;
  /** What a place threw when its connection was this process's. */
  #failure: { readonly error: unknown } | null = null;
  /** How many are this process's. */
  count = 0;
  /** Resolves when the incumbent has no more, or is gone; rejects when it broke the protocol. */
  readonly ended: Promise<void>;

  /**
   * @param channel The second connection; taken.
   * @param entrances Where connections go, as of now.
   */
  constructor(runtime: Runtime, limits: Limits, channel: FdChannel, entrances: () => readonly Entrance[]) {
    this.#runtime = runtime;
    this.#limits = limits;
    this.#channel = channel;
    this.#entrances = entrances;
    this.#reader = new FrameReader(limits.headSize, limits.unreadSize + limits.headSize);
    this.ended = this.#run();
    this.ended.catch(() => {});
  }

  /** Says what is taken here, again when it has changed. */
  async announce(): Promise<void> {
    const parties = this.#entrances().map(({ name, kind }) => ({ name, kind }));
    this.#room = 0;
    await this.#say({ type: "takes", room: this.#roomAfter(0), parties });
  }

  /** How many more can come: counted anew, which takes a walk of the descriptor table, when there may be few. */
  #roomAfter(count: number): number {
    this.#room -= count;
    if (this.#room < scarceCount) {
      this.#room = Math.max(0, freeDescriptorCount(this.#runtime) - this.#limits.spareCount);
    }
    return this.#room;
  }

  async #run(): Promise<void> {
    try {
      await this.announce();
      while (!this.#isOver) {
        const piece = await this.#receive();
        if (piece === null) break;
        this.#descriptors.push(...piece.fds);
        for (const frame of this.#reader.read(piece.bytes)) {
          if (!this.#isOver) await this.#take(frame);
        }
        this.#checkSurplus();
      }
      // The incumbent has died: nobody else has what has come.
      if (!this.#isOver) this.#commitAll();
    } catch (error) {
      await this.#abort(error);
      throw error;
    } finally {
      this.#dropAll();
      this.#channel.close();
    }
    if (this.#failure) throw this.#failure.error;
  }

  /** One that went without reading our last word is a reset first; what it said before comes after that. */
  async #receive(): Promise<Piece | null> {
    try {
      return await this.#channel.receive({ maxBytes: readSize });
    } catch (error) {
      // Without its descriptors a move is refused, and its connections stay where they are.
      if (error instanceof TruncatedError) return { bytes: error.bytes, fds: [] };
      if (!isSystemError(error, "ECONNRESET")) throw error;
      return await this.#receive();
    }
  }

  /** Descriptors come with the first byte of a move, so only a move that is not whole may have some here. */
  #checkSurplus(): void {
    const mostCount = this.#reader.isBetween ? 0 : this.#runtime.abi.descriptorsPerMessage;
    if (this.#descriptors.length <= mostCount) return;
    throw new TakeoverError(
      "ERR_TAKEOVER_SURPLUS",
      `Cannot take ${this.#descriptors.length} descriptors that no move has announced: expected at most ${mostCount}`,
    );
  }

  async #take({ head, body }: Frame): Promise<void> {
    switch (head.type) {
      case "move":
        return await this.#keep(parseMove(head, body.length, this.#runtime.abi.descriptorsPerMessage, this.#limits), body);
      case "yours":
        return this.#commit(parseYours(head));
      case "back":
      case "done":
      case "refuse":
        this.#isOver = true;
        return;
      default:
        throw new TakeoverError(
          "ERR_TAKEOVER_PROTOCOL",
          `Cannot take the frame ${JSON.stringify(head.type)} while connections move: expected move, yours, back or done`,
        );
    }
  }

  async #keep(move: Move, body: Uint8Array): Promise<void> {
    const { connections } = move;
    if (move.number !== this.#nextNumber++) {
      throw new TakeoverError("ERR_TAKEOVER_PROTOCOL", `Cannot take move ${move.number}: expected ${this.#nextNumber - 1}`);
    }
    if (this.#waiting.size === keptCount) {
      throw new TakeoverError(
        "ERR_TAKEOVER_PROTOCOL",
        `Cannot take move ${move.number}: expected yours for one of the ${keptCount} moves before it`,
      );
    }
    const descriptors = this.#descriptors.splice(0, connections.length);
    const isWhole = descriptors.length === connections.length;
    const answers = isWhole ? await this.#placesFor(move, descriptors, body) : missing(move, descriptors.length);
    const waiting: Waiting[] = [];
    const refused: RefusedConnection[] = [];
    for (const [index, answer] of answers.entries()) {
      const descriptor = descriptors[index];
      if (descriptor && !(answer instanceof Error)) {
        waiting.push({ descriptor, place: answer });
        continue;
      }
      descriptor?.[Symbol.dispose]();
      refused.push({ index, code: codeOf(answer as Error), message: messageOf(answer).slice(0, 1_024) });
    }
    this.#waiting.set(move.number, waiting);
    await this.#say({ type: "kept", number: move.number, room: this.#roomAfter(waiting.length), refused });
  }

  /** Nothing here throws, or the descriptors would have no owner. */
  async #placesFor(
    move: Move,
    descriptors: readonly OwnedDescriptor[],
    body: Uint8Array,
  ): Promise<readonly (Place | Error)[]> {
    const entrance = this.#entrances().find(({ name, kind }) => name === move.name && kind === move.kind);
    if (!entrance) return descriptors.map(() => unknownParty(move));
    const arrivals = this.#verified(move, descriptors, body);
    const right = arrivals.filter((arrival): arrival is Arrival => !(arrival instanceof Error));
    const places = await prepared(entrance.sink, right);
    let at = 0;
    return arrivals.map((arrival) => arrival instanceof Error ? arrival : places[at++]!);
  }

  #verified(move: Move, descriptors: readonly OwnedDescriptor[], body: Uint8Array): (Arrival | Error)[] {
    let at = 0;
    return move.connections.map(({ cookie, state, unread }, index) => {
      const bytes = body.subarray(at, at += unread);
      return this.#verify(descriptors[index]!, cookie, state, bytes);
    });
  }

  #verify(descriptor: OwnedDescriptor, cookie: string, state: Arrival["state"], unread: Uint8Array): Arrival | Error {
    const { number } = descriptor;
    const found = cookieOf(this.#runtime, number);
    if (found !== cookie || !isConnected(this.#runtime, number)) {
      return new TakeoverError(
        "ERR_TAKEOVER_DESCRIPTOR",
        `Cannot take a connection: expected one with cookie ${cookie}, got ${
          found === cookie ? "one that is no longer connected" : `a descriptor with cookie ${found || "none"}`
        }`,
      );
    }
    setNonBlocking(this.#runtime, number);
    return new Arrived(this.#runtime, descriptor, cookie, state, unread);
  }

  /** A batch is this process's: into its native objects with it. */
  #commit(number: number): void {
    const waiting = this.#waiting.get(number);
    if (!waiting) {
      throw new TakeoverError("ERR_TAKEOVER_PROTOCOL", `Cannot own move ${number}: it has not been kept, or is owned`);
    }
    this.#waiting.delete(number);
    for (const { descriptor, place } of waiting) {
      try {
        place.commit();
        this.count++;
      } catch (error) {
        descriptor[Symbol.dispose]();
        this.#failure ??= { error };
      }
    }
  }

  #commitAll(): void {
    for (const number of [...this.#waiting.keys()]) this.#commit(number);
  }

  /** What is not this process's stays where it was. */
  #dropAll(): void {
    const all = [...this.#waiting.values()].flat();
    this.#waiting.clear();
    for (const { place } of all) {
      try {
        place.cancel();
      } catch (error) {
        this.#failure ??= { error };
      }
    }
    disposeAll([...all.map(({ descriptor }) => descriptor), ...this.#descriptors.splice(0)]);
  }

  /** Tells the incumbent why no more is taken. */
  async #abort(error: unknown): Promise<void> {
    const head = { type: "abort", code: error instanceof TakeoverError ? error.code : "ERR_TAKEOVER_PROTOCOL" };
    await this.#say({ ...head, message: messageOf(error).slice(0, 1_024) }).catch(() => {});
  }

  /** To one that has gone nothing is said; what it has said still counts. */
  async #say(head: object): Promise<void> {
    try {
      await this.#channel.send(encodeFrame(head), [], { timeoutMs: this.#limits.keptMs });
    } catch (error) {
      if (!isSystemError(error, "EPIPE", "ECONNRESET")) throw error;
    }
  }
}

/** One that was verified. Few want to know its addresses. */
class Arrived implements Arrival {
  readonly descriptor: OwnedDescriptor;
  readonly cookie: string;
  readonly state: Json;
  readonly unread: Uint8Array;
  readonly #runtime: Runtime;

  constructor(runtime: Runtime, descriptor: OwnedDescriptor, cookie: string, state: Json, unread: Uint8Array) {
    this.#runtime = runtime;
    this.descriptor = descriptor;
    this.cookie = cookie;
    this.state = state;
    this.unread = unread;
  }

  get local(): SocketAddress | null {
    return localAddress(this.#runtime, this.descriptor.number);
  }

  get peer(): SocketAddress | null {
    return peerAddress(this.#runtime, this.descriptor.number);
  }
}

async function prepared(sink: Sink, arrivals: readonly Arrival[]): Promise<readonly (Place | Error)[]> {
  try {
    return await sink.prepare(arrivals);
  } catch (error) {
    return arrivals.map(() => error instanceof Error ? error : new Error(String(error)));
  }
}

function codeOf(error: Error): RefusedConnection["code"] {
  return error instanceof TakeoverError ? error.code : "ERR_TAKEOVER_ADOPT";
}

/** Which of them came nobody can tell, so none is taken. */
function missing({ number, connections }: Move, count: number): TakeoverError[] {
  const error = new TakeoverError(
    "ERR_TAKEOVER_MISSING",
    `Cannot take move ${number}: expected ${connections.length} descriptors, ${count} came; raise the limit of open files`,
  );
  return connections.map(() => error);
}

function unknownParty({ name, kind }: Party): TakeoverError {
  return new TakeoverError(
    "ERR_TAKEOVER_UNKNOWN_NAME",
    `Cannot take connections: the successor has nobody for those of the kind ${kind} of ${JSON.stringify(name)}`,
  );
}
