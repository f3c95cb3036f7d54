/**
 * A doctor: looks at everything that decides whether a takeover works here, and
 * how well. It changes nothing, leaves nothing behind, and connects to nobody.
 * What cannot be looked at is a check that says so.
 *
 * @module
 */

import { allocate, viewOf } from "../c/bytes.ts";
import { checked, messageOf, TakeoverError } from "../errors.ts";
import { type Limits, limitsFrom } from "../limits.ts";
import type { Runtime } from "../runtime.ts";
import { linkAt, numbersIn, OwnedDescriptor, owning, readFile } from "../sockets/descriptors.ts";
import { statusOf } from "../sockets/listener.ts";
import { openSocket } from "../sockets/socket.ts";
import { fieldIn, folderFacts, folderOf, mountOf, whoIsAt } from "./control_path.ts";
import { type Check, type CheckName, type Diagnosis, diagnosisOf } from "./diagnosis.ts";
import * as judge from "./judgements.ts";
import { judgeAtPath, judgeFilesystem, judgeFolder, judgeName, type Self } from "./path_judgements.ts";
import { ForeignProcess } from "./process.ts";

/** What can be said to a doctor. */
export interface DoctorOptions {
  /** User ids that may be at the other end, as for `takeOver`. */
  readonly allowUsers?: readonly number[];
  /** `spareCount` and `endpointCount` that differ from the defaults, as for `takeOver`. */
  readonly limits?: Partial<Limits>;
  /** How long the process that answers is looked for, in milliseconds; 1,000 when left out. */
  readonly searchMs?: number;
}

/** What is examined: a runtime, or why its libc cannot be called. */
export interface Host extends Pick<Runtime, "name" | "version" | "permissions"> {
  /** Null when libc cannot be called. */
  readonly runtime: Runtime | null;
  /** Why it cannot, and what to do. */
  readonly reason: string;
}

/** A check to be made. */
type Examination = readonly [CheckName, () => Check | Promise<Check>];

const systemChecks: readonly CheckName[] = [
  "kernel",
  "descriptors",
  "proc",
  "pidfd",
  "ptrace",
  "bpf",
  "migration",
  "queues",
  "container",
];
const pathChecks: readonly CheckName[] = ["folder", "filesystem", "path"];

const defaultSearchMs = 1_000;

/** The inode numbers of the first namespaces (linux/proc_ns.h, PROC_PID_INIT_INO, PROC_USER_INIT_INO). */
const initialPidNamespace = "pid:[4026531836]";
const initialUserNamespace = "user:[4026531837]";

/** A descriptor number that every process can ask /proc for: standard error. */
const someDescriptor = 2;

/** A runtime whose libc can be called. */
export function hostOf(runtime: Runtime): Host {
  const { name, version, permissions } = runtime;
  return { name, version, runtime, reason: "", ...(permissions ? { permissions } : {}) };
}

/**
 * Makes all checks.
 *
 * @param host What is examined.
 * @param path The path of the control socket; without one nothing is said of it.
 * @param options See {@linkcode DoctorOptions}.
 * @returns The checks in a fixed order; none throws.
 * @throws {TakeoverError} `ERR_TAKEOVER_LIMIT` for a limit or a time that is out of range.
 */
export async function diagnose(host: Host, path: string | null, options: DoctorOptions = {}): Promise<Diagnosis> {
  const limits = limitsFrom(options.limits);
  const searchMs = checkedMs(options.searchMs ?? defaultSearchMs);
  const { name, version, permissions, runtime, reason } = host;
  const examinations: readonly Examination[] = [
    ["runtime", () => judge.judgeRuntime(name, version)],
    ["ffi", () => judge.judgeFfi(runtime?.ffi ?? null, reason)],
    ...(permissions ? [["permissions", () => judge.judgePermissions(permissions())] as const] : []),
    ...ofSystem(runtime, limits),
    ...(path === null ? [] : ofPath(runtime, path, { ...options, searchMs })),
  ];
  const checks: Check[] = [];
  for (const [each, examine] of examinations) checks.push(await made(each, examine));
  return diagnosisOf(path, checks);
}

/** A check, or why it cannot be made. */
async function made(name: CheckName, examine: () => Check | Promise<Check>): Promise<Check> {
  try {
    return await examine();
  } catch (error) {
    return judge.unknown(name, messageOf(error));
  }
}

/** Checks that cannot be made. */
function unmade(names: readonly CheckName[], why: string): Examination[] {
  return names.map((name) => [name, () => judge.unknown(name, why)]);
}

/** Why nothing can be looked at, or null. */
function hindrance(runtime: Runtime | null): string | null {
  if (runtime === null) return "libc cannot be called";
  return runtime.abi.platform === "linux" ? null : "this is not Linux";
}

