import assert from "node:assert/strict";
import test from "node:test";
import type { Abi } from "../../src/c/abi.ts";
import { allocate, viewOf, writeField } from "../../src/c/bytes.ts";
import {
  type Ancillary,
  cmsgAlign,
  cmsgFirst,
  cmsgLen,
  cmsgNext,
  cmsgSpace,
  type ControlMessage,
  credentialsMessage,
  decodeAncillary,
  decodeControl,
  decodeCredentials,
  decodeLabel,
  decodeRights,
  encodeControl,
  encodeRights,
  rightsMessage,
} from "../../src/c/cmsg.ts";
import { concat, darwin, linux, takeoverError } from "./support.ts";

/** More than 253 descriptors take up. */
const lengths = Array.from({ length: 1_100 }, (_, length) => length);
const scmCredentials = 2;
const scmSecurity = 3;
const scmPidfd = 4;

/** What a control buffer without a message is decoded to. */
const nothing: Ancillary = { descriptors: [], credentials: null, pidfd: null, securityContext: null };
const sender = { pid: 4_711, uid: 1_000, gid: 4_294_967_294 };

/** A message of a type that the kernel alone sends. */
function kernelMessage(type: number, data: Iterable<number>): ControlMessage {
  return { level: linux.constants.SOL_SOCKET, type, data: Uint8Array.from(data) };
}

/** The descriptor as C's int. */
function pidfdMessage(pidfd: number): ControlMessage {
  return kernelMessage(scmPidfd, new Uint8Array(Int32Array.of(pidfd).buffer));
}

function labelMessage(label: string): ControlMessage {
  return kernelMessage(scmSecurity, new TextEncoder().encode(label));
}

/** One control message of any kind, padded as the kernel pads it. */
function controlMessage(abi: Abi, level: number, type: number, data: Uint8Array): Uint8Array {
  const bytes = allocate(cmsgSpace(abi, data.length));
  const view = viewOf(bytes);
  writeField(view, abi.cmsghdr.len, cmsgLen(abi, data.length));
  writeField(view, abi.cmsghdr.level, level);
  writeField(view, abi.cmsghdr.type, type);
  bytes.set(data, cmsgLen(abi, 0));
  return bytes;
}

/** The same control data with another `cmsg_len` in its first header. */
function withLength(abi: Abi, control: Uint8Array, length: number | bigint): Uint8Array {
  const copy = control.slice();
  writeField(viewOf(copy), abi.cmsghdr.len, length);
  return copy;
}

function alignsUp(abi: Abi): void {
  for (const length of lengths) {
    const aligned = cmsgAlign(abi, length);
    assert.ok(aligned >= length && aligned < length + abi.cmsghdr.align && aligned % abi.cmsghdr.align === 0);
  }
}

test("cmsgAlign gives the next multiple of the alignment on Linux", () => alignsUp(linux));

test("cmsgAlign gives the next multiple of the alignment on macOS", () => alignsUp(darwin));

function holdsHeaderAndData(abi: Abi): void {
  for (const length of lengths) {
    assert.ok(cmsgLen(abi, length) >= abi.cmsghdr.size + length);
    assert.ok(cmsgSpace(abi, length) >= cmsgLen(abi, length));
    assert.ok(cmsgSpace(abi, length) < cmsgLen(abi, length) + abi.cmsghdr.align);
    assert.ok(cmsgSpace(abi, length + 1) >= cmsgSpace(abi, length));
    assert.equal(cmsgSpace(abi, length) % abi.cmsghdr.align, 0);
  }
}

test("cmsgSpace holds cmsgLen, which holds the header and the data, on Linux", () => holdsHeaderAndData(linux));

test("cmsgSpace holds cmsgLen, which holds the header and the data, on macOS", () => holdsHeaderAndData(darwin));

