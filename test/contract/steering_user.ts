/**
 * What an ordinary user can do with groups: `steering_user.ts`, started as root.
 */

import assert from "node:assert/strict";
import process from "node:process";
import type { InetAddress } from "../../src/c/sockaddr.ts";
import { openReadiness } from "../../src/channels/readiness.ts";
import { disposeAll } from "../../src/sockets/descriptors.ts";
import { waitingCount } from "../../src/steering/accept_queue.ts";
import { localAddress, openPair } from "../../src/sockets/socket.ts";
import { ForwardedReceiver } from "../../src/steering/forwarded_receiver.ts";
import { PinnedSockets } from "../../src/steering/pinned.ts";
import { keepAwayFromOthers } from "../../src/steering/keep_away.ts";
import { everythingTo } from "../../src/steering/programs.ts";
import { outcomeOf, report } from "./outcome.ts";
import { runtime } from "./seam.ts";
import { connections, countsAt, groupOf, linkOver, openClient, sendTo } from "./steering_ends.ts";

const ordinaryUser = 61_234;
const { libc } = runtime;
const isArm = process.arch === "arm64";

await openReadiness(runtime);
// Of this thread only, which is the one that calls libc (setresuid(2)).
assert.equal(libc.syscall(isArm ? 149 : 119, ordinaryUser, ordinaryUser, ordinaryUser, 0), 0);
assert.equal(libc.syscall(isArm ? 147 : 117, ordinaryUser, ordinaryUser, ordinaryUser, 0), 0);

report({
  steered: await outcomeOf(() => {
    const { group, sockets } = groupOf("dgram", 2);
    group.steer(() => everythingTo(1));
    const client = openClient();
    for (let count = 0; count < 5; count++) sendTo(client, group.address, 1);
    return countsAt(sockets).join();
  }),
  refreshed: await outcomeOf(async () => {
    const { group, sockets, cookies } = groupOf("stream", 3);
    group.close(sockets[0]!);
    group.close(group.open());
    await group.refresh();
    return group.members.map(({ cookie }) => cookies.indexOf(cookie) - 1).join();
  }),
  keptAway: await outcomeOf(async () => {
    const { group, sockets, cookies } = groupOf("stream", 2);
    const away = await keepAwayFromOthers(runtime, sockets.map(({ number }) => number), (cookie) => cookie === cookies[1]);
    const clients = connections(10, group.address);
    const counts = sockets.map(({ number }) => waitingCount(runtime, number));
    disposeAll(clients);
    return `${counts.join()} ${away.steering.program} ${away.steering.code}`;
  }),
  forwarded: await outcomeOf(async () => {
    const [near, far] = openPair(runtime, "seqpacket");
    const link = linkOver(near);
    const size = await new Promise<number>((resolve) => {
      new ForwardedReceiver(runtime, far, { datagram: (bytes) => resolve(bytes.length) });
      link.forward(new Uint8Array(1), { family: "inet", hostname: "192.0.2.1", port: 1 });
      setTimeout(() => {}, 10_000);
    });
    return String(size);
  }),
  pinned: await outcomeOf(() => {
    const { group, sockets: [main] } = groupOf("dgram", 1);
    const [client, other] = [openClient(), openClient()];
    const found: number[] = [];
    const pinned = new PinnedSockets(runtime, main!.number, (bytes) => found.push(bytes[0]!));
    const peer = localAddress(runtime, client.number) as InetAddress;
    pinned.pin(peer);
    for (const each of [client, other]) sendTo(each, group.address, 1);
    pinned.unpin(pinned.keyOf(peer));
    return `${found.length},${countsAt([main!])}`;
  }),
});
