/**
 * A client that is not made of this library: flows, each from a port of its
 * own, with numbered datagrams at a steady pace. An answer repeats the number of
 * its datagram, so that exactly the numbers that a flow has sent have to come
 * back, each once: a datagram or an answer that is lost shows, and one that is
 * doubled.
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
import { Histogram } from "./histogram.ts";

/** What to do. */
export interface DatagramPlan {
  readonly port: number;
  /** Ports that datagrams come from. */
  readonly flowCount: number;
  /** Datagrams, of all flows together. */
  readonly perSecond: number;
  /** The first byte of each flow's datagrams, in turn; 0 for all when left out. */
  readonly tags?: readonly number[];
  /** The address that they come from; 127.0.0.1 when left out. */
  readonly from?: string;
  /** How long the last answers may take. */
  readonly answerLimitMs?: number;
}

/** What came of it. */
export interface DatagramReport {
  readonly done: boolean;
  /** How long datagrams were sent at the steady pace. */
  readonly seconds: number;
  /** What the pace was in that time; below the plan's when this client was not let run. */
  readonly perSecond: number;
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
  /** From a datagram to its answer. */
  readonly p50Ms: number;
  readonly p99Ms: number;
  readonly longestMs: number;
}

const defaultAnswerLimitMs = 10_000;
const tickMs = 2;
const clientBufferSize = 4 * 1024 * 1024;
const datagramSize = 32;

const plan: DatagramPlan = JSON.parse(process.argv[2]!);
const { tags = [0], from = "127.0.0.1", answerLimitMs = defaultAnswerLimitMs } = plan;
/** A client that was not let run catches up at twice the pace, not all at once. */
const longestBurst = Math.ceil(2 * plan.perSecond * tickMs / 1_000);
const bufferErrorsBefore = bufferErrors();
const failures: Record<string, number> = {};
const byGeneration: Record<string, number> = {};
const byTag: Record<string, Record<string, number>> = {};
const latencies = new Histogram();
let sent = 0;
let answered = 0;
let pacedSeconds = 0;
let pacedCount = 0;

/** One port. */
class Flow {
  readonly #socket: dgram.Socket = dgram.createSocket({ type: "udp4", recvBufferSize: clientBufferSize });
  /** The tag, the number, and nothing else that anybody looks at. */
  readonly #datagram = Buffer.alloc(datagramSize);
  readonly #byGeneration: Record<string, number>;
  /** When each that has no answer yet was sent, by its number. */
  readonly #unanswered = new Map<number, number>();
  #sent = 0;
  isHeard = false;

  private constructor(tag: number) {
    this.#datagram[0] = tag;
    this.#byGeneration = byTag[tag] ??= {};
  }

  static async open(tag: number): Promise<Flow> {
    const flow = new Flow(tag);
    flow.#socket.bind(0, from);
    await once(flow.#socket, "listening");
    flow.#socket.connect(plan.port, "127.0.0.1");
    await once(flow.#socket, "connect");
    flow.#socket.on("message", (bytes) => flow.#answer(bytes));
    // Nobody is bound there, or was for a moment.
    flow.#socket.on("error", (error: NodeJS.ErrnoException) => fail(error.code ?? error.message));
    return flow;
  }

  get unansweredCount(): number {
    return this.#unanswered.size;
  }

  send(): void {
    sent++;
    const number = this.#sent++;
    this.#datagram.writeUInt32BE(number, 1);
    this.#unanswered.set(number, performance.now());
    // A copy, because what cannot be sent at once waits.
    this.#socket.send(Buffer.from(this.#datagram));
  }

  close(): void {
    this.#socket.close();
  }

  #answer(bytes: Uint8Array): void {
    const { number, generation } = JSON.parse(String(bytes)) as { number: number; generation: number };
    answered++;
    this.isHeard = true;
    const sentAt = this.#unanswered.get(number);
    if (sentAt === undefined) return fail(number < this.#sent ? "again" : "unasked");
    this.#unanswered.delete(number);
    latencies.add(performance.now() - sentAt);
    count(byGeneration, generation);
    count(this.#byGeneration, generation);
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
  return {
    done,
    seconds: rounded(pacedSeconds),
    perSecond: Math.round(pacedCount / Math.max(pacedSeconds, tickMs / 1_000)),
    sent,
    answered,
    byGeneration,
    byTag,
    failures,
    bufferErrors: bufferErrors() - bufferErrorsBefore,
    p50Ms: rounded(latencies.at(0.5)),
    p99Ms: rounded(latencies.at(0.99)),
    longestMs: rounded(latencies.max),
  };
}

function rounded(value: number): number {
  return Number(value.toFixed(2));
}

function sleep(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

const tagOf = (index: number) => tags[index % tags.length]!;
const flows = await Promise.all(Array.from({ length: plan.flowCount }, (_, index) => Flow.open(tagOf(index))));
const unansweredCount = () => flows.reduce((sum, flow) => sum + flow.unansweredCount, 0);
let isOver = false;
process.once("SIGTERM", () => isOver = true);

for (const flow of flows) flow.send();
while (!isOver && flows.some(({ isHeard }) => !isHeard)) await sleep(tickMs);
const progress = setInterval(() => console.log(JSON.stringify(report(false))), 1_000);
console.log(JSON.stringify(report(false)));

for (const startedAt = performance.now(); !isOver; await sleep(tickMs)) {
  pacedSeconds = (performance.now() - startedAt) / 1_000;
  const due = Math.min(Math.floor(pacedSeconds * plan.perSecond) - pacedCount, longestBurst);
  for (let count = 0; count < due; count++) flows[pacedCount++ % flows.length]!.send();
}
for (let waitedMs = 0; unansweredCount() > 0 && waitedMs < answerLimitMs; waitedMs += tickMs) await sleep(tickMs);
clearInterval(progress);
// Whatever comes twice comes soon.
await sleep(100);
if (unansweredCount() > 0) fail("unanswered", unansweredCount());
console.log(JSON.stringify(report(true)));
for (const flow of flows) flow.close();
