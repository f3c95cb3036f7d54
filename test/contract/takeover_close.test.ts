/** Processes that end while others have what they have: who is served, and which paths stay. */

import assert from "node:assert/strict";
import { existsSync } from "node:fs";
import type { InetAddress } from "../../src/c/sockaddr.ts";
import { Conversation } from "../../src/handover/conversation.ts";
import type { OfferedSocket } from "../../src/handover/flows.ts";
import { Incumbent } from "../../src/handover/incumbent.ts";
import { parseOffer } from "../../src/handover/messages.ts";
import { versions } from "../../src/handover/protocol.ts";
import { randomHex, Succession } from "../../src/handover/successor.ts";
import { Takeover } from "../../src/handover/takeover.ts";
import { defaultLimits } from "../../src/limits.ts";
import type { ControlListener } from "../../src/runtime.ts";
import { disposeAll, OwnedDescriptor } from "../../src/sockets/descriptors.ts";
import { bindListener, connectPath } from "../../src/sockets/listener.ts";
import { noteElsewhere } from "../../src/sockets/elsewhere.ts";
import { identify } from "../../src/sockets/socket.ts";
import { listedMembers } from "../../src/steering/socket_diag.ts";
import { TemporaryFolder } from "../unit/children.ts";
import { nodeNet } from "./natives.ts";
import { loopback } from "./served.ts";
import { connections, deafConnections, ended, groupOf } from "./steering_ends.ts";
import { patienceMs, runtime, sleep, takeoverError, test } from "./support.ts";

const request = new TextEncoder().encode("GET / HTTP/1.1\r\nHost: test\r\n\r\n");

/** Connections that have asked, and wait. */
function asking(count: number, address: InetAddress): OwnedDescriptor[] {
  const clients = connections(count, address);
  for (const { number } of clients) assert.equal(runtime.libc.write(number, request, request.length), request.length);
  return clients;
}

/** The process that is replaced: it has listeners, and accepts at none of them. */
class Elder implements Disposable {
  readonly address: InetAddress;
  readonly #control: ControlListener;
  readonly #listeners: readonly OwnedDescriptor[];
  readonly #incumbent: Incumbent;

  private constructor(
    control: ControlListener,
    offered: readonly OfferedSocket[],
    listeners: readonly OwnedDescriptor[],
  ) {
    this.#control = control;
    this.#listeners = listeners;
    this.address = offered[1]!.identity.address as InetAddress;
    const nothing = (): void => {};
    this.#incumbent = new Incumbent({
      runtime,
      limits: defaultLimits,
      allowUsers: [],
      instance: randomHex(),
      generation: 1,
      lessor: () => null,
      endpoints: () => offered,
      flows: () => Promise.resolve([]),
      greeted: nothing,
      offering: nothing,
      takeBack: nothing,
      atRest: () => Promise.resolve(),
      readying: () => Promise.resolve(),
      lease: nothing,
      move: (second) => second.destroy(),
      ticketKeys: () => "",
      state: () => null,
      resume: nothing,
      settled: nothing,
      release: () => disposeAll(listeners),
      abandon: nothing,
    });
  }

  /** @param count How many listeners share the address. */
  static async open(path: string, count = 1): Promise<Elder> {
    const accept = (stream: Parameters<Incumbent["accept"]>[0]) => elder.#incumbent.accept(stream);
    const control = bindListener(runtime, { family: "unix", path }, { path });
    const identity = identify(runtime, control.number)!;
    const listener = await runtime.adoptListener(control.take(), accept);
    const offered: OfferedSocket[] = [
      { kind: "control", name: "", descriptor: listener.descriptor, identity, isSupervised: false },
    ];
    const listeners: OwnedDescriptor[] = [];
    let address = loopback;
    for (let number = 1; number <= count; number++) {
      const socket = bindListener(runtime, address, { port: 0, reusePort: true });
      const found = identify(runtime, socket.number)!;
      address = found.address as InetAddress;
      listeners.push(socket);
      const name = number === 1 ? "web" : `web.${number}`;
      offered.push({ kind: "listener", name, descriptor: socket.number, identity: found, isSupervised: false });
    }
    const elder = new Elder(listener, offered, listeners);
    return elder;
  }

  [Symbol.dispose](): void {
    this.#incumbent.close();
    this.#control.close();
    disposeAll(this.#listeners);
  }
}

test("Takeover.close serves whoever waits while the incumbent's last word is on its way", async () => {
  using folder = new TemporaryFolder();
  const path = folder.file("control.sock");
  using elder = await Elder.open(path);
  const takeover = await Takeover.begin(runtime, path, { notify: false });
  const server = await takeover.listen("web", { port: 0, hostname: loopback.hostname }, nodeNet.open);
  await takeover.ready();
  const clients = asking(20, elder.address);
  void takeover.settle();
  await takeover.close();
  await takeover.settled;
  assert.deepEqual(await ended(clients), { answered: 20 });
  disposeAll(clients);
  await nodeNet.close(server);
});

/** A successor in this process, under another name. */
async function succeed(path: string): Promise<Succession> {
  const wishes = { runtime, limits: defaultLimits, path, instance: randomHex(), allowUsers: [], require: [] };
  return await Succession.begin(connectPath(runtime, path)!, wishes);
}

