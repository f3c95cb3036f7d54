/**
 * Groups that the kernel steers by a tag or a QUIC connection id, through a
 * hand-over, and with other programs that join the group and leave it.
 */

import assert from "node:assert/strict";
import { openReadiness } from "../../src/channels/readiness.ts";
import type { FlowHost, TravellingMember } from "../../src/handover/kernel_flows.ts";
import { SteeredFlows, trySteering } from "../../src/handover/steered.ts";
import type { Succession } from "../../src/handover/successor.ts";
import { defaultLimits } from "../../src/limits.ts";
import type { Endpoint } from "../../src/natives/endpoint.ts";
import type { ControlStream, Runtime } from "../../src/runtime.ts";
import { hearOwnGroups } from "../../src/sockets/datagram_options.ts";
import { disposeAll, OwnedDescriptor } from "../../src/sockets/descriptors.ts";
import { cookieOf, duplicate, identify } from "../../src/sockets/socket.ts";
import { attachToGroup } from "../../src/steering/attach.ts";
import { assemble } from "../../src/steering/bpf.ts";
import { everythingTo } from "../../src/steering/programs.ts";
import { openMember, ReuseportGroup } from "../../src/steering/reuseport.ts";
import { changed, claim, flowScene, type FlowScene, succeed } from "./flow_scene.ts";
import { datagramsAt, openClient, sendTo } from "./steering_ends.ts";
import { runtime, takeoverError, test, until } from "./support.ts";

const tag = { offset: 0, size: 1 } as const;

/** A kernel whose tables nobody may ask (NETLINK_SOCK_DIAG): nobody can tell who is in a group. */
const netlink = 16;
const EPROTONOSUPPORT = -93;
const blind = changed("socket", (family) => family === netlink ? EPROTONOSUPPORT : null);
// What waiting needs stays open, and is no leak.
await openReadiness(blind);

const bytesAt = (socket: OwnedDescriptor) => datagramsAt(socket).map(([byte]) => byte!);

/** The members that a successor is sent, by generation and slot. */
function membersOf(succession: Succession): [number, number | null][] {
  const { older, members } = succession.takeFlows("game");
  const found = members.map(({ generation, slot }: TravellingMember): [number, number | null] => [generation, slot]);
  disposeAll([...older, ...members].map(({ channel }) => channel));
  return found;
}

/** Clients that the kernel's hash would not send to one socket. */
const clientCount = 16;

/**
 * Each client sends the incumbent's tag, and one that is nobody's.
 *
 * @returns What came to the incumbent, to its successor, and to a stranger.
 */
async function sorted(
  { to, read }: FlowScene,
  successor: OwnedDescriptor,
  stranger: OwnedDescriptor | null,
): Promise<{ incumbent: number[]; successor: number[]; stranger: number[] }> {
  read.length = 0;
  for (let index = 0; index < clientCount; index++) {
    using client = openClient();
    sendTo(client, to, 1);
    sendTo(client, to, 0);
  }
  const found = { incumbent: read, successor: bytesAt(successor), stranger: stranger ? bytesAt(stranger) : [] };
  const rest = 2 * clientCount - found.successor.length - found.stranger.length;
  await until(() => read.length === rest, "what is the incumbent's");
  return found;
}

const bytes = (byte: number) => Array.from({ length: clientCount }, () => byte);
const right = { incumbent: bytes(1), successor: bytes(0), stranger: [] };

/** A stranger is there while the successor's socket joins, and leaves before that is offered anew. */
async function strangerLeaves(scene: FlowScene): Promise<{ incumbent: number[]; successor: number[]; stranger: number[] }> {
  const stranger = openMember(runtime, scene.to, "dgram", {});
  const first = await succeed(scene.path);
  disposeAll([claim(first)]);
  first.abort(new Error("not yet"));
  stranger[Symbol.dispose]();
  const second = await succeed(scene.path);
  using socket = claim(second);
  await second.ready(["game"]);
  try {
    return await sorted(scene, socket, null);
  } finally {
    second.abort(new Error("enough"));
    second[Symbol.dispose]();
  }
}

test("Takeover steers each flow right after a stranger has joined the group and left it in the middle", () =>
  flowScene({ tag }, async (scene) => assert.deepEqual(await strangerLeaves(scene), right)));

