/** What a doctor makes of facts. */

import assert from "node:assert/strict";
import { existsSync, readFileSync } from "node:fs";
import test from "node:test";
import { defaultLimits } from "../../src/limits.ts";
import {
  type AtPath,
  fieldIn,
  folderOf,
  type Holder,
  parseMount,
  parseUnixSockets,
} from "../../src/foreign/control_path.ts";
import { type Check, diagnosisOf, formatDiagnosis } from "../../src/foreign/diagnosis.ts";
import { diagnose, hostOf } from "../../src/foreign/doctor.ts";
import {
  about,
  capabilities,
  judgeBpf,
  judgeContainer,
  judgeDescriptors,
  judgeFfi,
  judgeKernel,
  judgeMigration,
  judgePermissions,
  judgePidfd,
  judgeProc,
  judgePtrace,
  judgeQueues,
  judgeRuntime,
  testedVersions,
} from "../../src/foreign/judgements.ts";
import { judgeAtPath, judgeFilesystem, judgeFolder, judgeName } from "../../src/foreign/path_judgements.ts";
import { darwin, fakeRuntime, takeoverError } from "./support.ts";

const root = new URL("../..", import.meta.url);

/** This process, as it is asked about in these tests. */
const self = { pid: 10, uid: 1000, allowUsers: [] };

function statuses(checks: readonly Check[]): string {
  return checks.map(({ status }) => status).join(" ");
}

test("judgeRuntime finds a tested version good, another limited, and one that is too old bad", () => {
  const checks = [judgeRuntime("deno", "2.9.1"), judgeRuntime("deno", "2.10.0"), judgeRuntime("deno", "2.7.9")];
  assert.equal(statuses(checks), "good limited bad");
  assert.equal(
    statuses([judgeRuntime("bun", "1.4.9"), judgeRuntime("bun", "2.0.0"), judgeRuntime("bun", "1.3.11")]),
    "good limited bad",
  );
  assert.equal(
    statuses([judgeRuntime("node", "24.1.0"), judgeRuntime("node", "22.18.0"), judgeRuntime("node", "18.20.0")]),
    "good limited bad",
  );
});

test("judgeRuntime knows the versions that README.md has", () => {
  const readme = readFileSync(new URL("README.md", root), "utf8").replace(/\s+/g, " ");
  const { deno, bun, node } = testedVersions;
  const list = `${node.tested.slice(0, -1).join(", ")} and ${node.tested.at(-1)}`;
  assert.ok(readme.includes(`with Deno ${deno.tested}, Bun ${bun.tested}, Node ${list}.`));
  assert.ok(
    readme.includes(`Minimum versions: Deno ${deno.least}, Bun ${bun.least}, Node ${parseInt(node.least)} with koffi`),
  );
});

test("judgeFfi finds node:ffi limited, and nothing bad", () => {
  const all = ["koffi", "Deno.dlopen", "bun:ffi", "node:ffi", null].map((ffi) => judgeFfi(ffi, "install it"));
  assert.equal(statuses(all), "good good good limited bad");
  assert.equal(all.at(-1)!.advice, "install it");
});

test("judgePermissions wants ffi as a whole, and of net what placeholders need", () => {
  const all = { ffi: "granted", net: "granted", "net 127.0.0.1": "granted", read: "prompt", write: "prompt" } as const;
  const checks = [
    judgePermissions(all),
    judgePermissions({ ...all, net: "prompt" }),
    judgePermissions({ ...all, net: "prompt", "net 127.0.0.1": "denied" }),
    judgePermissions({ ...all, ffi: "prompt" }),
  ];
  assert.equal(statuses(checks), "good limited bad bad");
  assert.match(checks[0]!.means, /--allow-read/);
  assert.doesNotMatch(judgePermissions({ ...all, read: "granted", write: "granted" }).means, /--allow-read/);
});

test("judgeKernel says what a kernel lacks, and compares numbers", () => {
  const checks = ["6.18.44-fc-v657", "6.5.0", "6.4", "5.15.0-100-generic", "5.10.0", "4.12", "4.11.9", "4.4.0"].map(
    judgeKernel,
  );
  assert.equal(statuses(checks), "good good limited limited limited limited bad bad");
  assert.match(checks[4]!.means, /tcp_migrate_req \(5\.14\); SO_PEERPIDFD \(6\.5\)\.$/);
  assert.match(checks[7]!.advice, /4\.12/);
});

