/**
 * Asks a client where it is. A ping with random bytes is answered with the same
 * bytes (RFC 6455, section 5.5.3): when that answer is the first thing that has
 * come since nobody reads, what was read before ends with a whole frame. It is
 * taken out of the socket, and nobody hears of it.
 *
 * This is for what cannot be counted: pings that the runtime answers by itself,
 * messages in several frames, requests that were written in an unusual way.
 *
 * @module
 */

import { allocate } from "../c/bytes.ts";
import { Msghdr } from "../c/msghdr.ts";
import type { Runtime } from "../runtime.ts";
import { unsentSize } from "../sockets/queues.ts";
import { tcpInfoOf } from "../sockets/tcp_state.ts";
import { answerSize, isAnswer, isContinuation, pingFrame, tokenSize } from "./websocket_frames.ts";

const MSG_PEEK = 2;

/** How far it has come: `busy` when something else came first, `silent` when nothing came in time. */
export type ProbeState = "asked" | "answered" | "between" | "busy" | "silent";

/** The first and the longest wait between two looks. */
const firstWaitMs = 2;
const longestWaitMs = 32;

/** One question to one client, whose socket nobody else reads meanwhile. */
export class Probe {
  readonly #runtime: Runtime;
  readonly #descriptor: number;
  readonly #token = crypto.getRandomValues(new Uint8Array(tokenSize));
  readonly #until: number;
  readonly #restUntil: number;
  #waitMs = firstWaitMs;
  #lookAt = 0;
  state: ProbeState;

  /**
   * Asks.
   *
   * @param answerMs How long the client has.
   * @param restMs How long nothing but the answer may have come, before the
   *   question and after it, for a message in several frames not to be
   *   half-way. The first byte of the next frame says so at once.
   */
  constructor(runtime: Runtime, descriptor: number, answerMs: number, restMs: number) {
    this.#runtime = runtime;
    this.#descriptor = descriptor;
    this.#until = Date.now() + answerMs;
    this.#restUntil = Date.now() + restMs - (tcpInfoOf(runtime, descriptor)?.sinceReceivedMs ?? 0);
    const ping = pingFrame(this.#token);
    // With nothing else in the send buffer it goes in whole.
    const isSent = unsentSize(runtime, descriptor) === 0 &&
      runtime.libc.write(descriptor, ping, ping.length) === ping.length;
    this.state = isSent ? "asked" : "busy";
  }

  /** Looks what has come, if it is time to. */
  look(): ProbeState {
    if (Date.now() < this.#lookAt) return this.state;
    this.#lookAt = Date.now() + this.#waitMs;
    this.#waitMs = Math.min(2 * this.#waitMs, longestWaitMs);
    if (tcpInfoOf(this.#runtime, this.#descriptor)?.state !== "TCP_ESTABLISHED") return this.state = "busy";
    if (this.state === "asked") this.state = this.#answer();
    if (this.state === "answered") this.state = this.#next();
    return this.state;
  }

  #answer(): ProbeState {
    const bytes = peek(this.#runtime, this.#descriptor, answerSize);
    const isOurs = isAnswer(bytes, this.#token);
    if (isOurs === null) return Date.now() < this.#until ? "asked" : "silent";
    // Something else had been on its way.
    if (!isOurs) return "busy";
    this.#runtime.libc.read(this.#descriptor, allocate(answerSize), answerSize);
    return "answered";
  }

  #next(): ProbeState {
    const [first] = peek(this.#runtime, this.#descriptor, 1);
    if (first !== undefined) return isContinuation(first) ? "busy" : "between";
    return Date.now() >= this.#restUntil ? "between" : "answered";
  }
}

/** The first bytes that wait, which go on waiting; none after an error. */
function peek(runtime: Runtime, descriptor: number, size: number): Uint8Array {
  const { abi, libc } = runtime;
  const message = new Msghdr(abi, (bytes) => runtime.addressOf(bytes), allocate(size), allocate(1));
  message.aim(0, size, 0);
  const count = libc.recvmsg(descriptor, message.bytes, MSG_PEEK | abi.constants.MSG_DONTWAIT);
  return message.data.subarray(0, Math.max(0, count));
}
