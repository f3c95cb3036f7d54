/**
 * The links between processes with flows: what goes to older ones and in which
 * format, what becomes of it at a release, and where there is no descriptor.
 */

import assert from "node:assert/strict";
import type { InetAddress } from "../../src/c/sockaddr.ts";
import { openReadiness } from "../../src/channels/readiness.ts";
import { EndpointFlows } from "../../src/handover/endpoint_flows.ts";
import { FlowLinks } from "../../src/handover/flow_links.ts";
import type { FlowOptions } from "../../src/handover/flow_options.ts";
import { ProcessFlows } from "../../src/handover/flows.ts";
import type { FlowHost, KernelFlows } from "../../src/handover/kernel_flows.ts";
import { defaultLimits } from "../../src/limits.ts";
import type { Endpoint } from "../../src/natives/endpoint.ts";
import type { Runtime } from "../../src/runtime.ts";
import { disposeAll, openDescriptors, type OwnedDescriptor } from "../../src/sockets/descriptors.ts";
import { identify, openPair } from "../../src/sockets/socket.ts";
import { receivePacket } from "../../src/steering/forward_channel.ts";
import { mvfstFormat, ownFormat } from "../../src/steering/forward_frames.ts";
import { changed, flowScene, succeed } from "./flow_scene.ts";
import { openClient } from "./steering_ends.ts";
import { patienceMs, runtime, sleep, takeoverError, test, until } from "./support.ts";

const route = (bytes: Uint8Array) => bytes[0]!;
const datagram = () => {};
const peer: InetAddress = { family: "inet", hostname: "192.0.2.1", port: 7 };

/** Every packet that has arrived at the end of a link. */
function packetsAt({ number }: OwnedDescriptor): Uint8Array<ArrayBuffer>[] {
  const found: Uint8Array<ArrayBuffer>[] = [];
  for (;;) {
    const packet = receivePacket(runtime, number);
    if (typeof packet === "number" || packet.length === 0) return found;
    found.push(packet);
  }
}

/** Links to older processes, the ends of those, and what they have told. */
interface Linked {
  readonly links: FlowLinks;
  readonly ends: readonly OwnedDescriptor[];
  readonly failures: readonly { readonly code: string }[];
}

/** Each older process reads a format. */
function linksTo(formats: readonly string[], differing: Partial<FlowHost> = {}): Linked {
  const failures: { code: string }[] = [];
  const host: FlowHost = {
    ...{ runtime, limits: defaultLimits, name: "game", generation: 9, options: { route, datagram }, datagram },
    failed: (error) => failures.push(error as { code: string }),
    isThere: () => true,
    changed() {},
    ...differing,
  };
  const links = new FlowLinks(host);
  const pairs = formats.map(() => openPair(runtime, "seqpacket"));
  links.add(formats.map((format, index) => ({ generation: index + 1, channel: pairs[index]![0], format })), () => {});
  return { links, ends: pairs.map(([, end]) => end), failures };
}

test("FlowLinks write to each older process in its own format, and to none in one that they do not know", async () => {
  const { links, ends, failures } = linksTo(["own", "mvfst", "unheard of"]);
  assert.deepEqual(failures.map(({ code }) => code), ["ERR_TAKEOVER_UNSUPPORTED"]);
  assert.deepEqual([1, 2, 3].map((generation) => links.take(Uint8Array.of(generation, 42), peer)), [true, true, false]);
  const packets: Uint8Array<ArrayBuffer>[][] = [[], []];
  await until(() => {
    for (const index of [0, 1]) packets[index]!.push(...packetsAt(ends[index]!));
    return packets.every(({ length }) => length === 1);
  }, "both packets");
  const [own, mvfst] = packets.flat();
  assert.deepEqual(ownFormat.decode(own!), [{ bytes: Uint8Array.of(1, 42), peer }]);
  assert.deepEqual(mvfstFormat(runtime.abi, () => 0n).decode(mvfst!), [{ bytes: Uint8Array.of(2, 42), peer }]);
  assert.equal(links.isThere(3), true);
  links.endUnknown();
  assert.deepEqual([1, 2, 3].map((generation) => links.isThere(generation)), [true, true, false]);
  links.close();
  disposeAll(ends);
});

test("FlowLinks.take leaves to this process what it cannot forward, and says why", () => {
  let fail: () => number = () => assert.fail("no idea");
  const { links, ends, failures } = linksTo(["own"], { options: { route: () => fail(), datagram } });
  const take = (from: InetAddress) => links.take(Uint8Array.of(1), from);
  assert.equal(take(peer), false);
  fail = () => 1;
  assert.equal(take({ family: "inet6", hostname: "fe80::1%nowhere", port: 7 }), false);
  assert.equal(take({ ...peer, hostname: "localhost" }), false);
  assert.deepEqual(failures.map(({ code }) => code), ["ERR_ASSERTION", "ERR_TAKEOVER_ADDRESS", "ERR_TAKEOVER_ADDRESS"]);
  assert.equal(take({ ...peer, port: 0 }), false, "nobody can answer");
  assert.equal(take(peer), true);
  assert.equal(failures.length, 3);
  links.close();
  disposeAll(ends);
});

test("FlowLinks pass the formats on with the links", () => {
  const { links, ends } = linksTo(["own", "mvfst"]);
  const offered = links.offer();
  assert.deepEqual(offered.map(({ generation, format }) => [generation, format]), [[9, "own"], [2, "mvfst"], [1, "own"]]);
  disposeAll([...offered.map(({ channel }) => channel), ...ends]);
  links.close();
});

