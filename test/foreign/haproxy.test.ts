/**
 * The real HAProxy under load: replaced by a server on each runtime, and
 * replacing it. First it is shown that a restart loses.
 */

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, test } from "node:test";
import { type ForeignSocket, formatAddress, openRuntime, serveToHaproxy, socketsFromHaproxy } from "../../mod.ts";
import { batchCount } from "../../src/foreign/haproxy_records.ts";
import { disposeAll } from "../../src/sockets/descriptors.ts";
import { bindListener, connectPath } from "../../src/sockets/listener.ts";
import { cookieOf, localAddress } from "../../src/sockets/socket.ts";
import { binaries, commandFor, root } from "../support/binaries.mjs";
import { get, whoServes } from "../support/http.ts";
import type { LoadReport } from "../support/load.ts";
import { freePort, Scratch, sleep, startLoad, summaryOf } from "../support/relay.ts";
import { type RuntimeName, runtimes, Server } from "../support/server.ts";

const { status } = spawnSync("haproxy", ["-v"]);
const skip = status === 0 ? false : "there is no haproxy; install the package haproxy";

const freshPerSecond = 4_000;

/** How long there is load before and after the replacement. */
const servesMs = 700;

/** Far longer than a process takes to end. */
const patienceMs = 20_000;

describe("HAProxy", { skip }, () => {
  test("that ends before a server starts loses requests, and the load client counts them", async () => {
    await using place = await Place.open();
    const haproxy = await place.startHaproxy();
    const report = await underLoad(place, async () => {
      haproxy.signal("SIGUSR1");
      await endOf(haproxy);
      await place.startGiver("node").event("ready");
    });
    assert.ok((report.failures["fresh request: ECONNREFUSED"] ?? 0) > 0);
  });

  test("gives its listeners to a server on each runtime, and nothing is lost", async () => {
    for (const runtime of runtimes) {
      await using place = await Place.open();
      const socketPath = `${place.path}.web`;
      const haproxy = await place.startHaproxy([`unix@${socketPath}`]);
      const report = await underLoad(place, async () => {
        const { names } = await place.startTaker(runtime, haproxy).event("ready");
        assert.deepEqual(new Set(names as string[]), new Set([`127.0.0.1:${place.port}`, socketPath]));
        assert.equal(await endOf(haproxy), 0, haproxy.stderr);
      });
      assertNothingLost(report, "haproxy 1", `${runtime} 2`);
      assert.equal(JSON.parse(await get({ socketPath, path: "/" })).runtime, runtime);
    }
  });

  test("takes the listeners of a server on each runtime, and nothing is lost", async () => {
    for (const runtime of runtimes) {
      await using place = await Place.open();
      const server = place.startGiver(runtime);
      await server.event("ready");
      const report = await underLoad(place, async () => {
        const haproxy = place.launchHaproxy(["-x", place.path, "-sf", String(server.pid)]);
        assert.equal(await endOf(server), 0, server.stderr + haproxy.stderr);
        assert.equal((await server.event("drained")).remaining, 0);
      });
      assertNothingLost(report, `${runtime} 1`, "haproxy 1");
    }
  });

  test("gives names as in its bind lines, of Unix sockets, shards and datagrams too", async () => {
    await using place = await Place.open();
    const unix = `${place.path}.web`;
    const binds = [`unix@${unix}`, "abns@takeover-test", `[::1]:${place.port} shards 2`];
    const logs = `log-forward logs\n  dgram-bind 127.0.0.1:${place.port}\n  log stdout local0\n`;
    await place.startHaproxy(binds, logs);
    const sockets = await socketsFromHaproxy(place.path);
    assert.deepEqual(sockets.map(({ name }) => name).sort(), [
      `127.0.0.1:${place.port}`,
      "@takeover-test",
      `[::1]:${place.port}`,
      `[::1]:${place.port} #2`,
      `udp@127.0.0.1:${place.port}`,
      unix,
    ].sort());
    const distinct = new Set(sockets.map(({ identity }) => identity.cookie));
    assert.equal(distinct.size, sockets.length);
    closeAll(sockets);
  });

  test("gives nothing on a stats socket without expose-fd, and says so", async () => {
    await using place = await Place.open();
    await place.startHaproxy([], `global\n  stats socket ${place.path}.other level admin\n`);
    await assert.rejects(socketsFromHaproxy(`${place.path}.other`), { code: "ERR_TAKEOVER_NO_LISTENER" });
  });

  test("takes three batches and gives the same sockets again, on the same path", async () => {
    const runtime = await openRuntime();
    const anyPort = { family: "inet", hostname: "127.0.0.1", port: 0 } as const;
    const ours = Array.from({ length: batchCount * 2 + 10 }, () => bindListener(runtime, anyPort, anyPort));
    // After these, so that its port is none of theirs.
    await using place = await Place.open();
    let taken = 0;
    const service = await serveToHaproxy(place.path, () => ours.map((descriptor) => ({ descriptor })), {
      onTaken: (count) => taken = count,
    });
    const inode = statSync(place.path).ino;
    const binds = ours.map(({ number }) => formatAddress(localAddress(runtime, number)!));
    const haproxy = place.launchHaproxy(["-x", place.path], binds);
    await until(() => statSync(place.path, { throwIfNoEntry: false })?.ino !== inode, () => haproxy.stderr);
    await until(() => taken === ours.length, () => `${taken} were taken`);
    service.close();
    // It renames its stats socket over ours before it listens on it.
    await until(() => {
      using connection = connectPath(runtime, place.path);
      return connection !== null;
    }, () => haproxy.stderr);
    const theirs = await socketsFromHaproxy(place.path);
    const cookies = new Set(theirs.map(({ identity }) => identity.cookie));
    for (const { number } of ours) assert.ok(cookies.delete(cookieOf(runtime, number)), "it listens on ours");
    assert.equal(cookies.size, 1, "and on one of its own");
    closeAll(theirs);
    disposeAll(ours);
  });
});

