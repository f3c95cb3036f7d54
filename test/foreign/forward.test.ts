/**
 * examples/forward as real processes: a server hands accepted connections to a
 * forwarder, each on any runtime, and each replaced by a program that shares no
 * line with the library.
 */

import assert from "node:assert/strict";
import { spawn, spawnSync } from "node:child_process";
import { existsSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import net from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { connectChannel, openAcceptor } from "../../mod.ts";
import { commandFor, root } from "../support/binaries.mjs";
import { descriptorsOf } from "../support/proc.ts";
import { type RuntimeName, runtimes, Server } from "../support/server.ts";

const count = 20;
const patienceMs = 30_000;

/** For clients that are silent until the test has seen something. */
const patient = { REQUEST_MS: "60000" };

/** The stand-ins: how each is started, once it is there. */
type Language = "python" | "go" | "c";
const languages: readonly Language[] = ["python", "go", "c"];

let folder = "";
before(async () => void (folder = await mkdtemp(join(tmpdir(), "forward-"))));
after(() => rm(folder, { recursive: true, force: true }));

describe("examples/forward", () => {
  test("nine pairs of runtimes answer every connection, with a forwarder and without", async () => {
    await onEvery(runtimes, async (runtime, index) => {
      await using demo = await Demo.start(runtime);
      await demo.isAnsweredBy("server", runtimes[index]!);
      for (const [turn, forwarder] of runtimes.entries()) {
        await using forward = await demo.startForward(forwarder);
        await demo.isAnsweredBy("forward", runtimes[(index + turn + 1) % 3]!);
        forward.signal("SIGTERM");
        assert.equal(await forward.ended, 0, forward.stderr);
        assert.deepEqual(answeredBy(forward), requests.toSorted());
        assert.ok(!existsSync(demo.path), "the path is still there");
      }
      await demo.isAnsweredBy("server", runtime);
      demo.server.signal("SIGTERM");
      assert.equal(await demo.server.ended, 0, demo.server.stderr);
    });
  });

  test("connections that a killed forwarder had received, or not yet, are answered by the server", () =>
    onEvery(runtimes, async (runtime, index) => {
      await using demo = await Demo.start(runtime, patient);
      await using forward = await demo.startForward(runtimes[(index + 1) % 3]!);
      const socketCount = await steadySockets(forward);
      const serverCount = await steadySockets(demo.server);
      const received = Array.from({ length: count }, () => new Client(demo.port));
      // A connection each, and the channel that it came on.
      await until(() => sockets(forward) >= socketCount + 2 * count, "the forwarder to have all connections");
      forward.signal("SIGSTOP");
      const queued = Array.from({ length: count }, () => new Client(demo.port));
      await until(() => sockets(demo.server) >= serverCount + 4 * count, "the server to have sent all connections");
      forward.signal("SIGKILL");
      await forward.ended;
      for (const [number, client] of [...received, ...queued].entries()) client.send(`seq num ${number + 1}`);
      const answers = await Promise.all([...received, ...queued].map((client) => client.answer));
      assert.deepEqual(answers, Array(2 * count).fill("process by server"));
      await demo.isAnsweredBy("server", "node");
      await using _next = await demo.startForward(runtimes[(index + 2) % 3]!);
      await demo.isAnsweredBy("forward", "node");
    }));

  test("a connection that was answered, or is closed by who received it, does not come back", async () => {
    await using demo = await Demo.start("node", { REQUEST_MS: "300" });
    await using forward = await demo.startForward("bun", { REQUEST_MS: "300" });
    const client = new Client(demo.port);
    assert.equal(await client.answer, "");
    assert.equal((await forward.event("answered")).answer, null);
    assert.equal((await demo.server.event("forwarded")).event, "forwarded");
  });

  test("SIGTERM lets a forwarder answer what it received, and leaves the rest to the server", () =>
    onEvery(runtimes, async (runtime, index) => {
      await using demo = await Demo.start(runtimes[(index + 1) % 3]!, patient);
      await using forward = await demo.startForward(runtime);
      const socketCount = await steadySockets(forward);
      const early = new Client(demo.port);
      await until(() => sockets(forward) === socketCount + 2, "the forwarder to have the connection");
      forward.signal("SIGTERM");
      await until(() => !existsSync(demo.path), "the path to be removed");
      const late = new Client(demo.port);
      late.send("seq num 2");
      assert.equal(await late.answer, "process by server");
      early.send("seq num 1");
      assert.equal(await early.answer, "process by forward");
      assert.equal(await forward.ended, 0, forward.stderr);
    }));

  test("clients that send nothing, slowly, or close early cost the others nothing and leave nothing behind", () =>
    onEvery(runtimes, async (runtime, index) => {
      await using demo = await Demo.start(runtimes[(index + 2) % 3]!, { REQUEST_MS: "1000" });
      await using forward = await demo.startForward(runtime, { REQUEST_MS: "1000" });
      await demo.isAnsweredBy("forward", "node");
      const before = [await steadySockets(forward), await steadySockets(demo.server)];
      const [silent, slow, early] = [new Client(demo.port), new Client(demo.port), new Client(demo.port)];
      const half = new Client(demo.port);
      half.end("seq num 9");
      early.reset();
      for (const letter of "seq num 7") {
        slow.send(letter);
        await sleep(5);
      }
      assert.equal(await slow.answer, "process by forward");
      assert.equal(await half.answer, "process by forward");
      assert.equal(await silent.answer, "");
      await until(
        () => sockets(forward) === before[0] && sockets(demo.server) === before[1],
        () => `${before} sockets; there are ${sockets(forward)} and ${sockets(demo.server)}`,
      );
      const answered = answeredBy(forward);
      assert.ok(answered.includes("seq num 7") && answered.includes("seq num 9"), String(answered));
    }));

  test("a forwarder refuses another word, no descriptor and two, and goes on", () =>
    onEvery(runtimes, async (runtime) => {
      await using demo = await Demo.start("node");
      await using forward = await demo.startForward(runtime);
      const before = await steadySockets(forward);
      using acceptor = await openAcceptor({ hostname: "127.0.0.1", port: 0 });
      const { descriptor } = acceptor;
      const wrong = [["forward", []], ["forwards", [descriptor]], ["forward", [descriptor, descriptor]]] as const;
      for (const [word, descriptors] of wrong) {
        using channel = await connectChannel(demo.path);
        await channel.send(new TextEncoder().encode(word), descriptors);
        assert.equal(await channel.receive({ timeoutMs: patienceMs }), null);
      }
      await until(() => forward.events.filter(({ event }) => event === "refused").length === 3, "three refusals");
      await demo.isAnsweredBy("forward", "node");
      await until(() => sockets(forward) === before, "every descriptor to be closed");
    }));

  test("a second forwarder on the path of a live one fails, and the first goes on", async () => {
    await using demo = await Demo.start("bun");
    await using _forward = await demo.startForward("deno");
    await onEvery(runtimes, async (runtime) => {
      await using second = new Server(runtime, "examples/forward/forward.ts", demo.env);
      assert.equal((await second.event("refused")).code, "EADDRINUSE");
      assert.equal(await second.ended, 1);
    });
    await demo.isAnsweredBy("forward", "node");
  });

  test("the client exits with 1 when an answer is missing", () =>
    onEvery(runtimes, async (runtime) => {
      using refusing = await openAcceptor({ hostname: "127.0.0.1", port: 0 });
      const { port } = refusing.address as { port: number };
      refusing.close();
      const { status, lines } = await runClient(runtime, { PORT: String(port) });
      assert.equal(status, 1);
      assert.equal(lines.filter((line) => line.includes("no answer")).length, count);
    }));
});

for (const language of languages) {
  describe(`A program in ${language}`, { skip: missing(language) }, () => {
    let command: readonly string[] = [];
    before(() => void (command = commandOf(language)));

    test("in the forwarder's place answers what every runtime's server hands over", () =>
      onEvery(runtimes, async (runtime) => {
        await using demo = await Demo.start(runtime);
        await using _forward = await demo.startForward(language, {}, [...command, "forward"]);
        await demo.isAnsweredBy("forward", runtime);
      }));

    test("in the server's place hands over to every runtime's forwarder, and answers itself without one", async () => {
      await using demo = await Demo.start(language, {}, [...command, "server"]);
      await demo.isAnsweredBy("server", "node");
      for (const runtime of runtimes) {
        await using forward = await demo.startForward(runtime);
        await demo.isAnsweredBy("forward", runtime);
        forward.signal("SIGTERM");
        assert.equal(await forward.ended, 0, forward.stderr);
      }
    });
  });
}

const requests = Array.from({ length: count }, (_, index) => `seq num ${index + 1}`);
let demoCount = 0;

/** A server, on a port and a path of its own. */
class Demo implements AsyncDisposable {
  readonly server: Server;
  readonly env: Record<string, string>;
  readonly path: string;
  port = 0;

  private constructor(runtime: RuntimeName | Language, more: Record<string, string>, command?: readonly string[]) {
    this.path = join(folder, `${++demoCount}.sock`);
    this.env = { PORT: "0", FORWARD_SOCKET: this.path, ...more };
    this.server = new Server(runtime as RuntimeName, "examples/forward/server.ts", this.env, command);
  }

  static async start(
    runtime: RuntimeName | Language,
    more: Record<string, string> = {},
    command?: readonly string[],
  ): Promise<Demo> {
    const demo = new Demo(runtime, more, command);
    const { address } = await demo.server.event("open");
    demo.port = Number(String(address).split(":").at(-1));
    return demo;
  }

  async startForward(
    runtime: RuntimeName | Language,
    more: Record<string, string> = {},
    command?: readonly string[],
  ): Promise<Server> {
    const env = { ...this.env, ...more };
    const forward = new Server(runtime as RuntimeName, "examples/forward/forward.ts", env, command);
    await forward.event("open");
    return forward;
  }

  /** Runs the client. */
  async isAnsweredBy(who: "server" | "forward", client: RuntimeName): Promise<void> {
    const { status, lines } = await runClient(client, { PORT: String(this.port) });
    assert.deepEqual(lines, requests.map((request) => `${request}: process by ${who}`), this.server.stderr);
    assert.equal(status, 0);
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.server[Symbol.asyncDispose]();
  }
}

/** Runs examples/forward/client.ts: its exit status, and what it printed. */
async function runClient(
  runtime: RuntimeName,
  more: Record<string, string>,
): Promise<{ status: number; lines: string[] }> {
  const [program, ...args] = commandFor(runtime, join(root, "examples/forward/client.ts"));
  const env = { ...process.env, NO_COLOR: "1", ...more };
  const child = spawn(program!, args, { env, stdio: ["ignore", "pipe", "ignore"] });
  let output = "";
  child.stdout.on("data", (text) => output += text);
  const status = await new Promise<number>((resolve) => child.once("close", (code) => resolve(code ?? -1)));
  return { status, lines: output.trimEnd().split("\n") };
}

/** A client of the test's own, which sends when it is told. */
class Client {
  readonly answer: Promise<string>;
  readonly #socket: net.Socket;

  constructor(port: number) {
    let text = "";
    this.#socket = net.connect({ port, host: "127.0.0.1", allowHalfOpen: true });
    this.#socket.on("data", (bytes) => text += bytes);
    this.#socket.on("error", () => {});
    this.answer = new Promise((resolve) => {
      this.#socket.once("end", () => this.#socket.end());
      this.#socket.once("close", () => resolve(text));
    });
  }

  send(text: string): void {
    this.#socket.write(text);
  }

  end(text: string): void {
    this.#socket.end(text);
  }

  reset(): void {
    this.#socket.once("connect", () => this.#socket.resetAndDestroy());
  }
}

function sockets({ pid }: Server): number {
  return [...descriptorsOf(pid).values()].filter((target) => target.startsWith("socket:")).length;
}

/** How many there are when none was opened or closed for a while: a runtime opens some when it first waits. */
async function steadySockets(server: Server): Promise<number> {
  for (let [found, looks] = [sockets(server), 0]; ; looks++) {
    await sleep(20);
    const now = sockets(server);
    if (now !== found) [found, looks] = [now, 0];
    if (looks === 10) return found;
  }
}

/** The requests that it says it has answered. */
function answeredBy({ events }: Server): string[] {
  return events.filter(({ event }) => event === "answered").map(({ request }) => String(request)).toSorted();
}

async function until(condition: () => boolean, what: string | (() => string)): Promise<void> {
  for (const end = Date.now() + patienceMs; !condition(); await sleep(5)) {
    if (Date.now() > end) assert.fail(`waited ${patienceMs} ms for ${typeof what === "string" ? what : what()}`);
  }
}

function sleep(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

async function onEvery<T>(each: readonly T[], body: (one: T, index: number) => Promise<void>): Promise<void> {
  await Promise.all(each.map(body));
}

function missing(language: Language): string | false {
  const program = { python: "python3", go: "go", c: "gcc" }[language];
  const found = spawnSync(program, [language === "go" ? "version" : "--version"]);
  return found.status === 0 ? false : `${program} is not installed`;
}

/** Compiles the stand-in where that is needed. */
function commandOf(language: Language): readonly string[] {
  const source = (name: string) => join(root, "test/peers/forward", name);
  if (language === "python") return ["python3", source("peer.py")];
  const program = join(folder, language);
  const compile = { go: ["go", "build", "-o", program], c: ["gcc", "-o", program] }[language];
  const { status, stderr } = spawnSync(compile[0]!, [...compile.slice(1), source(`peer.${language}`)], {
    encoding: "utf8",
    env: { ...process.env, GOCACHE: join(folder, "cache"), GOFLAGS: "" },
  });
  assert.equal(status, 0, stderr);
  return [program];
}
