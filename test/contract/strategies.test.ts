/**
 * Which strategy an endpoint's flows have: the best that the application has
 * means for and the machine gives, or an error; and what is wrong with means.
 */

import assert from "node:assert/strict";
import { decodeSockaddr, formatAddress, type InetAddress } from "../../src/c/sockaddr.ts";
import { openReadiness } from "../../src/channels/readiness.ts";
import { sendMessage } from "../../src/channels/message.ts";
import type { FlowOptions } from "../../src/handover/flow_options.ts";
import type { Succession } from "../../src/handover/successor.ts";
import type { Runtime } from "../../src/runtime.ts";
import { disposeAll, OwnedDescriptor } from "../../src/sockets/descriptors.ts";
import { cookieOf, integerOption, localAddress } from "../../src/sockets/socket.ts";
import { mvfstFormat } from "../../src/steering/forward_frames.ts";
import { isShared, openMember } from "../../src/steering/reuseport.ts";
import { nodeDatagram } from "./ends.ts";
import { changed, claim, flowScene, type FlowScene, succeed } from "./flow_scene.ts";
import { datagramsAt, linkOver, openClient, sendTo } from "./steering_ends.ts";
import { runtime, takeoverError, test, until } from "./support.ts";

const tag = { offset: 0, size: 1 } as const;
const peers = () => [];
const route = (bytes: Uint8Array) => bytes[0]!;
const datagram = () => {};

const SO_ATTACH_REUSEPORT_CBPF = 51;
const ENOPROTOOPT = -92;
const ENOMEM = -12;

/** A kernel that takes no program for a group. */
const without = changed("setsockopt", (_, _level, option) => option === SO_ATTACH_REUSEPORT_CBPF ? ENOPROTOOPT : null);
/** One whose memory for them has a limit that the program of a tag is over. */
let sizes: number[] = [];
const small = changed("setsockopt", (_, _level, option, value) => {
  if (option !== SO_ATTACH_REUSEPORT_CBPF) return null;
  sizes.push((value as Uint8Array)[0]! + 256 * (value as Uint8Array)[1]!);
  return sizes.at(-1)! > 1 ? ENOMEM : null;
});
/** A process that may bind so many sockets more at the address of the endpoint; placeholders are elsewhere. */
let bindableCount = Infinity;
const EACCES = -13;
const bound = changed("bind", (_, address) => {
  const at = formatAddress(decodeSockaddr(runtime.abi, address as Uint8Array)!);
  return at.startsWith("127.0.0.1:") && bindableCount-- <= 0 ? EACCES : null;
});
// What waiting needs stays open, and is no leak.
for (const each of [without, small, bound]) await openReadiness(each);

/** The strategy that is chosen, and what is told of the others. */
async function chosen(flows: Partial<FlowOptions>, seen?: Runtime): Promise<[string | null, string[][]]> {
  let found: [string | null, string[][]] = [null, []];
  await flowScene(flows, async ({ flows, opened }) => {
    assert.equal(opened.length, 1);
    assert.equal(opened[0]!.strategy, flows.strategy);
    found = [flows.strategy, opened[0]!.refused.map(({ strategy, code }) => [strategy, code])];
  }, seen ? { seen } : {});
  return found;
}

test("Takeover.bind chooses the best strategy that there are means for", async () => {
  assert.deepEqual(await chosen({ tag, peers, route }), ["steered", []]);
  assert.deepEqual(await chosen({ peers, route }), ["connected", []]);
  assert.deepEqual(await chosen({ tag }), ["steered", []]);
  assert.deepEqual(await chosen({ peers }), ["connected", []]);
  assert.deepEqual(await chosen({ route }), ["forwarded", []]);
});

test("Flows.tag is what this process issues, and null without the option", async () => {
  await flowScene({ tag: { ...tag, mask: 0xf8 } }, ({ flows }) => Promise.resolve(assert.equal(flows.tag, 8)));
  await flowScene({ route }, ({ flows }) => Promise.resolve(assert.equal(flows.tag, null)));
});