test("judgeDescriptors compares what is left with spareCount and endpointCount", () => {
  const table = [
    [20_000, 20_000, 20, "good"],
    [4_096 + 32 + 20, 20_000, 20, "good"],
    [4_096 + 32 + 20 - 1, 20_000, 20, "limited"],
    [1_024, 1_024, 20, "limited"],
    [53, 64, 20, "limited"],
    [52, 64, 20, "bad"],
    [64, 64, 100, "bad"],
    [2 ** 64, 2 ** 64, 20, "good"],
  ] as const;
  const isExempt = false;
  const checks = table.map(([soft, hard, used]) => judgeDescriptors({ soft, hard, used, isExempt }, defaultLimits));
  assert.equal(statuses(checks), table.map(([, , , status]) => status).join(" "));
  assert.match(checks[2]!.advice, /ulimit -n 20000/);
  assert.match(checks[3]!.advice, /LimitNOFILE=/);
  assert.match(
    checks[7]!.found,
    /^unlimited may be open \(hard limit unlimited\), 20 are; in flight at most unlimited$/,
  );
});

test("judgeProc and judgePidfd say what fails", () => {
  assert.equal(
    statuses([judgeProc(null), judgeProc("EACCES"), judgePidfd(null), judgePidfd("ENOSYS")]),
    "good bad good limited",
  );
});

test("judgePtrace knows Yama's scopes, and what a capability changes", () => {
  const scopes = [null, 0, 1, 2, 3];
  assert.equal(statuses(scopes.map((scope) => judgePtrace(scope, false))), "good good limited limited limited");
  assert.equal(statuses(scopes.map((scope) => judgePtrace(scope, true))), "good good good good limited");
});

test("judgeBpf wants CAP_BPF in the first user namespace, whatever is allowed without", () => {
  assert.equal(
    statuses([judgeBpf(true, true, 2), judgeBpf(true, false, 0), judgeBpf(false, true, 0)]),
    "good limited limited",
  );
});

test("judgeMigration finds a kernel without, and one that does not", () => {
  assert.equal(statuses([1, 0, null].map(judgeMigration)), "good limited limited");
});

test("judgeQueues finds a short queue, and what the kernel does when it is full", () => {
  const usual = { somaxconn: 4_096, tcp_max_syn_backlog: 2_048, tcp_syncookies: 1, tcp_abort_on_overflow: 0 };
  assert.equal(judgeQueues(usual).status, "good");
  assert.match(judgeQueues({ ...usual, somaxconn: 128 }).advice, /^sysctl -w net\.core\.somaxconn=4096$/);
  assert.match(judgeQueues({ ...usual, tcp_syncookies: 0 }).advice, /tcp_syncookies=1$/);
  assert.match(judgeQueues({ ...usual, tcp_abort_on_overflow: 1 }).advice, /tcp_abort_on_overflow=0$/);
  assert.equal(judgeQueues({ ...usual, somaxconn: null }).status, "limited");
});

test("judgeContainer finds the first process of a namespace, and pids that mean something else", () => {
  const usual = { pid: 10, pidInProc: 10, isInitialPidNamespace: true, seccomp: 0 };
  const checks = [
    judgeContainer(usual),
    judgeContainer({ ...usual, seccomp: 2 }),
    judgeContainer({ ...usual, isInitialPidNamespace: null, pidInProc: null }),
    judgeContainer({ ...usual, isInitialPidNamespace: false }),
    judgeContainer({ ...usual, pidInProc: 4711 }),
    judgeContainer({ ...usual, pid: 1, pidInProc: 1 }),
  ];
  assert.equal(statuses(checks), "good good good limited limited bad");
});

test("capabilities have the numbers of linux/capability.h", {
  skip: existsSync("/usr/include/linux/capability.h") ? false : "linux/capability.h is not installed",
}, () => {
  const header = readFileSync("/usr/include/linux/capability.h", "utf8");
  const inHeader = (name: string) => Number(new RegExp(`^#define ${name}\\s+(\\d+)`, "m").exec(header)?.[1]);
  assert.deepEqual(Object.fromEntries(Object.keys(capabilities).map((name) => [name, inHeader(name)])), capabilities);
});

