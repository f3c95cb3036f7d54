/**
 * Passes accepted connections to a forked child as Node's own documentation
 * does, with `child.send(message, socket)`: what the bench "forward" compares
 * with. It accepts only during a round, like the others.
 *
 * Each line on stdin, "ROUND one COUNT", is one round.
 */

import { fork } from "node:child_process";
import { createServer, type Socket } from "node:net";
import process from "node:process";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { openAcceptor, openRuntime } from "../../mod.ts";
import { duplicate } from "../../src/sockets/socket.ts";

const queueLength = 4_096;

if (process.send) receive();
else await serve();

async function serve(): Promise<void> {
  const runtime = await openRuntime();
  const acceptor = await openAcceptor({ hostname: "127.0.0.1", port: 0 });
  const child = fork(fileURLToPath(import.meta.url), { stdio: ["ignore", "inherit", "inherit", "ipc"] });
  await new Promise((resolve) => child.once("message", resolve));
  say("open", { ...acceptor.address, childPid: child.pid });
  for await (const line of createInterface({ input: process.stdin })) {
    const [round, , count] = line.split(" ");
    const start = performance.now();
    const done = new Promise((resolve) => child.once("message", resolve));
    child.send({ count: Number(count) });
    const server = createServer({ pauseOnConnect: true }, (socket) => void child.send("forward", socket));
    server.listen({ fd: duplicate(runtime, acceptor.descriptor) });
    await done;
    const ms = performance.now() - start;
    await new Promise((resolve) => server.close(resolve));
    // Both runtimes have called listen(2) again, with 511, which every copy of the socket shares.
    runtime.libc.listen(acceptor.descriptor, queueLength);
    say(`round ${round}`, { perSecond: Math.round(Number(count) / ms * 1_000) });
  }
  process.exit(0);
}

function receive(): void {
  let expected = 0;
  let received = 0;
  process.on("message", (message: "forward" | { count: number }, socket?: Socket) => {
    if (message !== "forward") [expected, received] = [message.count, 0];
    else {
      socket!.destroy();
      if (++received === expected) process.send!("done");
    }
  });
  process.send!("open");
}

function say(event: string, more: object): void {
  console.log(JSON.stringify({ event, pid: process.pid, ...more }));
}
