/** Connections on their way from one process to the next: at the end each has one owner, whoever dies, lies or gives up. */

import assert from "node:assert/strict";
import { PeerLostError, TakeoverError } from "../../src/errors.ts";
import { encodeFrame, type FrameHead } from "../../src/handover/frame.ts";
import { limitsFrom } from "../../src/limits.ts";
import { isMessageWaiting } from "../../src/channels/message.ts";
import { disposeAll } from "../../src/sockets/descriptors.ts";
import { cookieOf, openPair } from "../../src/sockets/socket.ts";
import { rawListener } from "./ends.ts";
import {
  assertAlive,
  coming,
  type Coming,
  Connection,
  connections,
  FakeSink,
  leaving,
  type Leaving,
  type Luggage,
  owners,
  patient,
  type WireFrame,
} from "./moving.ts";
import { openNull } from "./pair.ts";
import { runtime, sleep, test, until } from "./support.ts";

const parties = [{ name: "web", kind: "raw" }];
const nobody = new FakeSink();

/** A successor, and what a script as its incumbent does; at the end nobody has anything that the other has too. */
async function arriving(
  count: number,
  script: (side: Coming, all: readonly Connection[]) => Promise<void>,
  luggage: Luggage = {},
): Promise<void> {
  const all = connections(count, luggage);
  const side = coming();
  try {
    assert.equal((await side.wire.expect("takes")).type, "takes");
    await script(side, all);
    assertAlive(all, side.sink);
  } finally {
    side.wire.close();
    await side.ended;
    side.sink[Symbol.dispose]();
    for (const connection of all) connection[Symbol.dispose]();
  }
}

/** An incumbent, and what a script as its successor does. */
async function departing(
  all: readonly Connection[],
  script: (side: Leaving) => Promise<void>,
  limits = patient,
): Promise<void> {
  const side = await leaving(all, limits);
  try {
    await script(side);
    assertAlive(all, nobody);
  } finally {
    await side.departures.stop();
    side.wire.close();
    for (const connection of all) connection[Symbol.dispose]();
  }
}

function codeOf(error: unknown): unknown {
  return error instanceof TakeoverError ? error.code : error;
}

function indexes(head: FrameHead): unknown[] {
  return (head.refused as { index: number; code: string }[]).map(({ index, code }) => [index, code]);
}

// The successor.

test("Arrivals says what it takes and for how many it has room, and again when it is told to", async () => {
  const side = coming();
  const { room } = await side.wire.expect("takes");
  assert.ok(Number(room) > 0);
  await side.arrivals.announce();
  assert.deepEqual((await side.wire.expect("takes")).parties, parties);
  side.wire.close();
  assert.equal(await side.ended, null);
});

test("Arrivals has no room when fewer descriptors are free than are to stay so", async () => {
  const side = coming(limitsFrom({ spareCount: 2 ** 31 - 1 }));
  assert.equal((await side.wire.expect("takes")).room, 0);
  side.wire.close();
  await side.ended;
});

test("Arrivals keeps connections, and has them with their state and bytes once they are yours", () =>
  arriving(2, async ({ wire, sink, arrivals, ended }, all) => {
    const [first, second] = all as [Connection, Connection];
    const announced = [
      { cookie: first.cookie, state: { count: [1, "é"] }, unread: 3 },
      { cookie: second.cookie, state: null, unread: 2 },
    ];
    const head = { type: "move", number: 0, name: "web", kind: "raw", connections: announced };
    await wire.send(head, Uint8Array.of(1, 2, 3, 4, 5), [first.descriptor, second.descriptor]);
    const kept = await wire.expect("kept");
    assert.deepEqual([kept.number, kept.refused, sink.kept.size, arrivals.count], [0, [], 0, 0]);
    await wire.send({ type: "yours", number: 0 });
    await until(() => arrivals.count === 2, "both to be owned");
    assert.deepEqual([...sink.kept.get(first.cookie)!.unread], [1, 2, 3]);
    assert.deepEqual(sink.kept.get(first.cookie)!.state, { count: [1, "é"] });
    assert.deepEqual([...sink.kept.get(second.cookie)!.unread, sink.kept.get(second.cookie)!.state], [4, 5, null]);
    await wire.send({ type: "done" });
    assert.equal(await ended, null);
  }));

test("Arrivals has room for as many fewer as it has kept, where there is plenty", () =>
  arriving(3, async ({ wire, arrivals }, all) => {
    await arrivals.announce();
    const { room } = await wire.expect("takes");
    await wire.move(0, all);
    const kept = await wire.expect("kept");
    // Where there is little it is counted anew.
    if (Number(room) > 2_000) assert.equal(kept.room, Number(room) - 3);
    await wire.send({ type: "back" });
  }));

