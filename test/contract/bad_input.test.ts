/** Everything that can be wrong: an error code of its own, a sentence that helps, and a channel that goes on. */

import assert from "node:assert/strict";
import { existsSync, symlinkSync, writeFileSync } from "node:fs";
import net from "node:net";
import type { TakeoverErrorCode } from "../../src/errors.ts";
import { OwnedDescriptor } from "../../src/sockets/descriptors.ts";
import type { Descriptor } from "../../src/sockets/descriptors.ts";
import {
  bindChannel,
  connectChannel,
  type FdListener,
  listenChannel,
  wrapChannel,
} from "../../src/channels/fd_listener.ts";
import { openSocket } from "../../src/sockets/socket.ts";
import { TemporaryFolder } from "../unit/children.ts";
import { asRoot, foundByOrdinaryUser } from "./fd_children.ts";
import { pairOf, received, receiveRaw, sendRaw } from "./raw.ts";
import { openNull, runtime, test } from "./support.ts";

const { libc } = runtime;
const word = new TextEncoder().encode("word");
const EAGAIN = 11;

/** What assert compares an error with: its code, and words of its sentence in their order. */
function refusal(
  code: TakeoverErrorCode,
  ...words: readonly string[]
): { name: string; code: string; message: RegExp } {
  const escaped = words.map((each) => each.replace(/[\\^$.*+?()[\]{}|]/g, "\\$&"));
  return { name: "TakeoverError", code, message: new RegExp(`^Cannot .*${escaped.join(".*")}`, "s") };
}

/** Listening, connecting and binding at a path that cannot be, each with its error. */
async function refusesPath(path: string, error: object, connectError = error): Promise<void> {
  for (const type of ["stream", "seqpacket"] as const) {
    assert.throws(() => listenChannel(runtime, path, { type }), error);
    assert.throws(() => listenChannel(runtime, path, { type, replaceStale: true }), error);
    await assert.rejects(connectChannel(runtime, path, { type }), connectError);
  }
  assert.throws(() => bindChannel(runtime, path), error);
  await assert.rejects(connectChannel(runtime, path, { type: "dgram" }), connectError);
}

/** A listener that has refused something still accepts, and what it accepts passes descriptors. */
async function goesOn(listener: FdListener, path: string): Promise<void> {
  using file = openNull();
  using client = await connectChannel(runtime, path);
  using channel = await listener.accept({ timeoutMs: 10_000 });
  await client.send(word, [file]);
  using message = await received(channel, { minFds: 1, maxFds: 1 });
  assert.deepEqual([[...message.bytes], message.fds.length], [[...word], 1]);
}

test("A path that is a folder is ERR_TAKEOVER_PATH_KIND", async () => {
  using folder = new TemporaryFolder();
  await refusesPath(
    folder.path,
    refusal("ERR_TAKEOVER_PATH_KIND", folder.path, "expected a socket, it is a folder", "name a path in it"),
  );
});

test("A path that is a file is ERR_TAKEOVER_PATH_KIND, and the file stays", async () => {
  using folder = new TemporaryFolder();
  writeFileSync(folder.file("file"), "content");
  await refusesPath(folder.file("file"), {
    ...refusal("ERR_TAKEOVER_PATH_KIND"),
    message: /^Cannot .*file": expected a socket, it is a file; (?!name a path in it)/,
  });
  assert.ok(existsSync(folder.file("file")));
});

test("A path that links to a folder is ERR_TAKEOVER_PATH_KIND", async () => {
  using folder = new TemporaryFolder();
  symlinkSync(folder.path, folder.file("link"));
  await refusesPath(folder.file("link"), refusal("ERR_TAKEOVER_PATH_KIND", "it is a folder"));
});

test("A path at which nobody listens any more is ERR_TAKEOVER_PATH_STALE, and names the way out", async () => {
  using folder = new TemporaryFolder();
  const path = folder.file("stale");
  bindChannel(runtime, path).close();
  const stale = refusal("ERR_TAKEOVER_PATH_STALE", path, "nobody listens there any more", "replaceStale");
  assert.throws(() => listenChannel(runtime, path), stale);
  assert.throws(() => bindChannel(runtime, path), stale);
  await assert.rejects(connectChannel(runtime, path), stale);
  await assert.rejects(connectChannel(runtime, path, { type: "dgram" }), stale);
  using listener = listenChannel(runtime, path, { replaceStale: true });
  await goesOn(listener, path);
});

