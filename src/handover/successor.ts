/**
 * The successor's side of a hand-over: it takes what the incumbent offers,
 * checks every socket, says ready, and ends the lease when it is settled.
 *
 * An incumbent that dies on the way leaves a successor that has the sockets and
 * goes on alone; one that refuses is obeyed.
 *
 * @module
 */

import { batchesOf, receiveBatch } from "./batch.ts";
import { isOfKind, type Unopened } from "./binding.ts";
import { FdChannel } from "../channels/fd_channel.ts";
import { Conversation } from "./conversation.ts";
import { checkPeerUser } from "../sockets/identity.ts";
import { noteElsewhere } from "../sockets/elsewhere.ts";
import { disposeAll, freeDescriptorCount, OwnedDescriptor, owning } from "../sockets/descriptors.ts";
import { isSystemError, PeerLostError, TakeoverError } from "../errors.ts";
import { canPause } from "../sockets/event_loop.ts";
import type { InheritedFlows } from "./endpoint_flows.ts";
import type { OlderFlows } from "./flow_links.ts";
import type { TravellingMember } from "./kernel_flows.ts";
import { encodeFrame } from "./frame.ts";
import type { Limits } from "../limits.ts";
import { connectPath } from "../sockets/listener.ts";
import { type Offer, type OfferedEndpoint, type OfferedState, parseBatch, parseLease, parseOffer, type Peer } from "./messages.ts";
import { versions } from "./protocol.ts";
import type { Runtime } from "../runtime.ts";
import { formatAddress, sameAddress } from "../c/sockaddr.ts";
import { duplicate, identify, readAvailable, setNonBlocking, type SocketIdentity } from "../sockets/socket.ts";

/** What the successor's process is and wants. */
export interface SuccessorOptions {
  readonly runtime: Runtime;
  readonly limits: Limits;
  readonly path: string;
  readonly instance: string;
  /** User ids that may be taken over from, besides this process's own. */
  readonly allowUsers: readonly number[];
  /** Names that it cannot start without. */
  readonly require: readonly string[];
}

/** How many signs of life a successor gives in the time that it may be silent. */
const aliveCount = 5;
const shortestAliveMs = 10;
const longestAliveMs = 60_000;

/** One hand-over, from the first byte to settled. */
export class Succession {
  /** Who is being replaced. */
  readonly from: Peer;
  /** The control socket; taken by whoever opens it. */
  readonly control: Unopened;
  /** The other sockets by name; an entry is taken out by whoever opens it, and given back when that fails. */
  readonly endpoints: Map<string, Unopened>;
  /** Where datagrams of older processes are forwarded, by the endpoint's name; taken by whoever opens that. */
  readonly flows: Map<string, { readonly older: OlderFlows[]; readonly members: TravellingMember[] }> = new Map();
  /** How the incumbent's flows stay with it, as it says, by the endpoint's name. */
  readonly #strategies = new Map<string, string>();
  /** The keys of the session tickets of the incumbent's TLS servers, by name. */
  readonly ticketKeys: ReadonlyMap<string, string>;
  /** What the incumbent's application gave. */
  readonly state: OfferedState | null;
  readonly #conversation: Conversation;
  readonly #limits: Limits;
  /** On which connections come; null where none do. */
  #second: FdChannel | null;
  #isDisposed = false;
  #leaseEnd: Promise<void> = Promise.resolve();
  #isSettling = false;

  private constructor(
    offer: Offer,
    sockets: readonly Unopened[],
    conversation: Conversation,
    second: FdChannel | null,
    limits: Limits,
  ) {
    this.state = offer.state;
    this.ticketKeys = new Map(offer.endpoints.map(({ name, ticketKeys = "" }) => [name, ticketKeys]));
    this.#second = second;
    this.from = { pid: offer.pid, runtime: offer.runtime, generation: offer.generation };
    this.control = sockets[0]!;
    this.endpoints = new Map();
    for (const [index, socket] of sockets.entries()) this.#sort(offer.endpoints[index]!, socket);
    this.#conversation = conversation;
    this.#limits = limits;
  }

