/**
 * A client that is not made of this library: HTTP/1.1 over plain `node:net`
 * sockets, four kinds of load at once, every failure counted by its kind.
 *
 * Run as a process of its own, so that it competes with no server for a turn:
 *
 * ```sh
 * node test/support/load.ts '{"port":8080,"freshPerSecond":4000,"seconds":20}'
 * ```
 *
 * A line of JSON a second says how it goes; the last one is the report. SIGTERM
 * ends it before its time.
 *
 * @module
 */

import net from "node:net";
import process from "node:process";
import { Histogram } from "./histogram.ts";

/** What to do. Counts are connections. */
export interface LoadPlan {
  readonly host?: string;
  readonly port: number;
  /** How long; the report follows when everything begun has ended. */
  readonly seconds: number;
  /** Connections opened a second, one request each. */
  readonly freshPerSecond?: number;
  /** Connections that ask again as soon as they have an answer. */
  readonly busyCount?: number;
  /** Connections that ask once in idleMs. */
  readonly idleCount?: number;
  /** How long an idle connection rests, in milliseconds. */
  readonly idleMs?: number;
  /** Connections that send a body in slow pieces, again and again. */
  readonly slowPostCount?: number;
}

/** What came of it. */
export interface LoadReport {
  readonly done: boolean;
  readonly seconds: number;
  /** Requests answered. */
  readonly answered: number;
  /** Requests answered, by kind of load. */
  readonly byLoad: Readonly<Record<string, number>>;
  /** Requests answered, by `runtime generation`. */
  readonly byServer: Readonly<Record<string, number>>;
  /** Requests that got no answer, and idle connections closed unannounced. */
  readonly failed: number;
  /** The same, by `load kind: what happened`. */
  readonly failures: Readonly<Record<string, number>>;
  /** Connections that the server announced to close, as it should. */
  readonly announced: number;
  /** Of fresh connections, from connect to the whole answer, in milliseconds. */
  readonly p50: number;
  readonly p99: number;
  readonly p999: number;
  readonly max: number;
  /** The longest time without any answer, in milliseconds. */
  readonly silence: number;
}

type LoadKind = "fresh" | "busy" | "idle" | "post";

/** Long enough that only a lost request takes it. */
const answerLimitMs = 15_000;
const bodyPieces = 5;
const pieceMs = 120;
const piece = "0123456789abcdef".repeat(64);

const plan: Required<LoadPlan> = {
  host: "127.0.0.1",
  freshPerSecond: 0,
  busyCount: 0,
  idleCount: 0,
  idleMs: 1_500,
  slowPostCount: 0,
  ...JSON.parse(process.argv[2] ?? "{}"),
};

const startedAt = performance.now();
const latencies = new Histogram();
const byLoad: Record<string, number> = {};
const byServer: Record<string, number> = {};
const failures: Record<string, number> = {};
let answered = 0;
let failed = 0;
let announced = 0;
let silence = 0;
let lastAnswerAt = startedAt;
let underWay = 0;
let stopping = false;

/** A response as far as it is needed. */
interface Answer {
  readonly status: number;
  readonly close: boolean;
  readonly body: string;
}

/** One connection: a request at a time, and what happens in between. */
class Client {
  readonly #load: LoadKind;
  readonly #socket: net.Socket;
  #received = "";
  #pending: { resolve(answer: Answer): void; reject(error: Error): void } | null = null;
  #ended: string | null = null;
  #expectsEnd = false;

  constructor(load: LoadKind) {
    this.#load = load;
    this.#socket = net.connect({ host: plan.host, port: plan.port, noDelay: true });
    this.#socket.setEncoding("latin1");
    this.#socket.on("data", (text: string) => this.#data(text));
    this.#socket.on("error", (error: NodeJS.ErrnoException) => this.#end(error.code ?? error.message));
    this.#socket.on("end", () => this.#end("closed"));
    this.#socket.on("close", () => this.#end("closed"));
  }

  /** Whether it can ask again. */
  get usable(): boolean {
    return this.#ended === null && !this.#expectsEnd;
  }

