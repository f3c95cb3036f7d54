/**
 * What the place of a control socket means for a takeover: pure functions, one
 * for each check of a doctor that is about the path.
 *
 * @module
 */

import type { Check, CheckStatus } from "./diagnosis.ts";
import type { AtPath, FolderFacts, Holder, Mount } from "./control_path.ts";
import { checkOf, unknown } from "./judgements.ts";

/** Who asks. */
export interface Self {
  readonly pid: number;
  readonly uid: number;
  /** Further users that may be at the other end. */
  readonly allowUsers: readonly number[];
}

/** The programs that are one of the three runtimes, by their file. */
const runtimes: Readonly<Record<string, string>> = {
  deno: "Deno",
  bun: "Bun",
  "bun.exe": "Bun",
  node: "Node",
  nodejs: "Node",
};

/** File systems in which a socket is as good as in any other of them. */
const localTypes = [
  "ext2", "ext3", "ext4", "xfs", "btrfs", "bcachefs", "f2fs", "jfs", "reiserfs", "zfs", "tmpfs", "ramfs",
];

/** Those of other machines: a socket in them is known on this one only. */
const sharedTypes = ["nfs", "nfs4", "cifs", "smb3", "9p", "virtiofs", "ceph", "afs", "gfs2", "ocfs2"];

/** Those in which no socket can be made. */
const socketlessTypes = [
  "vfat", "msdos", "exfat", "ntfs", "ntfs3", "iso9660", "udf", "squashfs", "erofs", "proc", "sysfs", "cgroup2", "devpts",
];

/**
 * The path's name: that it is a file's, and fits into a socket address.
 *
 * @param mostSize The most bytes (unix(7), `sun_path` less its NUL).
 * @returns Null when it can be used.
 */
export function judgeName(path: string, mostSize: number): Check | null {
  const size = new TextEncoder().encode(path).length;
  if (path === "" || path.includes("\0")) {
    const means = "Abstract names are open to every user, so takeOver refuses them.";
    return checkOf("folder", "bad", "no path of a file", means, "name a path in a folder of the service's own, under /run");
  }
  if (size <= mostSize) return null;
  const found = `the path has ${size} bytes, at most ${mostSize} fit`;
  return checkOf("folder", "bad", found, "No socket can be bound there.", "choose a shorter folder, for instance under /run");
}

/** The folder: that it is there, and who can make and replace sockets in it. */
export function judgeFolder({ folder, status, refusal }: FolderFacts, { uid }: Self): Check {
  const bad = (found: string, means: string, advice: string) => checkOf("folder", "bad", found, means, advice);
  if (status === null && refusal !== null) return bad(`${folder}: ${refusal}`, `User ${uid} cannot reach it.`, "choose another folder");
  if (status === null) return bad(`${folder} does not exist`, "takeOver throws ERR_TAKEOVER_PATH.", "create it");
  if (status.kind !== "folder") return bad(`${folder} is no folder`, "takeOver throws ERR_TAKEOVER_PATH.", "name a path in a folder");
  const found = `${folder}: mode ${status.mode.toString(8).padStart(4, "0")}, of user ${status.uid}`;
  const isSticky = (status.mode & 0o1000) !== 0;
  if ((status.mode & 0o002) !== 0 && !isSticky) {
    return bad(found, "Every user can replace the socket, so takeOver refuses the folder.", `chmod o-w ${folder}, or use one of the service's own`);
  }
  if (refusal !== null && refusal !== "unknown") {
    return bad(`${found}; ${refusal}`, `User ${uid} cannot make a socket there.`, "choose a folder that this user can write");
  }
  const limited = (means: string) => checkOf("folder", "limited", found, means, "use a folder of the service's own, for instance under /run");
  if (refusal === "unknown") return limited(`Whether user ${uid} can make a socket there cannot be told before it is tried.`);
  if ((status.mode & 0o002) !== 0) return limited("Any user can be there first, and then takeOver throws.");
  if ((status.mode & 0o020) !== 0 && !isSticky) return limited("Every member of its group can replace the socket.");
  if (status.uid !== uid && status.uid !== 0) return limited(`User ${status.uid} can replace the socket.`);
  return checkOf("folder", "good", found, "Only this user and root can replace the socket.");
}