/** The newest of three generations, in whose group a stranger has the second slot; theirs are the third, fourth and first. */
function threeGenerations(seen: Runtime, [older, old, newest]: readonly [number, number, number] = [1, 2, 3]): {
  readonly flows: SteeredFlows;
  readonly stranger: OwnedDescriptor;
  /** What each generation's socket gets, of a datagram for each tag. */
  found(tags?: readonly number[]): Promise<number[][]>;
} & Disposable {
  const own = openMember(runtime, { family: "inet", hostname: "127.0.0.1", port: 0 }, "dgram", {});
  const { address } = new ReuseportGroup(runtime, [own.number]);
  const [stranger, first, second] = [1, 2, 3].map(() => openMember(runtime, address, "dgram", {}));
  const sockets = [first!, second!, own];
  const copyOf = ({ number }: OwnedDescriptor) => new OwnedDescriptor(runtime, duplicate(runtime, number));
  const members = [[newest, own, 0], [older, first!, 2], [old, second!, 3]] as const;
  const host: FlowHost = {
    ...{ runtime: seen, limits: defaultLimits, name: "game", generation: newest, options: { tag, datagram() {} } },
    datagram() {},
    failed: (error) => assert.fail(String(error)),
    isThere: () => true,
    changed() {},
  };
  const endpoint = { descriptor: own.number, identity: identify(runtime, own.number)! } as Endpoint;
  const travelling = members.map(([generation, socket, slot]) => ({ generation, channel: copyOf(socket), slot }));
  const flows = new SteeredFlows(host, endpoint, travelling);
  flows.serve();
  return {
    flows,
    stranger: stranger!,
    async found(tags = [1, 2, 0]) {
      for (let index = 0; index < clientCount; index++) {
        using client = openClient();
        for (const byte of tags) sendTo(client, address, byte);
      }
      return sockets.map(bytesAt);
    },
    [Symbol.dispose]() {
      flows.close();
      disposeAll([...sockets, stranger!]);
    },
  };
}

test("SteeredFlows.check finds the order again when a stranger's leaving has changed it", async () => {
  using three = threeGenerations(runtime);
  const each = [bytes(1), bytes(2), bytes(0)];
  assert.deepEqual(await three.found(), each, "the stranger's slot is left out");
  await three.flows.check();
  assert.deepEqual(await three.found(), each);
  three.stranger[Symbol.dispose]();
  // The kernel has moved the last into its slot, and knows no fourth any more.
  assert.notDeepEqual(await three.found(), each);
  await three.flows.check();
  assert.deepEqual(await three.found(), each);
});

test("SteeredFlows give a tag that has come round again to the newer generation", async () => {
  const found = async (...generations: [number, number, number]) => {
    using three = threeGenerations(runtime, generations);
    return await three.found([255, 1, 2]);
  };
  const own = Array.from({ length: clientCount }, () => [1, 2]).flat();
  assert.deepEqual(await found(1, 255, 256), [[], bytes(255), own], "the newest's own tag is 1 again");
  const others = Array.from({ length: clientCount }, () => [255, 2]).flat();
  assert.deepEqual(await found(256, 1, 257), [bytes(1), [], others], "the tag 1 is that of an older one and of a newer");
});

test("without the kernel's tables nobody notices that a stranger's leaving has changed the order", async () => {
  using three = threeGenerations(blind);
  three.stranger[Symbol.dispose]();
  await three.flows.check();
  assert.notDeepEqual(await three.found(), [bytes(1), bytes(2), bytes(0)]);
});

/** A stranger is in the middle, and stays. */
async function strangerStays(scene: FlowScene): Promise<{
  members: [number, number | null][];
  found: { incumbent: number[]; successor: number[]; stranger: number[] };
}> {
  using stranger = openMember(runtime, scene.to, "dgram", {});
  const succession = await succeed(scene.path);
  const members = membersOf(succession);
  using socket = claim(succession);
  await succession.ready(["game"]);
  try {
    datagramsAt(stranger);
    return { members, found: await sorted(scene, socket, stranger) };
  } finally {
    succession.abort(new Error("enough"));
  }
}

test("Takeover steers each flow right with a stranger in the group, and tells its successor the slots", () =>
  flowScene({ tag }, async (scene) => {
    assert.deepEqual(await strangerStays(scene), { members: [[1, 0], [0, 2]], found: right });
  }));

test("without a look at the kernel's tables a stranger would get the successor's datagrams", () =>
  flowScene({ tag }, async (scene) => {
    const { members, found } = await strangerStays(scene);
    assert.deepEqual([members, found], [[[1, 0], [0, 1]], { ...right, successor: [], stranger: bytes(0) }]);
  }, { seen: blind }));

