import assert from "node:assert/strict";
import net from "node:net";
import { linkOf, openDescriptors } from "../../src/sockets/descriptors.ts";
import { register, registrationsOf, unregister } from "../../src/sockets/event_loop.ts";
import { type InetAddress, sameAddress } from "../../src/c/sockaddr.ts";
import { isListening, localAddress } from "../../src/sockets/socket.ts";
import { bunListen, bunServe, denoListen, denoServe, type Native, nodeHttp, nodeNet } from "./natives.ts";
import { onBun, onDeno, openNull, queuedCount, reachable, runtime, sleep, test, until } from "./support.ts";

const hostname = "127.83.79.67";

/** An address whose port was free a moment ago, and that nothing else uses. */
async function freeAddress(): Promise<InetAddress> {
  const server = net.createServer().listen(0, hostname);
  await new Promise((resolve) => server.once("listening", resolve));
  const { port } = server.address() as net.AddressInfo;
  await new Promise((resolve) => server.close(resolve));
  return { family: "inet", hostname, port };
}

/** The descriptor that listens on an address here. */
function listenerOn(wanted: InetAddress): number | undefined {
  return openDescriptors(runtime).find((descriptor) => {
    const address = localAddress(runtime, descriptor);
    return address !== null && sameAddress(address, wanted) && isListening(runtime, descriptor);
  });
}

/** Opens a server by itself, without the library. */
async function opened<T>(native: Native<T>): Promise<{ server: T; address: InetAddress; descriptor: number }> {
  const address = await freeAddress();
  const server = native.open({ hostname, host: hostname, port: address.port });
  await until(() => {
    const descriptor = listenerOn(address);
    return descriptor !== undefined && registrationsOf(runtime, descriptor).length > 0;
  }, "the server to listen");
  return { server, address, descriptor: listenerOn(address)! };
}

/** Twice: without its registration a server leaves connections in the queue, with it they are answered. */
async function pausesAndResumes<T>(native: Native<T>): Promise<void> {
  const { server, address, descriptor } = await opened(native);
  try {
    for (const _round of [1, 2]) {
      const registrations = registrationsOf(runtime, descriptor);
      assert.deepEqual(unregister(runtime, registrations), registrations);
      assert.deepEqual(registrationsOf(runtime, descriptor), []);
      const answers = [1, 2, 3].map(() => native.ask(reachable(address)));
      await until(() => queuedCount(descriptor) === 3, "three connections in the queue");
      await sleep(50);
      assert.equal(queuedCount(descriptor), 3);
      register(runtime, registrations);
      for (const answer of answers) assert.match(await answer, /hello/);
      assert.deepEqual(registrationsOf(runtime, descriptor), registrations);
    }
  } finally {
    await native.close(server);
  }
}

test("unregister pauses node:net and register resumes it", () => pausesAndResumes(nodeNet));

test("unregister pauses node:http and register resumes it", () => pausesAndResumes(nodeHttp));

onDeno("unregister pauses Deno.serve and register resumes it", () => pausesAndResumes(denoServe));

onDeno("unregister pauses Deno.listen and register resumes it", () => pausesAndResumes(denoListen));

onBun("unregister pauses Bun.serve and register resumes it", () => pausesAndResumes(bunServe));

onBun("unregister pauses Bun.listen and register resumes it", () => pausesAndResumes(bunListen));

test("registrationsOf gives the one registration of a server's descriptor, in an epoll of this process", async () => {
  const { server, descriptor } = await opened(nodeNet);
  const found = registrationsOf(runtime, descriptor);
  assert.deepEqual(found.map((each) => each.descriptor), [descriptor]);
  assert.ok(found.every(({ epoll, events }) => linkOf(runtime, epoll) === "anon_inode:[eventpoll]" && events & 1));
  await nodeNet.close(server);
});

test("registrationsOf gives nothing for what no event loop watches", () => {
  using file = openNull();
  assert.deepEqual(registrationsOf(runtime, file.number), []);
  assert.deepEqual(registrationsOf(runtime, 100_000), []);
});

test("unregister leaves out what was not there", async () => {
  const { server, descriptor } = await opened(nodeNet);
  const registrations = registrationsOf(runtime, descriptor);
  assert.equal(unregister(runtime, registrations).length, 1);
  assert.deepEqual(unregister(runtime, registrations), []);
  register(runtime, registrations);
  await nodeNet.close(server);
});

test("register puts a registration back as it was, and twice does no harm", async () => {
  const { server, address, descriptor } = await opened(nodeNet);
  const registrations = registrationsOf(runtime, descriptor);
  unregister(runtime, registrations);
  register(runtime, registrations);
  register(runtime, registrations);
  assert.deepEqual(registrationsOf(runtime, descriptor), registrations);
  assert.match(await nodeNet.ask(reachable(address)), /hello/);
  await nodeNet.close(server);
});

test("register and unregister throw a SystemError when the epoll is none", () => {
  const wrong = [{ epoll: 100_000, descriptor: 0, events: 1, data: 0n }];
  assert.throws(() => unregister(runtime, wrong), { name: "SystemError", code: "EBADF", syscall: "epoll_ctl" });
  assert.throws(() => register(runtime, wrong), { name: "SystemError", code: "EBADF", syscall: "epoll_ctl" });
});