test("Arrivals refuses what its sink refuses, and keeps the rest", () =>
  arriving(3, async ({ wire, sink, ended }, all) => {
    sink.refused.set(all[1]!.cookie, new TakeoverError("ERR_TAKEOVER_LIMIT", "too much"));
    await wire.move(0, all);
    assert.deepEqual(indexes(await wire.expect("kept")), [[1, "ERR_TAKEOVER_LIMIT"]]);
    await wire.send({ type: "yours", number: 0 });
    await wire.send({ type: "done" });
    assert.equal(await ended, null);
    assert.deepEqual([...sink.kept.keys()], [all[0]!.cookie, all[2]!.cookie]);
  }));

test("Arrivals refuses all when its sink throws, with ERR_TAKEOVER_ADOPT for what is no error of its own", () =>
  arriving(2, async ({ wire, sink }, all) => {
    sink.error = new Error("boom");
    await wire.move(0, all);
    const kept = await wire.expect("kept");
    assert.deepEqual(indexes(kept), [[0, "ERR_TAKEOVER_ADOPT"], [1, "ERR_TAKEOVER_ADOPT"]]);
    await wire.send({ type: "yours", number: 0 });
    await wire.send({ type: "done" });
  }));

test("Arrivals refuses connections of a name or kind that nobody has here", () =>
  arriving(1, async ({ wire }, all) => {
    await wire.move(0, all, { name: "admin" });
    assert.deepEqual(indexes(await wire.expect("kept")), [[0, "ERR_TAKEOVER_UNKNOWN_NAME"]]);
    await wire.move(1, all, { kind: "http" });
    assert.deepEqual(indexes(await wire.expect("kept")), [[0, "ERR_TAKEOVER_UNKNOWN_NAME"]]);
  }));

test("Arrivals refuses what is not the connection that was announced, and keeps those beside it", () =>
  arriving(2, async ({ wire, sink, ended }, all) => {
    const [first, second] = all as [Connection, Connection];
    using nothing = openNull();
    const [idle, other] = openPair(runtime);
    const { listener } = rawListener();
    const wrong = [nothing, idle, listener, first.descriptor];
    const cookies = [first.cookie, ...wrong.map(() => second.cookie)];
    await wire.move(0, [first], { connections: [{ cookie: first.cookie, unread: 0 }] });
    assert.deepEqual(indexes(await wire.expect("kept")), []);
    const head = { type: "move", number: 1, name: "web", kind: "raw" };
    await wire.send({ ...head, connections: cookies.map((cookie) => ({ cookie, unread: 0 })) }, new Uint8Array(0), [first.descriptor, ...wrong]);
    assert.deepEqual(indexes(await wire.expect("kept")), [1, 2, 3, 4].map((index) => [index, "ERR_TAKEOVER_DESCRIPTOR"]));
    await wire.send({ type: "back" });
    assert.equal(await ended, null);
    assert.equal(sink.kept.size, 0);
    disposeAll([idle, other, listener]);
  }));

test("Arrivals refuses a listener even by its own cookie", () =>
  arriving(0, async ({ wire }) => {
    const { listener } = rawListener();
    const connections = [{ cookie: cookieOf(runtime, listener.number), unread: 0 }];
    await wire.send({ type: "move", number: 0, name: "web", kind: "raw", connections }, new Uint8Array(0), [listener]);
    assert.deepEqual(indexes(await wire.expect("kept")), [[0, "ERR_TAKEOVER_DESCRIPTOR"]]);
    listener[Symbol.dispose]();
  }));

test("Arrivals refuses a whole move to which descriptors are missing, and takes the next", () =>
  arriving(3, async ({ wire, arrivals }, all) => {
    const announced = all.map(({ cookie }) => ({ cookie, unread: 0 }));
    await wire.move(0, all.slice(0, 2), { connections: announced });
    assert.deepEqual(indexes(await wire.expect("kept")), [0, 1, 2].map((index) => [index, "ERR_TAKEOVER_MISSING"]));
    await wire.send({ type: "yours", number: 0 });
    await wire.move(1, all);
    assert.deepEqual(indexes(await wire.expect("kept")), []);
    await wire.send({ type: "yours", number: 1 });
    await until(() => arrivals.count === 3, "all to be owned");
    await wire.send({ type: "done" });
  }));

/** The successor ends it with that code, says so, and has nothing. */
async function aborts(
  code: TakeoverError["code"],
  count: number,
  script: (side: Coming, all: readonly Connection[]) => Promise<void>,
): Promise<void> {
  await arriving(count, async (side, all) => {
    await script(side, all);
    assert.equal(codeOf(await side.ended), code);
    let last: FrameHead | undefined;
    for (let frame = await side.wire.next(); frame; frame = await side.wire.next()) last = frame.head;
    assert.deepEqual([last?.type, last?.code], ["abort", code]);
    assert.equal(owners(all, side.sink), "i".repeat(count));
  });
}

