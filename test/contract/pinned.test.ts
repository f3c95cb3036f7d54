/**
 * Flows that the kernel keeps by connected sockets: whom each datagram comes to
 * while they are taken, and while they are given back.
 */

import assert from "node:assert/strict";
import type { InetAddress } from "../../src/c/sockaddr.ts";
import type { Runtime } from "../../src/runtime.ts";
import { bindDatagram } from "../../src/sockets/datagram.ts";
import { disposeAll, OwnedDescriptor } from "../../src/sockets/descriptors.ts";
import { connectSocket, localAddress } from "../../src/sockets/socket.ts";
import { PinnedSockets, tryPinning } from "../../src/steering/pinned.ts";
import { openMember } from "../../src/steering/reuseport.ts";
import { datagramsAt, openClient, sendTo } from "./steering_ends.ts";
import { runtime, takeoverError, test, until } from "./support.ts";

/** A main socket, its flows, and clients, the first of which is to have one. */
interface Scene {
  readonly main: OwnedDescriptor;
  /** Where the clients reach it. */
  readonly to: InetAddress;
  readonly pinned: PinnedSockets;
  readonly clients: readonly OwnedDescriptor[];
  /** The clients as the main socket sees them. */
  readonly peers: readonly InetAddress[];
  /** First bytes of what came to the flows. */
  readonly found: number[];
  /** The same of the main socket, since the last look. */
  atMain(): number[];
  /** Each client sends that byte. */
  sendAll(byte: number): void;
}

async function scene(
  use: (scene: Scene) => void | Promise<void>,
  { hostname = "127.0.0.1", client = "inet" as InetAddress["family"], seen = runtime } = {},
): Promise<void> {
  const family = hostname.includes(":") ? "inet6" : "inet";
  const main = bindDatagram(runtime, { family, hostname, port: 0 }, { port: 0, reusePort: true });
  const { port } = localAddress(runtime, main.number) as InetAddress;
  const to: InetAddress = { family: client, hostname: client === "inet" ? "127.0.0.1" : "::1", port };
  const clients = [openClient(client), openClient(client), openClient(client)];
  const peers = clients.map(({ number }) => localAddress(runtime, number) as InetAddress);
  const found: number[] = [];
  const pinned = new PinnedSockets(seen, main.number, (bytes) => found.push(bytes[0]!));
  const atMain = () => datagramsAt(main).map(([byte]) => byte!);
  const sendAll = (byte: number) => clients.forEach((each) => sendTo(each, to, byte));
  try {
    await use({ main, to, pinned, clients, peers, found, atMain, sendAll });
  } finally {
    await pinned.unpinAll();
    disposeAll([main, ...clients]);
  }
}

/** Taken, given back, and taken again, while everybody sends. */
async function keepsOneFlow({ to, pinned, clients, peers, found, atMain, sendAll }: Scene): Promise<void> {
  const peer = peers[0]!;
  const key = pinned.keyOf(peer);
  for (const round of [10, 20]) {
    found.length = 0;
    sendAll(round);
    assert.deepEqual(atMain(), [round, round, round], "nothing is taken yet");
    pinned.pin(peer);
    pinned.pin(peer);
    assert.equal(pinned.has(key), true);
    sendAll(round + 1);
    assert.deepEqual(atMain(), [round + 1, round + 1], "the others' datagrams are the main socket's");
    await until(() => found.length === 1, "the flow's");
    sendTo(clients[0]!, to, round + 2);
    pinned.unpin(key);
    assert.deepEqual(found, [round + 1, round + 2], "what has come before is taken");
    sendAll(round + 3);
    assert.deepEqual(atMain(), [round + 3, round + 3, round + 3], "and the rest is the main socket's at once");
    await until(() => pinned.count === 0, "the socket to be closed");
    sendAll(round + 4);
    assert.deepEqual(atMain(), [round + 4, round + 4, round + 4]);
    assert.deepEqual(found, [round + 1, round + 2]);
  }
}

test("PinnedSockets keep a flow and give it back without a loss, at an IPv4 address", () => scene(keepsOneFlow));

test("PinnedSockets keep a flow and give it back without a loss, at all IPv4 addresses", () =>
  scene(keepsOneFlow, { hostname: "0.0.0.0" }));

test("PinnedSockets keep a flow and give it back without a loss, at an IPv6 address", () =>
  scene(keepsOneFlow, { hostname: "::1", client: "inet6" }));

test("PinnedSockets keep a flow and give it back without a loss, at all IPv6 addresses", () =>
  scene(keepsOneFlow, { hostname: "::", client: "inet6" }));

test("PinnedSockets keep a flow and give it back without a loss, of IPv4 at all IPv6 addresses", () =>
  scene(keepsOneFlow, { hostname: "::", client: "inet" }));

test("a socket that is connected no longer (AF_UNSPEC) gets what is the main socket's, which is why none ever is", () =>
  scene(({ main, peers, atMain, sendAll }) => {
    const at = localAddress(runtime, main.number) as InetAddress;
    using socket = openMember(runtime, at, "dgram", {});
    sendAll(1);
    assert.deepEqual([atMain().length, datagramsAt(socket).length], [3, 0], "not connected yet");
    connectSocket(runtime, socket.number, peers[0]!);
    assert.equal(runtime.libc.connect(socket.number, new Uint8Array(16) as Uint8Array<ArrayBuffer>, 16), 0);
    sendAll(2);
    assert.deepEqual([atMain().length, datagramsAt(socket).length], [0, 3]);
  }, { hostname: "0.0.0.0" }));

