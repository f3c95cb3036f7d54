import assert from "node:assert/strict";
import { once } from "node:events";
import { existsSync, mkdirSync, renameSync, unlinkSync, writeFileSync } from "node:fs";
import net from "node:net";
import { attachToGroup } from "../../src/steering/attach.ts";
import { assemble } from "../../src/steering/bpf.ts";
import { everythingTo } from "../../src/steering/programs.ts";
import { bindListener, connectPath } from "../../src/sockets/listener.ts";
import { Conversation } from "../../src/handover/conversation.ts";
import { encodeFrame } from "../../src/handover/frame.ts";
import { randomHex, Succession } from "../../src/handover/successor.ts";
import { readAvailable } from "../../src/sockets/socket.ts";
import { Takeover } from "../../src/handover/takeover.ts";
import { versions } from "../../src/handover/protocol.ts";
import type { ControlStream, Runtime } from "../../src/runtime.ts";
import { defaultLimits } from "../../src/limits.ts";
import type { TcpOpening, UnixOpening } from "../../src/sockets/address.ts";
import { runHere, TemporaryFolder } from "../unit/children.ts";
import { ask, patienceMs, queuedCount, reachable, runtime, sleep, socketPair, takeoverError, test, until } from "./support.ts";

const anyPort = { hostname: "127.0.0.1", port: 0 };

/** A server that says hello to everybody. */
class Greeter {
  readonly server: net.Server = net.createServer((socket) => {
    socket.on("error", () => {});
    socket.resume().end("hello");
  });
  /** The callback of `listen`, which returns when it is let. */
  readonly open = async (at: TcpOpening | UnixOpening): Promise<net.Server> => {
    this.#called();
    await this.#gate;
    return this.server.listen(at as net.ListenOptions);
  };
  /** Resolves when `open` has been called. */
  readonly called: Promise<void>;
  readonly #gate: Promise<void>;
  #called: () => void = () => {};
  /** Lets `open` return. */
  let: () => void = () => {};

