/**
 * Opening channels for descriptors: listening, connecting, binding, wrapping a
 * socket that is there, and pairs.
 *
 * @module
 */

import { errnoName, errnoOf } from "../c/errno.ts";
import { checked, isSystemError, SystemError, TakeoverError } from "../errors.ts";
import type { Runtime } from "../runtime.ts";
import { defaultBacklog } from "../sockets/address.ts";
import { FdChannel } from "./fd_channel.ts";
import type { Descriptor } from "../sockets/descriptors.ts";
import { OwnedDescriptor, owning } from "../sockets/descriptors.ts";
import { passCredentials, passPidfd, passSecurity } from "../sockets/identity.ts";
import { unlinkPath } from "../sockets/listener.ts";
import { pause, stopWaiting, type WaitOptions, waitReadable } from "./readiness.ts";
import { identify, integerOption, openPair, setCloseOnExec, setNonBlocking, type SocketType } from "../sockets/socket.ts";
import { Pace } from "./turns.ts";
import { bindUnix, connectUnix, inodeAt, isNamed, type PathOptions, unlinkIfSame } from "./unix_path.ts";

/** What a channel carries, and what the kernel adds to each message that it receives. */
export interface FdChannelOptions {
  /** `stream` when left out. */
  readonly type?: SocketType;
  /** Adds the sender's pid, user and group (`SO_PASSCRED`, unix(7)). */
  readonly passCredentials?: boolean;
  /** Adds a pidfd of the sender (`SO_PASSPIDFD`, Linux 6.5). */
  readonly passPidfd?: boolean;
  /** Adds the sender's label of the security module (`SO_PASSSEC`). */
  readonly passSecurity?: boolean;
}

/** How to listen. */
export interface FdListenerOptions extends FdChannelOptions, PathOptions {
  /** A stream or packets; `stream` when left out. */
  readonly type?: "stream" | "seqpacket";
  /** The length of the accept queue (listen(2)); 4096, cut by net.core.somaxconn. */
  readonly backlog?: number;
}

const linuxSocketFlags = 0o2000000 | 0o4000;

/** How long to wait when no descriptor is free for a connection that could be accepted. */
const fullTablePauseMs = 50;

/** A listening Unix socket whose connections carry descriptors. */
export class FdListener implements Disposable, AsyncIterable<FdChannel> {
  readonly #runtime: Runtime;
  readonly #socket: OwnedDescriptor;
  readonly #path: string;
  readonly #options: FdListenerOptions;
  /** The path's, by which it is known again. */
  readonly #inode: number | null;
  readonly #pace = new Pace();

  /**
   * Made by `listenChannel` in mod.ts.
   *
   * @param runtime The runtime's libc.
   * @param socket A non-blocking Unix listener, owned by this object from here on.
   * @param path Removed on close; empty when there is none.
   * @param options For the channels that are accepted.
   */
  constructor(runtime: Runtime, socket: OwnedDescriptor, path: string, options: FdListenerOptions) {
    this.#runtime = runtime;
    this.#socket = socket;
    this.#path = path;
    this.#options = options;
    this.#inode = inodeAt(runtime, path);
  }

  /** The listening descriptor, which stays this object's; -1 once closed. */
  get descriptor(): number {
    return this.#socket.number;
  }