/** The file system: that sockets can be in it, and who reaches them. */
export function judgeFilesystem(mount: Mount | null): Check {
  if (mount === null) return unknown("filesystem", "/proc/self/mountinfo has no such mount");
  const { type, isReadOnly } = mount;
  const judged = (status: CheckStatus, means: string, advice = "choose a folder in /run") =>
    checkOf("filesystem", status, `${type}${isReadOnly ? ", read-only" : ""}`, means, status === "good" ? "" : advice);
  if (isReadOnly) return judged("bad", "No socket can be made in it.");
  if (socketlessTypes.includes(type)) return judged("bad", "It has no sockets.");
  if (localTypes.includes(type)) return judged("good", "Every process that sees the folder reaches the socket.");
  if (type === "overlay") {
    const advice = "if the next process is in another container, use a folder of a volume that both have";
    return judged("limited", "Only processes of the same container reach a socket in it.", advice);
  }
  if (sharedTypes.includes(type)) return judged("limited", "Only processes on this machine reach a socket in it, and some cannot make one.");
  return judged("limited", "It is not known whether sockets work in it.");
}

/** What is at the path now, and who answers. */
export function judgeAtPath(found: AtPath, self: Self, isSticky: boolean): Check {
  switch (found.state) {
    case "other":
      return checkOf("path", "bad", found.kind, "takeOver refuses it, and leaves it alone.", "remove it, or choose another path");
    case "datagram":
      return checkOf("path", "bad", "a datagram socket of another program", "takeOver throws.", "choose another path");
    case "denied":
      return checkOf(
        "path",
        "bad",
        `a socket of user ${found.uid}`,
        `User ${self.uid} may not connect to it.`,
        "run both processes as one user, or choose another path",
      );
    case "live":
      return judgeLive(found, self);
    default:
      return judgeFree(found, self, isSticky);
  }
}

function judgeFree({ state, lockUser }: AtPath & { lockUser: number | null }, { uid }: Self, isSticky: boolean): Check {
  // In a sticky folder even root may not open another's file to create it (proc_sys_fs(5), protected_regular).
  if (lockUser !== null && lockUser !== uid && (uid !== 0 || isSticky)) {
    const means = "takeOver cannot lock the path.";
    return checkOf("path", "bad", `${state}; the lock file beside it is of user ${lockUser}`, means, "remove the lock file");
  }
  if (state === "nothing") return checkOf("path", "good", "nothing; nobody answers", "The next process becomes the first.");
  return checkOf(
    "path",
    "limited",
    "a stale socket; nobody answers",
    "Its process ended without being replaced. takeOver replaces it, and becomes the first.",
    "see why that process ended",
  );
}

function judgeLive({ socket, holders, isComplete }: AtPath & { state: "live" }, self: Self): Check {
  const at = (status: CheckStatus, found: string, means: string, advice = "") => checkOf("path", status, found, means, advice);
  const who = holders.map(described).join(", ") || "a process that cannot be seen";
  if (socket === "packet") return at("bad", `a packet socket of ${who}`, "takeOver throws.", "choose another path");
  if (socket === "bound") {
    return at("limited", `a socket of ${who} that does not listen`, "takeOver counts it as stale, and replaces it.", "see what made it");
  }
  if (holders.length === 0) return judgeUnseen(socket === null, isComplete, self);
  const stranger = holders.find(({ uid }) => uid >= 0 && uid !== self.uid && !self.allowUsers.includes(uid));
  if (stranger) {
    const advice = `run both as one user, or pass allowUsers: [${stranger.uid}]`;
    return at("bad", who, `It runs as user ${stranger.uid}, so takeOver throws ERR_TAKEOVER_USER.`, advice);
  }
  if (holders.every(({ isStopped }) => isStopped)) {
    return at("bad", who, "It is stopped (SIGSTOP): takeOver throws ERR_TAKEOVER_TIMEOUT.", "let it go on: kill -CONT");
  }
  if (holders.every(({ pid }) => pid === self.pid)) return at("good", who, "This process is the incumbent.");
  if (holders.some(isRuntime)) return at("good", who, "The next process becomes its successor.");
  const means = "It is none of the three runtimes under its usual name. Whether it is an incumbent shows when a successor says hello.";
  return at("limited", who, means, "see what it is");
}

function judgeUnseen(isElsewhere: boolean, isComplete: boolean, { uid }: Self): Check {
  const why = isElsewhere
    ? "it is in another network namespace, or the socket was renamed"
    : isComplete
    ? "it is in another pid namespace, or it has just ended"
    : `user ${uid} may not look into every process, or there was no time to`;
  const means = "Whether it is an incumbent shows when a successor says hello.";
  return checkOf("path", "limited", `a process that cannot be seen answers: ${why}`, means, "run this as the user of that process");
}

function isRuntime({ program }: Holder): boolean {
  return Object.hasOwn(runtimes, program);
}

function described({ pid, uid, program }: Holder): string {
  return `process ${pid} (${runtimes[program] ?? (program || "unknown")}, user ${uid < 0 ? "unknown" : uid})`;
}
