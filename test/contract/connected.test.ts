/**
 * Flows that stay with the incumbent because the kernel knows their peers,
 * through a hand-over, and what becomes of them when it fails.
 */

import assert from "node:assert/strict";
import type { InetAddress } from "../../src/c/sockaddr.ts";
import { openReadiness } from "../../src/channels/readiness.ts";
import type { FlowOptions } from "../../src/handover/flow_options.ts";
import type { Runtime } from "../../src/runtime.ts";
import { disposeAll, type OwnedDescriptor } from "../../src/sockets/descriptors.ts";
import { dropCount } from "../../src/sockets/queues.ts";
import { localAddress } from "../../src/sockets/socket.ts";
import { changed, claim, flowScene, type FlowScene, type FlowSceneOptions, succeed } from "./flow_scene.ts";
import { datagramsAt, openClient, sendTo } from "./steering_ends.ts";
import { runtime, sleep, takeoverError, test, until } from "./support.ts";

/** Some clients, of which the application knows the first ones. */
interface Connected extends FlowScene {
  readonly clients: readonly OwnedDescriptor[];
  readonly peers: readonly InetAddress[];
  /** Whom the application has flows with. */
  readonly known: InetAddress[];
}

const clientCount = 4;

async function connected(
  use: (scene: Connected) => Promise<void>,
  { flows, asked, ...options }: FlowSceneOptions & { readonly flows?: Partial<FlowOptions>; readonly asked?: () => void } = {},
): Promise<void> {
  const clients = Array.from({ length: clientCount }, () => openClient());
  const peers = clients.map(({ number }) => localAddress(runtime, number) as InetAddress);
  const known: InetAddress[] = peers.slice(0, 1);
  try {
    const of = () => (asked?.(), known);
    await flowScene({ peers: of, ...flows }, (scene) => use({ ...scene, clients, peers, known }), options);
  } finally {
    disposeAll(clients);
  }
}

const bytesAt = (socket: OwnedDescriptor) => datagramsAt(socket).map(([byte]) => byte!);

test("Takeover keeps the flows of the peers it has, and its successor reads all else", () =>
  connected(async ({ path, takeover, flows, to, clients, read, served, opened }) => {
    assert.equal(flows.strategy, "connected");
    assert.deepEqual(opened, [{ name: "game", strategy: "connected", refused: [] }]);
    const succession = await succeed(path);
    assert.equal(succession.strategyOf("game"), "connected");
    using socket = claim(succession);
    for (const [index, client] of clients.entries()) sendTo(client, to, index);
    await until(() => read.length === 4, "all datagrams before ready");
    await succession.ready(["game"]);
    for (const [index, client] of clients.entries()) sendTo(client, to, 10 + index);
    await until(() => served.length === 1, "the datagram of the flow");
    assert.deepEqual([served, bytesAt(socket)], [[10], [11, 12, 13]]);
    await succession.settle();
    await takeover.released;
    let isDrained = false;
    const drained = takeover.drained().then(() => isDrained = true);
    sendTo(clients[0]!, to, 20);
    await until(() => served.length === 2, "the datagram after the lease");
    assert.equal(isDrained, false);
    sendTo(clients[0]!, to, 21);
    flows.end();
    assert.deepEqual(served, [10, 20, 21], "what has come before the end");
    sendTo(clients[0]!, to, 22);
    assert.deepEqual(bytesAt(socket), [22]);
    await until(() => isDrained, "the end of the flows to be noticed");
    await drained;
    succession[Symbol.dispose]();
  }, { limits: { drainMs: 200_000 } }));

test("Takeover keeps flows at an address that is all of the machine's", () =>
  connected(async ({ path, to, clients, served }) => {
    const at = { ...to, hostname: "127.0.0.1" };
    const succession = await succeed(path);
    using socket = claim(succession);
    await succession.ready(["game"]);
    for (const [index, client] of clients.entries()) sendTo(client, at, index);
    await until(() => served.length === 1, "the datagram of the flow");
    assert.deepEqual([served, bytesAt(socket)], [[0], [1, 2, 3]]);
    succession.abort(new Error("enough"));
  }, { hostname: "0.0.0.0" }));

test("Takeover keeps flows of IPv4 at an address of IPv6", () =>
  connected(async ({ path, to, clients, served }) => {
    const at: InetAddress = { family: "inet", hostname: "127.0.0.1", port: to.port };
    const succession = await succeed(path);
    using socket = claim(succession);
    await succession.ready(["game"]);
    for (const [index, client] of clients.entries()) sendTo(client, at, index);
    await until(() => served.length === 1, "the datagram of the flow");
    assert.deepEqual([served, bytesAt(socket)], [[0], [1, 2, 3]]);
    succession.abort(new Error("enough"));
  }, { hostname: "::" }));

