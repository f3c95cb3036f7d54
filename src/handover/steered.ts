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
 * with it. The socket of a generation that has ended is the next one's. What
 * comes to a socket that nobody reads, the newest process serves.
 *
 * A process that may not bind the address, because its user has changed, opens
 * none: its successor gets its own socket, and with it its flows.
 *
 * Another program of this user can join the group, and leave it: then the
 * kernel moves its last member. So the order is looked at before a successor is
 * told of it, and before it reads.
 *
 * @module
 */

import { pause, waitReadable } from "../channels/readiness.ts";
import { isSystemError, SystemError, TakeoverError } from "../errors.ts";
import type { Endpoint } from "../natives/endpoint.ts";
import type { Runtime } from "../runtime.ts";
import { receiveBufferOf, setReceiveBuffer } from "../sockets/datagram.ts";
import { copyOptions, hearOwnGroups } from "../sockets/datagram_options.ts";
import { disposeAll, OwnedDescriptor, owning } from "../sockets/descriptors.ts";
import { cookieOf, duplicate, identify, openSocket, setShared, type SocketIdentity } from "../sockets/socket.ts";
import { attachToGroup } from "../steering/attach.ts";
import { assemble } from "../steering/bpf.ts";
import { drainDatagrams, type TakeDatagram } from "../steering/draining.ts";
import { byEitherTag, everythingTo, type QuicTag, type Tag } from "../steering/programs.ts";
import { ReuseportGroup } from "../steering/reuseport.ts";
import { atOnceCount, tagOf } from "./generation_tags.ts";
import type { FlowHost, KernelFlows, TravellingMember } from "./kernel_flows.ts";

/** A socket of the group. */
interface Member {
  generation: number;
  readonly cookie: string;
  /** This process's copy; null for the one that its native object holds. */
  readonly socket: OwnedDescriptor | null;
}

/** How soon a socket is looked at again in which there was nothing, though it was told of. */
const falseAlarmMs = 50;

/** How long a slot's probe may take; it is sent on this machine. That of a stranger's slot takes as long. */
const probeMs = 50;

/** The most members of others with which the order is found out: each takes its time. */
const strangerCount = 16;

/** The most slots of a manifest: sockets of ours, and of others between them. */
const slotCount = 1_024;

/** Why a process may not open a socket at an address where there is one: another user has it, or only root may. */
export const bindRefusals = ["EADDRINUSE", "EACCES", "EPERM", "EADDRNOTAVAIL"] as const;

/** The group, as one process has it. */
export class SteeredFlows implements KernelFlows {
  /** What is left is read from a native socket. */
  readonly count = 0;
  readonly #host: FlowHost;
  readonly #own: Endpoint;
  readonly #members: Member[];
  readonly #group: ReuseportGroup;
  /** While this process reads what has no tag of an older one. */
  #newest: AbortController | null = null;
  /** Sockets that are waited for meanwhile. */
  readonly #watched = new Set<OwnedDescriptor>();
  /** The socket that a successor is offered; null where it is this process's own. */
  #offered: Member | null = null;
  /** Why that is so. */
  #refusal: SystemError | null = null;
  /** The cookies by their slots, as a successor has been told. */
  #told = "";

  /**
   * Takes up the group.
   *
   * @param own This process's endpoint.
   * @param members As the incumbent sent them, taken; none in the first process.
   * @throws {TakeoverError} `ERR_TAKEOVER_DESCRIPTOR` when they are no group.
   */
  constructor(host: FlowHost, own: Endpoint, members: readonly TravellingMember[]) {
    this.#host = host;
    this.#own = own;
    const { cookie } = own.identity;
    const mine = { generation: host.generation, cookie, socket: null };
    const found = members.map(({ generation, channel }): Member => {
      return { generation, cookie: cookieOf(host.runtime, channel.number), socket: channel };
    });
    const isAlone = found.every((each) => each.cookie !== cookie);
    this.#members = isAlone ? [mine] : found.map((each) => each.cookie === cookie ? mine : each);
    // The native object has its own copy, and what is no group is nobody's.
    disposeAll(found.filter((each) => isAlone || each.cookie === cookie).map(({ socket }) => socket!));
    try {
      const slots = isAlone ? [0] : slotsOf(members);
      this.#group = new ReuseportGroup(host.runtime, byPlace(slots, this.#members.map((each) => this.#numberOf(each))));
      if (isAlone) this.serve();
    } catch (error) {
      this.release();
      throw error;
    }
  }

  get keepsSocket(): boolean {
    return this.#offered !== null;
  }

  /**
   * This process is the newest, or an older one has ended, or a successor was
   * lost: it reads what has no tag of an older process that is there, and serves
   * what comes to sockets that nobody reads.
   */
  serve(): void {
    const { signal } = this.#newest ??= new AbortController();
    this.#steerTo(this.#own.identity.cookie);
    for (const orphan of this.#orphans()) {
      this.#drain(orphan);
      void this.#watch(orphan, signal);
    }
  }

