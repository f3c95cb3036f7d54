/**
 * A server of WebSockets that replaces its predecessor and keeps them: every
 * message is answered with `{"n","pid","runtime","generation"}`, where n counts
 * the messages of that socket since it was opened, whichever processes have
 * heard them. One file for three runtimes:
 *
 * ```sh
 * deno run --allow-ffi --allow-net --allow-env examples/chat.ts
 * bun examples/chat.ts
 * node examples/chat.ts    # with the package ws
 * ```
 *
 * Open http://127.0.0.1:8080/ and start it again meanwhile. Environment and
 * events are those of examples/service.ts.
 */

import { createServer, type IncomingMessage } from "node:http";
import { address, Bun, counted, Deno, run, type Takeover, type Who } from "./service.ts";

// deno-lint-ignore no-explicit-any
type Any = any;

/** What travels with a socket. */
interface TalkState {
  readonly n: number;
}

/** One socket's conversation. */
class Talk {
  readonly #who: Who;
  #n: number;

  constructor(who: Who, state: unknown) {
    this.#who = who;
    this.#n = (state as TalkState | null)?.n ?? 0;
  }

  get state(): { n: number } {
    return { n: this.#n };
  }

  answer(): string {
    counted();
    return JSON.stringify({ n: ++this.#n, ...this.#who });
  }
}

await run("chat", (takeover, who) => Deno ? onDeno(takeover, who) : Bun ? onBun(takeover, who) : onNode(takeover, who));

function onDeno(takeover: Takeover, who: Who): Promise<unknown> {
  const fetch = takeover.fetch((request: Request, info: unknown) => {
    if (!isSocket(request.headers.get("upgrade"))) return page(request);
    const opening = takeover.webSockets.opening(request, info);
    const { socket, response } = Deno.upgradeWebSocket(request);
    const talk = new Talk(who, opening.state);
    opening.track(socket, { leave: () => talk.state });
    socket.onmessage = () => socket.send(talk.answer());
    return response;
  });
  return takeover.listen("web", address, (at) => Deno.serve({ ...at, onListen() {} }, fetch));
}

function onBun(takeover: Takeover, who: Who): Promise<unknown> {
  const fetch = takeover.fetch((request: Request, server: Any) => {
    if (!isSocket(request.headers.get("upgrade"))) return page(request);
    const opening = takeover.webSockets.opening(request, server);
    return opening.upgrade({ data: new Talk(who, opening.state) }) ? undefined : new Response("no\n", { status: 400 });
  });
  const websocket = takeover.webSockets.handlers({
    message: (socket: Any) => socket.send(socket.data.answer()),
    leave: (socket: Any) => socket.data.state,
  });
  return takeover.listen("web", address, (at) => Bun.serve({ ...at, fetch, websocket }));
}

async function onNode(takeover: Takeover, who: Who): Promise<unknown> {
  const { WebSocketServer } = await import("ws") as Any;
  const server = createServer(takeover.requestListener(async (request: IncomingMessage, response: Any) => {
    const { status, headers, body } = partsOf(request.url ?? "/");
    response.writeHead(status, headers).end(body);
  }));
  const sockets = new WebSocketServer({ server, path: "/ws" });
  sockets.on("connection", (socket: Any, request: IncomingMessage) => {
    const opening = takeover.webSockets.opening(request);
    const talk = new Talk(who, opening.state);
    opening.track(socket, { leave: () => talk.state });
    socket.on("error", () => {});
    socket.on("message", () => socket.send(talk.answer()));
  });
  return await takeover.listen("web", address, (at) => server.listen(at));
}

function isSocket(upgrade: string | null): boolean {
  return upgrade?.toLowerCase() === "websocket";
}

function page(request: Request): Response {
  const { status, headers, body } = partsOf(new URL(request.url).pathname);
  return new Response(body, { status, headers });
}

function partsOf(path: string): { status: number; headers: Record<string, string>; body: string } {
  if (path !== "/") return { status: 404, headers: { "Content-Type": "text/plain" }, body: "not found\n" };
  return { status: 200, headers: { "Content-Type": "text/html; charset=utf-8" }, body: html() };
}

/** Sends a message each 250 ms. `chat` says what has become of them. */
function html(): string {
  return `<!doctype html>
<meta charset="utf-8">
<title>chat</title>
<style>
  body { font: 1rem/1.5 system-ui, sans-serif; max-width: 32rem; margin: 3rem auto; padding: 0 1rem; }
  dl { display: grid; grid-template-columns: 10rem 1fr; font-size: 1.5rem; }
  dd { margin: 0; font-variant-numeric: tabular-nums; }
</style>
<h1>One socket, many processes</h1>
<dl>
  <dt>generation</dt><dd id="generation">–</dd>
  <dt>process</dt><dd id="process">–</dd>
  <dt>messages</dt><dd id="n">0</dd>
  <dt>connects</dt><dd id="connects">0</dd>
  <dt>lost</dt><dd id="lost">0</dd>
</dl>
<script type="module">
const chat = globalThis.chat = { connects: 0, messages: 0, generations: [], lost: 0 };
const show = (id, text) => document.getElementById(id).textContent = text;

function connect() {
  const socket = new WebSocket(location.origin.replace("http", "ws") + "/ws");
  let sent = 0, n = 0, timer;
  socket.onopen = () => {
    show("connects", ++chat.connects);
    timer = setInterval(() => (sent++, socket.send("hello")), 250);
  };
  socket.onmessage = ({ data }) => {
    const answer = JSON.parse(data);
    // Each message is counted and answered once, in order.
    if (answer.n !== ++n) chat.lost += Math.abs(answer.n - n);
    n = answer.n;
    chat.messages++;
    if (chat.generations.at(-1) !== answer.generation) chat.generations.push(answer.generation);
    show("generation", answer.generation);
    show("process", answer.runtime + ", " + answer.pid);
    show("n", answer.n);
    show("lost", chat.lost);
  };
  socket.onclose = () => {
    clearInterval(timer);
    chat.lost += sent - n;
    show("lost", chat.lost);
    setTimeout(connect, 250);
  };
}
connect();
</script>
`;
}
