/**
 * Descriptors that a supervisor opened and passed to this process at its start
 * (socket activation). Each kind of supervisor tells of them in variables of
 * its own:
 *
 * ```text
 * systemd           LISTEN_FDS=2  LISTEN_PID=4711  LISTEN_PIDFDID=550806  LISTEN_FDNAMES=web:admin    3 and 4
 * Server::Starter   SERVER_STARTER_PORT=127.0.0.1:80=3;[::1]:80=4;/run/web.sock=5
 * einhorn           EINHORN_FD_COUNT=2  EINHORN_FD_0=3  EINHORN_FD_1=4  EINHORN_MASTER_PID=4710
 * nginx             NGINX=6;7;
 * ```
 *
 * @module
 */

import { shown, TakeoverError } from "../errors.ts";
import type { Runtime } from "../runtime.ts";
import { disposeAll, OwnedDescriptor, owning, readFile } from "../sockets/descriptors.ts";
import { statusOfDescriptor } from "../sockets/listener.ts";
import { identify, setCloseOnExec, setNonBlocking, type SocketIdentity } from "../sockets/socket.ts";

/** Whose variables told of a descriptor. */
export type InheritedSource = "systemd" | "Server::Starter" | "einhorn" | "nginx";

/** A descriptor that was passed to this process at its start; whoever holds the object owns it. */
export interface InheritedDescriptor {
  /** What the supervisor calls it (systemd: `FileDescriptorName=`); empty when it does not say. */
  readonly name: string;
  /** Who passed it. */
  readonly source: InheritedSource;
  /** Close-on-exec, and a socket non-blocking. */
  readonly descriptor: OwnedDescriptor;
  /**
   * What socket it is. Null for anything but an IP or Unix socket, which only
   * systemd passes: FIFOs, netlink sockets, what lay in its descriptor store.
   */
  readonly identity: SocketIdentity | null;
  /** Always: its place, the path above all, is left to who passed it. */
  readonly isSupervised: true;
}

/** systemd's SD_LISTEN_FDS_START: below are the standard streams. */
const firstNumber = 3;
const lastNumber = 2 ** 31 - 1;

/** The most descriptors that are taken. */
const mostCount = 4_096;

/** Linux's number of pidfd_open(2), the same on every architecture. */
const SYS_pidfd_open = 434;

/** A descriptor as a variable names it. */
interface Named {
  readonly source: InheritedSource;
  readonly variable: string;
  readonly number: number;
  readonly name: string;
}

/** Runtimes that have given what there was: it is there once, whatever the variables say later. */
const asked = new WeakSet<Runtime>();

/**
 * Takes the descriptors that were passed to this process at its start, and
 * unsets the variables, so that children do not take them for theirs.
 *
 * @returns In the order of the sources above and of their lists; nothing when
 *   it was asked before, or when the variables are meant for another process
 *   (`LISTEN_PID`, `LISTEN_PIDFDID`, `EINHORN_MASTER_PID`).
 * @throws {TakeoverError} `ERR_TAKEOVER_DESCRIPTOR` when a variable is
 *   malformed, `ERR_TAKEOVER_RANGE` when a number in it is out of range,
 *   `ERR_TAKEOVER_LIMIT` for more than 4,096, `ERR_TAKEOVER_CLOSED` and
 *   `ERR_TAKEOVER_NOT_SOCKET` for what is not there. Those before it have been closed.
 * @see sd_listen_fds(3), Server::Starter(3pm), einhorn's README, nginx's ngx_add_inherited_sockets
 */
export function inheritedDescriptors(runtime: Runtime): InheritedDescriptor[] {
  if (asked.has(runtime)) return [];
  asked.add(runtime);
  const environment = new Environment(runtime);
  try {
    const named = [
      ...fromSystemd(runtime, environment),
      ...fromServerStarter(environment),
      ...fromEinhorn(runtime, environment),
      ...fromNginx(environment),
    ];
    return takeAll(runtime, named);
  } finally {
    environment.unset();
  }
}

/** Variables, and which of them are to be unset. */
class Environment {
  readonly #runtime: Runtime;
  readonly #used = new Set<string>();

  constructor(runtime: Runtime) {
    this.#runtime = runtime;
  }

  /** Reads one without using it. */
  look(name: string): string | undefined {
    return this.#runtime.env(name);
  }

  /** Reads one that is unset afterwards. */
  use(name: string): string | undefined {
    const value = this.look(name);
    if (value !== undefined) this.#used.add(name);
    return value;
  }

