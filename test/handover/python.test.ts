/**
 * An implementation of the protocol that shares no line with the library, in
 * the chain of generations on both sides of every runtime.
 */

import assert from "node:assert/strict";
import { once } from "node:events";
import { connect, type Socket } from "node:net";
import { describe, test } from "node:test";
import { runtimes, Server, startHttp } from "../support/server.ts";
import { endOf, get, onEvery, portOf, Scratch, skipReason, startPeer, until } from "./hostile_peers.ts";

/** The servers that take over from each other, in this order. */
const chain = ["deno", "python", "bun", "python", "node"] as const;

/** Longer than any of these tests: a lease does not end by itself. */
const never = "600000";

describe("A peer in Python", { skip: skipReason }, () => {
  test("takes over from every runtime, and is taken over from", async () => {
    await using scratch = await Scratch.make();
    const env = { TAKEOVER: scratch.path, PORT: "0", SETTLE_MS: "100", DRAIN_MS: "10000" };
    await using stack = new AsyncDisposableStack();
    let incumbent: Server | null = null;
    for (const [index, runtime] of chain.entries()) {
      const server: Server = stack.use(runtime === "python" ? startPeer(env) : startHttp(runtime, env));
      const ready = await server.event("ready");
      assert.deepEqual([ready.generation, ready.inherited], [index + 1, index > 0]);
      env.PORT = String(portOf(ready));
      assert.deepEqual(await get(portOf(ready)), { runtime, generation: index + 1, pid: server.pid });
      await assertReplaced(incumbent, server);
      assert.deepEqual(await get(portOf(ready)), { runtime, generation: index + 1, pid: server.pid });
      incumbent = server;
    }
  });

  test("that is killed in the lease leaves an incumbent that serves again", () =>
    onEvery(runtimes, async (runtime) => {
      await using scratch = await Scratch.make();
      const env = { TAKEOVER: scratch.path, PORT: "0", SETTLE_MS: "100" };
      await using incumbent = startHttp(runtime, env);
      const port = portOf(await incumbent.event("ready"));
      await using killed = startPeer({ ...env, PORT: String(port), SETTLE_MS: never });
      await killed.event("ready");
      killed.signal("SIGKILL");
      assert.equal((await incumbent.event("resumed")).code, "ERR_TAKEOVER_LOST");
      assert.equal((await get(port)).pid, incumbent.pid);
      await using next = startPeer({ ...env, PORT: String(port) });
      assert.equal((await next.event("ready")).generation, 2);
      await assertReplaced(incumbent, next);
    }));

  test("serves again when the successor in its lease is killed", () =>
    onEvery(runtimes, async (runtime) => {
      await using scratch = await Scratch.make();
      const env = { TAKEOVER: scratch.path, PORT: "0", SETTLE_MS: "100" };
      await using incumbent = startPeer(env);
      const port = portOf(await incumbent.event("ready"));
      await using killed = startHttp(runtime, { ...env, PORT: String(port), SETTLE_MS: never });
      await killed.event("ready");
      killed.signal("SIGKILL");
      assert.equal((await incumbent.event("resumed")).code, "ERR_TAKEOVER_LOST");
      assert.equal((await get(port)).pid, incumbent.pid);
      await using next = startHttp(runtime, { ...env, PORT: String(port) });
      assert.equal((await next.event("ready")).generation, 2);
      await assertReplaced(incumbent, next);
    }));

  test("that is stopped in the lease finds it revoked", () =>
    onEvery(runtimes, async (runtime) => {
      await using scratch = await Scratch.make();
      const env = { TAKEOVER: scratch.path, PORT: "0" };
      await using incumbent = startHttp(runtime, env);
      const port = portOf(await incumbent.event("ready"));
      await using stopped = startPeer({ ...env, PORT: String(port), SETTLE_MS: never });
      await stopped.event("ready");
      stopped.signal("SIGSTOP");
      assert.equal((await incumbent.event("resumed")).code, "ERR_TAKEOVER_REVOKED");
      assert.equal((await get(port)).pid, incumbent.pid);
      stopped.signal("SIGCONT");
      assert.equal((await stopped.event("refused")).code, "ERR_TAKEOVER_REVOKED");
      assert.equal(await endOf(stopped), 1);
      assert.equal((await get(port)).pid, incumbent.pid);
    }));
});