test("Takeover.bind falls to the next strategy where the kernel refuses a program, and tells so", async () => {
  const refusal = "ERR_TAKEOVER_UNSUPPORTED";
  assert.deepEqual(await chosen({ tag, peers, route }, small), ["connected", [["steered", refusal]]]);
  assert.ok(sizes.some((size) => size > 1) && sizes.includes(1), `programs of ${sizes} instructions`);
  assert.deepEqual(await chosen({ tag, route }, small), ["forwarded", [["steered", refusal]]]);
  const both = [["steered", refusal], ["connected", refusal]];
  assert.deepEqual(await chosen({ tag, peers, route }, without), ["forwarded", both]);
});

test("Takeover.bind falls to the next strategy where this process may open no other socket at the address", async () => {
  const both = [["steered", "EACCES"], ["connected", "EACCES"]];
  bindableCount = 2;
  assert.deepEqual(await chosen({ tag, peers, route }, bound), ["forwarded", both]);
  bindableCount = 3;
  assert.deepEqual(await chosen({ tag, peers, route }, bound), ["steered", []]);
  bindableCount = Infinity;
});

/** A process that steers, and may open no socket for its successor, which gets its own. */
async function givesItsOwn(
  flows: Partial<FlowOptions>,
  use: (scene: FlowScene, socket: OwnedDescriptor, channel: OwnedDescriptor) => Promise<void>,
): Promise<void> {
  await flowScene({ tag, ...flows }, async (scene) => {
    assert.equal(scene.flows.strategy, "steered");
    bindableCount = 0;
    const succession = await succeed(scene.path);
    bindableCount = Infinity;
    const { older, members } = succession.takeFlows("game");
    const [member] = members;
    assert.deepEqual([older.length, members.length, member!.generation, member!.slot], [1, 1, 0, 0]);
    using socket = claim(succession);
    assert.equal(cookieOf(runtime, member!.channel.number), cookieOf(runtime, socket.number));
    disposeAll(members.map(({ channel }) => channel));
    await succession.ready(["game"]);
    await use(scene, socket, older[0]!.channel);
    const resumed = new Promise((resolve) => scene.takeover.on("resumed", resolve));
    succession.abort(new Error("enough"));
    await resumed;
    using client = openClient();
    sendTo(client, scene.to, 1);
    await until(() => scene.read.includes(1), "the incumbent to read again");
  }, { seen: bound });
}

test("Takeover that may open no other socket gives its successor its own, with its flows, and says so", () =>
  givesItsOwn({}, async ({ to, read, unserved }, socket, channel) => {
    channel[Symbol.dispose]();
    assert.deepEqual(unserved.map(({ code }) => code), ["EACCES"]);
    assert.match(unserved[0]!.message, /Cannot keep the flows of "game" with this process/);
    using client = openClient();
    for (const byte of [2, 1, 0]) sendTo(client, to, byte);
    assert.deepEqual([datagramsAt(socket), read], [[[2], [1], [0]], []]);
  }));

test("Takeover that may open no other socket keeps its flows by forwarding, where there is a route", () =>
  givesItsOwn({ route }, async ({ served, unserved }, _, channel) => {
    const link = linkOver(channel);
    link.forward(Uint8Array.of(1, 2, 3), peer);
    await until(() => served.length === 1, "what is forwarded");
    link.close();
    assert.deepEqual(unserved, []);
  }));

test("Takeover.bind throws the refusal when no strategy is left, before it has opened anything", async () => {
  await flowScene({ route }, async ({ takeover, to, read }) => {
    const attempt = (flows: FlowOptions) => takeover.bind("other", { port: 0 }, () => assert.fail("it was called"), { flows });
    await assert.rejects(attempt({ tag, datagram }), takeoverError("ERR_TAKEOVER_UNSUPPORTED"));
    await assert.rejects(attempt({ tag, peers, datagram }), takeoverError("ERR_TAKEOVER_UNSUPPORTED"));
    using client = openClient();
    sendTo(client, to, 1);
    await until(() => read.length === 1, "the endpoint that is there");
  }, { seen: without });
});

