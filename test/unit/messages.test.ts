import assert from "node:assert/strict";
import test from "node:test";
import type { FrameHead } from "../../src/handover/frame.ts";
import { limitsFrom } from "../../src/limits.ts";
import {
  checkedName,
  parseBatch,
  parseHello,
  parseJoin,
  parseLease,
  parseOffer,
  parseReady,
  parseRefusal,
} from "../../src/handover/messages.ts";
import { takeoverError } from "./support.ts";

const limits = limitsFrom({ endpointCount: 3, nameSize: 8 });
const token = "0123456789abcdef0123456789abcdef";
const inet = { family: "inet", hostname: "127.0.0.1", port: 80 };
const control = { kind: "control", name: "", address: { family: "unix", path: "/run/x" }, cookie: "0000000000000001", supervised: false, ticketKeys: "" };
const web = { kind: "listener", name: "web", address: inet, cookie: "", supervised: true, ticketKeys: "" };

const hello = {
  type: "hello",
  versions: { min: 1, max: 2 },
  token,
  instance: token,
  pid: 1,
  runtime: "deno 2.9.6",
  room: 100,
  require: ["web"],
  moves: true,
  datagrams: true,
};
const offer = {
  ...{ type: "offer", version: 1, pid: 1, runtime: "bun 1.4.5", generation: 3, endpoints: [control, web] },
  ...{ moves: true, state: { version: 2, value: { count: [1, null] } } },
};

const noIntegers = [undefined, null, -1, 0.5, "1", NaN, Infinity, 2 ** 53, [], {}, true];
const noTexts = [undefined, null, 1, [], {}, true, "x".repeat(1_025)];
const noTokens = [...noTexts, "", token.slice(1), `${token}0`, token.toUpperCase(), token.replace("0", "g")];
const noObjects = [undefined, null, 1, "x", [], true];
const noArrays = [undefined, null, 1, "web", {}, true];
const noNames = [undefined, null, 1, "", [], {}, "123456789", "éééé5"];

/** Every one of these values in that field is refused with that code. */
function refuses(
  parse: (head: FrameHead) => unknown,
  valid: FrameHead,
  field: string,
  values: readonly unknown[],
  code: "ERR_TAKEOVER_PROTOCOL" | "ERR_TAKEOVER_LIMIT" = "ERR_TAKEOVER_PROTOCOL",
): void {
  parse(valid);
  for (const value of values) {
    const shown = `${field}: ${JSON.stringify(value)?.slice(0, 60)}`;
    assert.throws(() => parse({ ...valid, [field]: value }), takeoverError(code), shown);
  }
}

/** The same for a field of an endpoint in an offer. */
function refusesEndpoint(field: string, values: readonly unknown[], code?: "ERR_TAKEOVER_LIMIT"): void {
  const parse = (endpoint: FrameHead) => parseOffer({ ...offer, endpoints: [control, endpoint] }, limits);
  refuses(parse, web, field, values, code);
}

/** The same for a field of an endpoint's address. */
function refusesAddress(valid: FrameHead, field: string, values: readonly unknown[]): void {
  const parse = (address: FrameHead) => parseOffer({ ...offer, endpoints: [control, { ...web, address }] }, limits);
  refuses(parse, valid, field, values);
}

const parseHelloHere = (head: FrameHead) => parseHello(head, limits);
const parseOfferHere = (head: FrameHead) => parseOffer(head, limits);

test("parseHello gives every field of a hello", () => {
  assert.deepEqual(parseHello(hello, limits), hello);
});

test("parseHello ignores fields that it does not know", () => {
  assert.deepEqual(parseHello({ ...hello, later: 1, versions: { ...hello.versions, best: 2 } }, limits), hello);
});

test("parseHello refuses a range of versions that is none", () => {
  refuses(parseHelloHere, hello, "versions", noObjects);
  for (const value of noIntegers) {
    refuses(parseHelloHere, hello, "versions", [{ min: value, max: 1 }, { min: 1, max: value }]);
  }
});

test("parseHello refuses a token that is not 32 hexadecimal digits", () => {
  refuses(parseHelloHere, hello, "token", noTokens);
});