test("cmsgLen and cmsgSpace give the numbers that C gives", () => {
  assert.deepEqual([cmsgLen(linux, 0), cmsgLen(linux, 4), cmsgSpace(linux, 4), cmsgSpace(linux, 12)], [16, 20, 24, 32]);
  assert.deepEqual([cmsgLen(darwin, 0), cmsgLen(darwin, 4), cmsgSpace(darwin, 4)], [12, 16, 16]);
});

test("encodeRights lays a message out as Linux expects it", () => {
  assert.deepEqual([...encodeRights(linux, [3, 260, 5])], [
    ...[28, 0, 0, 0, 0, 0, 0, 0],
    ...[1, 0, 0, 0, 1, 0, 0, 0],
    ...[3, 0, 0, 0, 4, 1, 0, 0, 5, 0, 0, 0],
    ...[0, 0, 0, 0],
  ]);
});

test("encodeRights lays a message out as macOS expects it", () => {
  assert.deepEqual([...encodeRights(darwin, [3])], [16, 0, 0, 0, 0xff, 0xff, 0, 0, 1, 0, 0, 0, 3, 0, 0, 0]);
});

test("encodeRights gives no bytes for no descriptors", () => {
  assert.equal(encodeRights(linux, []).length, 0);
});

test("encodeRights takes 253 descriptors", () => {
  const descriptors = Array.from({ length: 253 }, (_, index) => index + 3);
  const control = encodeRights(linux, descriptors);
  assert.equal(control.length, cmsgSpace(linux, 253 * 4));
  assert.deepEqual(decodeRights(linux, control), descriptors);
});

test("encodeRights refuses 254 descriptors, and says what to do", () => {
  assert.throws(() => encodeRights(linux, new Array(254).fill(0)), {
    name: "RangeError",
    message: "Cannot send 254 descriptors in one message: expected at most 253; send the rest in a further message",
  });
});

test("encodeRights refuses what is no descriptor", () => {
  for (const wrong of [-1, 0.5, NaN, Infinity]) {
    assert.throws(() => encodeRights(linux, [3, wrong]), { name: "RangeError", message: /expected a descriptor/ });
  }
});

test("decodeRights gives back what encodeRights took, in order", () => {
  assert.deepEqual(decodeRights(linux, encodeRights(linux, [9, 0, 2147483647])), [9, 0, 2147483647]);
  assert.deepEqual(decodeRights(darwin, encodeRights(darwin, [9, 0, 2147483647])), [9, 0, 2147483647]);
});

test("decodeRights collects the descriptors of two control messages", () => {
  const linuxControl = concat(encodeRights(linux, [3]), encodeRights(linux, [4, 5]));
  const darwinControl = concat(encodeRights(darwin, [3]), encodeRights(darwin, [4, 5]));
  assert.deepEqual(decodeRights(linux, linuxControl), [3, 4, 5]);
  assert.deepEqual(decodeRights(darwin, darwinControl), [3, 4, 5]);
});

test("decodeRights passes over messages of another type or level", () => {
  const { SOL_SOCKET, SCM_RIGHTS } = linux.constants;
  const control = concat(
    controlMessage(linux, SOL_SOCKET, scmCredentials, new Uint8Array(12).fill(7)),
    encodeRights(linux, [3]),
    controlMessage(linux, SOL_SOCKET + 1, SCM_RIGHTS, new Uint8Array(8).fill(8)),
    encodeRights(linux, [4]),
  );
  assert.deepEqual(decodeRights(linux, control), [3, 4]);
});

test("decodeRights finds nothing in no control data", () => {
  assert.deepEqual(decodeRights(linux, new Uint8Array(0)), []);
  assert.deepEqual(decodeControl(linux, new Uint8Array(0)), []);
});

test("decodeRights finds nothing in an empty array", () => {
  assert.deepEqual(decodeRights(linux, withLength(linux, encodeRights(linux, [3]), cmsgLen(linux, 0))), []);
});

test("decodeRights leaves out an int that cmsg_len cuts", () => {
  const control = encodeRights(linux, [3, 4]);
  for (const cut of [1, 2, 3]) assert.deepEqual(decodeRights(linux, withLength(linux, control, 24 - cut)), [3]);
});

