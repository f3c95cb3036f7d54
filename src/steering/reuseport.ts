/**
 * A group of sockets that share one address (SO_REUSEPORT, socket(7)), and the
 * program that says which of them a packet is for.
 *
 * A program knows a member by its slot. The kernel numbers them as they join,
 * a datagram socket when it is bound, a listener when it begins to listen; when
 * one leaves, the *last* one takes its slot (net/core/sock_reuseport.c,
 * __reuseport_detach_sock). So what is steered by is a plan, made into a program
 * anew whenever the group changes.
 *
 * Between a member's leaving and the next program the one that was last is
 * chosen wrongly. There is no such moment when a spare member is opened first:
 * the spare takes the slot, and is the socket of whoever comes next.
 *
 * @module
 */

import { allocate, viewOf } from "../c/bytes.ts";
import { formatAddress, type InetAddress } from "../c/sockaddr.ts";
import { checked, SystemError, TakeoverError } from "../errors.ts";
import { defaultBacklog } from "../sockets/address.ts";
import type { Runtime } from "../runtime.ts";
import { disposeAll, OwnedDescriptor, owning, readFile } from "../sockets/descriptors.ts";
import {
  bindSocket,
  cookieOf,
  identify,
  integerOption,
  localAddress,
  openSocket,
  setIntegerOption,
  setShared,
  shareOption,
} from "../sockets/socket.ts";
import { attachToGroup, detachFromGroup, whole } from "./attach.ts";
import { answer, assemble, type Line } from "./bpf.ts";
import { readOrder } from "./order.ts";
import { type GroupType, listedMembers } from "./socket_diag.ts";

/** A socket of a group. */
export interface GroupMember {
  /** What names the socket in every process (`SO_COOKIE`). */
  readonly cookie: string;
  /** This process's descriptor, which stays its owner's; -1 for a member of somebody else. */
  readonly descriptor: number;
}

/**
 * Makes the program for a group as it is: `slotOf` gives the slot of a member,
 * by its cookie. Of one that has left since it gives {@linkcode noSlot}; a
 * plan that knows better asks the members.
 */
export type Plan = (slotOf: (cookie: string) => number, members: readonly GroupMember[]) => readonly Line[];

/** How the members of a new group listen. */
export interface GroupOptions {
  /** The length of each accept queue (listen(2)); 4096, cut by net.core.somaxconn. */
  readonly backlog?: number;
  /** For an IPv6 address: take no IPv4 (ipv6(7), IPV6_V6ONLY). */
  readonly ipv6Only?: boolean;
  /** Sets what a socket is to have before it is bound, and hears anything. */
  readonly prepare?: (descriptor: number) => void;
}

/** A member that joined or left without the group being told. */
export interface GroupChange {
  /** Cookies of sockets that are in the kernel's table and not in this group. */
  readonly joined: readonly string[];
  /** Cookies of members that are not in the kernel's table. */
  readonly left: readonly string[];
}

/** A slot that no group has: the kernel's hash chooses for what is sent there. */
export const noSlot = 65_534;

/** A member of somebody else, of which nothing is known. */
const unknown: GroupMember = { cookie: "", descriptor: -1 };

/** A group as one process steers it. Only one process may: the last program counts, whoever attached it. */
export class ReuseportGroup {
  readonly #runtime: Runtime;
  #members: GroupMember[];
  #plan: Plan | null = null;
  /** Where all members are bound. */
  readonly address: InetAddress;
  /** What they carry. */
  readonly type: GroupType;

  /**
   * Takes up a group.
   *
   * @param descriptors Its sockets by their slots; each stays its owner's. Null
   *   is a member of somebody else. When that is not certain: {@linkcode ReuseportGroup.refresh}.
   * @throws {TakeoverError} `ERR_TAKEOVER_DESCRIPTOR` when they are not of one
   *   address and type, all bound with SO_REUSEPORT; `ERR_TAKEOVER_UNSUPPORTED` on macOS.
   */
  constructor(runtime: Runtime, descriptors: readonly (number | null)[]) {
    if (runtime.abi.platform !== "linux") throw unsupported(runtime.abi.platform);
    this.#runtime = runtime;
    const { address, type } = kindOf(runtime, descriptors.find((descriptor) => descriptor !== null) ?? -1);
    this.address = address;
    this.type = type;
    this.#members = descriptors.map((descriptor) => descriptor === null ? unknown : this.#memberOf(descriptor));
  }

