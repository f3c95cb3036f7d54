/**
 * All groups of listeners that a process has.
 *
 * @module
 */

import { formatAddress, type InetAddress, sameAddress, type SocketAddress } from "../c/sockaddr.ts";
import { TakeoverError } from "../errors.ts";
import type { Endpoint } from "../natives/endpoint.ts";
import type { Runtime } from "../runtime.ts";
import type { TcpEndpoint } from "../sockets/address.ts";
import { detachFromGroup } from "../steering/attach.ts";
import type { Steering } from "../steering/keep_away.ts";
import { isIpv6Only, isShared } from "../steering/reuseport.ts";
import type { Unopened } from "./binding.ts";
import type { LastCopies } from "./last_copies.ts";
import { inheritedMembers, ListenerGroup, memberNames } from "./listener_group.ts";
import { Stragglers } from "./stragglers.ts";

/** A group that is to be opened. */
export interface GroupOrder<T> {
  readonly name: string;
  readonly count: number;
  /** As the application gave it, and as it resolves. */
  readonly address: TcpEndpoint;
  readonly wanted: SocketAddress;
  /** What the incumbent offers; the surplus is taken out. */
  readonly offered: Map<string, Unopened>;
  /** Hears of the program that keeps connections away from some members. */
  steered(steering: Steering): void;
  /** Opens one member. */
  open(name: string, address: TcpEndpoint, index: number): Promise<{ readonly native: T; readonly endpoint: Endpoint }>;
}

/** What there is of a group that is not whole yet. */
interface Begun {
  readonly group: ListenerGroup;
  readonly wanted: SocketAddress;
  /** Of all members, in order. */
  readonly names: readonly string[];
  readonly natives: unknown[];
  /** Where the first member really is, for the others: any port was wanted, or a service manager chose the place. */
  at: TcpEndpoint;
}

/** An address that others can listen at, and who does in this process. */
interface SharedAddress {
  readonly address: InetAddress;
  readonly members: readonly Endpoint[];
}

/** Groups by their names. */
export class ListenerGroups implements Disposable {
  readonly #runtime: Runtime;
  readonly #isOwnStore: boolean;
  readonly #groups = new Map<string, ListenerGroup>();
  readonly #begun = new Map<string, Begun>();
  readonly #stragglers: Stragglers;

  /**
   * @param isOwnStore Whether what a service manager has was given to it by this program, which takes it back.
   * @param isHeld Whether a group's program may be somebody else's now: a successor's, or that of what is displaced.
   */
  constructor(runtime: Runtime, isOwnStore: boolean, isHeld: () => boolean) {
    this.#runtime = runtime;
    this.#isOwnStore = isOwnStore;
    this.#stragglers = new Stragglers(runtime, isHeld);
  }

  /** Whether a group of that name is there, whole. */
  has(name: string): boolean {
    return this.#groups.has(name) && !this.#begun.has(name);
  }

  /** The incumbent's endpoints that are members which this process does not want, and closes. */
  get surplusNames(): string[] {
    return this.#all().flatMap(({ surplusNames }) => surplusNames);
  }

  /** The members of a group in this process. */
  serversOf(name: string): readonly Endpoint[] | null {
    return this.#groups.get(name)?.servers ?? null;
  }

