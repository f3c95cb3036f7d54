/**
 * One connection to a server of lines, as a test speaks on it.
 *
 * @module
 */

import net from "node:net";

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
  /** Resolves with `end`, or with the code of the error. */
  readonly ended: Promise<string>;

  constructor(to: net.NetConnectOpts) {
    this.socket = net.connect({ noDelay: true, ...to, allowHalfOpen: true });
    this.ended = new Promise((resolve) => {
      this.socket.once("end", () => resolve("end"));
      this.socket.once("error", (error: NodeJS.ErrnoException) => resolve(error.code ?? error.message));
    });
  }

  /** Opens a connection; its first line has been answered. */
  static async open(to: net.NetConnectOpts): Promise<LineClient> {
    const client = new LineClient(to);
    await client.ask();
    return client;
  }

  /** Opens many, one after another. */
  static async openMany(to: net.NetConnectOpts, count: number): Promise<LineClient[]> {
    const clients: LineClient[] = [];
    while (clients.length < count) clients.push(await LineClient.open(to));
    return clients;
  }

  /** Sends a line and gives its answer. */
  async ask(line = "x"): Promise<Answer> {
    this.socket.write(`${line}\n`);
    return await this.answer();
  }

  /** The next answer. */
  async answer(): Promise<Answer> {
    const text = await this.#taken(() => this.#line());
    const [, prefix, count, pid, generation] = /^(.*?)(\d+) (\d+) (\d+)$/.exec(text) ?? [];
    if (prefix === undefined) throw new Error(`Expected an answer, got ${JSON.stringify(text.slice(0, 80))}`);
    return { prefix, count: Number(count), pid: Number(pid), generation: Number(generation) };
  }

  /** Exactly that many bytes. */
  async bytes(size: number): Promise<Uint8Array> {
    return await this.#taken(() => this.socket.readableLength < size ? this.#short(size) : this.socket.read(size));
  }

  /** A chunk, or null at the end. */
  async some(): Promise<Uint8Array | null> {
    return await this.#taken(() => this.socket.read() ?? (this.socket.readableEnded ? "end" : null))
      .then((chunk) => chunk === "end" ? null : chunk);
  }

  /** Whether something has come that nobody has asked for. */
  get hasMore(): boolean {
    return this.socket.readableLength > 0;
  }

  [Symbol.dispose](): void {
    this.socket.destroy();
  }
}
