/**
 * What the clients that are there notice of ten reloads: kept connections, busy
 * and idle, and fresh ones, on examples/http.ts of each runtime, on nginx
 * (SIGHUP) and on HAProxy (SIGUSR2 to its master). All answer from memory.
 *
 * @module
 */

import { spawnSync } from "node:child_process";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import type { KeepAliveReport } from "../test/support/keep_alive_load.ts";
import { freePort, startKeepAlive } from "../test/support/relay.ts";
import { type RuntimeName, runtimes, Server, startHttp } from "../test/support/server.ts";
import { type Options, rounded, type Row, Scratch, sleep, type Table } from "./support.ts";

const load = { busyCount: 8, idleCount: 200, idleMs: 1_000, freshPerSecond: 100, isNumbered: false };
const everyMs = 1_000;

/** A server that can be replaced. */
interface Contestant extends AsyncDisposable {
  /** Resolves when the new process serves, and the old one has nothing left that it will give away. */
  reload(): Promise<void>;
}

export async function run({ quick }: Options): Promise<readonly Table[]> {
  const reloadCount = quick ? 2 : 10;
  using scratch = new Scratch();
  const rows: Row[] = [];
  const notes: string[] = [];
  for (const runtime of runtimes) {
    const report = await measure((port) => startChain(runtime, port, scratch), reloadCount);
    rows.push(rowOf(runtime, reloadCount, report));
  }
  for (const [name, start] of Object.entries(others)) {
    if (spawnSync(name, ["-v"]).error) notes.push(`no ${name} here: install it`);
    else rows.push(rowOf(name, reloadCount, await measure((port) => start(port, scratch), reloadCount)));
  }
  return [{
    title: `keep_alive: ${load.busyCount} busy and ${load.idleCount} idle connections, ${load.freshPerSecond} fresh ones ` +
      `a second, ${reloadCount} reloads, one each ${everyMs} ms`,
    rows,
    notes: [
      "failed: requests without an answer; closed: connections that the server ended while no request was on them; " +
      "announced: those whose last answer said so",
      "worst: milliseconds from a request's last byte to its answer",
      "failed and closed are to be 0 where the connections can move",
      ...notes,
    ],
  }];
}

async function measure(start: (port: number) => Promise<Contestant>, reloadCount: number): Promise<KeepAliveReport> {
  const port = await freePort();
  await using contestant = await start(port);
  const client = await startKeepAlive({ port, ...load });
  await sleep(everyMs);
  for (let index = 0; index < reloadCount; index++) {
    const next = sleep(everyMs);
    await contestant.reload();
    await next;
  }
  client.stop();
  return await client.report;
}

function rowOf(server: string, reloads: number, { answered, failures, closings, worstMs }: KeepAliveReport): Row {
  const sum = (entries: readonly [string, number][]) => entries.reduce((total, [, count]) => total + count, 0);
  const isAnnounced = ([how]: [string, number]) => how.endsWith(": announced");
  const ended = Object.entries(closings);
  const worst = (kind: string) => rounded(worstMs[kind] ?? 0, 0);
  return {
    server,
    reloads,
    answered,
    failed: sum(Object.entries(failures)),
    closed: sum(ended.filter((entry) => !isAnnounced(entry))),
    announced: sum(ended.filter(isAnnounced)),
    "worst busy": worst("busy"),
    "worst idle": worst("idle"),
    "worst fresh": worst("fresh"),
  };
}

async function startChain(runtime: RuntimeName, port: number, scratch: Scratch): Promise<Contestant> {
  const env = { PORT: String(port), TAKEOVER: join(scratch.path, `${port}.sock`), SETTLE_MS: "20" };
  const chain = [startHttp(runtime, env)];
  await chain[0]!.event("ready");
  return {
    async reload() {
      const incumbent = chain.at(-1)!;
      chain.push(startHttp(runtime, env));
      await chain.at(-1)!.event("settled");
      if (await incumbent.ended !== 0) throw new Error(`The incumbent failed:\n${incumbent.stderr}`);
    },
    async [Symbol.asyncDispose]() {
      for (const server of chain) await server[Symbol.asyncDispose]();
    },
  };
}

/** Longer than any connection of the client rests, and more requests than it makes. */
const keptSeconds = 250;
const keptRequests = 10_000_000;

/** Nginx has a folder for each, and makes it at the start. */
const temporaryKinds = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];

/** Programs that reload their settings in new processes, by name. */
const others: Readonly<Record<string, (port: number, scratch: Scratch) => Promise<Contestant>>> = {
  nginx(port, { path }) {
    const file = join(path, "nginx.conf");
    writeFileSync(file, `
      daemon off; pid ${path}/nginx.pid; error_log /dev/null; worker_processes 1;
      events { worker_connections 4096; }
      http {
        access_log off; keepalive_timeout ${keptSeconds}s; keepalive_requests ${keptRequests};
        ${temporaryKinds.map((kind) => `${kind}_temp_path ${path}/${kind};`).join(" ")}
        server { listen 127.0.0.1:${port}; location / { return 200 "hello"; } }
      }`);
    return started(["nginx", "-c", file, "-p", path], port, "SIGHUP");
  },
  haproxy(port, { path }) {
    const file = join(path, "haproxy.cfg");
    writeFileSync(file, `global
  maxconn 4096
  stats socket ${path}/haproxy.sock level admin expose-fd listeners
defaults
  mode http
  timeout client ${keptSeconds}s
  timeout connect 5s
  timeout server 5s
  timeout http-keep-alive ${keptSeconds}s
frontend web
  bind 127.0.0.1:${port}
  http-request return status 200 content-type text/plain string hello
`);
    return started(["haproxy", "-Ws", "-f", file], port, "SIGUSR2");
  },
};

/** Starts a program whose main process reloads at a signal. */
async function started(command: readonly string[], port: number, signal: NodeJS.Signals): Promise<Contestant> {
  const server = new Server("node", "", {}, command);
  await accepting(server, port);
  return {
    reload: () => Promise.resolve(server.signal(signal)),
    async [Symbol.asyncDispose]() {
      server.signal("SIGTERM");
      await server.ended;
    },
  };
}

async function accepting(server: Server, port: number): Promise<void> {
  for (let waitedMs = 0; waitedMs < 10_000; waitedMs += 20) {
    const answer = await fetch(`http://127.0.0.1:${port}/`).then((response) => response.text(), () => null);
    if (answer !== null) return;
    await sleep(20);
  }
  throw new Error(`The server does not answer on port ${port}:\n${server.stderr}`);
}