test("Arrivals ends at descriptors that no move has announced: ERR_TAKEOVER_SURPLUS", () =>
  aborts("ERR_TAKEOVER_SURPLUS", 2, ({ wire }, all) =>
    wire.move(0, all, { connections: [{ cookie: all[0]!.cookie, unread: 0 }] })));

test("Arrivals ends at descriptors that come with every byte of a frame: ERR_TAKEOVER_SURPLUS", () =>
  aborts("ERR_TAKEOVER_SURPLUS", 0, async ({ wire }) => {
    using nothing = openNull();
    const frame = encodeFrame({ type: "move", more: "x".repeat(100) });
    for (const byte of frame.subarray(0, 4)) await wire.sendBytes(Uint8Array.of(byte), Array(200).fill(nothing));
  }));

test("Arrivals ends at a move whose number is not due: ERR_TAKEOVER_PROTOCOL", () =>
  aborts("ERR_TAKEOVER_PROTOCOL", 1, ({ wire }, all) => wire.move(1, all)));

test("Arrivals ends at a move that comes twice: ERR_TAKEOVER_PROTOCOL", () =>
  aborts("ERR_TAKEOVER_PROTOCOL", 1, async ({ wire }, all) => {
    await wire.move(0, all);
    await wire.expect("kept");
    await wire.move(0, all);
  }));

test("Arrivals ends at a third move while yours is due for two: ERR_TAKEOVER_PROTOCOL", () =>
  aborts("ERR_TAKEOVER_PROTOCOL", 3, async ({ wire }, all) => {
    for (const [number, connection] of all.entries()) await wire.move(number, [connection]);
  }));

test("Arrivals ends at yours for what was not kept: ERR_TAKEOVER_PROTOCOL", () =>
  aborts("ERR_TAKEOVER_PROTOCOL", 1, async ({ wire }, all) => {
    await wire.move(0, all);
    await wire.expect("kept");
    await wire.send({ type: "yours", number: 1 });
  }));

test("Arrivals ends at yours that comes twice, and keeps what it has", () =>
  arriving(1, async ({ wire, ended, sink }, all) => {
    await wire.move(0, all);
    await wire.expect("kept");
    await wire.send({ type: "yours", number: 0 });
    await wire.send({ type: "yours", number: 0 });
    assert.equal(codeOf(await ended), "ERR_TAKEOVER_PROTOCOL");
    assert.ok(sink.kept.has(all[0]!.cookie));
  }));

test("Arrivals ends at a frame that is not the incumbent's here: ERR_TAKEOVER_PROTOCOL", () =>
  aborts("ERR_TAKEOVER_PROTOCOL", 0, ({ wire }) => wire.send({ type: "kept", number: 0, room: 1, refused: [] })));

test("Arrivals ends at bytes that are no frame: ERR_TAKEOVER_PROTOCOL", () =>
  aborts("ERR_TAKEOVER_PROTOCOL", 0, ({ wire }) => wire.sendBytes(new TextEncoder().encode("GET / HTTP/1.1\r\n\r\n"))));

test("Arrivals ends at a body of 4 GB by its header alone: ERR_TAKEOVER_LIMIT", () =>
  aborts("ERR_TAKEOVER_LIMIT", 0, async ({ wire }) => {
    const frame = encodeFrame({ type: "move" });
    frame.fill(0xff, 8, 12);
    await wire.sendBytes(frame);
  }));

test("Arrivals ends at counts of unread bytes that are not the body's: ERR_TAKEOVER_PROTOCOL", () =>
  aborts("ERR_TAKEOVER_PROTOCOL", 1, ({ wire }, all) =>
    wire.move(0, all, { connections: [{ cookie: all[0]!.cookie, unread: 7 }] })));

test("Arrivals gives everything back that is not yours when the incumbent says back", () =>
  arriving(2, async ({ wire, sink, ended }, all) => {
    await wire.move(0, [all[0]!]);
    await wire.move(1, [all[1]!]);
    await wire.expect("kept");
    await wire.send({ type: "yours", number: 0 });
    await wire.send({ type: "back" });
    assert.equal(await ended, null);
    assert.deepEqual([...sink.kept.keys(), ...sink.cancelled], [all[0]!.cookie, all[1]!.cookie]);
  }));

test("Arrivals takes nothing of what comes behind back", () =>
  arriving(1, async ({ wire, sink, ended }, all) => {
    await wire.move(0, all);
    await wire.expect("kept");
    const frames = [{ type: "back" }, { type: "yours", number: 0 }].map((head) => encodeFrame(head));
    await wire.sendBytes(Uint8Array.from(frames.flatMap((frame) => [...frame])));
    assert.equal(await ended, null);
    assert.equal(sink.kept.size, 0);
  }));

test("Arrivals owns what it has kept when the incumbent ends without back", () =>
  arriving(2, async ({ wire, ended, sink }, all) => {
    await wire.move(0, all);
    await wire.expect("kept");
    wire.close();
    assert.equal(await ended, null);
    assert.equal(sink.kept.size, 2);
    sinkOnly(all);
  }));

