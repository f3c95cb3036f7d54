/**
 * What the service manager hears of a chain of generations (sd_notify(3)). Only
 * the process that serves alone speaks, because no other is the service's main
 * process: the first until it is released, a successor from settled on.
 *
 * ```text
 * incumbent                                     successor
 *   ready of the first    MAINPID=self READY=1
 *   a successor's hello   RELOADING=1
 *   it was lost           READY=1
 *   it was settled        MAINPID=successor READY=1 ..... settled   MAINPID=self READY=1
 *   closed on its own     STOPPING=1
 * ```
 *
 * A successor says that it is the main process too, because the incumbent may
 * have died during the lease. One that fails says nothing: the service goes on
 * without it, and STOPPING=1 would be its end.
 *
 * @module
 */

import type { Notifier } from "../foreign/notify.ts";
import type { Endpoint } from "../natives/endpoint.ts";

/** What the reports are about. */
export interface ReportingHost {
  /** Null when the application switched reports off. */
  readonly notifier: Notifier | null;
  readonly pid: number;
  /** Whether listeners go into the service manager's descriptor store, under their names. */
  readonly store: boolean;
  endpoints(): Iterable<Endpoint>;
  /** A message did not get through; nothing else has changed. */
  readonly failed: (error: unknown) => void;
}

/** Reports for one process. Never throws, and nothing waits for it. */
export class Reporting {
  readonly #host: ReportingHost;
  #isMain = false;
  #isReloading = false;
  #isOver = false;

  constructor(host: ReportingHost) {
    this.#host = host;
  }

  /**
   * This process serves, and nobody can come back.
   *
   * @param unclaimed Names of stored sockets that it was given and did not want.
   */
  serving(unclaimed: readonly string[] = []): void {
    if (this.#isOver) return;
    this.#isMain = true;
    this.#forget(unclaimed);
    for (const endpoint of this.#host.endpoints()) this.opened(endpoint);
    this.#handOn(this.#host.pid);
  }

  /** One more endpoint is there. */
  opened({ name, descriptor, alive }: Endpoint): void {
    if (!this.#isMain || !this.#host.store || !alive) return;
    this.#tell((notifier) => notifier.storeDescriptors(name, [descriptor]));
  }

  /** A successor has been greeted. */
  replacing(): void {
    if (!this.#isMain || this.#isReloading) return;
    this.#isReloading = true;
    this.#tell((notifier) => notifier.reloading());
  }

  /** Nothing came of it. */
  keptOn(): void {
    if (!this.#isReloading) return;
    this.#isReloading = false;
    this.#tell((notifier) => notifier.ready());
  }

  /** The successor serves alone from here on. */
  replaced(pid: number, unclaimed: readonly string[]): void {
    if (!this.#isMain) return;
    this.#isMain = false;
    this.#forget(unclaimed);
    this.#handOn(pid);
  }

  /** The service ends with this process. */
  stopping(): void {
    // One that was not ready yet leaves to the next start what it was given.
    if (this.#isMain) this.#forget(Array.from(this.#host.endpoints(), ({ name }) => name));
    this.#isMain = false;
    this.#isOver = true;
    this.#tell((notifier) => notifier.stopping());
  }

  /**
   * Resolves when the service manager has no copy any more of what it was told
   * to forget, or does not say so in time.
   */
  async forgotten(): Promise<void> {
    const { notifier, store, failed } = this.#host;
    if (store) await notifier?.barrier().catch(failed);
  }

  /** Resolves when everything has been said, or could not be. */
  async idle(): Promise<void> {
    await this.#host.notifier?.idle();
  }

  #handOn(pid: number): void {
    this.#tell((notifier) => notifier.send([`MAINPID=${pid}`, "READY=1"]));
  }

  #forget(names: readonly string[]): void {
    if (!this.#host.store) return;
    for (const name of new Set(names)) this.#tell((notifier) => notifier.removeDescriptors(name));
  }

  #tell(say: (notifier: Notifier) => Promise<boolean>): void {
    const { notifier, failed } = this.#host;
    if (notifier) say(notifier).catch(failed);
  }
}
