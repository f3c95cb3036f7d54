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

import type { SocketAddress } from "../c/sockaddr.ts";
import { SystemError, TakeoverError } from "../errors.ts";
import { owning, OwnedDescriptor } from "../sockets/descriptors.ts";
import { canPause, register, type Registration, registrationsOf, unregister } from "../sockets/event_loop.ts";
import { deadListener } from "./graft.ts";
import { bindListener } from "../sockets/listener.ts";
import { placeholderAddress } from "./placeholder.ts";
import type { Runtime } from "../runtime.ts";
import {
  cookieOf,
  duplicate,
  duplicateOver,
  isListening,
  localAddress,
  type SocketIdentity,
} from "../sockets/socket.ts";

/** What an endpoint does: it accepts connections, for the application or for a successor, or receives datagrams. */
export type EndpointKind = "control" | "listener" | "datagram";

/** What an endpoint is made of. */
export interface EndpointParts {
  readonly kind: EndpointKind;
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

/** A listener that a server has for a while in place of its own. */
interface Loan {
  readonly address: SocketAddress;
  readonly cookie: string;
  /** What the server held before. */
  readonly held: OwnedDescriptor;
  /** Whether it is for connections of this process alone, which nobody else can accept. */
  readonly isPrivate: boolean;
  useCount: number;
}

/** One listening socket of this process. */
export class Endpoint {
  readonly kind: EndpointKind;
  readonly name: string;
  readonly descriptor: number;
  readonly identity: SocketIdentity;
  readonly isSupervised: boolean;
  readonly #runtime: Runtime;
  #registrations: readonly Registration[];
  #paused: boolean;
  /** The cookie of what the server holds while nothing is lent. */
  #cookie: string;
  #loan: Loan | null = null;

  constructor(runtime: Runtime, parts: EndpointParts) {
    this.#runtime = runtime;
    this.kind = parts.kind;
    this.name = parts.name;
    this.descriptor = parts.descriptor;
    this.identity = parts.identity;
    this.isSupervised = parts.isSupervised;
    this.#registrations = parts.registrations;
    this.#paused = parts.paused;
    this.#cookie = parts.identity.cookie;
  }

  /** Whether the native server still holds the socket. */
  get alive(): boolean {
    return this.#cookie === this.identity.cookie && this.#isHeld && isListening(this.#runtime, this.descriptor);
  }

  /** The event loop that the native server is in, by its epoll instance; null when it is not known. */
  get eventLoop(): number | null {
    return this.#registrations[0]?.epoll ?? null;
  }

  /** Whether the native server accepts what comes. */
  get isAccepting(): boolean {
    return !this.#paused;
  }

  get #isHeld(): boolean {
    return cookieOf(this.#runtime, this.descriptor) === (this.#loan?.cookie ?? this.#cookie);
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
    this.#takeBack();
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
    this.#takeBack();
    if (!this.alive) return;
    this.pause();
    try {
      owning(deadListener(this.#runtime, this.identity.family), ({ number }) => {
        duplicateOver(this.#runtime, number, this.descriptor);
      });
      this.#cookie = cookieOf(this.#runtime, this.descriptor);
    } catch (error) {
      if (!(error instanceof SystemError)) throw error;
    }
  }

  /**
   * Has the server accept connections of this process. While it is paused, and
   * when it has been released, it does so where nobody else can: what comes to
   * its own address then is the successor's.
   *
   * @param use Called with the address, and a function that says whether the
   *   server has stopped to accept there.
   * @throws {TakeoverError} `ERR_TAKEOVER_ADOPT` when the application has closed its server.
   */
  async whileAccepting<T>(use: (address: SocketAddress, isOver: () => boolean) => Promise<T>): Promise<T> {
    if (!this.#paused) return await use(this.identity.address, () => this.#paused);
    if (this.#loan?.isPrivate === false) this.#takeBack();
    const loan = this.#loan ??= owning(this.#privateListener(), ({ number }) => this.#lend(number, true));
    loan.useCount++;
    try {
      return await use(loan.address, () => this.#loan !== loan);
    } finally {
      if (--loan.useCount === 0 && this.#loan === loan) this.#takeBack();
    }
  }

  /**
   * Has the server accept from another listener in place of its own, whose
   * connections wait meanwhile.
   *
   * @param listener One of the same family; stays the caller's.
   * @returns What ends it; null when the server has been closed, or has
   *   another listener already.
   */
  substitute(listener: number): (() => void) | null {
    if (this.#loan || !this.#isHeld || this.#registrations.length === 0) return null;
    const loan = this.#loan = this.#lend(listener, false);
    return () => {
      if (this.#loan === loan) this.#takeBack();
    };
  }

  #lend(listener: number, isPrivate: boolean): Loan {
    if (!this.#isHeld || this.#registrations.length === 0) {
      throw new TakeoverError(
        "ERR_TAKEOVER_ADOPT",
        `Cannot give connections to the server of ${JSON.stringify(this.name)}: it has been closed`,
      );
    }
    const held = new OwnedDescriptor(this.#runtime, duplicate(this.#runtime, this.descriptor));
    unregister(this.#runtime, this.#registrations);
    try {
      duplicateOver(this.#runtime, listener, this.descriptor);
    } catch (error) {
      if (!this.#paused) register(this.#runtime, this.#registrations);
      held[Symbol.dispose]();
      throw error;
    }
    register(this.#runtime, this.#registrations);
    const address = localAddress(this.#runtime, listener)!;
    return { address, cookie: cookieOf(this.#runtime, listener), held, isPrivate, useCount: 0 };
  }

  /** Of the same family: a runtime takes what a listener accepts for one of its own. */
  #privateListener(): OwnedDescriptor {
    const { family } = this.identity;
    if (family !== "inet6") return bindListener(this.#runtime, placeholderAddress(family, null), { port: 0 });
    return bindListener(this.#runtime, { family, hostname: "::1", port: 0 }, { port: 0, ipv6Only: true });
  }

  #takeBack(): void {
    const loan = this.#loan;
    if (!loan) return;
    if (this.#isHeld) {
      unregister(this.#runtime, this.#registrations);
      duplicateOver(this.#runtime, loan.held.number, this.descriptor);
      if (!this.#paused) register(this.#runtime, this.#registrations);
    }
    this.#loan = null;
    loan.held[Symbol.dispose]();
  }
}
