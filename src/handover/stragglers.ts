/**
 * Listeners in a group that this process cannot close, and where nobody may
 * accept: a process that hangs or was stopped has the only copies. The program
 * that keeps connections away from them stays as long as they are there.
 *
 * ```text
 * an incumbent that is past `releaseMs`   has those that its successor did not want, and has closed
 * a successor that was lost               has those that were new, if it has not ended
 * ```
 *
 * @module
 */

import { formatAddress, type InetAddress } from "../c/sockaddr.ts";
import { pause } from "../channels/readiness.ts";
import { SystemError, TakeoverError } from "../errors.ts";
import type { Runtime } from "../runtime.ts";
import { listedMembers } from "../steering/socket_diag.ts";

/** How often one looks: at first, and at most. */
const firstLookMs = 20;
const longestLookMs = 2_000;

/** Those that a program waits for. */
interface Awaited {
  readonly cookies: ReadonlySet<string>;
  readonly ending: AbortController;
}

/** Stragglers at all addresses of a process. */
export class Stragglers implements Disposable {
  readonly #runtime: Runtime;
  readonly #isHeld: () => boolean;
  /** Who was at an address before a successor was offered what listens there. */
  readonly #before = new Map<string, ReadonlySet<string>>();
  readonly #awaited = new Map<string, Awaited>();
  #isDisposed = false;

  /** @param isHeld Whether a group's program may be somebody else's now, and is not to be touched. */
  constructor(runtime: Runtime, isHeld: () => boolean) {
    this.#runtime = runtime;
    this.#isHeld = isHeld;
  }

  /** A successor is to be offered what listens at an address: who comes from here on may be its. */
  offering(address: InetAddress): void {
    const awaited = this.#awaited.get(formatAddress(address))?.cookies;
    const before = this.#cookiesAt(address)?.filter((cookie) => !awaited?.has(cookie));
    if (before) this.#before.set(formatAddress(address), new Set(before));
    else this.#before.delete(formatAddress(address));
  }

  /** Who has come to an address since, and who was waited for before. */
  since(address: InetAddress): string[] {
    const before = this.#before.get(formatAddress(address));
    return before ? this.#cookiesAt(address)?.filter((cookie) => !before.has(cookie)) ?? [] : [];
  }

  /**
   * Waits until sockets have left an address, in place of those that it waits
   * for there already.
   *
   * @param end Takes the group's program away; called at once when none is there.
   */
  endOnceGone(address: InetAddress, cookies: Iterable<string>, end: () => void): void {
    const at = formatAddress(address);
    const awaited = { cookies: new Set(cookies), ending: new AbortController() };
    this.#awaited.get(at)?.ending.abort();
    this.#awaited.set(at, awaited);
    if (this.#isDisposed) awaited.ending.abort();
    void this.#look(address, awaited, () => {
      this.#awaited.delete(at);
      end();
    });
  }

  /** Waits for none any more; programs stay as they are. */
  [Symbol.dispose](): void {
    this.#isDisposed = true;
    for (const { ending } of this.#awaited.values()) ending.abort();
  }

  async #look(address: InetAddress, { cookies, ending: { signal } }: Awaited, end: () => void): Promise<void> {
    for (let lookMs = firstLookMs;; lookMs = Math.min(lookMs * 2, longestLookMs)) {
      if (!this.#isHeld() && !this.#areAt(address, cookies)) return end();
      if (signal.aborted) return;
      await pause(lookMs, { signal, keepAlive: false }).catch(() => {});
      if (signal.aborted) return;
    }
  }

  #areAt(address: InetAddress, cookies: ReadonlySet<string>): boolean {
    if (cookies.size === 0) return false;
    // Without a descriptor to ask with (EMFILE) they may be.
    return this.#cookiesAt(address)?.some((cookie) => cookies.has(cookie)) ?? true;
  }

  /** Null without a descriptor to ask with. Where the kernel tells nobody, nobody is there. */
  #cookiesAt(address: InetAddress): string[] | null {
    try {
      return listedMembers(this.#runtime, address, "stream").map(({ cookie }) => cookie);
    } catch (error) {
      if (error instanceof TakeoverError) return [];
      if (error instanceof SystemError) return null;
      throw error;
    }
  }
}
