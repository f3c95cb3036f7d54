import assert from "node:assert/strict";
import test from "node:test";
import { viewOf } from "../../src/c/bytes.ts";
import { errnoOf } from "../../src/c/errno.ts";
import { bindTable, type RawFunction } from "../../src/c/libc.ts";
import { encodeSockaddr } from "../../src/c/sockaddr.ts";
import { inheritedDescriptors } from "../../src/foreign/activation.ts";
import type { Runtime } from "../../src/runtime.ts";
import { fakeRuntime, linux, takeoverError } from "./support.ts";

type Variables = Readonly<Record<string, string>>;

const ownPid = 4_711;
const ownPidfdId = 550_806;
const pidfd = 99;
const forUs = { LISTEN_PID: String(ownPid) };

/** A process that has sockets from 3 to 7, a file at 8, and nothing else. */
class FakeProcess {
  readonly variables: Map<string, string>;
  readonly closed: number[] = [];
  readonly runtime: Runtime;

  constructor(variables: Variables, more: Record<string, RawFunction> = {}) {
    this.variables = new Map(Object.entries(variables));
    this.runtime = fakeRuntime({
      env: (name) => this.variables.get(name),
      unsetEnv: (name) => void this.variables.delete(name),
      libc: bindTable(linux, { ...this.#functions(), ...more }, () => errnoOf("linux", "EBADF")),
    });
  }

  /** What is found, as `source name number`. */
  found(): string[] {
    return inheritedDescriptors(this.runtime).map(({ source, name, descriptor }) =>
      `${source} ${name} ${descriptor.number}`
    );
  }

  #functions(): Record<string, RawFunction> {
    const isSocket = (number: number) => number >= 3 && number <= 7;
    return {
      getpid: () => ownPid,
      close: (number) => this.closed.push(number) - this.closed.length,
      fcntl: (number) => isSocket(number) || number === 8 ? 0 : -1,
      getsockname: (number, name, size) => {
        const bytes = encodeSockaddr(linux, { family: "inet", hostname: "127.0.0.1", port: number });
        name.set(bytes);
        viewOf(size).setUint32(0, bytes.length, true);
        return isSocket(number) ? 0 : -1;
      },
      getsockopt: (_number, _level, _name, value) => value.fill(1, 0, 1) && 0,
    };
  }
}

/** Linux from 6.9 on, where a process has a pidfd with a number of its own. */
const withPidfs: Record<string, RawFunction> = {
  syscall: () => pidfd,
  statx: (_folder, _path, _flags, _mask, status) => {
    viewOf(status).setBigUint64(linux.statx.inode.offset, BigInt(ownPidfdId), true);
    return 0;
  },
};

function found(variables: Variables, more?: Record<string, RawFunction>): string[] {
  return new FakeProcess(variables, more).found();
}

test("inheritedDescriptors gives nothing without a variable", () => {
  assert.deepEqual(found({}), []);
});

test("inheritedDescriptors gives systemd's from 3 on, with their names", () => {
  assert.deepEqual(found({ ...forUs, LISTEN_FDS: "2", LISTEN_FDNAMES: "web:admin" }), [
    "systemd web 3",
    "systemd admin 4",
  ]);
  assert.deepEqual(found({ ...forUs, LISTEN_FDS: "2", LISTEN_FDNAMES: ":" }), ["systemd  3", "systemd  4"]);
  assert.deepEqual(found({ ...forUs, LISTEN_FDS: "1" }), ["systemd  3"]);
  assert.deepEqual(found({ ...forUs, LISTEN_FDS: "0", LISTEN_FDNAMES: "" }), []);
});

test("inheritedDescriptors unsets systemd's variables, for whomever they are", () => {
  for (const LISTEN_PID of [String(ownPid), "1"]) {
    const process = new FakeProcess({
      LISTEN_PID,
      LISTEN_PIDFDID: "1",
      LISTEN_FDS: "1",
      LISTEN_FDNAMES: "web",
      PATH: "/bin",
    });
    process.found();
    assert.deepEqual([...process.variables.keys()], ["PATH"]);
  }
});

test("inheritedDescriptors gives nothing that systemd passed to another process, or to nobody", () => {
  assert.deepEqual(found({ LISTEN_PID: "1", LISTEN_FDS: "1" }), []);
  assert.deepEqual(found({ LISTEN_FDS: "1" }), []);
  assert.deepEqual(found(forUs), []);
});

test("inheritedDescriptors compares LISTEN_PIDFDID with this process's pidfd", () => {
  const [right, wrong] = [String(ownPidfdId), String(ownPidfdId + 1)];
  const passed = ["systemd  3"];
  assert.deepEqual(found({ LISTEN_PIDFDID: right, LISTEN_FDS: "1" }, withPidfs), passed);
  assert.deepEqual(found({ ...forUs, LISTEN_PIDFDID: right, LISTEN_FDS: "1" }, withPidfs), passed);
  assert.deepEqual(found({ LISTEN_PIDFDID: wrong, LISTEN_FDS: "1" }, withPidfs), []);
  assert.deepEqual(found({ ...forUs, LISTEN_PIDFDID: wrong, LISTEN_FDS: "1" }, withPidfs), []);
  assert.deepEqual(found({ LISTEN_PID: "1", LISTEN_PIDFDID: right, LISTEN_FDS: "1" }, withPidfs), []);
});

test("inheritedDescriptors closes the pidfd", () => {
  const process = new FakeProcess({ LISTEN_PIDFDID: "1", LISTEN_FDS: "1" }, withPidfs);
  process.found();
  assert.deepEqual(process.closed, [pidfd]);
});

test("inheritedDescriptors trusts LISTEN_PID where there is no pidfd to compare, and LISTEN_PIDFDID alone not", () => {
  assert.deepEqual(found({ ...forUs, LISTEN_PIDFDID: "1", LISTEN_FDS: "1" }), ["systemd  3"]);
  assert.deepEqual(found({ LISTEN_PIDFDID: String(ownPidfdId), LISTEN_FDS: "1" }), []);
});

test("inheritedDescriptors throws when there are more or fewer names than descriptors", () => {
  for (const LISTEN_FDNAMES of ["web", "web:admin:third", ""]) {
    assert.throws(() => found({ ...forUs, LISTEN_FDS: "2", LISTEN_FDNAMES }), {
      ...takeoverError("ERR_TAKEOVER_DESCRIPTOR"),
      message:
        "Cannot inherit what LISTEN_FDNAMES names: expected 2 names with colons between them, as LISTEN_FDS says, " +
        `got ${JSON.stringify(LISTEN_FDNAMES)}; unset it unless a supervisor set it`,
    });
  }
});

test("inheritedDescriptors throws for a number that is none or out of range", () => {
  for (const LISTEN_FDS of ["", "-1", "two", "1.5", " 1", "0x1", "2147483648"]) {
    assert.throws(() => found({ ...forUs, LISTEN_FDS }), {
      ...takeoverError("ERR_TAKEOVER_RANGE"),
      message: "Cannot inherit what LISTEN_FDS names: expected an integer from 0 to 2147483647, " +
        `got ${JSON.stringify(LISTEN_FDS)}; ` +
        "unset it unless a supervisor set it",
    });
  }
  assert.throws(() => found({ LISTEN_PID: "us", LISTEN_FDS: "1" }), takeoverError("ERR_TAKEOVER_RANGE"));
  assert.throws(() => found({ LISTEN_PIDFDID: "us", LISTEN_FDS: "1" }, withPidfs), takeoverError("ERR_TAKEOVER_RANGE"));
  assert.throws(() => found({ SERVER_STARTER_PORT: "80=2" }), takeoverError("ERR_TAKEOVER_RANGE"));
});

test("inheritedDescriptors throws for more than 4,096 descriptors", () => {
  assert.throws(() => found({ ...forUs, LISTEN_FDS: "4097" }), {
    ...takeoverError("ERR_TAKEOVER_LIMIT"),
    message: "Cannot inherit 4097 descriptors: expected at most 4096",
  });
  assert.throws(() => found({ EINHORN_FD_COUNT: "4097" }), takeoverError("ERR_TAKEOVER_LIMIT"));
  assert.throws(() => found({ NGINX: "3;".repeat(4_097) }), takeoverError("ERR_TAKEOVER_LIMIT"));
});

test("inheritedDescriptors gives Server::Starter's, whatever their addresses look like", () => {
  const SERVER_STARTER_PORT = "127.0.0.1:8080=3;[::1]:8080=4;8081=5;/run/a=b.sock=6";
  assert.deepEqual(found({ SERVER_STARTER_PORT }), [3, 4, 5, 6].map((number) => `Server::Starter  ${number}`));
  assert.deepEqual(found({ SERVER_STARTER_PORT: "" }), []);
});

test("inheritedDescriptors throws for a list that Server::Starter does not write", () => {
  for (const SERVER_STARTER_PORT of ["3", "=3", "80=3;", ";", "80=3;;81=4"]) {
    assert.throws(() => found({ SERVER_STARTER_PORT }), takeoverError("ERR_TAKEOVER_DESCRIPTOR"), SERVER_STARTER_PORT);
  }
});

test("inheritedDescriptors gives einhorn's", () => {
  assert.deepEqual(found({ EINHORN_FD_COUNT: "2", EINHORN_FD_0: "6", EINHORN_FD_1: "5" }), [
    "einhorn  6",
    "einhorn  5",
  ]);
});

test("inheritedDescriptors throws when einhorn's variables are fewer than it says", () => {
  assert.throws(() => found({ EINHORN_FD_COUNT: "2", EINHORN_FD_0: "6" }), {
    ...takeoverError("ERR_TAKEOVER_DESCRIPTOR"),
    message: 'Cannot inherit what EINHORN_FD_COUNT names: expected a variable EINHORN_FD_1 beside it, got "2"; ' +
      "unset it unless a supervisor set it",
  });
});

test("inheritedDescriptors gives nginx's, and throws for a list that does not end as nginx's does", () => {
  assert.deepEqual(found({ NGINX: "6;7;" }), ["nginx  6", "nginx  7"]);
  for (const NGINX of ["6;7", ";", ";6;", "6;;"]) {
    assert.throws(() => found({ NGINX }), takeoverError("ERR_TAKEOVER_DESCRIPTOR"), NGINX);
  }
});

test("inheritedDescriptors leaves a variable NGINX alone that is somebody else's", () => {
  for (const NGINX of ["/usr/sbin/nginx", "1", "", "yes;no"]) {
    const process = new FakeProcess({ NGINX });
    assert.deepEqual(process.found(), []);
    assert.equal(process.variables.get("NGINX"), NGINX);
  }
});

test("inheritedDescriptors goes through the sources in order, and unsets what they used", () => {
  const process = new FakeProcess({
    ...{ NGINX: "6;", EINHORN_FD_0: "5", EINHORN_FD_COUNT: "1", EINHORN_SOCK_PATH: "/run/einhorn.sock" },
    ...{ SERVER_STARTER_PORT: "80=4", LISTEN_FDS: "1", ...forUs, SERVER_STARTER_GENERATION: "7" },
  });
  assert.deepEqual(process.found(), ["systemd  3", "Server::Starter  4", "einhorn  5", "nginx  6"]);
  assert.deepEqual([...process.variables.keys()], ["EINHORN_SOCK_PATH", "SERVER_STARTER_GENERATION"]);
});

test("inheritedDescriptors throws for a descriptor that is named twice", () => {
  assert.throws(() => found({ NGINX: "6;6;" }), {
    ...takeoverError("ERR_TAKEOVER_DESCRIPTOR"),
    message:
      'Cannot inherit what NGINX names: expected every descriptor once, got "6"; unset it unless a supervisor set it',
  });
  assert.throws(() => found({ ...forUs, LISTEN_FDS: "1", NGINX: "3;" }), takeoverError("ERR_TAKEOVER_DESCRIPTOR"));
});

test("inheritedDescriptors throws for a closed descriptor, and closes those before it", () => {
  const process = new FakeProcess({ NGINX: "6;7;1000;" });
  assert.throws(() => process.found(), {
    ...takeoverError("ERR_TAKEOVER_CLOSED"),
    message: "Cannot inherit what NGINX names: expected an open descriptor, got 1000, which is closed; " +
      "unset it unless a supervisor set it",
  });
  assert.deepEqual(process.closed, [6, 7]);
  assert.deepEqual([...process.variables], []);
});

test("inheritedDescriptors throws for a file, unless it comes from systemd", () => {
  assert.throws(() => found({ SERVER_STARTER_PORT: "80=8" }), takeoverError("ERR_TAKEOVER_NOT_SOCKET"));
  const process = new FakeProcess({ ...forUs, LISTEN_FDS: "6" });
  assert.deepEqual(inheritedDescriptors(process.runtime).map(({ identity }) => identity?.address ?? null).slice(-2), [
    { family: "inet", hostname: "127.0.0.1", port: 7 },
    null,
  ]);
});

test("inheritedDescriptors gives what there is once, even if the variables cannot be unset", () => {
  const process = new FakeProcess({ NGINX: "6;" });
  const runtime = { ...process.runtime, unsetEnv() {} };
  assert.equal(inheritedDescriptors(runtime).length, 1);
  assert.deepEqual(inheritedDescriptors(runtime), []);
});
