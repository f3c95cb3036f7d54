/**
 * Taking the listening sockets of a running process that never heard of this
 * library, so that it is replaced without losing a connection (Linux 5.6).
 *
 * ```text
 * seize     copies of its listeners, through a pidfd           it serves
 *           this process accepts on its copies                 both serve
 * pause     its listeners out of its epoll instances           it runs dry
 * retire    SIGKILL at a moment when it has no connection      it has ended
 * ```
 *
 * To accept beside another a socket has to be non-blocking, which all its copies
 * are then. Of a server that blocks in accept the sockets are left as they are
 * until it was retired; what comes meanwhile waits in the queue.
 *
 * @module
 */

import { Accepting } from "./accepting.ts";
import { checkOptions, checkRange, chosen, named, type SeizeOptions } from "./choice.ts";
import { disposeAll } from "../sockets/descriptors.ts";
import { noteElsewhere, noteGone } from "../sockets/elsewhere.ts";
import { checked, TakeoverError } from "../errors.ts";
import { Family } from "./family.ts";
import type { ForeignSocket } from "./foreign_socket.ts";
import { defaultLimits } from "../limits.ts";
import { copyListeners, type SeizedListener } from "./listeners.ts";
import { ForeignProcess } from "./process.ts";
import { type Retired, retireFamily, type RetireOptions } from "./retire.ts";
import type { Runtime } from "../runtime.ts";
import { formatAddress } from "../c/sockaddr.ts";
import { setNonBlocking } from "../sockets/socket.ts";

/** What a timer can wait. */
const longestMs = 2 ** 31 - 1;

/**
 * Copies the listening sockets of a process. It serves on.
 *
 * @param runtime The runtime's libc.
 * @param options Which process, and which of its listeners.
 * @throws {TakeoverError} See `seize` in mod.ts.
 */
export function seizeFrom(runtime: Runtime, options: SeizeOptions): Seized {
  checkOptions(runtime, options);
  const process = new ForeignProcess(runtime, options.pid);
  let listeners: SeizedListener[] = [];
  try {
    const startTime = checkProcess(process, options);
    listeners = copyListeners(runtime, process);
    const wanted = chosen(listeners, options);
    checkParent(runtime, process, wanted);
    // What was read under its number was about this process only if it has not ended meanwhile.
    if (!process.alive) throw process.gone();
    disposeAll(listeners.filter((each) => !wanted.includes(each)).map(({ descriptor }) => descriptor));
    return new Seized(runtime, process, startTime, wanted, options);
  } catch (error) {
    disposeAll(listeners.map(({ descriptor }) => descriptor));
    process[Symbol.dispose]();
    throw error;
  }
}

/** Listening sockets of another process, and what becomes of that process. Made by `seize`. */
export class Seized implements Disposable {
  /** The other process. */
  readonly pid: number;
  /** When it started: field 22 of /proc/PID/stat. */
  readonly startTime: number;
  readonly #runtime: Runtime;
  readonly #process: ForeignProcess;
  readonly #family: Family;
  readonly #accepting: Accepting;
  readonly #sockets: readonly ForeignSocket[];
  /** Those that blocked when they were copied. */
  readonly #blocking: readonly ForeignSocket[];
  readonly #allowBlocking: boolean;
  #stage: "open" | "retiring" | "closed" = "open";
  /** Whether this was disposed, though `retire` may still use what it has. */
  #isUnwanted = false;

