/**
 * Flows that the newest process forwards, and how processes learn of each
 * other's end: a socket pair for each older process. The near end travels from
 * newest to newest; the older process keeps the far one until it ends.
 *
 * @module
 */

import type { InetAddress } from "../c/sockaddr.ts";
import { TakeoverError } from "../errors.ts";
import { disposeAll, OwnedDescriptor } from "../sockets/descriptors.ts";
import { duplicate, openPair } from "../sockets/socket.ts";
import { formatNamed } from "../steering/forward_frames.ts";
import { ForwardedReceiver } from "../steering/forwarded_receiver.ts";
import { Forwarder } from "../steering/forwarder.ts";
import { ForwardLink } from "../steering/forward_link.ts";
import type { FlowHost } from "./kernel_flows.ts";

/** A near end as it travels. */
export interface OlderFlows {
  /** Whose far end it has. */
  readonly generation: number;
  readonly channel: OwnedDescriptor;
  /** How that one is written to, as it has said itself. */
  readonly format: string;
}

/** How many older processes there are at most; the flows of one that is older still are the newest's. */
const olderCount = 15;

/** The links of one endpoint. */
export class FlowLinks {
  readonly #host: FlowHost;
  readonly #forwarder: Forwarder;
  readonly #older = new Map<number, OlderFlows & { readonly link: ForwardLink }>();
  /** What a successor will forward over. */
  #far: OwnedDescriptor | null = null;
  #receiver: ForwardedReceiver | null = null;
  /** Whether another process forwards from here on. */
  #isReleased = false;

  constructor(host: FlowHost) {
    this.#host = host;
    this.#forwarder = new Forwarder((bytes, peer) => host.options.route?.(bytes, peer) ?? null);
  }

  /** Whether a newer process may forward something. */
  get isReceiving(): boolean {
    return this.#receiver !== null;
  }

  /** Whether older processes have not been sent yet what this one has read for them. */
  get isSending(): boolean {
    return this.#isReleased && [...this.#older.values()].some(({ link }) => link.isOpen);
  }

  /** Whether the process of a generation is there. */
  isThere(generation: number): boolean {
    return this.#older.get(generation)?.link.isOpen === true;
  }

  /** Forwards a datagram when it belongs to an older process; false for one that is this process's. */
  take(bytes: Uint8Array, peer: InetAddress): boolean {
    try {
      return this.#forwarder.take(bytes, peer);
    } catch (error) {
      // The application's route has failed, or the sender's interface has gone: that is the end of nothing else.
      this.#host.failed(error);
      return false;
    }
  }

  /**
   * Takes up the links of older processes.
   *
   * @param older Taken.
   * @param ended Hears of the end of one of them.
   */
  add(older: readonly OlderFlows[], ended: () => void): void {
    const { runtime, limits, datagram } = this.#host;
    for (const each of older) {
      const format = formatNamed(runtime.abi, each.format);
      const link = new ForwardLink(runtime, each.channel, {
        ...format && { format },
        queueSize: limits.forwardSize,
        returned: ({ bytes, peer }) => datagram(bytes, peer),
        dropped: (count) => this.#host.failed(tooMany(this.#host, each.generation, count)),
        ended: () => {
          ended();
          this.#host.changed();
        },
      });
      this.#older.set(each.generation, { ...each, link });
      if (format) this.#forwarder.add(each.generation, link);
      else this.#host.failed(unknownFormat(this.#host.name, each));
    }
  }

  /** Ends those that cannot be written to: whoever waits for what they carry would wait in vain. */
  endUnknown(): void {
    const { abi } = this.#host.runtime;
    for (const { format, link } of this.#older.values()) if (!formatNamed(abi, format)) link.close();
  }

  /** The near ends for a successor, this process's own first; the caller closes them. */
  offer(): OlderFlows[] {
    const { runtime, generation, options } = this.#host;
    const [near, far] = openPair(runtime, "seqpacket");
    this.#far?.[Symbol.dispose]();
    this.#far = far;
    const offered: OlderFlows[] = [{ generation, channel: near, format: options.format ?? "own" }];
    const open = [...this.#older.values()].filter(({ link }) => link.isOpen)
      .sort((a, b) => b.generation - a.generation).slice(0, olderCount - 1);
    try {
      for (const { channel, generation, format } of open) {
        offered.push({ generation, format, channel: new OwnedDescriptor(runtime, duplicate(runtime, channel.number)) });
      }
      return offered;
    } catch (error) {
      disposeAll(offered.map(({ channel }) => channel));
      throw error;
    }
  }

  /** A successor reads from here on: what it forwards is served. */
  receive(): void {
    const { runtime, options, datagram } = this.#host;
    const far = this.#far;
    this.#far = null;
    if (!far) return;
    try {
      this.#receiver = new ForwardedReceiver(runtime, far, {
        ...options.format && { format: formatNamed(runtime.abi, options.format)! },
        datagram,
        ended: (error) => this.#ended(error),
      });
    } catch (error) {
      this.#ended(error);
    }
  }

  /** Takes no more from a newer process, but for what is on its way. */
  end(): void {
    this.#receiver?.end();
  }

  /** The links to older processes are the newest's from here on; what waits here still goes out. */
  release(): void {
    this.#isReleased = true;
    for (const { link } of this.#older.values()) link.finish();
  }

  /** What has not gone out by now never will. */
  giveUp(): void {
    if (this.#isReleased) for (const { link } of this.#older.values()) link.close();
  }

  /** Ends everything, but for what is on its way. */
  close(): void {
    this.#far?.[Symbol.dispose]();
    this.#far = null;
    this.end();
    this.release();
  }

  /** A link that is not right ends alone: its flows are the newest's then. */
  #ended(error: unknown): void {
    this.#receiver = null;
    if (error !== null) this.#host.failed(error);
    this.#host.changed();
  }
}

function unknownFormat(name: string, { generation, format }: OlderFlows): TakeoverError {
  return new TakeoverError(
    "ERR_TAKEOVER_UNSUPPORTED",
    `Cannot forward datagrams of ${JSON.stringify(name)} to generation ${generation}: it reads the format ` +
      `${JSON.stringify(format.slice(0, 80))}, expected own or mvfst; its flows are this process's`,
  );
}

function tooMany({ name, limits }: FlowHost, generation: number, count: number): TakeoverError {
  return new TakeoverError(
    "ERR_TAKEOVER_LIMIT",
    `Cannot forward ${count} datagrams of ${JSON.stringify(name)} to generation ${generation}, they are dropped: ` +
      `expected it to read; at most ${limits.forwardSize} bytes wait for it (limit forwardSize), and for drainMs at most`,
  );
}
