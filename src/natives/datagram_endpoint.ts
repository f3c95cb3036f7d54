/**
 * A datagram socket as a native object of this process holds it. Paused it
 * reads nothing and still sends: late answers come from the address that was
 * asked, whoever reads there now.
 *
 * @module
 */

import { SystemError } from "../errors.ts";
import type { NativeObject, Runtime } from "../runtime.ts";
import { owning } from "../sockets/descriptors.ts";
import { canPause, register, type Registration, unregister } from "../sockets/event_loop.ts";
import { mute, unmute } from "../sockets/muting.ts";
import { cookieOf, duplicateOver } from "../sockets/socket.ts";
import { deadDatagram } from "./datagram.ts";
import { Endpoint, type EndpointParts } from "./endpoint.ts";

/** A datagram socket is an endpoint without connections. */
export class DatagramEndpoint extends Endpoint {
  readonly #runtime: Runtime;
  readonly #registrations: readonly Registration[];
  /** How a program that pulls is kept from reading what the event loop has told of already. */
  readonly #hold: NativeObject["pause"];
  #paused: boolean;
  #letGo: (() => void) | null = null;

  /** @param native What the application opened. */
  constructor(runtime: Runtime, parts: Omit<EndpointParts, "kind">, native: unknown) {
    super(runtime, { ...parts, kind: "datagram" });
    this.#runtime = runtime;
    this.#registrations = parts.registrations;
    this.#hold = () => runtime.inspect(native)?.pause() ?? null;
    this.#paused = parts.paused;
    if (this.#paused) this.#letGo = this.#hold();
  }

  override get alive(): boolean {
    return cookieOf(this.#runtime, this.descriptor) === this.identity.cookie;
  }

  /** Stops reading. Datagrams that come wait in the socket, for this process or for another that has it. */
  override pause(): void {
    if (this.#paused || !this.alive || !canPause(this.#runtime)) return;
    mute(this.#runtime, this.#registrations);
    this.#letGo = this.#hold();
    this.#paused = true;
  }

  /** Reads again, what waits first. */
  override resume(): void {
    if (!this.#paused || !this.alive) return;
    unmute(this.#runtime, this.#registrations);
    this.#read();
    this.#paused = false;
  }

  /**
   * Closes this process's copy of the socket. The native object goes on with
   * one that hears nobody, in the event loop like the other: a runtime changes
   * its registration when it sends. Where there is no descriptor for that one,
   * the object keeps its copy, paused, until it is closed.
   */
  override release(): void {
    if (!this.alive) return;
    this.pause();
    try {
      owning(deadDatagram(this.#runtime, this.identity.family), ({ number }) => {
        const registrations = unregister(this.#runtime, this.#registrations);
        duplicateOver(this.#runtime, number, this.descriptor);
        register(this.#runtime, registrations);
      });
      this.#read();
    } catch (error) {
      if (!(error instanceof SystemError)) throw error;
    }
  }

  #read(): void {
    this.#letGo?.();
    this.#letGo = null;
  }
}
