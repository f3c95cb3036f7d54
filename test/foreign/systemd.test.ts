/**
 * Servers as systemd runs them: started by systemd-socket-activate with a
 * socket that it listens on, and under a stand-in for the service manager that
 * hears every notification and keeps the descriptor store.
 */

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { describe, test } from "node:test";
import { commandFor, root } from "../support/binaries.mjs";
import { assertServes, get, type Who, whoServes } from "../support/http.ts";
import type { LoadReport } from "../support/load.ts";
import { freePort, Scratch, sleep, startLoad, summaryOf } from "../support/relay.ts";
import { type RuntimeName, runtimes, Server, type ServerEvent, startHttp } from "../support/server.ts";

const patienceMs = 30_000;
const serviceFile = "test/fixtures/service.ts";

/** In CI a missing program is a failure: the test then runs, and says so. */
const isStrict = process.env.CI === "true";
const isThere = (program: string) => isStrict || spawnSync(program, ["--version"]).status === 0;
const withSystemd = {
  skip: isThere("systemd-socket-activate") ? false : "systemd-socket-activate is not installed (Debian: systemd)",
};
const withPython = {
  skip: isThere("python3") ? false : "python3 is not installed: the stand-in for systemd is written in it",
};

const follower: Readonly<Record<RuntimeName, RuntimeName>> = { deno: "bun", bun: "node", node: "deno" };

async function until(condition: () => boolean, what: () => string): Promise<void> {
  const end = Date.now() + patienceMs;
  while (!condition()) {
    if (Date.now() >= end) assert.fail(`waited ${patienceMs} ms for ${what()}`);
    await sleep(5);
  }
}

/** A server that systemd-socket-activate starts when the first connection comes. */
async function activate(
  runtime: RuntimeName,
  file: string,
  listen: string,
  env: Record<string, string>,
): Promise<Server> {
  const settings = Object.keys(env).flatMap((name) => ["-E", name]);
  const service = commandFor(runtime, join(root, file));
  // A path is also a file to Deno.
  if (runtime === "deno" && listen.startsWith("/")) service.splice(2, 0, "--allow-read", "--allow-write");
  const command = ["systemd-socket-activate", "-l", listen, "--fdname=web", ...settings, ...service];
  const server = new Server(runtime, file, env, command);
  await until(
    () => server.stderr.includes("Listening on"),
    () => `systemd-socket-activate to listen: ${server.stderr}`,
  );
  return server;
}

describe("systemd-socket-activate", withSystemd, () => {
  for (const runtime of runtimes) {
    test(`has the connection that started a server on ${runtime} answered, and the server replaced`, async () => {
      using scratch = new Scratch();
      const port = await freePort();
      const env = { TAKEOVER: join(scratch.path, "t.sock"), PORT: String(port), SETTLE_MS: "20", DRAIN_MS: "2000" };
      await using first = await activate(runtime, "examples/http.ts", `127.0.0.1:${port}`, env);
      assert.deepEqual(await assertServes(port), { pid: first.pid, runtime, generation: 1 });
      assert.equal((await first.event("ready")).addr, `127.0.0.1:${port}`);
      await using second = startHttp(follower[runtime], env);
      await second.event("ready");
      assert.deepEqual(await assertServes(port), { pid: second.pid, runtime: follower[runtime], generation: 2 });
      assert.equal(await first.ended, 0, first.stderr);
    });

    test(`keeps the path of a Unix socket after a server on ${runtime} has ended`, async () => {
      using scratch = new Scratch();
      const path = join(scratch.path, "web.sock");
      const env = { TAKEOVER: join(scratch.path, "t.sock"), ADDRESS: JSON.stringify({ path }) };
      await using server = await activate(runtime, serviceFile, path, env);
      assert.equal((JSON.parse(await get({ socketPath: path, path: "/" })) as Who).pid, server.pid);
      const { supervised, addr, left } = await server.event("ready");
      assert.deepEqual({ supervised, addr, left }, { supervised: ["web"], addr: path, left: [] });
      // A later generation knows whose it is, and wherever it wants to be itself.
      const elsewhere = { ...env, ADDRESS: JSON.stringify({ path: join(scratch.path, "other.sock") }) };
      // Not Deno, which wants permissions for the folder of a Unix endpoint.
      await using second = new Server(runtime === "bun" ? "node" : "bun", serviceFile, elsewhere);
      const again = await second.event("ready");
      assert.deepEqual([again.supervised, again.addr, again.generation], [["web"], path, 2]);
      await second.event("settled");
      assert.equal(await server.ended, 0, server.stderr);
      second.signal("SIGTERM");
      assert.equal(await second.ended, 0, second.stderr);
      assert.deepEqual([existsSync(path), existsSync(env.TAKEOVER)], [true, false]);
    });
  }

  test("is not listened to by a successor, which has the incumbent's socket", async () => {
    using scratch = new Scratch();
    const [port, other] = [await freePort(), await freePort()];
    const env = { TAKEOVER: join(scratch.path, "t.sock"), PORT: String(port), SETTLE_MS: "20" };
    await using incumbent = startHttp("node", env);
    await incumbent.event("ready");
    await using successor = await activate("bun", "examples/http.ts", `127.0.0.1:${other}`, env);
    // It is closed by its only owner, so the connection that started it is reset.
    await assert.rejects(whoServes(other), { code: "ECONNRESET" });
    assert.equal((await successor.event("ready")).addr, `127.0.0.1:${port}`);
    assert.equal((await assertServes(port)).pid, successor.pid);
    await assert.rejects(whoServes(other), { code: "ECONNREFUSED" });
  });
});

