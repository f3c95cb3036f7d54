/**
 * The incumbent's side of a hand-over: it answers on the control socket, offers
 * what it has, and gives it up in two steps. At ready it stops accepting and
 * keeps its copies (the lease); at settled it closes them. Whatever goes wrong
 * before that, it serves on.
 *
 * @module
 */

import { batchChannel, batchesOf, encodeBatchHead } from "./batch.ts";
import type { OfferedFlows } from "./endpoint_flows.ts";
import type { OfferedSocket } from "./flows.ts";
import { waitFor } from "../channels/readiness.ts";
import { Conversation, within } from "./conversation.ts";
import { checkPeerUser } from "../sockets/identity.ts";
import { disposeAll, OwnedDescriptor } from "../sockets/descriptors.ts";
import { isElsewhere } from "../sockets/elsewhere.ts";
import { TakeoverError } from "../errors.ts";
import type { FrameHead } from "./frame.ts";
import type { Limits } from "../limits.ts";
import { type Hello, type OfferedEndpoint, type OfferedState, parseBatch, parseHello, parseJoin, parseReady, type Peer } from "./messages.ts";
import { commonVersion, versions } from "./protocol.ts";
import type { ControlStream, Runtime } from "../runtime.ts";
import { duplicate } from "../sockets/socket.ts";

/** How long a process that may have been stopped itself reads on before it judges. */
const lastLookMs = 100;

/** What the incumbent's process is, and does when a hand-over moves on. */
export interface IncumbentHost {
  readonly runtime: Runtime;
  readonly limits: Limits;
  /** User ids that may take over, besides this process's own. */
  readonly allowUsers: readonly number[];
  /** Names this process: 32 hexadecimal digits. */
  readonly instance: string;
  readonly generation: number;
  /** Whom this process has replaced and still has a lease with: it may have to go back. */
  lessor(): Peer | null;
  /** Everything to offer, the control socket first. */
  endpoints(): readonly OfferedSocket[];
  /** The ends over which datagrams will come; the caller closes them. Rejects when the successor has to be refused. */
  flows(): Promise<readonly OfferedFlows[]>;
  /** A successor's hello was accepted. */
  greeted(): void;
  /** Resolves when nothing is left of this process's own beginning: all that it has, it keeps. */
  atRest(): Promise<unknown>;
  /** Everything is about to be offered. */
  offering(): void;
  /** The successor waits for its lease: what takes its time before that, while everything is served. */
  readying(claimed: readonly string[]): Promise<void>;
  /** Ready: stop accepting on the control socket and what is claimed. */
  lease(to: Peer, claimed: readonly string[]): void;
  /** Connections may move to the successor; the second connection is taken. */
  move(second: Conversation): void;
  /** What a TLS server encrypts its session tickets with; empty for none. */
  ticketKeys(name: string): string;
  /** What the application gives its successor. */
  state(): OfferedState | null;
  /** The successor was lost after ready: accept again. */
  resume(to: Peer, error: unknown): void;
  /** Settled, and the successor does not know it yet. */
  settled(to: Peer, claimed: readonly string[]): void;
  /** Close the copies; the successor hears of it after that. */
  release(to: Peer, claimed: readonly string[]): void;
  /** A successor was lost before ready, that may have done something with what it was offered. */
  takeBack(): void;
  /** A successor was refused, or lost before ready. */
  abandon(error: unknown): void;
}

/** A hand-over in progress. */
interface Session {
  readonly hello: Hello;
  readonly conversation: Conversation;
  /** Resolves with the second connection. */
  readonly joined: Promise<Conversation>;
  join(second: Conversation): void;
  isJoined: boolean;
  /** Whether the successor may have something of this process's. */
  isOffered: boolean;
}

/** Answers on the control socket; one hand-over at a time. */
export class Incumbent {
  readonly #host: IncumbentHost;
  #session: Session | null = null;
  #pendingCount = 0;
  /** Nothing is handed over any more: this process has ended its part, or been released. */
  #closed = false;

