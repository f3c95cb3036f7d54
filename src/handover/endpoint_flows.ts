/**
 * The flows of one endpoint: the strategy that was chosen for them, and the
 * links to older and newer processes that there are with each.
 *
 * @module
 */

import type { InetAddress } from "../c/sockaddr.ts";
import type { Limits } from "../limits.ts";
import type { Endpoint } from "../natives/endpoint.ts";
import type { Runtime } from "../runtime.ts";
import { leaveToNobodyElse } from "../sockets/datagram.ts";
import { disposeAll, type OwnedDescriptor } from "../sockets/descriptors.ts";
import { checkPeer, namedPeer } from "../sockets/peers.ts";
import { identify, type SocketIdentity } from "../sockets/socket.ts";
import { checkForwarding } from "../steering/forward_channel.ts";
import type { Unopened } from "./binding.ts";
import { ConnectedFlows } from "./connected.ts";
import { FlowLinks, type OlderFlows } from "./flow_links.ts";
import type { FlowOptions, FlowStrategy, OpenedFlows } from "./flow_options.ts";
import { type ChosenStrategy, chooseStrategy, inheritedStrategy, type SocketOrigin, withoutMeans } from "./flow_strategy.ts";
import { tagOf } from "./generation_tags.ts";
import type { FlowHost, KernelFlows, TravellingMember } from "./kernel_flows.ts";
import { SteeredFlows } from "./steered.ts";

/** The flows of one endpoint, as the application sees them. */
export interface Flows {
  /** How they stay with the process that knows them; null for an endpoint without the option. */
  readonly strategy: FlowStrategy | null;
  /** What this process puts where clients send it back, and the kernel looks; null without the option `tag`. */
  readonly tag: number | null;
  /**
   * Forwards a datagram when it belongs to an older process.
   *
   * @param bytes Copied.
   * @param peer Who sent it; one of a link-local IPv6 address with its zone, `fe80::1%eth0`, as runtimes name it.
   * @returns Whether it did; false for one that is this process's to serve.
   * @throws {TakeoverError} `ERR_TAKEOVER_ADDRESS` for a sender without a family, an address and a port.
   */
  take(bytes: Uint8Array, peer: InetAddress): boolean;
  /**
   * This process has no flows any more: the newest serves what comes from here
   * on, and `drained` waits for none.
   *
   * @param peer Only this flow has ended. It counts where the strategy is
   *   `connected`; elsewhere nobody knows of a single flow.
   * @throws {TakeoverError} `ERR_TAKEOVER_ADDRESS` for a peer that none can be with.
   */
  end(peer?: InetAddress): void;
}

/** What an incumbent sent for the flows of an endpoint. */
export interface InheritedFlows {
  readonly older: readonly OlderFlows[];
  /** All sockets of the group, where the kernel steers. */
  readonly members: readonly TravellingMember[];
}

/** What a manifest says of a descriptor for flows. */
export interface FlowFields {
  readonly generation: number;
  readonly strategy?: FlowStrategy;
  readonly format?: string;
  readonly slot?: number;
}

/** A near end, or a socket of a group, that is offered to a successor. */
export interface OfferedFlows {
  readonly kind: "flows" | "member";
  readonly name: string;
  readonly fields: FlowFields;
  readonly channel: OwnedDescriptor;
  readonly descriptor: number;
  readonly identity: SocketIdentity;
  readonly isSupervised: false;
}

/** What a process is whose flows these are. */
export interface FlowsOwner {
  readonly runtime: Runtime;
  readonly limits: Limits;
  readonly generation: number;
  /** Hears of what went wrong, and nothing depends on. */
  readonly failed: (error: unknown) => void;
}

/** An endpoint whose datagrams are all this process's. */
export class NoFlows implements Flows {
  readonly strategy: null = null;
  readonly tag: null = null;
  readonly needsGroup: boolean = false;
  readonly #name: string;

  constructor(name: string) {
    this.#name = name;
  }

  /** @throws {TakeoverError} `ERR_TAKEOVER_STATE` where older processes have sockets of their own. */
  choose(_socket: Unopened, _origin: SocketOrigin, inherited: string | null): void {
    if (inherited === "steered") throw withoutMeans(this.#name, inherited);
  }

  take(): boolean {
    return false;
  }

  end(): void {}
}

/** The flows of one endpoint. */
export class EndpointFlows implements Flows {
  readonly tag: number | null;
  readonly #owner: FlowsOwner;
  readonly #name: string;
  readonly #options: FlowOptions;
  readonly #links: FlowLinks;
  readonly #host: FlowHost;
  #chosen: ChosenStrategy = { strategy: "forwarded", refused: [] };
  #endpoint: Endpoint | null = null;
  /** Null where nothing but this library is concerned. */
  kernel: KernelFlows | null = null;
  #hearEnd: (() => void)[] = [];

  constructor(owner: FlowsOwner, name: string, options: FlowOptions) {
    this.#owner = owner;
    this.#name = name;
    this.#options = options;
    this.tag = options.tag ? tagOf(options.tag, owner.generation) : null;
    this.#host = {
      ...owner,
      name,
      options,
      datagram: (bytes, peer) => this.#serve(bytes, peer),
      isThere: (generation) => this.#links.isThere(generation),
      changed: () => this.#changed(),
    };
    this.#links = new FlowLinks(this.#host);
  }