/** Somewhere to serve: a port, the path of a stats socket, and the processes there. */
class Place implements AsyncDisposable {
  readonly port: number;
  readonly path: string;
  readonly #scratch = new Scratch();
  readonly #servers: Server[] = [];

  private constructor(port: number) {
    this.port = port;
    this.path = join(this.#scratch.path, "stats.sock");
  }

  static async open(): Promise<Place> {
    return new Place(await freePort());
  }

  /** Starts a server that lets HAProxy take its listener. */
  startGiver(runtime: RuntimeName): Server {
    return this.#start(runtime, "test/fixtures/haproxy.ts");
  }

  /** Starts a server that takes HAProxy's listeners, and tells it to finish. */
  startTaker(runtime: RuntimeName, haproxy: Server): Server {
    return this.#start(runtime, "examples/haproxy.ts", this.path, String(haproxy.pid));
  }

  /** Starts HAProxy and waits until it answers. */
  async startHaproxy(binds: readonly string[] = [], more = ""): Promise<Server> {
    const haproxy = this.launchHaproxy([], binds, more);
    for (;;) {
      try {
        await whoServes(this.port);
        return haproxy;
      } catch (error) {
        if (haproxy.child.exitCode !== null) throw new Error(haproxy.stderr, { cause: error });
        await sleep(20);
      }
    }
  }

  /** Starts HAProxy without waiting for it. */
  launchHaproxy(args: readonly string[], binds: readonly string[] = [], more = ""): Server {
    const file = join(this.#scratch.path, "haproxy.cfg");
    writeFileSync(file, configuration([`127.0.0.1:${this.port}`, ...binds], this.path) + more);
    return this.#keep(new Server("node", "", {}, ["haproxy", "-db", "-f", file, ...args]));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const server of this.#servers) await server[Symbol.asyncDispose]();
    this.#scratch[Symbol.dispose]();
  }

  #start(runtime: RuntimeName, name: string, ...args: string[]): Server {
    const file = join(root, name);
    const env = { STATS: this.path, PORT: String(this.port), TAKEOVER: `${this.path}.takeover` };
    // Deno asks for reading and writing where a Unix path is to be.
    const isDeno = runtime === "deno";
    const command = isDeno ? [binaries.deno, "run", "--allow-all", file, ...args] : commandFor(runtime, file, args);
    return this.#keep(new Server(runtime, file, env, command));
  }

  #keep(server: Server): Server {
    this.#servers.push(server);
    return server;
  }
}

/** A HAProxy that answers by itself, as every server here does. */
function configuration(binds: readonly string[], path: string): string {
  return `
global
  stats socket ${path} expose-fd listeners level admin mode 600
  maxconn 4000
defaults
  mode http
  backlog 4096
  timeout client 20s
  timeout connect 20s
  timeout server 20s
frontend web
  ${binds.map((bind) => `bind ${bind}`).join("\n  ")}
  http-request return status 200 content-type application/json lf-string '{"runtime":"haproxy","generation":1}'
`;
}

/** Its exit status; what does not end is killed, and fails. */
async function endOf(server: Server): Promise<number | string> {
  const timer = setTimeout(() => server.signal("SIGKILL"), patienceMs);
  try {
    return await server.ended;
  } finally {
    clearTimeout(timer);
  }
}

/** What the load client says when one server replaces another meanwhile. */
async function underLoad(place: Place, replace: () => Promise<void>): Promise<LoadReport> {
  const load = startLoad({ port: place.port, freshPerSecond, seconds: 60 });
  try {
    await sleep(servesMs);
    await replace();
    await sleep(servesMs);
  } finally {
    load.stop();
  }
  const report = await load.report;
  console.log(`${Object.keys(report.byServer).join(", then ")}: ${summaryOf(report)}`);
  return report;
}

function closeAll(sockets: readonly ForeignSocket[]): void {
  disposeAll(sockets.map(({ descriptor }) => descriptor));
}

/** Waits until something is so. */
async function until(condition: () => boolean, seen: () => string): Promise<void> {
  const end = Date.now() + patienceMs;
  while (!condition()) {
    if (Date.now() >= end) assert.fail(seen());
    await sleep(10);
  }
}

function assertNothingLost(report: LoadReport, ...servers: string[]): void {
  assert.deepEqual(report.failures, {});
  assert.equal(report.failed, 0);
  assert.deepEqual(Object.keys(report.byServer), servers, "both answered, in that order");
}