test("Takeover refuses a successor that was told another order than there is now, and hands over to the next", () =>
  flowScene({ tag }, async (scene) => {
    const { path, to, read, abandoned } = scene;
    const stranger = openMember(runtime, to, "dgram", {});
    const first = await succeed(path);
    assert.deepEqual(membersOf(first), [[1, 0], [0, 2]]);
    stranger[Symbol.dispose]();
    await assert.rejects(first.ready(["game"]), takeoverError("ERR_TAKEOVER_STATE"));
    first[Symbol.dispose]();
    assert.deepEqual(abandoned.map(({ code }) => code), ["ERR_TAKEOVER_STATE"]);
    using client = openClient();
    for (const byte of [1, 0, 2]) sendTo(client, to, byte);
    await until(() => read.length === 3, "the incumbent to serve all");
    const second = await succeed(path);
    assert.deepEqual(membersOf(second), [[1, 0], [0, 1]]);
    using socket = claim(second);
    await second.ready(["game"]);
    assert.deepEqual(await sorted(scene, socket, null), right);
    second.abort(new Error("enough"));
  }));

test("Takeover refuses a successor when too many strangers are in the group to tell the order, and serves on", () =>
  flowScene({ tag }, async ({ path, to, read, abandoned }) => {
    const strangers = Array.from({ length: 17 }, () => openMember(runtime, to, "dgram", {}));
    await assert.rejects(succeed(path), takeoverError("ERR_TAKEOVER_STATE"));
    assert.match(abandoned[0]!.message, /17 sockets of other programs have joined it, expected at most 16/);
    using client = openClient();
    for (const byte of [1, 0, 2]) sendTo(client, to, byte);
    await until(() => read.length === 3, "the incumbent to serve all");
    disposeAll(strangers);
    // Nothing is left of the one that was refused.
    const second = await succeed(path);
    second.abort(new Error("enough"));
    second[Symbol.dispose]();
  }));

test("ReuseportGroup with a member of somebody else knows the slots of its own", () => {
  using opened = ((sockets: OwnedDescriptor[]) => ({ sockets, [Symbol.dispose]: () => disposeAll(sockets) }))([]);
  const { sockets } = opened;
  sockets.push(openMember(runtime, { family: "inet", hostname: "127.0.0.1", port: 0 }, "dgram", {}));
  const { address } = new ReuseportGroup(runtime, [sockets[0]!.number]);
  sockets.push(openMember(runtime, address, "dgram", {}), openMember(runtime, address, "dgram", {}));
  const group = new ReuseportGroup(runtime, [sockets[0]!.number, null, sockets[2]!.number]);
  const cookies = sockets.map(({ number }) => cookieOf(runtime, number));
  group.steer((slotOf) => [{ code: 0x06, k: slotOf(cookies[2]!) }]);
  using client = openClient();
  sendTo(client, address, 1);
  assert.deepEqual(sockets.map((socket) => datagramsAt(socket).length), [0, 0, 1]);
});

const quic = { idLength: 9, offset: 1, size: 2 } as const;
const idOf = (generation: number, length = 9) => {
  return Uint8Array.from({ length }, (_, at) => at === 1 ? generation >> 8 : at === 2 ? generation & 255 : 0xee);
};
/** The first byte tells the two headers apart; here it names the datagram, too. */
const shortHeader = (name: number, generation: number) => [0x40 + name, ...idOf(generation), 1, 2, 3];
const longHeader = (name: number, generation: number, length = 9) => {
  return [0xc0 + name, 0, 0, 0, 1, length, ...idOf(generation, length), 0, 1, 2, 3];
};

test("Takeover steers QUIC connection ids with short and long headers, and new connections to its successor", () =>
  flowScene({ tag: quic }, async ({ path, flows, to, read }) => {
    assert.equal(flows.strategy, "steered");
    const succession = await succeed(path);
    disposeAll([...Object.values(succession.takeFlows("game")).flat()].map(({ channel }) => channel));
    using socket = claim(succession);
    await succession.ready(["game"]);
    using client = openClient();
    sendTo(client, to, ...shortHeader(1, 1));
    sendTo(client, to, ...longHeader(2, 1));
    sendTo(client, to, ...shortHeader(3, 2));
    sendTo(client, to, ...longHeader(4, 2));
    // A client's own id, whatever is in it, and what is no QUIC at all.
    sendTo(client, to, ...longHeader(5, 1, 8));
    sendTo(client, to, 0x46, 0xee, 0, 1);
    sendTo(client, to, 0xc7, 0, 0, 0, 1);
    await until(() => read.length === 2, "what has the incumbent's ids");
    assert.deepEqual([read, bytesAt(socket)], [[0x41, 0xc2], [0x43, 0xc4, 0xc5, 0x46, 0xc7]]);
    succession.abort(new Error("enough"));
  }));