  /** The descriptors and the process become this object's when it returns, and stay the caller's when it throws. */
  constructor(
    runtime: Runtime,
    process: ForeignProcess,
    startTime: number,
    listeners: readonly SeizedListener[],
    { name, allowBlocking = false }: Pick<SeizeOptions, "name" | "allowBlocking"> = {},
  ) {
    this.#runtime = runtime;
    this.#allowBlocking = allowBlocking;
    this.#process = process;
    this.pid = process.pid;
    this.startTime = startTime;
    const links = new Set(listeners.map(({ link }) => link));
    this.#family = new Family(runtime, process, links);
    this.#accepting = new Accepting(runtime, links);
    try {
      this.#accepting.keepNumbers(this.#family.members());
      this.#sockets = named(listeners, name);
      for (const { identity } of this.#sockets) noteElsewhere(identity.cookie);
      this.#blocking = this.#sockets.filter(({ descriptor }) => isBlocking(runtime, descriptor.number));
      if (allowBlocking) this.#unblock();
    } catch (error) {
      this.#accepting[Symbol.dispose]();
      this.#family[Symbol.dispose]();
      throw error;
    }
  }

  /**
   * This process's copies: they listen, and are non-blocking. Whoever takes a
   * descriptor owns it. Those of a server that blocks in accept are there when
   * it was retired: what comes meanwhile waits in the queue.
   *
   * @throws {TakeoverError} `ERR_TAKEOVER_UNSUPPORTED` when one blocks, the
   *   process was not retired yet, and `allowBlocking` was not set.
   */
  get sockets(): readonly ForeignSocket[] {
    const [first] = this.#blocking;
    if (!first || this.#allowBlocking || this.#stage === "closed") return this.#sockets;
    throw new TakeoverError(
      "ERR_TAKEOVER_UNSUPPORTED",
      `Cannot accept at ${formatAddress(first.identity.address)} beside process ${this.pid}: expected a non-blocking ` +
        "socket, this one blocks, and would have to be changed for that process too, whose accept then fails with " +
        "EAGAIN; retire it first, or give allowBlocking if it goes on after that error, as Python's http.server does",
    );
  }

  /**
   * Stops the other process's accepting, if it waits with epoll(7). What it has
   * accepted it serves; what comes waits in the queue, which this process has too.
   *
   * @returns Whether it accepts nothing more. False when it does not wait with
   *   epoll, or when a descriptor's number there is in use here: it goes on then.
   * @throws {TakeoverError} `ERR_TAKEOVER_STATE` when it is retired, or this is disposed.
   */
  pause(): boolean {
    this.#checkOpen("pause");
    return this.#accepting.pause(this.#family.members());
  }

  /**
   * Lets the other process accept again after {@linkcode pause}.
   *
   * @throws {TakeoverError} `ERR_TAKEOVER_STATE` when it is retired, or this is disposed.
   */
  resume(): void {
    this.#checkOpen("resume");
    this.#accepting.resume();
  }

  /**
   * Ends the other process, workers included, at a moment when it has no
   * connection that came in through these sockets. Call it when this process
   * accepts, or, if {@linkcode sockets} are refused until then, before. It is
   * killed (SIGKILL), so what it does at its end is not done; all its listeners
   * go, those that were not seized too.
   *
   * With `drainSignal` it is only sent that signal, and ends by itself.
   *
   * @param options When to stop waiting, and how it is told.
   * @returns How it went. Idle kept connections look like busy ones, and are
   *   cut at the deadline.
   * @throws {TakeoverError} `ERR_TAKEOVER_STATE` when it is retired already, or
   *   when this is disposed meanwhile and it serves on; `ERR_TAKEOVER_TIMEOUT`
   *   when it cannot be killed.
   * @throws The reason of `signal`, when that is aborted; it serves on.
   *
   * @example
   * ```ts ignore
   * const { connections } = await seized.retire({ deadlineMs: 10_000 });
   * console.log(`${connections} connections were cut`);
   * ```
   */
  async retire(options: RetireOptions = {}): Promise<Retired> {
    this.#checkOpen("retire");
    const { deadlineMs = defaultLimits.drainMs, signal } = options;
    checkRange("wait", deadlineMs, 0, longestMs, "a time in milliseconds");
    this.#stage = "retiring";
    let isEnded = false;
    try {
      const addresses = this.#sockets.map(({ identity }) => identity.address);
      const how = { ...options, deadlineMs, checkWanted: () => this.#checkWanted(signal) };
      const retired = await retireFamily(this.#family, this.#accepting, addresses, how);
      isEnded = true;
      return retired;
    } finally {
      this.#stage = "open";
      if (isEnded) {
        for (const { identity } of this.#sockets) noteGone(identity.cookie);
        this.#close();
        this.#unblock();
      } else if (this.#isUnwanted) {
        this[Symbol.dispose]();
      }
    }
  }

  /**
   * Gives everything back: closes the copies that nobody has taken, and lets
   * the other process accept again. A `retire` that runs is given up. Nothing
   * is left to do after one that has succeeded.
   */
  [Symbol.dispose](): void {
    if (this.#stage === "closed") return;
    this.#isUnwanted = true;
    if (this.#stage === "retiring") this.#family.thaw();
    this.#accepting.resume();
    if (this.#allowBlocking) for (const { descriptor } of this.#blocking) setBlocking(this.#runtime, descriptor.number);
    disposeAll(this.#sockets.map(({ descriptor }) => descriptor));
    // What `retire` is using it closes itself.
    if (this.#stage === "open") this.#close();
  }

  /** Makes those non-blocking that are not, unless they are closed. */
  #unblock(): void {
    for (const { descriptor } of this.#blocking) {
      if (descriptor.number >= 0) setNonBlocking(this.#runtime, descriptor.number);
    }
  }

  #close(): void {
    this.#stage = "closed";
    this.#accepting[Symbol.dispose]();
    this.#family[Symbol.dispose]();
    this.#process[Symbol.dispose]();
  }

  #checkWanted(signal?: AbortSignal): void {
    signal?.throwIfAborted();
    if (!this.#isUnwanted) return;
    throw new TakeoverError(
      "ERR_TAKEOVER_STATE",
      `Cannot retire process ${this.pid}: expected to keep it until then, this was disposed; it serves on, seize again`,
    );
  }

  #checkOpen(what: string): void {
    if (this.#stage === "open") return;
    const why = this.#stage === "retiring" ? "it is being retired" : "it was retired, or this was disposed";
    throw new TakeoverError("ERR_TAKEOVER_STATE", `Cannot ${what} process ${this.pid}: ${why}; seize again`);
  }
}

/** Whether it is the process that was meant: a pid is another's once its process has ended. */
function checkProcess(process: ForeignProcess, { startTime, executable }: SeizeOptions): number {
  const { status } = process;
  if (!status) throw process.gone();
  const runs = process.executable;
  const isOther = startTime !== undefined && startTime !== status.startTime ||
    executable !== undefined && runs !== executable && !runs.endsWith(`/${executable}`);
  if (!isOther) return status.startTime;
  throw new TakeoverError(
    "ERR_TAKEOVER_PROCESS",
    `Cannot seize from process ${process.pid}: expected ${executable ?? "one"} ` +
      `started at ${startTime ?? "any time"}, it is ${runs || "a program that this user may not know"} ` +
      `started at ${status.startTime}; look the pid up again`,
  );
}

/** Of a server with workers only the process that started them can be replaced: it would start another worker. */
function checkParent(runtime: Runtime, process: ForeignProcess, listeners: readonly SeizedListener[]): void {
  const pid = process.status?.parent ?? 0;
  const parent = pid > 1 && pid !== runtime.libc.getpid() ? ForeignProcess.find(runtime, pid) : null;
  if (!parent) return;
  try {
    if (parent.executable !== process.executable) return;
    const links = new Set(parent.descriptors().values());
    if (!listeners.some(({ link }) => links.has(link))) return;
    throw new TakeoverError(
      "ERR_TAKEOVER_PROCESS",
      `Cannot seize from process ${process.pid}: expected the process that started the workers, ` +
        `it is a worker of process ${parent.pid}, which has the listener too; seize from that`,
    );
  } finally {
    parent[Symbol.dispose]();
  }
}

/** Whether accept(2) waits on it. */
function isBlocking({ abi, libc }: Runtime, descriptor: number): boolean {
  const { F_GETFL, O_NONBLOCK } = abi.constants;
  return (checked(abi, "fcntl", libc.fcntl(descriptor, F_GETFL, 0)) & O_NONBLOCK) === 0;
}

/** Makes a socket blocking again, unless it was taken or closed. */
function setBlocking({ abi, libc }: Runtime, descriptor: number): void {
  const { F_GETFL, F_SETFL, O_NONBLOCK } = abi.constants;
  const flags = descriptor >= 0 ? libc.fcntl(descriptor, F_GETFL, 0) : -1;
  if (flags >= 0) libc.fcntl(descriptor, F_SETFL, flags & ~O_NONBLOCK);
}
