/**
 * Progress of connections that move, on one line: a bar, a count and a rate.
 * Where there is no terminal, plain lines, and not many of them.
 */

import process from "node:process";
import type { Progress } from "../mod.ts";

const width = 30;

/** How often a plain line is written. */
const plainMs = 1_000;

/** Where it is shown. */
interface Terminal {
  readonly isTTY?: boolean;
  write(text: string): unknown;
}

/** Shows how far a move has come. */
export class ProgressLine {
  readonly #terminal: Terminal;
  #shown = "";
  #writtenAt = 0;

  constructor(terminal: Terminal) {
    this.#terminal = terminal;
  }

  /** Shows it, in place of what was shown before. */
  show(progress: Progress): void {
    const line = this.#terminal.isTTY ? drawn(progress) : plain(progress);
    if (line === this.#shown) return;
    this.#shown = line;
    if (this.#terminal.isTTY) return void this.#terminal.write(`\r\x1b[K${line}`);
    if (progress.remaining > 0 && Date.now() - this.#writtenAt < plainMs) return;
    this.#writtenAt = Date.now();
    this.#terminal.write(`${line}\n`);
  }

  /** Leaves what was shown last. */
  end(): void {
    if (this.#terminal.isTTY && this.#shown) this.#terminal.write("\n");
  }
}

function plain({ moved, refused, remaining, rate, estimateMs, draining }: Progress): string {
  const stays = Object.entries(draining).map(([reason, count]) => `${count} ${reason}`).join(", ");
  return [
    `${moved} moved`,
    refused > 0 && `${refused} refused`,
    remaining > 0 && `${remaining} remain`,
    stays && `drain: ${stays}`,
    `${rate}/s`,
    remaining > 0 && estimateMs !== null && `${(estimateMs / 1_000).toFixed(1)} s left`,
  ].filter(Boolean).join(", ");
}

function drawn(progress: Progress): string {
  const { moved, remaining } = progress;
  const filled = Math.round(width * moved / Math.max(1, moved + remaining));
  const bar = "█".repeat(filled) + "░".repeat(width - filled);
  return `${process.env.NO_COLOR ? bar : `\x1b[32m${bar}\x1b[0m`} ${plain(progress)}`;
}