test("judgeName refuses what is no path of a file, and counts bytes", () => {
  for (const path of ["", "\0name", "/tmp/a\0b"]) assert.equal(judgeName(path, 107)?.status, "bad", path);
  assert.equal(judgeName("/".padEnd(107, "x"), 107), null);
  assert.match(judgeName("/".padEnd(105, "x") + "ü€", 107)!.found, /has 110 bytes/);
});

test("judgeFolder knows who can replace a socket", () => {
  const judged = (mode: number, uid = self.uid, refusal: string | null = null) =>
    judgeFolder(
      { folder: "/run/shop", status: { kind: "folder", symbolicLink: false, mode, uid, inode: 1 }, refusal },
      self,
    );
  assert.equal(statuses([judged(0o755), judged(0o755, 0), judged(0o1770), judged(0o700)]), "good good good good");
  assert.equal(
    statuses([judged(0o1777, 0), judged(0o775), judged(0o755, 7), judged(0o755, 0, "unknown")]),
    "limited limited limited limited",
  );
  assert.equal(statuses([judged(0o777), judged(0o755, 0, "EACCES"), judged(0o755, 0, "EROFS")]), "bad bad bad");
  assert.equal(judgeFolder({ folder: "/none", status: null, refusal: null }, self).advice, "create it");
  assert.match(judgeFolder({ folder: "/closed", status: null, refusal: "EACCES" }, self).found, /EACCES/);
});

test("judgeFilesystem knows where sockets can be", () => {
  const judged = (type: string, isReadOnly = false) => judgeFilesystem({ type, isReadOnly });
  assert.equal(
    statuses(["tmpfs", "ext4", "overlay", "nfs4", "fuse.sshfs", "vfat"].map((type) => judged(type))),
    "good good limited limited limited bad",
  );
  assert.equal(statuses([judged("ext4", true), judgeFilesystem(null)]), "bad limited");
});

const bun: Holder = { pid: 4711, uid: 1000, program: "bun.exe", isStopped: false };

function live(holders: readonly Holder[], more: Partial<AtPath & { state: "live" }> = {}): Check {
  return judgeAtPath({ state: "live", socket: "listening", holders, isComplete: true, ...more }, self, false);
}

test("judgeAtPath names an incumbent by its pid, runtime and user", () => {
  const { status, found } = live([bun]);
  assert.deepEqual([status, found], ["good", "process 4711 (Bun, user 1000)"]);
  assert.equal(
    live([bun, { ...bun, pid: 4712, program: "node" }]).found,
    "process 4711 (Bun, user 1000), process 4712 (Node, user 1000)",
  );
  assert.match(live([{ ...bun, pid: self.pid }]).means, /^This process/);
});

test("judgeAtPath tells an incumbent from another user's process, a stopped one, and another program", () => {
  assert.equal(statuses([live([{ ...bun, uid: 7 }]), live([{ ...bun, isStopped: true }])]), "bad bad");
  assert.equal(
    judgeAtPath({ state: "live", socket: "listening", holders: [{ ...bun, uid: 7 }], isComplete: true }, {
      ...self,
      allowUsers: [7],
    }, false).status,
    "good",
  );
  assert.equal(live([{ ...bun, program: "python3" }]).status, "limited");
  assert.equal(live([{ ...bun, program: "constructor" }]).status, "limited");
  assert.equal(statuses([live([bun], { socket: "packet" }), live([bun], { socket: "bound" })]), "bad limited");
});

test("judgeAtPath says why a process that answers cannot be seen", () => {
  assert.match(live([], { socket: null }).found, /network namespace/);
  assert.match(live([], { isComplete: false }).found, /user 1000 may not/);
  assert.match(live([]).found, /pid namespace/);
});

test("judgeAtPath finds a lock file that this user cannot open", () => {
  const judged = (lockUser: number | null, uid: number, isSticky: boolean) =>
    judgeAtPath({ state: "nothing", lockUser }, { ...self, uid }, isSticky);
  assert.equal(statuses([judged(null, 1000, true), judged(1000, 1000, true), judged(7, 0, false)]), "good good good");
  assert.equal(statuses([judged(7, 1000, false), judged(7, 0, true)]), "bad bad");
});

