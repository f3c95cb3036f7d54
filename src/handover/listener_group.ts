/**
 * A group of listeners that share one address (SO_REUSEPORT), each in a server
 * of its own; the kernel spreads connections over them. A successor can want
 * fewer than there are, or more:
 *
 * ```text
 * incumbent   1 2 3 4 5 6 7 8      incumbent   1 2 3
 * successor   1 2 3 4 5 . . .      successor   1 2 3 4 5
 *                       surplus                      new
 * ```
 *
 * From the opening on new connections go only to those that both have: so a
 * surplus one gets empty before it is closed, and a new one, which nobody would
 * have if the successor were lost, gets none. When the lease has ended nothing
 * comes back: the surplus ones are closed, and the kernel spreads over all.
 *
 * @module
 */

import { type InetAddress, sameAddress, type SocketAddress } from "../c/sockaddr.ts";
import type { Endpoint } from "../natives/endpoint.ts";
import type { Runtime } from "../runtime.ts";
import { cookieOf } from "../sockets/socket.ts";
import { keepAwayFromOthers, type KeepingAway, type Steering } from "../steering/keep_away.ts";
import { isShared } from "../steering/reuseport.ts";
import { TakeoverError } from "../errors.ts";
import { isOfKind, type Unopened } from "./binding.ts";
import { serves } from "./foreign_sockets.ts";
import type { QueueCounts } from "./queue_counts.ts";
import type { Stragglers } from "./stragglers.ts";
import { Surplus } from "./surplus.ts";

/** The names of a group's members: those that it has had, then `name`, `name.2`, …, as far as they are free. */
export function memberNames(name: string, inherited: readonly string[], count: number): string[] {
  const names = inherited.slice(0, count);
  for (let number = 1; names.length < count; number++) {
    const free = number === 1 ? name : `${name}.${number}`;
    if (!inherited.includes(free)) names.push(free);
  }
  return names;
}

/** What an incumbent has of a group, in the order of its members: all are where the first is. */
export function inheritedMembers(
  runtime: Runtime,
  name: string,
  endpoints: ReadonlyMap<string, Unopened>,
  wanted: SocketAddress,
): [string, Unopened][] {
  const numberOf = (each: string) => each === name ? 1 : Number(/^[1-9]\d*$/.exec(each.slice(name.length + 1))?.[0]);
  const named = [...endpoints]
    .filter(([each, socket]) => {
      const isNamed = each === name || each.startsWith(`${name}.`) && numberOf(each) >= 2;
      return isNamed && isOfKind(socket.identity, "listener") && serves(runtime, socket, wanted);
    })
    .sort(([a], [b]) => numberOf(a) - numberOf(b));
  return named.filter(([, { identity }]) => sameAddress(identity.address, named[0]![1].identity.address));
}

/** The group as one process serves it. */
export class ListenerGroup {
  readonly #runtime: Runtime;
  readonly #isOwnStore: boolean;
  readonly #stragglers: Stragglers;
  readonly #servers: Endpoint[] = [];
  /** Where it is, when the incumbent has it. */
  #address: InetAddress | null = null;
  #away: KeepingAway | null = null;
  #surplus: Surplus | null = null;
  /** How many members the incumbent has that are wanted. */
  #keptCount = 0;
  /** Listeners that came and are not wanted, by name. */
  readonly #unwanted = new Map<string, Unopened>();
  #closing: Promise<QueueCounts | null> | null = null;

  /** @param isOwnStore Whether what a service manager has was given to it by this program, which takes it back. */
  constructor(runtime: Runtime, isOwnStore: boolean, stragglers: Stragglers) {
    this.#runtime = runtime;
    this.#isOwnStore = isOwnStore;
    this.#stragglers = stragglers;
  }