test("A path that is missing is ENOENT for connectChannel, and so is a missing folder for all", async () => {
  using folder = new TemporaryFolder();
  const missing = (path: string) => ({ name: "SystemError", code: "ENOENT", message: new RegExp(`ENOENT ${path}$`) });
  await assert.rejects(connectChannel(runtime, folder.file("x")), missing(folder.file("x")));
  await refusesPath(folder.file("x/y"), missing(folder.file("x/y")));
});

test("A path of 108 bytes is ERR_TAKEOVER_PATH, and one of 107 is fine", async () => {
  using folder = new TemporaryFolder();
  const path = folder.file("").padEnd(108, "x");
  await refusesPath(
    path,
    refusal("ERR_TAKEOVER_PATH", path, "it has 108 bytes, expected at most 107; choose a shorter folder"),
  );
  using listener = listenChannel(runtime, path.slice(0, 107));
  await goesOn(listener, path.slice(0, 107));
});

test("A path with a NUL in it is ERR_TAKEOVER_PATH", () =>
  refusesPath("/tmp/a\0b", refusal("ERR_TAKEOVER_PATH", "expected no NUL in it")));

test("A path that this user may not use is ERR_TAKEOVER_PATH_ACCESS", asRoot, async () => {
  const { connect, listen } = await foundByOrdinaryUser();
  const words = /user 61234 may not; connecting needs write permission for the socket, making one for its folder$/;
  for (const [outcome, verb] of [[connect!, "connect to"], [listen!, "bind"]] as const) {
    assert.deepEqual([outcome.code, outcome.cause], ["ERR_TAKEOVER_PATH_ACCESS", "EACCES"]);
    assert.match(outcome.message!, new RegExp(`^Cannot ${verb} "/tmp/`));
    assert.match(outcome.message!, words);
  }
});

test("A socket of another type at a path is ERR_TAKEOVER_PATH_KIND, and its listener goes on", async () => {
  using folder = new TemporaryFolder();
  using listener = listenChannel(runtime, folder.file("x"));
  const other = refusal("ERR_TAKEOVER_PATH_KIND", "the socket there is of another type");
  await assert.rejects(connectChannel(runtime, folder.file("x"), { type: "seqpacket" }), other);
  await assert.rejects(connectChannel(runtime, folder.file("x"), { type: "dgram" }), other);
  await goesOn(listener, folder.file("x"));
});

test("A path that somebody listens on is EADDRINUSE, and its listener goes on", async () => {
  using folder = new TemporaryFolder();
  using listener = listenChannel(runtime, folder.file("x"), { type: "stream" });
  assert.throws(() => listenChannel(runtime, folder.file("x"), { type: "seqpacket", replaceStale: true }), {
    name: "SystemError",
    code: "EADDRINUSE",
  });
  await goesOn(listener, folder.file("x"));
});

test("listenChannel that fails after it bound leaves no path", () => {
  using folder = new TemporaryFolder();
  assert.throws(() => listenChannel(runtime, folder.file("x"), { type: "dgram" as "stream" }));
  assert.equal(existsSync(folder.file("x")), false);
});

/** Every descriptor that is none: sending it and wrapping it. */
async function refusesDescriptor(descriptor: Descriptor, send: object, wrap: object): Promise<void> {
  using pair = pairOf();
  using file = openNull();
  await assert.rejects(pair.left.send(word, [file, descriptor]), send);
  assert.equal(receiveRaw(pair.right.descriptor, 8, 64).size, -EAGAIN, "nothing was sent");
  assert.throws(() => wrapChannel(runtime, descriptor), wrap);
  await pair.left.send(word, [file]);
  using message = await received(pair.right);
  assert.equal(message.fds.length, 1);
}

