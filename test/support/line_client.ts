/**
 * One connection to a server of lines, as a test speaks on it.
 *
 * @module
 */

import net from "node:net";
import { patternOf } from "./pattern.ts";

/** The answer to a line. */
export interface Answer {
  /** Whatever stands before the number. */
  readonly prefix: string;
  /** How many lines of this connection have been answered. */
  readonly count: number;
  readonly pid: number;
  readonly generation: number;
}

/** How long an answer may take; far beyond what it does take. */
const patienceMs = 30_000;

/** A connection whose bytes are taken when they are wanted, and not before. */
export class LineClient implements Disposable {
  readonly socket: net.Socket;
  /** What has been taken and not been used. */
  #rest: Buffer = Buffer.alloc(0);

  private constructor(to: net.NetConnectOpts) {
    this.socket = net.connect({ noDelay: true, ...to, allowHalfOpen: true } as net.NetConnectOpts);
    // Whatever ends it is seen by whoever reads.
    this.socket.on("error", () => {});
  }

  /** Opens a connection; its first line has been answered. */
  static async open(to: net.NetConnectOpts): Promise<LineClient> {
    const client = new LineClient(to);
    if (await client.ask() === null) throw new Error(`Nobody answers at ${JSON.stringify(to)}`);
    return client;
  }

  /** Opens many, one after another. */
  static async openMany(to: net.NetConnectOpts, count: number): Promise<LineClient[]> {
    const clients: LineClient[] = [];
    while (clients.length < count) clients.push(await LineClient.open(to));
    return clients;
  }

  /** Sends a line and gives its answer; null when the connection has ended. */
  async ask(line = "x"): Promise<Answer | null> {
    this.socket.write(`${line}\n`);
    return await this.answer();
  }

  /** The next answer; null when the connection has ended. */
  async answer(): Promise<Answer | null> {
    let end: number;
    while ((end = this.#rest.indexOf("\n")) < 0) if (!await this.#more()) return null;
    const text = this.#taken(end + 1).toString("latin1").trimEnd();
    const [, prefix, count, pid, generation] = /^(.*?)(\d+) (\d+) (\d+)$/.exec(text) ?? [];
    if (prefix === undefined) throw new Error(`Expected an answer, got ${JSON.stringify(text.slice(0, 80))}`);
    return { prefix, count: Number(count), pid: Number(pid), generation: Number(generation) };
  }

  /** Whether the next bytes are the first so many of the pattern. */
  async hasPattern(size: number): Promise<boolean> {
    const pattern = patternOf(size);
    for (let at = 0; at < size;) {
      if (this.#rest.length === 0 && !await this.#more()) return false;
      const chunk = this.#taken(Math.min(this.#rest.length, size - at));
      if (!chunk.equals(pattern.subarray(at, at += chunk.length))) return false;
    }
    return true;
  }

  /** The next bytes; null at the end. */
  async some(): Promise<Uint8Array | null> {
    if (this.#rest.length === 0 && !await this.#more()) return null;
    return this.#taken(this.#rest.length);
  }

  /** Whether nothing has come that nobody has asked for. */
  get isSilent(): boolean {
    return this.#rest.length === 0 && this.socket.readableLength === 0;
  }

  /** Ends this side. */
  end(): void {
    this.socket.end();
  }

  [Symbol.dispose](): void {
    this.socket.destroy();
  }

  #taken(size: number): Buffer {
    const taken = this.#rest.subarray(0, size);
    this.#rest = this.#rest.subarray(size);
    return taken;
  }

  /** Takes what has come, or waits for it; false at the end. */
  async #more(): Promise<boolean> {
    const { socket } = this;
    for (;;) {
      const chunk = socket.read() as Buffer | null;
      if (chunk !== null) {
        this.#rest = Buffer.concat([this.#rest, chunk]);
        return true;
      }
      if (socket.readableEnded || socket.destroyed) return false;
      await this.#event();
    }
  }

  #event(): Promise<void> {
    const { socket } = this;
    const events = ["readable", "end", "close"];
    return new Promise((resolve, reject) => {
      const settle = () => {
        clearTimeout(timer);
        for (const event of events) socket.off(event, settle);
        resolve();
      };
      const timer = setTimeout(() => reject(new Error(`Nothing came within ${patienceMs} ms`)), patienceMs);
      for (const event of events) socket.on(event, settle);
    });
  }
}