  /**
   * Takes over, up to the point where every socket is here and verified.
   *
   * @param connection To the control socket; taken.
   * @throws {TakeoverError} `ERR_TAKEOVER_LOST` when the incumbent went away
   *   before it had handed over its control socket; a refusal's own code; what
   *   is wrong with what it sent. Every descriptor that came has been closed.
   */
  static async begin(connection: OwnedDescriptor, options: SuccessorOptions): Promise<Succession> {
    const { runtime, limits, instance } = options;
    const conversation = owning(connection, ({ number }) => {
      checkPeerUser(runtime, number, options.allowUsers, "incumbent");
      return converse(runtime, connection, limits);
    });
    const sockets: Unopened[] = [];
    try {
      const token = randomHex();
      conversation.send({
        type: "hello",
        versions,
        token,
        instance,
        pid: runtime.libc.getpid(),
        runtime: `${runtime.name} ${runtime.version}`,
        room: Math.max(0, freeDescriptorCount(runtime)),
        require: options.require,
        moves: canPause(runtime),
        datagrams: true,
      } as { type: string });
      const offer = parseOffer(await conversation.receive(limits.offerMs, "offerMs"), limits);
      checkVersion(offer);
      const second = await receiveSockets(offer, conversation, token, options, sockets);
      return new Succession(offer, sockets, conversation, second, limits);
    } catch (error) {
      disposeAll(sockets.map(({ descriptor }) => descriptor));
      conversation.refuse(error);
      throw error;
    }
  }

