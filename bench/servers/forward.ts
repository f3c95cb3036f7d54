/**
 * Passes accepted connections on to another process, or receives them: the two
 * sides of the bench "forward", as forward.c has them.
 *
 * Environment: `ROLE` (`server` or `receiver`), `FORWARD_SOCKET`. Each line on
 * stdin, "ROUND one|each COUNT", is one round; its answer is one JSON line.
 */

import process from "node:process";
import { createInterface } from "node:readline";
import { connectChannel, type FdChannel, listenChannel, openAcceptor } from "../../mod.ts";

const { ROLE, FORWARD_SOCKET: path = "" } = process.env;
const word = new TextEncoder().encode("forward");
const wanted = { minFds: 1, maxFds: 1 };

if (ROLE === "server") await serve();
else await receive();

async function serve(): Promise<void> {
  const acceptor = await openAcceptor({ hostname: "127.0.0.1", port: 0 });
  say("open", acceptor.address);
  for await (const { round, isEach, count } of rounds()) {
    const start = performance.now();
    let channel = await connectChannel(path);
    for (let passed = 0; passed < count; passed++) {
      const connection = await acceptor.accept();
      if (isEach && passed > 0) {
        channel.close();
        channel = await connectChannel(path);
      }
      await channel.send(word, [connection]);
      connection[Symbol.dispose]();
    }
    await channel.receive();
    const ms = performance.now() - start;
    channel.close();
    say(`round ${round}`, { perSecond: Math.round(count / ms * 1_000) });
  }
}

async function receive(): Promise<void> {
  const listener = await listenChannel(path);
  say("open", {});
  for await (const { round, isEach, count } of rounds()) {
    let channel: FdChannel = await listener.accept();
    for (let received = 0; received < count; received++) {
      if (isEach && received > 0) {
        channel.close();
        channel = await listener.accept();
      }
      (await channel.receive(wanted))![Symbol.dispose]();
    }
    await channel.send(word.subarray(0, 1));
    channel.close();
    say(`round ${round}`, {});
  }
}

async function* rounds(): AsyncGenerator<{ round: string; isEach: boolean; count: number }> {
  for await (const line of createInterface({ input: process.stdin })) {
    const [round, mode, count] = line.split(" ");
    yield { round: round!, isEach: mode === "each", count: Number(count) };
  }
}

function say(event: string, more: object): void {
  console.log(JSON.stringify({ event, pid: process.pid, ...more }));
}
