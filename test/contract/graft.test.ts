import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { once } from "node:events";
import { readdirSync, readFileSync } from "node:fs";
import net from "node:net";
import type { TcpEndpoint } from "../../src/sockets/address.ts";
import type { OwnedDescriptor } from "../../src/sockets/descriptors.ts";
import { register } from "../../src/sockets/event_loop.ts";
import { adopt, type Adopted, deadListener, type Open } from "../../src/natives/graft.ts";
import { defaultLimits, limitsFrom } from "../../src/limits.ts";
import { bindListener } from "../../src/sockets/listener.ts";
import { formatAddress, type SocketAddress } from "../../src/c/sockaddr.ts";
import { cookieOf, identify, isListening, localAddress, type SocketIdentity } from "../../src/sockets/socket.ts";
import { run, runHere, TemporaryFolder } from "../unit/children.ts";
import {
  type At,
  bunListen,
  bunServe,
  denoListen,
  denoServe,
  type Native,
  nodeHttp,
  nodeHttps,
  nodeNet,
} from "./natives.ts";
import { onBun, onDeno, reachable, runtime, takeoverError, test } from "./support.ts";

const shortLimits = limitsFrom({ openMs: 300 });

/** A listener that is not in a server yet. */
function bound(
  address: SocketAddress,
  options: Partial<TcpEndpoint> = {},
): { socket: OwnedDescriptor; identity: SocketIdentity } {
  const socket = bindListener(runtime, address, { port: 0, ...options });
  return { socket, identity: identify(runtime, socket.number)! };
}

/** Puts a listener into a native server, which then answers at the true address and says that it is there. */
async function answersAt<T>(native: Native<T>, address: SocketAddress, options?: Partial<TcpEndpoint>): Promise<void> {
  const { socket, identity } = bound(address, options);
  const adopted = await adopt(runtime, defaultLimits, "web", socket, identity, native.open as Open<T>) as Adopted<T>;
  try {
    assert.equal(socket.number, -1);
    assert.equal(cookieOf(runtime, adopted.descriptor), identity.cookie);
    assert.deepEqual(localAddress(runtime, adopted.descriptor), identity.address);
    assert.deepEqual(native.present(adopted.native), native.presented(identity.address));
    register(runtime, adopted.registrations);
    assert.match(await native.ask(reachable(identity.address)), /^HTTP\/1\.1 200 [\s\S]*hello/);
    if (options?.ipv6Only === false) {
      const { port } = identity.address as { port: number };
      assert.match(await native.ask({ host: "127.0.0.1", port }), /hello/);
    }
  } finally {
    await native.close(adopted.native);
  }
}

const answersInet4 = <T>(native: Native<T>) => answersAt(native, { family: "inet", hostname: "127.0.0.1", port: 0 });

const answersInet6 = <T>(native: Native<T>) =>
  answersAt(native, { family: "inet6", hostname: "::", port: 0 }, { ipv6Only: true });

/** Over IPv6 and over IPv4. */
const answersDual = <T>(native: Native<T>) =>
  answersAt(native, { family: "inet6", hostname: "::", port: 0 }, { ipv6Only: false });

/** Over a Unix path, which is the only thing in its folder, and stays there when the server closes. */
async function answersUnix<T>(native: Native<T>): Promise<void> {
  using folder = new TemporaryFolder();
  await answersAt(native, { family: "unix", path: folder.file("web") });
  assert.deepEqual(readdirSync(folder.path), ["web"]);
}

onDeno("adopt puts an IPv4 listener into Deno.serve", () => answersInet4(denoServe));

onDeno("adopt puts an IPv6-only listener into Deno.serve", () => answersInet6(denoServe));

onDeno("adopt puts a dual-stack listener into Deno.serve", () => answersDual(denoServe));

onDeno("adopt puts a Unix listener into Deno.serve", () => answersUnix(denoServe));

onDeno("adopt puts an IPv4 listener into Deno.listen", () => answersInet4(denoListen));

onDeno("adopt puts an IPv6-only listener into Deno.listen", () => answersInet6(denoListen));

onDeno("adopt puts a dual-stack listener into Deno.listen", () => answersDual(denoListen));

onDeno("adopt puts a Unix listener into Deno.listen", () => answersUnix(denoListen));

onBun("adopt puts an IPv4 listener into Bun.serve", () => answersInet4(bunServe));

onBun("adopt puts an IPv6-only listener into Bun.serve", () => answersInet6(bunServe));