test("A number that cannot be a descriptor is ERR_TAKEOVER_RANGE", async () => {
  for (const number of [-1, 1.5, 2 ** 31, NaN, Infinity]) {
    const range = refusal(
      "ERR_TAKEOVER_RANGE",
      String(number),
      "expected a descriptor, an integer from 0 to 2147483647",
    );
    await refusesDescriptor(number, range, range);
  }
});

test("A descriptor that is closed is ERR_TAKEOVER_CLOSED, and is named", async () => {
  const closed = refusal("ERR_TAKEOVER_CLOSED", "1000000 is not open");
  await refusesDescriptor(1_000_000, closed, closed);
});

test("An OwnedDescriptor that was taken or closed is ERR_TAKEOVER_CLOSED", async () => {
  const file = openNull();
  file[Symbol.dispose]();
  const closed = refusal("ERR_TAKEOVER_CLOSED", "it was taken or closed");
  await refusesDescriptor(file, closed, closed);
});

test("wrapChannel throws ERR_TAKEOVER_NOT_SOCKET for what is no socket, which stays the caller's", () => {
  using file = openNull();
  assert.throws(
    () => wrapChannel(runtime, file),
    refusal("ERR_TAKEOVER_NOT_SOCKET", String(file.number), "expected a Unix socket"),
  );
  assert.ok(libc.fcntl(file.number, 1, 0) >= 0);
});

test("wrapChannel throws ERR_TAKEOVER_DESCRIPTOR for a socket of another family, which stays the caller's", () => {
  for (const family of ["inet", "inet6"] as const) {
    using socket = new OwnedDescriptor(runtime, openSocket(runtime, family, "stream"));
    const refused = refusal(
      "ERR_TAKEOVER_DESCRIPTOR",
      String(socket.number),
      "expected a Unix socket that does not listen",
    );
    assert.throws(() => wrapChannel(runtime, socket), refused);
    assert.ok(libc.fcntl(socket.number, 1, 0) >= 0);
  }
});

test("wrapChannel throws ERR_TAKEOVER_DESCRIPTOR for a Unix socket that listens, which goes on", async () => {
  using folder = new TemporaryFolder();
  using listener = listenChannel(runtime, folder.file("x"));
  assert.throws(
    () => wrapChannel(runtime, listener.descriptor),
    refusal("ERR_TAKEOVER_DESCRIPTOR", "that does not listen"),
  );
  await goesOn(listener, folder.file("x"));
});

test("FdChannel.send throws ERR_TAKEOVER_TOO_MANY for 254 descriptors in a packet, and sends nothing", async () => {
  for (const type of ["seqpacket", "dgram"] as const) {
    using pair = pairOf(type);
    using file = openNull();
    await assert.rejects(
      pair.left.send(word, new Array(254).fill(file)),
      refusal("ERR_TAKEOVER_TOO_MANY", `254 descriptors in one ${type} message: expected at most 253`, "use a stream"),
    );
    assert.equal(receiveRaw(pair.right.descriptor, 8, 64).size, -EAGAIN);
    await pair.left.send(word, new Array(253).fill(file));
    using message = await received(pair.right);
    assert.equal(message.fds.length, 253);
  }
});

test("FdChannel.send throws ERR_TAKEOVER_EMPTY for too few bytes on a stream, and sends nothing", async () => {
  using pair = pairOf();
  using file = openNull();
  for (const [count, size, needed] of [[1, 0, 1], [254, 1, 2], [1_000, 3, 4]] as const) {
    await assert.rejects(
      pair.left.send(new Uint8Array(size), new Array(count).fill(file)),
      refusal(
        "ERR_TAKEOVER_EMPTY",
        `${count} descriptors with ${size} bytes`,
        `needs at least ${needed}, one for every 253`,
      ),
    );
  }
  const credentials = { pid: libc.getpid(), uid: libc.geteuid(), gid: libc.getegid() };
  await assert.rejects(
    pair.left.send(new Uint8Array(0), [], { credentials }),
    refusal("ERR_TAKEOVER_EMPTY", "credentials"),
  );
  assert.equal(receiveRaw(pair.right.descriptor, 8, 64).size, -EAGAIN);
});

