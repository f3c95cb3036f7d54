import assert from "node:assert/strict";
import test from "node:test";
import { Body, collectedSize, collectWeb } from "../../src/connections/bodies.ts";
import { headText } from "../../src/connections/request_head.ts";
import { Requests, type RequestWatcher } from "../../src/connections/requests.ts";

const bytes = (text: string) => new TextEncoder().encode(text);

function post(headers: Record<string, string> = {}, url = "http://test/a?b=1"): Request {
  const all = { host: "test", "content-length": "5", ...headers };
  // A `Request` of one's own keeps no `Host`.
  const body = new Blob(["hello"]).stream();
  return { method: "POST", url, headers: new Headers(all), bodyUsed: false, clone: () => ({ body }) } as unknown as Request;
}

test("headText writes a request as a client does who wastes nothing", () => {
  assert.equal(headText(post()), "POST /a?b=1 HTTP/1.1\r\ncontent-length: 5\r\nhost: test\r\n\r\n");
  const incoming = { method: "PUT", url: "/", rawHeaders: ["Host", "test", "X", "1", "X", "2"] };
  assert.equal(headText(incoming), "PUT / HTTP/1.1\r\nHost: test\r\nX: 1\r\nX: 2\r\n\r\n");
});

test("collectedSize is the length of a plain body, up to the limit", () => {
  assert.equal(collectedSize(post(), 5), 5);
  assert.equal(collectedSize(post(), 4), NaN);
  assert.equal(collectedSize(post({ connection: "Keep-Alive" }), 5), 5);
});

test("collectedSize leaves to the handler what is not plain", () => {
  const others: Record<string, string>[] = [
    { "content-length": "0" },
    { "content-length": "5, 5" },
    { "transfer-encoding": "chunked" },
    { expect: "100-continue" },
    { upgrade: "h2c" },
    { connection: "close" },
  ];
  for (const headers of others) assert.equal(collectedSize(post(headers), 100), NaN, JSON.stringify(headers));
  assert.equal(collectedSize({ ...post(), bodyUsed: true }, 100), NaN);
  assert.equal(collectedSize({ ...post(), httpVersion: "1.0" }, 100), NaN);
});

test("Body.message is the head and what has come", () => {
  const body = new Body(post(), 5, null);
  body.take(bytes("he"));
  body.take(bytes("l"));
  const text = `${headText(post())}hel`;
  assert.equal(body.messageSize, text.length);
  assert.equal(new TextDecoder().decode(body.message()), text);
  assert.equal(body.isWhole, false);
});

test("Body.messageSize is unknown when the head cannot be written once more for certain", () => {
  assert.equal(new Body(post({ "x-name": "\u00fc" }), 5, null).messageSize, NaN);
});

test("collectWeb says whether it came whole, and not when it has left meanwhile", async () => {
  const [whole, longer, left] = [new Body(post(), 5, null), new Body(post(), 6, null), new Body(post(), 5, null)];
  left.hasLeft = true;
  assert.deepEqual(await Promise.all([whole, longer, left].map(collectWeb)), [true, false, false]);
});

test("Requests.bodyOf knows bodies by their peers while somebody watches, those from before included", () => {
  const requests = new Requests();
  const seen: Body[] = [];
  const watcher: RequestWatcher = { began() {}, ended() {}, collected: (body) => void seen.push(body) };
  const info = (port: number) => ({ completed: new Promise(() => {}), remoteAddr: { hostname: "192.0.2.1", port } });
  const begin = (port: number) => {
    const request = post();
    requests.fetch(request, info(port));
    return requests.collect(request, 100, null)!;
  };
  const early = begin(1);
  assert.equal(requests.bodyOf("192.0.2.1 1"), null);
  requests.watch(watcher);
  const late = begin(2);
  assert.equal(requests.bodyOf("192.0.2.1 1"), early);
  assert.equal(requests.bodyOf("192.0.2.1 2"), late);
  requests.collected(late);
  assert.deepEqual(seen, []);
  early.take(bytes("hello"));
  requests.collected(early);
  assert.deepEqual(seen, [early]);
  assert.equal(requests.bodyOf("192.0.2.1 1"), null);
});