/** Hears that the incumbent accepts again. */
const resumed = ({ takeover }: FlowScene) => new Promise((resolve) => takeover.on("resumed", resolve));

test("Takeover has the group steered to itself again when a successor that it has lost takes it late", () =>
  flowScene({ tag }, async (scene) => {
    const { path, to, read, served } = scene;
    const succession = await succeed(path);
    assert.deepEqual(membersOf(succession), [[1, 0], [0, 1]]);
    using socket = claim(succession);
    await succession.ready(["game"]);
    const isResumed = resumed(scene);
    succession.abort(new Error("silent"));
    await isResumed;
    using client = openClient();
    for (const count of [1, 2]) {
      attachToGroup(runtime, socket.number, assemble(everythingTo(1)));
      sendTo(client, to, 0);
      await until(() => served.length === count, "what has come to the socket of the lost one");
      sendTo(client, to, 0);
      await until(() => read.length === count, "what comes afterwards");
    }
  }));

/** A runtime whose control stream hears nothing after the first chunk until it is let go, and then everything at once. */
function stoppable(): { readonly seen: Runtime; stop(): void; heard(): string; goOn(): void } {
  let held: Uint8Array[] | null = null;
  let close = (): void => {};
  let isClosed = false;
  let hear = (_: Uint8Array): void => {};
  const adoptStream = (number: number): ControlStream => {
    const stream = runtime.adoptStream(number);
    const start: ControlStream["start"] = (handlers) => {
      const { data } = handlers;
      [hear, close] = [data, () => handlers.close()];
      stream.start({
        data: (bytes) => held ? void held.push(bytes.slice()) : data(bytes),
        close: () => held ? void (isClosed = true) : close(),
      });
    };
    return new Proxy(stream, {
      get(target, name) {
        if (name === "start") return start;
        const found = Reflect.get(target, name, target) as unknown;
        return typeof found === "function" ? found.bind(target) : found;
      },
    });
  };
  return {
    seen: { ...runtime, adoptStream },
    stop: () => held = [],
    heard: () => held!.map((bytes) => new TextDecoder().decode(bytes)).join(""),
    goOn() {
      const all = held!.flatMap((bytes) => [...bytes]);
      held = null;
      hear(Uint8Array.from(all));
      if (isClosed) close();
    },
  };
}

test("Succession.ready rejects when the lease has been taken back before it was heard of", () =>
  flowScene({ tag }, async (scene) => {
    const { seen, stop, heard, goOn } = stoppable();
    using succession = await succeed(scene.path, seen);
    membersOf(succession);
    using _socket = claim(succession);
    const isResumed = resumed(scene);
    stop();
    const ready = succession.ready(["game"]);
    const failure = assert.rejects(ready, takeoverError("ERR_TAKEOVER_REVOKED"));
    await isResumed;
    await until(() => heard().includes('"refuse"'), "the lease, and its end");
    goOn();
    await failure;
  }, { limits: { silenceMs: 50 } }));

/** Options of ip(7), which take addresses. */
const IPPROTO_IP = 0;
const IP_MULTICAST_IF = 32;
const IP_ADD_MEMBERSHIP = 35;
const group = "239.255.18.7";
const bytesOf = (...hostnames: string[]) => Uint8Array.from(hostnames.flatMap((each) => each.split(".").map(Number)));

function setAddresses(socket: OwnedDescriptor, option: number, ...hostnames: string[]): void {
  const value = bytesOf(...hostnames);
  assert.equal(runtime.libc.setsockopt(socket.number, IPPROTO_IP, option, value, value.length), 0);
}

test("Takeover's sockets for successors hear no multicast group that somebody else has joined", () =>
  flowScene({ tag }, async ({ path, to, read, served }) => {
    const succession = await succeed(path);
    membersOf(succession);
    using socket = claim(succession);
    await succession.ready(["game"]);
    using member = openClient();
    setAddresses(member, IP_ADD_MEMBERSHIP, group, "127.0.0.1");
    using client = openClient();
    setAddresses(client, IP_MULTICAST_IF, "127.0.0.1");
    sendTo(client, { ...to, hostname: group }, 7);
    // The incumbent's is as the application has left it.
    await until(() => read.length === 1, "the incumbent to hear it");
    sendTo(client, { ...to, hostname: "127.0.0.1" }, 0);
    assert.deepEqual(bytesAt(socket), [0]);
    succession.abort(new Error("enough"));
    assert.deepEqual(served, []);
  }, { hostname: "0.0.0.0" }));

