import assert from "node:assert/strict";
import test from "node:test";
import {
  commonVersion,
  type FrameType,
  Protocol,
  type ProtocolState,
  type Role,
  versions,
} from "../../src/handover/protocol.ts";
import { takeoverError } from "./support.ts";

type Step = readonly [Role, FrameType];

/** Everything that PROTOCOL.md allows, besides refuse and abort: state, sender, frame, next state. */
const allowed = [
  "connected successor hello greeted",
  "connected successor join joined",
  "greeted incumbent offer offered",
  "offered incumbent batch sending",
  "sending successor received offered",
  "offered successor ready readied",
  "readied incumbent lease leased",
  "leased successor alive leased",
  "leased successor settled settling",
  "leased incumbent released ended",
  "settling incumbent released ended",
  "joined successor takes moving",
  "moving successor takes moving",
  "moving incumbent move moving",
  "moving successor kept moving",
  "moving incumbent yours moving",
  "moving incumbent back ended",
  "moving incumbent done ended",
];

const hello: Step = ["successor", "hello"];
const offer: Step = ["incumbent", "offer"];
const batch: Step = ["incumbent", "batch"];
const received: Step = ["successor", "received"];
const ready: Step = ["successor", "ready"];
const lease: Step = ["incumbent", "lease"];
const alive: Step = ["successor", "alive"];
const settled: Step = ["successor", "settled"];
const released: Step = ["incumbent", "released"];
const join: Step = ["successor", "join"];
const takes: Step = ["successor", "takes"];
const move: Step = ["incumbent", "move"];
const kept: Step = ["successor", "kept"];
const yours: Step = ["incumbent", "yours"];
const done: Step = ["incumbent", "done"];

/** A way into every state. */
const ways: Readonly<Record<ProtocolState, readonly Step[]>> = {
  connected: [],
  greeted: [hello],
  offered: [hello, offer],
  sending: [hello, offer, batch],
  readied: [hello, offer, ready],
  leased: [hello, offer, ready, lease],
  settling: [hello, offer, ready, lease, settled],
  joined: [join],
  moving: [join, takes],
  ended: [hello, offer, ready, lease, settled, released],
};

const states = Object.keys(ways) as ProtocolState[];
const roles: readonly Role[] = ["incumbent", "successor"];
const frames: readonly FrameType[] = [
  ...["hello", "join", "offer", "batch", "received", "ready", "lease"] as const,
  ...["alive", "settled", "released", "refuse", "abort"] as const,
  ...["takes", "move", "kept", "yours", "back", "done"] as const,
];

function protocolIn(state: ProtocolState): Protocol {
  const protocol = new Protocol();
  for (const [sender, type] of ways[state]) protocol.advance(sender, type);
  assert.equal(protocol.state, state);
  return protocol;
}

/** Where a frame leads, or null when it is not allowed. */
function after(state: ProtocolState, sender: Role, type: FrameType): ProtocolState | null {
  const protocol = protocolIn(state);
  try {
    assert.equal(protocol.advance(sender, type), type);
    return protocol.state;
  } catch (error) {
    assert.equal((error as { code?: string }).code, "ERR_TAKEOVER_PROTOCOL");
    assert.equal(protocol.state, state, "the state stays");
    return null;
  }
}

test("Protocol begins as connected", () => {
  assert.equal(new Protocol().state, "connected");
});

test("Protocol.advance allows of every state, sender and frame what the table says, and nothing else", () => {
  const ends = states.filter((state) => state !== "ended")
    .flatMap((state) => [`${state} incumbent refuse ended`, `${state} successor abort ended`]);
  const found = states.flatMap((state) =>
    roles.flatMap((sender) =>
      frames.flatMap((type) => {
        const next = after(state, sender, type);
        return next === null ? [] : [`${state} ${sender} ${type} ${next}`];
      })
    )
  );
  assert.deepEqual(found.toSorted(), [...allowed, ...ends].toSorted());
});

test("Protocol.advance goes through a whole hand-over with two batches", () => {
  const steps = [
    ...[hello, offer, batch, received, batch, received],
    ...[ready, lease, alive, alive, settled, released],
  ];
  const protocol = new Protocol();
  const passed = steps.map(([sender, type]) => {
    protocol.advance(sender, type);
    return protocol.state;
  });
  assert.deepEqual(passed, [
    ...["greeted", "offered", "sending", "offered", "sending", "offered"],
    ...["readied", "leased", "leased", "leased", "settling", "ended"],
  ]);
});

test("Protocol.advance goes through the second connection, on which two moves wait for their answers", () => {
  const steps = [join, takes, move, move, kept, yours, takes, kept, yours, done];
  const protocol = new Protocol();
  for (const [sender, type] of steps) protocol.advance(sender, type);
  assert.equal(protocol.state, "ended");
});

test("Protocol.advance lets the incumbent refuse and the successor abort in every state but ended", () => {
  for (const state of states.filter((each) => each !== "ended")) {
    assert.equal(after(state, "incumbent", "refuse"), "ended");
    assert.equal(after(state, "successor", "abort"), "ended");
  }
});

test("Protocol.advance takes nothing more once it has ended", () => {
  for (const type of frames) {
    assert.equal(after("ended", "incumbent", type), null);
    assert.equal(after("ended", "successor", type), null);
  }
});

test("Protocol.advance refuses a type that is no frame's", () => {
  for (const type of [undefined, null, 1, {}, [], "", "Hello", "constructor", "__proto__", "toString"]) {
    assert.throws(() => new Protocol().advance("successor", type), takeoverError("ERR_TAKEOVER_PROTOCOL"));
  }
});

test("Protocol.advance says what it expected", () => {
  assert.throws(() => protocolIn("offered").advance("incumbent", "lease"), {
    message: 'Cannot take the frame "lease" from the incumbent in state offered: expected batch, refuse',
  });
  assert.throws(() => protocolIn("ended").advance("incumbent", "lease"), { message: /expected none$/ });
});

test("Protocol.advance cuts a long type short in its message", () => {
  assert.throws(
    () => new Protocol().advance("successor", "x".repeat(100_000)),
    (error: Error) => error.message.length < 200,
  );
});

test("Protocol.advance throws a TakeoverError for a type that is nested too deep to be shown", () => {
  const type: unknown = JSON.parse("[".repeat(500_000) + "]".repeat(500_000));
  assert.throws(() => new Protocol().advance("successor", type), takeoverError("ERR_TAKEOVER_PROTOCOL"));
});

test("commonVersion gives the highest version that both know", () => {
  const { min, max } = versions;
  assert.equal(commonVersion({ min, max }), max);
  assert.equal(commonVersion({ min: 0, max: max + 5 }), max);
  assert.equal(commonVersion({ min: 0, max: min }), min);
  assert.equal(commonVersion({ min: max, max: max + 1 }), max);
});

test("commonVersion gives null when there is none", () => {
  const { min, max } = versions;
  assert.equal(commonVersion({ min: max + 1, max: max + 1 }), null);
  assert.equal(commonVersion({ min: 0, max: min - 1 }), null);
  assert.equal(commonVersion({ min: max + 1, max: min - 1 }), null);
});