function ofSystem(runtime: Runtime | null, limits: Limits): Examination[] {
  if (runtime === null || hindrance(runtime) !== null) return unmade(systemChecks, hindrance(runtime)!);
  const own = () => readFile(runtime, "/proc/thread-self/status");
  const has = (...names: (keyof typeof judge.capabilities)[]) => names.some((each) => hasCapability(own(), each));
  const isInitial = () => linkAt(runtime, "/proc/self/ns/user") === initialUserNamespace;
  const setting = (each: string) => settingOf(runtime, each);
  return [
    ["kernel", () => judge.judgeKernel(readFile(runtime, "/proc/sys/kernel/osrelease").trim())],
    ["descriptors", () => {
      const isExempt = isInitial() && has("CAP_SYS_RESOURCE", "CAP_SYS_ADMIN");
      return judge.judgeDescriptors({ ...descriptorFacts(runtime), isExempt }, limits);
    }],
    ["proc", () => judge.judgeProc(failureOf(() => readOwn(runtime)))],
    ["pidfd", () => judge.judgePidfd(failureOf(() => copyOwn(runtime)))],
    ["ptrace", () => judge.judgePtrace(setting("kernel/yama/ptrace_scope"), has("CAP_SYS_PTRACE"))],
    ["bpf", () => {
      const unprivileged = setting("kernel/unprivileged_bpf_disabled");
      return judge.judgeBpf(has("CAP_BPF", "CAP_SYS_ADMIN"), isInitial(), unprivileged);
    }],
    ["migration", () => judge.judgeMigration(setting("net/ipv4/tcp_migrate_req"))],
    ["queues", () =>
      judge.judgeQueues({
        somaxconn: setting("net/core/somaxconn"),
        tcp_max_syn_backlog: setting("net/ipv4/tcp_max_syn_backlog"),
        tcp_syncookies: setting("net/ipv4/tcp_syncookies"),
        tcp_abort_on_overflow: setting("net/ipv4/tcp_abort_on_overflow"),
      })],
    ["container", () => judge.judgeContainer(containerFacts(runtime, own()))],
  ];
}

/** The checks of the path; where its name cannot be used there is nothing to look at. */
function ofPath(runtime: Runtime | null, path: string, options: DoctorOptions & { searchMs: number }): Examination[] {
  if (runtime === null || hindrance(runtime) !== null) return unmade(pathChecks, hindrance(runtime)!);
  const { libc, abi } = runtime;
  const self: Self = { pid: libc.getpid(), uid: libc.geteuid(), allowUsers: options.allowUsers ?? [] };
  const wrongName = judgeName(path, abi.sockaddr.un.path.size - 1);
  if (wrongName) {
    return [["folder", () => wrongName], ...unmade(pathChecks.slice(1), "no socket can be at such a path")];
  }
  const folder = folderOf(path);
  return [
    ["folder", () => judgeFolder(folderFacts(runtime, folder), self)],
    ["filesystem", () => judgeFilesystem(mountOf(runtime, folder))],
    ["path", async () => {
      const isSticky = ((statusOf(runtime, folder, true)?.mode ?? 0) & 0o1000) !== 0;
      return judgeAtPath(await whoIsAt(runtime, path, options.searchMs), self, isSticky);
    }],
  ];
}

function checkedMs(searchMs: number): number {
  if (Number.isInteger(searchMs) && searchMs >= 0) return searchMs;
  throw new TakeoverError("ERR_TAKEOVER_LIMIT", `Cannot search for ${searchMs} ms: expected an integer from 0 on`);
}

/** Both limits of open files (getrlimit(2): soft 8 | hard 8), and how many are open. */
function descriptorFacts(runtime: Runtime): Pick<judge.DescriptorFacts, "soft" | "hard" | "used"> {
  const { abi, libc } = runtime;
  const limit = allocate(16);
  checked(abi, "getrlimit", libc.getrlimit(abi.constants.RLIMIT_NOFILE, limit));
  const [soft, hard] = [0, 8].map((at) => Number(viewOf(limit).getBigUint64(at, true))) as [number, number];
  return { soft, hard, used: numbersIn(runtime, "/proc/self/fd").length };
}

/** Reads what a graft reads. */
function readOwn(runtime: Runtime): void {
  const [number] = numbersIn(runtime, "/proc/self/fd");
  readFile(runtime, `/proc/self/fdinfo/${number ?? someDescriptor}`);
}

/** Copies a descriptor of this process as one of another would be. */
function copyOwn(runtime: Runtime): void {
  owning(new OwnedDescriptor(runtime, openSocket(runtime, "unix", "dgram")), ({ number }) => {
    const self = new ForeignProcess(runtime, runtime.libc.getpid());
    try {
      self.copy(number)?.[Symbol.dispose]();
    } finally {
      self[Symbol.dispose]();
    }
  });
}

function containerFacts(runtime: Runtime, own: string): judge.ContainerFacts {
  const namespace = linkAt(runtime, "/proc/self/ns/pid");
  const seccomp = fieldIn(own, "Seccomp");
  return {
    pid: runtime.libc.getpid(),
    pidInProc: Number(linkAt(runtime, "/proc/self")) || null,
    isInitialPidNamespace: namespace === "" ? null : namespace === initialPidNamespace,
    seccomp: seccomp === null ? null : Number(seccomp),
  };
}

/** Whether a thread has a capability among the effective ones; each thread has its own (capabilities(7)). */
function hasCapability(status: string, name: keyof typeof judge.capabilities): boolean {
  const effective = BigInt(`0x${fieldIn(status, "CapEff") ?? "0"}`);
  return (effective >> BigInt(judge.capabilities[name]) & 1n) === 1n;
}

/** A number of /proc/sys, or null where there is none, or where it cannot be read. */
function settingOf(runtime: Runtime, name: string): number | null {
  try {
    return Number(readFile(runtime, `/proc/sys/${name}`));
  } catch {
    return null;
  }
}

function failureOf(attempt: () => void): string | null {
  try {
    attempt();
    return null;
  } catch (error) {
    return messageOf(error);
  }
}
