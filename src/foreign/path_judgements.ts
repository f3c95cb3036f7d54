/**
 * What the place of a control socket means for a takeover: pure functions, one
 * for each check of a doctor that is about the path.
 *
 * @module
 */

import type { Check } from "./diagnosis.ts";
import type { AtPath, FolderFacts, Holder, Mount } from "./control_path.ts";
import { about, unknown } from "./judgements.ts";

/** Who asks. */
export interface Self {
  readonly pid: number;
  readonly uid: number;
  /** Further users that may be at the other end. */
  readonly allowUsers: readonly number[];
}

/** A path at which somebody listens, or is bound. */
type Live = AtPath & { readonly state: "live" };

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
  "ext2",
  "ext3",
  "ext4",
  "xfs",
  "btrfs",
  "bcachefs",
  "f2fs",
  "jfs",
  "reiserfs",
  "zfs",
  "tmpfs",
  "ramfs",
];

/** Those of other machines: a socket in them is known on this one only. */
const sharedTypes = ["nfs", "nfs4", "cifs", "smb3", "9p", "virtiofs", "ceph", "afs", "gfs2", "ocfs2"];

/** Those in which no socket can be made. */
const socketlessTypes = [
  "vfat",
  "msdos",
  "exfat",
  "ntfs",
  "ntfs3",
  "iso9660",
  "udf",
  "squashfs",
  "erofs",
  "proc",
  "sysfs",
  "cgroup2",
  "devpts",
];

/**
 * The path's name: that it is a file's, and fits into a socket address.
 *
 * @param mostSize The most bytes (unix(7), `sun_path` less its NUL).
 * @returns Null when it can be used.
 */
export function judgeName(path: string, mostSize: number): Check | null {
  const advice = "name a path in a folder of the service's own, for instance under /run";
  if (path === "" || path.includes("\0")) {
    return about("folder", "no path of a file")(
      "bad",
      "Abstract names are open to every user: takeOver refuses them.",
      advice,
    );
  }
  const size = new TextEncoder().encode(path).length;
  if (size <= mostSize) return null;
  return about("folder", `the path has ${size} bytes, at most ${mostSize} fit`)(
    "bad",
    "No socket can be there.",
    advice,
  );
}

/** The folder: that it is there, and who can make and replace sockets in it. */
export function judgeFolder({ folder, status, refusal }: FolderFacts, { uid }: Self): Check {
  const named = (text: string) => about("folder", text);
  const refused = "takeOver throws ERR_TAKEOVER_PATH.";
  const ours = "use a folder of the service's own, for instance under /run";
  if (status === null && refusal !== null) {
    return named(`${folder}: ${refusal}`)("bad", `User ${uid} cannot reach it.`, ours);
  }
  if (status === null) return named(`${folder} does not exist`)("bad", refused, "create it");
  if (status.kind !== "folder") return named(`${folder} is no folder`)("bad", refused, "name a path in a folder");
  const mode = status.mode.toString(8).padStart(4, "0");
  const cannot = refusal !== null && refusal !== "unknown" ? `; ${refusal}` : "";
  const judge = named(`${folder}: mode ${mode}, of user ${status.uid}${cannot}`);
  const isSticky = (status.mode & 0o1000) !== 0;
  if ((status.mode & 0o002) !== 0 && !isSticky) {
    return judge("bad", `Every user can replace the socket: ${refused}`, `chmod o-w ${folder}`);
  }
  if (cannot) return judge("bad", `User ${uid} cannot make a socket there.`, ours);
  if (refusal !== null) {
    return judge("limited", `Whether user ${uid} can make a socket there shows when it is tried.`, ours);
  }
  if ((status.mode & 0o002) !== 0) {
    return judge("limited", "Any user can be there first, and then takeOver throws.", ours);
  }
  if ((status.mode & 0o020) !== 0 && !isSticky) {
    return judge("limited", "Its whole group can replace the socket.", ours);
  }
  if (status.uid !== uid && status.uid !== 0) {
    return judge("limited", `User ${status.uid} can replace the socket.`, ours);
  }
  return judge("good", "Only this user and root can replace the socket.");
}

