/**
 * Sockets taken out of a process that knows nothing of it: a small server in
 * Python, which listens with poll, or with epoll under a number that the test
 * chooses.
 */

import assert from "node:assert/strict";
import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { existsSync, readdirSync, readFileSync, readlinkSync, writeFileSync } from "node:fs";
import net from "node:net";
import { basename } from "node:path";
import process from "node:process";
import { createInterface } from "node:readline";
import { errnoOf } from "../../src/c/errno.ts";
import type { SeizeOptions } from "../../src/foreign/choice.ts";
import { type Seized, seizeFrom } from "../../src/foreign/seize.ts";
import type { Runtime } from "../../src/runtime.ts";
import { isElsewhere } from "../../src/sockets/elsewhere.ts";
import { cookieOf, duplicate, isListening } from "../../src/sockets/socket.ts";
import { commandHere, run, TemporaryFolder } from "../unit/children.ts";
import { ask, patienceMs, queuedCount, runtime, sleep, takeoverError, test, until } from "./support.ts";

/**
 * Listens on two ports and a path, on one of them with two descriptors.
 * Arguments: the path; the number under which the first is in an epoll
 * instance, or 0 for poll; how many workers are forked. Each ends with its parent.
 */
const program = `
import json, os, select, socket, sys, threading
path, number, workers = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
one, two, three = socket.socket(), socket.socket(), socket.socket(socket.AF_UNIX)
for each, address in ((one, ("127.0.0.1", 0)), (two, ("127.0.0.1", 0)), (three, path)):
    each.bind(address)
    each.listen(16)
    each.setblocking(False)
second = one.dup()
if number:
    os.dup2(one.fileno(), number)
    waiting = select.epoll()
    waiting.register(number, select.EPOLLIN)
else:
    waiting = select.poll()
    waiting.register(one, select.POLLIN)
pids, main, parent = [], os.getpid(), os.getppid()
for _ in range(workers):
    pids.append(os.fork())
    if pids[-1] == 0:
        parent = main
        break
if all(pids):
    print(json.dumps({"ports": [each.getsockname()[1] for each in (one, two)], "workers": pids}), flush=True)
def keep(connection):
    connection.recv(1)
    connection.close()
while os.getppid() == parent:
    waiting.poll(0.1 if number else 100)
    try:
        connection = one.accept()[0]
    except BlockingIOError:
        continue
    if b"keep" in connection.recv(1000):
        threading.Thread(target=keep, args=(connection,), daemon=True).start()
    else:
        connection.sendall(b"HTTP/1.1 200 OK\\r\\nConnection: close\\r\\n\\r\\nold")
        connection.close()
`;

/** Waits in accept itself; anything but a connection ends it. */
const blockingProgram = `
import json, signal, socket
signal.alarm(60)
one = socket.socket()
one.bind(("127.0.0.1", 0))
one.listen(16)
print(json.dumps({"ports": [one.getsockname()[1], 0], "workers": []}), flush=True)
while True:
    connection = one.accept()[0]
    connection.recv(1000)
    connection.sendall(b"HTTP/1.1 200 OK\\r\\nConnection: close\\r\\n\\r\\nold")
    connection.close()
`;

/** The other process. */
interface Other {
  readonly pid: number;
  readonly path: string;
  readonly ports: readonly [number, number];
  readonly workers: readonly number[];
  readonly to: net.NetConnectOpts;
  /** The signal that ended it. */
  readonly ended: Promise<string>;
}

/** Runs something beside another process, which is gone afterwards. */
async function beside(
  body: (other: Other) => Promise<void>,
  number = 0,
  workers = 0,
  text = program,
): Promise<void> {
  using folder = new TemporaryFolder();
  const path = folder.file("three.sock");
  const command = ["-c", text, path, String(number), String(workers)];
  const child = spawn("python3", command, { stdio: ["ignore", "pipe", "inherit"] });
  const ended = once(child, "exit").then(([, signal]) => signal as string);
  try {
    const [line] = await once(createInterface({ input: child.stdout }), "line");
    const told = JSON.parse(line);
    await body({ pid: child.pid!, path, to: { host: "127.0.0.1", port: told.ports[0] }, ended, ...told });
  } finally {
    child.kill("SIGKILL");
    await ended;
    child.stdout.destroy();
  }
}

