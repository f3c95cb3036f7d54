/**
 * Hostile and broken incumbents: the successor says with a code what is wrong,
 * leaves nothing behind, and does not serve; one that died with everything
 * handed over is followed.
 *
 * The peer is test/peers/peer.py, the successor examples/http.ts on all three
 * runtimes at once; and hostile_target.ts, which lives on so that its
 * descriptors can be counted.
 */

import assert from "node:assert/strict";
import { readdir } from "node:fs/promises";
import { after, before, describe, test } from "node:test";
import { type RuntimeName, runtimes, type Server, type ServerEvent, startHttp } from "../support/server.ts";
import {
  assertReport,
  descriptorsOf,
  get,
  hasDescriptors,
  onEvery,
  portOf,
  Scratch,
  skipReason,
  startPeer,
  Target,
} from "./hostile_peers.ts";

/** A successor that serves, against an incumbent that misbehaves. */
interface Meeting {
  readonly scratch: Scratch;
  readonly incumbent: Server;
  readonly successor: Server;
}

async function meet(runtime: RuntimeName, misbehave: string, use: (meeting: Meeting) => Promise<void>): Promise<void> {
  await using scratch = await Scratch.make();
  await using incumbent = startPeer({ TAKEOVER: scratch.path, PORT: "0" }, { misbehave });
  const port = portOf(await incumbent.event("listening"));
  const env = { TAKEOVER: scratch.path, PORT: String(port), SETTLE_MS: "100", DRAIN_MS: "5000" };
  await using successor = startHttp(runtime, env);
  await use({ scratch, incumbent, successor });
}

/** The example says why it ends, ends with exit status 1, and has left nothing. */
async function assertEnds(runtime: RuntimeName, misbehave: string, code: string, sentence: RegExp): Promise<void> {
  await meet(runtime, misbehave, async ({ scratch, successor }) => {
    assertReport(await successor.event("refused"), code, sentence);
    assert.equal(await successor.ended, 1);
    assert.ok(!successor.events.some(({ event }) => event === "ready"));
    assert.deepEqual(await readdir(scratch.folder), ["control.sock"]);
  });
}

/** A test: the same on every runtime. */
function ends(misbehave: string, code: string, sentence: RegExp): () => Promise<void> {
  return () => onEvery(runtimes, (runtime) => assertEnds(runtime, misbehave, code, sentence));
}

