import assert from "node:assert/strict";
import { allocate, viewOf } from "../../src/c/bytes.ts";
import { OwnedDescriptor } from "../../src/sockets/descriptors.ts";
import { copyOptions } from "../../src/sockets/datagram_options.ts";
import { openSocket } from "../../src/sockets/socket.ts";
import { runtime, test } from "./support.ts";

const { libc } = runtime;

function set(descriptor: number, level: number, name: number, wanted: number): void {
  const value = allocate(4);
  viewOf(value).setInt32(0, wanted, true);
  assert.equal(libc.setsockopt(descriptor, level, name, value, 4), 0, `${level} ${name}`);
}

function get(descriptor: number, level: number, name: number): number {
  const [value, size] = [allocate(4), allocate(4)];
  viewOf(size).setUint32(0, 4, true);
  assert.equal(libc.getsockopt(descriptor, level, name, value, size), 0, `${level} ${name}`);
  return viewOf(value).getInt32(0, true);
}

const open = (family: "inet" | "inet6") => new OwnedDescriptor(runtime, openSocket(runtime, family, "dgram"));

/** What is set is another than the default, and the other socket has it afterwards. */
function copies(family: "inet" | "inet6", wanted: readonly (readonly [level: number, name: number, value: number])[]): void {
  using from = open(family);
  using to = open(family);
  for (const [level, name, value] of wanted) {
    assert.notEqual(get(to.number, level, name), value, `${level} ${name} is not the default`);
    set(from.number, level, name, value);
  }
  const found = wanted.map(([level, name]) => get(from.number, level, name));
  copyOptions(runtime, family, from.number, to.number);
  assert.deepEqual(wanted.map(([level, name]) => get(to.number, level, name)), found);
}

test("copyOptions copies what an application has set on an IPv4 socket", () =>
  copies("inet", [[1, 6, 1], [1, 12, 3], [1, 7, 100_000], [0, 1, 0x10], [0, 2, 33], [0, 8, 1], [0, 10, 2], [0, 11, 1], [0, 13, 1], [0, 33, 5], [0, 34, 0]]));

test("copyOptions copies what an application has set on an IPv6 socket", () =>
  copies("inet6", [[1, 6, 1], [0, 1, 0x10], [41, 16, 33], [41, 18, 5], [41, 19, 0], [41, 23, 2], [41, 25, 1], [41, 49, 1], [41, 66, 1], [41, 67, 0x20]]));
