/**
 * Makes 20 connections, sends `seq num 1` to `seq num 20`, one on each, and
 * prints who answered:
 *
 * ```sh
 * deno run --allow-net --allow-env examples/forward/client.ts
 * bun examples/forward/client.ts
 * node examples/forward/client.ts
 * ```
 *
 * Environment: `PORT` (8080), `HOST` (127.0.0.1), `COUNT` (20), `ANSWER_MS`
 * (10000: how long an answer may take).
 *
 * Exit status: 0 when every connection was answered, else 1.
 */

import net from "node:net";
import process from "node:process";

const { env } = process;
const address = { host: env.HOST ?? "127.0.0.1", port: Number(env.PORT ?? 8080) };
const answerMs = Number(env.ANSWER_MS ?? 10_000);
const wholeAnswer = /^process by \w+$/;

const numbers = Array.from({ length: Number(env.COUNT ?? 20) }, (_, index) => index + 1);
let missingCount = 0;
for (const [index, asking] of numbers.map((number) => ask(`seq num ${number}`)).entries()) {
  const text = await asking.catch((error: Error) => (missingCount++, `no answer: ${error.message}`));
  console.log(`seq num ${numbers[index]}: ${text}`);
}
if (missingCount > 0) console.error(`${missingCount} of ${numbers.length} were not answered`);
process.exit(missingCount > 0 ? 1 : 0);

/** The answer to a request on a connection of its own. */
function ask(request: string): Promise<string> {
  return new Promise((resolve, reject) => {
    let answer = "";
    const socket = net.connect(address, () => socket.write(request));
    const timer = setTimeout(() => socket.destroy(new Error(`nothing came within ${answerMs} ms`)), answerMs);
    socket.on("data", (bytes) => {
      answer += new TextDecoder().decode(bytes as Uint8Array);
      // Not every server closes when it has answered.
      if (wholeAnswer.test(answer.trimEnd())) socket.end();
    });
    socket.once("error", (error) => {
      if (answer === "") reject(error);
    });
    socket.once("close", () => {
      clearTimeout(timer);
      if (answer === "") reject(new Error("the connection was closed"));
      else resolve(answer.trimEnd());
    });
  });
}
