/** What describe says of descriptors, and which descriptor a native object has. */

import assert from "node:assert/strict";
import { once } from "node:events";
import { mkdirSync, writeFileSync } from "node:fs";
import net from "node:net";
import type { SocketAddress } from "../../src/c/sockaddr.ts";
import { defaultLimits } from "../../src/limits.ts";
import { adopt, type Open } from "../../src/natives/graft.ts";
import { describe, type Description } from "../../src/sockets/describe.ts";
import { cString, OwnedDescriptor } from "../../src/sockets/descriptors.ts";
import { bindListener } from "../../src/sockets/listener.ts";
import { descriptorOf } from "../../src/natives/natives.ts";
import { cookieOf, duplicate, identify, localAddress, openSocket, setNonBlocking } from "../../src/sockets/socket.ts";
import { TemporaryFolder } from "../unit/children.ts";
import {
  bunSocket,
  denoConn,
  nodeDatagram,
  nodeSocket,
  rawAccepted,
  rawDatagram,
  rawListener,
  rawPair,
} from "./ends.ts";
import { bunListen, bunServe, denoListen, denoServe, type Native, nodeHttp, nodeNet } from "./natives.ts";
import { eventually, onBun, onDeno, openNull, runtime, socketPair, takeoverError, test, until } from "./support.ts";

const { abi, libc } = runtime;
const { constants } = abi;

// deno-lint-ignore no-explicit-any
const { Deno, Bun } = globalThis as any;

/** Linux's numbers of the calls that make descriptors of other kinds, on x86-64 and arm64. */
const SYS_pidfd_open = 434;
const SYS_eventfd2 = abi.arch === "x64" ? 290 : 19;
const SYS_timerfd_create = abi.arch === "x64" ? 283 : 85;
const SYS_inotify_init1 = abi.arch === "x64" ? 294 : 26;

function kindOf(number: number): string {
  assert.ok(number >= 0, `the call failed: ${number}`);
  using descriptor = new OwnedDescriptor(runtime, number);
  return describe(runtime, descriptor).kind;
}

const opened = (path: string) => libc.open(cString(path), constants.O_RDONLY | constants.O_CLOEXEC, 0);

test("describe tells files, folders and devices", () => {
  using folder = new TemporaryFolder();
  writeFileSync(folder.file("file"), "");
  mkdirSync(folder.file("folder"));
  assert.deepEqual([folder.file("file"), folder.file("folder"), "/dev/null"].map((path) => kindOf(opened(path))), [
    "file",
    "folder",
    "character device",
  ]);
});

test("describe tells what only the kernel has a name for", () => {
  assert.equal(kindOf(libc.epoll_create1(0o2000000)), "epoll");
  assert.equal(kindOf(libc.syscall(SYS_pidfd_open, libc.getpid(), 0, 0, 0)), "pidfd");
  assert.equal(kindOf(libc.syscall(SYS_eventfd2, 0, 0, 0, 0)), "eventfd");
  assert.equal(kindOf(libc.syscall(SYS_timerfd_create, 1, 0, 0, 0)), "timerfd");
  assert.equal(kindOf(libc.syscall(SYS_inotify_init1, 0, 0, 0, 0)), "inotify");
});

const common = { kind: "socket", nonBlocking: true, closeOnExec: true } as const;

/** The description without what differs from run to run, which is compared with the kernel's. */
function described(descriptor: OwnedDescriptor): Omit<Description, "descriptor" | "local" | "peer" | "cookie"> {
  const { descriptor: number, local, peer: _, cookie, ...rest } = describe(runtime, descriptor);
  assert.equal(number, descriptor.number);
  assert.deepEqual(local, localAddress(runtime, number));
  assert.equal(cookie, cookieOf(runtime, number));
  return rest;
}

test("describe tells a TCP listener, a connection and both states of its end", async () => {
  const tcp = { ...common, family: "inet", type: "stream", protocol: "tcp" } as const;
  const { listener } = rawListener();
  using _listener = listener;
  assert.deepEqual(described(listener), { ...tcp, listening: true, tcpState: "TCP_LISTEN" });
  const [client, server] = rawPair("inet");
  using _client = client;
  using _server = server;
  assert.deepEqual(described(client), { ...tcp, listening: false, tcpState: "TCP_ESTABLISHED" });
  assert.deepEqual(describe(runtime, client).peer, localAddress(runtime, server.number));
  assert.equal(libc.shutdown(client.number, 1), 0);
  const states = () => [client, server].map((each) => describe(runtime, each).tcpState).join();
  // The end is acknowledged a moment later.
  await until(() => states() === "TCP_FIN_WAIT2,TCP_CLOSE_WAIT", () => `both states, got ${states()}`);
});

