/**
 * What the facts about a system mean for a takeover on it: one pure function
 * for each check of a doctor.
 *
 * @module
 */

import { defaultBacklog } from "../sockets/address.ts";
import type { Limits } from "../limits.ts";
import type { Runtime } from "../runtime.ts";
import type { Check, CheckName, CheckStatus } from "./diagnosis.ts";

/** A version as far as it is compared: its first two numbers. */
type Version = readonly [number, number];

/** Capabilities that matter, by the number of their bit (capabilities(7), linux/capability.h). */
export const capabilities = {
  CAP_SYS_PTRACE: 19,
  CAP_SYS_ADMIN: 21,
  CAP_SYS_RESOURCE: 24,
  CAP_BPF: 39,
} as const;

/** The versions that are tested, as in README.md, and the oldest that can do it. */
export const testedVersions: Readonly<
  Record<Runtime["name"], { readonly least: string; readonly tested: readonly string[] }>
> = {
  deno: { least: "2.8", tested: ["2.9.6"] },
  bun: { least: "1.4", tested: ["1.4.5"] },
  node: { least: "20.0", tested: ["20.20", "24.21", "26.10"] },
};

/** What came with which Linux, and what is lost before it. */
const features: readonly { readonly since: Version; readonly what: string; readonly isNeeded?: boolean }[] = [
  { since: [4, 12], what: "SO_COOKIE, by which a socket is known again", isNeeded: true },
  { since: [4, 13], what: "SO_PEERGROUPS" },
  { since: [4, 19], what: "BPF_PROG_TYPE_SK_REUSEPORT" },
  { since: [5, 6], what: "pidfd_getfd, which seize needs" },
  { since: [5, 9], what: "close_range, by which many descriptors are closed at once" },
  { since: [5, 14], what: "tcp_migrate_req" },
  { since: [6, 5], what: "SO_PEERPIDFD" },
];

/** What Deno permits, by name; a narrowed permission is `prompt`. */
export type Permissions = Readonly<Record<string, "granted" | "prompt" | "denied">>;

/** RLIMIT_NOFILE, and what of it is used. */
export interface DescriptorFacts {
  readonly soft: number;
  readonly hard: number;
  readonly used: number;
  /** Whether the limit on descriptors in flight does not hold (unix(7), ETOOMANYREFS). */
  readonly isExempt: boolean;
}

/** The settings of the two queues that a TCP connection waits in; null where they cannot be read. */
export interface QueueFacts {
  readonly somaxconn: number | null;
  readonly tcp_max_syn_backlog: number | null;
  readonly tcp_syncookies: number | null;
  readonly tcp_abort_on_overflow: number | null;
}

/** Where this process runs; null for what cannot be told. */
export interface ContainerFacts {
  readonly pid: number;
  /** What /proc/self says, which is another number in another namespace's /proc. */
  readonly pidInProc: number | null;
  readonly isInitialPidNamespace: boolean | null;
  /** 0: none, 1: strict, 2: a filter. */
  readonly seccomp: number | null;
}

/** What follows from what was found: the last two fields of a check, and its status. */
export type Judge = (status: CheckStatus, means: string, advice?: string) => Check;

/** Makes checks of one name, about one finding. */
export function about(name: CheckName, found: string): Judge {
  return (status, means, advice = "") => ({ name, status, found, means, advice });
}

/** A check that cannot be made, and why. */
export function unknown(name: CheckName, why: string): Check {
  return about(name, `cannot be told: ${why}`)("limited", "Nothing is known of this here.");
}

/** The runtime's version beside those that were tested. */
export function judgeRuntime(name: Runtime["name"], version: string): Check {
  const { least, tested } = testedVersions[name];
  const title = { deno: "Deno", bun: "Bun", node: "Node" }[name];
  const judge = about("runtime", `${title} ${version}; tested with ${tested.join(", ")}`);
  if (isBefore(versionOf(version), versionOf(least))) {
    return judge("bad", "It lacks what a takeover needs.", `use ${least} or later`);
  }
  // Node's even majors live long and change little; Deno and Bun have one line.
  const line = (text: string) => versionOf(text).slice(0, name === "node" ? 1 : 2).join(".");
  if (tested.some((each) => line(each) === line(version))) return judge("good", "This version is tested.");
  const means =
    "What the library relies on is measured on other versions; a server that holds the wrong socket throws.";
  return judge("limited", means, "use a tested version, or run the library's tests on this one");
}

/** What libc is called through; null for nothing, and why. */
export function judgeFfi(ffi: string | null, why: string): Check {
  const judge = about("ffi", ffi ?? "none");
  if (ffi === null) return judge("bad", "libc cannot be called, so nothing can be handed over.", why);
  if (ffi !== "node:ffi") return judge("good", "libc can be called.");
  return judge("limited", "libc can be called; node:ffi is experimental, and prints a warning.", "npm i koffi");
}

