/**
 * Hostile and broken peers on the connection on which connections move: the
 * server ends that connection, closes what came, and serves on.
 *
 * The peer is test/peers/bad_moves.py, the server examples/echo.ts on all three
 * runtimes at once.
 */

import assert from "node:assert/strict";
import { once } from "node:events";
import { connect, type Socket } from "node:net";
import { describe, test } from "node:test";
import { type RuntimeName, runtimes, Server, type ServerEvent } from "../support/server.ts";
import {
  descriptorsOf,
  endOf,
  hasNoMoreDescriptors,
  onEvery,
  portOf,
  Scratch,
  skipReason,
  stableDescriptors,
  startPeer,
  until,
} from "./hostile_peers.ts";

/** One line in, one out. */
async function line(socket: Socket): Promise<string[]> {
  socket.write("line\n");
  const [answer] = await once(socket, "data");
  return String(answer).trim().split(" ");
}

async function clientOf(port: number): Promise<Socket> {
  const socket = connect(port, "127.0.0.1");
  await once(socket, "connect");
  return socket;
}

/** What a peer heard on the second connection. */
function said(peer: Server): unknown[] {
  return peer.events.filter(({ event }) => event === "said").map(({ type, code, refused }) => code ?? (type === "kept" ? refused : type));
}

/** A successor lives through that, serves, and has nothing more open than before. */
async function outlives(
  runtime: RuntimeName,
  misbehave: string,
  check: (peer: Server, successor: Server) => void | Promise<void>,
): Promise<void> {
  await using scratch = await Scratch.make();
  await using peer = startPeer({ TAKEOVER: scratch.path, PORT: "0" }, { misbehave });
  const port = portOf(await peer.event("listening"));
  const env = { TAKEOVER: scratch.path, PORT: String(port), SETTLE_MS: "50", DRAIN_MS: "5000" };
  await using successor = new Server(runtime, "examples/echo.ts", env);
  await peer.event("holding");
  const first = await clientOf(port);
  assert.deepEqual(await line(first), ["1", String(successor.pid), "2"]);
  await stableDescriptors(successor.pid);
  const descriptors = await descriptorsOf(successor.pid);
  peer.child.stdin!.write("go\n");
  await successor.event("settled");
  assert.equal(await endOf(peer), 0, peer.stderr);
  await check(peer, successor);
  assert.deepEqual(await line(first), ["2", String(successor.pid), "2"]);
  await hasNoMoreDescriptors(successor.pid, descriptors);
  first.destroy();
}

describe("A successor whose incumbent's moves break the protocol", { skip: skipReason, concurrency: 2 }, () => {
  /** A test: the successor says that, serves on, and has nothing more open than after an honest one. */
  function answers(what: string, misbehave: string, expected: readonly unknown[], code?: string): void {
    test(what, () =>
      onEvery(runtimes, (runtime) =>
        outlives(runtime, `moves:${misbehave}`, async (peer, successor) => {
          assert.deepEqual(said(peer), expected);
          if (code) assert.equal((await successor.event("unserved")).code, code);
        })));
  }

  /** A test: the same, and what it says is why it ends it. */
  function aborts(what: string, misbehave: string, code: string): void {
    answers(`${what}: ${code}`, misbehave, [code], code);
  }

  aborts("bytes that are no frame", "wrong-magic", "ERR_TAKEOVER_PROTOCOL");
  aborts("a head of 4 GB", "huge-head", "ERR_TAKEOVER_LIMIT");
  aborts("a body of 4 GB", "huge-body", "ERR_TAKEOVER_LIMIT");
  aborts("yours for what was never sent", "yours", "ERR_TAKEOVER_PROTOCOL");
  aborts("more unread bytes than there are", "lies", "ERR_TAKEOVER_PROTOCOL");
  aborts("descriptors with every byte of a frame without an end", "crowded", "ERR_TAKEOVER_SURPLUS");
  answers("more descriptors than were announced: ERR_TAKEOVER_SURPLUS", "more", [[], "ERR_TAKEOVER_SURPLUS"], "ERR_TAKEOVER_SURPLUS");
  answers("moves without an end, and no yours: ERR_TAKEOVER_PROTOCOL", "endless", [[], [], "ERR_TAKEOVER_PROTOCOL"], "ERR_TAKEOVER_PROTOCOL");
  answers("fewer descriptors than were announced are refused", "fewer", [Array(2).fill("ERR_TAKEOVER_MISSING")]);
  answers(
    "a pipe, an epoll instance, a listener and another connection are refused, and one beside them is not",
    "others",
    [Array(4).fill("ERR_TAKEOVER_DESCRIPTOR")],
  );
});

describe("An incumbent whose successor's answers to moves break the protocol", { skip: skipReason }, () => {
  const misbehaviours = ["close", "flood", "kept-nothing", "kept-other", "kept-index", "kept-text", "body", "huge-head", "yours"];

  test("keeps every connection, accepts again, and hands them to an honest one in the end", () =>
    onEvery(runtimes, async (runtime) => {
      await using scratch = await Scratch.make();
      const env = { TAKEOVER: scratch.path, PORT: "0", SETTLE_MS: "50", DRAIN_MS: "10000", ECHO: "1" };
      await using incumbent = new Server(runtime, "examples/echo.ts", env);
      const port = portOf(await incumbent.event("ready"));
      const clients = await Promise.all([0, 1, 2].map(() => clientOf(port)));
      const assertAnswers = async (number: number, server: Server, generation: number) => {
        for (const client of clients) {
          assert.deepEqual(await line(client), [String(number), String(server.pid), String(generation)]);
        }
      };
      let number = 0;
      await assertAnswers(++number, incumbent, 1);
      for (const misbehaviour of misbehaviours) {
        await using peer = startPeer(env, { misbehave: `moves:${misbehaviour}` });
        assert.equal(await endOf(peer), 0, peer.stderr);
        assert.deepEqual(said(peer).filter((type) => type !== "move"), [backOrDone(peer.events)], misbehaviour);
        await until(
          () => Promise.resolve(incumbent.events.filter(({ event }) => event === "resumed").length),
          (count) => count === number,
        );
        await assertAnswers(++number, incumbent, 1);
      }
      await using successor = startPeer({ ...env, PORT: String(port) });
      await successor.event("ready");
      assert.equal((await incumbent.event("drained")).moved, clients.length);
      await assertAnswers(++number, successor, 2);
      for (const client of clients) client.destroy();
    }));
});

/** `done` when nothing was on its way. */
function backOrDone(events: readonly ServerEvent[]): string {
  return events.some(({ type }) => type === "back") ? "back" : "done";
}
