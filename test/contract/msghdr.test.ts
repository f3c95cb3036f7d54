import assert from "node:assert/strict";
import { allocate } from "../../src/c/bytes.ts";
import { decodeRights, encodeControl, encodeRights, rightsMessage } from "../../src/c/cmsg.ts";
import { Msghdr } from "../../src/c/msghdr.ts";
import { disposeAll, OwnedDescriptor } from "../../src/sockets/descriptors.ts";
import { sendMessage } from "../../src/channels/message.ts";
import { runtime, socketPair, test } from "./support.ts";

const { abi, libc } = runtime;
const { MSG_DONTWAIT, MSG_CMSG_CLOEXEC } = abi.constants;
const bytes = Uint8Array.of(1, 2, 3);

function emptyMessage(): Msghdr {
  return new Msghdr(abi, (bytes) => runtime.addressOf(bytes), allocate(8), allocate(64));
}

test("Msghdr.received gives nothing after a message without control data, whatever the buffer holds", () => {
  const [left, right] = socketPair();
  using _left = left;
  using _right = right;
  const message = emptyMessage();
  message.control.set(encodeRights(abi, [3, 4]));
  assert.equal(sendMessage(runtime, left.number, { bytes }), bytes.length);
  message.aim(0, 8, 64);
  assert.equal(libc.recvmsg(right.number, message.bytes, MSG_DONTWAIT), bytes.length);
  assert.deepEqual([message.received.length, message.flags], [0, 0]);
});

test("Msghdr.flags has no MSG_CMSG_CLOEXEC, though Linux echoes it", () => {
  const [left, right] = socketPair();
  using _left = left;
  using _right = right;
  const control = encodeControl(abi, [rightsMessage(abi, [left.number])]);
  assert.equal(sendMessage(runtime, left.number, { bytes, control }), bytes.length);
  const message = emptyMessage();
  message.aim(0, 8, 64);
  assert.equal(libc.recvmsg(right.number, message.bytes, MSG_DONTWAIT | MSG_CMSG_CLOEXEC), bytes.length);
  disposeAll(decodeRights(abi, message.received).map((number) => new OwnedDescriptor(runtime, number)));
  assert.equal(message.flags, 0);
});