test("Takeover.bind refuses flows that cannot be, and traffic goes on", () =>
  flowScene({ route }, async ({ takeover, to, read }) => {
    const attempt = (flows: unknown) =>
      takeover.bind("other", { port: 0 }, () => assert.fail("it was called"), { flows: flows as FlowOptions });
    for (const flows of [{}, { datagram }, { route }, { datagram: 1, route }, { datagram, route: 1 }]) {
      await assert.rejects(attempt(flows), takeoverError("ERR_TAKEOVER_STATE"), JSON.stringify(flows));
    }
    for (const flows of [{ datagram, tag: 1 }, { datagram, tag: null }, { datagram, peers: [] }, { datagram, route, format: "x" }]) {
      await assert.rejects(attempt(flows), takeoverError("ERR_TAKEOVER_STATE"), JSON.stringify(flows));
    }
    const wrong = [{ offset: 65_507, size: 1 }, { offset: 0, size: 3 }, { offset: -1, size: 1 }, {}, { ...tag, mask: 256 }];
    const unfit = [{ idLength: 8, offset: 7, size: 2 }, { idLength: 21, offset: 0, size: 1 }, { idLength: 0, offset: 0, size: 1 }];
    const few = [{ ...tag, mask: 0x0f }, { ...tag, mask: 0xf0 }, { idLength: 9, offset: 0, size: 4, mask: 0x80000001 }];
    for (const each of [...wrong, ...unfit, ...few]) {
      await assert.rejects(attempt({ datagram, tag: each }), takeoverError("ERR_TAKEOVER_RANGE"), JSON.stringify(each));
    }
    using client = openClient();
    sendTo(client, to, 5);
    await until(() => read.length === 1, "the endpoint that is there");
  }));

test("Takeover.bind with a strategy that needs a group finds the address taken by another group all the same", async () => {
  using other = openMember(runtime, { family: "inet", hostname: "127.0.0.1", port: 0 }, "dgram", {});
  const { port } = localAddress(runtime, other.number) as InetAddress;
  await flowScene({ route }, async ({ takeover }) => {
    const bind = (reusePort: boolean, flows: FlowOptions) =>
      takeover.bind("other", { hostname: "127.0.0.1", port, reusePort }, nodeDatagram.open, { flows });
    await assert.rejects(bind(false, { tag, peers, datagram }), { code: "EADDRINUSE" });
    // One that shares it knowingly has no order to go by.
    await assert.rejects(bind(true, { tag, peers, datagram }), takeoverError("ERR_TAKEOVER_STATE"));
  });
});

test("Takeover.bind with a strategy that needs a group finds an address taken that overlaps with its own", async () => {
  for (const [first, second] of [["0.0.0.0", "127.0.0.1"], ["127.0.0.1", "0.0.0.0"], ["127.0.0.1", "::"]] as const) {
    await flowScene({ tag }, async ({ to }) => {
      await flowScene({ route }, async ({ takeover }) => {
        const flows = { tag, peers, datagram };
        const bind = takeover.bind("other", { hostname: second, port: to.port }, nodeDatagram.open, { flows });
        await assert.rejects(bind, { code: "EADDRINUSE" }, `${first}, ${second}`);
      });
    }, { hostname: first });
  }
});

/** A kernel in which another server begins its group at the same moment. */
let rival: OwnedDescriptor | null = null;
const crowded = changed("bind", (descriptor, address) => {
  const at = decodeSockaddr(runtime.abi, address as Uint8Array)!;
  if (at.family === "inet" && isShared(runtime, descriptor)) rival ??= openMember(runtime, at, "dgram", {});
  return null;
});
await openReadiness(crowded);

test("Takeover.bind with a strategy that needs a group sees another server that begins at the same moment", async () => {
  const scene = flowScene({ tag, route }, () => assert.fail("it was bound"), { seen: crowded });
  await assert.rejects(scene, { code: "EADDRINUSE" });
  rival?.[Symbol.dispose]();
});

/** A kernel that notes at which ports sockets with SO_REUSEPORT are bound. */
let sharedPorts: number[] = [];
const noting = changed("bind", (descriptor, address) => {
  const at = decodeSockaddr(runtime.abi, address as Uint8Array)!;
  if (at.family === "inet" && isShared(runtime, descriptor)) sharedPorts.push(at.port);
  return null;
});
await openReadiness(noting);

