import assert from "node:assert/strict";
import dgram from "node:dgram";
import { once } from "node:events";
import { existsSync } from "node:fs";
import type { InetAddress, SocketAddress } from "../../src/c/sockaddr.ts";
import type { Flows } from "../../src/handover/endpoint_flows.ts";
import type { FlowOptions } from "../../src/handover/flow_options.ts";
import { ForeignSockets } from "../../src/handover/foreign_sockets.ts";
import { randomHex, Succession } from "../../src/handover/successor.ts";
import { Takeover } from "../../src/handover/takeover.ts";
import { defaultLimits } from "../../src/limits.ts";
import { adoptPaused, deadDatagram } from "../../src/natives/datagram.ts";
import { DatagramEndpoint } from "../../src/natives/datagram_endpoint.ts";
import type { Open } from "../../src/natives/graft.ts";
import type { DatagramAddress } from "../../src/sockets/address.ts";
import { bindDatagram, isPathBound } from "../../src/sockets/datagram.ts";
import { disposeAll, OwnedDescriptor } from "../../src/sockets/descriptors.ts";
import { bindListener, connectPath } from "../../src/sockets/listener.ts";
import { unreadSize } from "../../src/sockets/queues.ts";
import { cookieOf, duplicate, identify, integerOption, localAddress, peerAddress, type SocketIdentity } from "../../src/sockets/socket.ts";
import type { ForwardLink } from "../../src/steering/forward_link.ts";
import { runHere, TemporaryFolder } from "../unit/children.ts";
import { bunDatagram, type DatagramEnd, nodeDatagram, rawDatagram, rawRead, rawSend } from "./ends.ts";
import { linkOver } from "./steering_ends.ts";
import { onBun, onDeno, runtime, sleep, takeoverError, test, until } from "./support.ts";

const loopback: SocketAddress = { family: "inet", hostname: "127.0.0.1", port: 0 };
const anyPort = { hostname: "127.0.0.1", port: 0 };
const SO_RCVBUF = 8;
const SO_REUSEPORT = 15;

/** Turns of the event loop in which a socket that is not paused would be read. */
const someTurnsMs = 30;

/** An endpoint in a native socket, what comes to it, and another copy of its socket, as a successor has one. */
interface Bound<T> {
  readonly endpoint: DatagramEndpoint;
  readonly native: T;
  readonly texts: string[];
  readonly identity: SocketIdentity;
  readonly copy: OwnedDescriptor;
}

async function bound<T>(end: DatagramEnd<T>): Promise<Bound<T>> {
  const socket = bindDatagram(runtime, loopback, { port: 0 });
  const identity = identify(runtime, socket.number)!;
  const copy = new OwnedDescriptor(runtime, duplicate(runtime, socket.number));
  const { native, descriptor, registrations } = await adoptPaused(runtime, defaultLimits, "game", socket, identity, end.open as Open<T>);
  const parts = { name: "game", descriptor, identity, registrations, paused: true, isSupervised: false };
  const endpoint = new DatagramEndpoint(runtime, parts, native);
  return { endpoint, native: native as T, texts: end.read(native as T), identity, copy };
}

/** Opened it is paused; then resumed, and so again. */
async function pausesAndResumes<T>(end: DatagramEnd<T>): Promise<void> {
  const { endpoint, native, texts, identity, copy } = await bound(end);
  using _copy = copy;
  using peer = rawDatagram().socket;
  for (const text of ["first", "second"]) {
    rawSend(peer, text, identity.address);
    await sleep(someTurnsMs);
    assert.equal(unreadSize(runtime, copy.number), text.length, "it waits in the socket");
    endpoint.resume();
    endpoint.resume();
    await until(() => texts.at(-1) === text, `${text}, which waited`);
    endpoint.pause();
    endpoint.pause();
  }
  assert.deepEqual(texts, ["first", "second"]);
  end.close(native);
}

