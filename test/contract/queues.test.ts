import assert from "node:assert/strict";
import { allocate } from "../../src/c/bytes.ts";
import type { InetAddress } from "../../src/c/sockaddr.ts";
import { OwnedDescriptor } from "../../src/sockets/descriptors.ts";
import { bindListener } from "../../src/sockets/listener.ts";
import { dropCount, mostWaiting, unreadSize, unsentSize } from "../../src/sockets/queues.ts";
import { connectSocket, localAddress, openPair, openSocket } from "../../src/sockets/socket.ts";
import { attachFilter, nothing } from "../../src/steering/attach.ts";
import { answer, assemble } from "../../src/steering/bpf.ts";
import { datagramsAt, openClient, sendTo } from "./steering_ends.ts";
import { runtime, test, until } from "./support.ts";

const { libc } = runtime;

/** What is written is unread at the other end, until it is read. */
async function counts(from: number, to: number): Promise<void> {
  assert.deepEqual([unreadSize(runtime, to), unsentSize(runtime, from)], [0, 0]);
  assert.equal(libc.write(from, allocate(1_000), 1_000), 1_000);
  assert.equal(unreadSize(runtime, to), 1_000);
  assert.equal(libc.read(to, allocate(400), 400), 400);
  assert.equal(unreadSize(runtime, to), 600);
  assert.equal(libc.read(to, allocate(1_000), 1_000), 600);
  await until(() => unsentSize(runtime, from) === 0, "the bytes to arrive");
  assert.equal(unreadSize(runtime, to), 0);
}

test("unreadSize and unsentSize count the bytes of a TCP connection", async () => {
  using listener = bindListener(runtime, { family: "inet", hostname: "127.0.0.1", port: 0 }, { port: 0 });
  using end = new OwnedDescriptor(runtime, openSocket(runtime, "inet", "stream"));
  const address = localAddress(runtime, listener.number)!;
  assert.throws(() => connectSocket(runtime, end.number, address), { code: "EINPROGRESS" });
  let number = -1;
  await until(() => (number = libc.accept4(listener.number, null, null, 0o2004000)) >= 0, "the connection");
  using other = new OwnedDescriptor(runtime, number);
  await counts(end.number, other.number);
});

test("unreadSize and unsentSize count what waits in a Unix connection", async () => {
  const [left, right] = openPair(runtime);
  using _left = left;
  using _right = right;
  await counts(left.number, right.number);
});

test("unreadSize throws the errno of a descriptor that is closed", () => {
  assert.throws(() => unreadSize(runtime, -1), { code: "EBADF", syscall: "ioctl" });
});

test("mostWaiting is no less than the datagrams that wait, however short, and 0 when none does", () => {
  using from = openClient();
  using at = openClient();
  const to = localAddress(runtime, at.number) as InetAddress;
  assert.equal(mostWaiting(runtime, at.number), 0);
  for (let count = 1; count <= 100; count++) {
    sendTo(from, to, ...count % 2 ? [1] : []);
    assert.ok(mostWaiting(runtime, at.number) >= count);
  }
  assert.ok(mostWaiting(runtime, at.number) < 1_000);
  assert.equal(datagramsAt(at).length, 100);
});

test("dropCount counts what a filter drops", () => {
  using from = openClient();
  using at = openClient();
  attachFilter(runtime, at.number, assemble([answer(nothing)]));
  for (let count = 0; count < 3; count++) sendTo(from, localAddress(runtime, at.number) as InetAddress, 1);
  assert.equal(dropCount(runtime, at.number), 3);
  assert.throws(() => dropCount(runtime, -1), { code: "EBADF", syscall: "getsockopt" });
});