/** The file system: that sockets can be in it, and who reaches them. */
export function judgeFilesystem(mount: Mount | null): Check {
  if (mount === null) return unknown("filesystem", "/proc/self/mountinfo has no such mount");
  const { type, isReadOnly } = mount;
  const judge = about("filesystem", `${type}${isReadOnly ? ", read-only" : ""}`);
  const advice = "choose a folder under /run";
  if (isReadOnly) return judge("bad", "No socket can be made in it.", advice);
  if (socketlessTypes.includes(type)) return judge("bad", "It has no sockets.", advice);
  if (localTypes.includes(type)) return judge("good", "Every process that sees the folder reaches the socket.");
  if (type === "overlay") {
    const volume = "if the next process is in another container, use a folder of a volume that both have";
    return judge("limited", "Only processes of the same container reach a socket in it.", volume);
  }
  if (!sharedTypes.includes(type)) return judge("limited", "It is not known whether sockets work in it.", advice);
  return judge("limited", "Only processes on this machine reach a socket in it, and some cannot make one.", advice);
}

/** What is at the path now, and who answers. */
export function judgeAtPath(found: AtPath, self: Self, isSticky: boolean): Check {
  const elsewhere = "choose another path";
  switch (found.state) {
    case "other":
      return about("path", found.kind)(
        "bad",
        "takeOver refuses it, and leaves it alone.",
        `remove it, or ${elsewhere}`,
      );
    case "datagram":
      return about("path", "a datagram socket of another program")("bad", "takeOver throws.", elsewhere);
    case "denied": {
      const judge = about("path", `a socket of user ${found.uid}`);
      return judge("bad", `User ${self.uid} may not connect to it.`, `run both processes as one user, or ${elsewhere}`);
    }
    case "live":
      return found.holders.length === 0 ? judgeUnseen(found, self) : judgeLive(found, self);
    default:
      return judgeFree(found, self, isSticky);
  }
}

function judgeFree({ state, lockUser }: AtPath & { lockUser: number | null }, { uid }: Self, isSticky: boolean): Check {
  // In a sticky folder even root may not open another's file to create it (proc_sys_fs(5), protected_regular).
  if (lockUser !== null && lockUser !== uid && (uid !== 0 || isSticky)) {
    const judge = about("path", `${state}; the lock file beside it is of user ${lockUser}`);
    return judge("bad", "takeOver cannot lock the path.", "remove the lock file");
  }
  if (state === "nothing") {
    return about("path", "nothing; nobody answers")("good", "The next process becomes the first.");
  }
  const means = "Its process ended without being replaced. takeOver replaces it, and becomes the first.";
  return about("path", "a stale socket; nobody answers")("limited", means, "see why that process ended");
}

function judgeLive({ socket, holders }: Live, self: Self): Check {
  const who = holders.map(described).join(", ");
  if (socket === "packet") {
    return about("path", `a packet socket of ${who}`)("bad", "takeOver throws.", "choose another path");
  }
  if (socket === "bound") {
    const means = "takeOver counts it as stale, and replaces it.";
    return about("path", `a socket of ${who} that does not listen`)("limited", means, "see what made it");
  }
  const judge = about("path", who);
  const stranger = holders.find(({ uid }) => uid >= 0 && uid !== self.uid && !self.allowUsers.includes(uid));
  if (stranger) {
    const advice = `run both as one user, or pass allowUsers: [${stranger.uid}]`;
    return judge("bad", `It runs as user ${stranger.uid}, so takeOver throws ERR_TAKEOVER_USER.`, advice);
  }
  if (holders.every(({ isStopped }) => isStopped)) {
    return judge("bad", "It is stopped (SIGSTOP): takeOver throws ERR_TAKEOVER_TIMEOUT.", "let it go on: kill -CONT");
  }
  if (holders.every(({ pid }) => pid === self.pid)) return judge("good", "This process is the incumbent.");
  if (holders.some(isRuntime)) return judge("good", "The next process becomes its successor.");
  return judge("limited", `It is none of the three runtimes under its usual name. ${showsLater}`, "see what it is");
}

/** Without a connection nobody can tell an incumbent from another program. */
const showsLater = "Whether it is an incumbent shows when a successor says hello.";

function judgeUnseen({ socket, isComplete }: Live, { uid }: Self): Check {
  const why = socket === null
    ? "it is in another network namespace, or the socket was renamed"
    : isComplete
    ? "it is in another pid namespace, or it has just ended"
    : `user ${uid} may not look into every process, or there was no time to`;
  return about("path", `a process that cannot be seen answers: ${why}`)(
    "limited",
    showsLater,
    "run this as its user, beside it",
  );
}

function isRuntime({ program }: Holder): boolean {
  return Object.hasOwn(runtimes, program);
}

function described({ pid, uid, program }: Holder): string {
  return `process ${pid} (${runtimes[program] ?? (program || "unknown")}, user ${uid < 0 ? "unknown" : uid})`;
}