test("Takeover.bind lets the kernel choose no port that another group of this user may have", async () => {
  await flowScene({ tag }, ({ to }) => {
    assert.ok(sharedPorts.length >= 2 && sharedPorts.every((port) => port === to.port), `${sharedPorts}, ${to.port}`);
    return Promise.resolve();
  }, { seen: noting });
  sharedPorts = [];
});

test("Takeover.bind shares no address for a strategy that it could not have", async () => {
  await flowScene({ tag, route }, async ({ flows, to }) => {
    assert.equal(flows.strategy, "forwarded");
    assert.throws(() => openMember(runtime, to, "dgram", {}), { code: "EADDRINUSE" });
  }, { seen: small });
  await flowScene({ tag, route }, async ({ flows, to }) => {
    assert.equal(flows.strategy, "steered");
    openMember(runtime, to, "dgram", {})[Symbol.dispose]();
  });
});

/** The near end over which a successor forwards. */
function linkOf(succession: Succession): { channel: OwnedDescriptor; format: string } {
  const { older, members } = succession.takeFlows("game");
  disposeAll([...older.slice(1), ...members].map(({ channel }) => channel));
  return older[0]!;
}

const peer: InetAddress = { family: "inet", hostname: "192.0.2.1", port: 7 };

test("Takeover reads mvfst's format when it has said so", () =>
  flowScene({ route, format: "mvfst" }, async ({ path, served, unserved }) => {
    const succession = await succeed(path);
    const { channel, format } = linkOf(succession);
    assert.equal(format, "mvfst");
    const link = linkOver(channel, { format: mvfstFormat(runtime.abi, () => 0n) });
    await succession.ready([]);
    succession.abort(new Error("enough"));
    const second = await succeed(path);
    link.close();
    using socket = claim(second);
    using other = linkOver(linkOf(second).channel, { format: mvfstFormat(runtime.abi, () => 0n) });
    await second.ready(["game"]);
    for (const byte of [1, 2, 3]) other.forward(Uint8Array.of(byte), peer);
    await until(() => served.length === 3, "the datagrams");
    assert.deepEqual([served, unserved], [[1, 2, 3], []]);
    assert.ok(socket.number >= 0);
    second.abort(new Error("enough"));
  }));

/** What a successor that is not right does to the incumbent's end: it alone ends, and everything else goes on. */
async function endsAlone(
  { path, to, served, unserved }: FlowScene,
  code: string,
  spoil: (link: OwnedDescriptor) => void,
): Promise<void> {
  const succession = await succeed(path);
  using socket = claim(succession);
  using link = linkOf(succession).channel;
  await succession.ready(["game"]);
  spoil(link);
  await until(() => unserved.length === 1, "the incumbent to notice");
  assert.deepEqual([unserved[0]!.code, served], [code, []]);
  using client = openClient();
  sendTo(client, to, 1);
  assert.deepEqual(datagramsAt(socket), [[1]]);
  await succession.settle();
  succession[Symbol.dispose]();
}

const SO_PEERCRED = 17;
let isStranger = false;
/** A kernel that names another user at the other end of packets. */
const strange = changed("getsockopt", (descriptor, _level, option, value) => {
  if (!isStranger || option !== SO_PEERCRED || !isPackets(descriptor)) return null;
  new DataView((value as Uint8Array).buffer).setUint32(4, 4_711, true);
  return 0;
});
await openReadiness(strange);

function isPackets(descriptor: number): boolean {
  const { SO_TYPE, SOCK_SEQPACKET } = runtime.abi.constants;
  return integerOption(runtime, descriptor, SO_TYPE) === SOCK_SEQPACKET;
}

test("Takeover takes nothing from a user that may not forward, and its hand-over goes on", () => {
  isStranger = true;
  return flowScene({ route }, (scene) => endsAlone(scene, "ERR_TAKEOVER_USER", () => {}), { seen: strange })
    .finally(() => isStranger = false);
});

test("Takeover takes nothing more after a packet that is malformed, and its hand-over goes on", () =>
  flowScene({ route }, (scene) =>
    endsAlone(scene, "ERR_TAKEOVER_PROTOCOL", ({ number }) => {
      assert.equal(sendMessage(runtime, number, { bytes: Uint8Array.of(9, 9, 9) }), 3);
    })));