onBun("adopt puts a dual-stack listener into Bun.serve", () => answersDual(bunServe));

onBun("adopt puts a Unix listener into Bun.serve", () => answersUnix(bunServe));

onBun("adopt puts an IPv4 listener into Bun.listen", () => answersInet4(bunListen));

onBun("adopt puts an IPv6-only listener into Bun.listen", () => answersInet6(bunListen));

onBun("adopt puts a dual-stack listener into Bun.listen", () => answersDual(bunListen));

onBun("adopt puts a Unix listener into Bun.listen", () => answersUnix(bunListen));

test("adopt puts an IPv4 listener into node:http", () => answersInet4(nodeHttp));

test("adopt puts an IPv6-only listener into node:http", () => answersInet6(nodeHttp));

test("adopt puts a dual-stack listener into node:http", () => answersDual(nodeHttp));

test("adopt puts a Unix listener into node:http", () => answersUnix(nodeHttp));

test("adopt puts an IPv4 listener into node:net", () => answersInet4(nodeNet));

test("adopt puts an IPv6-only listener into node:net", () => answersInet6(nodeNet));

test("adopt puts a dual-stack listener into node:net", () => answersDual(nodeNet));

test("adopt puts a Unix listener into node:net", () => answersUnix(nodeNet));

const hasOpenssl = spawnSync("openssl", ["version"]).status === 0;
const withOpenssl = { skip: hasOpenssl ? false : "openssl is not installed" };

/** A server with a certificate that it has signed itself. */
async function selfSigned(): Promise<Native<unknown>> {
  using folder = new TemporaryFolder();
  const { status, stderr } = await run([
    ...["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"],
    ...["-keyout", folder.file("key"), "-out", folder.file("cert")],
  ]);
  assert.equal(status, 0, stderr);
  const [key, cert] = ["key", "cert"].map((name) => readFileSync(folder.file(name), "utf8"));
  return nodeHttps({ key, cert } as { key: string; cert: string }) as Native<unknown>;
}

test("adopt puts an IPv4 listener into node:https", withOpenssl, async () => {
  await answersInet4(await selfSigned());
});

test("adopt puts an IPv6-only listener into node:https", withOpenssl, async () => {
  await answersInet6(await selfSigned());
});

test("adopt puts a dual-stack listener into node:https", withOpenssl, async () => {
  await answersDual(await selfSigned());
});

test("adopt puts a Unix listener into node:https", withOpenssl, async () => {
  await answersUnix(await selfSigned());
});

const loopback: SocketAddress = { family: "inet", hostname: "127.0.0.1", port: 0 };

test("adopt waits for a callback that answers with a promise", async () => {
  const { socket, identity } = bound(loopback);
  const open = (at: At) => Promise.resolve().then(() => nodeNet.open(at));
  const { native, registrations } = await adopt(
    runtime,
    defaultLimits,
    "web",
    socket,
    identity,
    open as Open<net.Server>,
  );
  register(runtime, registrations);
  assert.match(await nodeNet.ask(reachable(identity.address)), /hello/);
  await nodeNet.close(native);
});

test("adopt waits for a server that listens later than its callback returns", async () => {
  const { socket, identity } = bound(loopback);
  const open = (at: At) => {
    const server = net.createServer((connection) => connection.resume().end());
    setTimeout(() => server.listen(at), 30);
    return server;
  };
  const { native, descriptor } = await adopt(
    runtime,
    defaultLimits,
    "web",
    socket,
    identity,
    open as Open<net.Server>,
  );
  assert.equal(cookieOf(runtime, descriptor), identity.cookie);
  await nodeNet.close(native);
});

/** A server that listens on every address; a port that another process has at one of them is left alone. */
async function listensEverywhere({ port }: { port: number }): Promise<net.Server> {
  const server = nodeNet.open({ port } as At);
  await once(server, "listening");
  return server;
}

test("adopt finds a server that takes the port and not the host", async () => {
  const { socket, identity } = bound(loopback);
  const adoptOnce = () => adopt(runtime, defaultLimits, "web", socket, identity, listensEverywhere as Open<net.Server>);
  let adopted: Adopted<net.Server> | null = null;
  for (let tries = 20; adopted === null; tries--) {
    adopted = await adoptOnce().catch((error: { code?: string }) => {
      if (error.code === "EADDRINUSE" && tries > 0) return null;
      throw error;
    });
  }
  assert.equal(cookieOf(runtime, adopted.descriptor), identity.cookie);
  await nodeNet.close(adopted.native);
});

