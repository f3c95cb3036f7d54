/**
 * A TCP server that replaces its predecessor and keeps its connections: lines
 * in, answers `N PID GENERATION` out, where N counts the lines of that
 * connection since it was opened, whichever processes have read them. One file
 * for three runtimes:
 *
 * ```sh
 * deno run --allow-ffi --allow-net --allow-env examples/echo.ts
 * bun examples/echo.ts
 * node examples/echo.ts
 * ```
 *
 * Talk to it (`nc 127.0.0.1 8080`), and start it again meanwhile. Environment
 * and events are those of examples/service.ts.
 */

import { createServer, type Socket } from "node:net";
import type { Moved } from "../mod.ts";
import { address, counted, run } from "./service.ts";

/** A line that is longer ends its connection. */
const longestLine = 64 * 1024;

const newline = 10;

await run("echo", async (takeover, { pid, generation }) => {
  const lines = takeover.connections("web", {
    serve(socket: Socket, moved: Moved<{ count: number }> | null) {
      let count = moved?.state.count ?? 0;
      let begun: Uint8Array[] = [];
      socket.on("error", () => {});
      socket.on("data", (bytes: Uint8Array) => {
        counted();
        let answers = "";
        let from = 0;
        for (let at = bytes.indexOf(newline); at >= 0; at = bytes.indexOf(newline, from)) {
          answers += `${++count} ${pid} ${generation}\n`;
          from = at + 1;
          begun = [];
        }
        if (from < bytes.length) begun.push(bytes.subarray(from));
        if (size(begun) > longestLine) return void socket.destroy();
        if (answers) socket.write(answers);
      });
      // The client has ended its side: what it has asked is answered.
      socket.on("end", () => socket.end());
      return { leave: () => ({ state: { count }, unread: joined(begun) }) };
    },
  });
  const server = createServer({ allowHalfOpen: true }, (socket) => lines.add(socket));
  await takeover.listen("web", address, (at) => server.listen(at));
});

function size(chunks: readonly Uint8Array[]): number {
  return chunks.reduce((sum, { length }) => sum + length, 0);
}

function joined(chunks: readonly Uint8Array[]): Uint8Array {
  const bytes = new Uint8Array(size(chunks));
  let at = 0;
  for (const chunk of chunks) {
    bytes.set(chunk, at);
    at += chunk.length;
  }
  return bytes;
}
