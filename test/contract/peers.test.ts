/** Peers of datagrams as applications name them, and as the kernel does. */

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import type { InetAddress } from "../../src/c/sockaddr.ts";
import { EndpointFlows } from "../../src/handover/endpoint_flows.ts";
import { defaultLimits } from "../../src/limits.ts";
import { namedPeer, peerOf } from "../../src/sockets/peers.ts";
import { openPair } from "../../src/sockets/socket.ts";
import { commandFor, runChild } from "./fd_children.ts";
import { openClient } from "./steering_ends.ts";
import { runtime, takeoverError, test } from "./support.ts";

const linkLocal: InetAddress = { family: "inet6", hostname: "fe80::1%lo", port: 7 };

test("peerOf gives the number of an interface over any socket, and leaves all other peers as they are", () => {
  const [unix, other] = openPair(runtime, "seqpacket");
  using client = openClient();
  for (const { number } of [unix, client]) {
    assert.deepEqual(peerOf(runtime, number, linkLocal), { ...linkLocal, hostname: "fe80::1", scope: 1 });
    assert.equal(peerOf(runtime, number, { ...linkLocal, hostname: "fe80::1%42" }).scope, 42);
    for (const hostname of ["::1", "fe80::1"]) {
      const peer = { ...linkLocal, hostname, scope: 3 };
      assert.deepEqual(peerOf(runtime, number, peer), peer);
    }
  }
  unix[Symbol.dispose]();
  other[Symbol.dispose]();
});

test("namedPeer gives an interface's name, and its number when there is none", () => {
  using client = openClient();
  const at = (scope: number) => namedPeer(runtime, client.number, { ...linkLocal, hostname: "fe80::1", scope }).hostname;
  assert.deepEqual([at(1), at(4_711)], ["fe80::1%lo", "fe80::1%4711"]);
  const plain: InetAddress = { family: "inet", hostname: "192.0.2.1", port: 7 };
  assert.equal(namedPeer(runtime, client.number, plain), plain);
});

test("peerOf throws ERR_TAKEOVER_ADDRESS for an interface that is not there, and for what is no peer", () => {
  using client = openClient();
  const wrong: unknown[] = [
    ...["nowhere", "", "0", "l".repeat(16)].map((zone) => ({ ...linkLocal, hostname: `fe80::1%${zone}` })),
    { family: "inet", hostname: "127.0.0.1%lo", port: 7 },
    ...[{ family: "IPv6" }, { hostname: undefined }, { port: "7" }].map((wrong) => ({ ...linkLocal, ...wrong })),
    ...[null, undefined, 7],
  ];
  for (const peer of wrong) {
    assert.throws(() => peerOf(runtime, client.number, peer as InetAddress), takeoverError("ERR_TAKEOVER_ADDRESS"));
  }
});

test("Flows.take throws ERR_TAKEOVER_ADDRESS for what is no peer, in the first process already", () => {
  const owner = { runtime, limits: defaultLimits, generation: 1, failed: () => assert.fail("told of") };
  const flows = new EndpointFlows(owner, "game", { route: () => null, datagram() {} });
  const rinfo = { address: "::1", family: "IPv6", port: 7, size: 1 } as unknown as InetAddress;
  assert.throws(() => flows.take(Uint8Array.of(1), rinfo), takeoverError("ERR_TAKEOVER_ADDRESS"));
  assert.equal(flows.take(Uint8Array.of(1), linkLocal), false);
});

/** The number of an interface. */
const scope = 42;

/** A network of its own with the same link-local address at two interfaces. */
const twice = [
  "ip link set lo up",
  `ip link add name near index ${scope} type veth peer name far`,
  "for each in lo near far; do ip link set $each up; done",
  "for each in lo near; do ip -6 addr add fe80::1/64 dev $each nodad; done",
].join(" && ");
const inNetwork = (command: string) => ["unshare", "--net", "sh", "-c", `${twice} && ${command}`, "sh"];
const [program, ...args] = inNetwork("true");
const withInterfaces = {
  skip: spawnSync(program!, args).status === 0 ? false : "a network with interfaces of its own cannot be made here",
};

test("Takeover forwards and keeps flows with a link-local peer, and their answers go out", withInterfaces, async () => {
  const found = await runChild([...inNetwork('exec "$@"'), ...commandFor("link_local.ts"), "near", String(scope)]);
  const code = { family: "inet6", hostname: "fe80::1%near", port: 0, scope };
  assert.deepEqual(found, { forwarded: { code }, connected: { code } });
});
