/**
 * Listening for connections that stay raw descriptors, for whoever passes them
 * on, or reads them through libc: no runtime takes part, so none has to let go.
 *
 * @module
 */

import { errnoName } from "../c/errno.ts";
import type { SocketAddress } from "../c/sockaddr.ts";
import { isSystemError, SystemError, TakeoverError } from "../errors.ts";
import type { Runtime } from "../runtime.ts";
import { type EndpointAddress, resolveAddress } from "../sockets/address.ts";
import { OwnedDescriptor, owning } from "../sockets/descriptors.ts";
import { bindListener } from "../sockets/listener.ts";
import { pause, stopWaiting, type WaitOptions, waitReadable } from "./readiness.ts";
import { localAddress, setCloseOnExec } from "../sockets/socket.ts";
import { Pace } from "./turns.ts";
import { inodeAt, unlinkIfSame } from "./unix_path.ts";

/** Linux's flags of accept4(2). */
const SOCK_CLOEXEC = 0o2000000;
const SOCK_NONBLOCK = 0o4000;

/** How to accept. */
export interface AcceptorOptions {
  /**
   * Leaves connections blocking. `O_NONBLOCK` travels with a descriptor, and a
   * program in C or Python reads what it receives as if it were blocking: it
   * would fail with `EAGAIN`. What is adopted or wrapped here becomes
   * non-blocking then.
   */
  readonly blocking?: boolean;
}

/** What accept(2) says of one connection that has gone again; the next may be fine. */
const passing = ["ECONNABORTED", "EPROTO", "ENOPROTOOPT", "ENETDOWN", "ENETUNREACH", "EHOSTUNREACH"];

/** What it says when this process, or the machine, has no room for a connection. */
const roomless = ["EMFILE", "ENFILE", "ENOBUFS", "ENOMEM"];

/** How long to wait then. */
const roomlessPauseMs = 50;

/** A listening TCP or Unix socket whose connections are descriptors. */
export class Acceptor implements Disposable, AsyncIterable<OwnedDescriptor> {
  readonly #runtime: Runtime;
  readonly #socket: OwnedDescriptor;
  readonly #isBlocking: boolean;
  /** Where it listens: with the port that the kernel chose. */
  readonly address: SocketAddress;
  /** The inode of its path, by which that is known again. */
  readonly #inode: number | null;
  readonly #pace = new Pace();

  /**
   * Makes an acceptor of a listener; use {@linkcode openAcceptor}.
   *
   * @param socket A non-blocking listener, owned by the acceptor from here on.
   */
  constructor(runtime: Runtime, socket: OwnedDescriptor, address: SocketAddress, options: AcceptorOptions = {}) {
    this.#runtime = runtime;
    this.#socket = socket;
    this.address = address;
    this.#isBlocking = options.blocking === true;
    this.#inode = address.family === "unix" ? inodeAt(runtime, address.path) : null;
  }

  /** The listening descriptor, which stays this object's; -1 once closed. */
  get descriptor(): number {
    return this.#socket.number;
  }

  /**
   * The next connection: close-on-exec, non-blocking unless the options say
   * otherwise, the caller's to close.
   * One that nobody asks for waits in the accept queue.
   *
   * @throws {TakeoverError} `ERR_TAKEOVER_TIMEOUT`, `ERR_TAKEOVER_CLOSED`.
   * @throws {SystemError} `EMFILE` when this process has no descriptor left.
   */
  async accept(options: WaitOptions = {}): Promise<OwnedDescriptor> {
    const until = options.timeoutMs === undefined ? Infinity : Date.now() + options.timeoutMs;
    for (;;) {
      await this.#pace.keep();
      options.signal?.throwIfAborted();
      const number = this.#acceptOnce();
      if (number !== null) return new OwnedDescriptor(this.#runtime, number);
      const timeoutMs = until === Infinity ? undefined : Math.max(0, until - Date.now());
      await waitReadable(this.#runtime, this.#opened(), { ...options, timeoutMs });
    }
  }

  /**
   * Every connection, until this listener is closed; each is the loop's to
   * close. While the process has no descriptor left, they wait in the queue.
   */
  async *[Symbol.asyncIterator](): AsyncGenerator<OwnedDescriptor, void, undefined> {
    while (this.#socket.number >= 0) {
      let connection: OwnedDescriptor;
      try {
        connection = await this.accept();
      } catch (error) {
        if (this.#socket.number < 0) return;
        if (!isSystemError(error, ...roomless)) throw error;
        await pause(roomlessPauseMs);
        continue;
      }
      yield connection;
    }
  }

  /**
   * Stops listening, and removes the path of a Unix socket, unless somebody else
   * has bound it meanwhile. What was accepted stays; what waits is reset.
   */
  close(): void {
    const { number } = this.#socket;
    if (number < 0) return;
    stopWaiting(this.#runtime, number);
    owning(this.#socket, () => {
      if (this.address.family === "unix") unlinkIfSame(this.#runtime, this.address.path, this.#inode);
    });
  }

  /** The same as {@linkcode close}. */
  [Symbol.dispose](): void {
    this.close();
  }

  #opened(): number {
    const { number } = this.#socket;
    if (number >= 0) return number;
    throw new TakeoverError("ERR_TAKEOVER_CLOSED", "Cannot accept: the listener has been closed");
  }

  /** Null when there is nothing. */
  #acceptOnce(): number | null {
    const { abi, libc } = this.#runtime;
    const listener = this.#opened();
    const flags = SOCK_CLOEXEC | (this.#isBlocking ? 0 : SOCK_NONBLOCK);
    const number = abi.platform === "linux"
      ? libc.accept4(listener, null, null, flags)
      : libc.accept(listener, null, null);
    if (number < 0) return this.#refused(number);
    if (abi.platform !== "linux") this.#setFlags(number);
    return number;
  }

  /** BSD's accept(2) takes no flags, and hands the listener's O_NONBLOCK on. */
  #setFlags(number: number): void {
    const { abi: { constants }, libc } = this.#runtime;
    setCloseOnExec(this.#runtime, number);
    const flags = libc.fcntl(number, constants.F_GETFL, 0) & ~constants.O_NONBLOCK;
    libc.fcntl(number, constants.F_SETFL, this.#isBlocking ? flags : flags | constants.O_NONBLOCK);
  }

  /** The caller waits for the event loop, whatever it was. */
  #refused(result: number): null {
    const code = errnoName(this.#runtime.abi.platform, -result);
    if (["EAGAIN", "EINTR", ...passing].includes(code)) return null;
    throw new SystemError(code, result, "accept4");
  }
}

/**
 * Listens.
 *
 * @throws As `resolveAddress` and `bindListener`.
 */
export async function openAcceptor(
  runtime: Runtime,
  at: EndpointAddress,
  options: AcceptorOptions = {},
): Promise<Acceptor> {
  const wanted = await resolveAddress(runtime, at);
  const socket = bindListener(runtime, wanted, at);
  return new Acceptor(runtime, socket, localAddress(runtime, socket.number) ?? wanted, options);
}
