/**
 * A server of lines whose connections move: the subject of the bench
 * "connections". It says `ready`, and when it has been replaced how its
 * connections went; the longest turns of its event loop beside it.
 *
 * Environment: `TAKEOVER`, `PORT`. Every event is one JSON line on stdout.
 */

import { createServer, type Socket } from "node:net";
import process from "node:process";
import { type Moved, type Progress, takeOver } from "../../mod.ts";

const { env, pid } = process;
const newline = 10;

let longestTurnMs = 0;
watchTurns();
const takeover = await takeOver(env.TAKEOVER!, { limits: { settleMs: 2_000, drainMs: 60_000 } });
const lines = takeover.connections("lines", {
  serve(socket: Socket, moved: Moved<number> | null) {
    let count = moved?.state ?? 0;
    socket.on("error", () => {});
    socket.on("data", (bytes: Uint8Array) => {
      for (const byte of bytes) if (byte === newline) socket.write(`${++count}\n`);
    });
    return { leave: () => ({ state: count }) };
  },
});
let progress: Progress | null = null;
takeover.on("progress", (now) => progress = now);
takeover.on("leased", () => longestTurnMs = 0);
takeover.on("settled", ({ role }) => role === "successor" && say("settled", { longestTurnMs }));
await takeover.listen("lines", { hostname: "127.0.0.1", port: Number(env.PORT), backlog: 4_096 }, (at) =>
  createServer((socket) => lines.add(socket)).listen(at)
);
longestTurnMs = 0;
await takeover.ready();
say("ready", { generation: takeover.generation });
await takeover.released;
await takeover.drained();
say("drained", { ...progress as Progress | null, longestTurnMs });
process.exit(0);

/** How late a timer of a millisecond comes. */
function watchTurns(): void {
  let dueAt = performance.now() + 1;
  setInterval(() => {
    longestTurnMs = Math.max(longestTurnMs, performance.now() - dueAt);
    dueAt = performance.now() + 1;
  }, 1);
}

function say(event: string, more: object): void {
  console.log(JSON.stringify({ event, pid, ...more }));
}
