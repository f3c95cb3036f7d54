import assert from "node:assert/strict";
import test from "node:test";
import type { Abi } from "../../src/c/abi.ts";
import { allocate, type Bytes, readField, viewOf, writeField } from "../../src/c/bytes.ts";
import { Msghdr } from "../../src/c/msghdr.ts";
import { darwin, linux } from "./support.ts";

/** Addresses as a machine gives them: far above 32 bits. */
const dataAddress = 0x7f00_0000_1000n;
const controlAddress = 0x7f00_0000_2000n;
const iovecAddress = 0x7f00_0000_3000n;

/** A msghdr, and the iovec that only its address leads to. */
function made(abi: Abi): { message: Msghdr; iovec: DataView } {
  const data = allocate(256);
  const control = allocate(64);
  let iovec: Bytes | null = null;
  const addressOf = (bytes: Bytes) => {
    if (bytes === data) return dataAddress;
    if (bytes === control) return controlAddress;
    iovec = bytes;
    return iovecAddress;
  };
  const message = new Msghdr(abi, addressOf, data, control);
  return { message, iovec: viewOf(iovec!) };
}

function addressAt(bytes: Bytes, offset: number): bigint {
  return viewOf(bytes).getBigUint64(offset, true);
}

test("Msghdr points to one iovec and to no name", () => {
  const { message: { bytes } } = made(linux);
  const { msghdr } = linux;
  assert.equal(bytes.length, 56);
  assert.equal(addressAt(bytes, msghdr.iov.offset), iovecAddress);
  assert.equal(readField(viewOf(bytes), msghdr.iovlen), 1);
  assert.equal(addressAt(bytes, msghdr.name.offset), 0n);
  assert.equal(readField(viewOf(bytes), msghdr.namelen), 0);
});

test("Msghdr has the layout of macOS there", () => {
  const { message: { bytes } } = made(darwin);
  assert.equal(bytes.length, 48);
  assert.equal(addressAt(bytes, 16), iovecAddress);
  assert.equal(viewOf(bytes).getInt32(24, true), 1);
});

test("Msghdr.aim points the iovec at a part of the data", () => {
  const { message, iovec } = made(linux);
  message.aim(10, 20, 0);
  assert.equal(iovec.getBigUint64(linux.iovec.base.offset, true), dataAddress + 10n);
  assert.equal(readField(iovec, linux.iovec.len), 20);
});

test("Msghdr.aim points to the control data and says how much there is", () => {
  const { message } = made(linux);
  message.aim(0, 1, 24);
  assert.equal(addressAt(message.bytes, linux.msghdr.control.offset), controlAddress);
  assert.equal(readField(viewOf(message.bytes), linux.msghdr.controllen), 24);
});

test("Msghdr.aim without control data leaves no pointer to any", () => {
  const { message } = made(linux);
  message.aim(0, 1, 24);
  message.aim(0, 1, 0);
  assert.equal(addressAt(message.bytes, linux.msghdr.control.offset), 0n);
  assert.equal(readField(viewOf(message.bytes), linux.msghdr.controllen), 0);
});

test("Msghdr.aim clears the flags of the call before", () => {
  const { message } = made(linux);
  writeField(viewOf(message.bytes), linux.msghdr.flags, linux.constants.MSG_CTRUNC);
  assert.equal(message.flags, linux.constants.MSG_CTRUNC);
  message.aim(0, 1, 0);
  assert.equal(message.flags, 0);
});

test("Msghdr.flags leaves out MSG_CMSG_CLOEXEC, which Linux echoes", () => {
  const { MSG_CTRUNC, MSG_CMSG_CLOEXEC } = linux.constants;
  const { message } = made(linux);
  writeField(viewOf(message.bytes), linux.msghdr.flags, MSG_CTRUNC | MSG_CMSG_CLOEXEC);
  assert.equal(message.flags, MSG_CTRUNC);
});

test("Msghdr.received ends where the kernel says, not where an earlier call wrote", () => {
  const { message } = made(linux);
  message.control.fill(0xee);
  writeField(viewOf(message.bytes), linux.msghdr.controllen, 20);
  assert.equal(message.received.length, 20);
  writeField(viewOf(message.bytes), linux.msghdr.controllen, 0);
  assert.equal(message.received.length, 0);
});

test("Msghdr.received never reaches past the control buffer", () => {
  const { message } = made(linux);
  writeField(viewOf(message.bytes), linux.msghdr.controllen, 2 ** 40);
  assert.equal(message.received.length, 64);
});
