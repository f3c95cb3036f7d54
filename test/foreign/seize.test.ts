/**
 * Servers that never heard of this library are replaced under load, and no
 * request is lost: node:http, Python's http.server, nginx, and one that waits in
 * accept.
 */

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { join } from "node:path";
import process from "node:process";
import { test } from "node:test";
import { seize, takeOver } from "../../mod.ts";
import { binaries, commandFor, root } from "../support/binaries.mjs";
import { assertServes, whoServes } from "../support/http.ts";
import { freePort, Scratch, sleep, startLoad, summaryOf } from "../support/relay.ts";
import { type RuntimeName, Server } from "../support/server.ts";

const freshPerSecond = 1_000;

/** Far longer than any replacement takes: the load is stopped before. */
const loadSeconds = 60;

/** In CI a missing program is a failure: the test then runs, and says so. */
function unless(program: string, ...args: string[]): { skip: string | false } {
  const isMissing = spawnSync(program, args).error !== undefined && process.env.CI !== "true";
  return { skip: isMissing ? `${program} is not installed` : false };
}

const withPython = unless("python3", "--version");
const withNginx = unless("nginx", "-v");

/** Starts the plain server on Node. */
async function startNode(env: Record<string, string>): Promise<Server> {
  const server = new Server("node", "", env, [binaries.node26, join(root, "test/fixtures/plain_http.mjs")]);
  await server.event("ready");
  return server;
}

async function startPython(env: Record<string, string>): Promise<Server> {
  const server = new Server("node", "", env, ["python3", join(root, "test/fixtures/plain_http.py")]);
  await server.event("ready");
  return server;
}

/** A server that does nothing but accept: a thread for each connection, and an end at anything that is none. */
const acceptingProgram = `
import json, os, socket, threading
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind(("127.0.0.1", int(os.environ["PORT"])))
listener.listen(4096)
print(json.dumps({"event": "ready", "pid": os.getpid()}), flush=True)
body = json.dumps({"pid": os.getpid(), "runtime": "python", "generation": 0}).encode()
def serve(connection):
    connection.recv(10000)
    connection.sendall(b"HTTP/1.1 200 OK\\r\\nConnection: close\\r\\nContent-Length: %d\\r\\n\\r\\n" % len(body) + body)
    connection.close()
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
`;

/** nginx with two workers; it says nothing when it listens. */
async function startNginx({ PORT }: { readonly PORT: string }, folder: string): Promise<Server> {
  const file = join(folder, "nginx.conf");
  const folders = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
  writeFileSync(
    file,
    `daemon off; worker_processes 2; pid ${folder}/pid; error_log ${folder}/error.log;
    events { worker_connections 1024; }
    http {
      access_log off;
      ${folders.map((name) => `${name}_temp_path ${folder}/${name};`).join(" ")}
      server { listen 127.0.0.1:${PORT}; location / { return 200 '{"runtime":"nginx","generation":0}'; } }
    }`,
  );
  const server = new Server("node", "", {}, ["nginx", "-p", folder, "-c", file, "-e", `${folder}/error.log`]);
  for (let tries = 200; tries > 0; tries--) {
    const isThere = await whoServes(Number(PORT)).then(() => true, () => false);
    if (isThere) return server;
    await sleep(20);
  }
  throw new Error(`nginx does not answer: ${server.stderr}`);
}

type Start = (env: { readonly PORT: string }, folder: string) => Promise<Server>;

/** Starts the example, which seizes. */
function startSuccessor(runtime: RuntimeName, pid: number, port: number, env: Record<string, string>): Server {
  const command = commandFor(runtime, join(root, "examples/seize.ts"), [String(pid), String(port)]);
  return new Server(runtime, "", env, command);
}

