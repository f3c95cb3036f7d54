import assert from "node:assert/strict";
import test from "node:test";
import { Drain } from "../../src/handover/drain.ts";

function draining(): Drain {
  const drain = new Drain();
  drain.active = true;
  return drain;
}

/** A handler that answers with this and nothing else. */
function answering<T>(response: T): (request: string) => T {
  return () => response;
}

/** What Node's ServerResponse does with headers, and nothing more. */
class FakeServerResponse {
  readonly headers: Record<string, string> = {};
  headersSent = false;

  setHeader(name: string, value: string): this {
    if (this.headersSent) throw new Error("ERR_HTTP_HEADERS_SENT");
    this.headers[name.toLowerCase()] = value;
    return this;
  }
}

const ignoring = (_request: string, _response: FakeServerResponse): void => {};

test("Drain.fetch takes two arguments at least, because Deno passes no more than a handler has", () => {
  const drain = new Drain();
  assert.equal(drain.fetch(() => new Response()).length, 2);
  assert.equal(drain.fetch((_request: Request, _info: unknown) => new Response()).length, 2);
});

test("Drain.fetch announces the close while connections move only to those that cannot", () => {
  const drain = new Drain();
  drain.mode = "moving";
  const handler = drain.fetch((_request: unknown, _info: unknown) => new Response());
  const info = { completed: Promise.resolve(), remoteAddr: { hostname: "192.0.2.1", port: 1 } };
  const headers = new Headers({ host: "shop.test" });
  const announced = (url: string, beside: unknown) => handler({ url, headers }, beside).headers.get("connection");
  assert.equal(announced("http://shop.test/", info), null);
  assert.equal(announced("https://shop.test/", info), "close");
  assert.equal(announced("http://shop.test/", { ...info, remoteAddr: { transport: "unix" } }), "close");
});

test("Drain.listener announces the close while connections move only to those that cannot", () => {
  const drain = new Drain();
  drain.mode = "moving";
  const listener = drain.listener((_request: unknown, _response: FakeServerResponse) => {});
  const socket = { remoteAddress: "192.0.2.1", remotePort: 1 };
  const announced = (httpVersion: string) => {
    const response = new FakeServerResponse();
    listener({ url: "/", httpVersion, headers: { host: "shop.test" }, socket }, response);
    return response.headers.connection;
  };
  assert.equal(announced("1.1"), undefined);
  assert.equal(announced("1.0"), "close");
});

test("Drain.fetch knows what it is answering until the handler's runtime has sent it", async () => {
  const drain = new Drain();
  let finish = () => {};
  const completed = new Promise<void>((resolve) => finish = resolve);
  await drain.fetch((_request: unknown, _info: unknown) => Promise.resolve(new Response()))(
    new Request("http://shop.test/"),
    { completed, remoteAddr: { hostname: "192.0.2.1", port: 1 } },
  );
  assert.equal(drain.requests.size, 1);
  finish();
  await completed;
  assert.equal(drain.requests.size, 0);
});

test("Drain.fetch passes the request, what comes beside it, and this", () => {
  const seen: unknown[] = [];
  const owner = {
    fetch: new Drain().fetch(function (this: unknown, request: string, info: string) {
      seen.push(this, request, info);
    }),
  };
  owner.fetch("request", "info");
  assert.equal(seen[0], owner);
  assert.deepEqual(seen.slice(1), ["request", "info"]);
});

test("Drain.fetch gives the very response back while the process does not drain", () => {
  const response = new Response("hello");
  assert.equal(new Drain().fetch(answering(response))("request"), response);
  assert.equal(response.headers.has("connection"), false);
});

test("Drain.fetch looks at the flag with every response", () => {
  const drain = new Drain();
  const handler = drain.fetch((_request: string) => new Response());
  assert.equal(handler("first").headers.get("connection"), null);
  drain.active = true;
  assert.equal(handler("second").headers.get("connection"), "close");
  drain.active = false;
  assert.equal(handler("third").headers.get("connection"), null);
});

test("Drain.fetch sets Connection: close on a response, and gives the same back", () => {
  const response = new Response("hello", { headers: { "x-kept": "1" } });
  assert.equal(draining().fetch(answering(response))("request"), response);
  assert.equal(response.headers.get("connection"), "close");
  assert.equal(response.headers.get("x-kept"), "1");
});