  /**
   * Before any member is opened.
   *
   * @param inherited What the incumbent has, which stays its owner's but for
   *   the surplus, which is taken.
   * @param count How many this process wants.
   * @throws {TakeoverError} `ERR_TAKEOVER_STATE` when more are wanted of a
   *   listener that cannot be shared, fewer than a service manager listens on,
   *   or the kernel's order cannot be told; `ERR_TAKEOVER_UNSUPPORTED` where
   *   the kernel has no tables to ask.
   */
  async prepare(inherited: readonly [string, Unopened][], count: number): Promise<void> {
    this.#keptCount = Math.min(inherited.length, count);
    if (inherited.length === 0 || inherited.length === count) return;
    const descriptors = inherited.map(([, { descriptor }]) => descriptor.number);
    if (!descriptors.every((each) => isShared(this.#runtime, each))) throw notShared(inherited[0]![0], count);
    const isSupervised = inherited.slice(count).some(([, { isSupervised }]) => isSupervised);
    if (isSupervised && !this.#isOwnStore) throw supervised(inherited[0]![0], inherited.length, count);
    const kept = new Set(descriptors.slice(0, count).map((each) => cookieOf(this.#runtime, each)));
    this.#address = inherited[0]![1].identity.address as InetAddress;
    this.#away = await keepAwayFromOthers(this.#runtime, descriptors, (cookie) => kept.has(cookie));
    for (const [name, socket] of inherited.slice(count)) this.#unwanted.set(name, socket);
    const surplus = [...this.#unwanted.values()].map(({ descriptor }) => descriptor);
    this.#surplus = new Surplus(this.#runtime, surplus, () => this.#servers);
  }

  /** Names of listeners that came and are not wanted. */
  get surplusNames(): string[] {
    return [...this.#unwanted.keys()];
  }

  /** By which program new connections go to some members alone; null when they go to all. */
  get steering(): Steering | null {
    return this.#away?.steering ?? null;
  }

  /** A member is in its server. */
  opened(endpoint: Endpoint): void {
    this.#servers.push(endpoint);
    this.#away?.joined(endpoint.descriptor);
  }

  /**
   * This process is to be ready. Where it has not opened all that it wants of
   * the incumbent's, that one serves what is missing, and what is not wanted.
   *
   * @returns What goes back, by name; the caller owns it.
   */
  giveUpUnlessOpened(): ReadonlyMap<string, Unopened> {
    const unwanted = new Map(this.#unwanted);
    if (this.#servers.length >= this.#keptCount) return new Map();
    this.#unwanted.clear();
    this.#surplus = null;
    this.#away?.end();
    this.#away = null;
    return unwanted;
  }

  /** This process serves. */
  serve(): void {
    this.#surplus?.serve();
  }

  /**
   * Nothing comes back to the incumbent: surplus members are closed, and the
   * kernel spreads over all that are left, once no other process has a surplus
   * one.
   *
   * @param forgotten Resolves when no service manager has copies of them: one that stays in the group is nobody's.
   * @returns What became of those who waited at them; null where there were
   *   none, and when it is told again.
   */
  async settle(timeoutMs: number, forgotten: Promise<void>): Promise<QueueCounts | null> {
    if (!this.#closing) return await (this.#closing = this.#settle(timeoutMs, forgotten));
    await this.#closing;
    return null;
  }

  /** The members that this process has, in order. */
  get servers(): readonly Endpoint[] {
    return this.#servers;
  }

  /** Resolves when no surplus member is left, or they cannot be closed, which has been told. */
  get atRest(): Promise<unknown> {
    return this.#closing?.catch(() => null) ?? Promise.resolve(null);
  }

  async #settle(timeoutMs: number, forgotten: Promise<void>): Promise<QueueCounts | null> {
    const away = this.#away;
    if (!away) return null;
    try {
      await forgotten;
      const counts = await this.#surplus?.close(away, timeoutMs) ?? null;
      return this.#unwanted.size > 0 ? counts : null;
    } finally {
      this.#surplus?.[Symbol.dispose]();
      this.#away = null;
      const cookies = [...this.#unwanted.values()].map(({ identity }) => identity.cookie);
      this.#stragglers.endOnceGone(this.#address!, cookies, () => away.end());
    }
  }

  /** Gives up what was not wanted: the incumbent has it. */
  [Symbol.dispose](): void {
    this.#surplus?.[Symbol.dispose]();
  }
}

function supervised(name: string, inheritedCount: number, count: number): TakeoverError {
  return new TakeoverError(
    "ERR_TAKEOVER_STATE",
    `Cannot listen ${count} times as ${JSON.stringify(name)}: expected all ${inheritedCount} listeners to be wanted, a ` +
      "service manager listens on those that are not, and nobody would serve them; stop its sockets first",
  );
}

function notShared(name: string, count: number): TakeoverError {
  return new TakeoverError(
    "ERR_TAKEOVER_STATE",
    `Cannot listen ${count} times as ${JSON.stringify(name)}: expected a listener that others can join, the ` +
      "incumbent's was bound without SO_REUSEPORT; take it over with a count of 1",
  );
}
