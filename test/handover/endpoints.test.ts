/**
 * Every kind of server and of address, handed over between real processes.
 */

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import net from "node:net";
import { join } from "node:path";
import { test } from "node:test";
import { commandFor, root } from "../support/binaries.mjs";
import { get, type Who } from "../support/http.ts";
import { freePort, Scratch } from "../support/relay.ts";
import { type RuntimeName, Server } from "../support/server.ts";

/** A server of a kind on a runtime. */
type Step = readonly [runtime: RuntimeName, kind: string];

/** How a client reaches it: HTTP, TLS, or a line over plain TCP. */
type Ask = () => Promise<Who>;

interface Chain {
  readonly steps: readonly Step[];
  readonly address: object;
  readonly ask: (server: Server) => Promise<Who>;
  readonly env?: Record<string, string>;
}

function command(runtime: RuntimeName): string[] {
  // Deno wants its own permissions for TLS files, Unix paths and what the
  // frameworks read; the library needs none of them.
  const file = join(root, "test/fixtures/endpoints.ts");
  const line = commandFor(runtime, file);
  return runtime === "deno" ? [line[0]!, "run", "--allow-all", file] : line;
}

/** Starts each step after the other; after each, the newest process must answer at the same address. */
async function follow({ steps, address, ask, env = {} }: Chain): Promise<void> {
  using scratch = new Scratch();
  const takeover = join(scratch.path, "takeover.sock");
  const servers: Server[] = [];
  try {
    for (const [index, [runtime, kind]] of steps.entries()) {
      const server = new Server(runtime, "", {
        TAKEOVER: takeover,
        KIND: kind,
        ADDRESS: JSON.stringify(address),
        ...env,
      }, command(runtime));
      servers.push(server);
      const ready = await server.event("ready");
      assert.equal(ready.generation, index + 1);
      assert.equal(ready.addr, servers[0]!.events[0]!.addr, `${runtime} ${kind}: the address stays`);
      for (let times = 0; times < 3; times++) {
        assert.deepEqual(await ask(servers[0]!), { pid: server.pid, runtime, generation: index + 1 }, `${runtime} ${kind}`);
      }
      if (index > 0) await server.event("settled");
      if (index > 0) assert.equal(await servers[index - 1]!.ended, 0, servers[index - 1]!.stderr);
    }
  } finally {
    for (const server of servers) await server[Symbol.asyncDispose]();
  }
}

/** The port that the first process got. */
function portOf(server: Server): number {
  return (server.events[0]!.ports as number[])[0]!;
}

function overHttp(host: string): (server: Server) => Promise<Who> {
  return async (server) => JSON.parse(await get({ host, port: portOf(server), path: "/" }));
}

async function overTcp(server: Server): Promise<Who> {
  return JSON.parse(await readAll(net.connect(portOf(server), "127.0.0.1")));
}

function readAll(socket: net.Socket): Promise<string> {
  return new Promise((resolve, reject) => {
    let text = "";
    socket.setEncoding("utf8").on("data", (chunk) => text += chunk).on("end", () => resolve(text)).on("error", reject);
  });
}

function overPath(path: string): Ask {
  return async () => JSON.parse(await get({ socketPath: path, path: "/" }));
}

const anyPort = { hostname: "127.0.0.1", port: 0 };

test("HTTP servers of each kind follow each other on one port", async () => {
  await follow({
    steps: [
      ["deno", "Deno.serve"], ["bun", "Bun.serve"], ["node", "node:http"], ["deno", "node:http"],
      ["bun", "node:http"], ["deno", "Deno.serve"], ["node", "node:http"], ["bun", "Bun.serve"],
    ],
    address: anyPort,
    ask: overHttp("127.0.0.1"),
  });
});

test("plain TCP servers of each kind follow each other on one port", async () => {
  await follow({
    steps: [
      ["deno", "Deno.listen"], ["bun", "Bun.listen"], ["node", "node:net"], ["deno", "node:net"],
      ["bun", "node:net"], ["deno", "Deno.listen"], ["node", "node:net"], ["bun", "Bun.listen"],
    ],
    address: anyPort,
    ask: overTcp,
  });
});

test("Hono, Express and Fastify follow each other, unchanged", async () => {
  await follow({
    steps: [
      ["deno", "hono"], ["bun", "hono"], ["node", "express"], ["node", "fastify"], ["deno", "express"],
      ["bun", "express listen"], ["deno", "fastify"], ["bun", "fastify"], ["node", "express listen"], ["deno", "hono"],
    ],
    address: anyPort,
    ask: overHttp("127.0.0.1"),
  });
});

test("TLS servers of each kind follow each other on one port", async (context) => {
  using scratch = new Scratch();
  const [key, cert] = ["key.pem", "cert.pem"].map((name) => join(scratch.path, name)) as [string, string];
  try {
    execFileSync("openssl", [
      "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
      "-keyout", key, "-out", cert,
    ], { stdio: "ignore" });
  } catch (error) {
    if (process.env.CI === "true") throw error;
    return context.skip("no openssl to make a certificate with");
  }
  await follow({
    steps: [
      ["deno", "Deno.serve tls"], ["bun", "Bun.serve tls"], ["node", "node:https"], ["deno", "node:https"],
      ["bun", "node:https"], ["deno", "Deno.serve tls"],
    ],
    address: anyPort,
    ask: async (server) => JSON.parse(await get({ host: "127.0.0.1", port: portOf(server), path: "/", tls: true })),
    env: { KEY: readFileSync(key, "utf8"), CERT: readFileSync(cert, "utf8") },
  });
});

