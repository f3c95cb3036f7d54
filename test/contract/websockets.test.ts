/** WebSockets that go from one server to another of the same process, as they go from one process to another. */

import assert from "node:assert/strict";
import type { Arrival, Frozen, Json, Source } from "../../src/connections/movable.ts";
import { replayedSink } from "../../src/connections/replayed.ts";
import { TruePeers } from "../../src/connections/true_peers.ts";
import { descriptorOf } from "../../src/natives/natives.ts";
import { OwnedDescriptor } from "../../src/sockets/descriptors.ts";
import { duplicate, localAddress, peerAddress } from "../../src/sockets/socket.ts";
import { onBun, onDeno, patienceMs, runtime, takeoverError, test, until } from "./support.ts";
import {
  bunServe,
  type ClientEnd,
  connect,
  denoServe,
  nodeWs,
  type OpenServer,
  type Server,
  text,
} from "./web_sockets.ts";

async function frozen(source: Source, count: number): Promise<readonly Frozen[]> {
  const all: Frozen[] = [];
  await until(() => {
    all.push(...source.ready(count - all.length, false).flatMap((movable) => movable.freeze() ?? []));
    return all.length === count;
  }, () => `${count} that may go, got ${all.length}: ${JSON.stringify(source.census())}`);
  return all;
}

/** As it comes out of the other end of a Unix socket. */
function arrivalOf({ descriptor, cookie, state, unread }: Frozen): Arrival {
  const copy = new OwnedDescriptor(runtime, duplicate(runtime, descriptor));
  return {
    descriptor: copy,
    cookie,
    local: localAddress(runtime, copy.number),
    peer: peerAddress(runtime, copy.number),
    state: JSON.parse(JSON.stringify(state)) as Json,
    unread,
  };
}

function sinkOf({ native, webSockets }: Server) {
  const listener = descriptorOf(runtime, native);
  return replayedSink(runtime, {
    native,
    listener,
    address: localAddress(runtime, listener)!,
    openMs: patienceMs,
    spareCount: 32,
    peers: new TruePeers(runtime),
    failed: (error) => assert.fail(String(error)),
    requestOf: (arrival) => webSockets.requestOf(arrival),
    checkHead: (head, arrival) => webSockets.checkHead(head, arrival),
  });
}

/** Moves what one server has to another. */
async function move(from: Server, to: Server, count: number): Promise<void> {
  const source = from.webSockets.source("web");
  source.start(() => {});
  try {
    const connections = await frozen(source, count);
    const places = await sinkOf(to).prepare(connections.map(arrivalOf));
    for (const [index, place] of places.entries()) {
      if (place instanceof Error) throw place;
      connections[index]!.leave();
      place.commit();
    }
  } finally {
    source.stop();
  }
}

/** Two servers; what came to the first one goes to the second. */
async function between(open: OpenServer, use: (first: Server, second: Server) => Promise<void>): Promise<void> {
  const first = await open();
  const second = await open();
  second.sharePort(first.port);
  try {
    await use(first, second);
  } finally {
    await first.close();
    await second.close();
  }
}

/** There and back again: the state comes along, and everything that is sent comes once and in order. */
async function goesOn(open: OpenServer): Promise<void> {
  await between(open, async (first, second) => {
    const client = await connect(first.port, ["Sec-WebSocket-Protocol: chat"]);
    await until(() => first.ends.length === 1, "the first server to have it");
    const [there] = first.ends;
    client.write(text("1"));
    await until(() => there!.heard.length === 1, "the first message");
    there!.luggage = { n: 1 };
    there!.send("from the first");
    await move(first, second, 1);
    client.write(text("2"));
    await until(() => second.ends[0]?.heard.length === 1, "the second message");
    const [here] = second.ends;
    here!.luggage = { n: 2 };
    here!.send("from the second");
    await move(second, first, 1);
    client.write(text("3"));
    await until(() => first.ends[1]?.heard.length === 1, "the third message");
    first.ends[1]!.send("from the first again");
    await until(() => client.heard.length === 5, "the last answer");
    assert.deepEqual(client.heard, [
      "from the first",
      "here I am",
      "from the second",
      "here I am",
      "from the first again",
    ]);
    assert.deepEqual([there!.heard, here!.heard, first.ends[1]!.heard], [["1"], ["2"], ["3"]]);
    assert.deepEqual([there!.state, here!.state, first.ends[1]!.state], [null, { n: 1 }, { n: 2 }]);
    assert.deepEqual([there!.events, here!.events, client.ended], [["leave", "left"], ["leave", "left"], false]);
    client.socket.destroy();
    await until(() => first.webSockets.size === 0, "its end to be noticed");
    assert.deepEqual(first.ends[1]!.events.filter((event) => event !== "error"), ["close"]);
  });
}