test("Takeover serves at once what comes to a socket that it has opened for a successor, and no program has chosen", () =>
  flowScene({ tag }, async ({ path, to, served }) => {
    const succession = await succeed(path);
    membersOf(succession);
    using socket = claim(succession);
    attachToGroup(runtime, socket.number, assemble(everythingTo(1)));
    using client = openClient();
    sendTo(client, to, 0);
    await until(() => served.length === 1, "the datagram");
    succession.abort(new Error("enough"));
    succession[Symbol.dispose]();
  }));

test("SteeredFlows serve what comes to the socket of a generation that has ended, in a multicast group as well", async () => {
  const first = openMember(runtime, { family: "inet", hostname: "0.0.0.0", port: 0 }, "dgram", {});
  const { address } = new ReuseportGroup(runtime, [first.number]);
  using own = openMember(runtime, address, "dgram", { prepare: (number) => hearOwnGroups(runtime, number) });
  setAddresses(first, IP_ADD_MEMBERSHIP, group, "127.0.0.1");
  const served: number[] = [];
  const last = 4;
  const host: FlowHost = {
    ...{ runtime, limits: defaultLimits, name: "game", generation: 2, options: { tag, datagram() {} } },
    datagram([byte]) {
      served.push(byte!);
      if (byte === last) flows.close();
    },
    failed: (error) => assert.fail(String(error)),
    isThere: () => false,
    changed() {},
  };
  const endpoint = { descriptor: own.number, identity: identify(runtime, own.number)! } as Endpoint;
  const copy = new OwnedDescriptor(runtime, duplicate(runtime, own.number));
  const members = [{ generation: 1, channel: first, slot: 0 }, { generation: 2, channel: copy, slot: 1 }];
  const flows = new SteeredFlows(host, endpoint, members);
  using client = openClient();
  setAddresses(client, IP_MULTICAST_IF, "127.0.0.1");
  sendTo(client, { ...address, hostname: group }, 1);
  flows.serve();
  assert.deepEqual(served, [1]);
  for (const byte of [2, 3]) {
    sendTo(client, { ...address, hostname: group }, byte);
    await until(() => served.at(-1) === byte, "the datagram");
  }
  // The application may end everything in its callback.
  sendTo(client, { ...address, hostname: group }, last);
  flows.serve();
  assert.deepEqual([served, bytesAt(own)], [[1, 2, 3, last], []]);
});

const SO_RCVBUFFORCE = 33;
const ENOBUFS = -105;
let isFull = false;
const full = changed("setsockopt", (_, _level, option) => isFull && option === SO_RCVBUFFORCE ? ENOBUFS : null);
await openReadiness(full);

test("Takeover closes a socket for a successor that it cannot set up, refuses that, and hands over to the next", () =>
  flowScene({ tag }, async ({ path, abandoned }) => {
    isFull = true;
    await assert.rejects(succeed(path));
    isFull = false;
    assert.match(abandoned[0]!.message, /setsockopt ENOBUFS/);
    const succession = await succeed(path);
    assert.deepEqual(membersOf(succession), [[1, 0], [0, 1]]);
    succession.abort(new Error("enough"));
    succession[Symbol.dispose]();
  }, { seen: full }));

const F_DUPFD_CLOEXEC = 1_030;
const EMFILE = -24;
let copyCount = Infinity;
const crowded = changed("fcntl", (_, command) => command === F_DUPFD_CLOEXEC && copyCount-- <= 0 ? EMFILE : null);
await openReadiness(crowded);

test("SteeredFlows.travel leaves no copy behind when there is no descriptor for the next", () => {
  using three = threeGenerations(crowded);
  copyCount = 2;
  assert.throws(() => three.flows.travel(), { code: "EMFILE" });
  copyCount = Infinity;
  const travelling = three.flows.travel();
  disposeAll(travelling.map(({ channel }) => channel));
  assert.equal(travelling.length, 3);
});

test("trySteering touches no group: its socket is bound nowhere", () => {
  let boundCount = 0;
  trySteering(changed("bind", () => (boundCount++, null)), tag);
  assert.equal(boundCount, 0);
});