/** What the stand-in can be told. */
interface ManagerOptions {
  readonly runtime: RuntimeName;
  readonly access?: "main" | "all";
  readonly socket?: string;
  readonly env?: Record<string, string>;
}

/** A service under the stand-in for systemd. */
class Service implements AsyncDisposable {
  readonly port: number;
  readonly manager: Server;
  readonly #scratch: Scratch;
  readonly #env: Record<string, string>;

  private constructor(port: number, scratch: Scratch, { runtime, access = "main", socket, env = {} }: ManagerOptions) {
    this.port = port;
    this.#scratch = scratch;
    this.#env = {
      TAKEOVER: join(scratch.path, "t.sock"),
      ADDRESS: JSON.stringify({ port, hostname: "127.0.0.1" }),
      NOTIFY_SOCKET: socket ?? join(scratch.path, "notify.sock"),
      ...env,
    };
    const settings = JSON.stringify({ socket: this.#env.NOTIFY_SOCKET, access, storeMax: 8 });
    const service = commandFor(runtime, join(root, serviceFile));
    const command = ["python3", "-ESsB", join(root, "test/fixtures/service_manager.py"), settings, ...service];
    this.manager = new Server(runtime, serviceFile, this.#env, command);
  }

  static async open(options: ManagerOptions): Promise<Service> {
    return new Service(await freePort(), new Scratch(), options);
  }

  /** Has the service started, and waits until it serves. */
  async start(): Promise<ServerEvent> {
    const before = this.of("ready").length;
    this.manager.child.stdin!.write("start\n");
    return await this.next("ready", before);
  }

  /** A process that takes over from the service's. */
  successor(runtime: RuntimeName, env: Record<string, string> = {}): Server {
    return new Server(runtime, serviceFile, { ...this.#env, ...env });
  }

  of(name: string): ServerEvent[] {
    return this.manager.events.filter(({ event }) => event === name);
  }

  /** The event of that name that follows that many others. */
  async next(name: string, before: number): Promise<ServerEvent> {
    const what = () =>
      `${name}; seen: ${this.manager.events.map((event) => JSON.stringify(event)).join("\n")}\n${this.manager.stderr}`;
    await until(() => this.of(name).length > before, what);
    return this.of(name)[before]!;
  }

  /** Waits for that many accepted messages, and gives them all: the process as a letter, and the lines. */
  async heard(count: number, letters: Readonly<Record<string, number>>): Promise<string[]> {
    const accepted = () => this.of("notified").filter(({ accepted }) => accepted);
    const named = (text: unknown) => {
      return Object.entries(letters).reduce(
        (line, [letter, pid]) => line.replaceAll(new RegExp(`\\b${pid}\\b`, "g"), letter),
        String(text),
      );
    };
    const said = () =>
      accepted().map(({ pid, lines, descriptors }) => {
        const plain = (lines as string[]).map((line) => line.replace(/(?<=^MONOTONIC_USEC=)\d+$/, "…")).join(" ");
        return `${named(pid)}: ${named(plain)}${descriptors ? ` +${descriptors}` : ""}`;
      });
    await until(
      () => accepted().length >= count,
      () => `${count} messages; heard: ${said().join("\n")}\n${this.manager.stderr}`,
    );
    return said();
  }

  /** The names in the descriptor store. */
  async stored(): Promise<string[]> {
    const before = this.of("store").length;
    this.manager.child.stdin!.write("store\n");
    return (await this.next("store", before)).names as string[];
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.manager[Symbol.asyncDispose]();
    this.#scratch[Symbol.dispose]();
  }
}

/** Connections that were all made while no process was there, and the first after it. */
async function loadWhileDead(service: Service, enough: (report: LoadReport) => boolean): Promise<LoadReport> {
  const before = startLoad({ port: service.port, seconds: 60, freshPerSecond: 300 });
  await sleep(200);
  const { pid } = service.of("ready")[0]!;
  process.kill(pid, "SIGKILL");
  await service.next("died", 0);
  let isEnough = false;
  const after = startLoad(
    { port: service.port, seconds: 60, freshPerSecond: 300 },
    (report) => isEnough ||= enough(report),
  );
  await until(() => isEnough, () => "connections while nobody serves");
  const next = await service.start();
  assert.notEqual(next.pid, pid);
  assert.equal((await assertServes(service.port)).pid, next.pid);
  before.stop();
  after.stop();
  // What the killed process had accepted is lost with it; nobody was left without an answer for ever.
  const { failures } = await before.report;
  for (const kind of Object.keys(failures)) assert.match(kind, /: (ECONNRESET|closed|EPIPE|ECONNREFUSED)$/);
  return await after.report;
}

describe("The service manager", withPython, () => {
  test("sees refusals after SIGKILL of the only process without its store", async () => {
    await using service = await Service.open({ runtime: "node" });
    await service.start();
    const report = await loadWhileDead(service, ({ failed }) => failed > 0);
    assert.ok(report.failures["fresh request: ECONNREFUSED"]! > 0, summaryOf(report));
  });

  for (const runtime of runtimes) {
    test(`gives the sockets in its store to the next process on ${runtime}, and SIGKILL of the only one refuses nobody`, async () => {
      await using service = await Service.open({ runtime, env: { STORE: "1" } });
      const first = await service.start();
      assert.deepEqual(await service.heard(2, { a: first.pid }), [
        "a: FDSTORE=1 FDNAME=web +1",
        "a: MAINPID=a READY=1",
      ]);
      const report = await loadWhileDead(service, () => true);
      console.log(`${runtime}: ${summaryOf(report)}`);
      assert.deepEqual(report.failures, {});
      assert.ok(report.answered > 0);
      const [, second] = service.of("ready");
      assert.deepEqual([second!.supervised, second!.left, second!.generation], [["web"], [], 1]);
      assert.deepEqual(await service.stored(), ["web"]);
      process.kill(second!.pid, "SIGTERM");
      await service.next("died", 1);
      const said = await service.heard(6, { b: second!.pid });
      assert.deepEqual(said.slice(-2), ["b: FDSTOREREMOVE=1 FDNAME=web", "b: STOPPING=1"]);
      assert.deepEqual(await service.stored(), []);
    });

    test(`hears of a hand-over from ${runtime} in order, from the main process alone`, async () => {
      await using service = await Service.open({
        runtime,
        env: { STORE: "1", EXTRA: JSON.stringify({ port: 0, hostname: "127.0.0.1" }) },
      });
      const a = (await service.start()).pid;
      await using next = service.successor(follower[runtime], { EXTRA: "" });
      const b = next.pid;
      await service.next("main", 1);
      const said = await service.heard(6, { a, b });
      // What the successor says itself is heard unless it comes before this.
      assert.deepEqual(said.slice(0, 6), [
        "a: FDSTORE=1 FDNAME=web +1",
        "a: FDSTORE=1 FDNAME=extra +1",
        "a: MAINPID=a READY=1",
        "a: RELOADING=1 MONOTONIC_USEC=…",
        "a: FDSTOREREMOVE=1 FDNAME=extra",
        "a: MAINPID=b READY=1",
      ]);
      assert.deepEqual(service.of("main").map(({ pid }) => pid), [a, b]);
      assert.deepEqual(await service.stored(), ["web"]);
      assert.equal((await assertServes(service.port)).pid, b);
    });
  }

  test("stores what only the successor has, though the incumbent alone could speak until then", async () => {
    await using service = await Service.open({ runtime: "deno", access: "main", env: { STORE: "1" } });
    await service.start();
    await using next = service.successor("node", { EXTRA: JSON.stringify({ port: 0, hostname: "127.0.0.1" }) });
    await service.next("main", 1);
    await next.event("settled");
    let stored: readonly string[] = [];
    for (let tries = 100; tries > 0 && stored.length < 2; tries--, await sleep(20)) stored = await service.stored();
    assert.deepEqual([...stored].sort(), ["extra", "web"]);
  });

  test("stores no listener of a group that a successor does not want, which nobody would serve", async () => {
    await using service = await Service.open({ runtime: "node", env: { STORE: "1", LISTENERS: "4" } });
    await service.start();
    await until(() => service.of("notified").length >= 5, () => "four listeners to be stored");
    assert.deepEqual(await service.stored(), ["web", "web.2", "web.3", "web.4"]);
    await using successor = service.successor("bun", { LISTENERS: "2" });
    const { names } = await successor.event("closed");
    assert.deepEqual(names, ["web.3", "web.4"]);
    assert.deepEqual(await service.stored(), ["web", "web.2"]);
    for (let count = 0; count < 40; count++) assert.equal((await assertServes(service.port)).pid, successor.pid);
  });

  test("hears READY=1 again when the successor is lost before ready, and when it is lost in the lease", async () => {
    await using service = await Service.open({ runtime: "bun", socket: `@takeover-test-${process.pid}` });
    const a = (await service.start()).pid;
    const begun = ["a: MAINPID=a READY=1", "a: RELOADING=1 MONOTONIC_USEC=…", "a: READY=1"];
    // Nothing listens there for it, so it fails in listen, between hello and ready.
    await using early = service.successor("node", { ADDRESS: JSON.stringify({ path: "/nowhere/web.sock" }) });
    assert.notEqual(await early.ended, 0);
    assert.deepEqual(await service.heard(3, { a }), begun);
    await using late = service.successor("deno", { SETTLE_MS: "60000" });
    await late.event("ready");
    late.signal("SIGKILL");
    assert.deepEqual(await service.heard(5, { a }), [...begun, ...begun.slice(1)]);
    assert.equal((await assertServes(service.port)).pid, a);
    assert.deepEqual(service.of("main").map(({ pid }) => pid), [a]);
  });

  test("hears from the successor who is the main process when the incumbent dies in the lease, if all may say so", async () => {
    await using service = await Service.open({ runtime: "node", access: "all" });
    const a = (await service.start()).pid;
    await using next = service.successor("bun", { SETTLE_MS: "60000" });
    await next.event("ready");
    process.kill(a, "SIGKILL");
    await service.next("main", 1);
    const said = await service.heard(3, { a, b: next.pid });
    assert.deepEqual(said, ["a: MAINPID=a READY=1", "a: RELOADING=1 MONOTONIC_USEC=…", "b: MAINPID=b READY=1"]);
    assert.deepEqual(service.of("main").map(({ pid }) => pid), [a, next.pid]);
    assert.equal((await assertServes(service.port)).pid, next.pid);
  });

  test("hears nothing when the application wants it so", async () => {
    await using service = await Service.open({ runtime: "node", env: { NOTIFY: "0" } });
    const { pid } = await service.start();
    process.kill(pid, "SIGTERM");
    await service.next("died", 0);
    assert.deepEqual(service.of("notified"), []);
  });

  test("that is not there keeps no process from serving", async () => {
    using scratch = new Scratch();
    const port = await freePort();
    const env = {
      ADDRESS: JSON.stringify({ port, hostname: "127.0.0.1" }),
      TAKEOVER: join(scratch.path, "t.sock"),
      NOTIFY_SOCKET: join(scratch.path, "missing.sock"),
    };
    await using server = new Server("deno", serviceFile, env);
    assert.equal((await server.event("unheard")).code, "ENOENT");
    assert.equal((await assertServes(port)).pid, server.pid);
  });
});