/** What Deno permits. */
export function judgePermissions(permissions: Permissions): Check {
  const judge = about(
    "permissions",
    Object.entries(permissions).map(([name, state]) => `${name}: ${state}`).join(", "),
  );
  const { ffi, net, read, write } = permissions;
  const advice = "run with --allow-ffi --allow-net";
  if (ffi !== "granted") {
    return judge("bad", "libc cannot be called without --allow-ffi, which cannot be narrowed.", advice);
  }
  const paths = read === "granted" && write === "granted"
    ? ""
    : " An endpoint on a Unix path needs --allow-read and --allow-write for its folder besides.";
  if (net === "granted") return judge("good", `Enough for a takeover.${paths}`);
  if (permissions["net 127.0.0.1"] !== "granted") {
    return judge("bad", "No server can open at its placeholder, which is on 127.0.0.0/8.", advice);
  }
  const means = "Servers can open at the permitted addresses only, with 127.0.0.0/8 for placeholders.";
  return judge("limited", means + paths, "name every endpoint's address in --allow-net");
}

/** The kernel's release, for instance `6.18.44-generic`. */
export function judgeKernel(release: string): Check {
  const judge = about("kernel", `Linux ${release}`);
  const lacking = features.filter(({ since }) => isBefore(versionOf(release), since));
  if (lacking.length === 0) return judge("good", "It has all that the library uses.");
  const list = lacking.map(({ what, since }) => `${what} (${since.join(".")})`).join("; ");
  const needed = lacking.filter(({ isNeeded }) => isNeeded);
  const newest = (of: typeof lacking) => of.at(-1)!.since.join(".");
  if (needed.length > 0) return judge("bad", `It lacks ${list}.`, `use Linux ${newest(needed)} or later`);
  return judge("limited", `Takeovers work. It lacks ${list}.`, `use Linux ${newest(lacking)} or later for all`);
}

/** How many descriptors are left. */
export function judgeDescriptors(
  { soft, hard, used, isExempt }: DescriptorFacts,
  { spareCount, endpointCount }: Pick<Limits, "spareCount" | "endpointCount">,
): Check {
  const room = Math.max(0, soft - used - spareCount);
  const inFlight = isExempt ? "without a limit" : `at most ${limit(soft)}`;
  const found = `${limit(soft)} may be open (hard limit ${limit(hard)}), ${used} are; in flight ${inFlight}`;
  const judge = about("descriptors", found);
  const raise = hard > soft
    ? `raise the soft limit: ulimit -n ${limit(hard)}`
    : "raise the limit: LimitNOFILE= of the unit, or ulimit -n as root";
  if (room === 0) {
    const means = `No socket can come over: ${spareCount} descriptors have to stay free, else ERR_TAKEOVER_NO_ROOM.`;
    return judge("bad", means, raise);
  }
  const means = `${limit(room)} sockets can come over, endpoints and connections together.`;
  return room >= endpointCount ? judge("good", means) : judge("limited", means, raise);
}

/** Whether /proc/self/fd and fdinfo can be read; null when they can, else why not. */
export function judgeProc(failure: string | null): Check {
  const judge = about("proc", failure ?? "/proc/self/fd and fdinfo can be read");
  if (failure === null) return judge("good", "Servers can be given their sockets.");
  const means =
    "A server's descriptor, and its place in the event loop, are found there: no server can be given a socket.";
  return judge("bad", means, "mount /proc: proc(5)");
}

/** Whether pidfd_open(2) and pidfd_getfd(2) work on this process; null when they do, else why not. */
export function judgePidfd(failure: string | null): Check {
  const judge = about("pidfd", failure ?? "pidfd_open and pidfd_getfd work");
  if (failure === null) return judge("good", "seize can be called.");
  return judge("limited", "seize does not work; takeovers do.", "use Linux 5.6, and allow both in seccomp filters");
}

/**
 * Whether descriptors of other processes may be copied (ptrace(2), Yama).
 *
 * @param scope `kernel.yama.ptrace_scope`, or null where there is no Yama.
 */
export function judgePtrace(scope: number | null, hasCapability: boolean): Check {
  const yama = scope === null ? "no Yama" : `kernel.yama.ptrace_scope is ${scope}`;
  const judge = about("ptrace", `${yama}, ${hasCapability ? "with" : "without"} CAP_SYS_PTRACE`);
  if (scope !== null && scope >= 3) {
    const advice = "set kernel.yama.ptrace_scope below 3, and boot";
    return judge("limited", "seize works for nobody, until the machine starts anew.", advice);
  }
  if (hasCapability) return judge("good", "seize works for processes of every user.");
  if (scope === null || scope === 0) return judge("good", "seize works for processes of this user.");
  const means = scope === 1
    ? "seize works for descendants of this process only; takeovers work."
    : "seize does not work; takeovers do.";
  return judge("limited", means, "sysctl -w kernel.yama.ptrace_scope=0, or give the program CAP_SYS_PTRACE");
}

/**
 * Whether a program of type BPF_PROG_TYPE_SK_REUSEPORT may be loaded: CAP_BPF
 * in the first user namespace (kernel/bpf/syscall.c, bpf_prog_load), CAP_SYS_ADMIN
 * before Linux 5.8.
 *
 * @param unprivileged `kernel.unprivileged_bpf_disabled`, which is about other types.
 */