// The slow cases only wait, and can do so beside the others.
describe("A successor", { skip: skipReason, concurrency: 2 }, () => {
  describe("and an incumbent that breaks the protocol", { concurrency: 1 }, () => {
    const targets: Target[] = [];
    before(async () => {
      targets.push(...runtimes.map((runtime) => new Target(runtime)));
      // What a runtime opens once and keeps is open after this.
      await onEvery(targets, (target) => reportOf(target, "batch:none", () => {}));
    });
    after(() => Promise.all(targets.map((target) => target[Symbol.asyncDispose]())));

    /** Lets an incumbent misbehave; afterwards the successor's process is as it was. */
    async function reportOf(
      target: Target,
      misbehave: string,
      check: (report: ServerEvent, incumbent: Server) => void | Promise<void>,
    ): Promise<void> {
      await using scratch = await Scratch.make();
      await using incumbent = startPeer({ TAKEOVER: scratch.path, PORT: "0" }, { misbehave });
      await incumbent.event("listening");
      await check(await target.attempt(scratch.path), incumbent);
      assert.deepEqual(await readdir(scratch.folder), ["control.sock"]);
    }

    async function assertRefusal(target: Target, misbehave: string, code: string, sentence: RegExp): Promise<void> {
      const descriptors = await descriptorsOf(target.server.pid);
      await reportOf(target, misbehave, async (report, incumbent) => {
        assertReport(report, code, sentence);
        assertReport(await incumbent.event("aborted"), code, sentence);
      });
      await hasDescriptors(target.server.pid, descriptors);
    }

    /** A test: the successor throws with this code and this sentence, tells the incumbent, and has closed everything. */
    function refuses(misbehave: string, code: string, sentence: RegExp): () => Promise<void> {
      return () => onEvery(targets, (target) => assertRefusal(target, misbehave, code, sentence));
    }

    /** A test: the same where there is nobody to tell. */
    function throws(misbehave: string, code: string, sentence: RegExp): () => Promise<void> {
      return () =>
        onEvery(targets, async (target) => {
          const descriptors = await descriptorsOf(target.server.pid);
          await reportOf(target, misbehave, (report) => assertReport(report, code, sentence));
          await hasDescriptors(target.server.pid, descriptors);
        });
    }

    describe("sends what is no frame", () => {
      test("an HTTP answer: ERR_TAKEOVER_PROTOCOL", refuses("send-raw:connect:http", "ERR_TAKEOVER_PROTOCOL", /start with STKO/));
      test("and the example ends with exit status 1", ends("send-raw:hello:wrong-magic", "ERR_TAKEOVER_PROTOCOL", /start with STKO/));
      test("another magic in place of an offer: ERR_TAKEOVER_PROTOCOL", refuses("send-raw:hello:wrong-magic", "ERR_TAKEOVER_PROTOCOL", /start with STKO/));
      test("a head of 4 GB: ERR_TAKEOVER_LIMIT", refuses("send-raw:hello:huge-head", "ERR_TAKEOVER_LIMIT", /limit headSize/));
      test("a body: ERR_TAKEOVER_LIMIT", refuses("send-raw:hello:body", "ERR_TAKEOVER_LIMIT", /body of 4 bytes/));
      test("a head that is not JSON: ERR_TAKEOVER_PROTOCOL", refuses("send-raw:hello:not-json", "ERR_TAKEOVER_PROTOCOL", /not JSON/));
      test("a head that is not UTF-8: ERR_TAKEOVER_PROTOCOL", refuses("send-raw:hello:bad-utf8", "ERR_TAKEOVER_PROTOCOL", /UTF-8/));
      test("a head that is an array: ERR_TAKEOVER_PROTOCOL", refuses("send-raw:hello:array", "ERR_TAKEOVER_PROTOCOL", /JSON object/));
      test("garbage in place of a batch: ERR_TAKEOVER_PROTOCOL", refuses("send-raw:join:wrong-magic", "ERR_TAKEOVER_PROTOCOL", /start with STKO/));
      test("garbage in place of a lease: ERR_TAKEOVER_PROTOCOL", ends("send-raw:ready:wrong-magic", "ERR_TAKEOVER_PROTOCOL", /start with STKO/));
    });

    describe("sends a frame that may not come now", () => {
      test("an unknown type: ERR_TAKEOVER_PROTOCOL", refuses('send:hello:{"type":"offers"}', "ERR_TAKEOVER_PROTOCOL", /"offers".*expected offer/));
      test("no type: ERR_TAKEOVER_PROTOCOL", refuses("send:hello:{}", "ERR_TAKEOVER_PROTOCOL", /expected offer/));
      test("the successor's own frame: ERR_TAKEOVER_PROTOCOL", refuses('send:hello:{"type":"hello"}', "ERR_TAKEOVER_PROTOCOL", /"hello".*expected offer/));
      test("a batch before the offer: ERR_TAKEOVER_PROTOCOL", refuses('send:hello:{"type":"batch","number":0,"count":2}', "ERR_TAKEOVER_PROTOCOL", /"batch".*state greeted/));
      test("a lease before the offer: ERR_TAKEOVER_PROTOCOL", refuses('send:hello:{"type":"lease","silenceMs":5000}', "ERR_TAKEOVER_PROTOCOL", /"lease".*state greeted/));
      test("a lease in place of a batch: ERR_TAKEOVER_PROTOCOL", refuses('send:join:{"type":"lease","silenceMs":5000}', "ERR_TAKEOVER_PROTOCOL", /"lease".*state offered/));
      test("released in place of a lease: ERR_TAKEOVER_PROTOCOL", ends('send:ready:{"type":"released"}', "ERR_TAKEOVER_PROTOCOL", /"released".*state readied/));
    });

    describe("sends an offer that cannot be right", () => {
      test("without one of its fields: ERR_TAKEOVER_PROTOCOL", () =>
        onEvery(targets, async (target) => {
          for (const field of ["version", "pid", "runtime", "generation", "endpoints"]) {
            await assertRefusal(target, `offer-without:${field}`, "ERR_TAKEOVER_PROTOCOL", new RegExp(`the field ${field} of a frame`));
          }
        }));
      test("a version that was not asked for: ERR_TAKEOVER_VERSION", refuses('offer-with:{"version":2}', "ERR_TAKEOVER_VERSION", /chose version 2 .*expected 1 to 1/));
      test("an empty manifest: ERR_TAKEOVER_PROTOCOL", refuses("manifest:empty", "ERR_TAKEOVER_PROTOCOL", /the control socket first and once/));
      test("a manifest without the control socket: ERR_TAKEOVER_PROTOCOL", refuses("manifest:no-control", "ERR_TAKEOVER_PROTOCOL", /the control socket first and once/));
      test("the control socket twice: ERR_TAKEOVER_PROTOCOL", refuses("manifest:control-twice", "ERR_TAKEOVER_PROTOCOL", /the control socket first and once/));
      test("the control socket last: ERR_TAKEOVER_PROTOCOL", refuses("manifest:control-last", "ERR_TAKEOVER_PROTOCOL", /the control socket first and once/));
      test("a name twice: ERR_TAKEOVER_PROTOCOL", refuses("manifest:name-twice", "ERR_TAKEOVER_PROTOCOL", /every name once/));
      test("4,097 endpoints and the control socket: ERR_TAKEOVER_LIMIT", refuses("manifest:too-many", "ERR_TAKEOVER_LIMIT", /limit endpointCount/));
      test("a name of 256 bytes: ERR_TAKEOVER_LIMIT", refuses("manifest:long-name", "ERR_TAKEOVER_LIMIT", /limit nameSize/));
      test("an endpoint with a field that is missing or wrong", () =>
        onEvery(targets, async (target) => {
          await assertRefusal(target, "manifest:no-name", "ERR_TAKEOVER_LIMIT", /name of an endpoint/);
          await assertRefusal(target, "manifest:empty-name", "ERR_TAKEOVER_LIMIT", /name of an endpoint/);
          await assertRefusal(target, "manifest:other-kind", "ERR_TAKEOVER_PROTOCOL", /control or listener/);
          await assertRefusal(target, "manifest:no-cookie", "ERR_TAKEOVER_PROTOCOL", /the field cookie/);
          await assertRefusal(target, "manifest:short-cookie", "ERR_TAKEOVER_PROTOCOL", /16 hexadecimal digits or none/);
          await assertRefusal(target, "manifest:no-address", "ERR_TAKEOVER_PROTOCOL", /the field address/);
          await assertRefusal(target, "manifest:other-family", "ERR_TAKEOVER_PROTOCOL", /unix, inet or inet6/);
          await assertRefusal(target, "manifest:text-port", "ERR_TAKEOVER_PROTOCOL", /the field port/);
          await assertRefusal(target, "manifest:no-object", "ERR_TAKEOVER_PROTOCOL", /endpoints.*an object/);
        }));
    });

    describe("refuses", () => {
      const refuse = (step: string, code: string) =>
        `send:${step}:${JSON.stringify({ type: "refuse", code, message: "This one was made up for a test" })}`;
      /** A test: the successor reports the code and the words that it was refused with. */
      function passesOn(step: string, sent: string, reported = sent): () => Promise<void> {
        return throws(refuse(step, sent), reported, /^This one was made up for a test$/);
      }
      test("after hello with ERR_TAKEOVER_BUSY: the same", passesOn("hello", "ERR_TAKEOVER_BUSY"));
      test("after hello with ERR_TAKEOVER_VERSION: the same", passesOn("hello", "ERR_TAKEOVER_VERSION"));
      test("after hello with ERR_TAKEOVER_USER: the same", passesOn("hello", "ERR_TAKEOVER_USER"));
      test("after hello with ERR_TAKEOVER_UNKNOWN_NAME: the same", passesOn("hello", "ERR_TAKEOVER_UNKNOWN_NAME"));
      test("after hello with ERR_TAKEOVER_SELF: the same", passesOn("hello", "ERR_TAKEOVER_SELF"));
      test("after hello with ERR_TAKEOVER_NO_ROOM: the same", passesOn("hello", "ERR_TAKEOVER_NO_ROOM"));
      test("after hello with ERR_TAKEOVER_LIMIT: the same", passesOn("hello", "ERR_TAKEOVER_LIMIT"));
      test("after hello with ERR_TAKEOVER_LOST: the same", passesOn("hello", "ERR_TAKEOVER_LOST"));
      test("after hello with an unknown code: ERR_TAKEOVER_PROTOCOL", passesOn("hello", "ERR_TAKEOVER_WEATHER", "ERR_TAKEOVER_PROTOCOL"));
      test("after join with ERR_TAKEOVER_TIMEOUT: the same", passesOn("join", "ERR_TAKEOVER_TIMEOUT"));
      test("after ready with ERR_TAKEOVER_UNKNOWN_NAME: the same", ends(refuse("ready", "ERR_TAKEOVER_UNKNOWN_NAME"), "ERR_TAKEOVER_UNKNOWN_NAME", /made up/));
      test("after ready with ERR_TAKEOVER_LOST: obeyed like any other", ends(refuse("ready", "ERR_TAKEOVER_LOST"), "ERR_TAKEOVER_LOST", /made up/));
      test("right behind a batch with ERR_TAKEOVER_TIMEOUT: the same", throws("batch-and-refuse:ERR_TAKEOVER_TIMEOUT", "ERR_TAKEOVER_TIMEOUT", /made up/));
      test("without a code: ERR_TAKEOVER_PROTOCOL", throws('send:hello:{"type":"refuse"}', "ERR_TAKEOVER_PROTOCOL", /the field code/));
      test("in the lease: the successor stops, with the code", () =>
        onEvery(runtimes, async (runtime) => {
          await meet(runtime, refuse("lease", "ERR_TAKEOVER_REVOKED"), async ({ successor }) => {
            assertReport(await successor.event("refused"), "ERR_TAKEOVER_REVOKED", /made up/);
            assert.equal(await successor.ended, 1);
          });
        }));
    });

    describe("goes away and listens on", () => {
      test("at once: ERR_TAKEOVER_LOST", throws("close:connect", "ERR_TAKEOVER_LOST", /incumbent has ended/));
      test("after hello: ERR_TAKEOVER_LOST", throws("close:hello", "ERR_TAKEOVER_LOST", /incumbent has ended/));
      test("in the middle of an offer: ERR_TAKEOVER_LOST", throws("send-raw:hello:half-head", "ERR_TAKEOVER_LOST", /incumbent has ended/));
      test("after the offer: ERR_TAKEOVER_LOST", throws("close:offer", "ERR_TAKEOVER_LOST", /./));
      test("after join: ERR_TAKEOVER_LOST", throws("close:join", "ERR_TAKEOVER_LOST", /incumbent has ended/));
      test("and the example ends with exit status 1", ends("close:offer", "ERR_TAKEOVER_LOST", /./));
      test("with the descriptors announced, on their connection: ERR_TAKEOVER_LOST", refuses("close-descriptors", "ERR_TAKEOVER_LOST", /connection for descriptors/));
      test("with the descriptors announced, and resets their connection: ERR_TAKEOVER_LOST", refuses("reset-descriptors", "ERR_TAKEOVER_LOST", /./));
    });

    describe("dies", () => {
      /** A test: the successor becomes the first, or goes on with what it has. */
      function serves(misbehave: string, generation: number, inherited: boolean): () => Promise<void> {
        return () =>
          onEvery(runtimes, (runtime) =>
            meet(runtime, misbehave, async ({ successor, incumbent }) => {
              const ready = await successor.event("ready");
              assert.deepEqual([ready.generation, ready.inherited], [generation, inherited], JSON.stringify(ready));
              assert.equal(await incumbent.ended, 0);
              assert.equal((await get(portOf(ready))).pid, successor.pid);
              successor.signal("SIGTERM");
              assert.equal(await successor.ended, 0, successor.stderr);
            }));
      }
      test("at once: the successor becomes the first", serves("die:connect", 1, false));
      test("after hello: the successor becomes the first", serves("die:hello", 1, false));
      test("after the offer: the successor becomes the first", serves("die:offer", 1, false));
      test("after join: the successor becomes the first", serves("die:join", 1, false));
      test("with the batch on its way: the successor goes on alone", serves("die:batch", 2, true));
      test("after received: the successor goes on alone", serves("die:received", 2, true));
      test("after ready: the successor goes on alone", serves("die:ready", 2, true));
      test("in the lease: the successor goes on alone", serves("die:lease", 2, true));
      test("after settled: the successor goes on alone", serves("die:settled", 2, true));
    });

    describe("sends more than one batch", () => {
      test("300 listeners arrive", () =>
        onEvery(runtimes, (runtime) =>
          meet(runtime, "many:300", async ({ incumbent, successor }) => {
            assert.equal((await incumbent.event("received")).count, 302);
            assert.deepEqual((await incumbent.event("ready")).claimed, ["web"]);
            await incumbent[Symbol.asyncDispose]();
            assert.equal((await successor.event("ready")).inherited, true);
          })));
      test("and dies after the first: the successor goes on with what came", () =>
        onEvery(runtimes, (runtime) =>
          meet(runtime, "many:300:die", async ({ successor }) => {
            const ready = await successor.event("ready");
            assert.deepEqual([ready.inherited, ready.generation], [true, 2]);
            assert.equal((await get(portOf(ready))).pid, successor.pid);
          })));
      test("with a head in three parts is understood", () =>
        onEvery(runtimes, (runtime) =>
          meet(runtime, "split-batch", async ({ incumbent }) => {
            assert.deepEqual((await incumbent.event("ready")).claimed, ["web"]);
          })));
    });

    describe("sends other descriptors", () => {
      test("fewer than announced: ERR_TAKEOVER_PROTOCOL", refuses("batch:fewer", "ERR_TAKEOVER_PROTOCOL", /expected number 0 with 2.*and 1 came/));
      test("more than announced: ERR_TAKEOVER_PROTOCOL", refuses("batch:more", "ERR_TAKEOVER_PROTOCOL", /and 3 came/));
      test("253 in place of two: ERR_TAKEOVER_PROTOCOL", refuses("batch:many-more", "ERR_TAKEOVER_PROTOCOL", /and 253 came/));
      test("none: ERR_TAKEOVER_PROTOCOL", refuses("batch:none", "ERR_TAKEOVER_PROTOCOL", /and 0 came/));
      test("behind another magic: ERR_TAKEOVER_PROTOCOL", refuses("batch:other-magic", "ERR_TAKEOVER_PROTOCOL", /Cannot take a batch/));
      test("behind another number: ERR_TAKEOVER_PROTOCOL", refuses("batch:other-number", "ERR_TAKEOVER_PROTOCOL", /its head says 1 with 2/));
      test("behind another count: ERR_TAKEOVER_PROTOCOL", refuses("batch:other-count", "ERR_TAKEOVER_PROTOCOL", /its head says 0 with 3/));
      test("announced with another number: ERR_TAKEOVER_PROTOCOL", refuses('announce:{"number":1}', "ERR_TAKEOVER_PROTOCOL", /batch 1 with 2 .*expected batch 0 with 2/));
      test("announced with another count: ERR_TAKEOVER_PROTOCOL", refuses('announce:{"count":253}', "ERR_TAKEOVER_PROTOCOL", /batch 0 with 253/));
      test("announced with a count of 2^53: ERR_TAKEOVER_PROTOCOL", refuses('announce:{"count":9007199254740992}', "ERR_TAKEOVER_PROTOCOL", /the field count/));
      test("in another order: ERR_TAKEOVER_DESCRIPTOR", refuses("batch:swapped", "ERR_TAKEOVER_DESCRIPTOR", /Cannot take the control socket/));
      test("a pipe: ERR_TAKEOVER_DESCRIPTOR", refuses("descriptor:pipe", "ERR_TAKEOVER_DESCRIPTOR", /"web".*no IP or Unix socket/));
      test("an epoll instance: ERR_TAKEOVER_DESCRIPTOR", refuses("descriptor:epoll", "ERR_TAKEOVER_DESCRIPTOR", /no IP or Unix socket/));
      test("a file: ERR_TAKEOVER_DESCRIPTOR", refuses("descriptor:file", "ERR_TAKEOVER_DESCRIPTOR", /no IP or Unix socket/));
      test("a folder: ERR_TAKEOVER_DESCRIPTOR", refuses("descriptor:folder", "ERR_TAKEOVER_DESCRIPTOR", /no IP or Unix socket/));
      test("a netlink socket: ERR_TAKEOVER_DESCRIPTOR", refuses("descriptor:netlink", "ERR_TAKEOVER_DESCRIPTOR", /no IP or Unix socket/));
      test("a UDP socket at the address: ERR_TAKEOVER_DESCRIPTOR", refuses("descriptor:udp", "ERR_TAKEOVER_DESCRIPTOR", /a dgram socket at 127\.0\.0\.1/));
      test("a connection that the listener accepted: ERR_TAKEOVER_DESCRIPTOR", refuses("descriptor:connection", "ERR_TAKEOVER_DESCRIPTOR", /that does not listen/));
      test("a pair of Unix sockets: ERR_TAKEOVER_DESCRIPTOR", refuses("descriptor:pair", "ERR_TAKEOVER_DESCRIPTOR", /that does not listen/));
      test("a listener at another address: ERR_TAKEOVER_DESCRIPTOR", refuses("descriptor:elsewhere", "ERR_TAKEOVER_DESCRIPTOR", /expected the listening socket at 127\.0\.0\.1/));
      test("another listener at the same address: ERR_TAKEOVER_DESCRIPTOR", refuses("descriptor:twin", "ERR_TAKEOVER_DESCRIPTOR", /with cookie [0-9a-f]{16}, got .* with cookie [0-9a-f]{16}/));
      test("the control socket twice: ERR_TAKEOVER_DESCRIPTOR", refuses("descriptor:control", "ERR_TAKEOVER_DESCRIPTOR", /a stream socket at .*control\.sock/));
      test("a UDP socket, and the example ends with exit status 1", ends("descriptor:udp", "ERR_TAKEOVER_DESCRIPTOR", /dgram/));
    });
  });

  describe("and an incumbent that is silent", { concurrency: true }, () => {
    test("after hello: ERR_TAKEOVER_TIMEOUT", () =>
      assertEnds("deno", "hold:hello", "ERR_TAKEOVER_TIMEOUT", /limit offerMs/));
    test("after a batch that it announced and did not send: ERR_TAKEOVER_TIMEOUT", () =>
      assertEnds("bun", "announce-nothing", "ERR_TAKEOVER_TIMEOUT", /limit batchMs/));
    test("after ready: ERR_TAKEOVER_TIMEOUT", () =>
      assertEnds("node", "hold:ready", "ERR_TAKEOVER_TIMEOUT", /limit leaseMs/));
  });
});
