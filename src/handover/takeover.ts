/**
 * The life of one process among its generations: it starts first or as a
 * successor, opens its endpoints, is ready, serves, is replaced, drains, ends.
 *
 * ```text
 * starting --ready--> serving --(successor ready)--> leased --(settled)--> released
 *                        ^                              |
 *                        +------(successor lost)--------+
 * ```
 *
 * @module
 */

import {
  type DatagramAddress,
  type EndpointAddress,
  type GroupEndpoint,
  resolveAddress,
  type TcpEndpoint,
  type TcpOpening,
  type UdpEndpoint,
  type UnixDatagramEndpoint,
  type UnixEndpoint,
  type UnixOpening,
} from "../sockets/address.ts";

import { ForeignSockets } from "./foreign_sockets.ts";
import type { OpenedKind, Unopened } from "./binding.ts";
import { connectionsEnd, Drain, type FetchHandler, type RequestListener } from "./drain.ts";
import type { DatagramOpening, UnixDatagramOpening } from "../natives/adopt.ts";
import { waitFor } from "../channels/readiness.ts";
import { displace, type Displaced } from "./displacing.ts";
import type { Endpoint } from "../natives/endpoint.ts";
import { LastCopies } from "./last_copies.ts";
import { checkCount, ListenerGroups } from "./listener_groups.ts";
import { giveTicketKeys, ticketKeysOf } from "../natives/ticket_keys.ts";
import { TakeoverError } from "../errors.ts";
import { Emitter, type Outcome, reported, type TakeoverEventType, type TakeoverListener } from "./events.ts";
import type { EndpointFlows, Flows, InheritedFlows, NoFlows } from "./endpoint_flows.ts";
import { checkedFlows, type FlowOptions } from "./flow_options.ts";
import type { SocketOrigin } from "./flow_strategy.ts";
import { type OfferedSocket, ProcessFlows } from "./flows.ts";
import { openControl, openEndpoint, type Sources } from "./opening.ts";
import { registrationsOf } from "../sockets/event_loop.ts";
import { inheritedDescriptors } from "../foreign/activation.ts";
import { Incumbent } from "./incumbent.ts";
import { type Limits, limitsFrom } from "../limits.ts";
import { checkedName, type OfferedState, type Peer } from "./messages.ts";
import { checkedStoreName, Notifier } from "../foreign/notify.ts";
import { OwnPaths } from "./own_paths.ts";
import { Reporting } from "./reporting.ts";
import type { ControlListener, Runtime } from "../runtime.ts";
import type { SocketAddress } from "../c/sockaddr.ts";
import { type Beginning, begin, instanceName } from "./beginning.ts";
import type { Conversation } from "./conversation.ts";
import { type DrainOutcome, Moves } from "./moves.ts";
import type { Connections, ConnectionsOptions } from "../connections/raw.ts";
import type { Json } from "../connections/movable.ts";
import type { MovableWebSockets } from "../connections/websockets.ts";
import { stateOf, type TakeoverOptions } from "./options.ts";
import type { Succession } from "./successor.ts";

/** How long before the end of a drain everything goes that can, at the best moment or not. */
const lastChanceMs = 1_000;

type Stage = "starting" | "serving" | "leased" | "released" | "closed";

/** What a process has, whether it is the first or not. */
interface Surroundings {
  /** What it has from elsewhere. */
  readonly foreign: ForeignSockets;
  /** Null when reports are switched off. */
  readonly notifier: Notifier | null;
}

/** What an endpoint for datagrams has besides. */
interface Datagrams {
  readonly flows: EndpointFlows | NoFlows;
  /** Whether the application itself lets others bind the address. */
  readonly isShared: boolean;
}

/** One process's part in a chain of generations. Made by `takeOver`. */
export class Takeover implements AsyncDisposable {
  /** 1 for the process that bound the path, one more with every hand-over. */
  readonly generation: number;
  /** Names of the sockets that came from the incumbent. */
  readonly inherited: readonly string[];
  /**
   * Resolves when a successor has taken over and the lease has ended: nothing
   * comes back from here on. What is left to do is to wait for
   * {@linkcode drained} and to end.
   *
   * Rejects with `ERR_TAKEOVER_REVOKED` when the incumbent took this process's
   * lease back.
   */
  readonly released: Promise<Outcome>;
  /**
   * Resolves when the lease with the incumbent has ended; with {@linkcode ready}
   * for the first process. Rejects with `ERR_TAKEOVER_REVOKED`.
   */
  readonly settled: Promise<void>;

  /** What the incumbent's application gave its successor (option `state`); null for nothing, and in the first process. */
  readonly state: OfferedState | null;

