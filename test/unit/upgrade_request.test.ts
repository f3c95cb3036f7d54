/** Requests that become WebSockets, as they are counted and made once more. */

import assert from "node:assert/strict";
import test from "node:test";
import {
  checkAnswer,
  encodeRequest,
  headerOf,
  parseRequest,
  requestLimit,
  sizeOf,
  type UpgradeRequest,
  upgradeRequestOf,
} from "../../src/connections/upgrade_request.ts";

const token = "00112233445566778899aabbccddeeff";

const request: UpgradeRequest = {
  target: "/chat?room=1",
  headers: [["Host", "example.org"], ["Cookie", "a=b"], ["Sec-WebSocket-Protocol", "chat, talk"]],
};

const text =
  "GET /chat?room=1 HTTP/1.1\r\nHost: example.org\r\nCookie: a=b\r\nSec-WebSocket-Protocol: chat, talk\r\n\r\n";

test("upgradeRequestOf reads Node's IncomingMessage as it came", () => {
  const rawHeaders = ["Host", "example.org", "X-A", "1", "X-A", "2"];
  assert.deepEqual(upgradeRequestOf({ url: "/a?b", rawHeaders }), {
    target: "/a?b",
    headers: [["Host", "example.org"], ["X-A", "1"], ["X-A", "2"]],
  });
});

test("upgradeRequestOf takes path and query out of the URL of a Request", () => {
  const headers = new Map([["host", "example.org"]]);
  const targets = ["http://h/a/b?c=d", "http://h:1", "http://h?q", "https://[::1]:80/x/../y", "http://h/a%20b?c/d"]
    .map((url) => upgradeRequestOf({ url, headers }).target);
  assert.deepEqual(targets, ["/a/b?c=d", "/", "/?q", "/x/../y", "/a%20b?c/d"]);
  assert.deepEqual(upgradeRequestOf({ url: "http://h/", headers }).headers, [["host", "example.org"]]);
});

test("sizeOf is the size of the request as nearly everybody writes it", () => {
  assert.equal(sizeOf(request), text.length);
});

test("encodeRequest adds the token and takes away extensions and another token", () => {
  const headers = [...request.headers, ["sec-websocket-extensions", "permessage-deflate"], [
    "TAKEOVER-STATE",
    "x",
  ]] as const;
  const encoded = new TextDecoder("latin1").decode(encodeRequest({ ...request, headers }, token));
  assert.equal(encoded, text.replace(/\r\n$/, `Takeover-State: ${token}\r\n\r\n`));
});

test("encodeRequest writes characters as bytes", () => {
  const encoded = encodeRequest({ target: "/\u00e9", headers: [["X", "\u00ff"]] }, token);
  assert.deepEqual([encoded[5], encoded.includes(0xff)], [0xe9, true]);
});

test("headerOf joins the values of a name, whatever its case", () => {
  const headers = [["X-A", "1"], ["x-a", "2"]] as const;
  assert.deepEqual([headerOf({ target: "/", headers }, "x-a"), headerOf(request, "x-b")], ["1, 2", null]);
});

test("parseRequest takes what upgradeRequestOf has made", () => {
  assert.deepEqual(parseRequest(JSON.parse(JSON.stringify(request))), request);
});

test("parseRequest takes nothing that would be another request, or too long a one", () => {
  const { headers } = request;
  const wrong = [
    undefined,
    null,
    1,
    { headers },
    { target: "", headers },
    { target: "/ HTTP/1.1\r\n", headers },
    { target: "/\u0100", headers },
    { target: "/" },
    { target: "/", headers: {} },
    { target: "/", headers: ["Host"] },
    { target: "/", headers: [["Host"]] },
    { target: "/", headers: [["", "a"]] },
    { target: "/", headers: [["Host ", "a"]] },
    { target: "/", headers: [["Host", "a\nb"]] },
    { target: "/", headers: [["Host", 1]] },
    { target: `/${"a".repeat(requestLimit)}`, headers },
  ];
  for (const json of wrong) assert.equal(parseRequest(json as never), null, JSON.stringify(json)?.slice(0, 60));
});

const head = (...lines: string[]) =>
  ["HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", ...lines, "", ""].join("\r\n");

test("checkAnswer takes an answer with the same subprotocol", () => {
  assert.equal(checkAnswer(head("Sec-WebSocket-Protocol: chat"), { protocol: "chat" }), null);
  assert.equal(checkAnswer(head("sec-websocket-protocol:\t chat "), { protocol: "chat" }), null);
  assert.equal(checkAnswer(head(), { protocol: "" }), null);
  assert.equal(checkAnswer(head("Sec-WebSocket-Protocol: chat"), {}), null);
});

test("checkAnswer says what is another one", () => {
  const message = (lines: string[], protocol: string) => checkAnswer(head(...lines), { protocol })?.message ?? "";
  assert.match(message(["Sec-WebSocket-Protocol: talk"], "chat"), /expected the subprotocol chat, .* "talk" came/);
  assert.match(message([], "chat"), /expected the subprotocol chat, .* none came/);
  assert.match(message(["Sec-WebSocket-Protocol: talk"], ""), /expected no subprotocol, .* "talk" came/);
  assert.match(message(["Sec-WebSocket-Extensions: permessage-deflate"], ""), /expected no extensions/);
});