/** Replaces a server under load, by each of the three runtimes in turn. */
async function replacesUnderLoad(start: Start, env: Record<string, string> = {}): Promise<void> {
  for (const runtime of ["deno", "bun", "node"] as const) {
    using scratch = new Scratch();
    const port = await freePort();
    await using old = await start({ PORT: String(port) }, scratch.path);
    const load = startLoad({ port, seconds: loadSeconds, freshPerSecond });
    await sleep(500);
    const TAKEOVER = join(scratch.path, "takeover.sock");
    await using successor = startSuccessor(runtime, old.pid, port, { TAKEOVER, ...env });
    const retired = await successor.event("retired").finally(() => setTimeout(load.stop, 300));
    await old.ended;
    assert.equal((await assertServes(port)).pid, successor.pid);
    const report = await load.report;
    const { ms, rounds, paused } = retired;
    console.log(`${runtime}: retired after ${ms} ms, ${rounds} rounds, paused ${paused}; ${summaryOf(report)}`);
    assert.deepEqual(report.failures, {});
    assert.equal(retired.connections, 0);
    assert.equal(Object.keys(report.byServer).length, 2, "both answered");
  }
}

test("kill-then-start loses requests, and the load client counts them", async () => {
  const port = await freePort();
  await using old = await startNode({ PORT: String(port) });
  const load = startLoad({ port, seconds: loadSeconds, freshPerSecond });
  await sleep(500);
  old.signal("SIGKILL");
  await old.ended;
  await using next = await startNode({ PORT: String(port) });
  await sleep(300);
  load.stop();
  const report = await load.report;
  console.log(summaryOf(report));
  assert.equal((await whoServes(port)).pid, next.pid);
  assert.ok((report.failures["fresh request: ECONNREFUSED"] ?? 0) > 0);
});

test("seize replaces an unmodified Node server, and no request is lost", async () => {
  await replacesUnderLoad(startNode);
});

test("seize replaces an unmodified Python server, which has no epoll, and no request is lost", withPython, async () => {
  await replacesUnderLoad(startPython, { ALLOW_BLOCKING: "1" });
});

test("seize replaces a Python server with forked workers, and no request is lost", withPython, async () => {
  await replacesUnderLoad(({ PORT }) => startPython({ PORT, WORKERS: "2" }), { ALLOW_BLOCKING: "1" });
});

test("seize replaces an unmodified nginx, which drains on SIGQUIT, and no request is lost", withNginx, async () => {
  await replacesUnderLoad(startNginx, { DRAIN_SIGNAL: "SIGQUIT" });
});

test("seize replaces a Node server whose answers take 100 ms, and no request is lost", async () => {
  await replacesUnderLoad(({ PORT }) => startNode({ PORT, SLOW_MS: "100" }));
});

test("seize replaces a server that waits in accept, retired first, and no request is lost", withPython, async () => {
  using scratch = new Scratch();
  const port = await freePort();
  await using old = new Server("node", "", { PORT: String(port) }, ["python3", "-c", acceptingProgram]);
  await old.event("ready");
  const load = startLoad({ port, seconds: loadSeconds, freshPerSecond: 30 });
  await sleep(300);
  const seized = await seize({ pid: old.pid, port, name: "web" });
  await sleep(300);
  const { connections } = await seized.retire();
  const takeover = await takeOver(join(scratch.path, "takeover.sock"), { inherit: seized.sockets, notify: false });
  const body = JSON.stringify({ pid: process.pid, runtime: "node", generation: 1 });
  const server = createServer(takeover.requestListener((_, response) => void response.end(body)));
  try {
    await takeover.listen("web", { port }, (at) => server.listen(at));
    await takeover.ready();
    await sleep(300);
  } finally {
    load.stop();
    await load.report;
    await takeover.close();
    server.close();
  }
  const report = await load.report;
  console.log(summaryOf(report));
  assert.deepEqual(report.failures, {});
  assert.equal(connections, 0);
  assert.equal(await old.ended, "SIGKILL");
  assert.equal(Object.keys(report.byServer).length, 2, "both answered");
});
