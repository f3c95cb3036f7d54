/**
 * A chain of servers on one port, each replacing the one before, and the load
 * that runs against it meanwhile.
 *
 * @module
 */

import { spawn } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { binaries, root } from "./binaries.mjs";
import type { DatagramPlan, DatagramReport } from "./datagram_load.ts";
import type { KeepAlivePlan, KeepAliveReport } from "./keep_alive_load.ts";
import type { LinePlan, LineReport } from "./line_load.ts";
import type { LoadPlan, LoadReport } from "./load.ts";
import { type RuntimeName, Server } from "./server.ts";

/** A folder that is removed at the end. */
export class Scratch implements Disposable {
  readonly path: string = mkdtempSync(join(tmpdir(), "socket-takeover-"));

  [Symbol.dispose](): void {
    rmSync(this.path, { recursive: true, force: true });
  }
}

/** Below those that the kernel gives to clients (net.ipv4.ip_local_port_range): one of them could have it a moment later. */
const [firstPort, portCount] = [10_000, 20_000];
const givenPorts = new Set<number>();

/** A TCP port that is free now, and that nobody is given by chance. */
export async function freePort(): Promise<number> {
  for (;;) {
    const port = firstPort + Math.floor(Math.random() * portCount);
    if (givenPorts.has(port)) continue;
    givenPorts.add(port);
    if (await isFree(port)) return port;
  }
}

async function isFree(port: number): Promise<boolean> {
  const server = createServer();
  const isBound = await new Promise<boolean>((resolve) => {
    server.once("error", () => resolve(false));
    server.listen(port, "127.0.0.1", () => resolve(true));
  });
  if (isBound) await new Promise((resolve) => server.close(resolve));
  return isBound;
}

/** Servers that follow each other on one port and one control socket. */
export class Relay implements AsyncDisposable {
  readonly port: number;
  readonly path: string;
  readonly servers: Server[] = [];
  readonly #scratch = new Scratch();
  readonly #env: Record<string, string>;
  readonly #file: string;

  private constructor(port: number, env: Record<string, string>, file: string) {
    this.port = port;
    this.#file = file;
    this.path = join(this.#scratch.path, "takeover.sock");
    this.#env = { PORT: String(port), TAKEOVER: this.path, ...env };
  }

  /**
   * @param env What the servers get besides PORT and TAKEOVER.
   * @param file The server.
   */
  static async open(env: Record<string, string> = {}, file = "examples/http.ts"): Promise<Relay> {
    return new Relay(await freePort(), env, file);
  }

  /** The server that serves now. */
  get current(): Server {
    return this.servers.at(-1)!;
  }

  /**
   * Starts a server without waiting for it.
   *
   * @param command Another one than the file's own.
   */
  start(runtime: RuntimeName, env: Record<string, string> = {}, command?: readonly string[]): Server {
    return new Server(runtime, this.#file, { ...this.#env, ...env }, command);
  }

  /** Starts the next server and waits until it is ready; the one before drains on its own. */
  async next(runtime: RuntimeName, env: Record<string, string> = {}, command?: readonly string[]): Promise<Server> {
    const server = this.start(runtime, env, command);
    this.servers.push(server);
    await server.event("ready");
    return server;
  }

  /** Waits until the newest server can be replaced in turn; a first process can at once. */
  async settled(): Promise<void> {
    const { generation } = await this.current.event("ready");
    if (generation !== 1) await this.current.event("settled");
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const server of this.servers) await server[Symbol.asyncDispose]();
    this.#scratch[Symbol.dispose]();
  }
}

/** Waits. */
export function sleep(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

/** A report in one line. */
export function summaryOf(report: LoadReport): string {
  const { answered, seconds, failed, failures, announced, p50, p99, max, silence, byLoad } = report;
  const ms = (value: number) => `${value.toFixed(1)} ms`;
  return `${answered} answered in ${seconds.toFixed(1)} s ${JSON.stringify(byLoad)}, ${failed} failed ` +
    `${JSON.stringify(failures)}, ${announced} closes announced; fresh p50 ${ms(p50)}, p99 ${ms(p99)}, ` +
    `max ${ms(max)}; longest silence ${ms(silence)}`;
}

/** Load in a process of its own, which is killed when it is not needed any more. */
export interface Load<R = LoadReport> extends Disposable {
  /** The last line. */
  readonly report: Promise<R>;
  /** Ends it before its time. */
  stop(): void;
}

/** Starts the load client; `progress` hears a report a second. */
export function startLoad(plan: LoadPlan, progress: (report: LoadReport) => void = () => {}): Load {
  return startClient("test/support/load.ts", plan, progress);
}

/** Starts connections that stay; resolves once each has had its first answer. */
export async function startLines(plan: LinePlan): Promise<Load<LineReport>> {
  return await startKept<LineReport>("test/support/line_load.ts", plan);
}

/** The same with connections of HTTP. */
export async function startKeepAlive(plan: KeepAlivePlan): Promise<Load<KeepAliveReport>> {
  return await startKept<KeepAliveReport>("test/support/keep_alive_load.ts", plan);
}

/** Starts datagrams; resolves once each flow has had its first answer. */
export async function startDatagrams(plan: DatagramPlan): Promise<Load<DatagramReport>> {
  return await startKept<DatagramReport>("test/support/datagram_load.ts", plan);
}

async function startKept<R extends { readonly done: boolean }>(file: string, plan: object): Promise<Load<R>> {
  let begin = () => {};
  const begun = new Promise<void>((resolve) => begin = resolve);
  const load = startClient<R>(file, plan, () => begin());
  await Promise.race([begun, load.report]);
  return load;
}

function startClient<R extends { readonly done: boolean }>(
  file: string,
  plan: object,
  progress: (report: R) => void,
): Load<R> {
  const child = spawn(
    binaries.node26,
    ["--no-warnings", join(root, file), JSON.stringify(plan)],
    { cwd: root, stdio: ["ignore", "pipe", "inherit"] },
  );
  const report = new Promise<R>((resolve, reject) => {
    createInterface({ input: child.stdout }).on("line", (line) => {
      const found = JSON.parse(line) as R;
      if (found.done) resolve(found);
      else progress(found);
    });
    child.once("close", (status, signal) => reject(new Error(`The load client ended with ${status ?? signal}`)));
  });
  // Who waits for it hears of it.
  report.catch(() => {});
  return { report, stop: () => void child.kill("SIGTERM"), [Symbol.dispose]: () => void child.kill("SIGKILL") };
}