/** Paused, it answers from the address that was asked. */
async function sendsWhilePaused<T>(end: DatagramEnd<T>): Promise<void> {
  const { endpoint, native, identity, copy } = await bound(end);
  using _copy = copy;
  const { socket: peer, address } = rawDatagram();
  using _peer = peer;
  rawSend(peer, "question", identity.address);
  end.send(native, "late", address);
  // It is connected, and hears the true address alone.
  let answer = "";
  await until(() => (answer += rawRead(peer)) === "late", "the answer");
  assert.equal(endpoint.alive, true);
  end.close(native);
}

/** Released, it holds a socket that hears nobody, can send, and is closed without an error. */
async function releases<T>(end: DatagramEnd<T>): Promise<void> {
  const { endpoint, native, texts, identity, copy } = await bound(end);
  using _copy = copy;
  const { socket: peer, address } = rawDatagram();
  using _peer = peer;
  endpoint.resume();
  endpoint.release();
  assert.equal(endpoint.alive, false);
  assert.notEqual(cookieOf(runtime, endpoint.descriptor), identity.cookie);
  assert.equal(identify(runtime, endpoint.descriptor)!.type, "dgram");
  rawSend(peer, "next", identity.address);
  end.send(native, "stray", address);
  await sleep(someTurnsMs);
  assert.deepEqual(texts, []);
  assert.equal(unreadSize(runtime, copy.number), 4, "the copy has it");
  end.close(native);
}

test("DatagramEndpoint.pause leaves datagrams in the socket of node:dgram, and resume reads them", () =>
  pausesAndResumes(nodeDatagram));

test("DatagramEndpoint lets node:dgram send while it is paused", () => sendsWhilePaused(nodeDatagram));

test("DatagramEndpoint.release leaves node:dgram to be closed", () => releases(nodeDatagram));

onBun("DatagramEndpoint.pause leaves datagrams in the socket of Bun.udpSocket, and resume reads them", () =>
  pausesAndResumes(bunDatagram));

onBun("DatagramEndpoint lets Bun.udpSocket send while it is paused", () => sendsWhilePaused(bunDatagram));

onBun("DatagramEndpoint.release leaves Bun.udpSocket to be closed", () => releases(bunDatagram));

/** A program that reads on and on, in a Deno that has datagram sockets. */
const denoProgram = (path: string) => {
  const source = (name: string) => JSON.stringify(new URL(`../../src/${name}`, import.meta.url).href);
  return `
    import { openRuntime } from ${JSON.stringify(new URL("../../mod.ts", import.meta.url).href)};
    import { adoptPaused } from ${source("natives/datagram.ts")};
    import { DatagramEndpoint } from ${source("natives/datagram_endpoint.ts")};
    import { bindDatagram } from ${source("sockets/datagram.ts")};
    import { duplicate, identify } from ${source("sockets/socket.ts")};
    const runtime = await openRuntime();
    const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
    async function count(address, options, open, transport) {
      const socket = bindDatagram(runtime, address, options);
      const identity = identify(runtime, socket.number);
      const copy = duplicate(runtime, socket.number);
      const adopted = await adoptPaused(runtime, { openMs: 10_000 }, "game", socket, identity, open);
      const { native, descriptor, registrations } = adopted;
      const parts = { name: "game", descriptor, identity, registrations, paused: true, isSupervised: false };
      const endpoint = new DatagramEndpoint(runtime, parts, native);
      let count = 0;
      const loop = (async () => { for await (const _ of native) if (++count === 3) endpoint.pause(); })();
      const peerAt = transport === "udp" ? { hostname: "127.0.0.1", port: 0 } : { path: address.path + ".peer" };
      const peer = Deno.listenDatagram({ ...peerAt, transport });
      for (let sent = 0; sent < 8; sent++) await peer.send(new Uint8Array(4), native.addr);
      await sleep(30);
      const before = count;
      endpoint.resume();
      while (count < 3) await sleep(1);
      // Five more lie there, of which Deno itself knows.
      await sleep(30);
      const paused = count;
      endpoint.resume();
      while (count < 8) await sleep(1);
      endpoint.pause();
      native.close();
      await loop;
      peer.close();
      runtime.libc.close(copy);
      console.log(before, paused, count);
    }
    const udp = (at) => Deno.listenDatagram({ ...at, transport: "udp" });
    await count({ family: "inet", hostname: "127.0.0.1", port: 0 }, { port: 0 }, udp, "udp");
    const path = ${JSON.stringify(path)};
    await count({ family: "unix", path }, { path }, (at) => Deno.listenDatagram(at), "unixpacket");
  `;
};

