/**
 * Giving listening sockets of this process to a HAProxy that is started with
 * `-x PATH`: on that path, this answers the one command that it sends.
 *
 * ```text
 * accepted ── user checked ── a line within helloMs ── _getsocks: count, batches, each answered within batchMs
 *                                                  └── else: "Unknown command", as HAProxy's own command line says
 * ```
 *
 * Every client is a conversation of its own, and none waits for another.
 *
 * @module
 */

import { isSystemError, shown, TakeoverError } from "../errors.ts";
import { type Limits, limitsFrom } from "../limits.ts";
import type { Runtime } from "../runtime.ts";
import { disposeAll, OwnedDescriptor } from "../sockets/descriptors.ts";
import type { FdChannel } from "../channels/fd_channel.ts";
import type { Descriptor } from "../sockets/descriptors.ts";
import { type FdListener, listenChannel } from "../channels/fd_listener.ts";
import { checkPeerUser } from "../sockets/identity.ts";
import { pause, type WaitOptions } from "../channels/readiness.ts";
import { noteElsewhere } from "../sockets/elsewhere.ts";
import { cookieOf, duplicate, identify } from "../sockets/socket.ts";
import { isListener } from "./haproxy.ts";
import {
  batchCount,
  command,
  encodeInteger,
  encodeRecord,
  interfaceSize,
  namespaceSize,
} from "./haproxy_records.ts";

/** A socket that HAProxy may have, and what its bind line must say to get it. */
export interface HaproxyListener {
  /** It stays the caller's; HAProxy gets a copy. */
  readonly descriptor: Descriptor;
  /** HAProxy takes it for a bind line with this `namespace` only; for one without when left out. */
  readonly namespace?: string;
  /** HAProxy takes it for a bind line with this `interface` only; for one without when left out. */
  readonly interface?: string;
}

/** Who may ask, and who hears of it. */
export interface HaproxyServiceOptions {
  /** The path's permissions; 0o600 when left out. */
  readonly mode?: number;
  /** Takes a path over at which nobody listens any more, as after a crash. */
  readonly replaceStale?: boolean;
  /** User ids that may ask, besides this process's own: 0 for a HAProxy that root starts. */
  readonly allowUsers?: readonly number[];
  /**
   * `helloMs` for the command, `batchMs` for each batch and its answer,
   * `pendingCount` clients at once, of which the oldest gives way to a new one,
   * `endpointCount` sockets.
   */
  readonly limits?: Partial<Limits>;
  /** Hears that a client has them all. It is not ready then, and may still fail to start. */
  readonly onTaken?: (count: number) => void;
  /** Hears of a client that got nothing, or not all of it. */
  readonly onRefused?: (error: unknown) => void;
}

/** HAProxy reads a whole buffer; nothing that is asked here is longer. */
const mostCommandSize = 1_024;

/** As HAProxy's command line answers, with the one command that is here. */
const unknownCommand = "Unknown command. Please enter one of the following commands only :\n" +
  "  _getsocks      : take the listening sockets\n\n";

/** How long to wait when no descriptor is free for a client. */
const fullTablePauseMs = 50;

/** A path on which HAProxy gets listening sockets of this process. It does not keep the process alive. */
export class HaproxyService implements Disposable {
  readonly #runtime: Runtime;
  readonly #listeners: () => Iterable<HaproxyListener>;
  readonly #options: HaproxyServiceOptions;
  readonly #limits: Limits;
  readonly #listener: FdListener;
  /** Oldest first. */
  readonly #clients = new Set<FdChannel>();

  /** See `serveToHaproxy` in mod.ts, which chooses the runtime. */
  constructor(
    runtime: Runtime,
    path: string,
    listeners: () => Iterable<HaproxyListener>,
    options: HaproxyServiceOptions = {},
  ) {
    this.#runtime = runtime;
    this.#listeners = listeners;
    this.#options = options;
    this.#limits = limitsFrom(options.limits);
    this.#listener = listenChannel(runtime, path, { mode: options.mode ?? 0o600, replaceStale: options.replaceStale });
    void this.#accept();
  }

  /**
   * Stops answering, hangs up on clients in the middle, and removes the path,
   * unless somebody else has bound it meanwhile: a HAProxy whose own
   * configuration has a `stats socket` there renames it over this one.
   */
  close(): void {
    if (this.#listener.descriptor < 0) return;
    this.#listener.close();
    const clients = [...this.#clients];
    this.#clients.clear();
    for (const client of clients) client.close();
  }

  /** The same as {@linkcode close}. */
  [Symbol.dispose](): void {
    this.close();
  }

  get #isClosed(): boolean {
    return this.#listener.descriptor < 0;
  }

  async #accept(): Promise<void> {
    while (!this.#isClosed) {
      try {
        this.#admit(await this.#listener.accept({ keepAlive: false }));
      } catch (error) {
        if (this.#isClosed) return;
        if (!isSystemError(error, "EMFILE", "ENFILE", "ENOBUFS", "ENOMEM")) this.#options.onRefused?.(error);
        await pause(fullTablePauseMs);
      }
    }
  }

  #admit(client: FdChannel): void {
    const { pendingCount } = this.#limits;
    const [oldest] = this.#clients;
    if (oldest && this.#clients.size >= pendingCount) {
      const why = `expected at most ${pendingCount} clients at once (limit pendingCount), one more came; ask again`;
      this.#refuse(oldest, new TakeoverError("ERR_TAKEOVER_BUSY", `Cannot answer a client: ${why}`));
    }
    this.#clients.add(client);
    void this.#serve(client);
  }