test("Arrivals owns what came whole before the incumbent ended without back, and before it could keep it", () =>
  arriving(2, async ({ wire, ended, sink }, all) => {
    await wire.move(0, all);
    wire.close();
    assert.equal(await ended, null);
    assert.equal(sink.kept.size, 2);
    sinkOnly(all);
  }));

test("Arrivals owns nothing of a move that ends in the middle of its frame", () =>
  arriving(1, async ({ wire, ended, sink }, all) => {
    const head = { type: "move", number: 0, name: "web", kind: "raw", connections: [{ cookie: all[0]!.cookie, unread: 9 }] };
    const frame = encodeFrame(head, new Uint8Array(9));
    await wire.sendBytes(frame.subarray(0, -1), [all[0]!.descriptor]);
    wire.close();
    assert.equal(await ended, null);
    assert.equal(sink.kept.size, 0);
  }));

/** The script goes without having read the answer: the other side sees a reset before it sees the rest. */
async function unreadKept({ wire }: Coming, all: readonly Connection[]): Promise<void> {
  await wire.move(0, all);
  await until(() => isMessageWaiting(runtime, wire.channel.descriptor), "the answer to lie there");
}

test("Arrivals gives everything back when back is behind a reset", () =>
  arriving(1, async (side, all) => {
    await unreadKept(side, all);
    await side.wire.send({ type: "back" });
    side.wire.close();
    assert.equal(await side.ended, null);
    assert.deepEqual([side.sink.kept.size, side.sink.cancelled], [0, [all[0]!.cookie]]);
  }));

test("Arrivals owns what it has kept when nothing is behind a reset", () =>
  arriving(1, async (side, all) => {
    await unreadKept(side, all);
    side.wire.close();
    assert.equal(await side.ended, null);
    assert.equal(side.sink.kept.size, 1);
    sinkOnly(all);
  }));

test("Arrivals owns the others when one place throws, closes that one, and says why", () =>
  arriving(3, async ({ wire, sink, ended, arrivals }, all) => {
    sink.failing.set(all[1]!.cookie, new Error("no place"));
    await wire.move(0, all);
    await wire.expect("kept");
    await wire.send({ type: "yours", number: 0 });
    await wire.send({ type: "done" });
    assert.equal((await ended as Error).message, "no place");
    assert.deepEqual([...sink.kept.keys(), arrivals.count], [all[0]!.cookie, all[2]!.cookie, 2]);
  }));

/** The incumbent that had them is dead. */
function sinkOnly(all: readonly Connection[]): void {
  for (const connection of all) connection.freeze().leave();
}

// The incumbent.

test("Departures sends nothing before it is told that somebody takes it", () =>
  departing(connections(1), async ({ wire, departures }) => {
    await wire.send({ type: "takes", room: 9, parties: [{ name: "web", kind: "http" }, { name: "admin", kind: "raw" }] });
    await sleep(30);
    assert.equal(isMessageWaiting(runtime, wire.channel.descriptor), false);
    void departures.stop();
    assert.deepEqual(await wire.rest(), ["done"]);
  }));

test("Departures gives up what is kept, and says so first", () =>
  departing(connections(3), async ({ wire, departures }) => {
    await wire.send({ type: "takes", room: 9, parties });
    const move = (await wire.next())!;
    assert.equal(move.fds.length, 3);
    disposeAll(move.fds);
    await wire.send({ type: "kept", number: 0, room: 6, refused: [] });
    assert.equal((await wire.expect("yours")).number, 0);
    await until(() => departures.progress.moved === 3, "all to have moved");
    assert.deepEqual([departures.progress.remaining, departures.progress.refused], [0, 0]);
  }));

test("Departures sends the state and the bytes of each connection", async () => {
  const all = [new Connection({ state: { a: 1 }, unread: Uint8Array.of(1, 2) }), new Connection({ unread: Uint8Array.of(3) })];
  await departing(all, async ({ wire }) => {
    await wire.send({ type: "takes", room: 9, parties });
    const { head, body, fds } = (await wire.next())!;
    disposeAll(fds);
    assert.deepEqual(head, {
      ...{ type: "move", number: 0, name: "web", kind: "raw" },
      connections: [
        { cookie: all[0]!.cookie, state: { a: 1 }, unread: 2 },
        { cookie: all[1]!.cookie, state: null, unread: 1 },
      ],
    });
    assert.deepEqual([...body], [1, 2, 3]);
  });
});

