/**
 * Multicast on loopback, in a network namespace of one's own, and a client that
 * asks a group.
 *
 * @module
 */

import { spawnSync } from "node:child_process";
import dgram from "node:dgram";
import { once } from "node:events";
import { whyNoOwnNamespace } from "./own_namespace.ts";

/** A group, and how the other side is to be bound and reached. */
export interface Family {
  readonly type: "udp4" | "udp6";
  /** Where a server is bound that hears the group as well. */
  readonly hostname: string;
  readonly loopback: string;
  readonly group: string;
  /** The interface of the loopback, as node:dgram names it. */
  readonly link: string;
}

export const inet: Family = {
  type: "udp4",
  hostname: "0.0.0.0",
  loopback: "127.0.0.1",
  group: "239.73.57.1",
  link: "127.0.0.1",
};

export const inet6: Family = { type: "udp6", hostname: "::", loopback: "::1", group: "ff02::7357", link: "::%lo" };

/** What loopback lacks for multicast. */
const preparations = [
  "link set lo multicast on",
  "route replace 224.0.0.0/4 dev lo",
  // Any other route of IPv6 over loopback the kernel takes for one that rejects.
  "-6 route replace local ff00::/8 dev lo table local",
];

/** Prepares loopback. Gives the reason why there is no multicast here, or false. */
export function whyNoMulticast(): string | false {
  const shared = whyNoOwnNamespace();
  if (shared) return shared;
  for (const words of preparations) {
    const { error, status, stderr } = spawnSync("ip", words.split(" "), { encoding: "utf8" });
    if (error) return "ip is not installed (Debian's package iproute2)";
    if (status !== 0) return `ip ${words}: ${stderr.trim()}`;
  }
  return false;
}

/** One client: numbered datagrams, of which each answer repeats the number. */
export class Asker implements Disposable {
  readonly #socket: dgram.Socket;
  readonly #port: number;
  /** The generations that have answered each. */
  readonly #answers = new Map<number, number[]>();
  #wake = () => {};

  private constructor(socket: dgram.Socket, port: number) {
    this.#socket = socket;
    this.#port = port;
    socket.on("message", (bytes) => this.#answer(bytes));
  }

  static async open({ type, loopback, link }: Family, port: number): Promise<Asker> {
    const socket = dgram.createSocket(type);
    socket.bind(0, loopback);
    await once(socket, "listening");
    socket.setMulticastInterface(link);
    return new Asker(socket, port);
  }

  /** Sends datagrams. @returns Their numbers. */
  async send(count: number, to: string): Promise<number[]> {
    const first = this.#answers.size;
    const numbers = Array.from({ length: count }, (_, index) => first + index);
    for (const number of numbers) {
      this.#answers.set(number, []);
      const datagram = Buffer.alloc(4);
      datagram.writeUInt32BE(number);
      await new Promise<void>((resolve, reject) => {
        this.#socket.send(datagram, this.#port, to, (error) => error ? reject(error) : resolve());
      });
    }
    return numbers;
  }

  /** How often each generation has answered: a moment after every one has its answer, or when the time is up. */
  async answersTo(numbers: readonly number[], limitMs = 10_000): Promise<Record<string, number>> {
    const until = Date.now() + limitMs;
    while (Date.now() < until && numbers.some((number) => this.#answers.get(number)!.length === 0)) {
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, until - Date.now());
        this.#wake = () => (clearTimeout(timer), resolve());
      });
    }
    // Whatever comes twice comes soon.
    await new Promise((resolve) => setTimeout(resolve, 50));
    const counts: Record<string, number> = {};
    for (const generation of numbers.flatMap((number) => this.#answers.get(number)!)) {
      counts[generation] = (counts[generation] ?? 0) + 1;
    }
    return counts;
  }

  [Symbol.dispose](): void {
    this.#socket.close();
  }

  #answer(bytes: Uint8Array): void {
    const { number, generation } = JSON.parse(String(bytes)) as { number: number; generation: number };
    this.#answers.get(number)!.push(generation);
    this.#wake();
  }
}