test("PinnedSockets name a peer as the kernel does, whichever way it is written", async () => {
  await scene(({ pinned }) => {
    assert.equal(pinned.keyOf({ family: "inet", hostname: "192.0.2.1", port: 7 }), "192.0.2.1:7");
    assert.equal(pinned.keyOf({ family: "inet6", hostname: "::FFFF:192.0.2.1", port: 7 }), "192.0.2.1:7");
  });
  await scene(({ pinned }) => {
    assert.equal(pinned.keyOf({ family: "inet", hostname: "192.0.2.1", port: 7 }), "[::ffff:192.0.2.1]:7");
    assert.equal(pinned.keyOf({ family: "inet6", hostname: "2001:DB8:0::1", port: 7 }), "[2001:db8::1]:7");
    assert.equal(pinned.keyOf({ family: "inet6", hostname: "fe80::1", port: 7, scope: 2 }), "[fe80::1%2]:7");
  }, { hostname: "::", client: "inet6" });
});

test("PinnedSockets.pin throws ERR_TAKEOVER_ADDRESS for a peer that cannot send here, and keeps nothing", () =>
  scene(({ pinned, atMain, sendAll }) => {
    const wrong = [
      { family: "inet6", hostname: "::1", port: 7 },
      { family: "inet", hostname: "example.org", port: 7 },
      { family: "inet", hostname: "192.0.2.1", port: 0 },
      { family: "inet", hostname: "192.0.2.1", port: 65_536 },
    ] as const;
    for (const peer of wrong) assert.throws(() => pinned.pin(peer), takeoverError("ERR_TAKEOVER_ADDRESS"));
    assert.equal(pinned.count, 0);
    sendAll(1);
    assert.equal(atMain().length, 3);
  }));

test("PinnedSockets.pin closes a socket that cannot be connected, and the flow stays the main socket's", () => {
  const seen: Runtime = { ...runtime, libc: { ...runtime.libc, connect: () => -101 } };
  return scene(({ pinned, peers, atMain, sendAll }) => {
    assert.throws(() => pinned.pin(peers[0]!), { code: "ENETUNREACH" });
    assert.equal(pinned.count, 0);
    sendAll(1);
    assert.equal(atMain().length, 3);
  }, { seen });
});

test("PinnedSockets go on after an answer that nobody took (ICMP)", () =>
  scene(async ({ main, to, pinned, clients, peers, found }) => {
    const [client] = clients;
    pinned.pin(peers[0]!);
    client![Symbol.dispose]();
    // From the same address and port: the error is that socket's, too.
    sendTo(main, peers[0]!, 9);
    using again = bindDatagram(runtime, peers[0]!, { port: 0 });
    sendTo(again, to, 1);
    await until(() => found.length === 1, "what comes after the error");
  }));

test("PinnedSockets take no flow after the end", () =>
  scene(async ({ pinned, peers }) => {
    pinned.pin(peers[0]!);
    pinned[Symbol.dispose]();
    assert.throws(() => pinned.pin(peers[1]!), takeoverError("ERR_TAKEOVER_CLOSED"));
    await until(() => pinned.count === 0, "all sockets to be closed");
  }));

test("tryPinning leaves the main socket with everything, and throws for one that is in no group", () =>
  scene(({ main, atMain, sendAll }) => {
    tryPinning(runtime, main.number);
    sendAll(1);
    assert.equal(atMain().length, 3);
    using plain = openClient();
    assert.throws(() => tryPinning(runtime, plain.number), takeoverError("ERR_TAKEOVER_UNSUPPORTED"));
  }));

test("PinnedSockets keep hundreds of flows apart, and give all back", async () => {
  using many = new Clients(200);
  await scene(async ({ to, pinned, found, atMain }) => {
    for (const peer of many.peers) pinned.pin(peer);
    many.sendAll(to);
    await until(() => found.length === 200, () => `${found.length} of 200 datagrams`);
    assert.deepEqual(atMain(), []);
    many.sendAll(to);
    await pinned.unpinAll();
    assert.equal(found.length, 400, "what waited is taken before all are closed");
    many.sendAll(to);
    assert.equal(atMain().length, 200);
  }, { hostname: "0.0.0.0" });
});

/** Sockets on this machine, each with a flow. */
class Clients implements Disposable {
  readonly sockets: readonly OwnedDescriptor[];
  readonly peers: readonly InetAddress[];

  constructor(count: number) {
    this.sockets = Array.from({ length: count }, () => openClient());
    this.peers = this.sockets.map(({ number }) => localAddress(runtime, number) as InetAddress);
  }

  sendAll(to: InetAddress): void {
    for (const socket of this.sockets) sendTo(socket, to, 1);
  }

  [Symbol.dispose](): void {
    disposeAll(this.sockets);
  }
}
