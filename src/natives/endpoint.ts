/**
 * A listening socket as a native server of this process holds it: paused,
 * resumed, offered to a successor, and let go.
 *
 * The native server owns the descriptor. The endpoint only knows its number,
 * and looks at the socket's cookie before it touches it: the application may
 * have closed its server, and the number may be another socket's by now.
 *
 * @module
 */

import { SystemError } from "../errors.ts";
import { owning } from "../sockets/descriptors.ts";
import { canPause, register, type Registration, registrationsOf, unregister } from "../sockets/event_loop.ts";
import { deadListener } from "./graft.ts";
import type { Runtime } from "../runtime.ts";
import { cookieOf, duplicateOver, isListening, type SocketIdentity } from "../sockets/socket.ts";

/** What an endpoint is made of. */
export interface EndpointParts {
  readonly kind: "control" | "listener";
  readonly name: string;
  /** The native server's descriptor. */
  readonly descriptor: number;
  readonly identity: SocketIdentity;
  /** Its entry in the event loop, or none when it is not known yet. A runtime never changes a listener's. */
  readonly registrations: readonly Registration[];
  /** Whether they have been taken out. */
  readonly paused: boolean;
  /** Whether its place belongs to a service manager or the like: its path is left alone. */
  readonly isSupervised: boolean;
}

/** One listening socket of this process. */
export class Endpoint {
  readonly kind: "control" | "listener";
  readonly name: string;
  readonly descriptor: number;
  readonly identity: SocketIdentity;
  readonly isSupervised: boolean;
  readonly #runtime: Runtime;
  #registrations: readonly Registration[];
  #paused: boolean;

  constructor(runtime: Runtime, parts: EndpointParts) {
    this.#runtime = runtime;
    this.kind = parts.kind;
    this.name = parts.name;
    this.descriptor = parts.descriptor;
    this.identity = parts.identity;
    this.isSupervised = parts.isSupervised;
    this.#registrations = parts.registrations;
    this.#paused = parts.paused;
  }

  /** Whether the native server still holds the socket. */
  get alive(): boolean {
    return cookieOf(this.#runtime, this.descriptor) === this.identity.cookie &&
      isListening(this.#runtime, this.descriptor);
  }

  /**
   * Stops accepting. Connections that come wait in the accept queue, for this
   * process or for another that has the socket.
   */
  pause(): void {
    if (this.#paused || !this.alive || !canPause(this.#runtime)) return;
    // libuv tells epoll of a new listener only when it next waits for events.
    const known = this.#registrations.length > 0 ? this.#registrations : registrationsOf(this.#runtime, this.descriptor);
    this.#registrations = unregister(this.#runtime, known);
    this.#paused = true;
  }

  /** Accepts again. */
  resume(): void {
    if (!this.#paused || !this.alive) return;
    register(this.#runtime, this.#registrations);
    this.#paused = false;
  }

  /**
   * Closes this process's copy of the socket. The native server goes on with a
   * listener that nobody knows, so that it can be closed in any order, and
   * keeps its connections until then. Where there is no descriptor for that
   * listener, the server keeps its copy, paused, until it is closed.
   */
  release(): void {
    if (!this.alive) return;
    this.pause();
    try {
      owning(deadListener(this.#runtime, this.identity.family), ({ number }) => {
        duplicateOver(this.#runtime, number, this.descriptor);
      });
    } catch (error) {
      if (!(error instanceof SystemError)) throw error;
    }
  }
}