  /** Resolves when no surplus member is left. */
  get atRest(): Promise<unknown> {
    return Promise.all(this.#all().map((group) => group.atRest));
  }

  /**
   * Opens a group. What has been opened before one of them fails stays open,
   * and the same order again goes on there.
   *
   * @throws {TakeoverError} `ERR_TAKEOVER_STATE` when it is another order.
   */
  async open<T>(order: GroupOrder<T>): Promise<T[]> {
    const begun = this.#begun.get(order.name) ?? await this.#begin(order);
    if (begun.names.length !== order.count || !sameAddress(begun.wanted, order.wanted)) throw begunOtherwise(order, begun);
    for (const member of begun.names.slice(begun.natives.length)) {
      const { native, endpoint } = await order.open(member, { ...begun.at, reusePort: true }, begun.natives.length);
      begun.natives.push(native);
      begun.group.opened(endpoint);
      begun.at = this.#placeOf(endpoint, order.address);
    }
    this.#begun.delete(order.name);
    return begun.natives as T[];
  }

  async #begin<T>({ name, count, address, wanted, offered, steered }: GroupOrder<T>): Promise<Begun> {
    const group = new ListenerGroup(this.#runtime, this.#isOwnStore, this.#stragglers);
    const inherited = inheritedMembers(this.#runtime, name, offered, wanted);
    await group.prepare(inherited, count);
    if (group.steering) steered(group.steering);
    for (const surplus of group.surplusNames) offered.delete(surplus);
    const names = memberNames(name, inherited.map(([each]) => each), count);
    const begun = { group, wanted, names, natives: [], at: address };
    this.#groups.set(name, group);
    this.#begun.set(name, begun);
    return begun;
  }

  /**
   * This process is to be ready. A group of which the incumbent keeps a member,
   * because it has not been opened, is steered no more.
   *
   * @param giveBack Takes what was not wanted of it.
   */
  readying(giveBack: (name: string, socket: Unopened) => void): void {
    for (const group of this.#all()) {
      for (const [name, socket] of group.giveUpUnlessOpened()) giveBack(name, socket);
    }
  }

  /** This process serves. */
  serve(): void {
    for (const group of this.#all()) group.serve();
  }

  /**
   * Nothing comes back to the incumbent: surplus members are closed.
   *
   * @param forgotten Resolves when no service manager has copies of them.
   */
  settle(timeoutMs: number, forgotten: Promise<void>, copies: LastCopies): void {
    for (const group of this.#all()) copies.follow(group.surplusNames, group.settle(timeoutMs, forgotten));
  }

  /** A successor is to be offered all listeners of this process. */
  offering(listeners: readonly Endpoint[]): void {
    for (const { address } of this.#shared(listeners)) this.#stragglers.offering(address);
  }

  /**
   * A successor was lost: the kernel spreads over all again, whatever that one
   * had done, once no listener is there that it has added.
   *
   * @param listeners All of this process; it may have steered some as a group
   *   that are none here.
   */
  takeBack(listeners: readonly Endpoint[]): void {
    for (const { address, members } of this.#shared(listeners)) {
      const own = members.map(({ identity }) => identity.cookie);
      const added = this.#stragglers.since(address).filter((cookie) => !own.includes(cookie));
      this.#stragglers.endOnceGone(address, added, () => this.#detach(members));
    }
  }

  /** This process has no part in them any more. */
  leave(): void {
    this.#stragglers[Symbol.dispose]();
  }

  /** Gives up what was not wanted: the incumbent has it. */
  [Symbol.dispose](): void {
    for (const group of this.#all()) group[Symbol.dispose]();
  }

  #placeOf({ identity, descriptor }: Endpoint, address: TcpEndpoint): TcpEndpoint {
    const { family, hostname, port } = identity.address as InetAddress;
    return { ...address, hostname, port, ipv6Only: family === "inet6" && isIpv6Only(this.#runtime, descriptor) };
  }

  /** By their addresses, those that can be in a group with others. */
  #shared(listeners: readonly Endpoint[]): Iterable<SharedAddress> {
    const found = new Map<string, SharedAddress>();
    for (const endpoint of listeners) {
      const { address } = endpoint.identity;
      if (address.family === "unix" || !this.#isOpen(endpoint)) continue;
      const at = formatAddress(address);
      found.set(at, { address, members: [...found.get(at)?.members ?? [], endpoint] });
    }
    return found.values();
  }

  #detach(members: readonly Endpoint[]): void {
    const open = members.find((each) => this.#isOpen(each));
    if (open) detachFromGroup(this.#runtime, open.descriptor);
  }

  /** One may have another listener for a moment. */
  #isOpen({ alive, descriptor }: Endpoint): boolean {
    return alive && isShared(this.#runtime, descriptor);
  }

  #all(): ListenerGroup[] {
    return [...this.#groups.values()];
  }
}

/**
 * Checks how many listeners a group is to have.
 *
 * @throws {TakeoverError} `ERR_TAKEOVER_RANGE`.
 */
export function checkCount(name: string, count: number, mostCount: number): void {
  if (Number.isInteger(count) && count >= 1 && count <= mostCount) return;
  throw new TakeoverError(
    "ERR_TAKEOVER_RANGE",
    `Cannot listen ${count} times as ${JSON.stringify(name)}: expected a count from 1 to ${mostCount}`,
  );
}

function begunOtherwise({ name, count }: GroupOrder<unknown>, { names }: Begun): TakeoverError {
  return new TakeoverError(
    "ERR_TAKEOVER_STATE",
    `Cannot listen ${count} times as ${JSON.stringify(name)}: expected ${names.length} times at the same address, of ` +
      "which some have been opened; give the same address and count again, and those that are missing are opened",
  );
}
