/**
 * Flows with a peer of a link-local address, on a machine that has the same
 * address twice: the process that knows the flow is given what comes, and its
 * answer goes to where it has come from. Says whom it was told of.
 */

import { createSocket } from "node:dgram";
import process from "node:process";
import type { InetAddress } from "../../src/c/sockaddr.ts";
import type { FlowOptions } from "../../src/handover/flow_options.ts";
import type { Succession } from "../../src/handover/successor.ts";
import { OwnedDescriptor } from "../../src/sockets/descriptors.ts";
import { bindSocket, localAddress, openSocket } from "../../src/sockets/socket.ts";
import { claim, flowScene, succeed } from "./flow_scene.ts";
import { outcomeOf, report } from "./outcome.ts";
import { datagramsAt, linkOver, sendTo } from "./steering_ends.ts";
import { runtime, until } from "./support.ts";

/** The name of one of the interfaces, and its number. */
const [zone, scope] = [process.argv[2]!, Number(process.argv[3])];

/** Has a datagram of the peer brought to a process that has a successor, and gives whom that was told of. */
async function answered(
  flows: (peer: InetAddress) => Partial<FlowOptions>,
  bring: (succession: Succession, peer: InetAddress, send: () => void) => void,
): Promise<InetAddress> {
  const client = new OwnedDescriptor(runtime, openSocket(runtime, "inet6", "dgram"));
  bindSocket(runtime, client.number, { family: "inet6", hostname: "fe80::1", port: 0, scope });
  const { port } = localAddress(runtime, client.number) as InetAddress;
  const peer: InetAddress = { family: "inet6", hostname: `fe80::1%${zone}`, port };
  const answering = createSocket("udp6");
  const told: InetAddress[] = [];
  const datagram = (bytes: Uint8Array, from: InetAddress) => {
    told.push(from);
    answering.send(bytes, from.port, from.hostname);
  };
  await flowScene({ datagram, ...flows(peer) }, async ({ path, to }) => {
    const succession = await succeed(path);
    const socket = claim(succession);
    await succession.ready(["game"]);
    bring(succession, peer, () => sendTo(client, { family: "inet6", hostname: "fe80::1", port: to.port, scope }, 1));
    await until(() => datagramsAt(client).length === 1, "the answer");
    succession.abort(new Error("enough"));
    socket[Symbol.dispose]();
  }, { hostname: "::" });
  answering.close();
  client[Symbol.dispose]();
  if (told[0]!.port !== port) throw new Error("another port");
  return { ...told[0]!, port: 0 };
}

report({
  forwarded: await outcomeOf(() =>
    answered(() => ({ route: () => null }), (succession, peer) => {
      const [near] = succession.takeFlows("game").older;
      linkOver(near!.channel).forward(Uint8Array.of(1), peer);
    })
  ),
  connected: await outcomeOf(() => answered((peer) => ({ peers: () => [peer] }), (_succession, _peer, send) => send())),
});