test("Departures sends no third move before the first is answered", async () => {
  const all = connections(600);
  await departing(all, async ({ wire, departures }) => {
    await wire.send({ type: "takes", room: 1_000, parties });
    const sizes = [];
    for (const number of [0, 1]) {
      const { head, fds } = (await wire.next())!;
      assert.equal(head.number, number);
      sizes.push(fds.length);
      disposeAll(fds);
    }
    await sleep(30);
    assert.equal(isMessageWaiting(runtime, wire.channel.descriptor), false);
    await wire.send({ type: "kept", number: 0, room: 1_000, refused: [] });
    await wire.expect("yours");
    assert.equal((await wire.expect("move")).number, 2);
    void departures.stop();
    assert.deepEqual(await wire.rest(), ["back"]);
    assert.equal(owners(all, nobody), "-".repeat(sizes[0]!) + "i".repeat(600 - sizes[0]!));
  });
});

test("Departures sends at most 253 connections at a time, the most that a message carries", async () => {
  const all = connections(1_000);
  await departing(all, async ({ wire }) => {
    await wire.send({ type: "takes", room: 10_000, parties });
    const sizes: number[] = [];
    while (sizes.reduce((sum, size) => sum + size, 0) < all.length) {
      const { head, fds } = (await wire.next())!;
      if (head.type !== "move") continue;
      disposeAll(fds);
      assert.deepEqual([head.number, fds.length], [sizes.length, (head.connections as unknown[]).length]);
      sizes.push(fds.length);
      await wire.send({ ...kept, number: head.number, room: 10_000 });
    }
    assert.ok(Math.max(...sizes) <= 253, `${sizes}`);
  });
});

test("Departures keeps to the room that there is, and goes on when there is more", async () => {
  const all = connections(5);
  await departing(all, async ({ wire }) => {
    await wire.send({ type: "takes", room: 0, parties });
    await sleep(30);
    assert.equal(isMessageWaiting(runtime, wire.channel.descriptor), false);
    await wire.send({ type: "takes", room: 2, parties });
    assert.equal(((await wire.expect("move")).connections as unknown[]).length, 2);
    await sleep(30);
    assert.equal(isMessageWaiting(runtime, wire.channel.descriptor), false);
    await wire.send({ type: "kept", number: 0, room: 0, refused: [] });
    await wire.expect("yours");
    await sleep(30);
    assert.equal(isMessageWaiting(runtime, wire.channel.descriptor), false);
    await wire.send({ type: "takes", room: 1_000_000_000, parties });
    assert.equal(((await wire.expect("move")).connections as unknown[]).length, 3);
  });
});

test("Departures goes on with what is refused, tells why, and does not ask again", async () => {
  const all = connections(3);
  await departing(all, async ({ wire, departures }) => {
    await wire.send({ type: "takes", room: 9, parties });
    await wire.expect("move");
    const refused = [{ index: 0, code: "ERR_TAKEOVER_ADOPT", message: "first" }, { index: 2, code: "EVIL", message: "third" }];
    await wire.send({ type: "kept", number: 0, room: 9, refused });
    await wire.expect("yours");
    await until(() => departures.progress.refused === 2, "two to be refused");
    assert.equal(owners(all, nobody), "i-i");
    assert.deepEqual(all.map(({ thaws }) => thaws.map(codeOf)), [["ERR_TAKEOVER_ADOPT"], [], ["ERR_TAKEOVER_PROTOCOL"]]);
    await sleep(30);
    assert.equal(isMessageWaiting(runtime, wire.channel.descriptor), false);
    const { moved, refused: refusedCount, draining, remaining } = departures.progress;
    assert.deepEqual([moved, refusedCount, draining, remaining], [1, 2, { refused: 2 }, 0]);
  });
});

test("Departures goes on with all when all are refused", async () => {
  const all = connections(2);
  await departing(all, async ({ wire, departures }) => {
    await wire.send({ type: "takes", room: 9, parties });
    await wire.expect("move");
    const refused = [0, 1].map((index) => ({ index, code: "ERR_TAKEOVER_LIMIT", message: "" }));
    await wire.send({ type: "kept", number: 0, room: 9, refused });
    await wire.expect("yours");
    await until(() => departures.progress.refused === 2, "both to be refused");
    assert.equal(owners(all, nobody), "ii");
  });
});

test("Departures keeps what carries too much or no JSON, and the others move", async () => {
  const limits = limitsFrom({ keptMs: 60_000, unreadSize: 10, stateSize: 20 });
  const luggage: Luggage[] = [
    ...[{ unread: new Uint8Array(10) }, { unread: new Uint8Array(11) }, { state: "x".repeat(18) }, { state: "x".repeat(19) }],
    ...[{ state: 1n as unknown as string }, {}],
  ];
  const all = luggage.map((each) => new Connection(each));
  await departing(all, async ({ wire, departures }) => {
    await wire.send({ type: "takes", room: 9, parties });
    const { connections } = await wire.expect("move") as unknown as { connections: { cookie: string }[] };
    assert.deepEqual(connections.map(({ cookie }) => cookie), [0, 2, 5].map((index) => all[index]!.cookie));
    assert.deepEqual([1, 3, 4].map((index) => codeOf(all[index]!.thaws[0])), Array(3).fill("ERR_TAKEOVER_LIMIT"));
    assert.equal(departures.progress.refused, 3);
  }, limits);
});

