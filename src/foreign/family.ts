/**
 * A server as the processes it consists of: the one that was named, and those
 * that it started of the same program, which are its workers.
 *
 * @module
 */

import { TakeoverError } from "../errors.ts";
import { connectionsOf } from "./listeners.ts";
import { ForeignProcess } from "./process.ts";
import type { Runtime } from "../runtime.ts";
import type { SocketAddress } from "../c/sockaddr.ts";
import { descendantsOf } from "./status.ts";

/** How long threads may take to stop; one that waits for a disk stops late. */
const stopMs = 1_000;

/** How long a killed process may take to be gone; a large one is slow to free its memory. */
const endMs = 30_000;

const lookAgainMs = 1;

/** The processes of one server. */
export class Family implements Disposable {
  /** The process that was named; its owner is whoever made this. */
  readonly main: ForeignProcess;
  readonly #runtime: Runtime;
  readonly #links: ReadonlySet<string>;
  readonly #executable: string;
  readonly #workers = new Map<number, ForeignProcess>();
  #isFreezing = false;
  /** Where a connection was seen last: it saves looking at all descriptors. */
  #seen: { readonly process: ForeignProcess; readonly descriptor: number } | null = null;

  /** @param links The listening sockets that are taken from it, as /proc calls them. */
  constructor(runtime: Runtime, main: ForeignProcess, links: ReadonlySet<string>) {
    this.main = main;
    this.#runtime = runtime;
    this.#links = links;
    this.#executable = main.executable;
  }

  /** Looks for new workers, and gives all processes there are. */
  members(): ForeignProcess[] {
    for (const [pid, worker] of this.#workers) {
      if (worker.alive) continue;
      worker[Symbol.dispose]();
      this.#workers.delete(pid);
    }
    for (const pid of this.main.alive ? descendantsOf(this.#runtime, this.main.pid) : []) {
      const worker = this.#workers.has(pid) ? null : this.#open(pid);
      if (worker) this.#workers.set(pid, worker);
    }
    return this.#known;
  }

  get #known(): ForeignProcess[] {
    return [this.main, ...this.#workers.values()];
  }

  /** Whether one of them runs that has a listener; the main process counts in any case. */
  get running(): boolean {
    return this.main.alive || this.#holders().length > 0;
  }

  /** Whether they have a connection that came in through these addresses. */
  hasConnection(addresses: readonly SocketAddress[]): boolean {
    const likely = this.#seen;
    const processes = this.#known.filter((process) => process.alive);
    for (const process of processes.sort((a, b) => Number(b === likely?.process) - Number(a === likely?.process))) {
      const first = process === likely?.process ? likely.descriptor : -1;
      for (const descriptor of connectionsOf(this.#runtime, process, addresses, first)) {
        this.#seen = { process, descriptor };
        return true;
      }
    }
    this.#seen = null;
    return false;
  }

  /** How many such connections they have. */
  connectionCount(addresses: readonly SocketAddress[]): number {
    const links = this.#known.filter((process) => process.alive).flatMap((process) =>
      [...connectionsOf(this.#runtime, process, addresses)].map((descriptor) => process.link(descriptor))
    );
    return new Set(links).size;
  }

  /**
   * Stops them all, the main process first: what is stopped starts no others.
   *
   * @returns Whether all have stopped; otherwise, or after {@linkcode thaw}, they go on.
   */
  async freeze(): Promise<boolean> {
    this.#isFreezing = true;
    const until = Date.now() + stopMs;
    const stopped = new Set<ForeignProcess>();
    for (let fresh = [this.main]; fresh.length > 0; fresh = this.members().filter((process) => !stopped.has(process))) {
      for (const process of fresh) {
        process.send("SIGSTOP");
        stopped.add(process);
      }
      while (!fresh.every((process) => process.still)) {
        if (Date.now() >= until) this.thaw();
        else await sleep(lookAgainMs);
        if (!this.#isFreezing) return false;
      }
    }
    return true;
  }

  /** Stops those that are known for a while. */
  async hold(ms: number): Promise<void> {
    if (ms < 1) return;
    for (const process of this.#known) process.send("SIGSTOP");
    await sleep(ms);
    this.thaw();
  }

  /** Lets them go on, also those that are being stopped. */
  thaw(): void {
    this.#isFreezing = false;
    for (const process of this.#known) process.send("SIGCONT");
  }

  /**
   * Kills the main process and the workers that have a listener, and waits
   * until their descriptors are closed. The others are let go on.
   *
   * @throws {TakeoverError} `ERR_TAKEOVER_TIMEOUT` when one does not end.
   */
  async kill(): Promise<void> {
    const killed = [...new Set([this.main, ...this.#holders()])];
    for (const process of killed) process.send("SIGKILL");
    this.thaw();
    const until = Date.now() + endMs;
    for (let left = killed; left.length > 0; left = left.filter((process) => process.alive)) {
      if (Date.now() >= until) {
        throw new TakeoverError(
          "ERR_TAKEOVER_TIMEOUT",
          `Cannot end process ${left[0]!.pid}: expected it to be gone ${endMs} ms after SIGKILL; the first process ` +
            "of a container cannot be killed from inside it",
        );
      }
      await sleep(lookAgainMs);
    }
  }

  /** Closes the workers' pidfds. */
  [Symbol.dispose](): void {
    for (const worker of this.#workers.values()) worker[Symbol.dispose]();
    this.#workers.clear();
  }

  /** A descendant, if it is one still, and runs the same program. */
  #open(pid: number): ForeignProcess | null {
    const process = ForeignProcess.find(this.#runtime, pid);
    if (!process) return null;
    const parent = process.status?.parent;
    const isChild = parent !== undefined && (parent === this.main.pid || this.#workers.has(parent));
    if (isChild && process.executable === this.#executable) return process;
    process[Symbol.dispose]();
    return null;
  }

  #holders(): ForeignProcess[] {
    return this.#known.filter((process) =>
      process.alive && [...process.descriptors().values()].some((link) => this.#links.has(link))
    );
  }
}

function sleep(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}
