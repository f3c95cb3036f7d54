/**
 * Flows of datagrams that stay with the process that knows them: the newest
 * process reads all, and forwards what belongs to an older generation over a
 * socket pair. Its near end travels from newest to newest; the older process
 * keeps the far one until it ends.
 *
 * @module
 */

import type { InetAddress } from "../c/sockaddr.ts";
import { TakeoverError } from "../errors.ts";
import type { Runtime } from "../runtime.ts";
import { disposeAll, OwnedDescriptor } from "../sockets/descriptors.ts";
import { duplicate, identify, openPair, type SocketIdentity } from "../sockets/socket.ts";
import { Forwarder, ForwardedReceiver, ForwardLink } from "../steering/forwarding.ts";

/** How an application tells flows apart, and serves those that are forwarded to it. */
export interface FlowOptions {
  /** Says which generation a datagram belongs to; null for this process. Called for each, as long as there are older processes. */
  readonly route: (bytes: Uint8Array, peer: InetAddress) => number | null;
  /** Serves a datagram that a newer process has read, or that an older one has not taken any more. */
  readonly datagram: (bytes: Uint8Array, peer: InetAddress) => void;
}

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

/** A near end that is offered to a successor. */
export interface OfferedFlows extends OlderFlows {
  readonly kind: "flows";
  readonly name: string;
  readonly descriptor: number;
  readonly identity: SocketIdentity;
  readonly isSupervised: false;
}

/** How many older processes there are at most; the flows of one that is older still are the newest's. */
const olderCount = 15;

/** All flows of a process. */
export class ProcessFlows {
  readonly #runtime: Runtime;
  readonly #generation: number;
  readonly #failed: (error: unknown) => void;
  readonly #endpoints = new Map<string, EndpointFlows>();

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
    if (!options) return { take: () => false, end: () => {} };
    const flows = new EndpointFlows(this.#runtime, name, this.#generation, options, this.#failed);
    this.#endpoints.set(name, flows);
    return flows;
  }

  /** An endpoint has been opened with an incumbent's socket. @param older Taken. */
  inherit(name: string, older: readonly OlderFlows[]): void {
    const flows = this.#endpoints.get(name);
    if (flows) flows.inherit(older);
    else disposeAll(older.map(({ channel }) => channel));
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

  /** Waits until the application has ended all flows, or the newest process has gone; ends them when the time is up. */
  async ended(limitMs: number): Promise<void> {
    const all = [...this.#endpoints.values()];
    if (all.every(({ isReceiving }) => !isReceiving)) return;
    let timer: ReturnType<typeof setTimeout> | undefined;
    const isOver = new Promise<void>((resolve) => timer = setTimeout(resolve, Math.max(limitMs, 0)));
    await Promise.race([Promise.all(all.map((flows) => flows.ended)), isOver]);
    clearTimeout(timer);
    for (const flows of all) flows.end();
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
    this.#forwarder = new Forwarder((bytes, peer) => options.route(bytes, peer));
  }

  get isReceiving(): boolean {
    return this.#receiver !== null;
  }

  take(bytes: Uint8Array, peer: InetAddress): boolean {
    return this.#forwarder.take(bytes, peer);
  }

  inherit(older: readonly OlderFlows[]): void {
    for (const { generation, channel } of older) {
      const returned = ({ bytes, peer }: { bytes: Uint8Array; peer: InetAddress }) => this.#options.datagram(bytes, peer);
      const link = new ForwardLink(this.#runtime, channel, { returned });
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
      this.#offered(this.#generation, near),
      ...open.map(([generation, { channel }]) => {
        return this.#offered(generation, new OwnedDescriptor(this.#runtime, duplicate(this.#runtime, channel.number)));
      }),
    ];
  }

  #offered(generation: number, channel: OwnedDescriptor): OfferedFlows {
    const { number: descriptor } = channel;
    const identity = identify(this.#runtime, descriptor)!;
    return { kind: "flows", name: this.#name, generation, channel, descriptor, identity, isSupervised: false };
  }

  receive(): void {
    const far = this.#far;
    this.#far = null;
    if (!far) return;
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
  }

  unlink(): void {
    for (const { link } of this.#older.values()) link.close();
    this.#older.clear();
  }

  end(): void {
    this.#receiver?.end();
  }

  close(): void {
    this.#far?.[Symbol.dispose]();
    this.#far = null;
    this.end();
    this.unlink();
  }
}

/** The option of `bind` is checked before anything is opened. */
export function checkedFlows(options: FlowOptions | undefined): FlowOptions | null {
  if (options === undefined) return null;
  if (typeof options.route === "function" && typeof options.datagram === "function") return options;
  throw new TakeoverError("ERR_TAKEOVER_STATE", "Cannot bind with these flows: expected the functions route and datagram");
}