onDeno("DatagramEndpoint.pause stops a loop over Deno.listenDatagram at once, and closing ends it", async () => {
  using folder = new TemporaryFolder();
  const { status, stdout, stderr } = await runHere(denoProgram(folder.file("game")), ["--allow-all", "--unstable-net"]);
  const line = "0 3 8";
  assert.deepEqual({ status, stderr, stdout: stdout.trim().split("\n") }, { status: 0, stderr: "", stdout: [line, line] });
});

test("DatagramEndpoint touches nothing once the application has closed its socket", async () => {
  const { endpoint, native, copy } = await bound(nodeDatagram);
  using _copy = copy;
  const closed = once(native, "close");
  native.close();
  await closed;
  await until(() => !endpoint.alive, "the descriptor to be closed");
  using other = new OwnedDescriptor(runtime, duplicate(runtime, rawOf(endpoint.descriptor).number));
  const before = cookieOf(runtime, endpoint.descriptor);
  endpoint.resume();
  endpoint.pause();
  endpoint.release();
  assert.equal(cookieOf(runtime, endpoint.descriptor), before);
  assert.notEqual(other.number, endpoint.descriptor);
  runtime.libc.close(endpoint.descriptor);
});

/** Puts a socket of somebody else under a number. */
function rawOf(number: number): { readonly number: number } {
  const { socket } = rawDatagram();
  if (socket.number === number) return { number: socket.take() };
  runtime.libc.dup3(socket.number, number, 0o2000000);
  socket[Symbol.dispose]();
  return { number };
}

test("deadDatagram hears nobody but itself, of each family", () => {
  for (const family of ["inet", "inet6", "unix"] as const) {
    using dead = deadDatagram(runtime, family);
    assert.deepEqual(peerAddress(runtime, dead.number), localAddress(runtime, dead.number));
  }
});

test("bindDatagram sets what was asked for", () => {
  using plain = bindDatagram(runtime, loopback, { port: 0 });
  using large = bindDatagram(runtime, loopback, { port: 0, receiveBufferSize: 150_000, reusePort: true });
  assert.equal(integerOption(runtime, large.number, SO_RCVBUF), 300_000);
  assert.deepEqual([plain, large].map(({ number }) => integerOption(runtime, number, SO_REUSEPORT)), [0, 1]);
  const address = localAddress(runtime, plain.number)!;
  assert.throws(() => bindDatagram(runtime, address, { port: 0 }), { code: "EADDRINUSE" });
});

test("isPathBound tells a path that is bound, by whatever type, from a stale one", () => {
  using folder = new TemporaryFolder();
  const [datagram, stream, stale] = ["datagram", "stream", "stale"].map((name) => folder.file(name)) as [string, string, string];
  using _datagram = bindDatagram(runtime, { family: "unix", path: datagram }, { path: datagram, mode: 0o600 });
  using _stream = bindListener(runtime, { family: "unix", path: stream }, { path: stream });
  bindDatagram(runtime, { family: "unix", path: stale }, { path: stale })[Symbol.dispose]();
  assert.deepEqual([datagram, stream, stale, `${stale}.missing`].map((path) => isPathBound(runtime, path)), [true, true, false, false]);
});

test("ForeignSockets.claim gives datagram sockets to those who bind, and listeners to those who listen", () => {
  const { socket, address } = rawDatagram();
  const passed = { name: "game", source: "systemd", descriptor: socket, identity: identify(runtime, socket.number), isSupervised: true } as const;
  using foreign = new ForeignSockets(runtime, [passed], false);
  assert.equal(foreign.claim("game", address), null);
  using found = foreign.claim("other", address, "datagram")!.descriptor;
  assert.equal(found, socket);
  assert.equal(foreign.claim("game", address, "datagram"), null);
});