/** The same beside one that waits in accept. */
async function besideBlocking(body: (other: Other) => Promise<void>): Promise<void> {
  await beside(body, 0, 0, blockingProgram);
}

/** Seizes, and gives everything back afterwards. */
async function seizing(
  options: SeizeOptions,
  body: (seized: Seized) => void | Promise<void>,
  on: Runtime = runtime,
): Promise<void> {
  const seized = seizeFrom(on, options);
  try {
    await body(seized);
  } finally {
    seized[Symbol.dispose]();
    for (const { descriptor } of seized.sockets) descriptor[Symbol.dispose]();
  }
}

/** The runtime, and what fills the descriptor table for it: nothing is opened then. */
function crowdable(): { readonly crowded: Runtime; fill(isFull: boolean): void } {
  const SYS_pidfd_getfd = 438;
  const { abi, libc } = runtime;
  let errno = 0;
  const open: typeof libc.open = (...call) => errno || libc.open(...call);
  const syscall: typeof libc.syscall = (...call) => call[0] === SYS_pidfd_getfd && errno || libc.syscall(...call);
  const fill = (isFull: boolean) => void (errno = isFull ? -errnoOf(abi.platform, "EMFILE") : 0);
  return { crowded: { ...runtime, libc: { ...libc, open, syscall } }, fill };
}

const { F_GETFL, O_NONBLOCK } = runtime.abi.constants;

function isNonBlocking(descriptor: number): boolean {
  return (runtime.libc.fcntl(descriptor, F_GETFL, 0) & O_NONBLOCK) !== 0;
}

/** What ends the names of the sockets that were taken. */
function namesOf({ sockets }: Seized): string[] {
  return sockets.map(({ name }) => name);
}

function stateOf(pid: number): string {
  return /^State:\s+(\w)/m.exec(readFileSync(`/proc/${pid}/status`, "utf8"))![1]!;
}

/** Whether a descriptor is in one of a process's epoll instances. */
function isWatched(pid: number, descriptor: number): boolean {
  const folder = `/proc/${pid}/fdinfo`;
  const line = new RegExp(`^tfd: +${descriptor} `, "m");
  return readdirSync(folder).some((name) => line.test(readFileSync(`${folder}/${name}`, "utf8")));
}

/** A connection that the other process has accepted, read from, and keeps. */
async function keptConnection({ pid, to }: Other): Promise<net.Socket> {
  const before = socketCount(pid);
  const socket = net.connect(to);
  socket.on("error", () => {});
  socket.write("keep");
  await until(() => socketCount(pid) > before, "the other to accept");
  return socket;
}

function socketCount(pid: number): number {
  const folder = `/proc/${pid}/fd`;
  return readdirSync(folder).filter((name) => readlinkSync(`${folder}/${name}`).startsWith("socket:")).length;
}

test("seizeFrom copies the listener on a port, and the other process serves on", async () => {
  await beside(async (other) => {
    await seizing({ pid: other.pid, port: other.ports[0] }, async ({ sockets, pid }) => {
      const { name, descriptor, identity } = sockets[0]!;
      const address = { family: "inet", hostname: "127.0.0.1", port: other.ports[0] };
      assert.deepEqual([pid, sockets.length, name], [other.pid, 1, `127.0.0.1:${other.ports[0]}`]);
      const cookie = cookieOf(runtime, descriptor.number);
      assert.deepEqual(identity, { family: "inet", type: "stream", listening: true, address, cookie });
      assert.match(await ask(other.to), /old$/);
      process.kill(other.pid, "SIGKILL");
      await other.ended;
      assert.equal(isListening(runtime, descriptor.number), true, "it lives on without the process");
    });
  });
});

