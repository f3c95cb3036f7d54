/**
 * What is at the path of a control socket, and who answers there: found out
 * without a connection, which an incumbent would hear of.
 *
 * ```text
 * connect(2) of a datagram socket     EPROTOTYPE: a stream or packet socket is there; it hears nothing
 *                                     ECONNREFUSED: nobody has the socket any more
 * /proc/net/unix                      the inode of the listening socket that was bound to the path
 * /proc/PID/fd                        who has a descriptor of that inode
 * ```
 *
 * A socket knows the path as it was bound: one that was renamed since, or whose
 * process is in another network namespace, is there and cannot be assigned.
 *
 * @module
 */

import { errnoName } from "../c/errno.ts";
import { Pace } from "../channels/turns.ts";
import { checked, isSystemError, SystemError } from "../errors.ts";
import type { Runtime } from "../runtime.ts";
import { cString, linkAt, numbersIn, OwnedDescriptor, owning, readFile } from "../sockets/descriptors.ts";
import { type FileStatus, statusOf } from "../sockets/listener.ts";
import { connectSocket, openSocket } from "../sockets/socket.ts";
import { statusAt } from "./status.ts";

/** Where a control socket is to be. */
export interface FolderFacts {
  readonly folder: string;
  /** Null when it does not exist. */
  readonly status: FileStatus | null;
  /** Why it cannot be reached, or no file made there: an errno's name, `unknown`, or null when one can. */
  readonly refusal: string | null;
}

/** A mounted file system (proc_pid_mountinfo(5)). */
export interface Mount {
  /** For instance `ext4`, `tmpfs`, `overlay`, `nfs4`. */
  readonly type: string;
  readonly isReadOnly: boolean;
}

/** A process that has the socket at the path. */
export interface Holder {
  readonly pid: number;
  /** Its effective user; -1 when it has just ended. */
  readonly uid: number;
  /** The name of the file that it runs; empty when this user may not know. */
  readonly program: string;
  /** Whether it is stopped, and so answers nobody (SIGSTOP). */
  readonly isStopped: boolean;
}

/** What is at a path. */
export type AtPath =
  | { readonly state: "nothing" | "stale" | "datagram"; readonly lockUser: number | null }
  | { readonly state: "other"; readonly kind: string }
  | { readonly state: "denied"; readonly uid: number }
  | {
    readonly state: "live";
    /** What /proc/net/unix says of it; null when it has no such socket. */
    readonly socket: "listening" | "packet" | "bound" | null;
    readonly holders: readonly Holder[];
    /** Whether every process could be looked into. */
    readonly isComplete: boolean;
  };

/** A line of /proc/net/unix: what a socket was bound to (proc_net(5)). */
export interface UnixSocket {
  readonly isListening: boolean;
  readonly type: number;
  readonly inode: number;
  readonly path: string;
}

/** Linux's flags of open(2) (asm-generic/fcntl.h). */
const O_PATH = 0o10000000;
/** `__O_TMPFILE`, which O_TMPFILE is together with O_DIRECTORY. */
const temporary = 0o20000000;

/** `__SO_ACCEPTCON` in /proc/net/unix (linux/net.h). */
const listeningFlag = 0x10000;

/** What a file system without O_TMPFILE, or a kernel older than 3.11, says. */
const cannotTell = ["EOPNOTSUPP", "EISDIR", "EINVAL", "ENOENT", "ENOSYS"];

/** What is at a path by what connecting says; a datagram socket that is connected elsewhere refuses (EPERM). */
const withoutListener: Readonly<Record<string, "nothing" | "stale" | "datagram">> = {
  connected: "datagram",
  EPERM: "datagram",
  ENOENT: "nothing",
  ECONNREFUSED: "stale",
};

/** The folder that a path is in. */
export function folderOf(path: string): string {
  const at = path.lastIndexOf("/");
  return at < 0 ? "." : at === 0 ? "/" : path.slice(0, at);
}

/**
 * A folder, and whether this user can make a file in it. It is tried with a
 * file without a name, of which nothing is left (open(2), O_TMPFILE).
 */
export function folderFacts(runtime: Runtime, folder: string): FolderFacts {
  const { abi, libc } = runtime;
  let status: FileStatus | null;
  try {
    status = statusOf(runtime, folder, true);
  } catch (error) {
    if (!(error instanceof SystemError)) throw error;
    return { folder, status: null, refusal: error.code };
  }
  if (status?.kind !== "folder") return { folder, status, refusal: null };
  const { O_RDWR, O_DIRECTORY, O_CLOEXEC } = abi.constants;
  const file = libc.open(cString(folder), temporary | O_DIRECTORY | O_RDWR | O_CLOEXEC, 0o600);
  if (file >= 0) libc.close(file);
  const errno = file < 0 ? errnoName(abi.platform, -file) : null;
  return { folder, status, refusal: errno !== null && cannotTell.includes(errno) ? "unknown" : errno };
}

/**
 * The file system that a folder is in.
 *
 * @throws {SystemError} When the folder cannot be opened, or /proc cannot be read.
 */
export function mountOf(runtime: Runtime, folder: string): Mount | null {
  const { abi, libc } = runtime;
  const opened = libc.open(cString(folder), O_PATH | abi.constants.O_DIRECTORY | abi.constants.O_CLOEXEC, 0);
  return owning(new OwnedDescriptor(runtime, checked(abi, "open", opened, folder)), ({ number }) => {
    const id = fieldIn(readFile(runtime, `/proc/self/fdinfo/${number}`), "mnt_id");
    return id === null ? null : parseMount(readFile(runtime, "/proc/self/mountinfo"), id);
  });
}

/**
 * The mount of an id, or null:
 * id | parent | device | root | mount point | options | tags … | - | type | source | options.
 */
