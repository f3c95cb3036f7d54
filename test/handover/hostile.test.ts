/**
 * Hostile and broken successors: the incumbent refuses each of them with a
 * code, closes every descriptor, and serves on.
 *
 * The peer is test/peers/peer.py. Every case runs against the three runtimes at
 * once, each with one incumbent that lives through all of them.
 */

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { runtimes, type ServerEvent, startHttp } from "../support/server.ts";
import { assertRefusal, harmless, hasResumed, incumbents } from "./hostile_incumbents.ts";
import {
  assertReport,
  descriptorsOf,
  endOf,
  get,
  hasNoMoreDescriptors,
  onEvery,
  portOf,
  Scratch,
  skipReason,
  startPeer,
} from "./hostile_peers.ts";

// The slow cases only wait, and can do so beside the others.
describe("An incumbent", { skip: skipReason, concurrency: 2 }, () => {
  describe("and a successor that breaks the protocol", { concurrency: 1 }, () => {
    const scenes = incumbents();

    /** A test: the incumbent refuses with this code and this sentence, and is as it was. */
    function refuses(what: string, misbehave: string, code: string, sentence: RegExp): void {
      test(`${what}: ${code}`, () => onEvery(scenes, (scene) => assertRefusal(scene, misbehave, code, sentence)));
    }

    /** A test: the incumbent hears no more of that successor, and is as it was. */
    function forgets(fact: string, misbehave: string): void {
      test(fact, () => onEvery(scenes, async (scene) => assert.equal(await harmless(scene, misbehave), undefined)));
    }

    /** A test: the same while the peer holds on to its connections. */
    function refusesOneThatStays(what: string, misbehave: string, sentence: RegExp): void {
      test(`${what}: ERR_TAKEOVER_PROTOCOL`, () =>
        onEvery(scenes, async (scene) => {
          const descriptors = await descriptorsOf(scene.server.pid);
          await using peer = startPeer(scene.env, { misbehave });
          assertReport(await peer.event("refused"), "ERR_TAKEOVER_PROTOCOL", sentence);
          await hasNoMoreDescriptors(scene.server.pid, descriptors);
          await get(scene.port);
        }));
    }

    /** A test: an incumbent of its own ends well, because its successor had settled. */
    function isReleased(fact: string, misbehave: string): void {
      test(fact, () =>
        onEvery(runtimes, async (runtime) => {
          await using scratch = await Scratch.make();
          const env = { TAKEOVER: scratch.path, PORT: "0", DRAIN_MS: "5000" };
          await using incumbent = startHttp(runtime, env);
          await incumbent.event("ready");
          await using peer = startPeer(env, { misbehave });
          await endOf(peer);
          assert.equal((await incumbent.event("settled")).role, "incumbent");
          assert.equal(await endOf(incumbent), 0);
        }));
    }

    describe("sends what is no frame", () => {
      refuses("another magic", "send-raw:connect:wrong-magic", "ERR_TAKEOVER_PROTOCOL", /start with STKO/);
      refuses("an HTTP request", "send-raw:connect:http", "ERR_TAKEOVER_PROTOCOL", /not a socket-takeover peer/);
      refuses("a head of 4 GB", "send-raw:connect:huge-head", "ERR_TAKEOVER_LIMIT", /4294967295 bytes.*limit headSize/);
      refuses("a body", "send-raw:connect:body", "ERR_TAKEOVER_LIMIT", /body of 4 bytes/);
      refuses("an empty head", "send-raw:connect:empty-head", "ERR_TAKEOVER_PROTOCOL", /not JSON/);
      refuses("a head that is not JSON", "send-raw:connect:not-json", "ERR_TAKEOVER_PROTOCOL", /not JSON/);
      refuses("a head that is not UTF-8", "send-raw:connect:bad-utf8", "ERR_TAKEOVER_PROTOCOL", /UTF-8/);
      refuses("a head that is an array", "send-raw:connect:array", "ERR_TAKEOVER_PROTOCOL", /JSON object/);
      refuses("a head that is null", "send-raw:connect:null", "ERR_TAKEOVER_PROTOCOL", /JSON object/);
      refuses("a head of a million arrays in each other", "send-raw:connect:deep-head", "ERR_TAKEOVER_PROTOCOL", /./);
      refuses("a type of a million arrays in each other", "send-raw:connect:deep-type", "ERR_TAKEOVER_PROTOCOL", /./);
      refuses("garbage after the offer", "send-raw:offer:wrong-magic", "ERR_TAKEOVER_PROTOCOL", /start with STKO/);
      refuses("garbage in place of received", "send-raw:batch:not-json", "ERR_TAKEOVER_PROTOCOL", /not JSON/);
    });

    describe("sends a frame that may not come now", () => {
      refuses(
        "an unknown type",
        'send:connect:{"type":"helo"}',
        "ERR_TAKEOVER_PROTOCOL",
        /"helo".*expected hello, join/,
      );
      refuses("no type", "send:connect:{}", "ERR_TAKEOVER_PROTOCOL", /expected hello, join/);
      refuses("a type that is a number", 'send:connect:{"type":1}', "ERR_TAKEOVER_PROTOCOL", /type number/);
      refuses(
        "a type that every object has",
        'send:connect:{"type":"__proto__"}',
        "ERR_TAKEOVER_PROTOCOL",
        /__proto__/,
      );
      refuses("the incumbent's own frame", 'send:connect:{"type":"refuse"}', "ERR_TAKEOVER_PROTOCOL", /"refuse"/);
      refuses(
        "ready before hello",
        'send:connect:{"type":"ready","claimed":["web"]}',
        "ERR_TAKEOVER_PROTOCOL",
        /"ready".*state connected/,
      );
      refuses(
        "hello after the offer",
        'send:offer:{"type":"hello"}',
        "ERR_TAKEOVER_PROTOCOL",
        /"hello".*state offered/,
      );
      refuses(
        "received before any batch",
        'send:offer:{"type":"received","number":0,"count":2}',
        "ERR_TAKEOVER_PROTOCOL",
        /"received".*state offered/,
      );
      refuses(
        "ready before the batch is acknowledged",
        'send:batch:{"type":"ready","claimed":["web"]}',
        "ERR_TAKEOVER_PROTOCOL",
        /"ready".*state sending/,
      );
      refuses("ready before any batch", "ready-before-batches", "ERR_TAKEOVER_PROTOCOL", /Cannot take the frame/);
      refuses(
        "settled before ready",
        'send:received:{"type":"settled"}',
        "ERR_TAKEOVER_PROTOCOL",
        /"settled".*state offered/,
      );
      refuses(
        "alive before ready",
        'send:received:{"type":"alive"}',
        "ERR_TAKEOVER_PROTOCOL",
        /"alive".*state offered/,
      );
      refuses(
        "received twice",
        'send:received:{"type":"received","number":0,"count":2}',
        "ERR_TAKEOVER_PROTOCOL",
        /"received".*state offered/,
      );
      refuses(
        "ready twice, and the incumbent accepts again",
        'send:lease:{"type":"ready","claimed":["web"]}',
        "ERR_TAKEOVER_PROTOCOL",
        /"ready".*state leased/,
      );
    });

    describe("sends a frame with wrong fields", () => {
      test("a hello without one of its fields: ERR_TAKEOVER_PROTOCOL", () =>
        onEvery(scenes, async (scene) => {
          for (const field of ["versions", "token", "instance", "pid", "runtime", "room", "require"]) {
            await assertRefusal(
              scene,
              `hello-without:${field}`,
              "ERR_TAKEOVER_PROTOCOL",
              new RegExp(`the field ${field} of a frame`),
            );
          }
        }));
      refuses(
        "a version that is a text",
        'hello-with:{"versions":{"min":"1","max":1}}',
        "ERR_TAKEOVER_PROTOCOL",
        /the field min/,
      );
      refuses(
        "a token that is too short",
        'hello-with:{"token":"abc"}',
        "ERR_TAKEOVER_PROTOCOL",
        /token.*32 hexadecimal digits/,
      );
      refuses("a negative room", 'hello-with:{"room":-1}', "ERR_TAKEOVER_PROTOCOL", /room.*integer from 0 on/);
      refuses("a room that is no integer", 'hello-with:{"room":1.5}', "ERR_TAKEOVER_PROTOCOL", /room.*integer/);
      refuses(
        "a runtime's name of 2,000 characters",
        `hello-with:{"runtime":"${"x".repeat(2_000)}"}`,
        "ERR_TAKEOVER_PROTOCOL",
        /runtime.*at most 1024/,
      );
      refuses(
        "a required name of 256 bytes",
        `hello-with:{"require":["${"x".repeat(256)}"]}`,
        "ERR_TAKEOVER_LIMIT",
        /limit nameSize/,
      );
      refuses(
        "5,000 required names",
        `hello-with:${JSON.stringify({ require: Array(5_000).fill("web") })}`,
        "ERR_TAKEOVER_LIMIT",
        /limit endpointCount/,
      );
      refuses("a join without a token", 'send:connect:{"type":"join"}', "ERR_TAKEOVER_PROTOCOL", /the field token/);
      refuses(
        "a received without a count",
        'send:batch:{"type":"received","number":0}',
        "ERR_TAKEOVER_PROTOCOL",
        /the field count/,
      );
      refuses(
        "a ready without its names",
        'send:received:{"type":"ready"}',
        "ERR_TAKEOVER_PROTOCOL",
        /the field claimed/,
      );
      refuses(
        "a ready with a name that is a number",
        'send:received:{"type":"ready","claimed":[1]}',
        "ERR_TAKEOVER_LIMIT",
        /name of an endpoint/,
      );
    });

    describe("asks for what there is not", () => {
      refuses(
        "the next version only",
        'hello-with:{"versions":{"min":2,"max":2}}',
        "ERR_TAKEOVER_VERSION",
        /1 to 1 .*2 to 2/,
      );
      refuses(
        "the version before only",
        'hello-with:{"versions":{"min":0,"max":0}}',
        "ERR_TAKEOVER_VERSION",
        /1 to 1 .*0 to 0/,
      );
      refuses(
        "a range of versions that is the wrong way round",
        'hello-with:{"versions":{"min":9,"max":0}}',
        "ERR_TAKEOVER_VERSION",
        /9 to 0/,
      );
      test("a range of versions with this one in it is accepted", () =>
        onEvery(scenes, async (scene) => {
          const offer = await harmless(scene, 'hello-with:{"versions":{"min":0,"max":7}}');
          assert.deepEqual([offer?.event, offer?.version], ["offered", 1]);
        }));
      test("a hello with fields of a later version is accepted", () =>
        onEvery(scenes, async (scene) => {
          const offer = await harmless(scene, 'hello-with:{"later":{"a":[1]},"connections":true}');
          assert.deepEqual([offer?.event, offer?.version], ["offered", 1]);
        }));
      refuses(
        "an unknown name is required",
        'hello-with:{"require":["admin"]}',
        "ERR_TAKEOVER_UNKNOWN_NAME",
        /requires "admin".*has "web"/,
      );
      refuses(
        "an unknown name is claimed",
        'send:received:{"type":"ready","claimed":["admin"]}',
        "ERR_TAKEOVER_UNKNOWN_NAME",
        /claims "admin".*has "web"/,
      );
      refuses("no room", 'hello-with:{"room":0}', "ERR_TAKEOVER_NO_ROOM", /room for 0.*ulimit -n/);
    });

    describe("joins or acknowledges wrongly", () => {
      refuses(
        "a join without a hand-over",
        `send:connect:{"type":"join","token":"${"0".repeat(32)}"}`,
        "ERR_TAKEOVER_PROTOCOL",
        /the token is of no hand-over/,
      );
      test("a join with another token is refused, and the right one still comes through", () =>
        onEvery(scenes, async (scene) => {
          const descriptors = await descriptorsOf(scene.server.pid);
          await using peer = startPeer(scene.env, { misbehave: "wrong-token" });
          assertReport(await peer.event("refused"), "ERR_TAKEOVER_PROTOCOL", /the token is of no hand-over/);
          assert.equal((await peer.event("batch")).count, 2);
          await hasNoMoreDescriptors(scene.server.pid, descriptors);
        }));
      refuses(
        "a count that is a lie",
        'send:batch:{"type":"received","number":0,"count":7}',
        "ERR_TAKEOVER_PROTOCOL",
        /batch 0 with 2 .*acknowledged 0 with 7/,
      );
      refuses(
        "a number that is a lie",
        'send:batch:{"type":"received","number":1,"count":2}',
        "ERR_TAKEOVER_PROTOCOL",
        /acknowledged 1 with 2/,
      );
      refusesOneThatStays("a second join, kept open", "join-twice", /./);
      refusesOneThatStays("a join after the batches, kept open", "late-join", /./);
    });

    describe("sends descriptors where none are due", () => {
      refuses("253 with its hello, which are closed", "descriptors:hello:253", "ERR_TAKEOVER_PROTOCOL", /"settled"/);
      refuses("253 with its join, which are closed", "descriptors:join:253", "ERR_TAKEOVER_PROTOCOL", /"settled"/);
      refuses(
        "253 on the second connection, which are closed",
        "descriptors:batch:253",
        "ERR_TAKEOVER_PROTOCOL",
        /"settled"/,
      );
      refuses("one with its received, which is closed", "descriptors:received:1", "ERR_TAKEOVER_PROTOCOL", /"settled"/);
    });

    describe("goes away", () => {
      forgets("at once: nothing happens", "close:connect");
      forgets("in the middle of a frame's header: nothing happens", "send-raw:connect:half-header");
      forgets("in the middle of a frame's head: nothing happens", "send-raw:connect:half-head");
      forgets("after hello: nothing happens", "close:hello");
      forgets("after the offer: nothing happens", "close:offer");
      forgets("after join: nothing happens", "close:join");
      forgets("with the batch: nothing happens", "close:batch");
      forgets("after received: nothing happens", "close:received");
      forgets("after ready: the incumbent accepts again", "close:ready");
      forgets("in the lease: the incumbent accepts again", "close:lease");
      forgets("in the middle of a frame of the lease: the incumbent accepts again", "send-raw:lease:half-head");
      test("with an abort in the lease: the incumbent accepts again", () =>
        onEvery(scenes, async (scene) => {
          const abort = { type: "abort", code: "ERR_TAKEOVER_STATE", message: "gave up" };
          await harmless(scene, `send:lease:${JSON.stringify(abort)}`);
          await hasResumed(scene, abort.code);
        }));
      test("with a sign of life and an abort at once: the incumbent accepts again", () =>
        onEvery(scenes, async (scene) => {
          const abort = { type: "abort", code: "ERR_TAKEOVER_ADOPT", message: "gave up" };
          await harmless(scene, `send-all:lease:${JSON.stringify([{ type: "alive" }, abort])}`);
          await hasResumed(scene, abort.code);
        }));
      isReleased("after settled, at once: the incumbent is released", "close:settled");
      isReleased(
        "with settled and an abort at once: the incumbent is released",
        `send-all:lease:${
          JSON.stringify([{ type: "settled" }, { type: "abort", code: "ERR_TAKEOVER_STATE", message: "gave up" }])
        }`,
      );
      refusesOneThatStays("not at all, and the incumbent closes its own end", "stay", /"ready"/);
    });

    describe("comes while another is there", () => {
      test("before ready: ERR_TAKEOVER_BUSY, and the first goes on", () =>
        onEvery(scenes, async (scene) => {
          const descriptors = await descriptorsOf(scene.server.pid);
          await using first = startPeer(scene.env, { misbehave: "hold:received" });
          await first.event("holding");
          await using second = startHttp(scene.runtime, scene.env);
          assertReport(
            await second.event("refused"),
            "ERR_TAKEOVER_BUSY",
            new RegExp(`hand-over to pid ${first.pid} is in progress`),
          );
          assert.equal(await endOf(second), 1);
          assert.deepEqual(first.events.map(({ event }) => event), ["holding"]);
          await first[Symbol.asyncDispose]();
          await hasNoMoreDescriptors(scene.server.pid, descriptors);
          assert.equal((await get(scene.port)).pid, scene.server.pid);
        }));
      test("in the lease of the one before: ERR_TAKEOVER_BUSY, and the second serves on", () =>
        onEvery(runtimes, async (runtime) => {
          await using scratch = await Scratch.make();
          const env = { TAKEOVER: scratch.path, PORT: "0", SETTLE_MS: "600000" };
          await using first = startPeer(env);
          env.PORT = String(portOf(await first.event("ready")));
          await using second = startHttp(runtime, env);
          await second.event("ready");
          await using third = startPeer(env);
          assertReport(
            await third.firstOf(["refused", "ready"]),
            "ERR_TAKEOVER_BUSY",
            new RegExp(`hand-over from pid ${first.pid} is in progress`),
          );
          assert.equal((await get(Number(env.PORT))).pid, second.pid);
        }));
    });

    test("An honest successor takes over after all of them", () =>
      onEvery(scenes, async (scene) => {
        await using successor = startPeer({ ...scene.env, PORT: String(scene.port) });
        const { inherited, generation } = await successor.event("ready");
        assert.deepEqual([inherited, generation], [true, 2]);
        await successor.event("settled");
        assert.equal((await get(scene.port)).pid, successor.pid);
        assert.equal(await endOf(scene.server), 0);
      }));
  });

  describe("and a successor that is slow", { concurrency: 1 }, () => {
    const scenes = incumbents();

    test("64 connections that say nothing: ERR_TAKEOVER_TIMEOUT, and an honest successor is told why it waits", () =>
      onEvery(scenes, async (scene) => {
        const descriptors = await descriptorsOf(scene.server.pid);
        await using silent = startPeer(scene.env, { misbehave: "say-nothing:64" });
        await silent.event("holding");
        // One that gets through kills itself there.
        await using honest = startHttp(scene.runtime, {
          ...scene.env,
          PORT: String(scene.port),
          CRASH: "before-ready",
        });
        if (await endOf(honest) !== "SIGKILL") assertBusy(await honest.event("refused"));
        assert.equal(await endOf(silent), 0, silent.stderr);
        const refusals = silent.events.filter(({ event }) => event === "refused");
        assert.ok(refusals.length > 0);
        for (const refusal of refusals) assertBusy(refusal);
        await hasNoMoreDescriptors(scene.server.pid, descriptors);
        assert.equal((await get(scene.port)).pid, scene.server.pid);
      }));
    test("a hello of one byte a second: ERR_TAKEOVER_TIMEOUT", () =>
      onEvery(scenes, (scene) => assertRefusal(scene, "dribble", "ERR_TAKEOVER_TIMEOUT", /limit helloMs/)));
    test("no join: ERR_TAKEOVER_TIMEOUT", () =>
      onEvery(
        scenes,
        (scene) => assertRefusal(scene, "hold:offer", "ERR_TAKEOVER_TIMEOUT", /second connection \(limit helloMs\)/),
      ));
    test("a join, and no received: ERR_TAKEOVER_TIMEOUT", () =>
      onEvery(scenes, (scene) => assertRefusal(scene, "hold:batch", "ERR_TAKEOVER_TIMEOUT", /limit batchMs/)));
    test("silence in the lease: ERR_TAKEOVER_REVOKED, and the incumbent accepts again", () =>
      onEvery(scenes, async (scene) => {
        await assertRefusal(scene, "hold:lease", "ERR_TAKEOVER_REVOKED", /silent for 5000 ms \(limit silenceMs\)/);
        await hasResumed(scene, "ERR_TAKEOVER_REVOKED");
      }));
  });
});

/** The one of many connections that waits too long, or the one too many. */
function assertBusy({ code, message }: ServerEvent): void {
  assert.ok(code === "ERR_TAKEOVER_TIMEOUT" || code === "ERR_TAKEOVER_BUSY", `${code}: ${message}`);
}