const F_DUPFD_CLOEXEC = 1_030;
let copyCount = Infinity;
/** Descriptors can be copied so many more times. */
const crowded = changed("fcntl", (_descriptor, command) => command === F_DUPFD_CLOEXEC && copyCount-- <= 0 ? -24 : null);
await openReadiness(crowded);

test("FlowLinks and EndpointFlows close what they have copied when there is no descriptor for all", () => {
  const { links, ends } = linksTo(["own", "own"], { runtime: crowded });
  copyCount = 1;
  assert.throws(() => links.offer(), { code: "EMFILE" });
  links.close();
  const owner = { runtime: crowded, limits: defaultLimits, generation: 1, failed() {} };
  const flows = new EndpointFlows(owner, "game", { route, datagram });
  let askedCount = 0;
  flows.kernel = { travel: () => (askedCount++, assert.fail("no descriptor")) } as unknown as KernelFlows;
  assert.throws(() => flows.offer(), /no descriptor/);
  flows.kernel = null;
  flows.close();
  assert.equal(askedCount, 1);
  copyCount = Infinity;
  disposeAll(ends);
});

/** A process that is released while an older one does not read, that one's end, and what has become of the rest. */
interface Released {
  readonly flows: ProcessFlows;
  readonly end: OwnedDescriptor;
  readonly served: readonly number[];
  readonly failures: readonly { readonly code: string; readonly message: string }[];
}

function releasedWhileFull(): Released {
  const [near, end] = openPair(runtime, "seqpacket");
  const served: number[] = [];
  const failures: { code: string; message: string }[] = [];
  const failed = (error: unknown) => void failures.push(error as { code: string; message: string });
  const flows = new ProcessFlows({ runtime, limits: defaultLimits, generation: 2, failed });
  const options: FlowOptions = { route, datagram: (bytes) => served.push(bytes[0]!) };
  const own = flows.begin("game", options);
  const older = [{ generation: 1, channel: near, format: "own" }];
  flows.opened({ name: "game" } as Endpoint, own, { older, members: [] });
  for (let count = 0; count < manyCount; count++) assert.equal(own.take(new Uint8Array(2_000).fill(1), peer), true);
  flows.released();
  return { flows, end, served, failures };
}

/** Datagrams, of which the socket to an older process holds some. */
const manyCount = 500;

test("ProcessFlows.ended waits until older processes have been sent what was read for them", async () => {
  const { flows, end, served, failures } = releasedWhileFull();
  let isEnded = false;
  const ended = flows.ended(patienceMs).then(() => isEnded = true);
  await sleep(20);
  assert.equal(isEnded, false);
  let count = 0;
  await until(() => {
    for (const packet of packetsAt(end)) count += ownFormat.decode(packet).length;
    return isEnded;
  }, "the end");
  await ended;
  assert.deepEqual([count, served, failures], [manyCount, [], []]);
  end[Symbol.dispose]();
});

test("ProcessFlows.ended gives up what older processes do not read, and says how much", async () => {
  const { flows, end, served, failures } = releasedWhileFull();
  await flows.ended(10);
  const count = packetsAt(end).flatMap((packet) => ownFormat.decode(packet)).length;
  assert.deepEqual([served, failures.map(({ code }) => code)], [[], ["ERR_TAKEOVER_LIMIT"]]);
  const expected = `Cannot forward ${manyCount - count} datagrams of "game" to generation 1`;
  assert.ok(failures[0]!.message.startsWith(expected), failures[0]!.message);
  end[Symbol.dispose]();
});

test("ProcessFlows serve what waits for an older process once that has ended", async () => {
  const { flows, end, served, failures } = releasedWhileFull();
  end[Symbol.dispose]();
  await flows.ended(patienceMs);
  assert.ok(served.length > 0 && served.length < manyCount, `${served.length} were served`);
  assert.deepEqual(failures, []);
});

let room = Infinity;
/** A process that may open so many more descriptors. */
const narrow = changed("getrlimit", (_resource, limit) => {
  if (room === Infinity) return null;
  new DataView(limit!.buffer).setBigUint64(0, BigInt(openDescriptors(runtime).length + room), true);
  return 0;
});
await openReadiness(narrow);

test("Takeover refuses a successor that has room for its sockets, but not for what belongs to their flows", async () => {
  // The control socket, its own, and the link; where the kernel steers also both members of the group.
  for (const [flows, count] of [[{ route }, 3], [{ tag: { offset: 0, size: 1 } as const }, 5]] as const) {
    await flowScene(flows, async ({ path, abandoned }) => {
      room = count + defaultLimits.spareCount - 1;
      await assert.rejects(succeed(path, narrow), {
        ...takeoverError("ERR_TAKEOVER_NO_ROOM"),
        message: new RegExp(`^Cannot hand over ${count} descriptors: the successor has room for ${room}, expected`),
      });
      await until(() => abandoned.length === 1, "the incumbent to say so");
      room++;
      const succession = await succeed(path, narrow);
      room = Infinity;
      succession.abort(new Error("enough"));
    });
  }
});

test("EndpointFlows.choose throws ERR_TAKEOVER_UNSUPPORTED where no sockets carry packets", () => {
  const elsewhere: Runtime = { ...runtime, abi: { ...runtime.abi, platform: "darwin" } };
  using socket = openClient();
  const unopened = { descriptor: socket, identity: identify(runtime, socket.number)! };
  for (const inherited of [null, "forwarded"]) {
    const owner = { runtime: elsewhere, limits: defaultLimits, generation: 1, failed() {} };
    const flows = new EndpointFlows(owner, "game", { route, datagram });
    assert.throws(() => flows.choose(unopened, "new", inherited, false), takeoverError("ERR_TAKEOVER_UNSUPPORTED"));
  }
});
