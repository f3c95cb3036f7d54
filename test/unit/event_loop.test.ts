import assert from "node:assert/strict";
import test from "node:test";
import { canPause, parseRegistrations } from "../../src/sockets/event_loop.ts";
import { darwin, fakeRuntime } from "./support.ts";

/** /proc/self/fdinfo of the epoll of a Node process, Linux 6.18. */
const nodeFdinfo = `pos:\t0
flags:\t02000002
mnt_id:\t16
ino:\t1057
tfd:       12 events:       19 data:                c  pos:0 ino:421 sdev:10
tfd:       10 events:       19 data:                a  pos:0 ino:421 sdev:10
tfd:       21 events: 80000019 data: ffffffffffffffff  pos:0 ino:3a9f sdev:9
`;

/** The same of Deno, whose data are pointers and whose events are edge-triggered. */
const denoFdinfo = `pos:\t0
flags:\t02000002
tfd:        9 events: 80002019 data:     7f00c0ffee00  pos:0 ino:d6 sdev:9
`;

test("parseRegistrations gives every line of an epoll descriptor's fdinfo", () => {
  assert.deepEqual(parseRegistrations(5, nodeFdinfo), [
    { epoll: 5, descriptor: 12, events: 0x19, data: 12n },
    { epoll: 5, descriptor: 10, events: 0x19, data: 10n },
    { epoll: 5, descriptor: 21, events: 0x80000019, data: 0xffffffffffffffffn },
  ]);
});

test("parseRegistrations keeps every bit of a pointer and of edge-triggered events", () => {
  assert.deepEqual(parseRegistrations(4, denoFdinfo), [
    { epoll: 4, descriptor: 9, events: 0x80002019, data: 0x7f00c0ffee00n },
  ]);
});

test("parseRegistrations gives the line of one descriptor, and not of one whose digits contain its own", () => {
  assert.deepEqual(parseRegistrations(5, nodeFdinfo, 12), [{ epoll: 5, descriptor: 12, events: 0x19, data: 12n }]);
  assert.deepEqual(parseRegistrations(5, nodeFdinfo, 1), []);
  assert.deepEqual(parseRegistrations(5, nodeFdinfo, 2), []);
});

test("parseRegistrations finds nothing in the fdinfo of anything else", () => {
  assert.deepEqual(parseRegistrations(4, "pos:\t0\nflags:\t02\neventfd-count: 0\n"), []);
  assert.deepEqual(parseRegistrations(4, ""), []);
});

test("canPause is true on Linux and false on macOS", () => {
  assert.equal(canPause(fakeRuntime()), true);
  assert.equal(canPause(fakeRuntime({ abi: darwin })), false);
});