test("Departures ends when one cannot be frozen, and those that were frozen before go on", async () => {
  const all = [...connections(2), new Connection({ freezeError: new Error("no") }), ...connections(1)];
  await departing(all, async ({ wire, departures, source, told }) => {
    await wire.send({ type: "takes", room: 9, parties });
    assert.deepEqual(await wire.rest(), ["done"]);
    await departures.ended;
    assert.equal(owners(all, nobody), "iiii");
    assert.deepEqual([source.isStopped, told.at(-1)!.moved], [true, 0]);
  });
});

test("Departures lets go of the others when one throws as it leaves", async () => {
  const all = [new Connection({ leaveError: new Error("no") }), ...connections(2)];
  await departing(all, async ({ wire, departures }) => {
    await wire.send({ type: "takes", room: 9, parties });
    await wire.expect("move");
    await wire.send({ type: "kept", number: 0, room: 9, refused: [] });
    assert.deepEqual(await wire.rest(), ["yours", "done"]);
    await departures.ended;
    assert.equal(owners(all, nobody), "---");
  });
});

test("Departures keeps what was not answered in time, and says back first: limit keptMs", async () => {
  const all = connections(2);
  await departing(all, async ({ wire, departures }) => {
    await wire.send({ type: "takes", room: 9, parties });
    assert.deepEqual(await wire.rest(), ["move", "back"]);
    await departures.ended;
    assert.equal(owners(all, nobody), "ii");
    assert.deepEqual(all.map(({ thaws }) => codeOf(thaws[0])), ["ERR_TAKEOVER_TIMEOUT", "ERR_TAKEOVER_TIMEOUT"]);
  }, limitsFrom({ keptMs: 50 }));
});

/**
 * The script says something that it may not: the incumbent ends it with `back`
 * or `done`, and keeps what is not yours.
 *
 * @param before What it says before, and what the incumbent says to it.
 */
async function holds(before: readonly [object, string][], wrong: object, said: readonly string[], left: string): Promise<void> {
  const all = connections(left.length);
  await departing(all, async ({ wire, departures }) => {
    for (const [head, answer] of before) {
      await wire.send(head);
      await wire.expect(answer);
    }
    await wire.send(wrong);
    assert.deepEqual(await wire.rest(), said);
    await departures.ended;
    assert.equal(owners(all, nobody), left);
  });
}

const takes = { type: "takes", room: 9, parties };
const kept = { type: "kept", number: 0, room: 9, refused: [] };

test("Departures ends at kept before takes", () => holds([], kept, ["done"], "ii"));

test("Departures ends at kept with another number", () => holds([[takes, "move"]], { ...kept, number: 1 }, ["back"], "ii"));

test("Departures ends at kept that comes twice, and keeps to what it said", () =>
  holds([[takes, "move"], [kept, "yours"]], kept, ["done"], "--"));

test("Departures ends at kept for a move that was never sent", () =>
  holds([[takes, "move"], [kept, "yours"]], { ...kept, number: 1 }, ["done"], "--"));

test("Departures ends at kept that refuses what was not there", () =>
  holds([[takes, "move"]], { ...kept, refused: [{ index: 2, code: "", message: "" }] }, ["back"], "ii"));

test("Departures ends at a frame that is not the successor's here", () =>
  holds([[takes, "move"]], { type: "yours", number: 0 }, ["back"], "ii"));

test("Departures ends at takes without a room", () =>
  holds([[takes, "move"]], { type: "takes", parties }, ["back"], "ii"));

test("Departures ends at an abort", () =>
  holds([[takes, "move"]], { type: "abort", code: "ERR_TAKEOVER_PROTOCOL", message: "no" }, ["back"], "ii"));

test("Departures ends at a body", async () => {
  const all = connections(1);
  await departing(all, async ({ wire, departures }) => {
    await wire.send(takes);
    await wire.expect("move");
    await wire.send(kept, new Uint8Array(1));
    assert.deepEqual(await wire.rest(), ["back"]);
    await departures.ended;
    assert.equal(owners(all, nobody), "i");
  });
});

test("Departures goes on at 2,000 takes", async () => {
  const all = connections(1);
  await departing(all, async ({ wire }) => {
    const frame = encodeFrame({ ...takes, room: 0 });
    const frames = new Uint8Array(frame.length * 100);
    for (let at = 0; at < frames.length; at += frame.length) frames.set(frame, at);
    for (let count = 0; count < 20; count++) await wire.sendBytes(frames);
    await wire.send(takes);
    await wire.expect("move");
  });
});