test("Drain.fetch sets Connection: close over another value", () => {
  const response = new Response(null, { headers: { connection: "keep-alive" } });
  draining().fetch(answering(response))("request");
  assert.equal(response.headers.get("connection"), "close");
});

test("Drain.fetch sets Connection: close on a response that was promised", async () => {
  const handler = draining().fetch((_request: string) => Promise.resolve(new Response("hello")));
  const response = await handler("request");
  assert.equal(response.headers.get("connection"), "close");
  assert.equal(await response.text(), "hello");
});

test("Drain.fetch looks at the flag when a promised response comes, not when it was asked for", async () => {
  const drain = new Drain();
  let answer = (_response: Response) => {};
  const promised = drain.fetch((_request: string) => new Promise<Response>((resolve) => answer = resolve))("request");
  drain.active = true;
  answer(new Response());
  assert.equal((await promised).headers.get("connection"), "close");
});

test("Drain.fetch passes a rejection and a throw through", async () => {
  const drain = draining();
  await assert.rejects(drain.fetch((_request: string) => Promise.reject(new Error("failed")))("request"), /failed/);
  const thrower = drain.fetch((_request: string) => {
    throw new Error("thrown");
  });
  assert.throws(() => thrower("request"), /thrown/);
});

test("Drain.fetch makes a response anew when its headers cannot be changed", () => {
  const redirect = draining().fetch(answering(Response.redirect("https://shop.test/there", 303)))("request");
  assert.equal(redirect.status, 303);
  assert.equal(redirect.headers.get("location"), "https://shop.test/there");
  assert.equal(redirect.headers.get("connection"), "close");
});

test("Drain.fetch keeps the body, the status and the headers of a response made anew", async () => {
  const original = new Response("made", { status: 201, statusText: "Made", headers: { "x-kept": "1" } });
  Object.defineProperty(original.headers, "set", {
    value: () => {
      throw new TypeError("immutable");
    },
  });
  const renewed = draining().fetch((_request: string) => original)("request");
  assert.notEqual(renewed, original);
  assert.deepEqual([renewed.status, renewed.statusText], [201, "Made"]);
  assert.deepEqual([renewed.headers.get("x-kept"), renewed.headers.get("connection")], ["1", "close"]);
  assert.equal(await renewed.text(), "made");
});

test("Drain.fetch gives Response.error back, which cannot be made anew", () => {
  const error = Response.error();
  assert.equal(draining().fetch(answering(error))("request"), error);
});

test("Drain.fetch leaves a WebSocket upgrade alone", () => {
  const upgrade = { status: 101, headers: new Headers({ connection: "Upgrade" }) };
  assert.equal(draining().fetch(answering(upgrade))("request"), upgrade);
  assert.equal(upgrade.headers.get("connection"), "Upgrade");
});

test("Drain.fetch gives nothing back when the handler gave nothing, as it does after Bun's upgrade", () => {
  assert.equal(draining().fetch(answering(undefined))("request"), undefined);
});

test("Drain.listener sets Connection: close before the handler runs", () => {
  const response = new FakeServerResponse();
  let seen: string | undefined;
  const listener = draining().listener((_request: unknown, { headers }: FakeServerResponse) =>
    seen = headers.connection
  );
  listener("request", response);
  assert.equal(seen, "close");
});

test("Drain.listener sets nothing while the process does not drain", () => {
  const response = new FakeServerResponse();
  new Drain().listener(ignoring)("request", response);
  assert.deepEqual(response.headers, {});
});

test("Drain.listener leaves a response alone whose headers have gone out", () => {
  const response = new FakeServerResponse();
  response.headersSent = true;
  draining().listener(ignoring)("request", response);
  assert.deepEqual(response.headers, {});
});

test("Drain.listener lets the handler have the last word", () => {
  const response = new FakeServerResponse();
  draining().listener((_request: unknown, { setHeader }: FakeServerResponse) => {
    setHeader.call(response, "connection", "upgrade");
  })("request", response);
  assert.equal(response.headers.connection, "upgrade");
});

test("Drain.listener passes the request, the response, this and the result", () => {
  const response = new FakeServerResponse();
  const seen: unknown[] = [];
  const owner = {
    listener: new Drain().listener(function (this: unknown, request: unknown, given: unknown) {
      seen.push(this, request, given);
      return "result";
    }),
  };
  assert.equal(owner.listener("request", response), "result");
  assert.equal(seen[0], owner);
  assert.equal(seen[1], "request");
  assert.equal(seen[2], response);
});
