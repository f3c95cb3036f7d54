/**
 * UDP flows that stay with the process that knows them, where nothing in the
 * datagram says which: the newest process reads everything, asks the
 * application, and passes on what belongs to an older generation, over a Unix
 * socket of packets and with the true sender's address. The older process
 * answers through its own copy of the UDP socket.
 *
 * ```text
 * client ──> UDP socket ──> newest process ── route: 3 ──> its own
 *    ↑                            └── route: 2 ──> Unix socket ──> process of generation 2
 *    └──────────────────────── its own copy of the UDP socket ─────────┘
 * ```
 *
 * Nothing is lost in silence: what finds no room is told of, and what was not
 * on its way yet when an older process ends comes back.
 *
 * @module
 */

import type { InetAddress } from "../c/sockaddr.ts";
import type { ForwardLink } from "./forward_link.ts";

/** All generations whose flows pass through this process. */
export class Forwarder {
  readonly #route: (bytes: Uint8Array, peer: InetAddress) => number | null;
  readonly #links = new Map<number, ForwardLink>();

  /**
   * Begins with no older generation.
   *
   * @param route Says which generation a datagram belongs to; null for this process.
   */
  constructor(route: (bytes: Uint8Array, peer: InetAddress) => number | null) {
    this.#route = route;
  }

  /** Names the process of a generation; one that is several generations' is named for each. */
  add(generation: number, link: ForwardLink): void {
    this.#links.set(generation, link);
  }

  /**
   * Forwards a datagram, when it is an older process's.
   *
   * @returns False when it is this process's own: also when the process that it
   *   belonged to has ended, or when nobody can answer it because it has come from port 0.
   */
  take(bytes: Uint8Array, peer: InetAddress): boolean {
    if (this.#links.size === 0 || peer.port === 0) return false;
    const generation = this.#route(bytes, peer);
    const link = generation === null ? undefined : this.#links.get(generation);
    if (!link) return false;
    if (link.isOpen) {
      link.forward(bytes, peer);
      return true;
    }
    this.#links.delete(generation!);
    return false;
  }
}