  readonly #runtime: Runtime;
  readonly #limits: Limits;
  readonly #path: string;
  readonly #succession: Succession | null;
  readonly #endpoints = new Map<string, Endpoint>();
  /** What holds them, as the application opened it. */
  readonly #natives = new Map<string, unknown>();
  /** Names of endpoints whose servers are being opened. */
  readonly #opening = new Set<string>();
  readonly #groups: ListenerGroups;
  readonly #copies: LastCopies;
  #isDisplacing = false;
  /** Resolves when no others are displaced. */
  #displacing: Promise<unknown> = Promise.resolve();
  /** Aborted when this process is closed. */
  readonly #ending = new AbortController();
  readonly #paths: OwnPaths;
  readonly #foreign: ForeignSockets;
  readonly #sources: Sources;
  readonly #store: boolean;
  readonly #reporting: Reporting;
  readonly #drain = new Drain();
  readonly #emitter = new Emitter();
  readonly #moves: Moves;
  readonly #flows: ProcessFlows;
  readonly #incumbent: Incumbent;
  #stage: Stage = "starting";
  #isReadying = false;
  /** Whether the lease with the incumbent has ended, if there ever was one. */
  #isSettled = false;
  #control: Unopened | null;
  #controlListener: ControlListener | null = null;
  #controlEndpoint: Endpoint | null = null;
  #readyAt = 0;
  #successor: Peer | null = null;
  #drained: Promise<DrainOutcome> | null = null;
  #settle: (error?: unknown) => void = () => {};
  #release: (outcome: Outcome) => void = () => {};
  #revoke: (error: unknown) => void = () => {};

