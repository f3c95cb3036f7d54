import assert from "node:assert/strict";
import { allocate } from "../../src/c/bytes.ts";
import { OwnedDescriptor } from "../../src/sockets/descriptors.ts";
import { bindListener } from "../../src/sockets/listener.ts";
import { unreadSize, unsentSize } from "../../src/sockets/queues.ts";
import { connectSocket, localAddress, openPair, openSocket } from "../../src/sockets/socket.ts";
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
