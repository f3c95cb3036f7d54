/**
 * sd_notify(3): telling the service manager how this process is doing, and
 * giving it descriptors to keep. A message is one datagram to the Unix socket
 * that `$NOTIFY_SOCKET` names, lines of `KEY=VALUE`, with descriptors beside
 * them (`SCM_RIGHTS`).
 *
 * ```text
 * READY=1                                   started, or reloaded
 * RELOADING=1  MONOTONIC_USEC=…             reloading, until READY=1
 * STOPPING=1                                on the way to its end; nothing takes that back
 * STATUS=…                                  one line for people
 * MAINPID=…                                 who the main process is from now on
 * WATCHDOG=1                                a sign of life
 * FDSTORE=1  FDNAME=…  FDPOLL=0             keep these descriptors, for the next start
 * FDSTOREREMOVE=1  FDNAME=…                 drop them
 * BARRIER=1                                 close this descriptor when all before is done
 * ```
 *
 * @module
 */

import { allocate, type Bytes, viewOf } from "../c/bytes.ts";
import { encodeRights } from "../c/cmsg.ts";
import { errnoName } from "../c/errno.ts";
import type { UnixAddress } from "../c/sockaddr.ts";
import { checked, shown, SystemError, TakeoverError } from "../errors.ts";
import type { Runtime } from "../runtime.ts";
import { OwnedDescriptor, owning } from "../sockets/descriptors.ts";
import { type Outgoing, sendMessage } from "../channels/message.ts";
import { pause, type WaitOptions, waitReadable } from "../channels/readiness.ts";
import { openPair, openSocket } from "../sockets/socket.ts";

/** What can be set about a {@linkcode Notifier}. */
export interface NotifierOptions {
  /** How long a service manager that does not read is waited for, in milliseconds; 5,000 when left out. */
  readonly limitMs?: number;
}

/** How a service manager keeps descriptors. */
export interface StoreOptions {
  /** Whether it drops one that hangs up (EPOLLHUP, EPOLLERR); true when left out. */
  readonly poll?: boolean;
}

/** systemd ignores longer messages (NOTIFY_BUFFER_MAX). */
const messageSize = 4_096;

/** The longest name of a stored descriptor (FDNAME_MAX). */
const nameSize = 255;

const defaultLimitMs = 5_000;
const firstPauseMs = 1;
const longestPauseMs = 50;

/** The errnos after which the same datagram may get through a moment later. */
const passing = ["EAGAIN", "ENOBUFS", "ENOMEM", "ETOOMANYREFS", "EINTR"];

/** Linux's CLOCK_MONOTONIC (time.h): a clock that nobody sets. */
const monotonicClock = 1;

/**
 * Tells the service manager that started this process, if there is one, how it
 * is doing. Messages go out in the order in which they were given.
 *
 * Every method resolves with false and does nothing when `$NOTIFY_SOCKET` is
 * not set, and with true when the message is on its way. The service manager
 * may still ignore it, for instance because `NotifyAccess=` says so. All of
 * them throw `ERR_TAKEOVER_TIMEOUT` when it does not read for `limitMs`, and
 * SystemError when it is not there.
 *
 * @example
 * ```ts ignore
 * const notifier = await openNotifier();
 * await notifier.status("warming up");
 * await notifier.ready();
 * const stop = notifier.keepWatchdog();
 * ```
 */
export class Notifier {
  readonly #runtime: Runtime;
  readonly #address: UnixAddress | null;
  readonly #limitMs: number;
  #last: Promise<void> | null = null;

  /**
   * Reads `$NOTIFY_SOCKET`, and leaves it for successors.
   *
   * @param runtime The runtime's libc and environment.
   * @param options `limitMs`.
   * @throws {TakeoverError} `ERR_TAKEOVER_PATH` when `$NOTIFY_SOCKET` is neither
   *   an absolute path nor `@` with an abstract name.
   */
  constructor(runtime: Runtime, { limitMs = defaultLimitMs }: NotifierOptions = {}) {
    this.#runtime = runtime;
    this.#address = addressFrom(runtime.env("NOTIFY_SOCKET"));
    this.#limitMs = limitMs;
  }

  /** Whether there is a service manager to tell. */
  get active(): boolean {
    return this.#address !== null;
  }

  /** Says that this process serves: it has started, or a reload has ended. */
  ready(): Promise<boolean> {
    return this.send(["READY=1"]);
  }

  /** Says that this process reloads, until {@linkcode ready}; what `Type=notify-reload` waits for. */
  reloading(): Promise<boolean> {
    return this.send(["RELOADING=1", `MONOTONIC_USEC=${monotonicUsec(this.#runtime)}`]);
  }

  /** Says that this process ends. systemd hears of nothing else after it. */
  stopping(): Promise<boolean> {
    return this.send(["STOPPING=1"]);
  }