test("decodeRights reads an int that lies in the padding when cmsg_len covers it", () => {
  const control = encodeRights(linux, [3]);
  viewOf(control).setInt32(20, 4, true);
  assert.deepEqual(decodeRights(linux, control), [3]);
  assert.deepEqual(decodeRights(linux, withLength(linux, control, 24)), [3, 4]);
});

test("decodeRights gives what is there when cmsg_len claims more than the buffer holds", () => {
  const control = encodeRights(linux, [3, 4]);
  for (const claimed of [25, 4096, 0xffffffff, 0xffffffffffffffffn]) {
    assert.deepEqual(decodeRights(linux, withLength(linux, control, claimed)), [3, 4]);
  }
});

test("decodeControl ends at a cmsg_len that is shorter than a header", () => {
  const control = concat(encodeRights(linux, [3]), encodeRights(linux, [4]));
  for (const claimed of [0, 1, 15]) assert.deepEqual(decodeControl(linux, withLength(linux, control, claimed)), []);
});

test("decodeControl gives the level, the type and the data of every message", () => {
  const control = concat(controlMessage(linux, 1, scmCredentials, Uint8Array.of(1, 2, 3)), encodeRights(linux, [5]));
  const found = decodeControl(linux, control).map(({ level, type, data }) => ({ level, type, data: [...data] }));
  assert.deepEqual(found, [{ level: 1, type: 2, data: [1, 2, 3] }, { level: 1, type: 1, data: [5, 0, 0, 0] }]);
});

/** Whole ints that a buffer of that size has room for, in one message. */
function wholeInts(abi: Abi, size: number): number {
  return Math.max(0, Math.floor((size - cmsgLen(abi, 0)) / 4));
}

function survivesTruncation(abi: Abi): void {
  const descriptors = [3, 4, 5];
  const control = encodeRights(abi, descriptors);
  for (let size = 0; size <= control.length; size++) {
    const found = decodeRights(abi, control.slice(0, size));
    assert.deepEqual(found, descriptors.slice(0, wholeInts(abi, size)), `cut at ${size}`);
  }
}

test("decodeRights gives the whole ints of a buffer truncated at any byte on Linux", () => survivesTruncation(linux));

test("decodeRights gives the whole ints of a buffer truncated at any byte on macOS", () => survivesTruncation(darwin));

test("decodeRights keeps the first of two messages when the second is truncated at any byte", () => {
  const first = encodeRights(linux, [3]);
  const second = encodeRights(linux, [4, 5]);
  for (let size = 0; size <= second.length; size++) {
    const expected = [3, ...[4, 5].slice(0, wholeInts(linux, size))];
    assert.deepEqual(decodeRights(linux, concat(first, second.slice(0, size))), expected, `cut at ${size}`);
  }
});

test("rightsMessage has the descriptors as C's ints", () => {
  const { level, type, data } = rightsMessage(darwin, [3, 260]);
  assert.deepEqual([level, type, [...data]], [0xffff, 1, [3, 0, 0, 0, 4, 1, 0, 0]]);
});

test("rightsMessage refuses what encodeRights refuses", () => {
  for (const wrong of [[-1], [3, 2 ** 31], [NaN], [0.5], new Array<number>(254).fill(0)]) {
    assert.throws(() => rightsMessage(linux, wrong), { name: "RangeError", message: /^Cannot send / });
  }
});

test("credentialsMessage lays struct ucred out as Linux expects it", () => {
  const { level, type, data } = credentialsMessage(linux, { pid: 258, uid: 3, gid: 0xffffffff });
  assert.deepEqual([level, type, [...data]], [1, 2, [2, 1, 0, 0, 3, 0, 0, 0, 255, 255, 255, 255]]);
});

