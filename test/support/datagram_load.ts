/**
 * A client that is not made of this library: flows, each from a port of its
 * own, with datagrams at a steady pace. Every answer counts the datagrams that
 * its process has answered, so that of each process exactly the answers 1 to n
 * have to come. One that is lost or doubled on its way in or out shows by that,
 * and by the flow that has more or fewer answers than datagrams.
 *
 * Run as a process of its own, so that it competes with no server for a turn:
 *
 * ```sh
 * node test/support/datagram_load.ts '{"port":8080,"flowCount":64,"perSecond":20000}'
 * ```
 *
 * It says so when every flow has had its first answer, and a line of JSON a
 * second after that. SIGTERM ends it: the last line is the report, once every
 * datagram has been answered or its time is up.
 *
 * @module
 */

import dgram from "node:dgram";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import process from "node:process";

/** What to do. */
export interface DatagramPlan {
  readonly port: number;
  /** Ports that datagrams come from. */
  readonly flowCount: number;
  /** Datagrams, of all flows together. */
  readonly perSecond: number;
  /** The first byte of each flow's datagrams, in turn; 0 for all when left out. */
  readonly tags?: readonly number[];
  /** How long the last answers may take. */
  readonly answerLimitMs?: number;
}

/** What came of it. */
export interface DatagramReport {
  readonly done: boolean;
  readonly seconds: number;
  readonly sent: number;
  readonly answered: number;
  /** Answers by the generation that gave them. */
  readonly byGeneration: Readonly<Record<string, number>>;
  /** The same for the flows of each tag. */
  readonly byTag: Readonly<Record<string, Readonly<Record<string, number>>>>;
  /** What should not have happened, by kind. */
  readonly failures: Readonly<Record<string, number>>;
  /** Datagrams that found no room in a receive buffer of this network namespace, since the start. */
  readonly bufferErrors: number;
}

const defaultAnswerLimitMs = 10_000;
const tickMs = 2;
const longestBurst = 200;
const clientBufferSize = 4 * 1024 * 1024;
const datagramSize = 32;

const { tags = [0], answerLimitMs = defaultAnswerLimitMs, ...plan }: DatagramPlan = JSON.parse(process.argv[2]!);
const startedAt = performance.now();
const bufferErrorsBefore = bufferErrors();
const failures: Record<string, number> = {};
const byGeneration: Record<string, number> = {};
const byTag: Record<string, Record<string, number>> = {};
/** The numbers of the answers of each process. */
const answers = new Map<number, Set<number>>();
let sent = 0;
let answered = 0;

/** One port. */
class Flow {
  readonly #socket: dgram.Socket = dgram.createSocket({ type: "udp4", recvBufferSize: clientBufferSize });
  /** The tag, and nothing else that anybody looks at. */
  readonly #datagram = new Uint8Array(datagramSize);
  readonly #byGeneration: Record<string, number>;
  unanswered = 0;
  isHeard = false;

  private constructor(tag: number) {
    this.#datagram[0] = tag;
    this.#byGeneration = byTag[tag] ??= {};
  }

  static async open(tag: number): Promise<Flow> {
    const flow = new Flow(tag);
    flow.#socket.bind(0, "127.0.0.1");
    await once(flow.#socket, "listening");
    flow.#socket.connect(plan.port, "127.0.0.1");
    await once(flow.#socket, "connect");
    flow.#socket.on("message", (bytes) => flow.#answer(bytes));
    // Nobody is bound there, or was for a moment.
    flow.#socket.on("error", (error: NodeJS.ErrnoException) => fail(error.code ?? error.message));
    return flow;
  }

  send(): void {
    sent++;
    this.unanswered++;
    this.#socket.send(this.#datagram);
  }

  close(): void {
    this.#socket.close();
  }

  #answer(bytes: Uint8Array): void {
    const { n, pid, generation } = JSON.parse(String(bytes)) as { n: number; pid: number; generation: number };
    answered++;
    this.isHeard = true;
    if (--this.unanswered < 0) fail("unasked");
    count(byGeneration, generation);
    count(this.#byGeneration, generation);
    let numbers = answers.get(pid);
    if (!numbers) answers.set(pid, numbers = new Set());
    if (numbers.has(n)) fail("again");
    numbers.add(n);
  }
}

function count(counts: Record<string, number>, generation: number): void {
  counts[generation] = (counts[generation] ?? 0) + 1;
}

function fail(why: string, count = 1): void {
  failures[why] = (failures[why] ?? 0) + count;
}

/** Of all UDP sockets of this namespace (proc_net_snmp(5)). */
function bufferErrors(): number {
  const [names, values] = readFileSync("/proc/net/snmp", "utf8").split("\n").filter((line) => line.startsWith("Udp:"));
  const index = names!.split(" ").indexOf("RcvbufErrors");
  return Number(values!.split(" ")[index]);
}

function report(done: boolean): DatagramReport {
  const seconds = (performance.now() - startedAt) / 1_000;
  return { done, seconds, sent, answered, byGeneration, byTag, failures, bufferErrors: bufferErrors() - bufferErrorsBefore };
}

function sleep(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

const flows = await Promise.all(Array.from({ length: plan.flowCount }, (_, index) => Flow.open(tags[index % tags.length]!)));
const unansweredCount = () => flows.reduce((sum, { unanswered }) => sum + Math.max(unanswered, 0), 0);
let isOver = false;
process.once("SIGTERM", () => isOver = true);

for (const flow of flows) flow.send();
while (!isOver && flows.some(({ isHeard }) => !isHeard)) await sleep(tickMs);
const progress = setInterval(() => console.log(JSON.stringify(report(false))), 1_000);
console.log(JSON.stringify(report(false)));

let next = 0;
for (let last = performance.now(); !isOver; await sleep(tickMs)) {
  const now = performance.now();
  // A client that was not let run does not make up for it all at once.
  const due = Math.min(Math.round((now - last) / 1_000 * plan.perSecond), longestBurst);
  if (due > 0) last = now;
  for (let count = 0; count < due; count++) flows[next++ % flows.length]!.send();
}
for (let waitedMs = 0; unansweredCount() > 0 && waitedMs < answerLimitMs; waitedMs += tickMs) await sleep(tickMs);
clearInterval(progress);
// Whatever comes twice comes soon.
await sleep(100);
if (unansweredCount() > 0) fail("unanswered", unansweredCount());
for (const numbers of answers.values()) {
  const missing = Math.max(...numbers) - numbers.size;
  if (missing > 0) fail("answer missing", missing);
}
console.log(JSON.stringify(report(true)));
for (const flow of flows) flow.close();
