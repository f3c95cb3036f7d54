/**
 * The stand-in for load.c where nothing compiles it: the same lines, the same
 * answers, on Node. It needs more processor time than most of the servers.
 */

import { connect, type Socket } from "node:net";
import process from "node:process";
import { createInterface } from "node:readline";

const request = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
const freshRequest = "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";

/** How long answers are waited for after the last connection. */
const patienceMs = 5_000;

say("open", {});
for await (const line of createInterface({ input: process.stdin })) {
  const [round, mode, ...numbers] = line.split(" ");
  const [port, ms, amount] = numbers.map(Number) as [number, number, number];
  say(`round ${round}`, mode === "kept" ? await kept(port, ms, amount) : await fresh(port, ms, amount));
}

async function kept(port: number, ms: number, count: number): Promise<object> {
  let answered = 0;
  let failed = 0;
  const sockets = Array.from({ length: count }, () => connect(port, "127.0.0.1"));
  await Promise.all(sockets.map((socket) => new Promise((resolve) => socket.once("connect", resolve))));
  const start = performance.now();
  for (const socket of sockets) {
    ask(socket, request, (isAnswered) => {
      if (isAnswered) answered++;
      else failed++;
      return isAnswered;
    });
  }
  await sleep(ms);
  const perSecond = answered / (performance.now() - start) * 1_000;
  const result = { answered, perSecond, failed };
  for (const socket of sockets) socket.destroy();
  return result;
}

async function fresh(port: number, ms: number, rate: number): Promise<object> {
  const total = Math.floor(ms * rate / 1_000);
  const latencies: number[] = [];
  const start = performance.now();
  const open = new Set<Socket>();
  for (let opened = 0; opened < total; await sleep(1)) {
    for (; opened < total && performance.now() - start >= opened / rate * 1_000; opened++) {
      const due = start + opened / rate * 1_000;
      const socket = connect(port, "127.0.0.1");
      open.add(socket);
      ask(socket, freshRequest, (isAnswered) => {
        if (isAnswered) latencies.push(performance.now() - due);
        open.delete(socket);
        return false;
      });
    }
  }
  for (let waited = 0; open.size > 0 && waited < patienceMs; waited += 10) await sleep(10);
  for (const socket of open) socket.destroy();
  latencies.sort((a, b) => a - b);
  const quantile = (share: number) =>
    latencies[Math.min(latencies.length - 1, Math.floor(share * latencies.length))] ?? 0;
  return {
    answered: latencies.length,
    failed: total - latencies.length,
    p50: quantile(0.5),
    p99: quantile(0.99),
    p999: quantile(0.999),
    max: quantile(1),
  };
}

/** Asks again for as long as `next` says so; it is told of a failure once. */
function ask(socket: Socket, text: string, next: (isAnswered: boolean) => boolean): void {
  let answer = "";
  let isOver = false;
  const over = (isAnswered: boolean) => {
    if (isOver) return;
    answer = "";
    if (next(isAnswered)) return void socket.write(text);
    isOver = true;
    socket.destroy();
  };
  socket.setNoDelay(true);
  socket.on("data", (bytes) => {
    answer += bytes;
    const body = answer.indexOf("\r\n\r\n") + 4;
    const size = Number(/\r\ncontent-length: *(\d+)/i.exec(answer)?.[1] ?? NaN);
    if (body >= 4 && answer.length >= body + size) over(answer.startsWith("HTTP/1.1 200"));
  });
  socket.on("error", () => over(false));
  socket.on("close", () => over(false));
  socket.write(text);
}

function sleep(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

function say(event: string, more: object): void {
  console.log(JSON.stringify({ event, pid: process.pid, ...more }));
}