/** How many connections go from process to process. */
const connectionCount = 1_000;

describe("Connections of a peer in Python", { skip: skipReason }, () => {
  test("move to every runtime and back, each with its count and the half of a line", () =>
    onEvery(runtimes, async (runtime) => {
      await using scratch = await Scratch.make();
      const env = { TAKEOVER: scratch.path, PORT: "0", SETTLE_MS: "100", DRAIN_MS: "20000", ECHO: "1" };
      await using stack = new AsyncDisposableStack();
      let incumbent: Server | null = null;
      const next = async (server: Server): Promise<Server> => {
        env.PORT = String(portOf(await stack.use(server).event("ready")));
        if (incumbent) await assertMoved(incumbent);
        return incumbent = server;
      };
      const first = await next(startPeer(env));
      using clients = await Clients.connect(Number(env.PORT), connectionCount);
      clients.send("one\nha");
      await clients.hear(`1 ${first.pid} 1\n`);
      // The half goes through two processes, and nobody but them has it.
      await next(new Server(runtime, "examples/echo.ts", env));
      const third = await next(startPeer(env));
      assert.deepEqual(await count(third), [connectionCount, "ha".length * connectionCount]);
      clients.send("lf\nha");
      await clients.hear(`2 ${third.pid} 3\n`);
      const fourth = await next(new Server(runtime, "examples/echo.ts", env));
      clients.send("lf\n");
      await clients.hear(`3 ${fourth.pid} 4\n`);
    }));
});

/** All of its connections have gone, and it has ended well. */
async function assertMoved(incumbent: Server): Promise<void> {
  const { moved, remaining } = await incumbent.event("drained");
  assert.deepEqual([moved, remaining], [connectionCount, 0]);
  assert.equal(await endOf(incumbent), 0, incumbent.stderr);
}

/** How many connections have come to a peer, and how many bytes to be read again. */
async function count(peer: Server): Promise<unknown[]> {
  const { count, unreadSize } = await peer.event("arrived");
  return [count, unreadSize];
}

/** Connections that say the same. */
class Clients implements Disposable {
  readonly #sockets: readonly Socket[];
  readonly #heard: string[];
  #endCount = 0;

  private constructor(sockets: readonly Socket[]) {
    this.#sockets = sockets;
    this.#heard = sockets.map(() => "");
    for (const [index, socket] of sockets.entries()) {
      socket.on("data", (bytes) => this.#heard[index] += String(bytes));
      socket.on("close", () => this.#endCount++);
      socket.on("error", () => {});
    }
  }

  /** A hundred at a time: an accept queue has an end. */
  static async connect(port: number, count: number): Promise<Clients> {
    const sockets: Socket[] = [];
    while (sockets.length < count) {
      const more = Array.from({ length: Math.min(100, count - sockets.length) }, () => connect(port, "127.0.0.1"));
      await Promise.all(more.map((socket) => once(socket, "connect")));
      sockets.push(...more);
    }
    return new Clients(sockets);
  }

  send(text: string): void {
    for (const socket of this.#sockets) socket.write(text);
  }

  /** Each hears exactly that since the last time, and none ends. */
  async hear(text: string): Promise<void> {
    await until(() => Promise.resolve(this.#heard.every((heard) => heard.length >= text.length)), (found) => found);
    assert.deepEqual([...new Set(this.#heard)], [text]);
    assert.equal(this.#endCount, 0);
    this.#heard.fill("");
  }

  [Symbol.dispose](): void {
    for (const socket of this.#sockets) socket.destroy();
  }
}

/** The incumbent has settled, drained, and ended well. */
async function assertReplaced(incumbent: Server | null, successor: Server): Promise<void> {
  if (incumbent === null) return;
  await successor.event("settled");
  assert.equal(await endOf(incumbent), 0, incumbent.stderr);
  assert.ok(incumbent.events.some(({ event, role }) => event === "settled" && role === "incumbent"));
}