export function parseMount(mountinfo: string, id: string): Mount | null {
  const line = mountinfo.split("\n").find((each) => each.startsWith(`${id} `));
  const [before, after] = line?.split(" - ") ?? [];
  if (before === undefined || after === undefined) return null;
  const [type, , options] = after.split(" ");
  const isReadOnly = [before.split(" ")[5], options].some((list) => list?.split(",").includes("ro"));
  return { type: type!, isReadOnly };
}

/**
 * What is at a path, and who has it.
 *
 * @param limitMs How long processes are looked at; what is found by then counts.
 * @throws {SystemError} For instance `EACCES`, when the path cannot be reached.
 */
export async function whoIsAt(runtime: Runtime, path: string, limitMs: number): Promise<AtPath> {
  const status = statusOf(runtime, path);
  const lockUser = statusOf(runtime, `${path}.lock`)?.uid ?? null;
  if (status === null) return { state: "nothing", lockUser };
  if (status.kind !== "socket") {
    return {
      state: "other",
      kind: status.symbolicLink ? "a symbolic link" : status.kind === "folder" ? "a folder" : "a file",
    };
  }
  const answer = answerAt(runtime, path);
  if (answer === "EACCES") return { state: "denied", uid: status.uid };
  if (answer !== "EPROTOTYPE") return { state: withoutListener[answer]!, lockUser };
  const sockets = socketsAt(runtime, path, status.inode);
  const { holders, isComplete } = await holdersOf(runtime, sockets, Date.now() + limitMs);
  return { state: "live", socket: kindOf(sockets), holders, isComplete };
}

/** The sockets in /proc/net/unix that were bound to a path in a file system. */
export function parseUnixSockets(table: string): UnixSocket[] {
  const lines = table.matchAll(/^\S+ \S+ \S+ (\S+) (\S+) \S+ +(\d+) ([^@\n].*)$/gm);
  return Array.from(lines, ([, flags, type, inode, path]) => ({
    isListening: (parseInt(flags!, 16) & listeningFlag) !== 0,
    type: parseInt(type!, 16),
    inode: Number(inode),
    path: path!,
  }));
}

/** The value of a line `name: value` of a file of /proc, or null. */
export function fieldIn(text: string, name: string): string | null {
  return new RegExp(`^${name}:[\\t ]*(.*)$`, "m").exec(text)?.[1] ?? null;
}

/** What connecting a datagram socket says: an errno's name, or `connected`. */
function answerAt(runtime: Runtime, path: string): string {
  return owning(new OwnedDescriptor(runtime, openSocket(runtime, "unix", "dgram")), ({ number }) => {
    try {
      connectSocket(runtime, number, { family: "unix", path });
      return "connected";
    } catch (error) {
      if (isSystemError(error, "EPROTOTYPE", "EACCES", ...Object.keys(withoutListener))) return error.code;
      throw error;
    }
  });
}

/** Those that were bound to the path, by whichever name of its folder; connections, which have it too, left out. */
function socketsAt(runtime: Runtime, path: string, inode: number): UnixSocket[] {
  const name = path.slice(path.lastIndexOf("/") + 1);
  const all = parseUnixSockets(readFile(runtime, "/proc/net/unix"));
  const bound = all.filter((socket) =>
    socket.path === path || hasName(socket, name) && isSame(runtime, socket.path, inode)
  );
  const listening = bound.filter(({ isListening }) => isListening);
  return listening.length > 0 ? listening : bound;
}

function hasName({ path }: UnixSocket, name: string): boolean {
  return path.startsWith("/") && path.endsWith(`/${name}`);
}

function isSame(runtime: Runtime, path: string, inode: number): boolean {
  try {
    return statusOf(runtime, path)?.inode === inode;
  } catch {
    return false;
  }
}

function kindOf([socket]: readonly UnixSocket[]): "listening" | "packet" | "bound" | null {
  if (!socket) return null;
  return socket.type !== 1 ? "packet" : socket.isListening ? "listening" : "bound";
}

/** The processes that have one of these sockets. */
async function holdersOf(
  runtime: Runtime,
  sockets: readonly UnixSocket[],
  until: number,
): Promise<{ holders: Holder[]; isComplete: boolean }> {
  const links = new Set(sockets.map(({ inode }) => `socket:[${inode}]`));
  const holders: Holder[] = [];
  let isComplete = true;
  const pace = new Pace();
  for (const pid of links.size === 0 ? [] : numbersIn(runtime, "/proc")) {
    await pace.keep();
    const found = holds(runtime, pid, links, until);
    if (found === true) holders.push(holderAt(runtime, pid));
    else if (found === null) isComplete = false;
  }
  return { holders, isComplete };
}

/** Whether a process has one of these sockets; null when that could not be seen. */
function holds(runtime: Runtime, pid: number, links: ReadonlySet<string>, until: number): boolean | null {
  try {
    for (const number of numbersIn(runtime, `/proc/${pid}/fd`)) {
      if (Date.now() > until) return null;
      if (links.has(linkAt(runtime, `/proc/${pid}/fd/${number}`))) return true;
    }
    return false;
  } catch (error) {
    return isSystemError(error, "ENOENT", "ESRCH") ? false : null;
  }
}

function holderAt(runtime: Runtime, pid: number): Holder {
  const program = linkAt(runtime, `/proc/${pid}/exe`, 4_096).replace(/ \(deleted\)$/, "").replace(/^.*\//, "");
  try {
    const uid = Number(fieldIn(readFile(runtime, `/proc/${pid}/status`), "Uid")!.split(/\s+/)[1]);
    return { pid, uid, program, isStopped: "Tt".includes(statusAt(runtime, `/proc/${pid}/stat`).state) };
  } catch {
    return { pid, uid: -1, program, isStopped: false };
  }
}
