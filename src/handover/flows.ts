/**
 * Flows of datagrams that stay with the process that knows them: the kernel
 * brings each to the socket of its generation (`steered.ts`), or the newest
 * process reads all, and forwards what belongs to an older generation.
 *
 * Both need a socket pair for each older process: to forward over, and to learn
 * of its end. The near end travels from newest to newest; the older process
 * keeps the far one until it ends.
 *
 * @module
 */

import type { InetAddress } from "../c/sockaddr.ts";
import { TakeoverError } from "../errors.ts";
import type { Endpoint } from "../natives/endpoint.ts";
import type { Runtime } from "../runtime.ts";
import { disposeAll, OwnedDescriptor } from "../sockets/descriptors.ts";
import { duplicate, identify, openPair, type SocketIdentity } from "../sockets/socket.ts";
import { Forwarder, ForwardedReceiver, ForwardLink } from "../steering/forwarding.ts";
import { byTag, type Tag } from "../steering/programs.ts";
import { SteeredGroup, type TravellingMember } from "./steered.ts";

/** How an application tells flows apart, and serves those that are forwarded to it. */
export interface ForwardedFlows {
  /** Says which generation a datagram belongs to; null for this process. Called for each, as long as there are older processes. */
  readonly route: (bytes: Uint8Array, peer: InetAddress) => number | null;
  /** Serves a datagram that a newer process has read, or that an older one has not taken any more. */
  readonly datagram: (bytes: Uint8Array, peer: InetAddress) => void;
}

/** Where the kernel finds the generation in a datagram; Linux, UDP. */
export interface SteeredFlows {
  /** Where the application puts its generation, and clients send it back: `generation & mask`, and 0 where there is none. */
  readonly tag: Tag;
  /** Serves a datagram that has come to an older process and that one has not read. */
  readonly datagram: (bytes: Uint8Array, peer: InetAddress) => void;
}

/** How flows stay with the process that knows them. */
export type FlowOptions = ForwardedFlows | SteeredFlows;

/** The flows of one endpoint, as the application sees them. */
export interface Flows {
  /**
   * Forwards a datagram when it belongs to an older process.
   *
   * @param bytes Copied.
   * @param peer Who sent it.
   * @returns Whether it did; false for one that is this process's to serve.
   * @throws {TakeoverError} `ERR_TAKEOVER_ADDRESS` for a sender without a numeric address and a port.
   */
  take(bytes: Uint8Array, peer: InetAddress): boolean;
  /** This process has no flows any more: the newest serves what comes from here on, and `drained` waits for none. */
  end(): void;
}

/** A near end that came from an incumbent. */
export interface OlderFlows {
  readonly generation: number;
  readonly channel: OwnedDescriptor;
}

/** What an incumbent sent for the flows of an endpoint. */
export interface InheritedFlows {
  readonly older: readonly OlderFlows[];
  /** All sockets of the group, where the kernel steers. */
  readonly members: readonly TravellingMember[];
}

/** A near end, or a socket of a group, that is offered to a successor. */
export interface OfferedFlows extends OlderFlows {
  readonly kind: "flows" | "member";
  readonly name: string;
  readonly descriptor: number;
  readonly identity: SocketIdentity;
  readonly isSupervised: false;
}

/** A socket that a successor is offered. */
export type OfferedSocket = Pick<Endpoint, "kind" | "name" | "isSupervised" | "descriptor" | "identity">;

/** How many older processes there are at most; the flows of one that is older still are the newest's. */
const olderCount = 15;

const turnCount = 5;

/** All flows of a process. */
export class ProcessFlows {
  readonly #runtime: Runtime;
  readonly #generation: number;
  readonly #failed: (error: unknown) => void;
  readonly #endpoints = new Map<string, EndpointFlows>();
  /** Whether this process has a socket for datagrams. */
  #isUsed = false;

  /** @param failed Hears of a link that broke. */
  constructor(runtime: Runtime, generation: number, failed: (error: unknown) => void) {
    this.#runtime = runtime;
    this.#generation = generation;
    this.#failed = failed;
  }

