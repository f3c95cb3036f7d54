/**
 * A client that is not made of this library: connections that are kept, each
 * with numbered requests. An answer to another request, a second one, one that
 * does not come and a connection that the server ends show at once.
 *
 * Run as a process of its own, so that it competes with no server for a turn:
 *
 * ```sh
 * node test/support/keep_alive_load.ts '{"port":8080,"busyCount":20,"idleCount":200}'
 * ```
 *
 * It says so when every connection has had its first answer, and a line of JSON
 * a second after that. SIGTERM ends it; the last line is the report.
 *
 * @module
 */

import process from "node:process";
import { HttpClient } from "./http_client.ts";

/** What to do. Counts are connections. */
export interface KeepAlivePlan {
  readonly port: number;
  /** Those that ask again as soon as they have an answer. */
  readonly busyCount?: number;
  /** Those that ask once in idleMs. */
  readonly idleCount?: number;
  readonly idleMs?: number;
  /** Those whose requests arrive in pieces. */
  readonly slowCount?: number;
  /** Connections opened a second, one request each. */
  readonly freshPerSecond?: number;
  /** Whether the server answers with the number that it was asked for; else any answer will do. */
  readonly isNumbered?: boolean;
}

/** What came of it. */
export interface KeepAliveReport {
  readonly done: boolean;
  readonly seconds: number;
  readonly answered: number;
  readonly byLoad: Readonly<Record<string, number>>;
  /** Answers by the generation that gave them. */
  readonly byGeneration: Readonly<Record<string, number>>;
  /** Requests that got no answer, or not theirs, by `load: what happened`. */
  readonly failures: Readonly<Record<string, number>>;
  /** Kept connections that the server ended without a request on them, announced or not, by `load: how`. */
  readonly closings: Readonly<Record<string, number>>;
  /** The longest time from a request's last byte to its answer, by load, in milliseconds. */
  readonly worstMs: Readonly<Record<string, number>>;
}

/** Long enough that only a lost request takes it. */
const answerLimitMs = 15_000;

/** How long a busy one rests, and a slow one between two pieces. */
const restMs = 2;
const pieceMs = 15;
const pieceSize = 9;

const plan: Required<KeepAlivePlan> = {
  busyCount: 0,
  idleCount: 0,
  idleMs: 300,
  slowCount: 0,
  freshPerSecond: 0,
  isNumbered: true,
  ...JSON.parse(process.argv[2]!),
};

const startedAt = performance.now();
const byLoad: Record<string, number> = {};
const byGeneration: Record<string, number> = {};
const failures: Record<string, number> = {};
const closings: Record<string, number> = {};
const worstMs: Record<string, number> = {};
let answered = 0;
let begun = 0;
let isStopping = false;

/** One kept connection after the other, each opened when the server has ended the one before. */
class Kept {
  readonly #load: string;
  readonly #id: number;
  #client: HttpClient | null = null;
  #count = 0;
  #isAsking = false;

  constructor(load: string, id: number) {
    this.#load = load;
    this.#id = id;
  }

  /** Asks once, and counts what comes. */
  async ask(size = Infinity): Promise<void> {
    const id = `${this.#id}-${++this.#count}`;
    this.#isAsking = true;
    try {
      const client = this.#client ??= this.#open();
      const sentAt = await send(client, requestFor(id), size);
      const { status, body, isLast } = await client.answer(false, answerLimitMs);
      note(this.#load, performance.now() - sentAt, status, body, id);
      if (client.surplusSize > 0) throw new Error("unasked");
      if (isLast) this.#drop("announced");
    } catch (error) {
      add(failures, `${this.#load}: ${(error as Error).message}`);
      this.#drop(null);
      await sleep(5);
    }
    this.#isAsking = false;
  }

  close(): void {
    this.#client?.[Symbol.dispose]();
  }

  #open(): HttpClient {
    const client = new HttpClient({ host: "127.0.0.1", port: plan.port });
    client.onEnd = (why) => {
      if (!this.#isAsking && client === this.#client) this.#drop(why);
    };
    return client;
  }

  #drop(why: string | null): void {
    if (why !== null && !isStopping) add(closings, `${this.#load}: ${why}`);
    this.#client?.[Symbol.dispose]();
    this.#client = null;
  }
}

function requestFor(id: string, more = ""): string {
  return `GET ${plan.isNumbered ? `/n/${id}` : "/"} HTTP/1.1\r\nHost: load\r\n${more}\r\n`;
}

/** Sends a request, in pieces of a size; resolves with the time of the last. */
async function send(client: HttpClient, request: string, size: number): Promise<number> {
  for (let at = 0; at < request.length; at += size) {
    if (at > 0) await sleep(pieceMs);
    client.send(request.slice(at, at + size));
  }
  return performance.now();
}

function note(load: string, ms: number, status: number, body: Buffer, id: string): void {
  if (status !== 200) throw new Error(`status ${status}`);
  const [found, , generation] = body.toString("latin1").split(" ");
  if (plan.isNumbered && found !== id) throw new Error("another's answer");
  answered++;
  add(byLoad, load);
  if (plan.isNumbered) add(byGeneration, generation!);
  worstMs[load] = Math.max(worstMs[load] ?? 0, ms);
}

function add(table: Record<string, number>, key: string): void {
  table[key] = (table[key] ?? 0) + 1;
}

async function fresh(id: number): Promise<void> {
  const client = new HttpClient({ host: "127.0.0.1", port: plan.port });
  const sentAt = performance.now();
  try {
    const { status, body } = await client.ask(requestFor(`fresh-${id}`, "Connection: close\r\n"));
    note("fresh", performance.now() - sentAt, status, body, `fresh-${id}`);
  } catch (error) {
    add(failures, `fresh: ${(error as Error).message}`);
  }
  client[Symbol.dispose]();
}

async function freshOnes(): Promise<void> {
  const from = performance.now();
  const running = new Set<Promise<void>>();
  for (let opened = 0; plan.freshPerSecond > 0 && !isStopping; await sleep(2)) {
    const due = Math.floor((performance.now() - from) / 1_000 * plan.freshPerSecond);
    for (; opened < due; opened++) {
      const one = fresh(opened);
      running.add(one);
      void one.then(() => running.delete(one));
    }
  }
  await Promise.all(running);
}

/** Asks again and again. */
async function keep(load: string, id: number, rest: number, size?: number): Promise<void> {
  const kept = new Kept(load, id);
  await kept.ask();
  begun++;
  await sleep(Math.random() * rest);
  while (!isStopping) {
    await kept.ask(size);
    await sleep(rest);
  }
  kept.close();
}

function report(done: boolean): KeepAliveReport {
  const seconds = (performance.now() - startedAt) / 1_000;
  return { done, seconds, answered, byLoad, byGeneration, failures, closings, worstMs };
}

function sleep(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

process.once("SIGTERM", () => isStopping = true);
const { busyCount, idleCount, slowCount, idleMs } = plan;
const keptCount = busyCount + idleCount + slowCount;
const all = Array.from({ length: keptCount }, (_, id) => {
  if (id < busyCount) return keep("busy", id, restMs);
  return id < busyCount + idleCount ? keep("idle", id, idleMs) : keep("slow", id, pieceMs, pieceSize);
});
while (begun < keptCount && !isStopping) await sleep(5);
const progress = setInterval(() => console.log(JSON.stringify(report(false))), 1_000);
console.log(JSON.stringify(report(false)));
await Promise.all([...all, freshOnes()]);
clearInterval(progress);
console.log(JSON.stringify(report(true)));
