/**
 * A client that is not made of this library: connections that stay, each with
 * numbered lines, whose answers count them. A line that is lost, answered
 * twice, or out of order shows at once, and so does a connection that ends.
 *
 * Run as a process of its own, so that it competes with no server for a turn:
 *
 * ```sh
 * node test/support/line_load.ts '{"port":8080,"count":5000,"perSecond":20000}'
 * ```
 *
 * It says so when every connection has had its first answer, and a line of JSON
 * a second after that. SIGTERM ends it: the last line is the report, once every
 * line has been answered or its time is up.
 *
 * @module
 */

import net from "node:net";
import process from "node:process";

/** What to do. */
export interface LinePlan {
  readonly port: number;
  /** Connections. */
  readonly count: number;
  /** Lines, on all of them together. */
  readonly perSecond: number;
  /** How long the last answers may take. */
  readonly answerLimitMs?: number;
}

/** What came of it. */
export interface LineReport {
  readonly done: boolean;
  readonly seconds: number;
  readonly sent: number;
  readonly answered: number;
  /** Answers by the generation that gave them. */
  readonly byGeneration: Readonly<Record<string, number>>;
  /** What should not have happened, by kind. */
  readonly failures: Readonly<Record<string, number>>;
  /** The longest time from a line to its answer, in milliseconds. */
  readonly longestMs: number;
}

/** Long enough that only a lost line takes it. */
const defaultAnswerLimitMs = 15_000;

/** Connections that are being opened at once. */
const openingCount = 64;

const tickMs = 5;

const { answerLimitMs = defaultAnswerLimitMs, ...plan }: LinePlan = JSON.parse(process.argv[2]!);
const startedAt = performance.now();
const failures: Record<string, number> = {};
const byGeneration: Record<string, number> = {};
let sent = 0;
let answered = 0;
let longestMs = 0;

/** One connection: what it has sent, and how much of it was answered. */
class Line {
  readonly #socket: net.Socket;
  /** When the lines were sent that have no answer yet. */
  readonly #sentAt: number[] = [];
  #count = 0;
  #rest = "";
  isOpen = false;

  private constructor(socket: net.Socket) {
    this.#socket = socket;
    socket.setEncoding("latin1");
    socket.on("data", (text: string) => this.#data(text));
    socket.on("error", (error: NodeJS.ErrnoException) => this.#end(error.code ?? error.message));
    socket.on("end", () => this.#end("closed"));
    socket.on("close", () => this.#end("closed"));
  }

  static async open(): Promise<Line> {
    const socket = net.connect({ host: "127.0.0.1", port: plan.port, noDelay: true });
    const line = new Line(socket);
    await new Promise<void>((resolve) => socket.once("connect", resolve).once("close", () => resolve()));
    line.isOpen = !socket.destroyed;
    return line;
  }

  get unansweredCount(): number {
    return this.#sentAt.length;
  }

  /** Sends the next line. */
  send(): void {
    if (!this.isOpen) return;
    this.#sentAt.push(performance.now());
    this.#socket.write(`${this.#count + this.#sentAt.length}\n`);
    sent++;
  }

  /** Ends it without a failure. */
  close(): void {
    this.isOpen = false;
    this.#socket.destroy();
  }

  #data(text: string): void {
    const lines = (this.#rest + text).split("\n");
    this.#rest = lines.pop()!;
    for (const line of lines) this.#answer(line);
  }

  #answer(line: string): void {
    const [number, , generation] = line.split(" ");
    if (Number(number) !== this.#count + 1) fail(Number(number) > this.#count ? "skipped" : "again");
    if (this.#sentAt.length === 0) return fail("unasked");
    this.#count++;
    answered++;
    byGeneration[generation!] = (byGeneration[generation!] ?? 0) + 1;
    longestMs = Math.max(longestMs, performance.now() - this.#sentAt.shift()!);
  }

  #end(why: string): void {
    if (!this.isOpen) return;
    this.isOpen = false;
    fail(why);
  }
}

function fail(why: string): void {
  failures[why] = (failures[why] ?? 0) + 1;
}

function report(done: boolean): LineReport {
  const seconds = (performance.now() - startedAt) / 1_000;
  return { done, seconds, sent, answered, byGeneration, failures, longestMs };
}

function sleep(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

function unansweredCount(): number {
  return lines.reduce((sum, line) => sum + line.unansweredCount, 0);
}

let stopping = false;
process.once("SIGTERM", () => stopping = true);
const lines: Line[] = [];
while (lines.length < plan.count) {
  const count = Math.min(openingCount, plan.count - lines.length);
  lines.push(...await Promise.all(Array.from({ length: count }, () => Line.open())));
}
for (const line of lines) line.send();
while (unansweredCount() > 0) await sleep(tickMs);
const progress = setInterval(() => console.log(JSON.stringify(report(false))), 1_000);
console.log(JSON.stringify(report(false)));

const loadAt = performance.now();
for (let next = 0; !stopping; await sleep(tickMs)) {
  const due = Math.floor((performance.now() - loadAt) / 1_000 * plan.perSecond);
  for (; next < due; next++) lines[next % lines.length]!.send();
}
for (let waitedMs = 0; unansweredCount() > 0 && waitedMs < answerLimitMs; waitedMs += tickMs) await sleep(tickMs);
clearInterval(progress);
for (let count = unansweredCount(); count > 0; count--) fail("unanswered");
console.log(JSON.stringify(report(true)));
for (const line of lines) line.close();