  async #serve(client: FdChannel): Promise<void> {
    try {
      checkPeerUser(this.#runtime, client.descriptor, this.#options.allowUsers ?? [], "successor");
      await this.#expectCommand(client);
      const count = await this.#give(client);
      this.#options.onTaken?.(count);
    } catch (error) {
      this.#refuse(client, error);
    } finally {
      this.#clients.delete(client);
      client.close();
    }
  }

  /** Hangs up, and says why, unless that has happened before. */
  #refuse(client: FdChannel, error: unknown): void {
    client.close();
    if (this.#clients.delete(client)) this.#options.onRefused?.(error);
  }

  /** Reads one line. */
  async #expectCommand(client: FdChannel): Promise<void> {
    const wait = within(this.#limits.helloMs);
    let line = "";
    while (!line.includes("\n") && line.length < mostCommandSize) {
      const message = await client.receive({ ...wait(), keepAlive: false, maxBytes: mostCommandSize, maxFds: 0 });
      if (message === null) throw lost("answer a client", "before it had asked");
      line += String.fromCharCode(...message.bytes);
    }
    const asked = line.slice(0, line.indexOf("\n")).trim();
    if (asked === command) return;
    await client.send(new TextEncoder().encode(unknownCommand), [], wait());
    throw new TakeoverError(
      "ERR_TAKEOVER_PROTOCOL",
      `Cannot answer the command ${shown(asked)}: expected ${command}, which a HAProxy sends that is started with -x`,
    );
  }

  /** Sends what this process has now, under descriptors that stay open meanwhile. */
  async #give(client: FdChannel): Promise<number> {
    const listeners = [...this.#listeners()];
    const records = listeners.map((listener) => this.#recordOf(listener));
    this.#checkCount(records.length);
    const copies: OwnedDescriptor[] = [];
    try {
      for (const { descriptor } of listeners) copies.push(this.#copyOf(descriptor));
      await client.send(encodeInteger(copies.length), [], within(this.#limits.batchMs)());
      for (let from = 0; from < copies.length; from += batchCount) {
        const to = Math.min(from + batchCount, copies.length);
        await this.#giveBatch(client, joined(records.slice(from, to)), copies.slice(from, to));
      }
    } finally {
      disposeAll(copies);
    }
    return copies.length;
  }

  /** In one message: a HAProxy looks for no more bytes once it has as many descriptors as were announced. */
  async #giveBatch(client: FdChannel, bytes: Uint8Array, descriptors: readonly OwnedDescriptor[]): Promise<void> {
    const wait = within(this.#limits.batchMs);
    for (const { number } of descriptors) noteElsewhere(cookieOf(this.#runtime, number));
    await client.send(bytes, descriptors, wait());
    const answer = await client.receive({ ...wait(), maxFds: 0 });
    if (answer === null) throw lost("give sockets to HAProxy", "before it had answered a batch");
  }

  #recordOf({ namespace = "", interface: device = "" }: HaproxyListener): Uint8Array {
    const record = encodeRecord({ namespace, interface: device });
    if (record) return record;
    throw new TakeoverError(
      "ERR_TAKEOVER_LIMIT",
      `Cannot give a socket to HAProxy: expected a namespace of at most ${namespaceSize} bytes, an interface of at ` +
        `most ${interfaceSize}, got ${shown(namespace)} and ${shown(device)}`,
    );
  }

  #checkCount(count: number): void {
    const { endpointCount } = this.#limits;
    if (count <= endpointCount) return;
    throw new TakeoverError(
      "ERR_TAKEOVER_LIMIT",
      `Cannot give ${count} sockets to HAProxy: expected at most ${endpointCount}; raise the limit endpointCount`,
    );
  }

  #copyOf(descriptor: Descriptor): OwnedDescriptor {
    const number = typeof descriptor === "number" ? descriptor : descriptor.number;
    const runtime = this.#runtime;
    if (isListener(identify(runtime, number))) return new OwnedDescriptor(runtime, duplicate(runtime, number));
    throw new TakeoverError(
      "ERR_TAKEOVER_DESCRIPTOR",
      `Cannot give descriptor ${number} to HAProxy: expected an open socket that listens, or is for datagrams`,
    );
  }
}

function lost(what: string, when: string): TakeoverError {
  return new TakeoverError("ERR_TAKEOVER_LOST", `Cannot ${what}: it hung up ${when}; see its log`);
}

/** What is left of a time, whenever it is asked. */
function within(ms: number): () => WaitOptions {
  const until = Date.now() + ms;
  return () => ({ timeoutMs: Math.max(0, until - Date.now()) });
}

function joined(parts: readonly Uint8Array[]): Uint8Array {
  const all = new Uint8Array(parts.reduce((size, part) => size + part.length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}