test("an IPv6 listener stays IPv6 only", async () => {
  const port = await freePort();
  await follow({
    steps: [["deno", "Deno.serve"], ["bun", "Bun.serve"], ["node", "node:http"], ["deno", "Deno.serve"]],
    address: { hostname: "::", port, ipv6Only: true },
    ask: async (server) => {
      await assert.rejects(overHttp("127.0.0.1")(server), { code: "ECONNREFUSED" });
      return await overHttp("::1")(server);
    },
  });
});

test("a dual-stack listener stays dual-stack", async () => {
  await follow({
    steps: [["bun", "Bun.serve"], ["node", "node:http"], ["deno", "Deno.serve"], ["bun", "Bun.serve"]],
    address: { hostname: "::", port: 0 },
    ask: async (server) => {
      const who = await overHttp("::1")(server);
      assert.deepEqual(await overHttp("127.0.0.1")(server), who);
      return who;
    },
  });
});

test("a Unix path stays through every kind of server, with its mode, and goes with the last", async () => {
  using scratch = new Scratch();
  const path = join(scratch.path, "web.sock");
  await follow({
    steps: [
      ["deno", "Deno.serve"], ["bun", "Bun.serve"], ["node", "node:http"], ["deno", "node:http"],
      ["bun", "node:http"], ["deno", "Deno.serve"],
    ],
    address: { path, mode: 0o620 },
    ask: async () => {
      assert.equal(execFileSync("stat", ["-c", "%a", path], { encoding: "utf8" }).trim(), "620");
      return await overPath(path)();
    },
  });
});

test("300 listeners go over, and one that the successor does not want is served until settled and closed then", async () => {
  using scratch = new Scratch();
  const env = { TAKEOVER: join(scratch.path, "takeover.sock"), ADDRESS: JSON.stringify(anyPort), COUNT: "300", SETTLE_MS: "1500" };
  await using first = new Server("node", "", { ...env, KIND: "node:http" }, command("node"));
  const { ports } = await first.event("ready") as unknown as { ports: number[] };
  await using second = new Server("bun", "", { ...env, KIND: "Bun.serve", SKIP: "endpoint 7" }, command("bun"));
  const ready = await second.event("ready") as unknown as { ports: number[]; inherited: number; readyMs: number };
  assert.equal(ready.inherited, 300);
  assert.deepEqual(ready.ports, ports.filter((_, index) => index !== 7));
  const ask = async (port: number) => JSON.parse(await get({ host: "127.0.0.1", port, path: "/" })).pid;
  assert.equal(await ask(ports[7]!), first.pid, "the unwanted one is served by the incumbent during the lease");
  for (const port of [ports[0]!, ports[252]!, ports[253]!, ports[299]!]) assert.equal(await ask(port), second.pid);
  const settled = await second.event("settled");
  assert.deepEqual(settled.unclaimed, ["endpoint 7"]);
  assert.equal(await first.ended, 0, first.stderr);
  await assert.rejects(ask(ports[7]!), { code: "ECONNREFUSED" });
  await using third = new Server("deno", "", { ...env, KIND: "Deno.serve", SKIP: "endpoint 7" }, command("deno"));
  assert.equal((await third.event("ready")).inherited, 299);
  for (const port of [ports[0]!, ports[254]!, ports[299]!]) assert.equal(await ask(port), third.pid);
});

test("a stale Unix path of an endpoint is bound again after a SIGKILL", async () => {
  using scratch = new Scratch();
  const path = join(scratch.path, "web.sock");
  const env = { TAKEOVER: join(scratch.path, "takeover.sock"), ADDRESS: JSON.stringify({ path }) };
  await using first = new Server("bun", "", { ...env, KIND: "Bun.serve" }, command("bun"));
  await first.event("ready");
  first.signal("SIGKILL");
  await first.ended;
  assert.ok(existsSync(path));
  await using second = new Server("node", "", { ...env, KIND: "node:http" }, command("node"));
  assert.equal((await second.event("ready")).generation, 1);
  assert.equal((await overPath(path)()).pid, second.pid);
});

test("an address that changed is bound anew, and the old one is closed when settled", async () => {
  using scratch = new Scratch();
  const [before, after] = [await freePort(), await freePort()];
  const env = { TAKEOVER: join(scratch.path, "takeover.sock") };
  const address = (port: number) => JSON.stringify({ hostname: "127.0.0.1", port });
  await using first = new Server("deno", "", { ...env, KIND: "Deno.serve", ADDRESS: address(before) }, command("deno"));
  await first.event("ready");
  await using second = new Server("bun", "", { ...env, KIND: "Bun.serve", ADDRESS: address(after) }, command("bun"));
  await second.event("settled");
  assert.equal(await first.ended, 0, first.stderr);
  assert.equal(JSON.parse(await get({ host: "127.0.0.1", port: after, path: "/" })).pid, second.pid);
  await assert.rejects(get({ host: "127.0.0.1", port: before, path: "/" }), { code: "ECONNREFUSED" });
});
