/**
 * A successor that lives on: for every path on its stdin it tries to take over,
 * and says what came of it. What a failed hand-over left open is still open then.
 */

import process from "node:process";
import { createInterface } from "node:readline";
import { takeOver, TakeoverError } from "../../mod.ts";

let round = 0;

createInterface({ input: process.stdin }).on("line", async (path) => {
  const { code, message } = await attempt(path);
  console.log(JSON.stringify({ event: `round ${++round}`, pid: process.pid, code, message }));
});

console.log(JSON.stringify({ event: "listening", pid: process.pid }));

async function attempt(path: string): Promise<{ code: string; message: string }> {
  try {
    const takeover = await takeOver(path);
    await takeover.close();
    return { code: "none", message: "It has taken over" };
  } catch (error) {
    if (error instanceof TakeoverError) return error;
    return { code: "unexpected", message: String(error) };
  }
}