  /** Shows one line in `systemctl status`; line breaks become spaces. */
  status(text: string): Promise<boolean> {
    return this.send([`STATUS=${text.replace(/[\r\n\0]+/g, " ")}`]);
  }

  /**
   * Names the main process, which the service manager watches from then on. It
   * has to be one of the service's own, unless root says so.
   */
  mainPid(pid: number): Promise<boolean> {
    return this.send([`MAINPID=${pid}`]);
  }

  /** Gives a sign of life. */
  watchdog(): Promise<boolean> {
    return this.send(["WATCHDOG=1"]);
  }

  /**
   * Gives a sign of life in half of the time that the service manager waits for
   * one (`$WATCHDOG_USEC`), when it waits for this process's (`$WATCHDOG_PID`).
   * One that cannot be given is missed by the service manager only.
   *
   * @param options `successor`: also when it waits for another process, from
   *   which this one inherited the variables and then took over.
   * @returns A function that stops it. Until then the process stays alive.
   * @throws {TakeoverError} `ERR_TAKEOVER_LIMIT` when the time is no number.
   */
  keepWatchdog({ successor = false }: { readonly successor?: boolean } = {}): () => void {
    const everyMs = watchdogMs(this.#runtime, successor) / 2;
    let timer: ReturnType<typeof setTimeout> | undefined;
    const beat = (): void => {
      timer = setTimeout(beat, everyMs);
      this.watchdog().catch(() => {});
    };
    if (this.active && everyMs > 0) beat();
    return () => clearTimeout(timer);
  }

  /**
   * Gives copies of descriptors to the service manager (`FileDescriptorStoreMax=`),
   * which passes them to the next process that it starts for this service:
   * `inheritedDescriptors` finds them there.
   *
   * @param name At most 255 printable ASCII characters without a colon; several
   *   descriptors may have one name.
   * @param descriptors At most 253; they stay the caller's.
   * @throws {TakeoverError} `ERR_TAKEOVER_LIMIT` for another name,
   *   `ERR_TAKEOVER_TOO_MANY`.
   */
  async storeDescriptors(
    name: string,
    descriptors: readonly number[],
    { poll = true }: StoreOptions = {},
  ): Promise<boolean> {
    const lines = ["FDSTORE=1", `FDNAME=${checkedStoreName(name)}`];
    return await this.send(poll ? lines : [...lines, "FDPOLL=0"], descriptors);
  }

  /** Takes the descriptors of a name out of the service manager's store. */
  async removeDescriptors(name: string): Promise<boolean> {
    return await this.send(["FDSTOREREMOVE=1", `FDNAME=${checkedStoreName(name)}`]);
  }

  /**
   * Waits until the service manager has read and done everything that was sent
   * before: it closes the descriptor that it gets with this.
   *
   * @throws {TakeoverError} `ERR_TAKEOVER_TIMEOUT`.
   */
  async barrier(options: Pick<WaitOptions, "signal" | "timeoutMs"> = {}): Promise<boolean> {
    if (!this.active) return false;
    const [ours, theirs] = openPair(this.#runtime);
    return await owning(ours, async ({ number }) => {
      await owning(theirs, () => this.send(["BARRIER=1"], [theirs.number]));
      await endOf(this.#runtime, number, { ...options, timeoutMs: options.timeoutMs ?? this.#limitMs });
      return true;
    });
  }

  /** Resolves when everything that was given has gone out, or failed. */
  async idle(): Promise<void> {
    while (this.#last) await this.#last;
  }

  /**
   * Sends one message, at once unless others wait.
   *
   * @param lines `KEY=VALUE` each, 4,096 bytes together.
   * @param descriptors At most 253; they stay the caller's.
   * @throws {TakeoverError} `ERR_TAKEOVER_LIMIT`, `ERR_TAKEOVER_TOO_MANY`,
   *   `ERR_TAKEOVER_TIMEOUT`.
   * @throws {SystemError} For instance `ECONNREFUSED` when nobody is there, `EBADF`.
   */
  async send(lines: readonly string[], descriptors: readonly number[] = []): Promise<boolean> {
    const bytes = encoded(lines);
    checkCount(this.#runtime, descriptors);
    const address = this.#address;
    if (!address) return false;
    const message = { bytes, control: encodeRights(this.#runtime.abi, descriptors), to: address };
    if (this.#last || attempt(this.#runtime, message)) await this.#queue(message);
    return true;
  }

  #queue(message: Outgoing): Promise<void> {
    const before = this.#last ?? Promise.resolve();
    const sent = before.then(() => sendWithin(this.#runtime, message, this.#limitMs));
    const last = sent.catch(() => {}).then(() => {
      if (this.#last === last) this.#last = null;
    });
    this.#last = last;
    return sent;
  }
}

/** As fdname_is_valid of systemd (src/basic/fd-util.c), but never empty. */
export function checkedStoreName(name: string): string {
  if (/^[ -9;-~]+$/.test(name) && name.length <= nameSize) return name;
  throw new TakeoverError(
    "ERR_TAKEOVER_LIMIT",
    `Cannot use ${shown(name)} as a name in the service manager's descriptor store: ` +
      `expected 1 to ${nameSize} printable ASCII characters without a colon`,
  );
}

function addressFrom(variable: string | undefined): UnixAddress | null {
  if (!variable) return null;
  if (variable.startsWith("/")) return { family: "unix", path: variable };
  if (/^@./.test(variable)) return { family: "unix", path: `\0${variable.slice(1)}` };
  throw new TakeoverError(
    "ERR_TAKEOVER_PATH",
    `Cannot notify the service manager: expected NOTIFY_SOCKET to be an absolute path, or @ and an abstract name, ` +
      `got ${shown(variable)}; correct it or unset it`,
  );
}

function encoded(lines: readonly string[]): Uint8Array {
  const wrong = lines.find((line) => !/^[A-Z][A-Z0-9_]*=[^\n\0]*$/.test(line));
  const bytes = new TextEncoder().encode(lines.join("\n"));
  if (wrong === undefined && bytes.length > 0 && bytes.length <= messageSize) return bytes;
  throw new TakeoverError(
    "ERR_TAKEOVER_LIMIT",
    `Cannot notify the service manager: expected lines like READY=1, ${messageSize} bytes together at most, ` +
      `got ${wrong === undefined ? `${bytes.length} bytes` : shown(wrong)}`,
  );
}

function checkCount({ abi }: Runtime, { length }: readonly number[]): void {
  if (length <= abi.descriptorsPerMessage) return;
  throw new TakeoverError(
    "ERR_TAKEOVER_TOO_MANY",
    `Cannot send ${length} descriptors in one message: expected at most ${abi.descriptorsPerMessage}; send several`,
  );
}

/** Sends again and again, as long as what is in the way may pass. */
async function sendWithin(runtime: Runtime, message: Outgoing, limitMs: number): Promise<void> {
  const until = Date.now() + limitMs;
  for (let pauseMs = firstPauseMs;; pauseMs = Math.min(pauseMs * 2, longestPauseMs)) {
    const cause = attempt(runtime, message);
    if (!cause) return;
    if (Date.now() >= until) {
      throw new TakeoverError(
        "ERR_TAKEOVER_TIMEOUT",
        `Cannot notify the service manager within ${limitMs} ms: it does not read (${cause.code})`,
        { cause },
      );
    }
    await pause(pauseMs);
  }
}

/**
 * Sends a message through a socket of its own, as libsystemd does: nothing
 * stays open in between.
 *
 * @returns What is in the way and may pass, or null when it is sent.
 * @throws {SystemError} What will not pass.
 */
function attempt(runtime: Runtime, message: Outgoing): SystemError | null {
  const socket = new OwnedDescriptor(runtime, openSocket(runtime, "unix", "dgram"));
  const result = owning(socket, ({ number }) => sendMessage(runtime, number, message));
  if (result >= 0) return null;
  const code = errnoName(runtime.abi.platform, -result);
  const error = new SystemError(code, result, "sendmsg", "$NOTIFY_SOCKET");
  if (passing.includes(code)) return error;
  throw error;
}

/** Reads until the end of the stream; a wait may have been a false alarm. */
async function endOf(runtime: Runtime, descriptor: number, { signal, timeoutMs }: WaitOptions): Promise<void> {
  const until = Date.now() + timeoutMs!;
  const byte = allocate(1);
  for (;;) {
    await waitReadable(runtime, descriptor, { signal, timeoutMs: Math.max(1, until - Date.now()) });
    if (runtime.libc.read(descriptor, byte, 1) === 0) return;
  }
}

/** Microseconds of CLOCK_MONOTONIC (`struct timespec`: seconds 8 | nanoseconds 8). */
function monotonicUsec({ abi, libc }: Runtime): number {
  const time: Bytes = allocate(16);
  checked(abi, "clock_gettime", libc.clock_gettime(monotonicClock, time));
  const view = viewOf(time);
  return Number(view.getBigInt64(0, true)) * 1_000_000 + Math.floor(Number(view.getBigInt64(8, true)) / 1_000);
}

/** 0 when nobody waits for a sign of life of this process. */
function watchdogMs(runtime: Runtime, isSuccessor: boolean): number {
  const [usec, pid] = [runtime.env("WATCHDOG_USEC"), runtime.env("WATCHDOG_PID")];
  const isMeant = isSuccessor || pid === undefined || Number(pid) === runtime.libc.getpid();
  if (usec === undefined || !isMeant) return 0;
  if (/^\d{1,15}$/.test(usec) && Number(usec) > 0) return Number(usec) / 1_000;
  throw new TakeoverError(
    "ERR_TAKEOVER_LIMIT",
    `Cannot keep the watchdog: expected WATCHDOG_USEC to be microseconds, got ${shown(usec)}`,
  );
}