  /**
   * The next connection.
   *
   * @throws {TakeoverError} `ERR_TAKEOVER_TIMEOUT`, `ERR_TAKEOVER_CLOSED`.
   * @throws {SystemError} `EMFILE` when this process has no descriptor left.
   */
  async accept(options: WaitOptions = {}): Promise<FdChannel> {
    const until = options.timeoutMs === undefined ? Infinity : Date.now() + options.timeoutMs;
    for (;;) {
      await this.#pace.keep();
      options.signal?.throwIfAborted();
      const channel = this.#acceptOnce();
      if (channel) return channel;
      const timeoutMs = until === Infinity ? undefined : Math.max(0, until - Date.now());
      await waitReadable(this.#runtime, this.#opened(), { ...options, timeoutMs });
    }
  }

  /**
   * Every connection, until this listener is closed. While the process has no
   * descriptor left, connections wait in the accept queue.
   */
  async *[Symbol.asyncIterator](): AsyncGenerator<FdChannel, void, undefined> {
    while (this.#socket.number >= 0) {
      try {
        yield await this.accept();
      } catch (error) {
        if (this.#socket.number < 0) return;
        if (!isSystemError(error, "EMFILE", "ENFILE", "ENOBUFS", "ENOMEM")) throw error;
        await pause(fullTablePauseMs);
      }
    }
  }

  /**
   * Stops listening and removes the path, unless somebody else has bound it
   * meanwhile. Channels that were accepted stay.
   */
  close(): void {
    const { number } = this.#socket;
    if (number < 0) return;
    stopWaiting(this.#runtime, number);
    owning(this.#socket, () => unlinkIfSame(this.#runtime, this.#path, this.#inode));
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

  #acceptOnce(): FdChannel | null {
    const { abi, libc } = this.#runtime;
    const number = abi.platform === "linux"
      ? libc.accept4(this.#opened(), null, null, linuxSocketFlags)
      : libc.accept(this.#opened(), null, null);
    if (number < 0) {
      const code = errnoName(abi.platform, -number);
      if (["EAGAIN", "EINTR", "ECONNABORTED"].includes(code)) return null;
      throw new SystemError(code, number, "accept4");
    }
    return channelOf(this.#runtime, new OwnedDescriptor(this.#runtime, number), this.#options);
  }
}

/**
 * Listens on a Unix path, or on an abstract name, which begins with a NUL.
 *
 * @throws As `bindUnix` in unix_path.ts.
 */
export function listenChannel(runtime: Runtime, path: string, options: FdListenerOptions = {}): FdListener {
  const { abi, libc } = runtime;
  return owning(bindUnix(runtime, path, options.type ?? "stream", options), (socket) => {
    const result = libc.listen(socket.number, options.backlog ?? defaultBacklog);
    if (result < 0 && isNamed(path)) unlinkPath(runtime, path);
    checked(abi, "listen", result);
    return new FdListener(runtime, new OwnedDescriptor(runtime, socket.take()), path, options);
  });
}

/** Connects to a Unix socket of the same type. */
export async function connectChannel(
  runtime: Runtime,
  path: string,
  options: FdChannelOptions & WaitOptions = {},
): Promise<FdChannel> {
  return channelOf(runtime, await connectUnix(runtime, path, options.type ?? "stream", options), options);
}

/** Binds a datagram socket to a path. The path stays when the channel is closed. */
export function bindChannel(
  runtime: Runtime,
  path: string,
  options: Omit<FdChannelOptions, "type"> & PathOptions = {},
): FdChannel {
  return channelOf(runtime, bindUnix(runtime, path, "dgram", options), { ...options, type: "dgram" });
}

/** Two channels that are connected to each other (socketpair(2)). */
export function channelPair(runtime: Runtime, options: FdChannelOptions = {}): [FdChannel, FdChannel] {
  const [left, right] = openPair(runtime, options.type ?? "stream");
  return owning(left, () => owning(right, () => [channelOf(runtime, left, options), channelOf(runtime, right, options)]));
}

/**
 * Makes a channel of a Unix socket that is there: inherited, received, or made
 * by other code. It becomes non-blocking and close-on-exec.
 *
 * @param descriptor The channel's from here on, unless this throws.
 * @throws {TakeoverError} `ERR_TAKEOVER_RANGE`, `ERR_TAKEOVER_CLOSED`,
 *   `ERR_TAKEOVER_NOT_SOCKET`, `ERR_TAKEOVER_DESCRIPTOR` for a socket that is
 *   not of the Unix family or listens.
 */
export function wrapChannel(runtime: Runtime, descriptor: Descriptor, options: Omit<FdChannelOptions, "type"> = {}): FdChannel {
  const number = openNumber(runtime, descriptor);
  const type = unixTypeOf(runtime, number);
  setNonBlocking(runtime, number);
  setCloseOnExec(runtime, number);
  setPassing(runtime, number, options);
  const socket = typeof descriptor === "number" ? descriptor : descriptor.take();
  return new FdChannel(runtime, new OwnedDescriptor(runtime, socket), type);
}

/** The channel takes the socket; when an option cannot be set, it is closed. */
function channelOf(runtime: Runtime, socket: OwnedDescriptor, options: FdChannelOptions): FdChannel {
  return owning(socket, ({ number }) => {
    setPassing(runtime, number, options);
    return new FdChannel(runtime, new OwnedDescriptor(runtime, socket.take()), options.type ?? "stream");
  });
}

function setPassing(runtime: Runtime, number: number, options: FdChannelOptions): void {
  if (options.passCredentials) passCredentials(runtime, number, true);
  if (options.passPidfd) passPidfd(runtime, number, true);
  if (options.passSecurity) passSecurity(runtime, number, true);
}

/** A descriptor's number, when it is one and open. */
function openNumber({ abi, libc }: Runtime, descriptor: Descriptor): number {
  const number = typeof descriptor === "number" ? descriptor : descriptor.number;
  if (typeof descriptor !== "number" && number < 0) {
    throw new TakeoverError("ERR_TAKEOVER_CLOSED", "Cannot make a channel of a descriptor: it was taken or closed");
  }
  if (!(Number.isInteger(number) && number >= 0 && number <= 0x7fffffff)) {
    throw new TakeoverError(
      "ERR_TAKEOVER_RANGE",
      `Cannot make a channel of ${number}: expected a descriptor, an integer from 0 to 2147483647`,
    );
  }
  if (libc.fcntl(number, abi.constants.F_GETFD, 0) >= 0) return number;
  throw new TakeoverError("ERR_TAKEOVER_CLOSED", `Cannot make a channel of ${number}: ${number} is not open`);
}

function unixTypeOf(runtime: Runtime, number: number): SocketType {
  const { abi, abi: { constants } } = runtime;
  if (integerOption(runtime, number, constants.SO_TYPE) === -errnoOf(abi.platform, "ENOTSOCK")) {
    throw new TakeoverError(
      "ERR_TAKEOVER_NOT_SOCKET",
      `Cannot make a channel of ${number}: expected a Unix socket, it is no socket`,
    );
  }
  const identity = identify(runtime, number);
  const kind = identity?.family === "unix" && !identity.listening ? integerOption(runtime, number, constants.SO_TYPE) : -1;
  if (kind === constants.SOCK_STREAM) return "stream";
  if (kind === constants.SOCK_DGRAM) return "dgram";
  if (kind === constants.SOCK_SEQPACKET) return "seqpacket";
  throw new TakeoverError("ERR_TAKEOVER_DESCRIPTOR", `Cannot make a channel of ${number}: expected a Unix socket that does not listen`);
}
