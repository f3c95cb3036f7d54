import assert from "node:assert/strict";
import test from "node:test";
import { type OpenRequest, peerKey, Requests } from "../../src/connections/requests.ts";

/** What Deno passes beside a request. */
class FakeInfo {
  finish: () => void = () => {};
  readonly completed: Promise<void> = new Promise((resolve) => this.finish = resolve);
  readonly remoteAddr = { transport: "tcp", hostname: "192.0.2.1", port: 5_000 };
}

/** Bun's server, of which a request has an address until it is answered. */
class FakeBunServer {
  readonly open = new Set<unknown>();
  pendingRequests = 0;
  pendingWebSockets = 0;
  requestIP(request: unknown): { address: string; port: number } | null {
    return this.open.has(request) ? { address: "192.0.2.2", port: 6_000 } : null;
  }
}

const socket = { remoteAddress: "192.0.2.3", remotePort: 7_000 };

function incoming(headers: Record<string, string> = { host: "test" }): Record<string, unknown> {
  return { method: "GET", url: "/", httpVersion: "1.1", complete: true, headers, socket };
}

function request(
  method = "GET",
  headers: Record<string, string> = {},
  url = "http://test/a?b=1",
): Record<string, unknown> {
  return { method, url, headers: new Headers({ host: "test", ...headers }) };
}

/** Counts what is begun and ended. */
function watched(requests: Requests): { began: OpenRequest[]; ended: OpenRequest[] } {
  const seen = { began: [] as OpenRequest[], ended: [] as OpenRequest[] };
  requests.watch({
    began: (open) => void seen.began.push(open),
    ended: (open) => void seen.ended.push(open),
    collected() {},
  });
  return seen;
}

test("Requests: one of Deno is open until info.completed resolves", async () => {
  const requests = new Requests();
  const info = new FakeInfo();
  requests.returned(requests.fetch(request(), info), new Response());
  assert.equal(requests.size, 1);
  info.finish();
  await info.completed;
  assert.equal(requests.size, 0);
});

test("Requests: one of Bun is open until it has no address any more, a stream for instance", () => {
  const requests = new Requests();
  const server = new FakeBunServer();
  const asked = request();
  server.open.add(asked);
  const open = requests.fetch(asked, server);
  requests.returned(open, new Response());
  requests.sweep();
  assert.equal(requests.size, 1);
  server.open.delete(asked);
  requests.sweep();
  assert.equal(requests.size, 0);
});

test("Requests: one of Bun whose handler is running is open, whatever its address", () => {
  const requests = new Requests();
  requests.fetch(request(), new FakeBunServer());
  requests.sweep();
  assert.equal(requests.size, 1);
});

test("Requests: one of node:http is open until the response is destroyed and the request complete", () => {
  const requests = new Requests();
  const [asked, response] = [{ ...incoming(), complete: false }, { destroyed: false }];
  requests.listener(null, asked, response);
  requests.sweep();
  assert.equal(requests.size, 1);
  response.destroyed = true;
  requests.sweep();
  assert.equal(requests.size, 1);
  asked.complete = true;
  requests.sweep();
  assert.equal(requests.size, 0);
});

test("Requests: at rest none of Node is kept, whose parsers tell", () => {
  const requests = new Requests();
  const asked = { ...incoming(), socket: { ...socket, _handle: { fd: 9 } } };
  assert.equal(requests.listener(null, asked, { destroyed: false }).obstacle, null);
  assert.equal(requests.size, 0);
  watched(requests);
  requests.listener(null, asked, { destroyed: false });
  assert.equal(requests.size, 1);
});

test("Requests: at rest, those that have ended do not pile up", () => {
  const requests = new Requests();
  for (let count = 0; count < 1_000; count++) requests.listener(null, incoming(), { destroyed: true });
  assert.ok(requests.size <= 64, `${requests.size} are kept`);
});

test("Requests: at rest nobody's address is asked of Bun, but of a few", () => {
  const requests = new Requests();
  let asked = 0;
  const requestIP = () => (asked++, { address: "192.0.2.1", port: 1 });
  for (let count = 0; count < 1_000; count++) requests.fetch(request(), { requestIP });
  assert.ok(asked <= 64 + 1_000 / 16, `${asked} of 1000`);
});

test("Requests.markOf remembers an upgrade of Deno's, after which it tells no address", () => {
  const requests = new Requests();
  let isClosed = false;
  const info = {
    completed: Promise.resolve(),
    get remoteAddr() {
      if (isClosed) throw new TypeError("Request closed");
      return { hostname: "192.0.2.1", port: 5_000 };
    },
  };
  const open = requests.fetch(request(), info);
  isClosed = true;
  requests.returned(open, { status: 101 });
  assert.equal(requests.markOf("192.0.2.1 5000"), "upgraded");
});

test("Requests.watch tells of those that begin and end, and of whose they are", async () => {
  const requests = new Requests();
  const seen = watched(requests);
  const info = new FakeInfo();
  const open = requests.fetch(request(), info);
  assert.deepEqual(seen.began, [open]);
  assert.equal(open.peer, "192.0.2.1 5000");
  info.finish();
  await info.completed;
  assert.deepEqual(seen.ended, [open]);
});

test("Requests.watch asks whose those are that had begun before", () => {
  const requests = new Requests();
  const open = requests.listener(null, incoming(), { destroyed: false });
  assert.equal(open.peer, null);
  watched(requests);
  assert.equal(open.peer, "192.0.2.3 7000");
});

test("Requests.watch tells nothing after it was ended", () => {
  const requests = new Requests();
  const began: OpenRequest[] = [];
  requests.watch({ began: (open) => void began.push(open), ended() {}, collected() {} })();
  requests.listener(null, incoming(), {});
  assert.deepEqual(began, []);
});

