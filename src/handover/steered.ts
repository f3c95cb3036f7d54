/**
 * Flows of datagrams that the kernel brings to the process that knows them: a
 * socket for each generation, all of one SO_REUSEPORT group, and a program that
 * looks at a tag.
 *
 * ```text
 * generation 1 ── socket 1 ──┐
 * generation 2 ── socket 2 ──┤ group: tag 1 to socket 1, tag 2 to socket 2,
 * generation 3 ── socket 3 ──┘        everything else to socket 3
 * ```
 *
 * The newest process has copies of all sockets. So none ever leaves the group,
 * the kernel's order stays as it is, and what has come to a process that ended
 * is served by the newest. The successor's socket is the incumbent's to open,
 * before there is a successor: one that is killed in the lease takes nothing
 * with it. The socket of a generation that has ended is the next one's.
 *
 * @module
 */

import type { InetAddress } from "../c/sockaddr.ts";
import { messageRoom, receiveMessage } from "../channels/message.ts";
import type { Endpoint } from "../natives/endpoint.ts";
import type { Runtime } from "../runtime.ts";
import { receiveBufferOf, setReceiveBuffer } from "../sockets/datagram.ts";
import { disposeAll, OwnedDescriptor } from "../sockets/descriptors.ts";
import { cookieOf, duplicate, identify, type SocketIdentity } from "../sockets/socket.ts";
import { byTag, type Tag } from "../steering/programs.ts";
import { ReuseportGroup } from "../steering/reuseport.ts";

/** A socket of the group as it travels; the first is in the first slot. */
export interface TravellingMember {
  /** 0 for one that is nobody's yet. */
  readonly generation: number;
  readonly channel: OwnedDescriptor;
}

/** What the process is that steers. */
export interface SteeringHost {
  readonly runtime: Runtime;
  readonly generation: number;
  readonly tag: Tag;
  /** Serves what has come to a socket that nobody reads any more. */
  readonly datagram: (bytes: Uint8Array, peer: InetAddress) => void;
  /** Whether the process of an older generation is there. */
  isThere(generation: number): boolean;
}

/** A socket of the group. */
interface Member {
  generation: number;
  readonly cookie: string;
  /** This process's copy; null for the one that its native object holds. */
  readonly socket: OwnedDescriptor | null;
}

/** How long a packet may take from the program's answer to the socket. */
const lateMs = 50;

/** The group, as one process has it. */
export class SteeredGroup {
  readonly #host: SteeringHost;
  readonly #own: Endpoint;
  readonly #members: Member[];
  readonly #group: ReuseportGroup;
  /** Whether this process reads what has no tag of an older one. */
  #isNewest = false;

  /**
   * Takes up the group.
   *
   * @param own This process's endpoint.
   * @param members As the incumbent sent them, taken; none in the first process.
   * @throws {TakeoverError} `ERR_TAKEOVER_DESCRIPTOR` when they are no group.
   */
  constructor(host: SteeringHost, own: Endpoint, members: readonly TravellingMember[]) {
    this.#host = host;
    this.#own = own;
    const { cookie } = own.identity;
    const found = members.map(({ generation, channel }): Member => {
      const each = cookieOf(host.runtime, channel.number);
      if (each !== cookie) return { generation, cookie: each, socket: channel };
      channel[Symbol.dispose]();
      return { generation: host.generation, cookie, socket: null };
    });
    const isAlone = found.every(({ socket }) => socket !== null);
    this.#members = isAlone ? [{ generation: host.generation, cookie, socket: null }] : found;
    if (isAlone) disposeAll(members.map(({ channel }) => channel));
    try {
      this.#group = new ReuseportGroup(host.runtime, this.#members.map((member) => this.#numberOf(member)));
      if (isAlone) this.serve();
    } catch (error) {
      this.release();
      throw error;
    }
  }

  /**
   * This process is the newest, or an older one has ended, or a successor was
   * lost: it reads what has no tag of an older process that is there, and serves
   * what has come to sockets that nobody reads.
   */
  serve(): void {
    this.#isNewest = true;
    this.#steerTo(this.#own.identity.cookie);
    if (this.#orphans().length === 0) return;
    this.#drainOrphans();
    setTimeout(() => this.#drainOrphans(), lateMs);
  }

  /** The socket that a successor is to have: one that nobody reads, or a new one, which gets nothing yet. */
  spare(): { readonly descriptor: number; readonly identity: SocketIdentity } {
    const { runtime } = this.#host;
    let [spare] = this.#orphans();
    if (!spare) {
      const socket = this.#group.open();
      setReceiveBuffer(runtime, socket.number, receiveBufferOf(runtime, this.#own.descriptor));
      spare = { generation: 0, cookie: cookieOf(runtime, socket.number), socket };
      this.#members.push(spare);
    }
    spare.generation = 0;
    const { number: descriptor } = spare.socket!;
    return { descriptor, identity: identify(runtime, descriptor)! };
  }

  /** Copies of all sockets in the kernel's order, which the caller closes. */
  travel(): TravellingMember[] {
    const { runtime } = this.#host;
    return this.#members.map((member) => ({
      generation: member.generation,
      channel: new OwnedDescriptor(runtime, duplicate(runtime, this.#numberOf(member))),
    }));
  }

  /** A successor reads from here on what this process does not know. */
  lease(): void {
    const spare = this.#members.find(({ generation }) => generation === 0);
    if (!spare) return;
    this.#isNewest = false;
    this.#steerTo(spare.cookie);
  }

  /** An older process has ended. */
  ended(): void {
    if (this.#isNewest) this.serve();
  }

  /** The copies are the newest process's from here on. */
  release(): void {
    this.#isNewest = false;
    for (const { socket } of this.#members) socket?.[Symbol.dispose]();
  }

  #steerTo(newest: string): void {
    const { generation, tag, isThere } = this.#host;
    const known = this.#members.filter((each) => {
      return each.cookie !== newest && (each.generation === generation || each.generation > 0 && isThere(each.generation));
    });
    this.#group.steer((slotOf) => {
      const slots = new Map(known.map((each) => [tagOf(tag, each.generation), slotOf(each.cookie)]));
      slots.delete(0);
      return byTag(tag, { slots, otherwise: slotOf(newest) });
    });
  }

  #numberOf({ socket }: Member): number {
    return socket?.number ?? this.#own.descriptor;
  }

  /** Sockets whose process has ended, or has never been. */
  #orphans(): Member[] {
    const { generation, isThere } = this.#host;
    return this.#members.filter((each) => each.socket && each.generation !== generation && !isThere(each.generation));
  }

  #drainOrphans(): void {
    for (const { socket } of this.#orphans()) this.#drain(socket!);
  }

  #drain({ number }: OwnedDescriptor): void {
    const { runtime, datagram } = this.#host;
    // The application may have ended everything in its callback.
    while (this.#isNewest) {
      const incoming = receiveMessage(runtime, number, messageRoom);
      if (typeof incoming === "number") return;
      if (incoming.from && incoming.from.family !== "unix") datagram(incoming.bytes, incoming.from);
    }
  }
}

/** A generation in the bits of a tag; 0 is none's. */
function tagOf({ size, mask = 2 ** (size * 8) - 1 }: Tag, generation: number): number {
  return (generation & mask) >>> 0;
}