test("Takeover serves what waits in the socket before the lease, and keeps the flows that begin with it", async () => {
  const served: number[] = [];
  let ask = () => {};
  let begin = (_peer: InetAddress) => {};
  const datagram = (bytes: Uint8Array, peer: InetAddress) => {
    served.push(bytes[0]!);
    begin(peer);
  };
  await connected(async ({ path, to, clients, peers, known }) => {
    const succession = await succeed(path);
    using socket = claim(succession);
    known.length = 0;
    begin = (peer) => void known.push(peer);
    let askedCount = 0;
    ask = () => {
      // The third time is right before the lease, when nothing but the end of this turn is left to the event loop.
      if (++askedCount !== 3) return;
      sendTo(clients[0]!, to, 0);
      sendTo(clients[1]!, to, 1);
      known.push(peers[0]!);
    };
    await succession.ready(["game"]);
    assert.deepEqual(served, [0, 1]);
    for (const [index, client] of clients.entries()) sendTo(client, to, 10 + index);
    await until(() => served.length === 4, "the datagrams of both flows");
    assert.deepEqual([served.toSorted((a, b) => a - b), bytesAt(socket)], [[0, 1, 10, 11], [12, 13]]);
    succession.abort(new Error("enough"));
  }, { asked: () => ask(), flows: { datagram } });
});

test("Takeover leaves to its successor what comes while it reads what waits, without an end", async () => {
  const served: number[] = [];
  let again = () => {};
  let ask = () => {};
  const datagram = (bytes: Uint8Array) => {
    served.push(bytes[0]!);
    again();
  };
  await connected(async ({ path, to, clients }) => {
    const succession = await succeed(path);
    using socket = claim(succession);
    let askedCount = 0;
    ask = () => {
      if (++askedCount !== 3) return;
      again = () => sendTo(clients[2]!, to, 2);
      sendTo(clients[1]!, to, 1);
    };
    await succession.ready(["game"]);
    again = () => {};
    assert.equal(served[0], 1);
    assert.ok(served.length < 100, `${served.length} were read`);
    assert.deepEqual(bytesAt(socket), [2], "the last of them");
    succession.abort(new Error("enough"));
  }, { asked: () => ask(), flows: { datagram } });
});

/** Serving takes so long that what waits takes longer than a step, or not. */
async function lateBurst(leaseMs: number, use: (found: { served: number; left: number; codes: string[] }) => void): Promise<void> {
  const count = 150;
  let served = 0;
  let ask = () => {};
  const datagram = () => {
    served++;
    for (const endAt = Date.now() + 2; Date.now() < endAt;);
  };
  await connected(async ({ path, to, clients, unserved }) => {
    const succession = await succeed(path);
    using socket = claim(succession);
    let askedCount = 0;
    ask = () => {
      if (++askedCount === 3) for (let sent = 0; sent < count; sent++) sendTo(clients[1]!, to, 1);
    };
    await succession.ready(["game"]);
    const left = bytesAt(socket).length;
    assert.equal(served + left + dropCount(runtime, socket.number), count);
    use({ served, left, codes: unserved.map(({ code }) => code) });
    succession.abort(new Error("enough"));
  }, { asked: () => ask(), flows: { datagram }, limits: { leaseMs } });
}

test("Takeover leaves nothing that waits to its successor, also when serving that takes long", () =>
  lateBurst(200_000, ({ left, codes }) => assert.deepEqual([left, codes], [0, []])));

test("Takeover says that it has left to its successor what it could not serve in time", () =>
  lateBurst(200, ({ served, left, codes }) => {
    assert.ok(served > 0 && left > 0, `${served} served, ${left} left`);
    assert.deepEqual(codes, ["ERR_TAKEOVER_TIMEOUT"]);
  }));