  get strategy(): FlowStrategy {
    return this.#chosen.strategy;
  }

  /** Whether the socket has to be one that others can join. */
  get needsGroup(): boolean {
    const { tag, peers } = this.#options;
    return this.#owner.runtime.abi.platform === "linux" && (tag ?? peers) !== undefined;
  }

  /** Whether flows are left to this process beside its successor, or something that it has read for older ones. */
  get isServing(): boolean {
    return this.#isForwardedTo && this.#links.isReceiving || (this.kernel?.count ?? 0) > 0 || this.#links.isSending;
  }

  /** A successor that has this process's socket forwards where there is a route, and only what the kernel was not told of. */
  get #isForwardedTo(): boolean {
    const { kernel } = this;
    if (kernel?.keepsSocket !== false) return true;
    return this.#options.route !== undefined && (!(kernel instanceof ConnectedFlows) || kernel.hasLeft);
  }

  /**
   * Chooses the strategy, before the application opens its socket.
   *
   * @param inherited The incumbent's; null when it has no flows of the endpoint, or there is none.
   * @param isShared Whether the application itself lets others bind the address.
   * @throws {TakeoverError} As `chooseStrategy` and `inheritedStrategy`; `ERR_TAKEOVER_UNSUPPORTED` when only forwarding
   *   is left, and the platform has no sockets for it.
   */
  choose(socket: Unopened, origin: SocketOrigin, inherited: string | null, isShared: boolean): void {
    const { runtime } = this.#owner;
    this.#chosen = inherited === null
      ? chooseStrategy(runtime, socket, origin, this.#options, isShared)
      : inheritedStrategy(runtime, this.#name, inherited, this.#options);
    if (this.strategy === "forwarded") checkForwarding(runtime);
    const isForNothing = this.needsGroup && this.strategy === "forwarded" && origin === "new" && !isShared;
    if (isForNothing) leaveToNobodyElse(runtime, socket.descriptor.number);
  }

  opened(endpoint: Endpoint, { older, members }: InheritedFlows): OpenedFlows {
    this.#endpoint = endpoint;
    this.#links.add(older, () => this.kernel?.olderEnded());
    if (this.strategy !== "steered") {
      this.#links.endUnknown();
      disposeAll(members.map(({ channel }) => channel));
    }
    try {
      if (this.strategy === "steered") this.kernel = new SteeredFlows(this.#host, endpoint, members);
      if (this.strategy === "connected") this.kernel = new ConnectedFlows(this.#host, endpoint);
    } catch (error) {
      endpoint.release();
      throw error;
    }
    return { name: this.#name, ...this.#chosen };
  }

  take(bytes: Uint8Array, peer: InetAddress): boolean {
    // At once, and not only when there are older processes.
    checkPeer(peer);
    return this.#links.take(bytes, peer);
  }

  offer(): OfferedFlows[] {
    const links = this.#links.offer();
    const channels = links.map(({ channel }) => channel);
    try {
      const members = this.kernel?.travel() ?? [];
      channels.push(...members.map(({ channel }) => channel));
      return [
        ...links.map(({ generation, channel, format }) => {
          return this.#offered("flows", { generation, strategy: this.strategy, format }, channel);
        }),
        ...members.map(({ generation, channel, slot }) => {
          return this.#offered("member", { generation, slot: slot! }, channel);
        }),
      ];
    } catch (error) {
      disposeAll(channels);
      throw error;
    }
  }

  lease(): void {
    this.#links.receive();
    this.kernel?.lease();
  }

  resume(): void {
    this.#links.end();
    this.kernel?.resume();
  }

  release(): void {
    this.kernel?.release();
    this.#links.release();
  }

  /** What the kernel still brings is the newest's to read, once it knows. */
  pause(): void {
    if (this.kernel?.keepsSocket && this.#links.isReceiving) this.#endpoint?.pause();
  }

  end(peer?: InetAddress): void {
    if (peer) return this.kernel?.end(peer);
    this.pause();
    this.#links.end();
    this.kernel?.end();
  }

  /** The time to drain is up. */
  finish(): void {
    this.end();
    this.#links.giveUp();
  }

  /** Resolves when no flow is left to this process. */
  async ended(): Promise<void> {
    if (this.isServing) await new Promise<void>((resolve) => this.#hearEnd.push(resolve));
  }

  close(): void {
    this.pause();
    this.kernel?.close();
    this.#links.close();
  }

  #offered(kind: OfferedFlows["kind"], fields: FlowFields, channel: OwnedDescriptor): OfferedFlows {
    const { number: descriptor } = channel;
    const identity = identify(this.#owner.runtime, descriptor)!;
    return { kind, name: this.#name, fields, channel, descriptor, identity, isSupervised: false };
  }

  /** A datagram that the application fails at is the end of nothing else. */
  #serve(bytes: Uint8Array, peer: InetAddress): void {
    try {
      this.#options.datagram(bytes, namedPeer(this.#owner.runtime, this.#endpoint?.descriptor ?? -1, peer));
    } catch (error) {
      this.#owner.failed(error);
    }
  }

  #changed(): void {
    if (this.isServing) return;
    const hear = this.#hearEnd;
    this.#hearEnd = [];
    for (const each of hear) each();
  }
}