test("Requests: a peer is corrected by who knows better", () => {
  const requests = new Requests();
  requests.truePeer = ({ port }) => ({ hostname: "203.0.113.9", port: port + 1 });
  watched(requests);
  assert.equal(requests.listener(null, incoming(), {}).peer, "203.0.113.9 7001");
});

test("peerKey takes an IPv4 address that came over IPv6 for that address", () => {
  assert.equal(peerKey({ hostname: "::ffff:192.0.2.1", port: 1 }), "192.0.2.1 1");
  assert.equal(peerKey({ hostname: "::1", port: 1 }), "::1 1");
});

test("OpenRequest.obstacle names what cannot move", () => {
  const requests = new Requests();
  const obstacleOf = (asked: unknown, beside: unknown) => requests.fetch(asked, beside).obstacle;
  assert.equal(obstacleOf(request(), new FakeInfo()), null);
  assert.equal(obstacleOf(request("GET", {}, "https://test/"), new FakeInfo()), "tls");
  assert.equal(obstacleOf({ url: "http://test/", headers: new Headers() }, new FakeInfo()), "http2");
  const unix = { completed: Promise.resolve(), remoteAddr: { transport: "unix", path: "/x" } };
  assert.equal(obstacleOf(request(), unix), "unix");
  assert.equal(obstacleOf(request(), { env: true }), "unproven");
  assert.equal(requests.listener(null, incoming(), {}).obstacle, null);
  assert.equal(requests.listener(null, { ...incoming(), httpVersion: "1.0" }, {}).obstacle, "http2");
  assert.equal(requests.listener(null, { ...incoming(), socket: { ...socket, encrypted: true } }, {}).obstacle, "tls");
});

test("OpenRequest.size is what a client writes who wastes nothing", () => {
  const requests = new Requests();
  const text = "POST /a?b=1 HTTP/1.1\r\nhost: test\r\ncontent-length: 5\r\n\r\nhello";
  assert.equal(requests.fetch(request("POST", { "content-length": "5" }), new FakeInfo()).size, text.length);
  assert.equal(requests.fetch(request("POST", { "transfer-encoding": "chunked" }), new FakeInfo()).size, NaN);
});

test("OpenRequest.isBodiless looks at what the head announces", () => {
  const requests = new Requests();
  const of = (headers: Record<string, string>) => requests.fetch(request("POST", headers), new FakeInfo()).isBodiless;
  assert.equal(of({}), true);
  assert.equal(of({ "content-length": "0" }), true);
  assert.equal(of({ "content-length": "1" }), false);
  assert.equal(of({ "transfer-encoding": "chunked" }), false);
});

test("Requests.markOf remembers an upgrade, and a body that nobody has read", () => {
  const requests = new Requests();
  const mark = (asked: Record<string, unknown>, response: unknown) => {
    const open = requests.fetch(asked, new FakeInfo());
    requests.returned(open, response);
    return requests.markOf("192.0.2.1 5000");
  };
  assert.equal(mark(request(), new Response()), null);
  assert.equal(mark({ ...request("POST", { "content-length": "5" }), bodyUsed: false }, new Response()), "body");
  assert.equal(mark(request(), { status: 101 }), "upgraded");
});

test("Requests.markOf forgets a body when the next request is watched", () => {
  const requests = new Requests();
  const asked = { ...request("POST", { "content-length": "5" }), bodyUsed: false };
  requests.returned(requests.fetch(asked, new FakeInfo()), new Response());
  watched(requests);
  requests.fetch(request(), new FakeInfo());
  assert.equal(requests.markOf("192.0.2.1 5000"), null);
});

test("Requests: marks of those that have gone do not pile up", () => {
  const requests = new Requests();
  requests.livePeers = () => new Set(["192.0.2.1 1"]);
  for (let port = 1; port <= 5_000; port++) {
    const info = { completed: Promise.resolve(), remoteAddr: { hostname: "192.0.2.1", port } };
    requests.returned(requests.fetch(request(), info), { status: 101 });
  }
  assert.equal(requests.markOf("192.0.2.1 1"), "upgraded");
  assert.equal(requests.markOf("192.0.2.1 2"), null);
});

test("Requests.doubt: nothing was seen yet", () => {
  assert.equal(new Requests().doubt(0), "unproven");
});

test("Requests.doubt: plain HTTP/1.1 leaves none", () => {
  const requests = new Requests();
  requests.fetch(request(), new FakeInfo());
  requests.listener({ listenerCount: () => 0 }, incoming(), {});
  assert.equal(requests.doubt(0), null);
});

test("Requests.doubt: something else was seen", () => {
  const requests = new Requests();
  requests.fetch(request("GET", {}, "https://test/"), new FakeInfo());
  assert.equal(requests.doubt(0), "unproven");
});

test("Requests.doubt: a server of node:http has upgrades of its own", () => {
  const requests = new Requests();
  requests.listener({ listenerCount: (event: string) => event === "upgrade" ? 1 : 0 }, incoming(), {});
  assert.equal(requests.doubt(0), "unproven");
});

test("Requests.doubt: Bun answers a request that no handler has seen, or has a WebSocket that is nobody's", () => {
  const requests = new Requests();
  const server = new FakeBunServer();
  requests.fetch(request(), server);
  server.pendingRequests = 1;
  assert.equal(requests.doubt(0), null);
  server.pendingRequests = 2;
  assert.equal(requests.doubt(0), "unproven");
  server.pendingRequests = 1;
  server.pendingWebSockets = 1;
  assert.equal(requests.doubt(0), "unproven");
  assert.equal(requests.doubt(1), null);
});