test("parseHello refuses an instance that is not 32 hexadecimal digits", () => {
  refuses(parseHelloHere, hello, "instance", noTokens);
});

test("parseHello refuses a pid that is no integer", () => refuses(parseHelloHere, hello, "pid", noIntegers));

test("parseHello refuses a runtime that is no text, or too long a one", () => {
  refuses(parseHelloHere, hello, "runtime", noTexts);
});

test("parseHello refuses a room that is no integer", () => refuses(parseHelloHere, hello, "room", noIntegers));

test("parseHello refuses required names that are no array", () => {
  refuses(parseHelloHere, hello, "require", noArrays);
});

test("parseHello refuses too many required names", () => {
  refuses(parseHelloHere, hello, "require", [["a", "b", "c", "d"]], "ERR_TAKEOVER_LIMIT");
});

test("parseHello refuses a required name that is none", () => {
  refuses(parseHelloHere, hello, "require", noNames.map((name) => ["web", name]), "ERR_TAKEOVER_LIMIT");
});

test("parseHello takes nothing but true for datagrams", () => {
  for (const datagrams of [undefined, null, 1, "true", {}, false]) {
    assert.equal(parseHelloHere({ ...hello, datagrams }).datagrams, false);
  }
});

test("parseOffer takes datagram sockets beside listeners, each name once", () => {
  const game = { ...web, kind: "datagram", name: "game" };
  assert.deepEqual(parseOfferHere({ ...offer, endpoints: [control, web, game] }).endpoints, [control, web, game]);
  refuses(parseOfferHere, offer, "endpoints", [[control, web, { ...game, name: "web" }]]);
});

test("parseOffer takes the flows of an endpoint, of several generations", () => {
  const flows = [1, 2].map((generation) => ({ ...web, kind: "flows", address: { family: "unix", path: "" }, generation }));
  const many = limitsFrom({ endpointCount: 4, nameSize: 8 });
  assert.deepEqual(parseOffer({ ...offer, endpoints: [control, web, ...flows] }, many).endpoints, [control, web, ...flows]);
  for (const generation of noIntegers) {
    const endpoints = [control, web, { ...flows[0], generation }];
    assert.throws(() => parseOffer({ ...offer, endpoints }, limits), takeoverError("ERR_TAKEOVER_PROTOCOL"));
  }
});

test("parseOffer takes what an incumbent says of flows and members, and does without", () => {
  const flows = { ...web, kind: "flows", address: { family: "unix", path: "" }, generation: 1 };
  const member = { ...web, kind: "member", generation: 0 };
  const many = limitsFrom({ endpointCount: 4, nameSize: 8 });
  const parsed = (...endpoints: object[]) => parseOffer({ ...offer, endpoints: [control, web, ...endpoints] }, many).endpoints.slice(2);
  const told = { ...flows, strategy: "of a later release", format: "mvfst" };
  assert.deepEqual(parsed(told, { ...member, slot: 7 }), [told, { ...member, slot: 7 }]);
  assert.deepEqual(parsed(flows, member), [flows, member]);
  // What belongs to the other kind is ignored, like any unknown field.
  assert.deepEqual(parsed({ ...flows, slot: "x" }, { ...member, strategy: 1, format: null }), [flows, member]);
  for (const value of noTexts.slice(1)) {
    assert.throws(() => parsed({ ...flows, strategy: value }), takeoverError("ERR_TAKEOVER_PROTOCOL"));
    assert.throws(() => parsed({ ...flows, format: value }), takeoverError("ERR_TAKEOVER_PROTOCOL"));
  }
  for (const slot of noIntegers.slice(1)) {
    assert.throws(() => parsed({ ...member, slot }), takeoverError("ERR_TAKEOVER_PROTOCOL"));
  }
});

test("parseHello takes nothing but true for moves", () => {
  for (const moves of [undefined, null, 1, "true", {}, false]) {
    assert.equal(parseHelloHere({ ...hello, moves }).moves, false);
  }
});

test("parseJoin gives the token of a join", () => {
  assert.deepEqual(parseJoin({ type: "join", token, later: 1 }), { type: "join", token });
});

