/**
 * Passes messages while every other call is interrupted (EINTR). Started under
 * strace, which injects that.
 */

import { channelPair, connectChannel, listenChannel } from "../../src/channels/fd_listener.ts";
import type { SocketType } from "../../src/sockets/socket.ts";
import { outcomeOf, report } from "./outcome.ts";
import { runtime } from "./seam.ts";
import { numbered, numberIn } from "./raw.ts";

const messageCount = 50;
const path = `\0takeover-test-${runtime.libc.getpid()}`;

report({
  stream: await outcomeOf(() => pass("stream")),
  seqpacket: await outcomeOf(() => pass("seqpacket")),
  dgram: await outcomeOf(() => pass("dgram")),
  accept: await outcomeOf(accept),
});

/** The receiver waits for each message, so that every one goes through the event loop. */
async function pass(type: SocketType): Promise<string> {
  const [left, right] = channelPair(runtime, { type });
  for (let count = 0; count < messageCount; count++) {
    const receiving = right.receive({ timeoutMs: 10_000 });
    const [sent] = numbered(1, count);
    await new Promise((resolve) => setTimeout(resolve, 1));
    await left.send(Uint8Array.of(count), [sent!], { timeoutMs: 10_000 });
    sent![Symbol.dispose]();
    const message = (await receiving)!;
    if (message.bytes[0] !== count || message.fds.length !== 1) return `message ${count} is another`;
    if (numberIn(message.fds[0]!) !== count) return `descriptor ${count} is another`;
    message[Symbol.dispose]();
  }
  left.close();
  right.close();
  return "passed";
}

/** Connections that are waited for, and some that are there already. */
async function accept(): Promise<string> {
  const listener = listenChannel(runtime, path);
  for (let count = 0; count < messageCount; count++) {
    const accepting = count % 2 === 0 ? listener.accept({ timeoutMs: 10_000 }) : null;
    const client = await connectChannel(runtime, path);
    const channel = await (accepting ?? listener.accept({ timeoutMs: 10_000 }));
    channel.close();
    client.close();
  }
  listener.close();
  return "passed";
}