export function judgeBpf(hasCapability: boolean, isInitialUserNamespace: boolean, unprivileged: number | null): Check {
  const where = isInitialUserNamespace ? "" : ", in a user namespace";
  const setting = unprivileged === null ? "" : `; kernel.unprivileged_bpf_disabled is ${unprivileged}`;
  const judge = about("bpf", `${hasCapability ? "CAP_BPF" : "no CAP_BPF"}${where}${setting}`);
  if (hasCapability && isInitialUserNamespace) return judge("good", "SK_REUSEPORT programs can be loaded.");
  return judge(
    "limited",
    "SK_REUSEPORT programs cannot be loaded; classic programs, which need no right, steer instead.",
    "give the program CAP_BPF if queued connections are to move within a group",
  );
}

/** `net.ipv4.tcp_migrate_req` (Linux 5.14); null where there is none. */
export function judgeMigration(value: number | null): Check {
  const judge = about("migration", `net.ipv4.tcp_migrate_req is ${value ?? "not there"}`);
  if (value === 1) return judge("good", "Connections that wait move to another listener of the group.");
  return judge(
    "limited",
    "When the last copy of a listener of a SO_REUSEPORT group closes, the connections in its queue are reset. " +
      "Takeovers close theirs empty, so this is about servers that the application closes, and about a process that " +
      "dies alone.",
    value === null ? "use Linux 5.14 or later" : "sysctl -w net.ipv4.tcp_migrate_req=1",
  );
}

/** How many connections can wait while nobody accepts. */
export function judgeQueues(facts: QueueFacts): Check {
  const { somaxconn, tcp_max_syn_backlog, tcp_syncookies, tcp_abort_on_overflow } = facts;
  if (somaxconn === null) return unknown("queues", "net.core.somaxconn cannot be read");
  const judge = about(
    "queues",
    Object.entries(facts).map(([name, value]) => `${name} ${value ?? "unknown"}`).join(", "),
  );
  const means: string[] = [];
  const advice: string[] = [];
  if (somaxconn < defaultBacklog) {
    means.push(`Only ${somaxconn} connections wait for each listener; the default backlog is ${defaultBacklog}.`);
    advice.push(`net.core.somaxconn=${defaultBacklog}`);
  }
  // Without cookies a SYN is dropped when three quarters are used (net/ipv4/tcp_input.c, tcp_conn_request).
  if (tcp_syncookies === 0 && tcp_max_syn_backlog !== null && tcp_max_syn_backlog < somaxconn) {
    means.push(`Without SYN cookies only ${tcp_max_syn_backlog} handshakes can be half open.`);
    advice.push("net.ipv4.tcp_syncookies=1");
  }
  if (tcp_abort_on_overflow === 1) {
    means.push("A connection that finds the queue full is reset, instead of trying again.");
    advice.push("net.ipv4.tcp_abort_on_overflow=0");
  }
  if (means.length === 0) return judge("good", `${somaxconn} connections wait for each listener while nobody accepts.`);
  return judge("limited", means.join(" "), `sysctl -w ${advice.join(" ")}`);
}

/** Namespaces and system call filters. */
export function judgeContainer({ pid, pidInProc, isInitialPidNamespace, seccomp }: ContainerFacts): Check {
  const space = isInitialPidNamespace === null ? "an unknown" : isInitialPidNamespace ? "the first" : "another";
  const filter = seccomp === null ? "unknown" : seccomp === 0 ? "none" : "a filter";
  const judge = about("container", `process ${pid} in ${space} pid namespace; seccomp: ${filter}`);
  if (pid === 1) {
    const means =
      "The kernel ends every process of a pid namespace with its first one: when this process ends after a " +
      "takeover, its successor ends too (pid_namespaces(7)).";
    return judge("bad", means, "start it under an init: docker run --init, or tini");
  }
  if (pidInProc !== null && pidInProc !== pid) {
    const means = `/proc calls this process ${pidInProc}: it belongs to another namespace, and tells of other pids. ` +
      "seize finds the wrong process.";
    return judge("limited", means, "mount /proc in this namespace");
  }
  const filtered = seccomp ? " A system call that the filter refuses fails as if it were not there." : "";
  if (isInitialPidNamespace !== false) return judge("good", `Pids mean the same everywhere.${filtered}`);
  const means = `Takeovers work. A process outside of this namespace shows as pid 0, and cannot be seized.${filtered}`;
  return judge("limited", means, "run both processes in one container, or share its pid namespace");
}

/** The first two numbers in a text; 0 for what is missing. */
export function versionOf(text: string): Version {
  const [, major = "0", minor = "0"] = /(\d+)(?:\.(\d+))?/.exec(text) ?? [];
  return [Number(major), Number(minor)];
}

/** RLIM_INFINITY is the largest number of 64 bits. */
function limit(count: number): string {
  return count > Number.MAX_SAFE_INTEGER ? "unlimited" : String(count);
}

function isBefore([major, minor]: Version, [otherMajor, otherMinor]: Version): boolean {
  return major < otherMajor || major === otherMajor && minor < otherMinor;
}