/** Fifty that send all the time. */
async function losesNothing(open: OpenServer): Promise<void> {
  await between(open, async (first, second) => {
    const clients: ClientEnd[] = [];
    for (let index = 0; index < 50; index++) clients.push(await connect(first.port));
    await until(() => first.ends.length === 50, "the first server to have them");
    let count = 0;
    const send = () => {
      for (const client of clients) client.write(text(`message ${count}`));
      count++;
    };
    const sending = setInterval(send, 5);
    try {
      await move(first, second, 50);
    } finally {
      clearInterval(sending);
    }
    send();
    const heard = () => [first, second].flatMap(({ ends }) => ends).reduce((sum, end) => sum + end.heard.length, 0);
    await until(() => heard() === 50 * count, () => `${50 * count} messages, got ${heard()}`);
    const expected = Array.from({ length: count }, (_, index) => `message ${index}`);
    for (const { heard } of first.ends) assert.deepEqual(heard, expected.slice(0, heard.length));
    for (const { heard } of second.ends) assert.deepEqual(heard, expected.slice(count - heard.length));
    assert.deepEqual(clients.filter(({ ended }) => ended), []);
    for (const { socket } of clients) socket.destroy();
  });
}

/** A header of the client's own finds nothing, and what is known is found once. */
async function trustsNoClient(open: OpenServer): Promise<void> {
  await between(open, async (first, second) => {
    const token = "00112233445566778899aabbccddeeff";
    const client = await connect(first.port, [`Takeover-State: ${token}`]);
    await until(() => first.ends.length === 1, "the first server to have it");
    assert.equal(first.ends[0]!.state, null);
    await move(first, second, 1);
    assert.deepEqual(second.ends[0]!.state, { n: 1 });
    client.socket.destroy();
  });
}

test("WebSockets of ws go to another server and back", () => goesOn(nodeWs));
test("WebSockets of ws lose no message on their way", () => losesNothing(nodeWs));
test("WebSockets of ws find no state by a client's header", () => trustsNoClient(nodeWs));

onDeno("WebSockets of Deno.serve go to another server and back", () => goesOn(denoServe));
onDeno("WebSockets of Deno.serve lose no message on their way", () => losesNothing(denoServe));
onDeno("WebSockets of Deno.serve find no state by a client's header", () => trustsNoClient(denoServe));

onBun("WebSockets of Bun.serve go to another server and back", () => goesOn(bunServe));
onBun("WebSockets of Bun.serve lose no message on their way", () => losesNothing(bunServe));
onBun("WebSockets of Bun.serve find no state by a client's header", () => trustsNoClient(bunServe));

test("requestOf throws ERR_TAKEOVER_PROTOCOL for a state that is none", async () => {
  const { webSockets, close } = await nodeWs();
  const headers: Json = [["Host", "a"]];
  const state = { request: { target: "/", headers }, readSize: 1, state: null };
  const arrival = {
    cookie: "",
    local: null,
    peer: null,
    unread: new Uint8Array(0),
    descriptor: new OwnedDescriptor(runtime, -1),
  };
  assert.match(
    new TextDecoder().decode(webSockets.requestOf({ ...arrival, state })),
    /^GET \/ HTTP\/1\.1\r\nHost: a\r\nTakeover-State: [0-9a-f]{32}\r\n\r\n$/,
  );
  const wrong: Json[] = [
    null,
    "text",
    { ...state, request: null },
    { ...state, request: { target: "/ HTTP/1.1\r\nA: b", headers } },
    { ...state, request: { target: "/", headers: [["A", "b\r\nC: d"]] } },
    { ...state, request: { target: "/", headers: [["A:", "b"]] } },
    { ...state, request: { target: "/", headers: [["A", "b".repeat(40_000)]] } },
    { ...state, readSize: "1" },
    { request: state.request, readSize: 1 },
  ];
  for (const each of wrong) {
    assert.throws(() => webSockets.requestOf({ ...arrival, state: each }), takeoverError("ERR_TAKEOVER_PROTOCOL"));
  }
  await close();
});