test("describe tells a TCP socket that is not connected", () => {
  using socket = new OwnedDescriptor(runtime, openSocket(runtime, "inet6", "stream"));
  const { family, peer, tcpState } = describe(runtime, socket);
  assert.deepEqual({ family, peer, tcpState }, { family: "inet6", peer: null, tcpState: "TCP_CLOSE" });
});

test("describe tells UDP and Unix sockets", () => {
  using udp = rawDatagram().socket;
  assert.deepEqual(described(udp), {
    ...common,
    family: "inet",
    type: "dgram",
    protocol: "udp",
    listening: false,
    tcpState: null,
  });
  const [one, other] = socketPair();
  using _one = one;
  using _other = other;
  assert.deepEqual(described(one), {
    ...common,
    family: "unix",
    type: "stream",
    protocol: null,
    listening: false,
    tcpState: null,
  });
  assert.deepEqual(describe(runtime, one).peer, { family: "unix", path: "" });
});

test("describe tells a family that has no address here", () => {
  using netlink = new OwnedDescriptor(runtime, libc.socket(16, constants.SOCK_DGRAM, 0));
  const { kind, family, local, nonBlocking, closeOnExec } = describe(runtime, netlink);
  assert.deepEqual({ kind, family, local, nonBlocking, closeOnExec }, {
    kind: "socket",
    family: "netlink",
    local: null,
    nonBlocking: false,
    closeOnExec: false,
  });
  setNonBlocking(runtime, netlink.number);
  assert.equal(describe(runtime, netlink).nonBlocking, true);
});

test("describe throws for a descriptor that is closed, and for what is none", () => {
  const gone = openNull();
  const { number } = gone;
  gone[Symbol.dispose]();
  assert.throws(() => describe(runtime, number), takeoverError("ERR_TAKEOVER_CLOSED"));
  assert.throws(() => describe(runtime, gone), takeoverError("ERR_TAKEOVER_CLOSED"));
  for (const wrong of [-1, 0.5, 2 ** 31, Infinity]) {
    assert.throws(() => describe(runtime, wrong), takeoverError("ERR_TAKEOVER_RANGE"));
  }
});

const loopback: SocketAddress = { family: "inet", hostname: "127.0.0.1", port: 0 };
const at = { hostname: "127.0.0.1", host: "127.0.0.1", port: 0 };

/** The descriptor of a server as the application opened it, and as the takeover gave it its socket. */
async function isFound<T>(native: Native<T>): Promise<void> {
  const plain = native.open(at);
  await eventually(() => assert.equal(describe(runtime, descriptorOf(runtime, plain)).listening, true));
  const { local } = describe(runtime, descriptorOf(runtime, plain));
  // Deno's own address has no prototype.
  const said = native.present(plain);
  assert.deepEqual(typeof said === "object" ? { ...said } : said, native.presented(local!));
  const socket = bindListener(runtime, loopback, { port: 0 });
  const identity = identify(runtime, socket.number)!;
  const { native: taken } = await adopt(runtime, defaultLimits, "web", socket, identity, native.open as Open<T>);
  assert.equal(cookieOf(runtime, descriptorOf(runtime, taken)), identity.cookie);
  await native.close(taken as T);
  await native.close(plain);
}

test("descriptorOf finds http.Server", () => isFound(nodeHttp));

test("descriptorOf finds net.Server", () => isFound(nodeNet));

onDeno("descriptorOf finds the server of Deno.serve", () => isFound(denoServe));

onDeno("descriptorOf finds Deno.Listener", () => isFound(denoListen));

onBun("descriptorOf finds the server of Bun.serve", () => isFound(bunServe));

onBun("descriptorOf finds the listener of Bun.listen", () => isFound(bunListen));

onDeno(
  "descriptorOf finds connections that Deno.connect opened, each its own, and copies of it do not mislead",
  async () => {
    const { listener, at } = rawListener();
    using _listener = listener;
    for (const _ of [1, 2]) {
      const connection = await denoConn.open(at);
      using peer = rawAccepted(listener);
      using _copy = new OwnedDescriptor(runtime, duplicate(runtime, descriptorOf(runtime, connection)));
      const found = describe(runtime, descriptorOf(runtime, connection));
      assert.deepEqual([found.local, found.peer], [describe(runtime, peer).peer, describe(runtime, peer).local]);
      connection.close();
    }
  },
);