test("Departures keeps what the successor has kept and cannot be told of any more", async () => {
  const all = connections(2);
  await departing(all, async ({ wire, departures }) => {
    await wire.send(takes);
    await wire.expect("move");
    await wire.send(kept);
    wire.close();
    await departures.ended;
    assert.equal(owners(all, nobody), "ii");
  });
});

test("Departures says back even when it was told that the successor has gone", async () => {
  const all = connections(1);
  await departing(all, async ({ wire, departures }) => {
    await wire.send(takes);
    await wire.expect("move");
    void departures.stop(new PeerLostError("The control connection has ended"));
    assert.deepEqual(await wire.rest(), ["back"]);
    assert.equal(owners(all, nobody), "i");
  });
});

test("Departures says back after 64 frames as well: every call has its turn", async () => {
  for (const count of [62, 63, 64, 65]) {
    const all = connections(count + 1);
    await departing(all, async ({ wire, departures }) => {
      await wire.send({ ...takes, room: 1 });
      for (let number = 0; number < count / 2; number++) {
        await wire.expect("move");
        await wire.send({ ...kept, number, room: 1 });
        await wire.expect("yours");
      }
      await wire.expect("move");
      void departures.stop();
      assert.deepEqual(await wire.rest(), ["back"]);
    });
  }
});

test("Departures sends what is larger than the window alone, and leaves it cut without a word when it gives up", async () => {
  const large = { unread: new Uint8Array(4 * 1024 * 1024) };
  const all = [...connections(1), new Connection(large)];
  await departing(all, async ({ wire, departures }) => {
    await wire.send({ ...takes, room: 1 });
    await wire.expect("move");
    await wire.send({ ...kept, room: 1 });
    await wire.expect("yours");
    // It goes as far as the socket takes it, and nobody reads.
    await until(() => all[1]!.stage === "frozen", "the large one to be on its way");
    await until(() => isMessageWaiting(runtime, wire.channel.descriptor), "a part of it");
    await departures.stop();
    assert.deepEqual([await wire.rest(), wire.isCut], [[], true]);
    assert.equal(owners(all, nobody), "-i");
  }, limitsFrom({ keptMs: 100 }));
});

test("Departures lets what is larger than the window wait until nothing else is on its way", async () => {
  const all = [...connections(1), new Connection({ unread: new Uint8Array(100_000) })];
  await departing(all, async ({ wire, source, departures }) => {
    // One at a time: the first is a move of its own.
    const { ready } = source;
    source.ready = (limit) => ready.call(source, Math.min(1, limit));
    await wire.send(takes);
    await wire.expect("move");
    await until(() => all[1]!.stage === "frozen", "the large one to be next");
    await sleep(30);
    assert.equal(isMessageWaiting(runtime, wire.channel.descriptor), false);
    await wire.send(kept);
    await wire.expect("yours");
    assert.equal((await wire.expect("move")).number, 1);
    void departures.stop();
    assert.deepEqual(await wire.rest(), ["back"]);
  });
});

// Both, with somebody between them who delivers frame by frame.

/** A frame arrives. */
type Step = "takes" | "move" | "kept" | "yours";

/**
 * Every order in which the frames of two moves can arrive. Each side's come in
 * the order in which they were sent, and an answer after its question.
 */
const orders: readonly (readonly Step[])[] = [
  ["takes", "move", "move", "kept", "kept", "yours", "yours"],
  ["takes", "move", "move", "kept", "yours", "kept", "yours"],
  ["takes", "move", "kept", "move", "kept", "yours", "yours"],
  ["takes", "move", "kept", "move", "yours", "kept", "yours"],
];

/** How many of each frame have arrived after those steps. */
function count(steps: readonly Step[], type: Step): number {
  return steps.filter((step) => step === type).length;
}

/** Both sides, and what is between them. */
class Between {
  readonly all = connections(2);
  readonly coming = coming();
  #leaving: Leaving | null = null;

  get leaving(): Leaving {
    return this.#leaving!;
  }

  async begin(): Promise<void> {
    const side = await leaving(this.all);
    const { ready } = side.source;
    side.source.ready = (limit) => ready.call(side.source, Math.min(1, limit));
    this.#leaving = side;
  }

  /** The next frame of one side goes to the other; false when it has ended. */
  async deliver(step: Step | null, from: "incumbent" | "successor"): Promise<boolean> {
    const [here, there] = from === "incumbent" ? [this.leaving.wire, this.coming.wire] : [this.coming.wire, this.leaving.wire];
    const frame = await here.next();
    if (!frame) return false;
    if (step) assert.equal(frame.head.type, step);
    await forward(frame, there);
    return true;
  }

