import assert from "node:assert/strict";
import { once } from "node:events";
import { existsSync } from "node:fs";
import net from "node:net";
import { receiveMessage } from "../../src/channels/message.ts";
import { peerUser } from "../../src/sockets/identity.ts";
import { bindListener, connectPath } from "../../src/sockets/listener.ts";
import type { ControlListener, ControlStream } from "../../src/runtime.ts";
import type { UnixAddress } from "../../src/c/sockaddr.ts";
import { cookieOf, isListening } from "../../src/sockets/socket.ts";
import { TemporaryFolder } from "../unit/children.ts";
import { runtime, sleep, socketPair, test, until } from "./support.ts";

/** A control stream that is read to its end. */
class Reader {
  readonly stream: ControlStream;
  text = "";
  size = 0;
  closedCount = 0;
  readonly #decoder = new TextDecoder();

  constructor(stream: ControlStream) {
    this.stream = stream;
  }

  /** Starts reading. */
  start(): this {
    this.stream.start({
      data: (bytes) => {
        this.size += bytes.length;
        this.text += this.#decoder.decode(bytes, { stream: true });
      },
      close: () => void this.closedCount++,
    });
    return this;
  }

  write(text: string): void {
    this.stream.write(new TextEncoder().encode(text));
  }

  async hears(text: string): Promise<void> {
    await until(() => this.text === text, () => `${JSON.stringify(text)}, got ${JSON.stringify(this.text)}`);
  }

  /** Its close is reported, and reported once. */
  async closes(): Promise<void> {
    await until(() => this.closedCount > 0, "the close");
    await sleep(20);
    assert.equal(this.closedCount, 1);
  }
}

/** Two streams of the runtime that are connected. */
function adoptedPair(): [Reader, Reader] {
  const [left, right] = socketPair().map((end) => new Reader(runtime.adoptStream(end.take())));
  return [left!, right!];
}

test("adoptStream carries bytes both ways", async () => {
  const [left, right] = adoptedPair();
  left.start().write("to the right");
  right.start().write("to the left");
  await right.hears("to the right");
  await left.hears("to the left");
  left.stream.destroy();
  await right.closes();
});

test("adoptStream keeps the descriptor that it was given, which stays the runtime's", async () => {
  const [end, other] = socketPair();
  const cookie = cookieOf(runtime, end.number);
  const left = new Reader(runtime.adoptStream(end.take())).start();
  const right = new Reader(runtime.adoptStream(other.take())).start();
  assert.equal(cookieOf(runtime, left.stream.descriptor), cookie);
  left.stream.destroy();
  await left.closes();
  await right.closes();
});

test("adoptStream gives bytes that came before it was started", async () => {
  const [left, right] = adoptedPair();
  left.start().write("early");
  await sleep(20);
  await right.start().hears("early");
  left.stream.destroy();
  await right.closes();
});

test("adoptStream gives 4 MB in order", async () => {
  const [left, right] = adoptedPair();
  const text = Array.from({ length: 400_000 }, (_, index) => String(index).padStart(10, "0")).join("");
  left.start().write(text);
  right.start();
  await until(() => right.size === text.length, () => `${text.length} bytes, got ${right.size}`);
  assert.equal(right.text === text, true);
  left.stream.destroy();
  await right.closes();
});

test("ControlStream.write keeps the order of what was written", async () => {
  const [left, right] = adoptedPair();
  right.start();
  left.start().write("first");
  left.write("second");
  left.write("third");
  await right.hears("firstsecondthird");
  left.stream.destroy();
  await right.closes();
});

test("ControlStream.end closes once everything written has gone out", async () => {
  const [left, right] = adoptedPair();
  const text = "x".repeat(1024 * 1024);
  left.start().write(text);
  left.stream.end();
  right.start();
  await right.closes();
  await left.closes();
  assert.equal(right.size, text.length);
});

test("ControlStream.end closes though the other side keeps its own end open", async () => {
  const [left, right] = socketPair();
  using _right = right;
  const reader = new Reader(runtime.adoptStream(left.take())).start();
  reader.write("last");
  reader.stream.end();
  await reader.closes();
  const received = receiveMessage(runtime, right.number, 16);
  assert.equal(typeof received === "number" ? received : new TextDecoder().decode(received.bytes), "last");
});

test("ControlStream.end delivers its last words to a side that goes on writing", async () => {
  const [left, right] = adoptedPair();
  left.start();
  right.start().write("x".repeat(1024 * 1024));
  left.write("last");
  left.stream.end();
  await right.closes();
  await left.closes();
  assert.equal(right.text, "last");
});

test("ControlStream.destroy closes at once, and both sides hear of it once", async () => {
  const [left, right] = adoptedPair();
  left.start();
  right.start();
  left.stream.destroy();
  await left.closes();
  await right.closes();
});

test("ControlStream.write after the close is dropped", async () => {
  const [left, right] = adoptedPair();
  left.start();
  right.start();
  left.stream.destroy();
  left.write("too late");
  await right.closes();
  right.write("later still");
  right.stream.end();
  right.stream.destroy();
  await sleep(20);
  assert.deepEqual([left.text, right.text], ["", ""]);
});