test("credentialsMessage refuses numbers that C's types do not hold", () => {
  for (const wrong of [{ pid: -1 }, { pid: 2 ** 31 }, { uid: -1 }, { uid: 2 ** 32 }, { gid: 0.5 }, { gid: NaN }]) {
    assert.throws(() => credentialsMessage(linux, { ...sender, ...wrong }), {
      name: "RangeError",
      message: /^Cannot send the credentials pid .*: expected a pid up to 2147483647 and ids up to 4294967295/,
    });
  }
});

test("credentialsMessage throws ERR_TAKEOVER_UNSUPPORTED on macOS", () => {
  assert.throws(() => credentialsMessage(darwin, sender), takeoverError("ERR_TAKEOVER_UNSUPPORTED"));
});

test("decodeCredentials gives back what credentialsMessage took, and null for less than a struct ucred", () => {
  const { data } = credentialsMessage(linux, sender);
  assert.deepEqual(decodeCredentials(linux, data), sender);
  for (let size = 0; size < 12; size++) assert.equal(decodeCredentials(linux, data.subarray(0, size)), null);
});

test("decodeLabel ends at a NUL, and needs none", () => {
  const bytes = new TextEncoder().encode("unconfined\0u:r:init");
  assert.deepEqual([bytes, bytes.subarray(0, 10)].map(decodeLabel), ["unconfined", "unconfined"]);
});

test("encodeControl gives no bytes for no messages", () => {
  assert.equal(encodeControl(linux, []).length, 0);
});

test("encodeControl of one message is encodeRights", () => {
  assert.deepEqual(encodeControl(linux, [rightsMessage(linux, [3, 4, 5])]), encodeRights(linux, [3, 4, 5]));
});

test("encodeControl lays messages behind each other, as Linux expects them", () => {
  const messages = [credentialsMessage(linux, { pid: 9, uid: 8, gid: 7 }), rightsMessage(linux, [3])];
  assert.deepEqual([...encodeControl(linux, messages)], [
    ...[28, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0],
    ...[9, 0, 0, 0, 8, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0],
    ...[20, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0],
    ...[3, 0, 0, 0, 0, 0, 0, 0],
  ]);
});

/** The room of several messages is that of each, and holds each whole. */
function sizesAddUp(abi: Abi): void {
  for (const counts of [[0], [1], [2], [253], [0, 0], [1, 2, 3], [253, 253]]) {
    const size = encodeControl(abi, counts.map((count) => rightsMessage(abi, new Array<number>(count).fill(7)))).length;
    const lengths = counts.map((count) => cmsgLen(abi, count * 4));
    const least = lengths.reduce((sum, length) => sum + length, 0);
    assert.ok(size >= least && size < least + counts.length * abi.cmsghdr.align && size % abi.cmsghdr.align === 0);
  }
}

test("encodeControl gives every message its room, and less than an alignment more, on Linux", () => sizesAddUp(linux));

test("encodeControl gives every message its room, and less than an alignment more, on macOS", () => sizesAddUp(darwin));

/** Where the walk finds messages. */
function offsets(abi: Abi, control: Uint8Array): number[] {
  const found: number[] = [];
  for (let at = cmsgFirst(abi, control); at >= 0; at = cmsgNext(abi, control, at)) found.push(at);
  return found;
}

test("cmsgFirst and cmsgNext give where each message begins", () => {
  const messages = (abi: Abi) => [[3], [], [4, 5, 6], [7]].map((descriptors) => rightsMessage(abi, descriptors));
  assert.deepEqual(offsets(linux, encodeControl(linux, messages(linux))), [0, 24, 40, 72]);
  assert.deepEqual(offsets(darwin, encodeControl(darwin, messages(darwin))), [0, 16, 28, 52]);
});

test("cmsgFirst gives -1 where there is no whole header, or one that does not count itself", () => {
  const control = encodeRights(linux, [3]);
  for (let size = 0; size < 16; size++) assert.equal(cmsgFirst(linux, control.subarray(0, size)), -1);
  for (const claimed of [0, 1, 15]) assert.equal(cmsgFirst(linux, withLength(linux, control, claimed)), -1);
  assert.equal(cmsgFirst(linux, withLength(linux, control, 16)), 0);
});

