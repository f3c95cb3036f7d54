import assert from "node:assert/strict";
import test from "node:test";
import type { FrameHead } from "../../src/handover/frame.ts";
import { parseKept, parseMove, parseTakes, parseYours, refusalOf } from "../../src/handover/move_messages.ts";
import { limitsFrom } from "../../src/limits.ts";
import { takeoverError } from "./support.ts";

const limits = limitsFrom({ endpointCount: 2, nameSize: 8 });
const cookie = "00000000000000ff";
const party = { name: "web", kind: "raw" };
const takes = { type: "takes", room: 9, parties: [party, { name: "web", kind: "http" }, { name: "web", kind: "websocket" }] };
const connection = { cookie, state: { count: 1 }, unread: 3 };
const move = { type: "move", number: 4, ...party, connections: [connection, { cookie, state: null, unread: 0 }] };
const refusal = { index: 1, code: "ERR_TAKEOVER_ADOPT", message: "no" };
const kept = { type: "kept", number: 4, room: 7, refused: [refusal] };

const noIntegers = [undefined, null, -1, 0.5, "1", NaN, Infinity, 2 ** 53, [], {}, true];
const noObjects = [undefined, null, 1, "x", [], true];
const noArrays = [undefined, null, 1, "web", {}, true];
const noNames = [undefined, null, 1, "", [], {}, "123456789"];
const noKinds = [undefined, null, 1, "", "Raw", "tls", "__proto__", [], {}];
const noCookies = [undefined, null, 1, "", cookie.slice(1), `${cookie}0`, cookie.toUpperCase(), []];

const parseTakesHere = (head: FrameHead) => parseTakes(head, limits);
const parseMoveHere = (head: FrameHead) => parseMove(head, 3, 2, limits);
const parseKeptHere = (head: FrameHead) => parseKept(head, 2);

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

/** The same for a field of a connection in a move. */
function refusesConnection(field: string, values: readonly unknown[]): void {
  const only = (head: FrameHead) => parseMove({ ...move, connections: [head] }, 3, 2, limits);
  refuses(only, connection, field, values);
}

test("parseTakes gives the room and the parties, and ignores fields that it does not know", () => {
  const { room, parties } = takes;
  assert.deepEqual(parseTakesHere({ ...takes, later: 1, parties: parties.map((each) => ({ ...each, later: 2 })) }), { room, parties });
  assert.deepEqual(parseTakesHere({ room: 0, parties: [] }), { room: 0, parties: [] });
});

test("parseTakes refuses a room that is no integer", () => refuses(parseTakesHere, takes, "room", noIntegers));

test("parseTakes refuses parties that are no array of objects, or too many", () => {
  refuses(parseTakesHere, takes, "parties", noArrays);
  refuses(parseTakesHere, takes, "parties", noObjects.map((item) => [item]));
  assert.equal(parseTakesHere({ ...takes, parties: Array(6).fill(party) }).parties.length, 6);
  refuses(parseTakesHere, takes, "parties", [Array(7).fill(party)], "ERR_TAKEOVER_LIMIT");
});

test("parseTakes refuses a party whose name is none, or whose kind is none", () => {
  refuses(parseTakesHere, takes, "parties", noNames.map((name) => [{ ...party, name }]), "ERR_TAKEOVER_LIMIT");
  refuses(parseTakesHere, takes, "parties", noKinds.map((kind) => [{ ...party, kind }]));
});

test("parseMove gives the party, the number and every connection", () => {
  const { number, name, kind, connections } = move;
  assert.deepEqual(parseMoveHere({ ...move, later: 1 }), { number, name, kind, connections });
});

test("parseMove gives the state null where there is none", () => {
  assert.equal(parseMove({ ...move, connections: [{ cookie, unread: 3 }] }, 3, 2, limits).connections[0]!.state, null);
});

test("parseMove refuses a number that is no integer", () => refuses(parseMoveHere, move, "number", noIntegers));

