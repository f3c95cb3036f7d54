/** A group's program stays while listeners are there that nobody here can close. */

import assert from "node:assert/strict";
import { Stragglers } from "../../src/handover/stragglers.ts";
import { groupOf } from "./steering_ends.ts";
import { runtime, sleep, test, until } from "./support.ts";

/** Longer than it takes until it has looked several times. */
const lookedMs = 200;

/** Those at an address, of whom the last is waited for. */
function waiting(isHeld: () => boolean = () => false) {
  const opened = groupOf("stream", 3);
  const stragglers = new Stragglers(runtime, isHeld);
  let endedCount = 0;
  const { group: { address }, sockets, cookies } = opened;
  const wait = (waited: readonly string[]) => stragglers.endOnceGone(address, waited, () => endedCount++);
  return {
    stragglers,
    address,
    sockets,
    cookies,
    wait,
    endedCount: () => endedCount,
    [Symbol.dispose]() {
      stragglers[Symbol.dispose]();
      opened[Symbol.dispose]();
    },
  };
}

test("Stragglers.endOnceGone ends at once where none of them is there", () => {
  using scene = waiting();
  scene.wait([]);
  scene.wait(["0000000000000001"]);
  assert.equal(scene.endedCount(), 2);
});

test("Stragglers.endOnceGone ends once the last of them has left", async () => {
  using scene = waiting();
  scene.wait(scene.cookies.slice(1));
  scene.sockets[1]![Symbol.dispose]();
  await sleep(lookedMs);
  assert.equal(scene.endedCount(), 0);
  scene.sockets[2]![Symbol.dispose]();
  await until(() => scene.endedCount() === 1, "it to end");
});

test("Stragglers.endOnceGone waits while the program may be somebody else's", async () => {
  let isHeld = true;
  using scene = waiting(() => isHeld);
  scene.wait([]);
  await sleep(lookedMs);
  assert.equal(scene.endedCount(), 0);
  isHeld = false;
  await until(() => scene.endedCount() === 1, "it to end");
});

test("Stragglers.endOnceGone ends once for an address, and never after the end", async () => {
  using scene = waiting();
  scene.wait(scene.cookies.slice(2));
  scene.wait(scene.cookies.slice(1));
  scene.sockets[2]![Symbol.dispose]();
  await sleep(lookedMs);
  scene.stragglers[Symbol.dispose]();
  scene.sockets[1]![Symbol.dispose]();
  await sleep(lookedMs);
  assert.equal(scene.endedCount(), 0);
});

test("Stragglers.since gives who has come since a successor was offered the address, and who was waited for then", async () => {
  using scene = waiting();
  assert.deepEqual(scene.stragglers.since(scene.address), []);
  scene.stragglers.offering(scene.address);
  assert.deepEqual(scene.stragglers.since(scene.address), []);
  using more = groupOf("stream", 1, scene.address);
  assert.deepEqual(scene.stragglers.since(scene.address), more.cookies);
  scene.wait(more.cookies);
  scene.stragglers.offering(scene.address);
  assert.deepEqual(scene.stragglers.since(scene.address), more.cookies);
});