test(
  "FdChannel.send throws EPERM for the credentials of another user as an ordinary user, who may send his own",
  asRoot,
  async () => {
    const { foreignCredentials, ownCredentials } = await foundByOrdinaryUser();
    assert.deepEqual([foreignCredentials!.name, foreignCredentials!.code], ["SystemError", "EPERM"]);
    assert.deepEqual(ownCredentials, { code: "sent" });
  },
);

test("FdChannel passes both of its own ends, and closes what came", async () => {
  using pair = pairOf();
  await pair.left.send(word, [pair.left.descriptor, pair.right.descriptor]);
  using message = await received(pair.right);
  assert.equal(message.fds.length, 2);
});

test("FdChannel.receive throws ERR_TAKEOVER_MISSING for a message without descriptors, and goes on", async () => {
  using pair = pairOf();
  using file = openNull();
  assert.equal(sendRaw(pair.left.descriptor, word), "sent 4");
  await assert.rejects(pair.right.receive({ minFds: 1 }), {
    ...refusal("ERR_TAKEOVER_MISSING"),
    message: /^Cannot take a message with 0 descriptors: expected at least 1;/,
  });
  await pair.left.send(word, [file]);
  using next = await received(pair.right, { minFds: 1 });
  assert.equal(next.fds.length, 1);
});

test("FdChannel.receive throws ERR_TAKEOVER_SURPLUS for too many descriptors, closes them, and goes on", async () => {
  using pair = pairOf();
  using file = openNull();
  for (const maxFds of [0, 1, 252]) {
    await pair.left.send(word, new Array(253).fill(file));
    await assert.rejects(pair.right.receive({ maxFds }), {
      ...refusal("ERR_TAKEOVER_SURPLUS"),
      message: new RegExp(`^Cannot take a message with 253 descriptors: expected at most ${maxFds}; they were closed`),
    });
  }
  await pair.left.send(word, [file]);
  using next = await received(pair.right, { maxFds: 1 });
  assert.equal(next.fds.length, 1);
});

test("FdChannel.receive takes an epoll descriptor for what it is: something to refuse or to close", async () => {
  using pair = pairOf();
  using epoll = new OwnedDescriptor(runtime, libc.epoll_create1(0o2000000));
  await pair.left.send(word, [epoll]);
  const message = await received(pair.right);
  assert.throws(() => wrapChannel(runtime, message.fds[0]!), refusal("ERR_TAKEOVER_NOT_SOCKET"));
  message[Symbol.dispose]();
  assert.ok(epoll.number >= 0);
});

test("FdChannel.receive throws ERR_TAKEOVER_RANGE for a size that cannot be, and takes nothing", async () => {
  using pair = pairOf();
  await pair.left.send(word);
  for (const maxBytes of [0, -1, 1.5, NaN, 262_145]) {
    await assert.rejects(
      pair.right.receive({ maxBytes }),
      refusal("ERR_TAKEOVER_RANGE", `${maxBytes} bytes: expected 1 to 262144`),
    );
  }
  assert.deepEqual([...(await received(pair.right)).bytes], [...word]);
});

test("A listener goes on after clients that send garbage, that leave, and that reset", async () => {
  using folder = new TemporaryFolder();
  using listener = listenChannel(runtime, folder.file("x"));
  const clients = [1, 2, 3].map(() => net.connect(folder.file("x")).on("error", () => {}));
  for (const client of clients) client.write("garbage");
  for (const _ of clients) {
    using channel = await listener.accept({ timeoutMs: 10_000 });
    await assert.rejects(channel.receive({ minFds: 1, timeoutMs: 10_000 }), { code: "ERR_TAKEOVER_MISSING" });
  }
  await Promise.all(
    clients.map((client) =>
      new Promise((resolve) => client.destroyed ? resolve(null) : client.once("close", resolve).destroy())
    ),
  );
  (await connectChannel(runtime, folder.file("x"))).close();
  using gone = await listener.accept({ timeoutMs: 10_000 });
  assert.equal(await gone.receive({ timeoutMs: 10_000 }), null);
  await goesOn(listener, folder.file("x"));
});