test("seizeFrom copies every listener once, whatever its family, when none is named", async () => {
  await beside(async ({ pid, ports, path }) => {
    await seizing({ pid }, (seized) => {
      assert.deepEqual(namesOf(seized), [`127.0.0.1:${ports[0]}`, `127.0.0.1:${ports[1]}`, path]);
    });
  });
});

test("seizeFrom takes a host, a host with its port, and a Unix path for an address", async () => {
  await beside(async ({ pid, ports, path }) => {
    const both = [`127.0.0.1:${ports[0]}`, `127.0.0.1:${ports[1]}`];
    await seizing({ pid, address: "127.0.0.1" }, (seized) => assert.deepEqual(namesOf(seized), both));
    await seizing({ pid, address: both[1]! }, (seized) => assert.deepEqual(namesOf(seized), [both[1]]));
    await seizing({ pid, address: path }, (seized) => assert.deepEqual(namesOf(seized), [path]));
    await seizing({ pid, address: "127.0.0.1", name: "web" }, (seized) => {
      assert.deepEqual(namesOf(seized), ["web", "web.2"]);
    });
  });
});

test("seizeFrom lists the listeners that there are when the one that is wanted is not", async () => {
  await beside(({ pid, ports, path }) => {
    const listed = `127\\.0\\.0\\.1:${ports[0]}, 127\\.0\\.0\\.1:${ports[1]}, ${path.replaceAll(".", "\\.")}$`;
    const elsewhere = ["127.0.0.2", "/run/x.sock"].map((address) => ({ address }));
    for (const wanted of [{ port: 1 }, ...elsewhere, { address: path, port: ports[0] }]) {
      assert.throws(() => seizeFrom(runtime, { pid, ...wanted }), {
        ...takeoverError("ERR_TAKEOVER_NO_LISTENER"),
        message: new RegExp(listed),
      });
    }
    return Promise.resolve();
  });
});

test("seizeFrom refuses a process that has ended, and one that is not the one that was meant", async () => {
  let pid = 0;
  await beside(async (other) => {
    pid = other.pid;
    const executable = readlinkSync(`/proc/${pid}/exe`);
    let startTime = 0;
    await seizing({ pid, executable }, (seized) => void (startTime = seized.startTime));
    await seizing({ pid, startTime, executable: basename(executable) }, () => {});
    for (const meant of [{ startTime: startTime + 1 }, { executable: "nginx" }, { executable: executable.slice(2) }]) {
      assert.throws(() => seizeFrom(runtime, { pid, ...meant }), takeoverError("ERR_TAKEOVER_PROCESS"));
    }
  });
  assert.throws(() => seizeFrom(runtime, { pid }), takeoverError("ERR_TAKEOVER_PROCESS"));
});

test("seizeFrom refuses this process", () => {
  assert.throws(() => seizeFrom(runtime, { pid: process.pid }), takeoverError("ERR_TAKEOVER_SELF"));
});

test("seizeFrom refuses a worker, and names the process that started it", async () => {
  await beside(({ pid, workers }) => {
    assert.throws(() => seizeFrom(runtime, { pid: workers[0]! }), {
      ...takeoverError("ERR_TAKEOVER_PROCESS"),
      message: new RegExp(`worker of process ${pid},`),
    });
    return Promise.resolve();
  }, 0, 1);
});

test("Seized.sockets refuses those of a server that blocks in accept until it was retired", async () => {
  await besideBlocking(async (other) => {
    await seizing({ pid: other.pid }, async (seized) => {
      assert.throws(() => seized.sockets, {
        ...takeoverError("ERR_TAKEOVER_UNSUPPORTED"),
        message: new RegExp(`^Cannot accept at 127.0.0.1:${other.ports[0]} beside process ${other.pid}: `),
      });
      for (const _ of [1, 2, 3]) assert.match(await ask(other.to), /old$/);
      const { connections } = await seized.retire({ deadlineMs: patienceMs });
      const { number } = seized.sockets[0]!.descriptor;
      assert.deepEqual([connections, isListening(runtime, number), isNonBlocking(number)], [0, true, true]);
    });
  });
});