  /** Sends a request, the body in pieces when there are several; resolves with the answer. */
  async request(head: string, pieces: readonly string[] = []): Promise<Answer> {
    underWay++;
    const timer = setTimeout(() => this.#end("no answer"), answerLimitMs);
    try {
      if (this.#ended !== null) throw new Error(this.#ended);
      const answer = new Promise<Answer>((resolve, reject) => this.#pending = { resolve, reject });
      this.#socket.write(head);
      answer.catch(() => {});
      for (const text of pieces) {
        await sleep(pieceMs);
        if (this.#ended === null) this.#socket.write(text);
      }
      const got = await answer;
      if (got.status !== 200) throw new Error(`status ${got.status}`);
      this.#expectsEnd = got.close;
      return got;
    } finally {
      clearTimeout(timer);
      underWay--;
    }
  }

  /** Closes it from this side. */
  close(): void {
    this.#expectsEnd = true;
    this.#socket.destroy();
  }

  #data(text: string): void {
    this.#received += text;
    const answer = parse(this.#received);
    if (!answer) return;
    this.#received = "";
    const pending = this.#pending;
    this.#pending = null;
    pending?.resolve(answer);
  }

  #end(why: string): void {
    if (this.#ended !== null) return;
    this.#ended = why;
    const pending = this.#pending;
    this.#pending = null;
    if (pending) pending.reject(new Error(why));
    else if (!this.#expectsEnd && !stopping) noteUnannounced(this.#load, why);
    this.#socket.destroy();
  }
}

/** The response when it is whole, else null. */
function parse(text: string): Answer | null {
  const end = text.indexOf("\r\n\r\n");
  if (end < 0) return null;
  const head = text.slice(0, end).toLowerCase();
  const size = Number(/content-length: (\d+)/.exec(head)?.[1] ?? 0);
  const body = text.slice(end + 4);
  if (body.length < size) return null;
  return { status: Number(head.slice(9, 12)), close: head.includes("connection: close"), body };
}

function count(table: Record<string, number>, key: string): void {
  table[key] = (table[key] ?? 0) + 1;
}

function sleep(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

function over(): boolean {
  return stopping || performance.now() - startedAt >= plan.seconds * 1_000;
}

/** Counts an answer, and whose it was. */
function note(load: LoadKind, answer: Answer): void {
  const now = performance.now();
  if (!over()) silence = Math.max(silence, now - lastAnswerAt);
  lastAnswerAt = now;
  answered++;
  count(byLoad, load);
  if (answer.close && load !== "fresh") announced++;
  if (load === "post") return;
  const { runtime, generation } = JSON.parse(answer.body);
  count(byServer, `${runtime} ${generation}`);
}

function noteFailure(load: LoadKind, error: unknown): void {
  failed++;
  count(failures, `${load} request: ${error instanceof Error ? error.message : String(error)}`);
}

function noteUnannounced(load: LoadKind, why: string): void {
  failed++;
  count(failures, `${load} unannounced close: ${why}`);
}

async function freshOnce(): Promise<void> {
  const begun = performance.now();
  const client = new Client("fresh");
  try {
    note("fresh", await client.request("GET / HTTP/1.1\r\nHost: load\r\nConnection: close\r\n\r\n"));
    latencies.add(performance.now() - begun);
  } catch (error) {
    noteFailure("fresh", error);
  } finally {
    client.close();
  }
}

/** Opens as many as are due, so that a late turn does not lower the rate. */
async function fresh(): Promise<void> {
  if (plan.freshPerSecond === 0) return;
  for (let opened = 0; !over();) {
    const due = Math.floor((performance.now() - startedAt) / 1_000 * plan.freshPerSecond);
    for (; opened < due; opened++) void freshOnce();
    await sleep(1);
  }
}

/** Keeps one connection, and opens the next when the server has announced its end. */
async function kept(load: LoadKind, head: string, restMs: number, pieces: readonly string[] = []): Promise<void> {
  let client = new Client(load);
  while (!over()) {
    try {
      const answer = await client.request(head, pieces);
      if (pieces.length > 0 && answer.body !== pieces.join("")) throw new Error("another body");
      note(load, answer);
    } catch (error) {
      noteFailure(load, error);
      await sleep(5);
    }
    await sleep(restMs);
    if (client.usable) continue;
    client.close();
    client = new Client(load);
  }
  client.close();
}

function many(howMany: number, start: (index: number) => Promise<void>): Promise<void>[] {
  return Array.from({ length: howMany }, (_, index) => start(index));
}

const get = "GET / HTTP/1.1\r\nHost: load\r\n\r\n";
const pieces = new Array<string>(bodyPieces).fill(piece);
const post = `POST /echo HTTP/1.1\r\nHost: load\r\nContent-Length: ${piece.length * bodyPieces}\r\n\r\n`;

function report(done: boolean): LoadReport {
  return {
    done,
    seconds: (performance.now() - startedAt) / 1_000,
    answered,
    byLoad,
    byServer,
    failed,
    failures,
    announced,
    p50: latencies.at(0.5),
    p99: latencies.at(0.99),
    p999: latencies.at(0.999),
    max: latencies.max,
    silence: over() ? silence : Math.max(silence, performance.now() - lastAnswerAt),
  };
}

process.once("SIGTERM", () => stopping = true);
const progress = setInterval(() => console.log(JSON.stringify(report(false))), 1_000);
await Promise.all([
  fresh(),
  ...many(plan.busyCount, () => kept("busy", get, 5)),
  ...many(plan.idleCount, async (index) => {
    await sleep(index * plan.idleMs / plan.idleCount);
    await kept("idle", get, plan.idleMs);
  }),
  ...many(plan.slowPostCount, async (index) => {
    await sleep(index * pieceMs * bodyPieces / plan.slowPostCount);
    await kept("post", post, 20, pieces);
  }),
]);
while (underWay > 0) await sleep(10);
clearInterval(progress);
console.log(JSON.stringify(report(true)));