test("Takeover serves what waits in turns of the event loop before it pauses its socket", async () => {
  const count = 500;
  let servedCount = 0;
  let turnCount = 0;
  let mostInTurn = 0;
  let ask = () => {};
  const nextTurn = () => void (turnCount = 0, turning = setImmediate(nextTurn));
  let turning = setImmediate(nextTurn);
  const datagram = () => {
    servedCount++;
    mostInTurn = Math.max(mostInTurn, ++turnCount);
  };
  await connected(async ({ path, to, clients, read }) => {
    const succession = await succeed(path);
    using socket = claim(succession);
    let askedCount = 0;
    ask = () => {
      if (++askedCount === 1) for (let sent = 0; sent < count; sent++) sendTo(clients[1]!, to, 1);
    };
    await succession.ready(["game"]);
    assert.deepEqual([servedCount + read.length + dropCount(runtime, socket.number), bytesAt(socket)], [count, []]);
    assert.ok(mostInTurn > 0 && mostInTurn < count, `${mostInTurn} in one turn`);
    succession.abort(new Error("enough"));
  }, { asked: () => ask(), flows: { datagram } });
  clearImmediate(turning);
});

test("Takeover takes its flows back when its successor is lost in the lease, with what has come meanwhile", () =>
  connected(async ({ path, to, clients, read, served }) => {
    for (const round of [10, 20]) {
      const countOf = (byte: number) => [...read, ...served].filter((each) => each === byte).length;
      const succession = await succeed(path);
      using _socket = claim(succession);
      await succession.ready(["game"]);
      for (const client of clients) sendTo(client, to, round);
      await until(() => served.includes(round), "the datagram of the flow");
      assert.equal(countOf(round), 1);
      succession.abort(new Error("lost"));
      await until(() => countOf(round) === 4, "what the successor has not read");
      for (const client of clients) sendTo(client, to, round + 1);
      await until(() => countOf(round + 1) === 4, "what comes afterwards");
      await until(() => (sendTo(clients[0]!, to, round + 2), read.includes(round + 2)), "the flow to be the socket's again");
    }
  }));

test("Flows.end gives back the flow of one peer, and drained waits for the others", () =>
  connected(async ({ path, takeover, flows, to, clients, peers, known, served }) => {
    known.push(peers[1]!);
    const succession = await succeed(path);
    using socket = claim(succession);
    await succession.ready(["game"]);
    await succession.settle();
    await takeover.released;
    let isDrained = false;
    const drained = takeover.drained().then(() => isDrained = true);
    sendTo(clients[0]!, to, 1);
    flows.end(peers[0]!);
    assert.deepEqual(served, [1]);
    for (const client of clients) sendTo(client, to, 2);
    await until(() => served.length === 2, "the datagram of the flow that is left");
    assert.equal(bytesAt(socket).length, 3);
    await sleep(30);
    assert.equal(isDrained, false);
    assert.throws(() => flows.end({ family: "inet", hostname: "nowhere", port: 1 }), takeoverError("ERR_TAKEOVER_ADDRESS"));
    flows.end(peers[2]!);
    flows.end(peers[1]!);
    await until(() => isDrained, "the end of the last flow to be noticed");
    await drained;
    succession[Symbol.dispose]();
  }, { limits: { drainMs: 200_000 } }));

const EMFILE = -24;
let isFull = false;
const crowded = changed("socket", (family) => isFull && family === runtime.abi.constants.AF_INET ? EMFILE : null);
// What waiting needs stays open, and is no leak.
await openReadiness(crowded);

/** `drained` waits for the one flow, and for nothing else, though the application can forward as well. */
async function drainsWithItsFlow(seen: Runtime): Promise<void> {
  await connected(async ({ path, takeover, flows, peers }) => {
    const succession = await succeed(path);
    using _socket = claim(succession);
    isFull = true;
    await succession.ready(["game"]);
    isFull = false;
    await succession.settle();
    await takeover.released;
    let isDrained = false;
    const drained = takeover.drained().then(() => isDrained = true);
    await sleep(50);
    assert.equal(isDrained, false);
    flows.end(peers[3]!);
    await sleep(50);
    assert.equal(isDrained, false);
    flows.end(peers[0]!);
    await until(() => isDrained, "the end of the flow to be noticed");
    await drained;
    succession[Symbol.dispose]();
  }, { seen, flows: { route: () => null }, limits: { drainMs: 200_000 } });
}

test("Takeover has drained when its flows have ended one by one, kept or forwarded, though it can forward", async () => {
  await drainsWithItsFlow(runtime);
  await drainsWithItsFlow(crowded);
});

test("Takeover ends its flows when the time to drain is up", () =>
  connected(async ({ path, takeover, to, clients, served }) => {
    const succession = await succeed(path);
    using socket = claim(succession);
    await succession.ready(["game"]);
    await succession.settle();
    await takeover.released;
    assert.equal((await takeover.drained()).remaining, 0, "flows are no connections");
    sendTo(clients[0]!, to, 1);
    assert.deepEqual([served, bytesAt(socket)], [[], [1]]);
    succession[Symbol.dispose]();
  }, { limits: { drainMs: 50 } }));