  /**
   * Begins with the flows of an endpoint.
   *
   * @param options Null for an endpoint without any: everything is its own.
   */
  open(name: string, options: FlowOptions | null): Flows {
    this.#isUsed = true;
    if (!options) return { take: () => false, end: () => {} };
    const flows = new EndpointFlows(this.#runtime, name, this.#generation, options, this.#failed);
    this.#endpoints.set(name, flows);
    return flows;
  }

  /** An endpoint has been opened. @param inherited Taken. */
  opened(endpoint: Endpoint, inherited: InheritedFlows): void {
    const flows = this.#endpoints.get(endpoint.name);
    if (flows) flows.opened(endpoint, inherited);
    else disposeAll([...inherited.older, ...inherited.members].map(({ channel }) => channel));
  }

  /** This process is ready. */
  serve(): void {
    for (const flows of this.#endpoints.values()) flows.steered?.serve();
  }

  /** Whether an endpoint has a socket for each generation, so that its own is never paused. */
  isSteered(name: string): boolean {
    return this.#endpoints.get(name)?.steered != null;
  }

  /** What a successor is offered for an endpoint. */
  socketOf(endpoint: Endpoint): OfferedSocket {
    const spare = this.#endpoints.get(endpoint.name)?.steered?.spare();
    const { kind, name, isSupervised } = endpoint;
    return spare ? { kind, name, isSupervised, ...spare } : endpoint;
  }

  /**
   * What a successor is offered, which the caller closes.
   *
   * @param names Of the endpoints that it is offered.
   */
  offer(names: readonly string[]): OfferedFlows[] {
    return [...this.#endpoints].flatMap(([name, flows]) => names.includes(name) ? flows.offer() : []);
  }

  /** A successor reads now: what it forwards is served. */
  leased(claimed: readonly string[]): void {
    for (const [name, flows] of this.#endpoints) if (claimed.includes(name)) flows.receive();
  }

  /** It was lost. */
  resumed(): void {
    for (const flows of this.#endpoints.values()) flows.takeBack();
  }

  /** It is there to stay, and has the links to older processes. */
  released(): void {
    for (const flows of this.#endpoints.values()) flows.unlink();
  }

  /**
   * Waits until the application has ended all flows, or the newest process has
   * gone; ends them when the time is up. What a runtime has read by then comes
   * to the application before this resolves.
   */
  async ended(limitMs: number): Promise<void> {
    if (!this.#isUsed) return;
    const all = [...this.#endpoints.values()];
    if (all.some(({ isReceiving }) => isReceiving)) {
      let timer: ReturnType<typeof setTimeout> | undefined;
      const isOver = new Promise<void>((resolve) => timer = setTimeout(resolve, Math.max(limitMs, 0)));
      await Promise.race([Promise.all(all.map((flows) => flows.ended)), isOver]);
      clearTimeout(timer);
    }
    for (const flows of all) flows.pause();
    await someTurns();
    for (const flows of all) flows.end();
    await someTurns();
  }

  /** Ends everything. */
  close(): void {
    for (const flows of this.#endpoints.values()) flows.close();
  }
}

/** The flows of one endpoint. */
class EndpointFlows implements Flows {
  readonly #runtime: Runtime;
  readonly #name: string;
  readonly #generation: number;
  readonly #options: FlowOptions;
  readonly #failed: (error: unknown) => void;
  readonly #forwarder: Forwarder;
  readonly #older = new Map<number, { readonly channel: OwnedDescriptor; readonly link: ForwardLink }>();
  /** What a successor will forward over. */
  #far: OwnedDescriptor | null = null;
  #endpoint: Endpoint | null = null;
  /** Where the kernel steers. */
  steered: SteeredGroup | null = null;
  #receiver: ForwardedReceiver | null = null;
  #resolve: () => void = () => {};
  /** Resolves when nothing is received any more. */
  ended: Promise<void> = Promise.resolve();

  constructor(runtime: Runtime, name: string, generation: number, options: FlowOptions, failed: (error: unknown) => void) {
    this.#runtime = runtime;
    this.#name = name;
    this.#generation = generation;
    this.#options = options;
    this.#failed = failed;
    this.#forwarder = new Forwarder((bytes, peer) => "route" in options ? options.route(bytes, peer) : null);
  }

  get isReceiving(): boolean {
    return this.#receiver !== null;
  }

  take(bytes: Uint8Array, peer: InetAddress): boolean {
    return this.#forwarder.take(bytes, peer);
  }

  opened(endpoint: Endpoint, { older, members }: InheritedFlows): void {
    this.#endpoint = endpoint;
    this.#link(older);
    const { tag, datagram } = this.#options as Partial<SteeredFlows>;
    if (!tag || !datagram) return disposeAll(members.map(({ channel }) => channel));
    const host = {
      runtime: this.#runtime,
      generation: this.#generation,
      tag,
      datagram,
      isThere: (generation: number) => this.#older.get(generation)?.link.isOpen === true,
    };
    try {
      this.steered = new SteeredGroup(host, endpoint, members);
    } catch (error) {
      endpoint.release();
      throw error;
    }
  }

  #link(older: readonly OlderFlows[]): void {
    for (const { generation, channel } of older) {
      const returned = ({ bytes, peer }: { bytes: Uint8Array; peer: InetAddress }) => this.#options.datagram(bytes, peer);
      const link = new ForwardLink(this.#runtime, channel, { returned, ended: () => this.steered?.ended() });
      this.#older.set(generation, { channel, link });
      this.#forwarder.add(generation, link);
    }
  }

  offer(): OfferedFlows[] {
    const [near, far] = openPair(this.#runtime, "seqpacket");
    this.#far?.[Symbol.dispose]();
    this.#far = far;
    const open = [...this.#older].filter(([, { link }]) => link.isOpen).sort(([a], [b]) => b - a).slice(0, olderCount - 1);
    return [
      this.#offered("flows", this.#generation, near),
      ...open.map(([generation, { channel }]) => {
        return this.#offered("flows", generation, new OwnedDescriptor(this.#runtime, duplicate(this.#runtime, channel.number)));
      }),
      ...(this.steered?.travel() ?? []).map(({ generation, channel }) => this.#offered("member", generation, channel)),
    ];
  }

  #offered(kind: OfferedFlows["kind"], generation: number, channel: OwnedDescriptor): OfferedFlows {
    const { number: descriptor } = channel;
    const identity = identify(this.#runtime, descriptor)!;
    return { kind, name: this.#name, generation, channel, descriptor, identity, isSupervised: false };
  }

  receive(): void {
    const far = this.#far;
    this.#far = null;
    if (!far) return;
    this.steered?.lease();
    this.ended = new Promise((resolve) => this.#resolve = resolve);
    this.#receiver = new ForwardedReceiver(this.#runtime, far, {
      datagram: this.#options.datagram,
      ended: (error) => {
        this.#receiver = null;
        this.#resolve();
        if (error !== null) this.#failed(error);
      },
    });
  }

  takeBack(): void {
    this.#receiver?.end();
    this.steered?.serve();
  }

  unlink(): void {
    this.steered?.release();
    for (const { link } of this.#older.values()) link.close();
    this.#older.clear();
  }

  /** What the kernel still brings is the newest's to read, once it knows. */
  pause(): void {
    if (this.steered && this.#receiver) this.#endpoint?.pause();
  }

  end(): void {
    this.pause();
    this.#receiver?.end();
  }

  close(): void {
    this.#far?.[Symbol.dispose]();
    this.#far = null;
    this.end();
    this.unlink();
  }
}

/** Deno gives a program what it has read a turn later, and a program may answer a turn after that. */
async function someTurns(): Promise<void> {
  for (let turn = 0; turn < turnCount; turn++) await new Promise((resolve) => setTimeout(resolve, 1));
}

/** The option of `bind` is checked before anything is opened. */
export function checkedFlows(options: FlowOptions | undefined): FlowOptions | null {
  if (options === undefined) return null;
  const { route, tag, datagram } = options as Partial<ForwardedFlows & SteeredFlows>;
  const isSteered = typeof tag === "object";
  if (typeof datagram === "function" && (typeof route === "function") !== isSteered) {
    // It throws for a tag that no datagram can have.
    if (isSteered) byTag(tag, { slots: new Map(), otherwise: 0 });
    return options;
  }
  throw new TakeoverError(
    "ERR_TAKEOVER_STATE",
    "Cannot bind with these flows: expected the function datagram, and either the function route or a tag",
  );
}
