import assert from "node:assert/strict";
import { once } from "node:events";
import net from "node:net";
import { openDescriptors } from "../../src/sockets/descriptors.ts";
import { watchedDescriptors, watchesOf, watchesOfAll } from "../../src/sockets/watches.ts";
import { localAddress } from "../../src/sockets/socket.ts";
import { runtime, test, until } from "./support.ts";

test("watchesOfAll gives of each descriptor what watchesOf gives, and nothing of one that is not watched", async () => {
  const servers = [0, 1, 2].map(() => net.createServer().listen(0, "127.0.0.1"));
  for (const server of servers) if (!server.listening) await once(server, "listening");
  const ports = servers.map((server) => (server.address() as net.AddressInfo).port);
  const portOf = (number: number) => (localAddress(runtime, number) as { port?: number } | null)?.port ?? -1;
  const isOurs = (number: number) => ports.includes(portOf(number));
  const numbers = () => openDescriptors(runtime).filter(isOurs);
  await until(() => numbers().filter((number) => watchedDescriptors(runtime).has(number)).length >= 3, "the servers");
  const watched = numbers().filter((number) => watchedDescriptors(runtime).has(number));
  const found = watchesOfAll(runtime, [...watched, 1_000_000]);
  assert.deepEqual([...found.keys()].sort(), [...watched].sort());
  for (const number of watched) assert.deepEqual([found.get(number)], watchesOf(runtime, number));
  assert.equal(watchesOfAll(runtime, []).size, 0);
  for (const server of servers) await new Promise((resolve) => server.close(resolve));
});