test("Takeover.close in a lease removes the paths that the other process does not serve", async () => {
  using folder = new TemporaryFolder();
  const [path, claimed, unclaimed] = ["control", "claimed", "unclaimed"].map((name) => folder.file(`${name}.sock`));
  const takeover = await Takeover.begin(runtime, path!, { notify: false });
  const servers = [
    await takeover.listen("claimed", { path: claimed! }, nodeNet.open),
    await takeover.listen("unclaimed", { path: unclaimed! }, nodeNet.open),
  ];
  await takeover.ready();
  const succession = await succeed(path!);
  await succession.ready(["claimed"]);
  await takeover.close();
  assert.deepEqual([path, claimed, unclaimed].map((each) => existsSync(each!)), [true, true, false]);
  succession[Symbol.dispose]();
  for (const server of servers) await nodeNet.close(server);
});

test("Takeover.close in its own lease removes the path that no incumbent had", async () => {
  using folder = new TemporaryFolder();
  const [path, web] = [folder.file("control.sock"), folder.file("web.sock")];
  using _elder = await Elder.open(path);
  const takeover = await Takeover.begin(runtime, path, { notify: false });
  const server = await takeover.listen("unix", { path: web }, nodeNet.open);
  await takeover.ready();
  await takeover.close();
  assert.deepEqual([path, web].map((each) => existsSync(each)), [true, false]);
  await nodeNet.close(server);
});

test("Takeover.displace begins when the lease has ended, and surplus listeners are closed", async () => {
  using folder = new TemporaryFolder();
  const path = folder.file("control.sock");
  using elder = await Elder.open(path, 2);
  const takeover = await Takeover.begin(runtime, path, { notify: false });
  const address = { port: elder.address.port, hostname: loopback.hostname, count: 1 };
  const servers = await takeover.listenGroup("web", address, nodeNet.open);
  await takeover.ready();
  using others = groupOf("stream", 2, elder.address);
  let isSettled = false;
  void takeover.settled.then(() => isSettled = true);
  const end = () => {
    assert.equal(isSettled, true);
    disposeAll(others.sockets);
  };
  const displaced = takeover.displace("web", end);
  await sleep(100);
  await takeover.settle();
  assert.equal((await displaced).otherCount, 2);
  await takeover.close();
  for (const server of servers) await nodeNet.close(server);
});

test("Takeover.close ends displacing others, with its listeners open until then", async () => {
  using folder = new TemporaryFolder();
  const limits = { queueMs: 500 };
  const takeover = await Takeover.begin(runtime, folder.file("control.sock"), { notify: false, limits });
  const servers = await takeover.listenGroup("web", { port: 0, hostname: loopback.hostname, count: 2 }, nodeNet.open);
  await takeover.ready();
  const address = takeover.addr("web") as InetAddress;
  using others = groupOf("stream", 2, address);
  const told = Promise.withResolvers<void>();
  const displaced = takeover.displace("web", () => (told.resolve(), new Promise(() => {})));
  const own = () => listedMembers(runtime, address, "stream").length - others.sockets.length;
  const ownAtEnd = displaced.catch(() => own());
  await told.promise;
  const half = deafConnections(2, address);
  await takeover.close();
  assert.equal(await ownAtEnd, 2);
  await assert.rejects(displaced, takeoverError("ERR_TAKEOVER_STATE"));
  disposeAll(half);
  for (const server of servers) await nodeNet.close(server);
});

test("Takeover refuses a successor that has waited for others to be displaced", async () => {
  using folder = new TemporaryFolder();
  const path = folder.file("control.sock");
  const takeover = await Takeover.begin(runtime, path, { notify: false, limits: { offerMs: 200, queueMs: 100 } });
  const servers = await takeover.listenGroup("web", { port: 0, hostname: loopback.hostname, count: 1 }, nodeNet.open);
  await takeover.ready();
  using others = groupOf("stream", 1, takeover.addr("web") as InetAddress);
  const told = Promise.withResolvers<void>();
  const displaced = takeover.displace("web", () => told.resolve());
  await told.promise;
  await assert.rejects(succeed(path), { ...takeoverError("ERR_TAKEOVER_BUSY"), message: /displaces others/ });
  disposeAll(others.sockets);
  assert.equal((await displaced).otherCount, 1);
  (await succeed(path)).abort(new Error("enough"));
  await takeover.close();
  for (const server of servers) await nodeNet.close(server);
});

test("Takeover tells its successor of a listener that another program may have too", async () => {
  using folder = new TemporaryFolder();
  const path = folder.file("control.sock");
  const takeover = await Takeover.begin(runtime, path, { notify: false });
  const server = await takeover.listen("web", { port: 0, hostname: loopback.hostname }, nodeNet.open);
  const other = await takeover.listen("other", { port: 0, hostname: loopback.hostname }, nodeNet.open);
  await takeover.ready();
  noteElsewhere(listedMembers(runtime, takeover.addr("web") as InetAddress, "stream")[0]!.cookie);
  const stream = runtime.adoptStream(connectPath(runtime, path)!.take());
  const conversation = new Conversation(stream, "successor", defaultLimits);
  const [token, instance] = [randomHex(), randomHex()];
  const hello = { type: "hello", versions, token, instance, pid: 1, runtime: "test", room: 1_000, require: [] };
  conversation.send(hello as { type: string });
  const offer = parseOffer(await conversation.receive(patienceMs, "offerMs"), defaultLimits);
  assert.deepEqual(offer.endpoints.map(({ name, elsewhere }) => [name, elsewhere]), [
    ["", undefined],
    ["web", true],
    ["other", undefined],
  ]);
  conversation.destroy();
  await takeover.close();
  for (const each of [server, other]) await nodeNet.close(each);
});
