/**
 * All flows of datagrams of a process, through the steps of its hand-overs.
 *
 * @module
 */

import type { Endpoint } from "../natives/endpoint.ts";
import { disposeAll } from "../sockets/descriptors.ts";
import { EndpointFlows, type FlowsOwner, type InheritedFlows, NoFlows, type OfferedFlows } from "./endpoint_flows.ts";
import type { FlowOptions, OpenedFlows } from "./flow_options.ts";

/** A socket that a successor is offered. */
export type OfferedSocket = Pick<Endpoint, "kind" | "name" | "isSupervised" | "descriptor" | "identity">;

const turnCount = 5;

/** All flows of a process. */
export class ProcessFlows {
  readonly #owner: FlowsOwner;
  readonly #endpoints = new Map<string, EndpointFlows>();
  /** Whether this process has a socket for datagrams. */
  #isUsed = false;

  constructor(owner: FlowsOwner) {
    this.#owner = owner;
  }

  /**
   * Begins with the flows of an endpoint.
   *
   * @param options Null for an endpoint without any: everything is its own.
   */
  begin(name: string, options: FlowOptions | null): EndpointFlows | NoFlows {
    this.#isUsed = true;
    return options ? new EndpointFlows(this.#owner, name, options) : new NoFlows(name);
  }

  /** An endpoint has been opened. @param inherited Taken. */
  opened(endpoint: Endpoint, flows: EndpointFlows | NoFlows, inherited: InheritedFlows): OpenedFlows | null {
    if (flows instanceof NoFlows) {
      disposeAll([...inherited.older, ...inherited.members].map(({ channel }) => channel));
      return null;
    }
    this.#endpoints.set(endpoint.name, flows);
    return flows.opened(endpoint, inherited);
  }

  /** This process is ready. */
  serve(): void {
    this.#each((flows) => flows.kernel?.serve());
  }

  /** Whether an endpoint has a socket for each generation, so that its own is never paused. */
  isSteered(name: string): boolean {
    return this.#endpoints.get(name)?.kernel?.keepsSocket === true;
  }

  /** What a successor is offered for an endpoint. */
  socketOf(endpoint: Endpoint): OfferedSocket {
    const spare = this.#endpoints.get(endpoint.name)?.kernel?.spare();
    const { kind, name, isSupervised } = endpoint;
    return spare ? { kind, name, isSupervised, ...spare } : endpoint;
  }

  /**
   * What a successor is offered, which the caller closes.
   *
   * @param names Of the endpoints that it is offered.
   * @throws {TakeoverError} `ERR_TAKEOVER_STATE` when it cannot be told what belongs to whom.
   */
  async offer(names: readonly string[]): Promise<OfferedFlows[]> {
    const offering = [...this.#endpoints].filter(([name]) => names.includes(name)).map(([, flows]) => flows);
    for (const flows of offering) await flows.kernel?.check();
    const offered: OfferedFlows[] = [];
    try {
      for (const flows of offering) offered.push(...flows.offer());
      return offered;
    } catch (error) {
      disposeAll(offered.map(({ channel }) => channel));
      throw error;
    }
  }

  /** A successor is ready, and waits for its lease. Rejects when it has to be refused. */
  async readying(claimed: readonly string[]): Promise<void> {
    for (const [name, flows] of this.#endpoints) if (claimed.includes(name)) await flows.kernel?.readying();
  }

  /** A successor reads now: what it forwards is served. */
  leased(claimed: readonly string[]): void {
    this.#each((flows, name) => {
      if (claimed.includes(name)) flows.lease();
    });
  }

  /** It was lost, or refused at the last moment. */
  resumed(): void {
    this.#each((flows) => flows.resume());
  }

  /** It is there to stay, and has the links to older processes. */
  released(): void {
    this.#each((flows) => flows.release());
  }

  /**
   * Waits until the application has ended all flows, or the newest process has
   * gone; ends them when the time is up. What a runtime has read by then comes
   * to the application before this resolves.
   */
  async ended(limitMs: number): Promise<void> {
    if (!this.#isUsed) return;
    const all = [...this.#endpoints.values()];
    if (all.some(({ isServing }) => isServing)) await within(limitMs, Promise.all(all.map((flows) => flows.ended())));
    for (const flows of all) flows.pause();
    await someTurns();
    for (const flows of all) flows.finish();
    // Each takes a moment, with a limit of its own, for what is on its way.
    await Promise.all(all.map((flows) => flows.ended()));
    await someTurns();
  }

  /** Ends everything. */
  close(): void {
    this.#each((flows) => flows.close());
  }

  /** What goes wrong for one endpoint goes wrong for that one. */
  #each(use: (flows: EndpointFlows, name: string) => void): void {
    for (const [name, flows] of this.#endpoints) {
      try {
        use(flows, name);
      } catch (error) {
        this.#owner.failed(error);
      }
    }
  }
}

/** Waits for something, and not forever. */
async function within(limitMs: number, promise: Promise<unknown>): Promise<void> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const isOver = new Promise<void>((resolve) => timer = setTimeout(resolve, Math.max(limitMs, 0)));
  await Promise.race([promise, isOver]);
  clearTimeout(timer);
}

/** Deno gives a program what it has read a turn later, and a program may answer a turn after that. */
async function someTurns(): Promise<void> {
  for (let turn = 0; turn < turnCount; turn++) await new Promise((resolve) => setTimeout(resolve, 1));
}
