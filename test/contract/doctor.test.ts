/** A doctor on a real system, which it leaves as it was. */

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { chmodSync, existsSync, mkdirSync, readdirSync, writeFileSync } from "node:fs";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { doctor } from "../../mod.ts";
import type { Check, CheckName, Diagnosis } from "../../src/foreign/diagnosis.ts";
import { diagnose, hostOf } from "../../src/foreign/doctor.ts";
import { OwnedDescriptor } from "../../src/sockets/descriptors.ts";
import { bindListener } from "../../src/sockets/listener.ts";
import { bindSocket, openSocket } from "../../src/sockets/socket.ts";
import { Server } from "../support/server.ts";
import { commandHere, run, TemporaryFolder } from "../unit/children.ts";
import { asRoot } from "./fd_children.ts";
import { ask, onDeno, runtime, test, until } from "./support.ts";

const { libc } = runtime;
const example = fileURLToPath(new URL("../../examples/doctor.ts", import.meta.url));

/** A user that has nothing here. */
const ordinaryUser = 61_235;

const aboutSystem: readonly CheckName[] = [
  "runtime",
  "ffi",
  ...(runtime.name === "deno" ? ["permissions" as const] : []),
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
const aboutPath: readonly CheckName[] = ["folder", "filesystem", "path"];

/** What is said of a path. */
function diagnosed(path: string): Promise<Diagnosis> {
  return diagnose(hostOf(runtime), path);
}

function checkIn(diagnosis: Diagnosis, name: CheckName): Check {
  return diagnosis.checks.find((each) => each.name === name) ?? assert.fail(`no check ${name}`);
}

/** One check of a path: its status, and what was found. */
async function of(path: string, name: CheckName): Promise<[string, string]> {
  const { status, found } = checkIn(await diagnosed(path), name);
  return [status, found];
}

/** What examples/doctor.ts finds in another process. */
async function printed(command: readonly string[]): Promise<{ status: number | string; diagnosis: Diagnosis }> {
  const { status, stdout, stderr } = await run(command, { NODE_NO_WARNINGS: "1" });
  assert.match(stdout, /^\{.*\}\s*$/, stderr);
  return { status, diagnosis: JSON.parse(stdout) as Diagnosis };
}

function accepted(listener: OwnedDescriptor): number {
  const result = libc.accept(listener.number, null, null);
  if (result >= 0) libc.close(result);
  return result;
}

test("doctor makes every check once, those of the path when there is one, and each says what it means", async () => {
  using folder = new TemporaryFolder();
  const names = ({ checks }: Diagnosis) => checks.map(({ name }) => name);
  assert.deepEqual(names(await doctor()), aboutSystem);
  const { checks, path } = await doctor(folder.file("s"));
  assert.deepEqual([checks.map(({ name }) => name), path], [[...aboutSystem, ...aboutPath], folder.file("s")]);
  for (const { name, status, found, means, advice } of checks) {
    assert.ok(found !== "" && means !== "", name);
    assert.ok(status !== "good" || advice === "", `${name}: ${advice}`);
  }
});

test("doctor names the runtime that is tested, and what libc is called through", async () => {
  const diagnosis = await diagnose(hostOf(runtime), null);
  assert.equal(checkIn(diagnosis, "runtime").status, "good");
  const { status, found } = checkIn(diagnosis, "ffi");
  assert.deepEqual([status, found], [runtime.ffi === "node:ffi" ? "limited" : "good", runtime.ffi]);
  assert.equal(checkIn(diagnosis, "proc").status, "good");
});

test("doctor finds nothing bad in a folder of its own at whose path is nothing, and makes nothing there", async () => {
  using folder = new TemporaryFolder();
  assert.deepEqual(await of(folder.file("s"), "path"), ["good", "nothing; nobody answers"]);
  assert.equal((await of(folder.file("s"), "folder"))[0], "good");
  assert.deepEqual(readdirSync(folder.path), []);
});

test("doctor finds a path that is too long, is none, or is in no folder", async () => {
  using folder = new TemporaryFolder();
  assert.deepEqual(await of(`/tmp/${"x".repeat(103)}`, "folder"), ["bad", "the path has 108 bytes, at most 107 fit"]);
  assert.equal((await of(`/tmp/${"x".repeat(102)}`, "folder"))[1].includes("/tmp"), true);
  for (const path of ["", "\0abstract"]) assert.deepEqual(await of(path, "folder"), ["bad", "no path of a file"]);
  writeFileSync(folder.file("file"), "");
  assert.equal((await of(folder.file("none/s"), "folder"))[1], `${folder.file("none")} does not exist`);
  assert.equal((await of(folder.file("file/s"), "folder"))[1], `${folder.file("file")} is no folder`);
  assert.deepEqual(await of(folder.file("file/below/s"), "folder"), ["bad", `${folder.file("file/below")}: ENOTDIR`]);
});

test("doctor finds a folder that anybody can write, and one that is sticky", async () => {
  using folder = new TemporaryFolder();
  const statuses = [];
  for (const mode of [0o777, 0o1777, 0o770, 0o755]) {
    chmodSync(folder.path, mode);
    statuses.push((await of(folder.file("s"), "folder"))[0]);
  }
  assert.deepEqual(statuses, ["bad", "limited", "limited", "good"]);
});

test("doctor finds a file system that has no sockets", async () => {
  assert.deepEqual(await of("/proc/s", "filesystem"), ["bad", "proc"]);
});

test("doctor finds a stale path, and leaves it there", async () => {
  using folder = new TemporaryFolder();
  const path = folder.file("s");
  bindListener(runtime, { family: "unix", path }, { path })[Symbol.dispose]();
  assert.deepEqual(await of(path, "path"), ["limited", "a stale socket; nobody answers"]);
  assert.ok(existsSync(path));
});

test("doctor finds what at a path is no control socket", async () => {
  using folder = new TemporaryFolder();
  mkdirSync(folder.file("folder"));
  writeFileSync(folder.file("file"), "");
  assert.deepEqual(await of(folder.file("folder"), "path"), ["bad", "a folder"]);
  assert.deepEqual(await of(folder.file("file"), "path"), ["bad", "a file"]);
  using datagram = new OwnedDescriptor(runtime, openSocket(runtime, "unix", "dgram"));
  bindSocket(runtime, datagram.number, { family: "unix", path: folder.file("dgram") });
  assert.deepEqual(await of(folder.file("dgram"), "path"), ["bad", "a datagram socket of another program"]);
  using packet = new OwnedDescriptor(runtime, openSocket(runtime, "unix", "seqpacket"));
  bindSocket(runtime, packet.number, { family: "unix", path: folder.file("packet") });
  assert.match((await of(folder.file("packet"), "path"))[1], /^a packet socket of process/);
});

test("doctor finds who listens by another name of the folder too, and connects to nobody", async () => {
  using folder = new TemporaryFolder();
  const path = folder.file("s");
  using listener = bindListener(runtime, { family: "unix", path }, { path });
  const found = `process ${libc.getpid()} (${
    { deno: "Deno", bun: "Bun", node: "Node" }[runtime.name]
  }, user ${libc.geteuid()})`;
  assert.deepEqual(await of(path, "path"), ["good", found]);
  assert.deepEqual(await of(`/tmp/..${folder.path}/s`, "path"), ["good", found]);
  assert.equal(accepted(listener), -11, "somebody connected");
});

test("doctor finds an incumbent, which serves on and hears nothing, and one that is stopped", async () => {
  using folder = new TemporaryFolder();
  const path = folder.file("s");
  await using server = new Server(runtime.name, "examples/http.ts", { PORT: "0", TAKEOVER: path });
  const { addr } = await server.event("ready");
  assert.match((await of(path, "path")).join(": "), new RegExp(`^good: process ${server.pid} \\(`));
  const [host, port] = String(addr).split(":");
  assert.match(await ask({ host: host!, port: Number(port) }), /^HTTP\/1.1 200/);
  assert.deepEqual(server.events.map(({ event }) => event), ["ready"]);
  // Deno's child.kill works once, and that once is for the end.
  process.kill(server.pid, "SIGSTOP");
  await until(() => spawnSync("grep", ["-q", "^State:.T", `/proc/${server.pid}/status`]).status === 0, "it to stop");
  assert.equal((await of(path, "path"))[0], "bad");
});

test("doctor tells an ordinary user what root may, and how few descriptors there are", asRoot, async () => {
  using folder = new TemporaryFolder();
  const path = folder.file("s");
  chmodSync(folder.path, 0o755);
  using _listener = bindListener(runtime, { family: "unix", path }, { path, mode: 0o600 });
  const command = commandHere(fileURLToPath(new URL("doctor_user.ts", import.meta.url)));
  const limited = ["sh", "-c", 'ulimit -n 64 && exec "$@"', "sh", ...command, String(ordinaryUser), path];
  const { status, stdout, stderr } = await run(limited, { NODE_NO_WARNINGS: "1" });
  assert.equal(status, 0, stderr);
  const { usual, crowded } = JSON.parse(stdout) as Record<string, Diagnosis>;
  assert.deepEqual(checkIn(usual!, "path"), {
    name: "path",
    status: "bad",
    found: "a socket of user 0",
    means: `User ${ordinaryUser} may not connect to it.`,
    advice: "run both processes as one user, or choose another path",
  });
  assert.match(checkIn(usual!, "folder").found, /; EACCES$/);
  assert.equal(checkIn(usual!, "bpf").status, "limited");
  assert.match(checkIn(usual!, "ptrace").found, /without CAP_SYS_PTRACE$/);
  assert.match(
    checkIn(usual!, "descriptors").found,
    /^64 may be open \(hard limit 64\), \d+ are; in flight at most 64$/,
  );
  assert.notEqual(checkIn(usual!, "descriptors").status, "good");
  assert.equal(checkIn(crowded!, "descriptors").status, "bad");
});

const unshare = ["unshare", "--net", "--pid", "--fork"];
const withNamespaces = {
  skip: spawnSync(unshare[0]!, [...unshare.slice(1), "true"]).status === 0 ? false : "unshare is not permitted here",
};

test("doctor finds that it is the first process of a pid namespace, and exits with 1", withNamespaces, async () => {
  const { status, diagnosis } = await printed([...unshare, "--mount-proc", ...commandHere(example), "--json"]);
  assert.match(checkIn(diagnosis, "container").found, /^process 1 in another pid namespace/);
  assert.deepEqual([status, diagnosis.status, checkIn(diagnosis, "container").status], [1, "bad", "bad"]);
});

test(
  "doctor finds that /proc is another namespace's, and that who listens is in another network",
  withNamespaces,
  async () => {
    using folder = new TemporaryFolder();
    const path = folder.file("s");
    using listener = bindListener(runtime, { family: "unix", path }, { path });
    const inside = ["sh", "-c", '"$@"; exit $?', "sh", ...commandHere(example), "--json", path];
    const { diagnosis } = await printed([...unshare, ...inside]);
    assert.match(checkIn(diagnosis, "container").means, /^\/proc calls this process \d+/);
    assert.match(checkIn(diagnosis, "path").found, /another network namespace/);
    assert.equal(accepted(listener), -11, "somebody connected");
  },
);

onDeno("doctor without --allow-ffi says so, and what it cannot look at", async () => {
  const { status, diagnosis } = await printed([...commandHere(example, ["--allow-net"]), "--json", "/tmp/s"]);
  const unmade = [...aboutSystem.slice(3), ...aboutPath].map((name) => checkIn(diagnosis, name).found);
  assert.deepEqual(new Set(unmade), new Set(["cannot be told: libc cannot be called"]));
  assert.deepEqual([status, checkIn(diagnosis, "permissions").status, checkIn(diagnosis, "ffi").status], [
    1,
    "bad",
    "bad",
  ]);
});

onDeno("doctor without --allow-net, or with a part of it, says so", async () => {
  const withOne = async (...permissions: string[]) => {
    const { diagnosis } = await printed([...commandHere(example, permissions), "--json"]);
    return checkIn(diagnosis, "permissions").status;
  };
  assert.equal(await withOne("--allow-ffi"), "bad");
  assert.equal(await withOne("--allow-ffi", "--allow-net=0.0.0.0,127.0.0.0/8"), "limited");
  assert.equal(await withOne("--allow-ffi", "--allow-net"), "good");
});

const withTerminal = { skip: spawnSync("script", ["--version"]).status === 0 ? false : "script(1) is not installed" };

async function promptsForNothing(): Promise<void> {
  const [program, ...rest] = commandHere(example, []);
  const command = [program, ...rest.filter((each) => each !== "--no-prompt")].join(" ");
  const { status, stdout } = await run(["script", "--quiet", "--return", "--command", command, "/dev/null"]);
  assert.doesNotMatch(stdout, /Deno requests|Allow\?/);
  assert.match(stdout, /bad +ffi/);
  assert.equal(status, 1);
}

if (runtime.name === "deno") test("doctor prompts for nothing on a terminal", withTerminal, promptsForNothing);