/** A first process with a node:dgram at "game", and what it hears. */
async function scene(
  use: (scene: { path: string; takeover: Takeover; socket: dgram.Socket; texts: string[] }) => Promise<void>,
  address: DatagramAddress & { port: number } = anyPort,
): Promise<void> {
  using folder = new TemporaryFolder();
  const path = folder.file("control.sock");
  const takeover = await Takeover.begin(runtime, path, { notify: false });
  const socket = await takeover.bind("game", address, nodeDatagram.open);
  try {
    await use({ path, takeover, socket, texts: nodeDatagram.read(socket) });
  } finally {
    await takeover.close();
    const closed = once(socket, "close");
    socket.close();
    await closed;
  }
}

/** A successor in the same process, under another name. */
async function succeed(path: string, seen = runtime): Promise<Succession> {
  const options = { runtime: seen, limits: defaultLimits, path, instance: randomHex(), allowUsers: [], require: [] };
  return await Succession.begin(connectPath(runtime, path)!, options);
}

test("Takeover.bind tells the true address, and refuses a name twice", () =>
  scene(async ({ takeover, socket }) => {
    const { hostname, port } = takeover.addr("game") as { hostname: string; port: number };
    assert.equal(hostname, "127.0.0.1");
    assert.equal(socket.address().port, port);
    await assert.rejects(takeover.bind("game", anyPort, nodeDatagram.open), takeoverError("ERR_TAKEOVER_STATE"));
    await assert.rejects(takeover.listen("game", anyPort, () => assert.fail()), takeoverError("ERR_TAKEOVER_STATE"));
    await assert.rejects(takeover.bind("other", { port: 65_536 }, nodeDatagram.open), takeoverError("ERR_TAKEOVER_ADDRESS"));
  }));

test("Takeover.bind serves the first process at once, and a closed one not", () =>
  scene(async ({ takeover, texts }) => {
    using peer = rawDatagram().socket;
    const address = takeover.addr("game");
    rawSend(peer, "early", address);
    await until(() => texts.length === 1, "the datagram");
    await takeover.close();
    using again = bindDatagram(runtime, address, { port: 0 });
    assert.deepEqual(localAddress(runtime, again.number), address);
  }));

test("Takeover hands over a datagram socket with what waits in it, and can answer until it has drained", () =>
  scene(async ({ path, takeover, socket, texts }) => {
    await takeover.ready();
    const { socket: peer, address } = rawDatagram();
    using _peer = peer;
    const succession = await succeed(path);
    using copy = succession.endpoints.get("game")!.descriptor;
    succession.endpoints.delete("game");
    await succession.ready(["game"]);
    rawSend(peer, "waits", takeover.addr("game"));
    await sleep(someTurnsMs);
    assert.equal(unreadSize(runtime, copy.number), 5);
    await succession.settle();
    assert.deepEqual((await takeover.released).claimed, ["game"]);
    socket.send("late", (address as { port: number }).port, "127.0.0.1");
    let answer = "";
    await until(() => (answer += rawRead(peer)) === "late", "the answer");
    const { cookie } = identify(runtime, copy.number)!;
    const held = runtime.inspect(socket)!.descriptor;
    if (held >= 0) assert.equal(cookieOf(runtime, held), cookie);
    await takeover.drained();
    if (held >= 0) assert.notEqual(cookieOf(runtime, held), cookie);
    assert.deepEqual([texts, rawRead(copy)], [[], "waits"]);
    succession[Symbol.dispose]();
  }));

test("Takeover reads again when its successor is lost, and first what has come meanwhile", () =>
  scene(async ({ path, takeover, texts }) => {
    await takeover.ready();
    using peer = rawDatagram().socket;
    const succession = await succeed(path);
    await succession.ready(["game"]);
    rawSend(peer, "waits", takeover.addr("game"));
    await sleep(someTurnsMs);
    assert.deepEqual(texts, []);
    succession.abort(new Error("lost"));
    await until(() => texts.length === 1, "the datagram that waited");
    assert.deepEqual(texts, ["waits"]);
  }));

