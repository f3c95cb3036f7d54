/**
 * Keep-alive connections of an HTTP server that leave between two messages, or
 * in the middle of one that is being collected: of Deno.serve, Bun.serve and
 * node:http.
 *
 * @module
 */

import type { HttpConnection, HttpConnections } from "./http_connections.ts";
import type { Census, Frozen, Movable, Source } from "./movable.ts";

/** What will hardly become certain. */
const doubts: readonly string[] = ["upgraded", "unproven"];

/** The connections of one endpoint. */
export class HttpSource implements Source {
  readonly #connections: HttpConnections;
  readonly #endpoint: string;

  /**
   * @param connections Those of the process.
   * @param endpoint The name of one of its endpoints.
   */
  constructor(connections: HttpConnections, endpoint: string) {
    this.#connections = connections;
    this.#endpoint = endpoint;
  }

  start(ask: () => void): void {
    this.#connections.start(this.#endpoint, ask);
  }

  ready(limit: number, isLast: boolean): Movable[] {
    return this.#connections.atBoundary(this.#endpoint, limit, isLast).map((connection) => ({
      endpoint: this.#endpoint,
      kind: "http",
      freeze: () => this.#freeze(connection, isLast),
    }));
  }

  census(): Census {
    let waiting = 0;
    const staying: Record<string, number> = {};
    for (const connection of this.#connections.of(this.#endpoint)) {
      const reason = this.#reasonOf(connection);
      if (reason === null) waiting++;
      else staying[reason] = (staying[reason] ?? 0) + 1;
    }
    return { waiting, staying };
  }

  stop(): void {
    this.#connections.stop(this.#endpoint);
  }

  #reasonOf(connection: HttpConnection): string | null {
    const { stays, verdict } = connection;
    if (stays !== null) return stays;
    if (doubts.includes(verdict.reason)) return verdict.reason;
    return this.#connections.isStreaming(connection) ? "streaming" : null;
  }

  #freeze(connection: HttpConnection, isLast: boolean): Frozen | null {
    const frozen = this.#connections.freeze(connection, isLast);
    if (!frozen) return null;
    return {
      descriptor: frozen.descriptor,
      cookie: connection.cookie,
      state: null,
      unread: frozen.unread,
      leave: () => frozen.leave(),
      thaw: (_error, isRefused) => {
        if (isRefused) connection.stays = "refused";
        frozen.thaw();
      },
    };
  }
}