onDeno("descriptorOf finds connections that Deno accepted", async () => {
  const listener = Deno.listen(at);
  const connecting = Deno.connect({ ...at, port: listener.addr.port });
  const accepted = await listener.accept();
  const connected = await connecting;
  const [ours, theirs] = [accepted, connected].map((each) => describe(runtime, descriptorOf(runtime, each)));
  assert.deepEqual([ours!.local, ours!.peer], [theirs!.peer, theirs!.local]);
  for (const each of [accepted, connected, listener]) each.close();
});

onDeno("descriptorOf says that Unix connections of Deno cannot be told apart", async () => {
  using folder = new TemporaryFolder();
  const path = folder.file("web");
  using _listener = bindListener(runtime, { family: "unix", path }, { port: 0 });
  const one = await Deno.connect({ transport: "unix", path });
  assert.equal(describe(runtime, descriptorOf(runtime, one)).family, "unix");
  const other = await Deno.connect({ transport: "unix", path });
  assert.throws(() => descriptorOf(runtime, one), takeoverError("ERR_TAKEOVER_UNSUPPORTED"));
  one.close();
  other.close();
});

onBun("descriptorOf finds Bun.serve on a Unix path", async () => {
  using folder = new TemporaryFolder();
  const server = Bun.serve({ unix: folder.file("web"), fetch: () => new Response() });
  assert.deepEqual(describe(runtime, descriptorOf(runtime, server)).local, {
    family: "unix",
    path: folder.file("web"),
  });
  await server.stop(true);
});

onBun("descriptorOf finds Bun.Socket", async () => {
  const { listener, at } = rawListener();
  using _listener = listener;
  const socket = await bunSocket.open(at);
  using peer = rawAccepted(listener);
  assert.deepEqual(describe(runtime, descriptorOf(runtime, socket)).local, describe(runtime, peer).peer);
  socket.close();
});

test("descriptorOf finds net.Socket and the sockets of node:dgram", async () => {
  const { listener, at } = rawListener();
  using _listener = listener;
  const socket = await nodeSocket.open(at);
  await once(socket, "connect");
  using peer = rawAccepted(listener);
  assert.deepEqual(describe(runtime, descriptorOf(runtime, socket)).local, describe(runtime, peer).peer);
  socket.destroy();
  const datagram = await nodeDatagram.open({ hostname: "127.0.0.1", address: "127.0.0.1", port: 0 });
  await once(datagram, "listening");
  const { port } = datagram.address();
  assert.deepEqual(describe(runtime, descriptorOf(runtime, datagram)).local, {
    family: "inet",
    hostname: "127.0.0.1",
    port,
  });
  nodeDatagram.close(datagram);
});

test("descriptorOf throws ERR_TAKEOVER_CLOSED once an object is closed", async () => {
  const server = net.createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  assert.equal(describe(runtime, descriptorOf(runtime, server)).listening, true);
  server.close();
  await once(server, "close");
  assert.throws(() => descriptorOf(runtime, server), takeoverError("ERR_TAKEOVER_CLOSED"));
});

onDeno(
  "descriptorOf throws ERR_TAKEOVER_CLOSED for a Deno.Conn that is closed, whose number is another's",
  async () => {
    const listener = Deno.listen(at);
    const connecting = Deno.connect({ ...at, port: listener.addr.port });
    const accepted = await listener.accept();
    (await connecting).close();
    const number = descriptorOf(runtime, accepted);
    accepted.close();
    const others = Array.from({ length: 8 }, () => new OwnedDescriptor(runtime, openSocket(runtime, "inet", "stream")));
    assert.throws(() => descriptorOf(runtime, accepted), takeoverError("ERR_TAKEOVER_CLOSED"), `${number}`);
    for (const other of others) other[Symbol.dispose]();
    listener.close();
  },
);

test("descriptorOf throws ERR_TAKEOVER_UNSUPPORTED for what has no socket", () => {
  for (const wrong of [null, undefined, 7, "socket", {}, [], () => {}, new Map()]) {
    assert.throws(() => descriptorOf(runtime, wrong), takeoverError("ERR_TAKEOVER_UNSUPPORTED"));
  }
});