  constructor({ isHeld = false } = {}) {
    this.called = new Promise((resolve) => this.#called = resolve);
    this.#gate = isHeld ? new Promise((resolve) => this.let = resolve) : Promise.resolve();
  }

  async close(): Promise<void> {
    if (!this.server.listening) return;
    this.server.close();
    await once(this.server, "close");
  }
}

/** What a test has: a takeover, a server, and what accepted on the control socket. */
interface Scene {
  readonly folder: TemporaryFolder;
  readonly path: string;
  readonly takeover: Takeover;
  readonly greeter: Greeter;
  readonly accepted: readonly ControlStream[];
}

/** Runs something with a first process, and ends it. */
async function scene(use: (scene: Scene) => Promise<void>, { isHeld = false, perMessage = 253 } = {}): Promise<void> {
  using folder = new TemporaryFolder();
  const path = folder.file("control.sock");
  const accepted: ControlStream[] = [];
  const seen: Runtime = {
    ...runtime,
    abi: { ...runtime.abi, descriptorsPerMessage: perMessage },
    adoptListener: (number, accept) => runtime.adoptListener(number, (stream) => accept((accepted.push(stream), stream))),
  };
  const takeover = await Takeover.begin(seen, path, { notify: false });
  const greeter = new Greeter({ isHeld });
  try {
    await use({ folder, path, takeover, greeter, accepted });
  } finally {
    await takeover.close();
    await greeter.close();
  }
}

/** A successor in the same process, under another name. */
function succeed(path: string): Promise<Succession> {
  const connection = connectPath(runtime, path)!;
  return Succession.begin(connection, { runtime, limits: defaultLimits, path, instance: randomHex(), allowUsers: [], require: [] });
}

/** A control connection on which nothing has been said. */
function converse(path: string): Conversation {
  return new Conversation(runtime.adoptStream(connectPath(runtime, path)!.take()), "successor", defaultLimits);
}

function sayHello(conversation: Conversation, token: string = randomHex()): void {
  const pid = runtime.libc.getpid();
  const hello = { type: "hello", versions, token, instance: randomHex(), pid, runtime: "test", room: 1_000, require: [] };
  conversation.send(hello as { type: string });
}

/** Puts a file where a folder was, so that no path in it can be removed, nor asked for. */
function spoil(folder: string): void {
  renameSync(folder, `${folder}.away`);
  writeFileSync(folder, "");
}

async function refuses(port: number): Promise<void> {
  await assert.rejects(ask({ host: "127.0.0.1", port }), { code: "ECONNREFUSED" });
}

function portOf(takeover: Takeover): number {
  return (takeover.addr("web") as { port: number }).port;
}

test("Takeover.close stops accepting when the folder of a path has gone", () =>
  scene(async ({ folder, takeover, greeter }) => {
    mkdirSync(folder.file("web"));
    const unix = new Greeter();
    await takeover.listen("web", anyPort, greeter.open);
    await takeover.listen("unix", { path: folder.file("web/web.sock") }, unix.open);
    await takeover.ready();
    const port = portOf(takeover);
    spoil(folder.file("web"));
    try {
      await takeover.close();
      await refuses(port);
    } finally {
      await unix.close();
    }
  }));

test("Takeover.released resolves when the folder of an unclaimed path has gone", () =>
  scene(async ({ folder, path, takeover, greeter }) => {
    mkdirSync(folder.file("web"));
    await takeover.listen("web", { path: folder.file("web/web.sock") }, greeter.open);
    await takeover.ready();
    const succession = await succeed(path);
    await succession.ready([]);
    spoil(folder.file("web"));
    await succession.settle();
    assert.deepEqual((await takeover.released).unclaimed, ["web"]);
    succession[Symbol.dispose]();
  }));

test("Takeover.released names no endpoint whose server was closed before the offer, and closes none", () =>
  scene(async ({ path, takeover, greeter }) => {
    const gone = new Greeter();
    await takeover.listen("web", anyPort, greeter.open);
    await takeover.listen("gone", anyPort, gone.open);
    await takeover.ready();
    const closed: unknown[] = [];
    takeover.on("closed", ({ names }) => closed.push(names));
    await gone.close();
    const succession = await succeed(path);
    await succession.ready(["web"]);
    await succession.settle();
    assert.deepEqual((await takeover.released).unclaimed, []);
    await takeover.drained();
    assert.deepEqual(closed, []);
    succession[Symbol.dispose]();
  }));

/** Takes away the right to remove a path, ends one takeover and has the other replaced. */
const program = (file: string) => {
  const source = (name: string) => JSON.stringify(new URL(`../../src/${name}`, import.meta.url).href);
  const here = (name: string) => JSON.stringify(new URL(name, import.meta.url).href);
  return `
    import { chmodSync } from "node:fs";
    import net from "node:net";
    import process from "node:process";
    import { connectPath } from ${source("sockets/listener.ts")};
    import { defaultLimits as limits } from ${source("limits.ts")};
    import { randomHex, Succession } from ${source("handover/successor.ts")};
    import { Takeover } from ${source("handover/takeover.ts")};
    import { runtime } from ${here("seam.ts")};
    const folder = ${JSON.stringify(file)};
    const open = (at) => net.createServer().listen(at);
    const refusal = (port) => new Promise((resolve) =>
      net.connect(port, "127.0.0.1").on("connect", () => resolve("accepts")).on("error", ({ code }) => resolve(code)));
    const serve = async (name) => {
      const takeover = await Takeover.begin(runtime, folder + "/" + name + ".control", { notify: false });
      await takeover.listen("web", { hostname: "127.0.0.1", port: 0 }, open);
      await takeover.listen("unix", { path: folder + "/" + name + ".web" }, open);
      await takeover.ready();
      return takeover;
    };
    const [closed, replaced] = [await serve("closed"), await serve("replaced")];
    const path = folder + "/replaced.control";
    const wishes = { runtime, limits, path, instance: randomHex(), allowUsers: [], require: [] };
    const succession = await Succession.begin(connectPath(runtime, path), wishes);
    const { port } = closed.addr("web");
    chmodSync(folder, 0o555);
    // setresuid(2) of this thread only, which is the one that calls libc.
    const user = runtime.libc.geteuid() || 65534;
    runtime.libc.syscall(process.arch === "arm64" ? 147 : 117, user, user, user, 0);
    const unlinked = runtime.libc.unlink(new TextEncoder().encode(folder + "/closed.web\\0"));
    await succession.ready([]);
    await succession.settle();
    const { unclaimed } = await replaced.released;
    await closed.close();
    console.log(JSON.stringify({ unlinked, unclaimed, answer: await refusal(port) }));
    process.exit(0);`;
};

test("Takeover.close and Takeover.released do without the permission to remove a path", async () => {
  using folder = new TemporaryFolder();
  const { status, stdout, stderr } = await runHere(program(folder.path));
  assert.equal(status, 0, stderr);
  assert.deepEqual(JSON.parse(stdout), { unlinked: -13, unclaimed: ["web", "unix"], answer: "ECONNREFUSED" });
});

test("Takeover.close leaves paths that others have bound meanwhile", () =>
  scene(async ({ folder, path, takeover, greeter }) => {
    const web = folder.file("web.sock");
    await takeover.listen("web", { path: web }, greeter.open);
    await takeover.ready();
    const others: net.Server[] = [];
    for (const each of [path, web]) {
      unlinkSync(each);
      others.push(net.createServer().listen(each));
      await once(others.at(-1)!, "listening");
    }
    await takeover.close();
    assert.deepEqual([path, web].map((each) => existsSync(each)), [true, true]);
    for (const other of others) await new Promise((resolve) => other.close(resolve));
  }));

test("Takeover.close removes the paths of a chain's last process", () =>
  scene(async ({ folder, path, takeover, greeter }) => {
    const web = folder.file("web.sock");
    await takeover.listen("web", { path: web }, greeter.open);
    await takeover.ready();
    await takeover.close();
    assert.deepEqual([path, web].map((each) => existsSync(each)), [false, false]);
  }));

test("Takeover.listen refuses a server that opens after close, and removes its path", () =>
  scene(async ({ folder, takeover, greeter }) => {
    const path = folder.file("web.sock");
    await takeover.ready();
    const listening = takeover.listen("web", { path }, greeter.open);
    await greeter.called;
    assert.ok(existsSync(path));
    await takeover.close();
    greeter.let();
    await assert.rejects(listening, takeoverError("ERR_TAKEOVER_STATE"));
    assert.equal(existsSync(path), false);
  }, { isHeld: true }));

test("Takeover.listen binds nothing when it is closed while the name is looked up", () =>
  scene(async ({ folder, takeover, greeter }) => {
    const path = folder.file("web.sock");
    const listening = takeover.listen("web", { path }, greeter.open);
    await takeover.close();
    await assert.rejects(listening, takeoverError("ERR_TAKEOVER_STATE"));
    assert.equal(existsSync(path), false);
  }));

test("Takeover.listen refuses a server that opens after release", () =>
  scene(async ({ path, takeover, greeter }) => {
    await takeover.ready();
    const listening = takeover.listen("web", anyPort, greeter.open);
    await greeter.called;
    const succession = await succeed(path);
    await succession.ready([]);
    await succession.settle();
    await takeover.released;
    succession[Symbol.dispose]();
    greeter.let();
    await assert.rejects(listening, takeoverError("ERR_TAKEOVER_STATE"));
    assert.throws(() => takeover.addr("web"), takeoverError("ERR_TAKEOVER_UNKNOWN_NAME"));
  }, { isHeld: true }));

test("Takeover.listen accepts nothing during a lease, and after the successor is lost", () =>
  scene(async ({ path, takeover, greeter }) => {
    await takeover.ready();
    const listening = takeover.listen("web", anyPort, greeter.open);
    await greeter.called;
    const succession = await succeed(path);
    await succession.ready([]);
    greeter.let();
    const server = await listening;
    const client = net.connect(reachable(takeover.addr("web")));
    await once(client, "connect");
    await sleep(30);
    const { descriptor } = runtime.inspect(server)!;
    const resumed = new Promise((resolve) => takeover.on("resumed", resolve));
    try {
      if (descriptor >= 0) assert.equal(queuedCount(descriptor), 1);
    } finally {
      succession.abort(new Error("enough"));
      await resumed;
    }
    const [greeting] = await once(client, "data");
    assert.equal(String(greeting), "hello");
    client.destroy();
  }, { isHeld: true }));

test("Takeover.listen refuses a name whose server is being opened", () =>
  scene(async ({ takeover, greeter }) => {
    const listening = takeover.listen("web", anyPort, greeter.open);
    await greeter.called;
    await assert.rejects(takeover.listen("web", anyPort, greeter.open), takeoverError("ERR_TAKEOVER_STATE"));
    greeter.let();
    await listening;
  }, { isHeld: true }));

test("Takeover.listenGroup goes on where a server failed to open, for the same group alone", () =>
  scene(async ({ takeover, greeter }) => {
    const others = [new Greeter(), new Greeter()];
    const group = { ...anyPort, count: 3 };
    let failureCount = 0;
    const indexes: number[] = [];
    const open = (at: TcpOpening, index: number) => {
      indexes.push(index);
      if (index === 1 && failureCount++ === 0) throw new RangeError("no server today");
      return [greeter, ...others][index]!.open(at);
    };
    try {
      await assert.rejects(takeover.listenGroup("web", group, open), { name: "RangeError" });
      const port = portOf(takeover);
      const other = { ...takeoverError("ERR_TAKEOVER_STATE"), message: /expected 3 times at the same address/ };
      await assert.rejects(takeover.listenGroup("web", { ...group, count: 2 }, open), other);
      await assert.rejects(takeover.listenGroup("web", { ...group, hostname: "127.0.0.2" }, open), other);
      const natives = await takeover.listenGroup("web", group, open);
      assert.deepEqual(natives, [greeter, ...others].map(({ server }) => server));
      assert.deepEqual(indexes, [0, 1, 1, 2]);
      assert.deepEqual(["web.2", "web.3"].map((name) => (takeover.addr(name) as { port: number }).port), [port, port]);
      await assert.rejects(takeover.listenGroup("web", group, open), takeoverError("ERR_TAKEOVER_STATE"));
      await takeover.ready();
      assert.match(await ask({ host: "127.0.0.1", port }), /hello/);
    } finally {
      for (const each of others) await each.close();
    }
  }));

test("Takeover.listenGroup refuses a name whose group is being opened", () =>
  scene(async ({ takeover, greeter }) => {
    const opened = takeover.listenGroup("web", { ...anyPort, count: 1 }, greeter.open);
    const again = takeover.listenGroup("web", { ...anyPort, count: 1 }, new Greeter().open);
    await assert.rejects(again, takeoverError("ERR_TAKEOVER_STATE"));
    assert.deepEqual(await opened, [greeter.server]);
  }));

/** Whether a group has a program, which is taken away. */
function tookProgram(descriptor: number): boolean {
  const SO_DETACH_REUSEPORT_BPF = 68;
  const { abi: { constants }, libc } = runtime;
  return libc.setsockopt(descriptor, constants.SOL_SOCKET, SO_DETACH_REUSEPORT_BPF, new Uint8Array(4), 4) === 0;
}

test("Takeover leaves a group's program alone when a stranger connects, and takes it away when a successor is lost", () =>
  scene(async ({ path, takeover, greeter }) => {
    const other = new Greeter();
    const servers = [greeter, other];
    await takeover.listenGroup("web", { ...anyPort, count: 2 }, (at, index) => servers[index]!.open(at));
    await takeover.ready();
    try {
      const abandoned = () => new Promise((resolve) => takeover.on("abandoned", resolve));
      using member = bindListener(runtime, takeover.addr("web"), { port: 0, reusePort: true });
      attachToGroup(runtime, member.number, assemble(everythingTo(1)));
      const [stranger, gone] = [connectPath(runtime, path)!, abandoned()];
      assert.equal(runtime.libc.write(stranger.number, new Uint8Array(8), 8), 8);
      stranger[Symbol.dispose]();
      await gone;
      assert.equal(tookProgram(member.number), true);
      const succession = await succeed(path);
      attachToGroup(runtime, member.number, assemble(everythingTo(1)));
      const lost = abandoned();
      succession.abort(new Error("enough"));
      await lost;
      assert.equal(tookProgram(member.number), false);
    } finally {
      await takeover.close();
      await other.close();
    }
  }));

test("Takeover.displace does without a server of its group that has been closed, and refuses without any", () =>
  scene(async ({ takeover, greeter }) => {
    const other = new Greeter();
    const servers = [greeter, other];
    try {
      await takeover.listenGroup("web", { ...anyPort, count: 2 }, (at, index) => servers[index]!.open(at));
      await takeover.ready();
      await greeter.close();
      const stranger = bindListener(runtime, takeover.addr("web"), { port: 0, reusePort: true });
      const { otherCount } = await takeover.displace("web", () => stranger[Symbol.dispose]());
      assert.equal(otherCount, 1);
      await other.close();
      const gone = { ...takeoverError("ERR_TAKEOVER_STATE"), message: /the application has closed all/ };
      await assert.rejects(takeover.displace("web", () => {}), gone);
    } finally {
      await takeover.close();
      await other.close();
    }
  }));

test("Takeover.ready refuses a second call while the first is on its way", () =>
  scene(async ({ path, takeover }) => {
    const first = takeover.ready();
    await assert.rejects(takeover.ready(), takeoverError("ERR_TAKEOVER_STATE"));
    await first;
    const succession = await succeed(path);
    succession.abort(new Error("enough"));
  }));

test("Takeover.ready rejects when it is closed meanwhile", () =>
  scene(async ({ path, takeover }) => {
    const ready = takeover.ready();
    await takeover.close();
    await assert.rejects(ready, takeoverError("ERR_TAKEOVER_STATE"));
    await assert.rejects(takeover.settle(), takeoverError("ERR_TAKEOVER_STATE"));
    assert.equal(existsSync(path), false);
  }));

test("Takeover.ready closes the control socket when it is closed while that is opened", async () => {
  using folder = new TemporaryFolder();
  const path = folder.file("control.sock");
  const closing: Runtime = {
    ...runtime,
    adoptListener: async (number, accept) => {
      const listener = await runtime.adoptListener(number, accept);
      await takeover.close();
      return listener;
    },
  };
  const takeover = await Takeover.begin(closing, path, { notify: false });
  await assert.rejects(takeover.ready(), takeoverError("ERR_TAKEOVER_STATE"));
  assert.equal(existsSync(path), false);
});

test("Incumbent ends a connection that says hello after close", () =>
  scene(async ({ path, takeover, accepted }) => {
    await takeover.ready();
    const conversation = converse(path);
    await until(() => accepted.length === 1, "the connection to be accepted");
    await takeover.close();
    sayHello(conversation);
    await assert.rejects(conversation.receive(patienceMs, "offerMs"), takeoverError("ERR_TAKEOVER_LOST"));
  }));

test("Incumbent ends a connection that says hello after release", () =>
  scene(async ({ path, takeover, accepted }) => {
    await takeover.ready();
    const conversation = converse(path);
    await until(() => accepted.length === 1, "the connection to be accepted");
    const succession = await succeed(path);
    await succession.ready([]);
    await succession.settle();
    await takeover.released;
    succession[Symbol.dispose]();
    sayHello(conversation);
    await assert.rejects(conversation.receive(patienceMs, "offerMs"), takeoverError("ERR_TAKEOVER_LOST"));
  }));

test("Incumbent sends no batch to another socket under the number of a connection that has ended", () =>
  scene(async ({ path, takeover, greeter, accepted }) => {
    const { abi, libc } = runtime;
    await takeover.listen("web", anyPort, greeter.open);
    await takeover.ready();
    const conversation = converse(path);
    const token = randomHex();
    sayHello(conversation, token);
    await conversation.receive(patienceMs, "offerMs");
    const second = connectPath(runtime, path)!;
    const join = encodeFrame({ type: "join", token } as { type: string }) as Uint8Array<ArrayBuffer>;
    assert.equal(libc.write(second.number, join, join.length), join.length);
    await conversation.receive(patienceMs, "batchMs");
    const { descriptor } = accepted[1]!;
    second[Symbol.dispose]();
    await until(() => libc.fcntl(descriptor, abi.constants.F_GETFD, 0) < 0, "the connection to be closed");
    const [near, far] = socketPair();
    const other = libc.fcntl(near.number, abi.constants.F_DUPFD_CLOEXEC, descriptor);
    try {
      assert.ok([near.number, far.number, other].includes(descriptor), "the number was not free");
      conversation.send({ type: "received", number: 0, count: 1 } as { type: string });
      await assert.rejects(conversation.receive(patienceMs, "batchMs"));
      assert.deepEqual([near, far].map(({ number }) => readAvailable(runtime, number).length), [0, 0]);
    } finally {
      if (other >= 0) libc.close(other);
      near[Symbol.dispose]();
      far[Symbol.dispose]();
      conversation.destroy();
    }
  }, { perMessage: 1 }));