test("parseUnixSockets reads paths with spaces, and leaves out what has none", () => {
  const table = `Num       RefCount Protocol Flags    Type St Inode Path
00000000db16aa0e: 00000003 00000000 00000000 0001 03 90166253
000000001ceb4998: 00000002 00000000 00010000 0001 01 90268718 /run/a b/s.sock
0000000050e0933e: 00000002 00000000 00010000 0005 01    44 @abstract
0000000050e0933e: 00000002 00000000 00000000 0005 01    45 relative.sock
`;
  assert.deepEqual(parseUnixSockets(table), [
    { isListening: true, type: 1, inode: 90_268_718, path: "/run/a b/s.sock" },
    { isListening: false, type: 5, inode: 45, path: "relative.sock" },
  ]);
});

test("parseMount finds a mount by its id, whatever tags it has, and whether it is read-only", () => {
  const table = `27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard
127 27 0:44 / /mnt/a\\040b rw shared:1 master:2 - nfs4 host:/x ro,vers=4.2
128 27 0:45 / /ro ro - tmpfs tmpfs rw
`;
  assert.deepEqual(parseMount(table, "27"), { type: "ext4", isReadOnly: false });
  assert.deepEqual(parseMount(table, "127"), { type: "nfs4", isReadOnly: true });
  assert.deepEqual(parseMount(table, "128"), { type: "tmpfs", isReadOnly: true });
  assert.equal(parseMount(table, "7"), null);
});

test("folderOf and fieldIn read what they are named for", () => {
  assert.deepEqual(["/run/a/s", "/s", "s", "a/s"].map(folderOf), ["/run/a", "/", ".", "a"]);
  assert.deepEqual(["Uid", "Seccomp", "None"].map((name) => fieldIn("Name:\tx\nUid:\t1\t2\nSeccomp:\t2\n", name)), [
    "1\t2",
    "2",
    null,
  ]);
});

test("diagnose makes no check on macOS but those of the runtime, and throws for a limit that is none", async () => {
  const host = hostOf(fakeRuntime({ abi: darwin, name: "node", version: "26.10.0", ffi: "koffi" }));
  const { status, checks } = await diagnose(host, "/tmp/s");
  assert.deepEqual(checks.filter((each) => each.status === "good").map(({ name }) => name), ["runtime", "ffi"]);
  assert.deepEqual([status, new Set(checks.slice(2).map(({ found }) => found))], [
    "limited",
    new Set(["cannot be told: this is not Linux"]),
  ]);
  for (const options of [{ limits: { spareCount: -1 } }, { searchMs: NaN }, { searchMs: -1 }]) {
    await assert.rejects(diagnose(host, null, options), takeoverError("ERR_TAKEOVER_LIMIT"));
  }
});

test("diagnose makes a check that fails one that says so", async () => {
  const { checks } = await diagnose(hostOf(fakeRuntime({ version: "26.10.0" })), "/tmp/s");
  assert.equal(checks.find(({ name }) => name === "kernel")!.status, "limited");
  assert.match(checks.find(({ name }) => name === "proc")!.found, /open/);
});

test("diagnosisOf is as bad as the worst check", () => {
  const [good, limited, bad] = (["good", "limited", "bad"] as const).map((status) => about("kernel", "f")(status, "m"));
  const worst = [[], [good!], [good!, limited!], [bad!, good!, limited!]].map((checks) =>
    diagnosisOf(null, checks).status
  );
  assert.deepEqual(worst, ["good", "good", "limited", "bad"]);
});

test("formatDiagnosis aligns, and says what to do where something is not good", () => {
  const checks = [
    about("kernel", "Linux")("good", "fine"),
    about("migration", "off")("bad", "x".repeat(70) + " end", "turn on"),
  ];
  assert.equal(
    formatDiagnosis(diagnosisOf(null, checks)),
    `good     kernel     Linux
bad      migration  off
                    ${"x".repeat(70)} end
                    > turn on

1 good, 0 limited, 1 bad
`,
  );
});

test("formatDiagnosis keeps to 100 columns, and lets nothing through that a terminal obeys", () => {
  const found = `${"word ".repeat(50)}\u001b[31m\nnext\u202e`;
  const text = formatDiagnosis(diagnosisOf(null, [about("folder", found)("limited", "m", "a")]));
  assert.ok(text.split("\n").every((line) => line.length <= 100));
  for (const each of ["\u001b", "\u202e"]) assert.ok(!text.includes(each));
  assert.ok(text.includes("?[31m?next?"));
});