  unset(): void {
    for (const name of this.#used) this.#runtime.unsetEnv(name);
  }
}

/** As sd_listen_fds(3) with `unset_environment`: the variables go, whoever they are for. */
function fromSystemd(runtime: Runtime, environment: Environment): Named[] {
  const [pid, pidfdId, count, names] = ["LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDS", "LISTEN_FDNAMES"]
    .map((name) => environment.use(name));
  if (count === undefined || !isThisProcess(runtime, pid, pidfdId)) return [];
  const numbers = Array.from({ length: countOf("LISTEN_FDS", count) }, (_, index) => firstNumber + index);
  const list = names?.split(":");
  if (list && numbers.length > 0 && list.length !== numbers.length) {
    throw malformed("LISTEN_FDNAMES", `${numbers.length} names with colons between them, as LISTEN_FDS says`, names!);
  }
  return numbers.map((number, index) => ({
    source: "systemd",
    variable: "LISTEN_FDS",
    number,
    name: list?.[index] ?? "",
  }));
}

/** A process id can be another process's by now; the id of a pidfd never is (systemd 258). */
function isThisProcess(runtime: Runtime, pid: string | undefined, pidfdId: string | undefined): boolean {
  if (pid !== undefined && integer("LISTEN_PID", pid, 1, lastNumber) !== runtime.libc.getpid()) return false;
  if (pidfdId === undefined) return pid !== undefined;
  const own = ownPidfdId(runtime);
  // Where it cannot be told, the process id has to do.
  return own === null ? pid !== undefined : integer("LISTEN_PIDFDID", pidfdId, 0, Number.MAX_SAFE_INTEGER) === own;
}

/** The inode number of this process's pidfd: on pidfs one for each process there ever was (Linux 6.9). */
function ownPidfdId(runtime: Runtime): number | null {
  const { libc } = runtime;
  const number = libc.syscall(SYS_pidfd_open, libc.getpid(), 0, 0, 0);
  if (number < 0) return null;
  return owning(new OwnedDescriptor(runtime, number), () => statusOfDescriptor(runtime, number)?.inode ?? null);
}

/** What is left of the last `=` is an address or a path, and may have one of its own. */
function fromServerStarter(environment: Environment): Named[] {
  const variable = "SERVER_STARTER_PORT";
  const value = environment.use(variable);
  if (!value) return [];
  return value.split(";").map((entry) => {
    const at = entry.lastIndexOf("=");
    if (at < 1) {
      throw malformed(variable, "host:port=descriptor or path=descriptor, with semicolons between them", value);
    }
    return { source: "Server::Starter", variable, number: descriptorOf(variable, entry.slice(at + 1)), name: "" };
  });
}

function fromEinhorn(runtime: Runtime, environment: Environment): Named[] {
  const variable = "EINHORN_FD_COUNT";
  const master = environment.look("EINHORN_MASTER_PID");
  if (environment.look(variable) === undefined || !isParent(runtime, master)) return [];
  environment.use("EINHORN_MASTER_PID");
  const count = countOf(variable, environment.use(variable)!);
  return Array.from({ length: count }, (_, index) => {
    const name = `EINHORN_FD_${index}`;
    const value = environment.use(name);
    if (value === undefined) throw malformed(variable, `a variable ${name} beside it`, String(count));
    return { source: "einhorn", variable: name, number: descriptorOf(name, value), name: "" };
  });
}

/** Where /proc does not tell, einhorn is believed. */
function isParent(runtime: Runtime, master: string | undefined): boolean {
  if (master === undefined || runtime.abi.platform !== "linux") return true;
  const parent = /^PPid:\s+(\d+)$/m.exec(readFile(runtime, "/proc/self/status"));
  return integer("EINHORN_MASTER_PID", master, 1, lastNumber) === Number(parent?.[1]);
}

/** A name as plain as this may be anybody's: only what looks like nginx's list is taken for it. */
function fromNginx(environment: Environment): Named[] {
  const variable = "NGINX";
  const value = environment.look(variable) ?? "";
  if (!/^[\d;:]*[;:][\d;:]*$/.test(value)) return [];
  environment.use(variable);
  if (!/^(\d+[;:])+$/.test(value)) throw malformed(variable, "descriptors, with a semicolon after each", value);
  return value.split(/[;:]/).slice(0, -1).map((number) => {
    return { source: "nginx", variable, number: descriptorOf(variable, number), name: "" };
  });
}

function takeAll(runtime: Runtime, named: readonly Named[]): InheritedDescriptor[] {
  if (named.length > mostCount) throw tooMany(named.length);
  const numbers = named.map(({ number }) => number);
  const twice = named.find(({ number }, index) => numbers.indexOf(number) < index);
  if (twice) throw malformed(twice.variable, "every descriptor once", String(twice.number));
  const taken: InheritedDescriptor[] = [];
  try {
    for (const each of named) taken.push(take(runtime, each));
    return taken;
  } catch (error) {
    disposeAll(taken.map(({ descriptor }) => descriptor));
    throw error;
  }
}

function take(runtime: Runtime, { source, variable, number, name }: Named): InheritedDescriptor {
  const { abi, libc } = runtime;
  if (libc.fcntl(number, abi.constants.F_GETFD, 0) < 0) {
    throw new TakeoverError(
      "ERR_TAKEOVER_CLOSED",
      cannot(variable, "an open descriptor", `${number}, which is closed`),
    );
  }
  const identity = identify(runtime, number);
  if (identity === null && source !== "systemd") {
    throw new TakeoverError(
      "ERR_TAKEOVER_NOT_SOCKET",
      cannot(variable, "an IP or Unix socket", `${number}, which is none`),
    );
  }
  setCloseOnExec(runtime, number);
  if (identity) setNonBlocking(runtime, number);
  return { name, source, descriptor: new OwnedDescriptor(runtime, number), identity, isSupervised: true };
}

function descriptorOf(variable: string, text: string): number {
  return integer(variable, text, firstNumber, lastNumber);
}

function countOf(variable: string, text: string): number {
  const count = integer(variable, text, 0, lastNumber);
  if (count > mostCount) throw tooMany(count);
  return count;
}

function integer(variable: string, text: string, least: number, most: number): number {
  const value = /^\d+$/.test(text) ? Number(text) : NaN;
  if (value >= least && value <= most) return value;
  throw new TakeoverError("ERR_TAKEOVER_RANGE", cannot(variable, `an integer from ${least} to ${most}`, shown(text)));
}

function tooMany(count: number): TakeoverError {
  return new TakeoverError("ERR_TAKEOVER_LIMIT", `Cannot inherit ${count} descriptors: expected at most ${mostCount}`);
}

function malformed(variable: string, expected: string, value: string): TakeoverError {
  return new TakeoverError("ERR_TAKEOVER_DESCRIPTOR", cannot(variable, expected, shown(value)));
}

function cannot(variable: string, expected: string, came: string): string {
  return `Cannot inherit what ${variable} names: expected ${expected}, got ${came}; unset it unless a supervisor set it`;
}
