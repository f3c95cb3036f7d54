/**
 * Draining: requests in flight complete, every further response on a kept
 * connection says `Connection: close`, and what is left ends at the deadline.
 * While connections move to a successor, only those are told that cannot.
 *
 * The request path of a server that does not drain is an entry in a set and a
 * look at a flag. Connections are counted by walking the descriptor table, and
 * only while draining.
 *
 * @module
 */

import { collectNode, collectWeb } from "../connections/bodies.ts";
import { type OpenRequest, Requests } from "../connections/requests.ts";
import { correctInfo, type TruePeers } from "../connections/true_peers.ts";
import { cameThrough } from "../sockets/address.ts";
import { openDescriptors } from "../sockets/descriptors.ts";
import { defaultLimits } from "../limits.ts";
import type { Runtime } from "../runtime.ts";
import type { SocketAddress } from "../c/sockaddr.ts";
import { isListening, isStream, localAddress, peerAddress } from "../sockets/socket.ts";

/** How often connections are counted while draining. */
const countEveryMs = 50;

/** So much longer than a count is the pause after it. */
const idleShare = 20;

/** What became of the connections that a process still had when it was replaced. */
export interface Drained {
  /** Connections still open when the time was up; they end with the process. */
  readonly remaining: number;
  /** How long it took. */
  readonly ms: number;
}

/** What a web `Response` is, as far as draining needs to know. */
interface ResponseLike {
  readonly status: number;
  readonly headers: { set(name: string, value: string): void };
}

/** Every runtime has it. */
const { Response } = globalThis as unknown as {
  readonly Response: new (body: null, init: { readonly status: number }) => ResponseLike;
};

/** What Node's `ServerResponse` is, as far as draining needs to know. */
interface ServerResponseLike {
  readonly headersSent: boolean;
  setHeader(name: string, value: string): unknown;
}

/** A handler of web requests: the request, and what the runtime passes beside it. */
// deno-lint-ignore no-explicit-any
export type FetchHandler = (request: any, info?: any) => unknown;

/** A handler of Node's requests: an IncomingMessage and its ServerResponse. */
// deno-lint-ignore no-explicit-any
export type RequestListener = (request: any, response: any) => unknown;

/**
 * What handlers tell the other ends of their connections: nothing, `Connection:
 * close` to those whose connections cannot move, or to all.
 */
export type DrainMode = "serving" | "moving" | "closing";

/** Whether the process drains, and the handlers that look. */
export class Drain {
  /** The flag. */
  mode: DrainMode = "serving";
  /** What the handlers are answering. */
  readonly requests: Requests = new Requests();
  /** The largest body that is collected before its handler is called. */
  bodySize: number = defaultLimits.bodySize;
  /** Whom connections are with that came from another process; what a runtime says is not true. */
  peers: TruePeers | null = null;

  /** Whether everybody is told. */
  get active(): boolean {
    return this.mode === "closing";
  }

  set active(isActive: boolean) {
    this.mode = isActive ? "closing" : "serving";
  }

  /**
   * Wraps a fetch handler. Deno looks at the wrapper's `length` and passes no
   * more than that many arguments; what comes beside a request is needed here.
   */
  fetch<H extends FetchHandler>(handler: H): H {
    const drain = this;
    const { requests } = this;
    const wrapper = function (this: unknown, request: unknown, info: unknown): unknown {
      if (drain.peers) correctInfo(info, drain.peers);
      const open = requests.fetch(request, info);
      const answered = (value: unknown): unknown => {
        requests.returned(open, value);
        return drain.#isClosing(open) ? closing(value) : value;
      };
      const failed = (error: unknown): never => {
        requests.returned(open, null);
        throw error;
      };
      let response: unknown;
      try {
        response = handler.call(this, request, info);
      } catch (error) {
        failed(error);
      }
      return response instanceof Promise ? response.then(answered, failed) : answered(response);
    };
    Object.defineProperty(wrapper, "length", { value: Math.max(handler.length, 2) });
    return wrapper as unknown as H;
  }

