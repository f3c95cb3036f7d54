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
  endOf,
  get,
  hasNoMoreDescriptors,
  onEvery,
  portOf,
  Scratch,
  skipReason,
  stableDescriptors,
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
    assert.equal(await endOf(successor), 1);
    assert.ok(!successor.events.some(({ event }) => event === "ready"));
    assert.deepEqual(await readdir(scratch.folder), ["control.sock"]);
  });
}

/** A test: the same on every runtime. */
function ends(what: string, misbehave: string, code: string, sentence: RegExp): void {
  test(`${what}: ${code}`, () => onEvery(runtimes, (runtime) => assertEnds(runtime, misbehave, code, sentence)));
}

// The slow cases only wait, and can do so beside the others.
describe("A successor", { skip: skipReason, concurrency: 2 }, () => {
  describe("and an incumbent that breaks the protocol", { concurrency: 1 }, () => {
    const targets: Target[] = [];
    before(async () => {
      targets.push(...runtimes.map((runtime) => new Target(runtime)));
      // What a runtime opens once and keeps is open after this.
      await onEvery(targets, async (target) => {
        await reportOf(target, "batch:none", () => {});
        await stableDescriptors(target.server.pid);
      });
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
      await hasNoMoreDescriptors(target.server.pid, descriptors);
    }

    /** A test: the successor throws with this code and this sentence, says so to the incumbent, and has closed all. */
    function refuses(what: string, misbehave: string, code: string, sentence: RegExp): void {
      test(`${what}: ${code}`, () => onEvery(targets, (target) => assertRefusal(target, misbehave, code, sentence)));
    }

    /** A test: the same where there is nobody to tell. */
    function throws(what: string, misbehave: string, code: string, sentence: RegExp): void {
      test(`${what}: ${code}`, () =>
        onEvery(targets, async (target) => {
          const descriptors = await descriptorsOf(target.server.pid);
          await reportOf(target, misbehave, (report) => assertReport(report, code, sentence));
          await hasNoMoreDescriptors(target.server.pid, descriptors);
        }));
    }

    describe("sends what is no frame", () => {
      refuses("an HTTP answer", "send-raw:connect:http", "ERR_TAKEOVER_PROTOCOL", /start with STKO/);
      ends(
        "and the example ends with exit status 1",
        "send-raw:hello:wrong-magic",
        "ERR_TAKEOVER_PROTOCOL",
        /start with STKO/,
      );
      refuses(
        "another magic in place of an offer",
        "send-raw:hello:wrong-magic",
        "ERR_TAKEOVER_PROTOCOL",
        /start with STKO/,
      );
      refuses("a head of 4 GB", "send-raw:hello:huge-head", "ERR_TAKEOVER_LIMIT", /limit headSize/);
      refuses("a body", "send-raw:hello:body", "ERR_TAKEOVER_LIMIT", /body of 4 bytes/);
      refuses("a head that is not JSON", "send-raw:hello:not-json", "ERR_TAKEOVER_PROTOCOL", /not JSON/);
      refuses("a head that is not UTF-8", "send-raw:hello:bad-utf8", "ERR_TAKEOVER_PROTOCOL", /UTF-8/);
      refuses("a head that is an array", "send-raw:hello:array", "ERR_TAKEOVER_PROTOCOL", /JSON object/);
      refuses("garbage in place of a batch", "send-raw:join:wrong-magic", "ERR_TAKEOVER_PROTOCOL", /start with STKO/);
      ends("garbage in place of a lease", "send-raw:ready:wrong-magic", "ERR_TAKEOVER_PROTOCOL", /start with STKO/);
    });

    describe("sends a frame that may not come now", () => {
      refuses("an unknown type", 'send:hello:{"type":"offers"}', "ERR_TAKEOVER_PROTOCOL", /"offers".*expected offer/);
      refuses("no type", "send:hello:{}", "ERR_TAKEOVER_PROTOCOL", /expected offer/);
      refuses(
        "the successor's own frame",
        'send:hello:{"type":"hello"}',
        "ERR_TAKEOVER_PROTOCOL",
        /"hello".*expected offer/,
      );
      refuses(
        "a batch before the offer",
        'send:hello:{"type":"batch","number":0,"count":2}',
        "ERR_TAKEOVER_PROTOCOL",
        /"batch".*state greeted/,
      );
      refuses(
        "a lease before the offer",
        'send:hello:{"type":"lease","silenceMs":5000}',
        "ERR_TAKEOVER_PROTOCOL",
        /"lease".*state greeted/,
      );
      refuses(
        "a lease in place of a batch",
        'send:join:{"type":"lease","silenceMs":5000}',
        "ERR_TAKEOVER_PROTOCOL",
        /"lease".*state offered/,
      );
      ends(
        "released in place of a lease",
        'send:ready:{"type":"released"}',
        "ERR_TAKEOVER_PROTOCOL",
        /"released".*state readied/,
      );
    });

    describe("sends an offer that cannot be right", () => {
      test("without one of its fields: ERR_TAKEOVER_PROTOCOL", () =>
        onEvery(targets, async (target) => {
          for (const field of ["version", "pid", "runtime", "generation", "endpoints"]) {
            await assertRefusal(
              target,
              `offer-without:${field}`,
              "ERR_TAKEOVER_PROTOCOL",
              new RegExp(`the field ${field} of a frame`),
            );
          }
        }));
      refuses(
        "a version that was not asked for",
        'offer-with:{"version":2}',
        "ERR_TAKEOVER_VERSION",
        /chose version 2 .*expected 1 to 1/,
      );
      refuses("an empty manifest", "manifest:empty", "ERR_TAKEOVER_PROTOCOL", /the control socket first and once/);
      refuses(
        "a manifest without the control socket",
        "manifest:no-control",
        "ERR_TAKEOVER_PROTOCOL",
        /the control socket first and once/,
      );
      refuses(
        "the control socket twice",
        "manifest:control-twice",
        "ERR_TAKEOVER_PROTOCOL",
        /the control socket first and once/,
      );
      refuses(
        "the control socket last",
        "manifest:control-last",
        "ERR_TAKEOVER_PROTOCOL",
        /the control socket first and once/,
      );
      refuses("a name twice", "manifest:name-twice", "ERR_TAKEOVER_PROTOCOL", /every name once/);
      refuses(
        "4,097 endpoints and the control socket",
        "manifest:too-many",
        "ERR_TAKEOVER_LIMIT",
        /limit endpointCount/,
      );
      refuses("a name of 256 bytes", "manifest:long-name", "ERR_TAKEOVER_LIMIT", /limit nameSize/);
      test("an endpoint with a field that is missing or wrong", () =>
        onEvery(targets, async (target) => {
          await assertRefusal(target, "manifest:no-name", "ERR_TAKEOVER_LIMIT", /name of an endpoint/);
          await assertRefusal(target, "manifest:empty-name", "ERR_TAKEOVER_LIMIT", /name of an endpoint/);
          await assertRefusal(target, "manifest:other-kind", "ERR_TAKEOVER_PROTOCOL", /control, listener, datagram/);
          await assertRefusal(target, "manifest:no-cookie", "ERR_TAKEOVER_PROTOCOL", /the field cookie/);
          await assertRefusal(
            target,
            "manifest:short-cookie",
            "ERR_TAKEOVER_PROTOCOL",
            /16 hexadecimal digits or none/,
          );
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
      function passesOn(step: string, sent: string, reported = sent): void {
        throws(`after ${step} with ${sent}`, refuse(step, sent), reported, /^This one was made up for a test$/);
      }
      passesOn("hello", "ERR_TAKEOVER_BUSY");
      passesOn("hello", "ERR_TAKEOVER_VERSION");
      passesOn("hello", "ERR_TAKEOVER_USER");
      passesOn("hello", "ERR_TAKEOVER_UNKNOWN_NAME");
      passesOn("hello", "ERR_TAKEOVER_SELF");
      passesOn("hello", "ERR_TAKEOVER_NO_ROOM");
      passesOn("hello", "ERR_TAKEOVER_LIMIT");
      passesOn("hello", "ERR_TAKEOVER_LOST");
      passesOn("hello", "ERR_TAKEOVER_WEATHER", "ERR_TAKEOVER_PROTOCOL");
      passesOn("join", "ERR_TAKEOVER_TIMEOUT");
      ends(
        "after ready with ERR_TAKEOVER_UNKNOWN_NAME",
        refuse("ready", "ERR_TAKEOVER_UNKNOWN_NAME"),
        "ERR_TAKEOVER_UNKNOWN_NAME",
        /made up/,
      );
      ends(
        "after ready with ERR_TAKEOVER_LOST, which is obeyed like any other",
        refuse("ready", "ERR_TAKEOVER_LOST"),
        "ERR_TAKEOVER_LOST",
        /made up/,
      );
      throws(
        "right behind a batch with ERR_TAKEOVER_TIMEOUT",
        "batch-and-refuse:ERR_TAKEOVER_TIMEOUT",
        "ERR_TAKEOVER_TIMEOUT",
        /made up/,
      );
      throws("without a code", 'send:hello:{"type":"refuse"}', "ERR_TAKEOVER_PROTOCOL", /the field code/);
      test("in the lease: the successor stops, with the code", () =>
        onEvery(runtimes, async (runtime) => {
          await meet(runtime, refuse("lease", "ERR_TAKEOVER_REVOKED"), async ({ successor }) => {
            assertReport(await successor.event("refused"), "ERR_TAKEOVER_REVOKED", /made up/);
            assert.equal(await endOf(successor), 1);
          });
        }));
    });

    describe("goes away and listens on", () => {
      throws("at once", "close:connect", "ERR_TAKEOVER_LOST", /incumbent has ended/);
      throws("after hello", "close:hello", "ERR_TAKEOVER_LOST", /incumbent has ended/);
      throws("in the middle of an offer", "send-raw:hello:half-head", "ERR_TAKEOVER_LOST", /incumbent has ended/);
      throws("after the offer", "close:offer", "ERR_TAKEOVER_LOST", /./);
      throws("after join", "close:join", "ERR_TAKEOVER_LOST", /incumbent has ended/);
      ends("and the example ends with exit status 1", "close:offer", "ERR_TAKEOVER_LOST", /./);
      refuses(
        "with the descriptors announced, on their connection",
        "close-descriptors",
        "ERR_TAKEOVER_LOST",
        /connection for descriptors/,
      );
      refuses(
        "with the descriptors announced, and resets their connection",
        "reset-descriptors",
        "ERR_TAKEOVER_LOST",
        /./,
      );
    });

    describe("dies", () => {
      /** A test: the successor becomes the first, or goes on with what it has. */
      function serves(fact: string, misbehave: string, generation: number, inherited: boolean): void {
        test(fact, () =>
          onEvery(runtimes, (runtime) =>
            meet(runtime, misbehave, async ({ successor, incumbent }) => {
              const ready = await successor.event("ready");
              assert.deepEqual([ready.generation, ready.inherited], [generation, inherited], JSON.stringify(ready));
              assert.equal(await endOf(incumbent), 0);
              assert.equal((await get(portOf(ready))).pid, successor.pid);
              successor.signal("SIGTERM");
              assert.equal(await endOf(successor), 0, successor.stderr);
            })));
      }
      serves("at once: the successor becomes the first", "die:connect", 1, false);
      serves("after hello: the successor becomes the first", "die:hello", 1, false);
      serves("after the offer: the successor becomes the first", "die:offer", 1, false);
      serves("after join: the successor becomes the first", "die:join", 1, false);
      serves("with the batch on its way: the successor goes on alone", "die:batch", 2, true);
      serves("after received: the successor goes on alone", "die:received", 2, true);
      serves("after ready: the successor goes on alone", "die:ready", 2, true);
      serves("in the lease: the successor goes on alone", "die:lease", 2, true);
      serves("after settled: the successor goes on alone", "die:settled", 2, true);
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
      refuses("fewer than announced", "batch:fewer", "ERR_TAKEOVER_PROTOCOL", /expected number 0 with 2.*and 1 came/);
      refuses("more than announced", "batch:more", "ERR_TAKEOVER_PROTOCOL", /and 3 came/);
      refuses("253 in place of two", "batch:many-more", "ERR_TAKEOVER_PROTOCOL", /and 253 came/);
      refuses("none", "batch:none", "ERR_TAKEOVER_PROTOCOL", /and 0 came/);
      refuses("behind another magic", "batch:other-magic", "ERR_TAKEOVER_PROTOCOL", /Cannot take a batch/);
      refuses("behind another number", "batch:other-number", "ERR_TAKEOVER_PROTOCOL", /its head says 1 with 2/);
      refuses("behind another count", "batch:other-count", "ERR_TAKEOVER_PROTOCOL", /its head says 0 with 3/);
      refuses(
        "announced with another number",
        'announce:{"number":1}',
        "ERR_TAKEOVER_PROTOCOL",
        /batch 1 with 2 .*expected batch 0 with 2/,
      );
      refuses("announced with another count", 'announce:{"count":253}', "ERR_TAKEOVER_PROTOCOL", /batch 0 with 253/);
      refuses(
        "announced with a count of 2^53",
        'announce:{"count":9007199254740992}',
        "ERR_TAKEOVER_PROTOCOL",
        /the field count/,
      );
      refuses("in another order", "batch:swapped", "ERR_TAKEOVER_DESCRIPTOR", /Cannot take the control socket/);
      refuses("a pipe", "descriptor:pipe", "ERR_TAKEOVER_DESCRIPTOR", /"web".*no IP or Unix socket/);
      refuses("an epoll instance", "descriptor:epoll", "ERR_TAKEOVER_DESCRIPTOR", /no IP or Unix socket/);
      refuses("a file", "descriptor:file", "ERR_TAKEOVER_DESCRIPTOR", /no IP or Unix socket/);
      refuses("a folder", "descriptor:folder", "ERR_TAKEOVER_DESCRIPTOR", /no IP or Unix socket/);
      refuses("a netlink socket", "descriptor:netlink", "ERR_TAKEOVER_DESCRIPTOR", /no IP or Unix socket/);
      refuses(
        "a UDP socket at the address",
        "descriptor:udp",
        "ERR_TAKEOVER_DESCRIPTOR",
        /a dgram socket at 127\.0\.0\.1/,
      );
      refuses(
        "a connection that the listener accepted",
        "descriptor:connection",
        "ERR_TAKEOVER_DESCRIPTOR",
        /that does not listen/,
      );
      refuses("a pair of Unix sockets", "descriptor:pair", "ERR_TAKEOVER_DESCRIPTOR", /that does not listen/);
      refuses(
        "a listener at another address",
        "descriptor:elsewhere",
        "ERR_TAKEOVER_DESCRIPTOR",
        /expected the listening socket at 127\.0\.0\.1/,
      );
      refuses(
        "another listener at the same address",
        "descriptor:twin",
        "ERR_TAKEOVER_DESCRIPTOR",
        /with cookie [0-9a-f]{16}, got .* with cookie [0-9a-f]{16}/,
      );
      refuses(
        "the control socket twice",
        "descriptor:control",
        "ERR_TAKEOVER_DESCRIPTOR",
        /a stream socket at .*control\.sock/,
      );
      ends(
        "a UDP socket, and the example ends with exit status 1",
        "descriptor:udp",
        "ERR_TAKEOVER_DESCRIPTOR",
        /dgram/,
      );
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
