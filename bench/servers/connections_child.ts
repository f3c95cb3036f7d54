/**
 * A server of lines that gives its connections to a forked child, as Node's own
 * documentation does it, with `child.send(message, socket)`: what the bench
 * "connections" compares with.
 *
 * A line on stdin, "ROUND", has it give them all. Every event is one JSON line
 * on stdout.
 */

import { fork } from "node:child_process";
import { createServer, type Socket } from "node:net";
import process from "node:process";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

const newline = 10;

/** Connections, and how many lines each has had. */
const counts = new Map<Socket, number>();

if (process.send) receive();
else await serve();

async function serve(): Promise<void> {
  const server = createServer((socket) => answer(socket, 0));
  const child = fork(fileURLToPath(import.meta.url), { stdio: ["ignore", "inherit", "inherit", "ipc"] });
  await new Promise((resolve) => child.once("message", resolve));
  await new Promise<void>((resolve) => server.listen({ host: "127.0.0.1", port: 0, backlog: 4_096 }, resolve));
  say("open", server.address() as object);
  for await (const round of createInterface({ input: process.stdin })) {
    const start = performance.now();
    const done = new Promise((resolve) => child.once("message", resolve));
    const moving = [...counts];
    for (const [socket, count] of moving) child.send({ count, left: moving.length }, socket);
    await done;
    say(`round ${round.trim()}`, { moved: moving.length, ms: performance.now() - start });
  }
  process.exit(0);
}

function receive(): void {
  let received = 0;
  process.on("message", ({ count, left }: { count: number; left: number }, socket?: Socket) => {
    answer(socket!, count);
    if (++received === left) process.send!("done");
  });
  process.send!("open");
}

function answer(socket: Socket, begun: number): void {
  counts.set(socket, begun);
  socket.on("error", () => {});
  socket.on("data", (bytes: Uint8Array) => {
    for (const byte of bytes) {
      if (byte !== newline) continue;
      counts.set(socket, counts.get(socket)! + 1);
      socket.write(`${counts.get(socket)}\n`);
    }
  });
}

function say(event: string, more: object): void {
  console.log(JSON.stringify({ event, pid: process.pid, ...more }));
}