test("cmsgNext gives -1 behind a cmsg_len that reaches the end of the buffer, or beyond", () => {
  const control = concat(encodeRights(linux, [3]), encodeRights(linux, [4]));
  for (const claimed of [33, 48, 49, 2 ** 31, 2 ** 32, 2 ** 40, 2n ** 53n + 1n, 2n ** 64n - 1n]) {
    assert.equal(cmsgNext(linux, withLength(linux, control, claimed), 0), -1, String(claimed));
  }
});

test("cmsgNext gives -1 behind any cmsg_len that macOS's 32 bits can claim", () => {
  const control = concat(encodeRights(darwin, [3]), encodeRights(darwin, [4]));
  for (const claimed of [21, 32, 33, 2 ** 31, 2 ** 32 - 1]) {
    assert.equal(cmsgNext(darwin, withLength(darwin, control, claimed), 0), -1, String(claimed));
  }
});

test("decodeControl goes forward at every cmsg_len, in a buffer as long as SCM_MAX_FD needs", () => {
  const control = encodeRights(linux, new Array<number>(253).fill(0));
  for (let claimed = 0; claimed <= control.length + 8; claimed++) {
    const found = offsets(linux, withLength(linux, control, claimed));
    assert.deepEqual(found, claimed < 16 ? [] : [0], String(claimed));
  }
  const headers = encodeControl(linux, new Array<ControlMessage>(64).fill(rightsMessage(linux, [])));
  assert.equal(offsets(linux, headers).length, 64);
});

test("decodeControl reads nothing outside of the part of memory that it was given", () => {
  const control = concat(encodeRights(linux, [3]), encodeRights(linux, [4]), encodeRights(linux, [5]));
  const middle = control.subarray(24, 48);
  for (const claimed of [20, 24, 25, 48, 2 ** 40]) {
    const messages = decodeControl(linux, withLengthIn(middle, claimed));
    assert.deepEqual(messages.map(({ data }) => data[0]), [4]);
    assert.ok(messages.every(({ data }) => data.length <= 8), String(claimed));
  }
});

/** Another `cmsg_len` in place, so that what lies around stays around. */
function withLengthIn(control: Uint8Array, length: number): Uint8Array {
  writeField(viewOf(control), linux.cmsghdr.len, length);
  return control;
}

test("decodeAncillary finds nothing in no control data", () => {
  assert.deepEqual(decodeAncillary(linux, new Uint8Array(0)), nothing);
});

test("decodeAncillary gives back what encodeControl took, credentials before the rights", () => {
  const control = encodeControl(linux, [credentialsMessage(linux, sender), rightsMessage(linux, [3, 4])]);
  assert.deepEqual(decodeAncillary(linux, control), { ...nothing, descriptors: [3, 4], credentials: sender });
});

test("decodeAncillary gives back what encodeControl took, credentials behind the rights", () => {
  const control = encodeControl(linux, [rightsMessage(linux, [3, 4, 5]), credentialsMessage(linux, sender)]);
  assert.deepEqual(decodeAncillary(linux, control), { ...nothing, descriptors: [3, 4, 5], credentials: sender });
});

test("decodeAncillary collects the descriptors of all messages, whatever lies between", () => {
  const { SOL_SOCKET, SCM_RIGHTS } = linux.constants;
  const control = encodeControl(linux, [
    rightsMessage(linux, [3]),
    { level: SOL_SOCKET, type: 4_711, data: new Uint8Array(5).fill(9) },
    rightsMessage(linux, []),
    { level: SOL_SOCKET + 1, type: SCM_RIGHTS, data: new Uint8Array(8).fill(9) },
    { level: SOL_SOCKET + 1, type: scmPidfd, data: new Uint8Array(4) },
    rightsMessage(linux, [4, 5]),
  ]);
  assert.deepEqual(decodeAncillary(linux, control), { ...nothing, descriptors: [3, 4, 5] });
});