test("adopt gives the callback an address that is free, under every name that servers know", async () => {
  const { socket, identity } = bound(loopback);
  let given: Record<string, unknown> = {};
  const open = (at: At) => {
    given = { ...at };
    return nodeNet.open(at);
  };
  const { native } = await adopt(runtime, defaultLimits, "web", socket, identity, open as Open<net.Server>);
  await nodeNet.close(native);
  assert.match(given.hostname as string, /^127\.\d+\.\d+\.\d+$/);
  assert.equal(given.host, given.hostname);
  assert.ok(Number.isInteger(given.port) && given.port !== 0);
});

test("adopt gives the callback a Unix path beside the true one, which is gone afterwards", async () => {
  using folder = new TemporaryFolder();
  const { socket, identity } = bound({ family: "unix", path: folder.file("web") });
  let given: Record<string, unknown> = {};
  const open = (at: At) => {
    given = { ...at };
    return nodeNet.open(at);
  };
  const { native } = await adopt(runtime, defaultLimits, "web", socket, identity, open as Open<net.Server>);
  // Before the server closes, which removes a path of its own on every runtime.
  const left = readdirSync(folder.path);
  await nodeNet.close(native);
  assert.deepEqual(left, ["web"]);
  assert.ok((given.path as string).startsWith(`${folder.path}/.`));
  assert.deepEqual({ unix: given.unix, transport: given.transport }, { unix: given.path, transport: "unix" });
});

/** A callback with which the adoption fails; the listener stays the caller's, and is as it was. */
async function failsToAdopt<T>(open: Open<T>, expected: object): Promise<void> {
  const { socket, identity } = bound(loopback);
  using _owned = socket;
  await assert.rejects(adopt(runtime, shortLimits, "web", socket, identity, open), expected);
  assert.equal(cookieOf(runtime, socket.number), identity.cookie);
  assert.equal(isListening(runtime, socket.number), true);
}

/** The host is in 127.0.0.0/8, the limit in the message. */
const nothingListens =
  /^Cannot put the endpoint "web" into its server: nothing listens on 127\.\S+ 300 ms .*\(limit openMs\)/;

const notAdopted = {
  ...takeoverError("ERR_TAKEOVER_ADOPT"),
  message: nothingListens,
};

test("adopt throws ERR_TAKEOVER_ADOPT when the callback opens nothing", () => failsToAdopt(() => null, notAdopted));

test("adopt throws ERR_TAKEOVER_ADOPT when the callback ignores its address", async () => {
  const servers: net.Server[] = [];
  await failsToAdopt(() => {
    servers.push(nodeNet.open({ port: 0, host: "127.0.0.1" } as At));
  }, notAdopted);
  for (const server of servers) await nodeNet.close(server);
});

test("adopt throws ERR_TAKEOVER_ADOPT when the server has closed before it was found", () =>
  failsToAdopt((at: At) => void nodeNet.open(at).close(), notAdopted));

test("adopt passes on what the callback throws", async () => {
  const thrown = () => {
    throw new Error("thrown");
  };
  await failsToAdopt(thrown, { message: "thrown" });
  await failsToAdopt(() => Promise.reject(new Error("rejected")), { message: "rejected" });
});

test("deadListener is a listener on loopback or an abstract name, which the kernel chose", () => {
  for (const family of ["inet", "inet6", "unix"] as const) {
    using dead = deadListener(runtime, family);
    assert.equal(isListening(runtime, dead.number), true);
    assert.match(
      formatAddress(localAddress(runtime, dead.number)!),
      family === "unix" ? /^@[0-9a-f]+$/ : /^127\.[\d.]+:\d+$/,
    );
  }
});

onDeno("Deno.serve prints the true address and not the placeholder's", async () => {
  using folder = new TemporaryFolder();
  const { stdout, stderr, status } = await runHere(`
    import { takeOver } from "${new URL("../../mod.ts", import.meta.url)}";
    const takeover = await takeOver("${folder.file("takeover.sock")}");
    const at = { hostname: "127.0.0.1", port: 0 };
    const server = await takeover.listen("web", at, (at) => Deno.serve(at, () => new Response()));
    console.log("127.0.0.1:" + takeover.addr("web").port);
    await takeover.close();
    await server.shutdown();
    Deno.exit(0);
  `);
  assert.equal(status, 0, stderr);
  const [printed, expected] = stdout.trim().split("\n");
  assert.equal(printed, `Listening on ${expected}`);
});