  /** The members by their slots. */
  get members(): readonly GroupMember[] {
    return [...this.#members];
  }

  /**
   * Opens one more member, which joins in the last slot. Under a plan it gets
   * what the plan says; without one it gets its share at once.
   *
   * @returns The socket, non-blocking; the caller owns it.
   * @throws {SystemError} For instance `EADDRINUSE` when the group is another user's.
   */
  open(options: Omit<GroupOptions, "ipv6Only"> = {}): OwnedDescriptor {
    const ipv6Only = this.address.family === "inet6" && isIpv6Only(this.#runtime, this.#anyDescriptor());
    const socket = openMember(this.#runtime, this.address, this.type, { ...options, ipv6Only });
    try {
      this.joined(socket.number);
      return socket;
    } catch (error) {
      socket[Symbol.dispose]();
      throw error;
    }
  }

  /**
   * Is told that a socket has joined, which this process or another has opened,
   * or that a member has another number. The plan is made anew.
   */
  joined(descriptor: number): void {
    const member = this.#memberOf(descriptor);
    const known = this.#members.findIndex(({ cookie }) => cookie === member.cookie);
    if (known < 0) this.#members.push(member);
    else this.#members[known] = member;
    this.#follow();
  }

  /**
   * Closes a member. The last one takes its slot, unless another process has a
   * copy of the socket: it stays in the group then. The plan is made anew; it
   * is asked for the members that are left.
   *
   * A listener that closes resets what waits in its queue: `emptyListener` first.
   */
  close(socket: OwnedDescriptor): void {
    const cookie = cookieOf(this.#runtime, socket.number);
    this.#slotOf(cookie);
    socket[Symbol.dispose]();
    this.closed(cookie);
  }

  /** Is told that this process has closed its copy of a member, as {@linkcode close} does. */
  closed(cookie: string): void {
    if (!this.#isListed(cookie)) return this.left(cookie);
    this.#members = this.#members.map((member) => member.cookie === cookie ? { cookie, descriptor: -1 } : member);
  }

  /** Is told that a member has left: its last copy was closed, here or elsewhere. The plan is made anew. */
  left(cookie: string): void {
    const slot = this.#slotOf(cookie);
    const last = this.#members.pop()!;
    if (slot < this.#members.length) this.#members[slot] = last;
    if (this.#members.some((member) => this.#isHeld(member))) this.#follow();
  }

  /**
   * Steers by a plan from the next packet on, in place of the one before.
   *
   * @throws {TakeoverError} `ERR_TAKEOVER_RANGE`, `ERR_TAKEOVER_LIMIT` for a
   *   program that cannot be, `ERR_TAKEOVER_UNSUPPORTED` for one that the kernel
   *   refuses, `ERR_TAKEOVER_STATE` for a plan that names no member; the plan
   *   before stays.
   *
   * @example
   * ```ts
   * group.steer((slotOf) =>
   *   byTag({ offset: 0, size: 1 }, { slots: new Map([[1, slotOf(old)]]), otherwise: slotOf(own) })
   * );
   * ```
   */
  steer(plan: Plan): void {
    this.#attach(plan((cookie) => this.#slotOf(cookie), this.members));
    this.#plan = plan;
  }

  /** Steers no longer: the kernel's hash chooses. */
  release(): void {
    this.#plan = null;
    detachFromGroup(this.#runtime, this.#anyDescriptor());
  }

  /**
   * Who joined or left without this group being told, as far as the kernel's
   * table shows it: a socket that left and another that came do show, a change
   * of the order alone does not.
   *
   * @throws {TakeoverError} `ERR_TAKEOVER_UNSUPPORTED` where there is no table to ask.
   */
  changes(): GroupChange {
    const listed = listedMembers(this.#runtime, this.address, this.type).map(({ cookie }) => cookie);
    const known = this.#members.map(({ cookie }) => cookie);
    return {
      joined: listed.filter((cookie) => !known.includes(cookie)),
      left: known.filter((cookie) => !listed.includes(cookie)),
    };
  }

  /**
   * Checks that nobody joined or left behind this group's back.
   *
   * @throws {TakeoverError} `ERR_TAKEOVER_STATE` when somebody did: `refresh` takes up the group as it is.
   */
  check(): void {
    const { joined, left } = this.changes();
    if (joined.length + left.length === 0) return;
    throw new TakeoverError(
      "ERR_TAKEOVER_STATE",
      `Cannot steer the group at ${formatAddress(this.address)} as it was: expected its ${this.#members.length} ` +
        `members, ${joined.length} more have joined and ${left.length} have left; call refresh, or end the program ` +
        "that interferes",
    );
  }

  /**
   * Finds out the kernel's order, and steers by it. The kernel tells nobody, so
   * each slot is sent a packet of our own, which the member drops and the
   * kernel counts; the application's traffic goes on, and sees none of it.
   *
   * A member of somebody else gets an empty datagram, or a connection that is
   * closed at once.
   *
   * @param timeoutMs How long a slot's packet may take; 500.
   * @throws {TakeoverError} `ERR_TAKEOVER_STATE` when the order cannot be told,
   *   because the group changes meanwhile, or a datagram socket has a filter of its own.
   */
  async refresh(timeoutMs = 500): Promise<void> {
    const { joined, left } = this.changes();
    this.#anyDescriptor();
    const present = this.#members.filter(({ cookie }) => !left.includes(cookie));
    const own = present.filter((member) => this.#isHeld(member));
    const others = [...present.filter((member) => !this.#isHeld(member)).map(({ cookie }) => cookie), ...joined];
    const count = own.length + others.length;
    const descriptors = own.map(({ descriptor }) => descriptor);
    const { address, type } = this;
    const isDualStack = address.family === "inet6" && !isIpv6Only(this.#runtime, this.#anyDescriptor());
    const unordered = { address, isDualStack, type, descriptors, count, program: this.#lines(), timeoutMs };
    // Which of several strangers has which slot stays open; that it is a stranger's is what matters.
    const stranger = (): GroupMember => ({ cookie: others.pop() ?? "", descriptor: -1 });
    try {
      const order = await readOrder(this.#runtime, unordered);
      this.#members = order.map((index) => index === null ? stranger() : own[index]!);
    } finally {
      if (this.#plan) this.#follow();
      else this.release();
    }
  }

  /** Makes the plan anew for the group as it is. */
  #follow(): void {
    if (this.#plan) this.#attach(this.#lines());
  }

  #attach(lines: readonly Line[]): void {
    attachToGroup(this.#runtime, this.#anyDescriptor(), assemble(lines));
  }

  /** Traffic goes on though a plan names a member that has left. */
  #lines(): readonly Line[] {
    if (!this.#plan) return [answer(whole)];
    return this.#plan((cookie) => {
      const slot = this.#members.findIndex((member) => member.cookie === cookie);
      return slot >= 0 ? slot : noSlot;
    }, this.members);
  }

  #slotOf(cookie: string): number {
    const slot = this.#members.findIndex((member) => member.cookie === cookie);
    if (slot >= 0) return slot;
    throw new TakeoverError(
      "ERR_TAKEOVER_STATE",
      `Cannot find the socket ${cookie || "without a cookie"} in the group at ${formatAddress(this.address)}: ` +
        `expected one of its ${this.#members.length} members`,
    );
  }

  /** The number may be another socket's by now. */
  #isHeld({ cookie, descriptor }: GroupMember): boolean {
    return descriptor >= 0 && cookieOf(this.#runtime, descriptor) === cookie;
  }

  #anyDescriptor(): number {
    const found = this.#members.find((member) => this.#isHeld(member));
    if (found) return found.descriptor;
    throw new TakeoverError(
      "ERR_TAKEOVER_CLOSED",
      `Cannot steer the group at ${formatAddress(this.address)}: expected an open member in this process, none is`,
    );
  }

  #isListed(cookie: string): boolean {
    try {
      return listedMembers(this.#runtime, this.address, this.type).some((listed) => listed.cookie === cookie);
    } catch (error) {
      // Where there is no table, or no descriptor to ask with (EMFILE), it is taken for gone.
      if (error instanceof TakeoverError || error instanceof SystemError) return false;
      throw error;
    }
  }

  #memberOf(descriptor: number): GroupMember {
    const { address, type } = kindOf(this.#runtime, descriptor);
    if (type === this.type && formatAddress(address) === formatAddress(this.address)) {
      return { descriptor, cookie: cookieOf(this.#runtime, descriptor) };
    }
    const [found, expected] = [formatAddress(address), formatAddress(this.address)];
    throw notOfGroup(descriptor, `${type} at ${found}`, `${this.type} at ${expected}`);
  }
}

/**
 * Opens a group.
 *
 * @param address With port 0 the kernel chooses one, for all.
 * @param count How many sockets, from 1 on.
 * @returns The sockets in the group's order, which the caller owns, and the group.
 * @throws {SystemError} For instance `EADDRINUSE`.
 *
 * @example
 * ```ts
 * const { group, sockets } = openGroup(runtime, { family: "inet", hostname: "127.0.0.1", port: 0 }, "dgram", 2);
 * ```
 */
export function openGroup(
  runtime: Runtime,
  address: InetAddress,
  type: GroupType,
  count: number,
  options: GroupOptions = {},
): { group: ReuseportGroup; sockets: OwnedDescriptor[] } {
  const sockets: OwnedDescriptor[] = [];
  try {
    let at = address;
    while (sockets.length < Math.max(1, count)) {
      const socket = openMember(runtime, at, type, options);
      sockets.push(socket);
      at = localAddress(runtime, socket.number) as InetAddress;
    }
    return { group: new ReuseportGroup(runtime, sockets.map(({ number }) => number)), sockets };
  } catch (error) {
    disposeAll(sockets);
    throw error;
  }
}

/**
 * Whether a listener that closes leaves its connections, queued and half open,
 * to the others of its group (`net.ipv4.tcp_migrate_req`, Linux 5.14).
 */
export function migratesConnections(runtime: Runtime): boolean {
  if (runtime.abi.platform !== "linux") return false;
  try {
    return readFile(runtime, "/proc/sys/net/ipv4/tcp_migrate_req").trim() === "1";
  } catch {
    // An older kernel has no such file, and a container may hide it.
    return false;
  }
}

/** Whether a socket was bound so that others can share its address (SO_REUSEPORT). */
export function isShared(runtime: Runtime, descriptor: number): boolean {
  return runtime.abi.platform === "linux" && integerOption(runtime, descriptor, shareOption.linux) === 1;
}

/**
 * Opens one more socket at the address of a group, which no group of ours is
 * told of.
 *
 * @returns The socket, non-blocking, in the kernel's last slot; the caller owns it.
 * @throws {SystemError} For instance `EADDRINUSE` when the group is another user's.
 */
export function openMember(
  runtime: Runtime,
  address: InetAddress,
  type: GroupType,
  options: GroupOptions,
): OwnedDescriptor {
  const { abi, libc } = runtime;
  const { SOL_SOCKET, SO_REUSEADDR, IPPROTO_IPV6, IPV6_V6ONLY } = abi.constants;
  return owning(new OwnedDescriptor(runtime, openSocket(runtime, address.family, type)), (socket) => {
    setShared(runtime, socket.number);
    if (type === "stream") setIntegerOption(runtime, socket.number, SOL_SOCKET, SO_REUSEADDR, 1);
    if (address.family === "inet6") {
      setIntegerOption(runtime, socket.number, IPPROTO_IPV6, IPV6_V6ONLY, options.ipv6Only ? 1 : 0);
    }
    options.prepare?.(socket.number);
    bindSocket(runtime, socket.number, address);
    if (type === "stream") checked(abi, "listen", libc.listen(socket.number, options.backlog ?? defaultBacklog));
    return new OwnedDescriptor(runtime, socket.take());
  });
}

function kindOf(runtime: Runtime, descriptor: number): { address: InetAddress; type: GroupType } {
  const found = identify(runtime, descriptor);
  const hasOption = isShared(runtime, descriptor);
  if (found && found.address.family !== "unix" && hasOption && (found.type === "dgram" || found.listening)) {
    return { address: found.address, type: found.type === "dgram" ? "dgram" : "stream" };
  }
  const lack = hasOption ? "not listening" : "without it";
  const shown = found ? `${found.type} at ${formatAddress(found.address)}, ${lack}` : "none";
  throw notOfGroup(descriptor, shown, "a TCP listener or UDP socket with SO_REUSEPORT");
}

/** Whether an IPv6 socket takes no IPv4 (ipv6(7), IPV6_V6ONLY). */
export function isIpv6Only({ abi, libc }: Runtime, descriptor: number): boolean {
  const { IPPROTO_IPV6, IPV6_V6ONLY } = abi.constants;
  const value = allocate(4);
  const size = allocate(4);
  viewOf(size).setUint32(0, 4, true);
  checked(abi, "getsockopt", libc.getsockopt(descriptor, IPPROTO_IPV6, IPV6_V6ONLY, value, size));
  return viewOf(value).getInt32(0, true) === 1;
}

function notOfGroup(descriptor: number, found: string, expected: string): TakeoverError {
  return new TakeoverError(
    "ERR_TAKEOVER_DESCRIPTOR",
    `Cannot take the socket ${descriptor} for a member: expected ${expected}, it is ${found}`,
  );
}

function unsupported(platform: string): TakeoverError {
  return new TakeoverError("ERR_TAKEOVER_UNSUPPORTED", `Cannot steer a group of sockets on ${platform}: expected linux`);
}