test("Takeover keeps datagram sockets from a successor that does not know them", () =>
  scene(async ({ path, takeover }) => {
    await takeover.ready();
    const older = {
      ...runtime,
      adoptStream: (number: number) => {
        const stream = runtime.adoptStream(number);
        const write = (bytes: Uint8Array) => stream.write(withoutDatagrams(bytes));
        return { ...stream, write };
      },
    };
    const succession = await succeed(path, older);
    assert.deepEqual([...succession.endpoints.keys()], []);
    succession.abort(new Error("enough"));
  }));

/** A hello as an earlier release sends it; the head keeps its size. */
function withoutDatagrams(bytes: Uint8Array): Uint8Array {
  const at = new TextDecoder("latin1").decode(bytes).indexOf('"datagrams":');
  const older = new Uint8Array(bytes);
  if (at >= 0) older.set(new TextEncoder().encode("unheardof"), at + 1);
  return older;
}

const peer: InetAddress = { family: "inet", hostname: "192.0.2.1", port: 7 };

/** A first process whose flows a successor forwards, and what was forwarded to it. */
async function flowing(
  use: (scene: { path: string; takeover: Takeover; flows: Flows; forwarded: number[]; texts: string[] }) => Promise<void>,
  way: Pick<FlowOptions, "tag"> = {},
): Promise<void> {
  using folder = new TemporaryFolder();
  const path = folder.file("control.sock");
  const takeover = await Takeover.begin(runtime, path, { notify: false, limits: { drainMs: 20_000 } });
  const forwarded: number[] = [];
  let flows: Flows | null = null;
  const datagram = (bytes: Uint8Array) => void forwarded.push(bytes[0]!);
  const options: FlowOptions = way.tag ? { tag: way.tag, datagram } : { route: (bytes) => bytes[0]!, datagram };
  const open = (at: dgram.BindOptions, given: Flows) => (flows = given, nodeDatagram.open(at));
  const socket = await takeover.bind("game", anyPort, open, { flows: options });
  await takeover.ready();
  try {
    await use({ path, takeover, flows: flows!, forwarded, texts: nodeDatagram.read(socket) });
  } finally {
    await takeover.close();
    const closed = once(socket, "close");
    socket.close();
    await closed;
  }
}

/** The one end over which a successor forwards. */
function linkOf(succession: Succession): ForwardLink {
  const { older: found, members } = succession.takeFlows("game");
  assert.deepEqual(members, []);
  assert.deepEqual(found.map(({ generation }) => generation), [1]);
  return linkOver(found[0]!.channel);
}

/** Takes the socket, as a process does that serves it. */
function claim(succession: Succession): OwnedDescriptor {
  const { descriptor } = succession.endpoints.get("game")!;
  succession.endpoints.delete("game");
  return descriptor;
}

test("Takeover serves what is forwarded to it, and drains until it has ended its flows", () =>
  flowing(async ({ path, takeover, flows, forwarded }) => {
    assert.equal(flows.take(Uint8Array.of(9), peer), false);
    const succession = await succeed(path);
    using _socket = claim(succession);
    using link = linkOf(succession);
    await succession.ready(["game"]);
    link.forward(Uint8Array.of(1), peer);
    await until(() => forwarded.length === 1, "the datagram");
    await succession.settle();
    await takeover.released;
    let isDrained = false;
    const drained = takeover.drained().then(() => isDrained = true);
    link.forward(Uint8Array.of(2), peer);
    await until(() => forwarded.length === 2, "the datagram after the lease");
    assert.equal(isDrained, false);
    flows.end();
    await drained;
    await until(() => !link.isOpen, "the link to end");
    succession[Symbol.dispose]();
  }));

test("Takeover drains at once when the process that forwards has gone", () =>
  flowing(async ({ path, takeover }) => {
    const succession = await succeed(path);
    using _socket = claim(succession);
    const link = linkOf(succession);
    await succession.ready(["game"]);
    await succession.settle();
    await takeover.released;
    link.close();
    const { ms } = await takeover.drained();
    assert.ok(ms < 20_000);
    succession[Symbol.dispose]();
  }));