test("Takeover leaves flows to its successor for which there is no descriptor, and says so", () =>
  connected(async ({ path, to, clients, peers, known, served, unserved }) => {
    known.push(peers[1]!, peers[2]!);
    const succession = await succeed(path);
    using socket = claim(succession);
    isFull = true;
    await succession.ready(["game"]);
    isFull = false;
    for (const client of clients) sendTo(client, to, 1);
    assert.equal(bytesAt(socket).length, 4);
    assert.deepEqual(served, []);
    assert.equal(unserved.length, 1);
    assert.equal(unserved[0]!.code, "ERR_TAKEOVER_NO_ROOM");
    assert.match(unserved[0]!.message, /^Cannot keep 3 flows of "game" with this process, they are the successor's: expected/);
    succession.abort(new Error("enough"));
  }, { seen: crowded }));

test("Takeover keeps no more flows than pinnedCount, and says so", () =>
  connected(async ({ path, to, clients, peers, known, served, unserved }) => {
    known.push(peers[1]!, peers[2]!);
    const succession = await succeed(path);
    using socket = claim(succession);
    await succession.ready(["game"]);
    for (const client of clients) sendTo(client, to, 1);
    await until(() => served.length === 2, "the flows that it keeps");
    assert.equal(bytesAt(socket).length, 2);
    assert.deepEqual(unserved.map(({ code }) => code), ["ERR_TAKEOVER_LIMIT"]);
    assert.match(unserved[0]!.message, /^Cannot keep 1 flows of "game"/);
    succession.abort(new Error("enough"));
  }, { limits: { pinnedCount: 2 } }));

test("Takeover hands over though the application's peers throw, or are none", async () => {
  let fail = () => {};
  await connected(async ({ path, to, clients, known, unserved }) => {
    const attempt = async (code: string) => {
      unserved.length = 0;
      const succession = await succeed(path);
      using socket = claim(succession);
      await succession.ready(["game"]);
      assert.equal(unserved.at(-1)?.code, code);
      sendTo(clients[1]!, to, 1);
      assert.deepEqual(bytesAt(socket), [1]);
      succession.abort(new Error("enough"));
    };
    for (const wrong of [{ family: "inet", hostname: "nowhere", port: 1 }, null, 7]) {
      known[0] = wrong as InetAddress;
      await attempt("ERR_TAKEOVER_ADDRESS");
    }
    fail = () => assert.fail("no peers");
    await attempt("ERR_TAKEOVER_PROTOCOL");
    assert.match(unserved[0]!.message, /^no peers$/);
  }, { asked: () => fail() });
});

test("Takeover goes on serving when its datagram callback throws", () =>
  connected(async ({ path, to, clients, unserved }) => {
    const succession = await succeed(path);
    using _socket = claim(succession);
    await succession.ready(["game"]);
    sendTo(clients[0]!, to, 1);
    sendTo(clients[0]!, to, 2);
    await until(() => unserved.length === 2, "both to be told of");
    assert.match(unserved[1]!.message, /^cannot serve 2$/);
    succession.abort(new Error("enough"));
  }, { flows: { datagram: (bytes) => assert.fail(`cannot serve ${bytes[0]}`) } }));

test("Takeover gives its flows back when its successor goes before the lease", () =>
  connected(async ({ path, to, clients, known, peers, read, abandoned }) => {
    const succession = await succeed(path);
    using _socket = claim(succession);
    known.push(...peers.slice(1));
    // The end of the connection lies behind ready.
    const ready = succession.ready(["game"]).catch(() => {});
    succession.abort(new Error("lost"));
    await ready;
    await until(() => abandoned.length === 1, "the incumbent to hear of it");
    await until(() => {
      for (const client of clients) sendTo(client, to, 1);
      return read.length >= 4;
    }, "its socket to hear all");
  }));

test("Takeover gives up its flows when it is closed in the lease", () =>
  connected(async ({ path, takeover, to, clients }) => {
    const succession = await succeed(path);
    using socket = claim(succession);
    await succession.ready(["game"]);
    await takeover.close();
    await until(() => (sendTo(clients[0]!, to, 1), bytesAt(socket).length > 0), "the flow to be the successor's");
    await succession.settle().catch(() => {});
    succession[Symbol.dispose]();
  }));