  private constructor(
    runtime: Runtime,
    path: string,
    instance: string,
    options: TakeoverOptions,
    { foreign, notifier }: Surroundings,
    { control, succession }: Beginning,
  ) {
    this.#runtime = runtime;
    this.#limits = limitsFrom(options.limits);
    this.#drain.bodySize = this.#limits.bodySize;
    this.#path = path;
    this.#paths = new OwnPaths(runtime);
    this.#paths.take({ family: "unix", path });
    this.#control = control;
    this.#succession = succession;
    this.#foreign = foreign;
    this.#sources = { runtime, limits: this.#limits, succession, foreign, paths: this.#paths };
    this.#store = options.store ?? false;
    this.generation = (succession?.from.generation ?? 0) + 1;
    this.inherited = [...succession?.endpoints.keys() ?? []];
    this.settled = new Promise((resolve, reject) => {
      this.#settle = (error) => error === undefined ? resolve() : reject(error);
    });
    this.released = new Promise((resolve, reject) => [this.#release, this.#revoke] = [resolve, reject]);
    // Waiting for either is the application's choice.
    this.settled.catch(() => {});
    this.released.catch(() => {});
    this.state = succession?.state ?? null;
    this.#groups = new ListenerGroups(runtime, this.#store, () => this.#isDisplacing || this.#incumbent.offers);
    this.#copies = new LastCopies({
      runtime,
      limits: this.#limits,
      closed: (names, counts) => this.#emitter.emit("closed", { names, ...counts }),
      failed: (error) => this.#emitter.emit("unserved", reported(error)),
    });
    this.#moves = new Moves(
      runtime,
      this.#limits,
      this.#drain,
      (progress) => this.#emitter.emit("progress", progress),
      (error) => this.#emitter.emit("unserved", reported(error)),
    );
    this.#flows = new ProcessFlows({
      runtime,
      limits: this.#limits,
      generation: this.generation,
      failed: (error) => this.#emitter.emit("unserved", reported(error)),
    });
    this.#reporting = new Reporting({
      notifier,
      pid: runtime.libc.getpid(),
      store: this.#store,
      endpoints: () => this.#endpoints.values(),
      failed: (error) => this.#emitter.emit("unheard", reported(error)),
    });
    this.#incumbent = new Incumbent({
      runtime,
      limits: this.#limits,
      allowUsers: options.allowUsers ?? [],
      instance,
      generation: this.generation,
      lessor: () => this.#isSettled ? null : this.#succession?.from ?? null,
      endpoints: () => this.#offered(),
      flows: () => this.#flows.offer(this.#alive().map(({ name }) => name)),
      greeted: () => this.#reporting.replacing(),
      atRest: () => Promise.all([this.#displacing, this.#groups.atRest]),
      offering: () => this.#groups.offering(this.#listeners()),
      ticketKeys: (name) => ticketKeysOf(runtime, this.#natives.get(name)),
      state: () => stateOf(options, this.#limits),
      readying: (claimed) => this.#flows.readying(claimed),
      lease: (to, claimed) => this.#becomeLeased(to, claimed),
      move: (second) => this.#depart(second),
      resume: (to, error) => this.#resume(to, error),
      settled: (to, claimed) => this.#reporting.replaced(to.pid, this.#unclaimed(claimed).map(({ name }) => name)),
      release: (to, claimed) => this.#becomeReleased(to, claimed),
      takeBack: () => this.#takeBackGroups(),
      abandon: (error) => this.#abandon(error),
    });
  }

  /** See `takeOver` in mod.ts, which chooses the runtime. */
  static async begin(runtime: Runtime, path: string, options: TakeoverOptions): Promise<Takeover> {
    const passed = options.inherit ?? inheritedDescriptors(runtime);
    const foreign = new ForeignSockets(runtime, passed, options.store ?? false);
    try {
      const notifier = options.notify === false ? null : new Notifier(runtime);
      const instance = instanceName();
      const beginning = await begin(runtime, path, instance, options);
      const takeover = new Takeover(runtime, path, instance, options, { foreign, notifier }, beginning);
      // The incumbent's sockets are the ones with the connections.
      if (takeover.generation > 1) foreign[Symbol.dispose]();
      return takeover;
    } catch (error) {
      foreign[Symbol.dispose]();
      throw error;
    }
  }

  /** Names of the endpoints whose sockets are a service manager's; their Unix paths are left to it. */
  get supervised(): readonly string[] {
    return [...this.#endpoints.values()].filter(({ isSupervised }) => isSupervised).map(({ name }) => name);
  }

  /**
   * Opens an endpoint: the inherited socket of that name, when there is one and
   * it is at that address, else a new one. In the first process a socket from
   * elsewhere counts as inherited: the one of that name, wherever it
   * is, else the one at that address.
   *
   * @param name Names the endpoint across generations; at most 255 bytes.
   * @param address Where it is to be; a TCP port, or a Unix path.
   * @param open Opens a native server at the address it is given, which on
   *   Linux is a placeholder that the true socket replaces right after. It may
   *   return before the server listens.
   * @returns What `open` returned. A successor's server starts to accept at
   *   {@linkcode ready}.
   * @throws {TakeoverError} `ERR_TAKEOVER_STATE` when the name is in use or
   *   this process has been replaced or closed, meanwhile perhaps, `ERR_TAKEOVER_ADDRESS`,
   *   `ERR_TAKEOVER_ADOPT` when the server did not take the address.
   * @throws {SystemError} For instance `EADDRINUSE`, when a new socket cannot be bound.
   *
   * @example
   * ```ts ignore
   * await takeover.listen("web", { port: 8080 }, (at) => Deno.serve(at, handler));
   * await takeover.listen("web", { port: 8080 }, (at) => Bun.serve({ ...at, fetch }));
   * await takeover.listen("web", { port: 8080 }, (at) => http.createServer(app).listen(at));
   * ```
   */
  listen<T>(name: string, address: TcpEndpoint, open: (at: TcpOpening) => T): Promise<Awaited<T>>;
  /** The same on a Unix path. */
  listen<T>(name: string, address: UnixEndpoint, open: (at: UnixOpening) => T): Promise<Awaited<T>>;
  async listen<T>(name: string, address: EndpointAddress, open: (at: never) => T): Promise<Awaited<T>> {
    return await this.#openOnce("listener", name, address, open);
  }

  /**
   * Opens a group of listeners at one address (socket(7), SO_REUSEPORT), each
   * in a server of its own, for instance in a worker: the kernel spreads
   * connections over them. The members are endpoints themselves: `name`,
   * `name.2`, `name.3`, …
   *
   * A successor may want another count. What waits at a listener that it does
   * not want is accepted by its servers before that is closed; one that is new
   * gets connections when the lease has ended.
   *
   * When a server fails to open, those before it stay; the same call once more
   * opens the ones that are missing, and returns all. At {@linkcode ready} the
   * incumbent keeps those of its listeners that are missing still.
   *
   * @param name Names the group across generations.
   * @param address Where it is to be, and how many listeners it has: `count`.
   * @param open Opens one server, as for {@linkcode listen}; it is given the
   *   server's number besides, from 0 on.
   * @returns What `open` returned, in that order.
   * @throws {TakeoverError} As {@linkcode listen}; `ERR_TAKEOVER_STATE` also
   *   when the incumbent's listener was bound without SO_REUSEPORT and more are
   *   wanted, when a service manager listens on those that are not, or when the
   *   order of the group cannot be told because others join and leave it;
   *   `ERR_TAKEOVER_UNSUPPORTED` where the kernel has no tables to ask for it
   *   (sock_diag), and the count changes; `ERR_TAKEOVER_RANGE` for a count that
   *   is none.
   *
   * @example
   * ```ts ignore
   * await takeover.listenGroup("web", { port: 8080, count: 4 }, (at) => createServer(app).listen(at));
   * ```
   */
  async listenGroup<T>(
    name: string,
    address: GroupEndpoint,
    open: (at: TcpOpening, index: number) => T,
  ): Promise<Awaited<T>[]> {
    const { count, ...rest } = address;
    checkCount(name, count, this.#limits.endpointCount);
    checkedName(name, this.#limits);
    this.#checkListening(name);
    const opening = `${name}.*`;
    if (this.#groups.has(name) || this.#opening.has(opening)) throw usedTwice(name);
    this.#opening.add(opening);
    try {
      const wanted = await resolveAddress(this.#runtime, rest);
      this.#checkListening(name);
      return await this.#groups.open({
        name,
        count,
        address: rest,
        wanted,
        offered: this.#succession?.endpoints ?? new Map(),
        steered: (steering) => this.#emitter.emit("steering", { name, ...steering }),
        open: async (member, at, index) => {
          const native = await this.listen(member, at, (opening) => open(opening, index));
          return { native, endpoint: this.#endpoint(member) };
        },
      });
    } finally {
      this.#opening.delete(opening);
    }
  }

  /**
   * Takes the place of programs that share an endpoint's address
   * (SO_REUSEPORT) and know nothing of hand-overs: all new connections come
   * here, the others accept what waits for them, and only then are told to end.
   * Nobody is reset by that. It begins when the lease with the incumbent has
   * ended ({@linkcode settled}). Others are displaced one call after the other;
   * a successor that comes meanwhile waits for half of `offerMs`, and is refused
   * with `ERR_TAKEOVER_BUSY` then.
   *
   * @param name Of a group, or an endpoint with `reusePort`, that accepts.
   * @param end Tells the others to end, for instance with a signal; awaited.
   * @param options `timeoutMs`: how long they may take to accept what waits, to
   *   be told, and to end; `drainMs` when left out. Handshakes have `queueMs` before.
   * @returns How many listeners the others had, and how many connections waited there.
   * @throws {TakeoverError} `ERR_TAKEOVER_UNKNOWN_NAME`; `ERR_TAKEOVER_STATE`
   *   when this process does not serve, or a successor is taking over, or the
   *   endpoint cannot be shared, or its servers have been closed;
   *   `ERR_TAKEOVER_REVOKED` when the incumbent has taken over again;
   *   `ERR_TAKEOVER_TIMEOUT` when the others have not ended: connections are
   *   spread over all again. They have not been told to end if connections
   *   still wait there.
   *
   * @example
   * ```ts ignore
   * await takeover.listenGroup("web", { port: 8080, count: 1 }, (at) => Deno.serve(at, handler));
   * await takeover.ready();
   * await takeover.displace("web", () => process.kill(oldPid, "SIGTERM"));
   * ```
   */
  async displace(
    name: string,
    end: () => unknown,
    options: { readonly timeoutMs?: number } = {},
  ): Promise<Displaced> {
    this.#checkStage("displace others", "serving");
    const { queueMs, drainMs } = this.#limits;
    const servers = this.#groups.serversOf(name) ?? [this.#endpoint(name)];
    const limits = { queueMs, leaveMs: options.timeoutMs ?? drainMs, signal: this.#ending.signal };
    const displaced = this.#displacing.then(async () => {
      await this.#beingSettled();
      this.#checkStage("displace others", "serving");
      if (this.#incumbent.busy) throw isBeingReplaced(name);
      const endpoints = servers.filter(({ alive }) => alive);
      if (endpoints.length === 0) throw isGone(name);
      this.#isDisplacing = true;
      return await displace(this.#runtime, endpoints, end, limits);
    });
    this.#displacing = displaced.catch(() => {}).finally(() => this.#isDisplacing = false);
    return await displaced;
  }

  /** Until the incumbent cannot come back, and connections are steered away from no surplus listener any more. */
  async #beingSettled(): Promise<void> {
    const { signal } = this.#ending;
    await waitFor(this.settled, { signal });
    await waitFor(this.#groups.atRest, { signal });
  }

  /**
   * Opens an endpoint for datagrams, as {@linkcode listen} does for connections:
   * the inherited socket of that name, with everything that waits in it, its
   * options and its multicast groups, else a new one.
   *
   * A process that has been replaced reads no more, and can answer through its
   * socket until {@linkcode drained} has resolved. Nobody can tell whether an
   * answer is still to come, so the application sends what it owes before it
   * waits for that.
   *
   * @param name Names the endpoint across generations; at most 255 bytes.
   * @param address Where it is to be; a UDP port, or a Unix path.
   * @param open Opens a native socket at the address it is given, which on
   *   Linux is a placeholder that the true socket replaces right after. It is
   *   given the flows besides.
   * @param options `flows`: for flows that stay with the process that knows
   *   them; the event `flows` says how.
   * @returns What `open` returned. It receives from {@linkcode ready} on; the
   *   first process's at once.
   * @throws {TakeoverError} As {@linkcode listen}. For `flows` also
   *   `ERR_TAKEOVER_STATE` when they have no means, or none for what the
   *   incumbent does; `ERR_TAKEOVER_RANGE` for a tag that no datagram can
   *   have, or of too few bits;
   *   `ERR_TAKEOVER_UNSUPPORTED` when this machine gives nothing of what they
   *   have means for.
   * @throws {SystemError} For instance `EADDRINUSE`, when a new socket cannot be bound.
   *
   * @example
   * ```ts ignore
   * await takeover.bind("dns", { port: 53 }, (at) => Deno.listenDatagram({ ...at, transport: "udp" }));
   * await takeover.bind("dns", { port: 53 }, (at) => Bun.udpSocket({ ...at, socket: { data: answer } }));
   * await takeover.bind("dns", { port: 53 }, (at) => dgram.createSocket("udp4", answer).bind(at));
   * ```
   */
  bind<T>(
    name: string,
    address: UdpEndpoint,
    open: (at: DatagramOpening, flows: Flows) => T,
    options?: { readonly flows?: FlowOptions },
  ): Promise<Awaited<T>>;
  /** The same on a Unix path. */
  bind<T>(name: string, address: UnixDatagramEndpoint, open: (at: UnixDatagramOpening) => T): Promise<Awaited<T>>;
  async bind<T>(
    name: string,
    address: DatagramAddress,
    open: (at: never, flows: Flows) => T,
    options: { readonly flows?: FlowOptions } = {},
  ): Promise<Awaited<T>> {
    const flows = this.#flows.begin(name, checkedFlows(options.flows));
    const isShared = "reusePort" in address && address.reusePort === true;
    const wanted = flows.needsGroup && !isShared ? { ...address, beginsGroup: true } : address;
    return await this.#openOnce("datagram", name, wanted, (at) => open(at, flows), { flows, isShared });
  }

  /**
   * Where an endpoint or a group really is; a native server may name its
   * placeholder.
   *
   * @throws {TakeoverError} `ERR_TAKEOVER_UNKNOWN_NAME`.
   */
  addr(name: string): SocketAddress {
    // Of a group this process may have later members alone.
    return (this.#groups.serversOf(name)?.[0] ?? this.#endpoint(name)).identity.address;
  }

  /**
   * Commits: the incumbent stops accepting, this process starts to. From here
   * on it can be replaced itself, once it is settled.
   *
   * @throws {TakeoverError} When the incumbent refuses or does not answer; it
   *   serves on, and this process should end. `ERR_TAKEOVER_STATE` when called
   *   twice, before `listen` has resolved, or closed meanwhile.
   */
  async ready(): Promise<void> {
    this.#checkStage("be ready", "starting");
    if (this.#isReadying) throw new TakeoverError("ERR_TAKEOVER_STATE", "Cannot be ready twice: await the first call");
    if (this.#opening.size > 0) {
      const names = [...this.#opening].map((name) => JSON.stringify(name)).join(", ");
      throw new TakeoverError("ERR_TAKEOVER_STATE", `Cannot be ready while ${names} is being opened: await listen first`);
    }
    this.#isReadying = true;
    this.#groups.readying((name, socket) => this.#succession?.giveBack(name, socket));
    const claimed = this.inherited.filter((name) => this.#isClaimed(name));
    try {
      await this.#succession?.ready(claimed);
      // The program may have closed it meanwhile.
      this.#checkStage("be ready", "starting");
    } catch (error) {
      await this.close();
      throw error;
    }
    this.#stage = "serving";
    this.#readyAt = Date.now();
    for (const endpoint of this.#endpoints.values()) endpoint.resume();
    this.#flows.serve();
    this.#groups.serve();
    await this.#openControl();
    const second = this.#succession?.takeSecond();
    if (second) this.#moves.arrive(second, this.#eventLoop());
    // The incumbent serves what is not claimed until settled, and closes it then.
    this.#succession?.[Symbol.dispose]();
    if (!this.#succession) this.#reporting.serving(this.#foreign.names);
    this.#foreign[Symbol.dispose]();
    const inherited = claimed.filter((name) => this.#endpoints.has(name));
    this.#emitter.emit("ready", { generation: this.generation, inherited });
    void this.#watchLease(claimed);
  }

  /**
   * Ends the lease before its time: the incumbent closes its copies and cannot
   * come back.
   *
   * @throws {TakeoverError} `ERR_TAKEOVER_REVOKED` when it has taken over again.
   */
  async settle(): Promise<void> {
    this.#checkStage("settle", "serving");
    await this.#succession?.settle();
    await this.settled;
  }

  /**
   * Wraps a fetch handler, so that a process that drains announces the end of
   * each connection with the next response (`Connection: close`, RFC 9112, 9.6).
   *
   * @param handler A handler for `Deno.serve`, `Bun.serve` or a framework.
   * @returns A handler with the same parameters.
   */
  fetch<H extends FetchHandler>(handler: H): H {
    return this.#drain.fetch(handler);
  }

  /**
   * Wraps a Node request listener, or an Express app, in the same way.
   *
   * @param handler A listener for `node:http` or `node:https`.
   * @returns A listener with the same parameters.
   */
  requestListener<H extends RequestListener>(handler: H): H {
    return this.#drain.listener(handler);
  }

  /**
   * Has a fetch handler wait for the whole body of its request. A successor
   * that takes over before the body is whole gets what has come of it, and the
   * connection: the handler runs once, there or here.
   *
   * It is used within a handler that is wrapped with {@linkcode fetch}, for all
   * requests or for those of a route. Bodies of more than `bodySize` bytes or
   * of unknown length, and requests with `Expect`, `Upgrade` or `Connection:
   * close`, go to the handler as they come. A request that never comes whole
   * goes to no handler.
   *
   * @param handler A handler for `Deno.serve`, `Bun.serve` or a framework.
   * @returns A handler with the same parameters, which gets the same request.
   *
   * @example
   * ```ts ignore
   * const handler = takeover.fetch(takeover.whole(async (request) => new Response(await request.text())));
   * ```
   */
  whole<H extends FetchHandler>(handler: H): H {
    return this.#drain.whole(handler);
  }

  /**
   * The same for a Node request listener, within one that is wrapped with
   * {@linkcode requestListener}.
   *
   * @param handler A listener for `node:http`, or an Express app.
   * @returns A listener with the same parameters, which gets the same request.
   *
   * @example
   * ```ts ignore
   * const listener = takeover.requestListener(takeover.wholeListener(app));
   * ```
   */
  wholeListener<H extends RequestListener>(handler: H): H {
    return this.#drain.wholeListener(handler);
  }

  /**
   * Serves connections that can move to a successor, and that come from an
   * incumbent: TCP and Unix streams that the application speaks on itself.
   *
   * @param name Names them across generations; an endpoint's, or any other.
   * @param options `serve` is called for accepted connections, which are given
   *   to `add`, and for those that came from another process alike.
   * @returns Where accepted connections are added.
   * @throws {TakeoverError} `ERR_TAKEOVER_STATE` when the name is in use.
   *
   * @example
   * ```ts ignore
   * const lines = takeover.connections("echo", {
   *   serve(socket: Socket, moved: Moved<number> | null) {
   *     let count = moved?.state ?? 0;
   *     socket.on("data", () => socket.write(`${++count}\n`));
   *     return { leave: () => ({ state: count }) };
   *   },
   * });
   * await takeover.listen("echo", { port: 7 }, (at) => createServer((socket) => lines.add(socket)).listen(at));
   * ```
   */
  connections<C, S extends Json = Json>(name: string, options: ConnectionsOptions<C, S>): Connections<C> {
    return this.#moves.connections(checkedName(name, this.#limits), options);
  }

  /**
   * WebSockets that can move to a successor, and that come from an incumbent:
   * of `Deno.serve`, `Bun.serve`, and the package ws on `node:http`.
   *
   * @example
   * ```ts ignore
   * // In a handler of Deno.serve:
   * const opening = takeover.webSockets.opening(request, info);
   * const { socket, response } = Deno.upgradeWebSocket(request);
   * let count = (opening.state ?? 0) as number;
   * opening.track(socket, { leave: () => count });
   * socket.onmessage = () => socket.send(`${++count}`);
   * return response;
   * ```
   */
  get webSockets(): MovableWebSockets {
    return this.#moves.webSockets;
  }

  /**
   * Calls a function with every event of a type.
   *
   * @returns A function that takes the listener out again.
   */
  on<T extends TakeoverEventType>(type: T, listener: TakeoverListener<T>): () => void {
    return this.#emitter.on(type, listener);
  }

  /**
   * Waits until every connection of this released or closed process has ended,
   * at most `drainMs` after listeners that nobody else had have been closed
   * (at most `queueMs`).
   *
   * @returns How many were left, how many have moved, and how long it took.
   */
  drained(): Promise<DrainOutcome> {
    this.#checkStage("drain", "released", "closed");
    return this.#drained ??= this.#waitForConnections();
  }

  /**
   * Ends this process's part without a successor: nobody can take over any
   * more, nothing more is accepted, Unix paths are removed, connections drain.
   * During a hand-over the other process keeps what it has, paths included.
   *
   * Listeners that nobody else has are closed when those have been served who
   * wait at them, and whose handshakes are under way, at most `queueMs` later.
   * After {@linkcode settle} the incumbent's last word comes first, at most
   * `releaseMs` later.
   *
   * @param options `keepPaths` leaves the paths of Unix endpoints to whoever
   *   else has them, a HAProxy that took them for instance.
   */
  async close(options: { readonly keepPaths?: boolean } = {}): Promise<void> {
    // Once it is settled, nobody else has what this process has, and all of it can be closed with care.
    if (this.#succession?.isSettling && !this.#isSettled) await this.settled.catch(() => {});
    await this.#close(options.keepPaths === true);
  }

  /** The same as {@linkcode close}, for `await using`. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  #endpoint(name: string): Endpoint {
    const endpoint = this.#endpoints.get(name);
    if (endpoint) return endpoint;
    throw new TakeoverError(
      "ERR_TAKEOVER_UNKNOWN_NAME",
      `Cannot find the endpoint ${JSON.stringify(name)}: this process listens as ` +
        `${[...this.#endpoints.keys()].map((known) => JSON.stringify(known)).join(", ") || "nothing"}`,
    );
  }

  async #close(keepPaths: boolean): Promise<void> {
    if (this.#stage !== "released" && this.#stage !== "closed") this.#end(keepPaths);
    await this.#displacing;
    await this.#copies.closed;
    await this.#reporting.idle();
  }

  #end(keepPaths: boolean): void {
    // Before it is settled the incumbent can come back, and keeps the paths.
    const hasInherited = this.#succession === null || this.#isSettled;
    const isAlone = !this.#incumbent.offers && hasInherited;
    // A successor that was offered everything and is not ready yet has copies of all.
    const isOffered = this.#incumbent.offers && this.#stage !== "leased";
    const own = keepPaths || isOffered ? [] : this.#copies.among(this.#endpoints.values(), hasInherited);
    const last = own.filter(({ kind }) => kind === "listener");
    if (isAlone) this.#reporting.stopping();
    else if (this.#stage === "leased") this.#reporting.replaced(this.#successor!.pid, []);
    this.#stage = "closed";
    this.#ending.abort(new TakeoverError("ERR_TAKEOVER_STATE", "Cannot go on: this process has been closed"));
    this.#drain.active = true;
    this.#incumbent.close();
    this.#moves.close();
    this.#flows.close();
    this.#succession?.abort(new TakeoverError("ERR_TAKEOVER_STATE", "The successor has been closed"));
    this.#foreign[Symbol.dispose]();
    this.#paths.removeOf(own);
    for (const endpoint of this.#endpoints.values()) if (!last.includes(endpoint)) endpoint.release();
    // The incumbent has what a group does not want, until the lease has ended: then nobody else has.
    if (!hasInherited) this.#groups[Symbol.dispose]();
    this.#groups.leave();
    this.#copies.close(last, this.#displacing);
    if (last.length === 0 || !isAlone) return this.#closeControl(isAlone);
    // Whoever starts meanwhile waits there, and does not find the addresses in use.
    this.#controlEndpoint?.pause();
    void this.#copies.closed.then(() => this.#closeControl(true));
  }

  /** @param isAlone Whether the path goes with it. */
  #closeControl(isAlone: boolean): void {
    if (isAlone) this.#paths.remove(this.#path);
    this.#control?.descriptor[Symbol.dispose]();
    this.#controlListener?.close();
  }

  async #openOnce<T>(
    kind: OpenedKind,
    name: string,
    address: EndpointAddress | DatagramAddress,
    open: (at: never) => T,
    datagrams?: Datagrams,
  ): Promise<Awaited<T>> {
    checkedName(name, this.#limits);
    if (this.#store) checkedStoreName(name);
    this.#checkListening(name);
    if (this.#endpoints.has(name) || this.#opening.has(name)) throw usedTwice(name);
    this.#opening.add(name);
    try {
      return await this.#open(kind, name, address, open, datagrams);
    } finally {
      this.#opening.delete(name);
    }
  }

  /** Wherever this waits, the program may close this process, and a successor may replace it. */
  async #open<T>(
    kind: OpenedKind,
    name: string,
    address: EndpointAddress | DatagramAddress,
    open: (at: never) => T,
    datagrams?: Datagrams,
  ): Promise<Awaited<T>> {
    const wanted = await resolveAddress(this.#runtime, address);
    this.#checkListening(name);
    const inspect = (socket: Unopened, origin: SocketOrigin) => {
      const before = origin === "inherited" ? this.#succession!.strategyOf(name) : null;
      datagrams?.flows.choose(socket, origin, before, datagrams.isShared);
    };
    const { native, endpoint, isNew } = await openEndpoint(this.#sources, kind, name, wanted, address, open, inspect);
    this.#add(endpoint, isNew);
    if (!isNew) giveTicketKeys(this.#runtime, native, this.#succession?.ticketKeys.get(name) ?? "");
    this.#natives.set(name, native);
    if (kind === "listener") this.#moves.opened(endpoint, native);
    if (datagrams) {
      const opened = this.#flows.opened(endpoint, datagrams.flows, this.#inheritedFlows(name, isNew));
      if (opened) this.#emitter.emit("flows", opened);
    }
    return native;
  }

  #inheritedFlows(name: string, isNew: boolean): InheritedFlows {
    return !isNew && this.#succession ? this.#succession.takeFlows(name) : { older: [], members: [] };
  }

  #add(endpoint: Endpoint, isNew: boolean): void {
    if (this.#stage === "released" || this.#stage === "closed") {
      if (isNew) this.#paths.removeOf([endpoint]);
      endpoint.release();
      this.#checkListening(endpoint.name);
    }
    this.#endpoints.set(endpoint.name, endpoint);
    if (isNew) this.#copies.bound(endpoint.name);
    // One that has come too late for the successor accepts if that is lost.
    if (this.#stage === "serving" || this.#stage === "starting" && isNew) endpoint.resume();
    this.#reporting.opened(endpoint);
  }

  #checkListening(name: string): void {
    this.#checkStage(`listen as ${JSON.stringify(name)}`, "starting", "serving");
  }

  #checkStage(what: string, ...allowed: Stage[]): void {
    if (allowed.includes(this.#stage)) return;
    throw new TakeoverError(
      "ERR_TAKEOVER_STATE",
      `Cannot ${what}: this process is ${this.#stage}, expected ${allowed.join(" or ")}`,
    );
  }

  #isClaimed(name: string): boolean {
    if (this.#succession === null || this.#succession.endpoints.has(name)) return false;
    return this.#endpoints.has(name) || this.#groups.surplusNames.includes(name);
  }

  async #openControl(): Promise<void> {
    const control = this.#control!;
    this.#control = null;
    const { listener, endpoint } = await openControl(this.#runtime, control, (stream) => this.#incumbent.accept(stream));
    if (this.#stage === "closed") listener.close();
    this.#checkStage("be ready", "serving");
    this.#controlListener = listener;
    this.#controlEndpoint = endpoint;
  }

  async #watchLease(claimed: readonly string[]): Promise<void> {
    const succession = this.#succession;
    if (!succession) {
      this.#isSettled = true;
      return this.#settle();
    }
    const timer = setTimeout(() => void succession.settle().catch(() => {}), this.#limits.settleMs);
    try {
      await succession.leaseEnd;
      this.#isSettled = true;
      if (this.#stage === "closed") return this.#settle();
      this.#reporting.serving(this.#groups.surplusNames);
      const forgotten = this.#groups.surplusNames.length > 0 ? this.#reporting.forgotten() : Promise.resolve();
      this.#groups.settle(this.#limits.queueMs, forgotten, this.#copies);
      this.#emitter.emit("settled", {
        role: "successor",
        from: succession.from,
        to: this.#self(),
        claimed,
        unclaimed: this.inherited.filter((name) => !claimed.includes(name)),
        leaseMs: Date.now() - this.#readyAt,
        connections: this.#moves.arrived,
      });
      this.#settle();
    } catch (error) {
      if (this.#stage === "closed") return this.#settle(error);
      await this.#close(false);
      this.#emitter.emit("revoked", reported(error));
      this.#settle(error);
      this.#revoke(error);
    } finally {
      clearTimeout(timer);
    }
  }

  /** The control socket is this thread's; the runtime may have registered it a moment ago. */
  #eventLoop(): number | null {
    const control = this.#controlEndpoint!;
    return control.eventLoop ?? registrationsOf(this.#runtime, control.descriptor)[0]?.epoll ?? null;
  }

  #self(): Peer {
    const { name, version, libc } = this.#runtime;
    return { pid: libc.getpid(), runtime: `${name} ${version}`, generation: this.generation };
  }

  #abandon(error: unknown): void {
    // It may have been another than the successor that is being greeted.
    if (!this.#incumbent.busy) {
      this.#reporting.keptOn();
      this.#flows.resumed();
    }
    this.#emitter.emit("abandoned", reported(error));
  }

  /** What is being displaced is steered by this process itself. */
  #takeBackGroups(): void {
    if (this.#isDisplacing) return;
    this.#groups.takeBack(this.#listeners());
  }

  #listeners(): Endpoint[] {
    return [...this.#endpoints.values()].filter(({ kind }) => kind === "listener");
  }

  #offered(): OfferedSocket[] {
    return [this.#controlEndpoint!, ...this.#alive().map((endpoint) => this.#flows.socketOf(endpoint))];
  }

  #alive(): Endpoint[] {
    return [...this.#endpoints.values()].filter(({ alive }) => alive);
  }

  #becomeLeased(to: Peer, claimed: readonly string[]): void {
    this.#controlEndpoint!.pause();
    for (const name of claimed) if (!this.#flows.isSteered(name)) this.#endpoints.get(name)!.pause();
    this.#flows.leased(claimed);
    this.#stage = "leased";
    this.#copies.claimed(claimed);
    this.#successor = to;
    this.#readyAt = Date.now();
    this.#drain.active = true;
    this.#emitter.emit("leased", { to });
  }

  /** Those that can move are told nothing, as long as there is somebody to move to. */
  #depart(second: Conversation): void {
    this.#drain.mode = "moving";
    void this.#moves.depart(second, this.#eventLoop()).then(() => {
      if (this.#stage !== "serving") this.#drain.mode = "closing";
    });
  }

  #resume(to: Peer, error: unknown): void {
    void this.#moves.stop(error);
    this.#flows.resumed();
    this.#takeBackGroups();
    this.#copies.claimed([]);
    this.#reporting.keptOn();
    this.#drain.active = false;
    this.#stage = "serving";
    for (const endpoint of this.#endpoints.values()) endpoint.resume();
    this.#controlEndpoint!.resume();
    this.#emitter.emit("resumed", { to, ...reported(error) });
  }

  #becomeReleased(to: Peer, claimed: readonly string[]): void {
    this.#stage = "released";
    this.#flows.released();
    this.#groups.leave();
    // One whose server the application has closed was not offered.
    const unclaimed = this.#unclaimed(claimed).filter(({ alive }) => alive);
    this.#controlListener!.close();
    this.#paths.removeOf(unclaimed);
    const last = unclaimed.filter(({ kind, isSupervised }) => kind === "listener" && !isSupervised);
    for (const endpoint of this.#endpoints.values()) {
      // Late answers come from the address that was asked; connections are sockets of their own.
      const isDone = endpoint.kind === "listener" || !claimed.includes(endpoint.name);
      if (isDone && !last.includes(endpoint)) endpoint.release();
    }
    this.#copies.close(last);
    const outcome: Outcome = {
      role: "incumbent",
      from: this.#self(),
      to,
      claimed,
      unclaimed: unclaimed.map(({ name }) => name),
      leaseMs: Date.now() - this.#readyAt,
      connections: this.#moves.departed,
    };
    this.#emitter.emit("released", outcome);
    this.#release(outcome);
  }

  #unclaimed(claimed: readonly string[]): Endpoint[] {
    return [...this.#endpoints.values()].filter(({ name }) => !claimed.includes(name));
  }

  async #waitForConnections(): Promise<DrainOutcome> {
    const addresses = [...this.#endpoints.values()].map(({ identity }) => identity.address);
    const { drainMs } = this.#limits;
    await this.#copies.closed;
    const lastChanceAt = Math.max(drainMs - lastChanceMs, drainMs / 2);
    this.#moves.hurry(lastChanceAt);
    // What has not moved by then will not: it is told when it is answered.
    const timer = setTimeout(() => this.#drain.mode = "closing", lastChanceAt);
    const ended = await connectionsEnd(this.#runtime, addresses, drainMs, () => this.#moves.mayPassThrough);
    clearTimeout(timer);
    await this.#moves.stop();
    await this.#flows.ended(drainMs - ended.ms);
    for (const endpoint of this.#endpoints.values()) endpoint.release();
    const drained = { ...ended, connections: this.#moves.departed, queues: this.#copies.queues };
    await this.#reporting.idle();
    this.#emitter.emit("drained", drained);
    return drained;
  }
}

function isBeingReplaced(name: string): TakeoverError {
  return new TakeoverError(
    "ERR_TAKEOVER_STATE",
    `Cannot displace others at ${JSON.stringify(name)}: a successor is taking over; leave it to that`,
  );
}

function isGone(name: string): TakeoverError {
  return new TakeoverError(
    "ERR_TAKEOVER_STATE",
    `Cannot displace others at ${JSON.stringify(name)}: expected a server of this process there, the application has ` +
      "closed all; open one first",
  );
}

function usedTwice(name: string): TakeoverError {
  return new TakeoverError("ERR_TAKEOVER_STATE", `Cannot listen as ${JSON.stringify(name)} twice: choose another name`);
}