test("decodeAncillary gives the first whole credentials, pidfd and label", () => {
  const control = encodeControl(linux, [
    { ...credentialsMessage(linux, sender), data: new Uint8Array(11) },
    credentialsMessage(linux, sender),
    credentialsMessage(linux, { pid: 1, uid: 1, gid: 1 }),
    pidfdMessage(-1),
    pidfdMessage(8),
    labelMessage("first"),
    labelMessage("second"),
  ]);
  assert.deepEqual(decodeAncillary(linux, control), {
    descriptors: [],
    credentials: sender,
    pidfd: 8,
    securityContext: "first",
  });
});

test("decodeAncillary gives null for the pidfd that the kernel could not make", () => {
  for (const pidfd of [-1, -22, -2_147_483_648]) {
    assert.equal(decodeAncillary(linux, encodeControl(linux, [pidfdMessage(pidfd)])).pidfd, null);
  }
  assert.equal(decodeAncillary(linux, encodeControl(linux, [pidfdMessage(0)])).pidfd, 0);
});

test("decodeAncillary gives a label with a NUL and without", () => {
  for (const label of ["system_u:system_r:init_t:s0\0", "system_u:system_r:init_t:s0"]) {
    const { securityContext } = decodeAncillary(linux, encodeControl(linux, [labelMessage(label)]));
    assert.equal(securityContext, "system_u:system_r:init_t:s0");
  }
});

test("decodeAncillary takes no other message of macOS for one of Linux", () => {
  const { SOL_SOCKET } = darwin.constants;
  const others = [2, 3, 4].map((type) => ({ level: SOL_SOCKET, type, data: new Uint8Array(84).fill(1) }));
  const control = encodeControl(darwin, [...others, rightsMessage(darwin, [3])]);
  assert.deepEqual(decodeAncillary(darwin, control), { ...nothing, descriptors: [3] });
});

test("decodeAncillary takes more descriptors than a call has room for arguments", () => {
  const data = new Uint8Array(4 * 300_000).fill(1);
  const { descriptors } = decodeAncillary(linux, encodeControl(linux, [{ level: 1, type: 1, data }]));
  assert.equal(descriptors.length, 300_000);
});

test("decodeAncillary gives what is whole of one array cut at every byte of cmsg_len", () => {
  const control = encodeRights(linux, [3, 4, 5]);
  for (let claimed = 16; claimed <= 28; claimed++) {
    const { descriptors } = decodeAncillary(linux, withLength(linux, control, claimed));
    assert.deepEqual(descriptors, [3, 4, 5].slice(0, Math.floor((claimed - 16) / 4)), String(claimed));
  }
});

test("decodeAncillary gives what is whole of five messages truncated at any byte", () => {
  const messages = [
    credentialsMessage(linux, sender),
    rightsMessage(linux, [3, 4, 5]),
    pidfdMessage(6),
    labelMessage("label"),
    rightsMessage(linux, [7, 8]),
  ];
  const control = encodeControl(linux, messages);
  assert.equal(control.length, 32 + 32 + 24 + 24 + 24);
  for (let size = 0; size <= control.length; size++) {
    const first = [3, 4, 5].slice(0, wholeInts(linux, size - 32));
    const last = [7, 8].slice(0, wholeInts(linux, size - 112));
    assert.deepEqual(decodeAncillary(linux, control.slice(0, size)), {
      descriptors: [...first, ...last],
      credentials: size >= 16 + 12 ? sender : null,
      pidfd: size >= 64 + 16 + 4 ? 6 : null,
      securityContext: size >= 88 + 16 ? "label".slice(0, size - 88 - 16) : null,
    }, `cut at ${size}`);
  }
});

test("decodeAncillary gives the descriptors before credentials that are cut short", () => {
  const control = encodeControl(linux, [rightsMessage(linux, [3]), credentialsMessage(linux, sender)]);
  for (let size = 24; size < 24 + 28; size++) {
    const found = decodeAncillary(linux, control.slice(0, size));
    assert.deepEqual(found, { ...nothing, descriptors: [3] }, `cut at ${size}`);
  }
});