test("parseMove refuses a name or a kind that is none", () => {
  refuses(parseMoveHere, move, "name", noNames, "ERR_TAKEOVER_LIMIT");
  refuses(parseMoveHere, move, "kind", noKinds);
});

test("parseMove refuses connections that are no array of objects, none, or more than a message has descriptors", () => {
  refuses(parseMoveHere, move, "connections", [...noArrays, []]);
  refuses(parseMoveHere, move, "connections", noObjects.map((item) => [item]));
  refuses(parseMoveHere, move, "connections", [[connection, connection, connection]], "ERR_TAKEOVER_LIMIT");
});

test("parseMove refuses a cookie that is not 16 hexadecimal digits", () => refusesConnection("cookie", noCookies));

test("parseMove refuses a count of unread bytes that is no integer", () => refusesConnection("unread", noIntegers));

test("parseMove refuses unread bytes that are not the body, no more and no less", () => {
  for (const size of [0, 2, 4, 2 ** 32]) {
    assert.throws(() => parseMove(move, size, 2, limits), {
      ...takeoverError("ERR_TAKEOVER_PROTOCOL"),
      message: `Cannot use the field unread of a frame: expected ${size} in all, which is the size of the body`,
    });
  }
  const most = { cookie, state: null, unread: Number.MAX_SAFE_INTEGER };
  assert.throws(() => parseMove({ ...move, connections: [most, most] }, 3, 2, limits), takeoverError("ERR_TAKEOVER_PROTOCOL"));
});

test("parseKept gives the number, the room and what is refused", () => {
  const { number, room, refused } = kept;
  assert.deepEqual(parseKeptHere({ ...kept, later: 1, refused: [{ ...refusal, later: 2 }] }), { number, room, refused });
  assert.deepEqual(parseKeptHere({ number, room, refused: [] }), { number, room, refused: [] });
});

test("parseKept refuses a number or a room that is no integer", () => {
  refuses(parseKeptHere, kept, "number", noIntegers);
  refuses(parseKeptHere, kept, "room", noIntegers);
});

test("parseKept refuses refusals that are no array of objects, or more than there were connections", () => {
  refuses(parseKeptHere, kept, "refused", noArrays);
  refuses(parseKeptHere, kept, "refused", noObjects.map((item) => [item]));
  refuses(parseKeptHere, kept, "refused", [[refusal, refusal, refusal]], "ERR_TAKEOVER_LIMIT");
  assert.throws(() => parseKept(kept, 0), takeoverError("ERR_TAKEOVER_LIMIT"));
});

test("parseKept refuses an index that no connection has, and one that comes twice", () => {
  refuses(parseKeptHere, kept, "refused", [...noIntegers, 2, 253].map((index) => [{ ...refusal, index }]));
  refuses(parseKeptHere, kept, "refused", [[refusal, refusal]]);
});

test("parseKept refuses a code or a message that is no text, or too long a one", () => {
  const wrong = [undefined, null, 1, [], {}, "x".repeat(4_097)];
  refuses(parseKeptHere, kept, "refused", [...wrong, "x".repeat(65)].map((code) => [{ ...refusal, code }]));
  refuses(parseKeptHere, kept, "refused", wrong.map((message) => [{ ...refusal, message }]));
});

test("parseYours gives the number, and refuses one that is no integer", () => {
  assert.equal(parseYours({ type: "yours", number: 3, later: 1 }), 3);
  refuses(parseYours, { number: 3 }, "number", noIntegers);
});

test("refusalOf gives an error with the code, and ERR_TAKEOVER_PROTOCOL for what is none", () => {
  const { code, message } = refusalOf({ index: 0, code: "ERR_TAKEOVER_ADOPT", message: "no" });
  assert.deepEqual([code, message], ["ERR_TAKEOVER_ADOPT", "no"]);
  assert.equal(refusalOf({ index: 0, code: "EVIL" as "ERR_TAKEOVER_ADOPT", message: "" }).code, "ERR_TAKEOVER_PROTOCOL");
});