const isRoot = process.getuid!() === 0;
const hasSetpriv = spawnSync("setpriv", ["--version"]).status === 0;
const withSetpriv = { skip: isRoot && !hasSetpriv && process.env.CI !== "true" ? "setpriv is not installed" : false };

test("seizeFrom says which permission it has not", withSetpriv, async () => {
  const sleeping = ["--reuid=65534", "--clear-groups", "sleep", "60"];
  const other = isRoot ? spawn("setpriv", sleeping, { stdio: "ignore" }) : null;
  const exit = other && once(other, "exit");
  using folder = new TemporaryFolder();
  try {
    const file = folder.file("seize.mjs");
    const mod = new URL("../../mod.ts", import.meta.url).href;
    const text = `import { seize } from "${mod}";
      await seize({ pid: ${other?.pid ?? 1} }).catch(({ code, message }) => console.log(code, message));`;
    writeFileSync(file, text);
    if (other) await until(() => readFileSync(`/proc/${other.pid}/comm`, "utf8") === "sleep\n", "the other to start");
    const without = ["setpriv", "--bounding-set=-sys_ptrace", "--inh-caps=-sys_ptrace"];
    const { stdout, stderr } = await run([...(isRoot ? without : []), ...commandHere(file)]);
    assert.match(stdout, /^ERR_TAKEOVER_PTRACE .*ptrace_scope at 0 \(it is .*CAP_SYS_PTRACE/, stderr);
  } finally {
    other?.kill("SIGKILL");
    await exit;
  }
});

/** No process has that many descriptors by itself, and the tests have room for it. */
const freeNumber = 700;

test("pause keeps a process with epoll from accepting, and resume lets it", async () => {
  await beside(async (other) => {
    await seizing({ pid: other.pid, port: other.ports[0] }, async (seized) => {
      assert.equal(seized.pause(), true);
      assert.equal(seized.pause(), true, "it stays paused");
      const answer = ask(other.to);
      const { number } = seized.sockets[0]!.descriptor;
      await until(() => queuedCount(number) === 1, "the connection to wait");
      seized.resume();
      assert.match(await answer, /old$/);
      seized.pause();
    });
    assert.match(await ask(other.to), /old$/, "disposing resumes");
  }, freeNumber);
});

test("pause changes nothing when the number is in use here, or the process has no epoll", async () => {
  for (const number of [2, 0]) {
    await beside(async (other) => {
      await seizing({ pid: other.pid, port: other.ports[0] }, async (seized) => {
        assert.equal(seized.pause(), false);
        assert.match(await ask(other.to), /old$/);
      });
    }, number);
  }
});

test("retire kills a process without a connection, and its workers", async () => {
  await beside(async (other) => {
    await seizing({ pid: other.pid, port: other.ports[0] }, async (seized) => {
      const [{ identity: { cookie } }] = seized.sockets as [Seized["sockets"][number]];
      assert.equal(isElsewhere(cookie), true);
      const { connections, paused } = await seized.retire();
      assert.equal(isElsewhere(cookie), false);
      assert.deepEqual([connections, paused, await other.ended], [0, false, "SIGKILL"]);
      for (const worker of other.workers) {
        assert.ok(!existsSync(`/proc/${worker}`) || stateOf(worker) === "Z", `worker ${worker}`);
      }
      await assert.rejects(seized.retire(), takeoverError("ERR_TAKEOVER_STATE"));
    });
  }, 0, 2);
});

test("retire waits for a connection until it ends", async () => {
  await beside(async (other) => {
    const socket = await keptConnection(other);
    await seizing({ pid: other.pid, port: other.ports[0] }, async (seized) => {
      let isOver = false;
      const retired = seized.retire({ deadlineMs: patienceMs }).finally(() => isOver = true);
      await sleep(100);
      assert.equal(isOver, false);
      socket.destroy();
      assert.equal((await retired).connections, 0);
      assert.equal(await other.ended, "SIGKILL");
    });
  }, freeNumber);
});

test("retire counts the connections that it cuts at the deadline", async () => {
  await beside(async (other) => {
    const socket = await keptConnection(other);
    await seizing({ pid: other.pid, port: other.ports[0] }, async (seized) => {
      const { connections, ms } = await seized.retire({ deadlineMs: 60 });
      assert.equal(connections, 1);
      assert.ok(ms >= 60);
    });
    socket.destroy();
  });
});

test("retire leaves the process running when it is aborted", async () => {
  await beside(async (other) => {
    const socket = await keptConnection(other);
    await seizing({ pid: other.pid, port: other.ports[0] }, async (seized) => {
      const controller = new AbortController();
      const retired = seized.retire({ deadlineMs: patienceMs, signal: controller.signal });
      await assert.rejects(seized.retire(), takeoverError("ERR_TAKEOVER_STATE"));
      await sleep(50);
      controller.abort(new Error("changed my mind"));
      await assert.rejects(retired, { message: "changed my mind" });
      assert.notEqual(stateOf(other.pid), "T");
      assert.match(await ask(other.to), /old$/);
    });
    socket.destroy();
  }, freeNumber);
});

test("dispose gives a retirement up, and the process, stopped and paused by then, goes on", async () => {
  await beside(async (other) => {
    const socket = await keptConnection(other);
    await seizing({ pid: other.pid, port: other.ports[0] }, async (seized) => {
      // At the deadline it is stopped before the first wait.
      const retired = seized.retire({ deadlineMs: 0 });
      seized[Symbol.dispose]();
      await assert.rejects(retired, takeoverError("ERR_TAKEOVER_STATE"));
      assert.notEqual(stateOf(other.pid), "T");
      assert.equal(isWatched(other.pid, freeNumber), true);
      assert.match(await ask(other.to), /old$/);
      assert.throws(() => seized.pause(), takeoverError("ERR_TAKEOVER_STATE"));
    });
    socket.destroy();
  }, freeNumber);
});

test("retire lets the process go on when no descriptor is free while it is stopped", async () => {
  const { crowded, fill } = crowdable();
  await beside(async (other) => {
    await seizing({ pid: other.pid, port: other.ports[0] }, async (seized) => {
      const retired = seized.retire({ deadlineMs: 0 });
      fill(true);
      await assert.rejects(retired, { name: "SystemError", code: "EMFILE" });
      fill(false);
      await until(() => stateOf(other.pid) !== "T", "the process to go on");
      seized.resume();
      assert.equal(isWatched(other.pid, freeNumber), true);
    }, crowded);
  }, freeNumber);
});

test("resume that finds no free descriptor can be called again", async () => {
  const { crowded, fill } = crowdable();
  await beside(async (other) => {
    await seizing({ pid: other.pid, port: other.ports[0] }, (seized) => {
      assert.equal(seized.pause(), true);
      fill(true);
      assert.throws(() => seized.resume(), { name: "SystemError", code: "EMFILE" });
      fill(false);
      assert.equal(isWatched(other.pid, freeNumber), false);
      seized.resume();
      assert.equal(isWatched(other.pid, freeNumber), true);
    }, crowded);
  }, freeNumber);
});

test("retire sends the signal on which the process ends by itself", async () => {
  await beside(async (other) => {
    await seizing({ pid: other.pid, port: other.ports[0] }, async (seized) => {
      const { connections } = await seized.retire({ drainSignal: "SIGTERM" });
      assert.deepEqual([connections, await other.ended], [0, "SIGTERM"]);
    });
  });
});

test("dispose makes the sockets blocking again that were, unless they were taken", async () => {
  await besideBlocking(async ({ pid }) => {
    let copy = -1;
    const options = { pid, allowBlocking: true };
    await seizing(options, ({ sockets }) => void (copy = duplicate(runtime, sockets[0]!.descriptor.number)));
    assert.equal(isNonBlocking(copy), false);
    await seizing(options, ({ sockets }) => void runtime.libc.close(sockets[0]!.descriptor.take()));
    assert.equal(isNonBlocking(copy), true);
    runtime.libc.close(copy);
  });
});