test("ControlStream.write after the end is dropped", async () => {
  const [left, right] = adoptedPair();
  left.start().write("last");
  left.stream.end();
  left.write("too late");
  right.start();
  await right.closes();
  assert.equal(right.text, "last");
});

test("ControlStream.start reports the close of a stream whose other side has gone before", async () => {
  const [left, right] = socketPair();
  const stream = runtime.adoptStream(left.take());
  right[Symbol.dispose]();
  await sleep(20);
  await new Reader(stream).start().closes();
});

test("ControlStream.start reports the close of a stream that was destroyed before", async () => {
  const [left, right] = adoptedPair();
  left.stream.destroy();
  await left.start().closes();
  await right.start().closes();
});

/** A listener of the runtime on a path, and the streams that it took. */
async function adoptedListener(
  address: UnixAddress,
): Promise<{ listener: ControlListener; accepted: Reader[]; cookie: string }> {
  const socket = bindListener(runtime, address, address);
  const cookie = cookieOf(runtime, socket.number);
  const accepted: Reader[] = [];
  const accept = (stream: ControlStream) => void accepted.push(new Reader(stream).start());
  return { listener: await runtime.adoptListener(socket.take(), accept), accepted, cookie };
}

function connect({ path }: UnixAddress): Reader {
  return new Reader(runtime.adoptStream(connectPath(runtime, path)!.take())).start();
}

test("adoptListener accepts connections, and carries bytes both ways", async () => {
  using folder = new TemporaryFolder();
  const address = { family: "unix", path: folder.file("x") } as const;
  const { listener, accepted } = await adoptedListener(address);
  const client = connect(address);
  client.write("hello");
  await until(() => accepted.length === 1, "a connection");
  await accepted[0]!.hears("hello");
  accepted[0]!.write("welcome");
  await client.hears("welcome");
  client.stream.end();
  await accepted[0]!.closes();
  await client.closes();
  listener.close();
});

test("adoptListener accepts what waited in the queue before", async () => {
  using folder = new TemporaryFolder();
  const address = { family: "unix", path: folder.file("x") } as const;
  const socket = bindListener(runtime, address, address);
  const client = connect(address);
  client.write("early");
  const accepted: Reader[] = [];
  const listener = await runtime.adoptListener(socket.take(), (stream) => accepted.push(new Reader(stream).start()));
  await until(() => accepted.length === 1, "a connection");
  await accepted[0]!.hears("early");
  accepted[0]!.stream.destroy();
  await client.closes();
  listener.close();
});

test("adoptListener keeps the socket that it was given, and says its descriptor", async () => {
  using folder = new TemporaryFolder();
  const address = { family: "unix", path: folder.file("x") } as const;
  const { listener, cookie } = await adoptedListener(address);
  assert.equal(cookieOf(runtime, listener.descriptor), cookie);
  assert.equal(isListening(runtime, listener.descriptor), true);
  listener.close();
});

test("adoptListener gives streams that can be asked for their user", async () => {
  using folder = new TemporaryFolder();
  const address = { family: "unix", path: folder.file("x") } as const;
  const { listener, accepted } = await adoptedListener(address);
  const client = connect(address);
  await until(() => accepted.length === 1, "a connection");
  assert.equal(peerUser(runtime, accepted[0]!.stream.descriptor), runtime.libc.geteuid());
  client.stream.destroy();
  await accepted[0]!.closes();
  listener.close();
});

test("ControlStream closes when the other side has ended, though bytes for it have not gone out", async () => {
  using folder = new TemporaryFolder();
  const server = net.createServer({ allowHalfOpen: true, pauseOnConnect: true }).listen(folder.file("x"));
  await once(server, "listening");
  const accepted = once(server, "connection");
  const reader = connect({ family: "unix", path: folder.file("x") });
  const [other] = await accepted as [net.Socket];
  reader.write("x".repeat(4 * 1024 * 1024));
  other.on("error", () => {}).end();
  await reader.closes();
  other.destroy();
  server.close();
});

test("ControlListener.close leaves the path, on which nobody answers any more", async () => {
  using folder = new TemporaryFolder();
  const address = { family: "unix", path: folder.file("x") } as const;
  const { listener } = await adoptedListener(address);
  listener.close();
  await until(() => connectPath(runtime, address.path) === null, "the listener to be closed");
  assert.equal(existsSync(address.path), true);
});

test("ControlListener.close leaves the connections that were accepted", async () => {
  using folder = new TemporaryFolder();
  const address = { family: "unix", path: folder.file("x") } as const;
  const { listener, accepted } = await adoptedListener(address);
  const client = connect(address);
  await until(() => accepted.length === 1, "a connection");
  listener.close();
  client.write("still here");
  await accepted[0]!.hears("still here");
  client.stream.destroy();
  await accepted[0]!.closes();
});