  /**
   * Says ready. When this resolves the incumbent has stopped accepting, or is
   * gone.
   *
   * @param claimed The names that this process serves.
   * @throws {TakeoverError} When the incumbent refuses, or does not answer in
   *   time, or has taken the lease back already: then it serves on.
   */
  async ready(claimed: readonly string[]): Promise<void> {
    const conversation = this.#conversation;
    try {
      if (!conversation.open || conversation.state === "ended") return void await conversation.receive(0, "leaseMs");
      conversation.send({ type: "ready", claimed } as { type: string });
      const { silenceMs } = parseLease(await conversation.receive(this.#limits.leaseMs, "leaseMs"));
      // One that was stopped finds the end of its lease behind it: the incumbent accepts again.
      if (conversation.refusal) throw conversation.refusal;
      this.#leaseEnd = this.#keepLease(aliveEveryMs(silenceMs));
      // Looked at in settle; until then nobody waits for it.
      this.#leaseEnd.catch(() => {});
    } catch (error) {
      if (isLost(error)) return;
      conversation.refuse(error);
      throw error;
    }
  }

  /**
   * Resolves when the lease has ended: by {@linkcode settle}, or because the
   * incumbent is gone.
   *
   * @throws {TakeoverError} `ERR_TAKEOVER_REVOKED` when the incumbent took the
   *   lease back and accepts again.
   */
  get leaseEnd(): Promise<void> {
    return this.#leaseEnd;
  }

  /** Whether settled was said: the incumbent cannot come back any more, unless it has said so before. */
  get isSettling(): boolean {
    return this.#isSettling;
  }

  /** Ends the lease: the incumbent closes its copies. */
  async settle(): Promise<void> {
    const conversation = this.#conversation;
    if (conversation.open && conversation.state === "leased") {
      conversation.send({ type: "settled" });
      this.#isSettling = true;
      // An incumbent that is stopped reads settled when it goes on. Until then
      // nothing more can come of it.
      const timer = setTimeout(() => conversation.destroy(), this.#limits.releaseMs);
      await this.#leaseEnd.finally(() => clearTimeout(timer));
    } else {
      await this.#leaseEnd;
    }
    conversation.end();
  }

  #sort({ kind, name, generation = 0, format = "own", slot, strategy }: OfferedEndpoint, socket: Unopened): void {
    if (kind === "control") return;
    if (kind !== "flows" && kind !== "member") return void this.endpoints.set(name, socket);
    const { descriptor: channel } = socket;
    const flows = this.flows.get(name) ?? { older: [], members: [] };
    if (kind === "flows") flows.older.push({ generation, channel, format });
    else flows.members.push({ generation, channel, slot: slot ?? null });
    this.flows.set(name, flows);
    if (strategy !== undefined) this.#strategies.set(name, strategy);
  }

  /** How the incumbent's flows of an endpoint stay with it, which an earlier release does not say; null for none. */
  strategyOf(name: string): string | null {
    const flows = this.flows.get(name);
    if (!flows) return null;
    return this.#strategies.get(name) ?? (flows.members.length > 0 ? "steered" : "forwarded");
  }

  /** What could not be opened is there for whoever tries again, or is not claimed. @param socket Taken. */
  giveBack(name: string, socket: Unopened): void {
    if (this.#isDisposed) return socket.descriptor[Symbol.dispose]();
    this.endpoints.set(name, socket);
  }

  /** The older processes of an endpoint, once; the caller closes the channels. */
  takeFlows(name: string): InheritedFlows {
    const found = this.flows.get(name) ?? { older: [], members: [] };
    this.flows.delete(name);
    return found;
  }

  /** The connection on which connections come, once; the caller closes it. */
  takeSecond(): FdChannel | null {
    const second = this.#second;
    this.#second = null;
    return second;
  }

  /** Gives up: the incumbent goes on, or accepts again. Closes what was not opened. */
  abort(error: unknown): void {
    this.#conversation.refuse(error);
    this[Symbol.dispose]();
  }

  /** Closes what was not opened; nothing can be claimed after it. */
  [Symbol.dispose](): void {
    this.#isDisposed = true;
    this.takeSecond()?.close();
    disposeAll([this.control, ...this.endpoints.values()].map(({ descriptor }) => descriptor));
    this.endpoints.clear();
    for (const name of [...this.flows.keys()]) {
      const { older, members } = this.takeFlows(name);
      disposeAll([...older, ...members].map(({ channel }) => channel));
    }
  }

  /** Says alive until the incumbent's last word. */
  async #keepLease(everyMs: number): Promise<void> {
    const conversation = this.#conversation;
    let timer: ReturnType<typeof setTimeout> | undefined;
    const beat = () => {
      if (!conversation.open || conversation.state !== "leased") return;
      conversation.send({ type: "alive" });
      timer = setTimeout(beat, everyMs);
    };
    timer = setTimeout(beat, everyMs);
    try {
      await conversation.receive(0, "leaseMs");
    } catch (error) {
      if (!isLost(error)) throw error;
    } finally {
      clearTimeout(timer);
    }
  }
}

function aliveEveryMs(silenceMs: number): number {
  return Math.min(Math.max(shortestAliveMs, silenceMs / aliveCount), longestAliveMs);
}

/**
 * The control connection, with a copy of its descriptor kept until it closes:
 * a process that was stopped may say alive before it reads that its lease has
 * been revoked, and must not take the failed write for the incumbent's death.
 */
function converse(runtime: Runtime, connection: OwnedDescriptor, limits: Limits): Conversation {
  const copy = new OwnedDescriptor(runtime, duplicate(runtime, connection.number));
  return new Conversation(runtime.adoptStream(connection.take()), "successor", limits, () => {
    return owning(copy, ({ number }) => readAvailable(runtime, number));
  });
}

/** 128 random bits in hexadecimal. */
export function randomHex(): string {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Whether the other process has gone, as opposed to having said no. */
export function isLost(error: unknown): boolean {
  return error instanceof PeerLostError;
}

/** Makes the second connection, and fills `sockets` from it; gives it back where connections will come on it. */
async function receiveSockets(
  offer: Offer,
  conversation: Conversation,
  token: string,
  options: SuccessorOptions,
  sockets: Unopened[],
): Promise<FdChannel | null> {
  const { runtime, limits, path, allowUsers } = options;
  const second = connectPath(runtime, path);
  if (!second) throw new PeerLostError(`The incumbent no longer listens on ${path}`);
  const channel = new FdChannel(runtime, second, "stream");
  let isKept = false;
  try {
    checkPeerUser(runtime, channel.descriptor, allowUsers, "incumbent");
    await joinWith(channel, token, limits);
    await receiveBatches(offer, conversation, channel, options, sockets);
    isKept = offer.moves;
    return isKept ? channel : null;
  } finally {
    if (!isKept) channel.close();
  }
}

async function receiveBatches(
  offer: Offer,
  conversation: Conversation,
  channel: FdChannel,
  { runtime, limits }: SuccessorOptions,
  sockets: Unopened[],
): Promise<void> {
  const batches = batchesOf(offer.endpoints, runtime.abi.descriptorsPerMessage);
  for (const [number, endpoints] of batches.entries()) {
    try {
      const announced = parseBatch(await conversation.receive(limits.batchMs, "batchMs"));
      if (announced.number !== number || announced.count !== endpoints.length) throw unexpectedBatch(announced, number, endpoints.length);
      const descriptors = await receiveBatch(channel, announced, limits.batchMs);
      sockets.push(...verified(runtime, descriptors, endpoints));
      conversation.send({ type: "received", number, count: endpoints.length } as { type: string });
    } catch (error) {
      // Whoever has the control socket can go on without the incumbent, with
      // as much as came: the rest died with it.
      if (isLost(error) && sockets.length > 0) return;
      throw error;
    }
  }
}

async function joinWith(channel: FdChannel, token: string, limits: Limits): Promise<void> {
  try {
    await channel.send(encodeFrame({ type: "join", token }), [], { timeoutMs: limits.batchMs });
  } catch (cause) {
    if (!isSystemError(cause, "EPIPE", "ECONNRESET")) throw cause;
    throw new PeerLostError("The incumbent has ended the connection for descriptors", { cause });
  }
}

/** Takes ownership of the descriptors; throws, and closes them, unless all are what was offered. */
function verified(
  runtime: Runtime,
  descriptors: readonly OwnedDescriptor[],
  endpoints: readonly OfferedEndpoint[],
): Unopened[] {
  try {
    return descriptors.map((descriptor, index) => {
      const offered = endpoints[index]!;
      const identity = identify(runtime, descriptor.number);
      const right = identity !== null && isOfKind(identity, offered.kind) &&
        sameAddress(identity.address, offered.address) && identity.cookie === offered.cookie;
      if (!right) throw wrongSocket(offered, identity);
      setNonBlocking(runtime, descriptor.number);
      if (offered.elsewhere) noteElsewhere(identity.cookie);
      return { descriptor, identity, isSupervised: offered.supervised === true };
    });
  } catch (error) {
    disposeAll(descriptors);
    throw error;
  }
}

function wrongSocket(offered: OfferedEndpoint, identity: SocketIdentity | null): TakeoverError {
  const owner = offered.kind === "flows" || offered.kind === "member" ? "the flows of " : "";
  const name = offered.kind === "control" ? "the control socket" : `${owner}the endpoint ${JSON.stringify(offered.name)}`;
  const found = identity === null
    ? "a descriptor that is no IP or Unix socket"
    : `a ${identity.type} socket at ${formatAddress(identity.address)}${identity.type === "stream" && !identity.listening ? " that does not listen" : ""}`;
  const words = { control: "listening", listener: "listening", datagram: "datagram", flows: "packet", member: "datagram" };
  const expected = words[offered.kind];
  return new TakeoverError(
    "ERR_TAKEOVER_DESCRIPTOR",
    `Cannot take ${name}: expected the ${expected} socket at ${formatAddress(offered.address)} ` +
      `with cookie ${offered.cookie || "none"}, got ${found} with cookie ${identity?.cookie || "none"}`,
  );
}

function unexpectedBatch(announced: { number: number; count: number }, number: number, count: number): TakeoverError {
  return new TakeoverError(
    "ERR_TAKEOVER_PROTOCOL",
    `Cannot take batch ${announced.number} with ${announced.count} descriptors: expected batch ${number} with ${count}`,
  );
}

function checkVersion({ version }: Offer): void {
  if (version >= versions.min && version <= versions.max) return;
  throw new TakeoverError(
    "ERR_TAKEOVER_VERSION",
    `Cannot take over: the incumbent chose version ${version} of the protocol, ` +
      `expected ${versions.min} to ${versions.max}`,
  );
}