  /** Wraps a Node request listener. */
  listener<H extends RequestListener>(handler: H): H {
    const drain = this;
    const wrapper = function (this: unknown, request: unknown, response: ServerResponseLike): unknown {
      const open = drain.requests.listener(this, request, response);
      if (drain.#isClosing(open) && !response.headersSent) response.setHeader("Connection", "close");
      return handler.call(this, request, response);
    };
    return wrapper as unknown as H;
  }

  /** Has a fetch handler wait for the whole body of its request. */
  whole<H extends FetchHandler>(handler: H): H {
    const drain = this;
    drain.requests.isCollecting = true;
    const wrapper = function (this: unknown, request: object, info: unknown): unknown {
      const body = drain.requests.collect(request, drain.bodySize, null);
      if (!body) return handler.call(this, request, info);
      return collectWeb(body).then((isWhole) => {
        drain.requests.collected(body);
        // Nobody hears that: the client or the connection has gone (RFC 9112, section 8).
        return isWhole ? handler.call(this, request, info) : new Response(null, { status: 400 });
      });
    };
    Object.defineProperty(wrapper, "length", { value: Math.max(handler.length, 2) });
    return wrapper as unknown as H;
  }

  /** The same for a Node request listener. */
  wholeListener<H extends RequestListener>(handler: H): H {
    const drain = this;
    drain.requests.isCollecting = true;
    const wrapper = function (this: unknown, request: object, response: object): unknown {
      const body = drain.requests.collect(request, drain.bodySize, response);
      if (!body) return handler.call(this, request, response);
      collectNode(body, (isWhole) => {
        drain.requests.collected(body);
        if (isWhole) handler.call(this, request, response);
      });
    };
    return wrapper as unknown as H;
  }

  #isClosing(open: OpenRequest): boolean {
    return this.mode === "closing" || this.mode === "moving" && open.obstacle !== null;
  }
}

/**
 * Waits until every connection that came in through these addresses has ended.
 *
 * @param addresses Where the listeners were.
 * @param limitMs When to stop waiting.
 * @param mayCome Whether there may be more although there is none.
 */
export async function connectionsEnd(
  runtime: Runtime,
  addresses: readonly SocketAddress[],
  limitMs: number,
  mayCome: () => boolean = () => false,
): Promise<Drained> {
  const start = Date.now();
  for (;;) {
    const begun = Date.now();
    const remaining = acceptedCount(runtime, addresses);
    const ms = Date.now() - start;
    if (remaining === 0 && !mayCome() || ms >= limitMs) return { remaining, ms };
    const pauseMs = Math.max(countEveryMs, (Date.now() - begun) * idleShare);
    await new Promise((resolve) => setTimeout(resolve, Math.min(pauseMs, limitMs - ms)));
  }
}

/**
 * How many open connections of this process came in through these addresses. A
 * UDP socket can be connected, and is none.
 */
export function acceptedCount(runtime: Runtime, addresses: readonly SocketAddress[]): number {
  return openDescriptors(runtime).filter((descriptor) => {
    const local = localAddress(runtime, descriptor);
    return local !== null && addresses.some((address) => cameThrough(local, address)) &&
      isStream(runtime, descriptor) && !isListening(runtime, descriptor) && peerAddress(runtime, descriptor) !== null;
  }).length;
}

/**
 * Announces the close. A response from elsewhere (fetch, Response.redirect) has
 * headers that cannot be changed; it is made anew.
 */
function closing<T>(response: T): T {
  const { headers, status } = (response ?? {}) as Partial<ResponseLike>;
  // A WebSocket upgrade, the undefined that Bun's upgrade leaves, and
  // Response.error(), which has no status, are no HTTP answers.
  if (typeof headers?.set !== "function" || !status || status === 101) return response;
  try {
    headers.set("connection", "close");
    return response;
  } catch {
    return renewed(response as ResponseLike) as T;
  }
}

function renewed(response: ResponseLike): ResponseLike {
  const { body } = response as { body?: unknown };
  const Constructor = response.constructor as new (body: unknown, init: unknown) => ResponseLike;
  const copy = new Constructor(body, response);
  copy.headers.set("connection", "close");
  return copy;
}