test("parseJoin refuses a token that is not 32 hexadecimal digits", () => {
  refuses(parseJoin, { type: "join", token }, "token", noTokens);
});

test("parseOffer gives every field of an offer", () => {
  assert.deepEqual(parseOffer(offer, limits), offer);
});

test("parseOffer ignores fields that it does not know, at every level", () => {
  const endpoints = [control, { ...web, later: 1, address: { ...inet, later: 2 } }];
  assert.deepEqual(parseOffer({ ...offer, later: 3, endpoints }, limits), offer);
});

test("parseOffer gives the control socket no name, whatever it is called", () => {
  const parsed = parseOffer({ ...offer, endpoints: [{ ...control, name: "web" }, web] }, limits);
  assert.deepEqual(parsed.endpoints.map(({ name }) => name), ["", "web"]);
});

test("parseOffer refuses a version that is no integer", () => refuses(parseOfferHere, offer, "version", noIntegers));

test("parseOffer refuses a pid that is no integer", () => refuses(parseOfferHere, offer, "pid", noIntegers));

test("parseOffer refuses a runtime that is no text, or too long a one", () => {
  refuses(parseOfferHere, offer, "runtime", noTexts);
});

test("parseOffer refuses a generation that is no integer", () => {
  refuses(parseOfferHere, offer, "generation", noIntegers);
});

test("parseOffer takes nothing but true for moves", () => {
  for (const moves of [undefined, null, 1, "true", {}, false]) {
    assert.equal(parseOfferHere({ ...offer, moves }).moves, false);
  }
});

test("parseOffer gives no state where there is none, and the value null where the state has none", () => {
  assert.equal(parseOfferHere({ ...offer, state: undefined }).state, null);
  assert.equal(parseOfferHere({ ...offer, state: null }).state, null);
  assert.deepEqual(parseOfferHere({ ...offer, state: { version: 0 } }).state, { version: 0, value: null });
});

test("parseOffer refuses a state that is no object, or whose version is no integer", () => {
  refuses(parseOfferHere, offer, "state", [1, "x", [], true]);
  refuses(parseOfferHere, offer, "state", noIntegers.map((version) => ({ version, value: 1 })));
});

test("parseOffer refuses endpoints that are no array of objects", () => {
  refuses(parseOfferHere, offer, "endpoints", noArrays);
  refuses(parseOfferHere, offer, "endpoints", noObjects.map((item) => [control, item]));
});

test("parseOffer takes as many endpoints as the limit says, beside the control socket", () => {
  const named = (count: number) => Array.from({ length: count }, (_, index) => ({ ...web, name: `web${index}` }));
  assert.equal(parseOffer({ ...offer, endpoints: [control, ...named(3)] }, limits).endpoints.length, 4);
  refuses(parseOfferHere, offer, "endpoints", [[control, ...named(4)]], "ERR_TAKEOVER_LIMIT");
});

test("parseOffer refuses an offer without the control socket, and one with two", () => {
  refuses(parseOfferHere, offer, "endpoints", [[], [web], [control, control], [control, web, control]]);
});

test("parseOffer refuses an offer whose control socket is not the first", () => {
  refuses(parseOfferHere, offer, "endpoints", [[web, control]]);
});

test("parseOffer refuses a name that comes twice", () => {
  refuses(parseOfferHere, offer, "endpoints", [[control, web, { ...web, cookie: "0000000000000002" }]]);
});

test("parseOffer refuses an endpoint of another kind", () => {
  refusesEndpoint("kind", [...noTexts, "", "connection", "Control"]);
});

test("parseOffer refuses an endpoint whose name is none", () => {
  refusesEndpoint("name", noNames, "ERR_TAKEOVER_LIMIT");
});

test("parseOffer refuses a cookie that is not 16 hexadecimal digits or none", () => {
  refusesEndpoint("cookie", [undefined, null, 1, "0", "000000000000001", "00000000000000001", "000000000000000G"]);
});

test("parseOffer refuses an address that is no object, or of another family", () => {
  refusesEndpoint("address", noObjects);
  refusesAddress(inet, "family", [...noTexts, "", "INET", "netlink"]);
});