  /**
   * The socket that a successor is to have: one that nobody reads, or a new one,
   * which gets nothing yet. Null for this process's own, where it may not bind
   * the address any more: its flows are the successor's then.
   */
  spare(): { readonly descriptor: number; readonly identity: SocketIdentity } | null {
    const orphans = this.#orphans();
    this.#offered = orphans.find((each) => each === this.#offered) ?? orphans[0] ?? this.#open();
    if (!this.#offered) return null;
    this.#offered.generation = 0;
    if (this.#newest) void this.#watch(this.#offered, this.#newest.signal);
    const { number: descriptor } = this.#offered.socket!;
    return { descriptor, identity: identify(this.#host.runtime, descriptor)! };
  }

  /** Copies of all sockets in the kernel's order, which the caller closes. */
  travel(): TravellingMember[] {
    const { runtime } = this.#host;
    this.#told = this.#order();
    const places = new Map(this.#group.members.map(({ cookie }, slot) => [cookie, slot]));
    const sorted = this.#members.map((member) => ({ member, slot: places.get(member.cookie)! }))
      .sort((a, b) => a.slot - b.slot);
    const travelling: TravellingMember[] = [];
    try {
      for (const { member, slot } of sorted) {
        const generation = this.#offered || member.socket ? member.generation : 0;
        const channel = new OwnedDescriptor(runtime, duplicate(runtime, this.#numberOf(member)));
        travelling.push({ generation, channel, slot });
      }
      return travelling;
    } catch (error) {
      disposeAll(travelling.map(({ channel }) => channel));
      throw error;
    }
  }

  /** @throws {TakeoverError} `ERR_TAKEOVER_STATE` when the order cannot be told: what is a successor to go by? */
  async check(): Promise<void> {
    if (!this.#hasChanged()) return;
    try {
      await this.#group.refresh(probeMs);
    } finally {
      if (this.#newest) this.serve();
    }
  }

  /** @throws {TakeoverError} `ERR_TAKEOVER_STATE` also when it is another than the successor was told. */
  async readying(): Promise<void> {
    await this.check();
    if (this.#told === this.#order()) return;
    throw new TakeoverError(
      "ERR_TAKEOVER_STATE",
      `Cannot hand over the group of ${JSON.stringify(this.#host.name)}: its order has changed since it was offered, ` +
        "another program has left it; try again",
    );
  }

  /** A successor reads from here on what this process does not know. */
  lease(): void {
    if (this.#offered) {
      this.#drain(this.#offered);
      if (!this.#newest) return;
      this.#leave();
      this.#steerTo(this.#offered.cookie);
    } else {
      this.#leave();
      const { name, options, failed } = this.#host;
      if (!options.route) failed(notKept(name, this.#refusal!));
    }
  }

  olderEnded(): void {
    if (this.#newest) this.serve();
  }

  resume(): void {
    this.serve();
  }

  /** What has its tags comes to this process until it ends. */
  end(): void {}

  close(): void {
    this.release();
  }

  /** The copies are the newest process's from here on. */
  release(): void {
    this.#leave();
    for (const { socket } of this.#members) socket?.[Symbol.dispose]();
  }

  /** Another process is the newest, which reads what nobody else does. */
  #leave(): void {
    this.#newest?.abort();
    this.#newest = null;
    this.#watched.clear();
  }

  /** Tags come round again: the newer one has a tag that two generations have issued. */
  #steerTo(newest: string): void {
    const { generation, options } = this.#host;
    const tag = options.tag!;
    const older = this.#members.filter((each) => each.cookie !== newest && this.#isRead(each))
      .sort((a, b) => a.generation - b.generation);
    const newestTag = tagOf(tag, newest === this.#own.identity.cookie ? generation : generation + 1);
    this.#group.steer((slotOf) => {
      const slots = new Map(older.map((each) => [tagOf(tag, each.generation), slotOf(each.cookie)]));
      slots.delete(newestTag);
      return byEitherTag(tag, { slots, otherwise: slotOf(newest) });
    });
  }

  /** A socket like this process's own; null where that may not be. */
  #open(): Member | null {
    const { runtime } = this.#host;
    const { descriptor: own, identity } = this.#own;
    const prepare = (number: number): void => {
      setReceiveBuffer(runtime, number, receiveBufferOf(runtime, own));
      copyOptions(runtime, identity.family, own, number);
      hearOwnGroups(runtime, number);
    };
    try {
      const socket = this.#group.open({ prepare });
      const member = { generation: 0, cookie: cookieOf(runtime, socket.number), socket };
      this.#members.push(member);
      return member;
    } catch (error) {
      if (!isSystemError(error, ...bindRefusals)) throw error;
      this.#refusal = error;
      return null;
    }
  }

  #numberOf({ socket }: Member): number {
    return socket?.number ?? this.#own.descriptor;
  }

  /** Sockets whose process has ended, or has never been. */
  #orphans(): Member[] {
    return this.#members.filter((each) => each.socket && !this.#isRead(each));
  }

  /** Whether its process is there. */
  #isRead({ generation }: Member): boolean {
    return generation === this.#host.generation || generation > 0 && this.#host.isThere(generation);
  }

  /** Serves what comes to a socket that nobody reads, for as long as nobody does. */
  async #watch(orphan: Member, signal: AbortSignal): Promise<void> {
    const socket = orphan.socket!;
    if (signal.aborted || this.#watched.has(socket)) return;
    this.#watched.add(socket);
    try {
      for (;;) {
        await waitReadable(this.#host.runtime, socket.number, { keepAlive: false, signal });
        // A successor that was lost while it was stopped has gone on, and has the group steered to itself.
        if (orphan.generation === 0) this.#steerTo(this.#own.identity.cookie);
        if (!this.#drain(orphan)) await pause(falseAlarmMs, { signal });
      }
    } catch {
      // Another process is the newest, or the descriptor cannot be waited for now.
      if (!signal.aborted) this.#watched.delete(socket);
    }
  }

  /** Whether there was something. The application may have ended everything in its callback. */
  #drain({ socket }: Member): boolean {
    const { runtime, datagram } = this.#host;
    let count = 0;
    const take: TakeDatagram = (bytes, peer) => {
      count++;
      datagram(bytes, peer);
    };
    drainDatagrams(runtime, socket!.number, take, () => this.#newest !== null);
    return count > 0;
  }

  /** The places of our own sockets. */
  #order(): string {
    return this.#group.members.map(({ cookie, descriptor }) => descriptor >= 0 ? cookie : "").join(" ").trimEnd();
  }

  #hasChanged(): boolean {
    let changes;
    try {
      changes = this.#group.changes();
    } catch (error) {
      // Without tables to ask nobody can tell.
      if (error instanceof TakeoverError && error.code === "ERR_TAKEOVER_UNSUPPORTED") return false;
      throw error;
    }
    const { joined, left } = changes;
    if (joined.length <= strangerCount) return joined.length + left.length > 0;
    throw new TakeoverError(
      "ERR_TAKEOVER_STATE",
      `Cannot hand over the group of ${JSON.stringify(this.#host.name)}: ${joined.length} sockets of other programs ` +
        `have joined it, expected at most ${strangerCount}; end them`,
    );
  }
}

/**
 * Whether the kernel takes the programs that a tag needs, tried on a socket that
 * is bound nowhere, so that nobody's group is touched.
 *
 * @throws {TakeoverError} `ERR_TAKEOVER_UNSUPPORTED` when it does not, or the platform has none.
 */
export function trySteering(runtime: Runtime, tag: Tag | QuicTag): void {
  const slots = new Map(Array.from({ length: atOnceCount }, (_, index) => [tagOf(tag, index + 1), 0]));
  owning(new OwnedDescriptor(runtime, openSocket(runtime, "inet", "dgram")), ({ number }) => {
    setShared(runtime, number);
    attachToGroup(runtime, number, assemble(byEitherTag(tag, { slots, otherwise: 0 })));
  });
}

/**
 * Whether this process may open a socket for a successor: opens one, which gets
 * nothing, and closes it.
 *
 * @param group Of the only socket at its address.
 * @throws {SystemError} One of {@linkcode bindRefusals}.
 */
export function tryMember(group: ReuseportGroup): void {
  group.steer(() => everythingTo(0));
  group.close(group.open());
}

/** Where members are, as an incumbent says it; one that does not has them in the kernel's order. */
function slotsOf(members: readonly TravellingMember[]): number[] {
  const slots = members.map(({ slot }, index) => slot ?? index);
  if (new Set(slots).size === slots.length && slots.every((slot) => slot < slotCount)) return slots;
  throw new TakeoverError(
    "ERR_TAKEOVER_DESCRIPTOR",
    `Cannot take a group with the slots ${slots.slice(0, 20).join(", ")}: expected each once, below ${slotCount}`,
  );
}

function notKept(name: string, { code, errno, syscall }: SystemError): SystemError {
  const what = `Cannot keep the flows of ${JSON.stringify(name)} with this process, they are the successor's: ` +
    "expected to be allowed another socket at its address; keep the first process's user, or add route";
  return new SystemError(code, errno, syscall, what);
}

function byPlace(slots: readonly number[], descriptors: readonly number[]): (number | null)[] {
  const all = Array.from({ length: Math.max(...slots) + 1 }, (): number | null => null);
  for (const [index, slot] of slots.entries()) all[slot] = descriptors[index]!;
  return all;
}