  /** Delivers those, and waits until each was acted upon. */
  async walk(steps: readonly Step[]): Promise<void> {
    const { departures } = this.leaving;
    const { arrivals, sink } = this.coming;
    for (const [at, step] of steps.entries()) {
      await this.deliver(step, step === "takes" || step === "kept" ? "successor" : "incumbent");
      const soFar = steps.slice(0, at + 1);
      const isDone: Record<Step, () => boolean> = {
        takes: () => this.all.every(({ stage }) => stage === "frozen"),
        move: () => sink.moveCount === count(soFar, "move"),
        kept: () => departures.progress.moved === count(soFar, "kept"),
        yours: () => arrivals.count === count(soFar, "yours"),
      };
      await until(isDone[step], step);
    }
  }

  async end(): Promise<void> {
    this.leaving.wire.close();
    this.coming.wire.close();
    await this.leaving.departures.stop();
    await this.coming.ended;
    this.coming.sink[Symbol.dispose]();
    for (const connection of this.all) connection[Symbol.dispose]();
  }
}

async function forward({ head, body, fds }: WireFrame, to: Leaving["wire"]): Promise<void> {
  await to.send(head, body, fds);
  disposeAll(fds);
}

/** Every beginning of every order, each once. */
const beginnings = [...new Set(orders.flatMap((order) => order.map((_, at) => order.slice(0, at).join(" "))).concat(orders.map((order) => order.join(" "))))]
  .map((text) => (text === "" ? [] : text.split(" ")) as Step[]);

test("Departures and Arrivals leave each connection with one owner when the incumbent gives up after any frame", async () => {
  for (const steps of beginnings) {
    const between = new Between();
    await between.begin();
    await between.walk(steps);
    void between.leaving.departures.stop();
    while (await between.deliver(null, "incumbent"));
    between.coming.wire.close();
    await between.coming.ended;
    const movedCount = count(steps, "kept");
    assert.equal(owners(between.all, between.coming.sink), "s".repeat(movedCount) + "i".repeat(2 - movedCount), steps.join(" "));
    assertAlive(between.all, between.coming.sink);
    await between.end();
  }
});

test("Departures keeps what was not yours when the successor dies after any frame", async () => {
  for (const steps of beginnings) {
    const between = new Between();
    await between.begin();
    await between.walk(steps);
    // What it had said is still there to be read, and it hears nothing more.
    const keptCount = count(steps, "move") - count(steps, "kept");
    for (let number = 0; number < keptCount; number++) await between.deliver("kept", "successor");
    between.leaving.wire.close();
    await between.leaving.departures.ended;
    const yoursCount = count(steps, "kept");
    const found = owners(between.all, nobody);
    assert.equal(found.slice(yoursCount + keptCount), "i".repeat(2 - yoursCount - keptCount), steps.join(" "));
    // Of what it kept last, the incumbent had perhaps just let go.
    assert.equal(found.slice(0, yoursCount), "-".repeat(yoursCount), steps.join(" "));
    assert.ok(!between.all.some(({ stage }) => stage === "frozen"), steps.join(" "));
    await between.end();
  }
});

test("Arrivals owns all that came when the incumbent dies after any frame", async () => {
  for (const steps of beginnings) {
    const between = new Between();
    await between.begin();
    await between.walk(steps);
    // What it had said is still there to be read, and it hears nothing more.
    const sentCount = steps.length === 0 ? 0 : 2;
    for (let number = count(steps, "move"); number < sentCount; number++) await between.deliver("move", "incumbent");
    for (let number = count(steps, "yours"); number < count(steps, "kept"); number++) await between.deliver("yours", "incumbent");
    between.coming.wire.close();
    assert.equal(await between.coming.ended, null);
    assert.equal(between.coming.sink.kept.size, sentCount, steps.join(" "));
    await between.end();
  }
});

test("Departures and Arrivals move 1,000 connections, each with its bytes", async () => {
  const all = Array.from({ length: 1_000 }, (_, index) => new Connection({ state: index, unread: Uint8Array.of(index & 255, index >> 8) }));
  const side = await leaving(all);
  const other = coming();
  const there = (async () => {
    for (let frame = await side.wire.next(); frame; frame = await side.wire.next()) await forward(frame, other.wire);
    other.wire.close();
  })();
  const back = (async () => {
    for (let frame = await other.wire.next(); frame && frame.head.type !== "done"; frame = await other.wire.next()) await forward(frame, side.wire);
  })().catch((error) => assert.equal(codeOf(error), "ERR_TAKEOVER_CLOSED"));
  await until(() => other.arrivals.count === 1_000, () => `1,000, got ${other.arrivals.count}`);
  await side.departures.stop();
  await Promise.all([there, back, other.ended]);
  assert.equal(owners(all, other.sink), "s".repeat(1_000));
  for (const [index, { cookie }] of all.entries()) {
    const { state, unread } = other.sink.kept.get(cookie)!;
    assert.deepEqual([state, ...unread], [index, index & 255, index >> 8]);
  }
  assertAlive(all, other.sink);
  side.wire.close();
  other.sink[Symbol.dispose]();
  for (const connection of all) connection[Symbol.dispose]();
});