test("parseOffer refuses an IP address whose host name or port is wrong", () => {
  refusesAddress(inet, "hostname", noTexts);
  refusesAddress(inet, "port", noIntegers);
});

test("parseOffer gives the scope of an IPv6 address, and refuses one that is no integer", () => {
  const address = { family: "inet6", hostname: "fe80::1", port: 80, scope: 2 } as const;
  assert.deepEqual(
    parseOffer({ ...offer, endpoints: [control, { ...web, address }] }, limits).endpoints[1]!.address,
    address,
  );
  refusesAddress(address, "scope", noIntegers.filter((value) => value !== undefined));
});

test("parseOffer refuses a Unix address whose path is no text, or too long a one", () => {
  refusesAddress({ family: "unix", path: "/run/y" }, "path", noTexts);
});

test("parseBatch gives the number and the count of a batch", () => {
  assert.deepEqual(parseBatch({ type: "batch", number: 0, count: 253, later: 1 }), { number: 0, count: 253 });
});

test("parseBatch refuses a number or a count that is no integer", () => {
  refuses(parseBatch, { number: 0, count: 1 }, "number", noIntegers);
  refuses(parseBatch, { number: 0, count: 1 }, "count", noIntegers);
});

test("parseReady gives the names that are claimed", () => {
  assert.deepEqual(parseReady({ claimed: ["web"], later: 1 }, limits), { type: "ready", claimed: ["web"] });
  assert.deepEqual(parseReady({ claimed: [] }, limits), { type: "ready", claimed: [] });
});

test("parseReady refuses claims that are no array of names, or too many", () => {
  const parse = (head: FrameHead) => parseReady(head, limits);
  refuses(parse, { claimed: [] }, "claimed", noArrays);
  refuses(parse, { claimed: [] }, "claimed", noNames.map((name) => [name]), "ERR_TAKEOVER_LIMIT");
  refuses(parse, { claimed: [] }, "claimed", [["a", "b", "c", "d"]], "ERR_TAKEOVER_LIMIT");
});

test("parseLease gives the silence that is allowed", () => {
  assert.deepEqual(parseLease({ silenceMs: 5_000, later: 1 }), { type: "lease", silenceMs: 5_000 });
});

test("parseLease refuses a silence that is no integer", () => {
  refuses(parseLease, { silenceMs: 1 }, "silenceMs", noIntegers);
});

test("parseRefusal gives the error that the other side named", () => {
  const error = parseRefusal({ type: "refuse", code: "ERR_TAKEOVER_BUSY", message: "try again" });
  assert.equal(error.code, "ERR_TAKEOVER_BUSY");
  assert.equal(error.message, "try again");
});

test("parseRefusal gives ERR_TAKEOVER_PROTOCOL for a code that it does not know", () => {
  const error = parseRefusal({ type: "abort", code: "ERR_TAKEOVER_LATER", message: "said" });
  assert.equal(error.code, "ERR_TAKEOVER_PROTOCOL");
  assert.equal(error.message, "said");
});

test("parseRefusal refuses a code or a message that is no text, or too long a one", () => {
  const valid = { code: "ERR_TAKEOVER_BUSY", message: "" };
  refuses(parseRefusal, valid, "code", noTexts);
  refuses(parseRefusal, valid, "message", [undefined, null, 1, [], {}, "x".repeat(4_097)]);
});

test("checkedName gives a name of 1 byte and of as many as the limit says", () => {
  assert.equal(checkedName("w", limits), "w");
  assert.equal(checkedName("éééé", limits), "éééé");
});

test("checkedName refuses what is no name, and shows no more than 80 characters of it", () => {
  for (const name of noNames) assert.throws(() => checkedName(name, limits), takeoverError("ERR_TAKEOVER_LIMIT"));
  assert.throws(() => checkedName("x".repeat(100_000), limits), (error: Error) => error.message.length < 300);
});

test("checkedName throws a TakeoverError for a name that is nested too deep to be shown", () => {
  const name: unknown = JSON.parse("[".repeat(500_000) + "]".repeat(500_000));
  assert.throws(() => checkedName(name, limits), takeoverError("ERR_TAKEOVER_LIMIT"));
});