  constructor(host: IncumbentHost) {
    this.#host = host;
  }

  /** Whether a successor is between hello and settled. */
  get busy(): boolean {
    return this.#session !== null;
  }

  /** Whether that one may have something of this process's already. */
  get offers(): boolean {
    return this.#session?.isOffered === true;
  }

  /** Takes a new connection to the control socket. */
  accept(stream: ControlStream): void {
    if (this.#pendingCount >= this.#host.limits.pendingCount) return this.#turnAway(stream);
    this.#pendingCount++;
    void this.#answer(stream);
  }

  /**
   * Ends the hand-over in progress, because this process ends. The successor
   * has the sockets, so it is told nothing but that the connection is over, and
   * goes on alone.
   */
  close(): void {
    this.#closed = true;
    this.#session?.conversation.end();
  }

  #turnAway(stream: ControlStream): void {
    const { pendingCount } = this.#host.limits;
    const reason = `${pendingCount} connections have not said hello yet (limit pendingCount)`;
    new Conversation(stream, "incumbent", this.#host.limits)
      .refuse(new TakeoverError("ERR_TAKEOVER_BUSY", `Cannot answer: ${reason}; try again`));
  }

  async #answer(stream: ControlStream): Promise<void> {
    const { runtime, limits, allowUsers } = this.#host;
    const conversation = new Conversation(stream, "incumbent", limits);
    let counted = true;
    const known = () => {
      if (counted) this.#pendingCount--;
      counted = false;
    };
    try {
      checkPeerUser(runtime, stream.descriptor, allowUsers, "successor");
      const head = await conversation.receive(limits.helloMs, "helloMs");
      known();
      // Connections that were accepted before outlive this process's part. One
      // that is lost meets whoever answers on the path now.
      if (this.#closed) return conversation.destroy();
      if (head.type === "join") this.#join(head, conversation);
      else await this.#handOver(parseHello(head, limits), conversation);
    } catch (error) {
      conversation.refuse(error);
      if (!this.#closed) this.#host.abandon(error);
    } finally {
      known();
    }
  }

  #join(head: FrameHead, second: Conversation): void {
    const { token } = parseJoin(head);
    const session = this.#session;
    if (session?.hello.token !== token || session.isJoined) {
      throw new TakeoverError("ERR_TAKEOVER_PROTOCOL", "Cannot join: the token is of no hand-over that waits for it");
    }
    session.isJoined = true;
    session.join(second);
  }

  async #handOver(hello: Hello, conversation: Conversation): Promise<void> {
    const version = this.#agree(hello, this.#endpointsFor(hello));
    let join = (_second: Conversation) => {};
    const joined = new Promise<Conversation>((resolve) => join = resolve);
    const session: Session = { hello, conversation, joined, join, isJoined: false, isOffered: false };
    this.#session = session;
    this.#host.greeted();
    let flows: readonly OfferedFlows[] = [];
    let second: Conversation | null = null;
    try {
      await this.#beAtRest(conversation);
      if (hello.datagrams) flows = await this.#host.flows();
      if (this.#closed) return;
      // Servers may have been opened and closed meanwhile.
      const endpoints = this.#endpointsFor(hello);
      this.#checkRoom(hello, endpoints.length + flows.length);
      this.#host.offering();
      session.isOffered = true;
      second = await this.#offer(session, version, [...endpoints, ...flows]);
      const ready = await conversation.receive(this.#host.limits.readyMs, "readyMs");
      const { claimed } = parseReady(ready, this.#host.limits);
      checkNames(claimed, endpoints, "claims");
      await this.#host.readying(claimed);
      // It may have gone meanwhile, or this process has.
      if (!conversation.open || conversation.state === "ended") return void await conversation.receive(0, "readyMs");
      const moving = hello.moves ? second : null;
      if (moving) second = null;
      await this.#lease(session, claimed, moving);
    } catch (error) {
      this.#session = null;
      if (session.isOffered && !this.#closed) this.#host.takeBack();
      throw error;
    } finally {
      if (this.#session === session) this.#session = null;
      disposeAll(flows.map(({ channel }) => channel));
      // A second connection that comes too late has nobody, either.
      if (second) second.destroy();
      else if (!session.isJoined) void joined.then((late) => late.destroy());
    }
  }

  /** A successor with the same limits hears why it is refused, before its own patience is at an end. */
  async #beAtRest({ failed }: Conversation): Promise<void> {
    const timeoutMs = this.#host.limits.offerMs / 2;
    await waitFor(Promise.race([this.#host.atRest(), failed]), { timeoutMs }, () =>
      new TakeoverError(
        "ERR_TAKEOVER_BUSY",
        `Cannot hand over within ${timeoutMs} ms (half of the limit offerMs): expected this process to be at rest, it ` +
          "still displaces others or closes surplus listeners; try again when it has done so",
      ));
  }

  /** One that does not know of datagram sockets would take them for malformed. */
  #endpointsFor(hello: Hello): OfferedSocket[] {
    return this.#host.endpoints().filter(({ kind }) => kind !== "datagram" || hello.datagrams);
  }

  /** Refuses what cannot become a hand-over, before anything is sent. */
  #agree(hello: Hello, endpoints: readonly OfferedSocket[]): number {
    const { instance } = this.#host;
    const version = commonVersion(hello.versions);
    if (version === null) {
      throw new TakeoverError(
        "ERR_TAKEOVER_VERSION",
        `Cannot hand over: the incumbent speaks versions ${versions.min} to ${versions.max} of the protocol, ` +
          `the successor ${hello.versions.min} to ${hello.versions.max}; go through a release that speaks both`,
      );
    }
    if (hello.instance === instance) {
      throw new TakeoverError("ERR_TAKEOVER_SELF", "Cannot take over from oneself: call takeOver once in a process");
    }
    const lessor = this.#host.lessor();
    if (this.#session || lessor) {
      const other = this.#session ? `to pid ${this.#session.hello.pid}` : `from pid ${lessor!.pid}`;
      throw new TakeoverError(
        "ERR_TAKEOVER_BUSY",
        `Cannot hand over: the hand-over ${other} is in progress; try again when it is settled`,
      );
    }
    checkNames(hello.require, endpoints, "requires");
    this.#checkRoom(hello, endpoints.length);
    return version;
  }

  #checkRoom({ room }: Hello, count: number): void {
    const { spareCount } = this.#host.limits;
    if (room >= count + spareCount) return;
    throw new TakeoverError(
      "ERR_TAKEOVER_NO_ROOM",
      `Cannot hand over ${count} descriptors: the successor has room for ${room}, expected ` +
        `${spareCount} more (limit spareCount); raise its limit of open files (ulimit -n)`,
    );
  }

  /** Gives the second connection, over which everything has gone that was offered. */
  async #offer(
    { hello, conversation, joined }: Session,
    version: number,
    endpoints: readonly (OfferedSocket | OfferedFlows)[],
  ): Promise<Conversation> {
    const { runtime, limits, generation } = this.#host;
    conversation.send({
      type: "offer",
      version,
      pid: runtime.libc.getpid(),
      runtime: `${runtime.name} ${runtime.version}`,
      generation,
      endpoints: endpoints.map((endpoint) => manifestEntry(endpoint, this.#host.ticketKeys(endpoint.name))),
      moves: hello.moves,
      state: this.#host.state(),
    } as { type: string });
    const either = Promise.race([joined, conversation.failed]);
    const second = await within(either, limits.helloMs, "helloMs", "the successor's second connection");
    // The runtime closes its descriptor when the successor does, and the number may be another socket's then.
    const copy = new OwnedDescriptor(runtime, duplicate(runtime, second.stream.descriptor));
    let isSent = false;
    try {
      const channel = batchChannel(runtime, copy.number);
      const batches = batchesOf(endpoints, runtime.abi.descriptorsPerMessage);
      for (const [number, batch] of batches.entries()) {
        const count = batch.length;
        const descriptors = batch.map(({ descriptor }) => descriptor);
        await channel.send(encodeBatchHead({ number, count }), descriptors, { timeoutMs: limits.batchMs });
        conversation.send({ type: "batch", number, count } as { type: string });
        const answer = parseBatch(await conversation.receive(limits.batchMs, "batchMs"));
        if (answer.number !== number || answer.count !== count) {
          throw new TakeoverError(
            "ERR_TAKEOVER_PROTOCOL",
            `Cannot go on: expected batch ${number} with ${count} descriptors to be acknowledged, ` +
              `pid ${hello.pid} acknowledged ${answer.number} with ${answer.count}`,
          );
        }
      }
      if (!hello.moves) second.destroy();
      isSent = true;
      return second;
    } finally {
      copy[Symbol.dispose]();
      if (!isSent) second.destroy();
    }
  }

  /** From ready to settled: everything can still be undone. */
  async #lease({ hello, conversation }: Session, claimed: readonly string[], moving: Conversation | null): Promise<void> {
    const { generation, limits } = this.#host;
    const to: Peer = { pid: hello.pid, runtime: hello.runtime, generation: generation + 1 };
    this.#host.lease(to, claimed);
    try {
      conversation.send({ type: "lease", silenceMs: limits.silenceMs } as { type: string });
      if (moving) this.#host.move(moving);
      while ((await this.#stillAlive(conversation)).type !== "settled");
    } catch (error) {
      // This process ends: the successor serves, there is nothing to resume.
      if (this.#closed) return;
      conversation.refuse(error);
      this.#session = null;
      this.#host.resume(to, error);
      return;
    }
    this.#host.settled(to, claimed);
    this.#closed = true;
    try {
      // What the successor does not want it closes when it hears of it: nobody else has a copy by then.
      this.#host.release(to, claimed);
    } finally {
      // An abort behind settled comes too late: the lease is over.
      if (conversation.state === "settling") conversation.send({ type: "released" });
      conversation.end();
    }
  }

  /**
   * The successor's next word. When it does not come in time, whatever has
   * arrived meanwhile is still read: this process may have been the one that
   * was stopped.
   */
  async #stillAlive(conversation: Conversation): Promise<FrameHead> {
    const { silenceMs } = this.#host.limits;
    try {
      return await conversation.receive(silenceMs, "silenceMs").catch((error) => {
        if (isTimeout(error)) return conversation.receive(lastLookMs, "silenceMs");
        throw error;
      });
    } catch (cause) {
      if (!isTimeout(cause)) throw cause;
      throw new TakeoverError(
        "ERR_TAKEOVER_REVOKED",
        `The lease has ended: the successor was silent for ${silenceMs} ms (limit silenceMs), ` +
          "so the incumbent accepts again",
        { cause },
      );
    }
  }
}

function isTimeout(error: unknown): boolean {
  return error instanceof TakeoverError && error.code === "ERR_TAKEOVER_TIMEOUT";
}

function manifestEntry(offered: OfferedSocket | OfferedFlows, ticketKeys: string): OfferedEndpoint {
  const { kind, name, identity, isSupervised } = offered;
  const { address, cookie } = identity;
  const mark = isElsewhere(cookie) ? { elsewhere: true } : {};
  const entry = { kind, name, address, cookie, supervised: isSupervised, ...mark };
  if ("fields" in offered) return { ...entry, ...offered.fields };
  return ticketKeys ? { ...entry, ticketKeys } : entry;
}

function checkNames(names: readonly string[], endpoints: readonly OfferedSocket[], verb: string): void {
  const offered = endpoints.filter(({ kind }) => kind !== "control").map(({ name }) => name);
  const unknown = names.find((name) => !offered.includes(name));
  if (unknown === undefined) return;
  throw new TakeoverError(
    "ERR_TAKEOVER_UNKNOWN_NAME",
    `Cannot hand over: the successor ${verb} ${JSON.stringify(unknown)}, ` +
      `the incumbent has ${offered.map((name) => JSON.stringify(name)).join(", ") || "no endpoint"}`,
  );
}