test("Takeover takes what was forwarded before its successor was lost, and nothing after it", () =>
  flowing(async ({ path, flows, forwarded }) => {
    const succession = await succeed(path);
    using link = linkOf(succession);
    await succession.ready(["game"]);
    link.forward(Uint8Array.of(1), peer);
    await sleep(0);
    succession.abort(new Error("lost"));
    await until(() => !link.isOpen, "the link to end");
    assert.deepEqual(forwarded, [1]);
    assert.equal(flows.take(Uint8Array.of(2), peer), false);
    // It can be replaced again, over another link.
    const second = await succeed(path);
    linkOf(second).close();
    second.abort(new Error("enough"));
  }));

test("Takeover closes the ends of flows that a successor does not take", () =>
  flowing(async ({ path, takeover }) => {
    const succession = await succeed(path);
    using _socket = claim(succession);
    await succession.ready(["game"]);
    succession[Symbol.dispose]();
    await succession.settle();
    await takeover.released;
    await takeover.drained();
  }));

/** A datagram whose first byte is a tag, as text. */
const tagged = (tag: number) => String.fromCharCode(tag);
const tag = { offset: 0, size: 1 } as const;

test("Takeover steers a tag to its own socket and the rest to its successor's, and serves that too when it is lost", () =>
  flowing(async ({ path, takeover, forwarded, texts }) => {
    const address = takeover.addr("game");
    using peer = rawDatagram().socket;
    const succession = await succeed(path);
    const { members, older } = succession.takeFlows("game");
    using socket = claim(succession);
    assert.deepEqual([members, older].map((each) => each.map(({ generation }) => generation)), [[1, 0], [1]]);
    assert.equal(cookieOf(runtime, members[1]!.channel.number), cookieOf(runtime, socket.number));
    rawSend(peer, tagged(2), address);
    await until(() => texts.length === 1, "what is the incumbent's before ready");
    await succession.ready(["game"]);
    for (const each of [1, 2, 0, 1]) rawSend(peer, tagged(each), address);
    await until(() => texts.length === 3, "what has the incumbent's tag");
    assert.deepEqual(texts, [2, 1, 1].map(tagged));
    assert.equal(runtime.libc.read(socket.number, new Uint8Array(8), 8), 1, "and the rest is the successor's");
    succession.abort(new Error("lost"));
    await until(() => forwarded.length === 1, "what the successor has not read");
    assert.deepEqual(forwarded, [0]);
    rawSend(peer, tagged(3), address);
    await until(() => texts.length === 4, "what comes after it");
    // The same socket is the next successor's.
    const second = await succeed(path);
    using again = claim(second);
    assert.equal(cookieOf(runtime, again.number), cookieOf(runtime, socket.number));
    disposeAll([...members, ...older].map(({ channel }) => channel));
    second.abort(new Error("enough"));
  }, { tag }));

test("Takeover.bind refuses a tag that no datagram can have", () =>
  scene(async ({ takeover }) => {
    const flows = { tag: { offset: 70_000, size: 1 }, datagram: () => {} } as const;
    await assert.rejects(takeover.bind("other", anyPort, nodeDatagram.open, { flows }), takeoverError("ERR_TAKEOVER_RANGE"));
  }));

test("Takeover.bind refuses flows without the functions for them", () =>
  scene(async ({ takeover }) => {
    const wrong = { flows: { route: () => null } as unknown as FlowOptions };
    await assert.rejects(takeover.bind("other", anyPort, nodeDatagram.open, wrong), takeoverError("ERR_TAKEOVER_STATE"));
  }));

test("Takeover.bind leaves no path behind when it closes on its own, and replaces a stale one", async () => {
  using folder = new TemporaryFolder();
  const path = folder.file("game");
  bindDatagram(runtime, { family: "unix", path }, { path })[Symbol.dispose]();
  const takeover = await Takeover.begin(runtime, folder.file("control.sock"), { notify: false });
  // No runtime but Deno opens it, and none here: the path that was bound for it goes again.
  const failing = takeover.bind("game", { path }, () => Promise.reject(new Error("not here")));
  await assert.rejects(failing, { message: "not here" });
  assert.equal(existsSync(path), false);
  await takeover.close();
});
