/**
 * A page in a real browser: its WebSocket lives through three generations.
 *
 * @module
 */

import assert from "node:assert/strict";
import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import test from "node:test";
import { chromium } from "playwright-core";
import { type RuntimeName, Server } from "../support/server.ts";

const executablePath = "/usr/bin/chromium";
const skip = existsSync(executablePath) ? false : "chromium is not installed (Debian's package of that name)";
const port = 24_781;

/** What the page tells. */
interface Chat {
  readonly connects: number;
  readonly messages: number;
  readonly generations: readonly number[];
  readonly lost: number;
}

test("examples/chat.ts in Chromium: three runtimes follow each other, and the page never connects again", { skip }, async () => {
  const folder = mkdtempSync(join(tmpdir(), "takeover-test-"));
  const env = { PORT: `${port}`, TAKEOVER: join(folder, "takeover.sock"), SETTLE_MS: "100", DRAIN_MS: "20000" };
  const browser = await chromium.launch({ executablePath, args: ["--no-sandbox"] });
  const servers: Server[] = [];
  const start = async (runtime: RuntimeName) => {
    const server = new Server(runtime, "examples/chat.ts", env);
    servers.push(server);
    await server.event("ready");
  };
  try {
    await start("deno");
    const page = await browser.newPage();
    await page.goto(`http://127.0.0.1:${port}/`);
    const told = () => page.evaluate<Chat>("globalThis.chat");
    const reached = (generation: number) =>
      page.waitForFunction(`globalThis.chat.generations.includes(${generation})`, null, { timeout: 30_000 });
    await reached(1);
    await start("bun");
    await reached(2);
    await start("node");
    await reached(3);
    const before = await told();
    // And it goes on there.
    await page.waitForFunction(`globalThis.chat.messages >= ${before.messages + 4}`, null, { timeout: 30_000 });
    const { connects, generations, lost } = await told();
    assert.deepEqual({ connects, generations, lost }, { connects: 1, generations: [1, 2, 3], lost: 0 });

    // The page would notice: without a successor it has to connect again.
    await Promise.all(servers.map((server) => server[Symbol.asyncDispose]()));
    await start("node");
    await page.waitForFunction("globalThis.chat.connects === 2", null, { timeout: 30_000 });
  } finally {
    await browser.close();
    await Promise.all(servers.map((server) => server[Symbol.asyncDispose]()));
    rmSync(folder, { recursive: true });
  }
});
