/**
 * Descriptors from and to programs that know nothing of this library: Python,
 * Go and C, each with what its own standard library has, against each runtime.
 */

import assert from "node:assert/strict";
import { spawn, spawnSync } from "node:child_process";
import { mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { after, describe, test } from "node:test";
import { fileURLToPath } from "node:url";
import { commandFor } from "../support/binaries.mjs";

const types = ["stream", "seqpacket", "dgram"] as const;
const runtimes = ["deno", "bun", "node"] as const;

/** Messages of one descriptor, of 17, and of as many as one can carry: 10,000 together. */
const batches = "2000x1,235x17,15x253,1x210";
const descriptorCount = 10_000;

const limitMs = 60_000;
/** Where everything has to be there: what is missing makes the tests fail, and not skip. */
const isStrict = process.env.CI !== undefined;

const sources = fileURLToPath(new URL("../peers/fds", import.meta.url));
const folder = mkdtempSync("/tmp/takeover-test-");
after(() => rmSync(folder, { recursive: true, force: true }));

/** A program at the other end. */
interface Peer {
  readonly language: string;
  readonly command: readonly string[];
  /** Why it cannot be run here. */
  readonly skip: string | false;
}

const peers: readonly Peer[] = [python(), go(), c()];

function python(): Peer {
  const hasSendFds = "import socket; socket.send_fds";
  const skip = missing("python3", ["-c", hasSendFds], "python3 of 3.9 or later");
  return { language: "Python", command: ["python3", join(sources, "peer.py")], skip };
}

function go(): Peer {
  const program = join(folder, "go-peer");
  const skip = missing("go", ["version"], "go");
  if (!skip) build("go", ["build", "-o", program, join(sources, "peer.go")]);
  return { language: "Go", command: [program], skip };
}

function c(): Peer {
  const program = join(folder, "c-peer");
  const skip = missing("gcc", ["--version"], "gcc");
  if (!skip) build("gcc", ["-O1", "-Wall", "-Wextra", "-Werror", "-o", program, join(sources, "peer.c")]);
  return { language: "C", command: [program], skip };
}

function missing(program: string, args: readonly string[], what: string): string | false {
  return spawnSync(program, args).status === 0 || isStrict ? false : `${what} is not installed`;
}

/** A single file, without the network; Go's own files stay in the folder too. */
function build(program: string, args: readonly string[]): void {
  const goEnv = {
    GO111MODULE: "off",
    GOFLAGS: "-mod=mod",
    GOPROXY: "off",
    GOCACHE: join(folder, "cache"),
    GOPATH: join(folder, "go"),
  };
  const { status, stderr } = spawnSync(program, args, {
    env: { ...process.env, ...goEnv },
    timeout: limitMs,
    encoding: "utf8",
  });
  assert.equal(status, 0, stderr);
}

/** A program that runs, and what it has printed. */
class Running {
  readonly #ended: Promise<void>;
  readonly #ready: Promise<void>;
  #output = "";

  constructor([program, ...args]: readonly string[]) {
    const child = spawn(program!, args, { stdio: ["ignore", "pipe", "pipe"], timeout: limitMs, killSignal: "SIGKILL" });
    const end = new Promise<number | string>((resolve, reject) => {
      child.once("error", reject).once("close", (status, signal) => resolve(status ?? signal ?? "gone"));
    });
    this.#ready = new Promise((resolve) => {
      child.stdout.on("data", (text) => (this.#output += text).includes("ready") && resolve());
      child.stderr.on("data", (text) => this.#output += text);
    });
    this.#ended = end.then((status) =>
      assert.equal(status, 0, `${program} ${args.join(" ")} ended with ${status}: ${this.#output}`)
    );
    this.#ended.catch(() => {});
  }

  /** Waits until it listens. */
  async ready(): Promise<void> {
    await Promise.race([this.#ready, this.#ended]);
  }

  /** Waits for its end, and gives the counts of its last line. */
  async counts(): Promise<number[]> {
    await this.#ended;
    const last = this.#output.trimEnd().split("\n").at(-1)!;
    return last.endsWith(" descriptors") ? last.replace(" descriptors", "").split(", ").map(Number) : [];
  }
}

function start(command: readonly string[]): Running {
  return new Running(command);
}

/** Both ends, the receiver first. Each receiver has checked every byte and every descriptor. */
async function transfer(runtime: string, { language, command }: Peer, isReceiver: boolean): Promise<void> {
  const place = join(folder, `${runtime}-${language}-${isReceiver}`);
  mkdirSync(place);
  const here = (role: string) => start(commandFor(runtime, join(sources, "peer.ts"), [role, place, batches]));
  const there = (role: string) => types.map((type) => start([...command, role, type, join(place, type), batches]));
  const receivers = isReceiver ? [here("receive")] : there("receive");
  await Promise.all(receivers.map((receiver) => receiver.ready()));
  const senders = isReceiver ? there("send") : [here("send")];
  await Promise.all(senders.map((sender) => sender.counts()));
  const counts = await Promise.all(receivers.map((receiver) => receiver.counts()));
  assert.deepEqual(counts.flat(), types.map(() => descriptorCount));
}

for (const runtime of runtimes) {
  describe(`FdChannel on ${runtime}`, () => {
    for (const peer of peers) {
      test(
        `receives 10,000 descriptors from ${peer.language} over each type of socket`,
        { skip: peer.skip },
        () => transfer(runtime, peer, true),
      );

      test(
        `sends 10,000 descriptors to ${peer.language} over each type of socket`,
        { skip: peer.skip },
        () => transfer(runtime, peer, false),
      );
    }
  });
}
