import assert from "node:assert/strict";
import net from "node:net";
import { acceptedCount, connectionsEnd } from "../../src/handover/drain.ts";
import { bindDatagram } from "../../src/sockets/datagram.ts";
import { connectSocket, localAddress } from "../../src/sockets/socket.ts";
import { TemporaryFolder } from "../unit/children.ts";
import type { SocketAddress } from "../../src/c/sockaddr.ts";
import { openClient } from "./steering_ends.ts";
import { patienceMs, reachable, runtime, test, until } from "./support.ts";

/** A server that keeps its connections, and that many clients. */
async function connected(options: net.ListenOptions, count: number): Promise<{
  address: SocketAddress;
  clients: net.Socket[];
  close(): Promise<void>;
}> {
  const server = net.createServer((socket) => socket.on("error", () => {}).resume()).listen(options);
  await new Promise((resolve) => server.once("listening", resolve));
  const found = server.address()!;
  const address: SocketAddress = typeof found === "string"
    ? { family: "unix", path: found }
    : { family: found.family === "IPv6" ? "inet6" : "inet", hostname: found.address, port: found.port };
  const clients = Array.from({ length: count }, () => net.connect(reachable(address)));
  await until(() => acceptedCount(runtime, [address]) === count, `${count} connections`);
  const close = async () => {
    for (const client of clients) client.destroy();
    await new Promise((resolve) => server.close(resolve));
  };
  return { address, clients, close };
}

test("acceptedCount counts what came in through the addresses, and not the other ends", async () => {
  const { address, clients, close } = await connected({ host: "127.0.0.1", port: 0 }, 3);
  assert.equal(acceptedCount(runtime, [address]), 3);
  assert.equal(acceptedCount(runtime, []), 0);
  assert.equal(acceptedCount(runtime, [{ family: "inet", hostname: "127.0.0.1", port: 1 }]), 0);
  clients[0]!.destroy();
  await until(() => acceptedCount(runtime, [address]) === 2, "two connections");
  await close();
  assert.equal(acceptedCount(runtime, [address]), 0);
});

test("acceptedCount counts no datagram socket at the same address that is connected", async () => {
  const { address, close } = await connected({ host: "127.0.0.1", port: 0 }, 1);
  using socket = bindDatagram(runtime, address, { port: 0 });
  using peer = openClient();
  connectSocket(runtime, socket.number, localAddress(runtime, peer.number)!);
  assert.equal(acceptedCount(runtime, [address]), 1);
  await close();
});

test("acceptedCount counts connections over IPv6, and over IPv4 to a dual-stack listener", async () => {
  const { address, clients, close } = await connected({ host: "::", port: 0 }, 1);
  clients.push(net.connect({ host: "127.0.0.1", port: (address as { port: number }).port }));
  await until(() => acceptedCount(runtime, [address]) === 2, "two connections");
  await close();
});

test("acceptedCount counts connections over a Unix path", async () => {
  using folder = new TemporaryFolder();
  const { address, close } = await connected({ path: folder.file("x") }, 2);
  assert.equal(acceptedCount(runtime, [address]), 2);
  assert.equal(acceptedCount(runtime, [{ family: "unix", path: folder.file("y") }]), 0);
  await close();
});

test("connectionsEnd resolves when the last connection has ended", async () => {
  const { address, clients, close } = await connected({ host: "127.0.0.1", port: 0 }, 2);
  const ended = connectionsEnd(runtime, [address], patienceMs);
  for (const client of clients) client.destroy();
  const { remaining, ms } = await ended;
  assert.equal(remaining, 0);
  assert.ok(ms < patienceMs);
  await close();
});

test("connectionsEnd resolves when the time is up, and says how many are left", async () => {
  const { address, close } = await connected({ host: "127.0.0.1", port: 0 }, 2);
  const { remaining, ms } = await connectionsEnd(runtime, [address], 60);
  assert.equal(remaining, 2);
  assert.ok(ms >= 60);
  await close();
});

test("connectionsEnd resolves at once when there is no connection", async () => {
  assert.equal((await connectionsEnd(runtime, [{ family: "inet", hostname: "127.0.0.1", port: 1 }], 0)).remaining, 0);
});
