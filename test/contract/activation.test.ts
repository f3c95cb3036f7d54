import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { writeFileSync } from "node:fs";
import process from "node:process";
import { type InheritedDescriptor, inheritedDescriptors } from "../../src/foreign/activation.ts";
import { ForeignSockets, serves } from "../../src/handover/foreign_sockets.ts";
import { Takeover } from "../../src/handover/takeover.ts";
import { bindListener } from "../../src/sockets/listener.ts";
import { disposeAll, OwnedDescriptor } from "../../src/sockets/descriptors.ts";
import type { SocketAddress } from "../../src/c/sockaddr.ts";
import type { Runtime } from "../../src/runtime.ts";
import { bindSocket, duplicate, identify, openSocket } from "../../src/sockets/socket.ts";
import { commandHere, run, TemporaryFolder } from "../unit/children.ts";
import { onDeno, openNull, runtime, takeoverError, test } from "./support.ts";
import net from "node:net";

const { abi, libc } = runtime;
const { F_GETFD, F_SETFD, F_GETFL, F_SETFL, FD_CLOEXEC, O_NONBLOCK } = abi.constants;
const anyPort = { family: "inet", hostname: "127.0.0.1", port: 0 } as const;

/** In CI a missing program is a failure: the test then runs, and says so. */
const hasPython = process.env.CI === "true" || spawnSync("python3", ["--version"]).status === 0;
const withPython = { skip: hasPython ? false : "python3 is not installed: it stands in for systemd" };

const activator = new URL("../fixtures/activate.py", import.meta.url).pathname;

/** Prints what a program inherits, twice. */
const program = `
  import { inheritedDescriptors, openRuntime } from "${new URL("../../mod.ts", import.meta.url)}";
  const { env } = await openRuntime();
  const describe = ({ name, descriptor, identity }) =>
    [name, descriptor.number, identity && { address: identity.address.path ?? identity.address.hostname, listening: identity.listening }];
  const first = (await inheritedDescriptors()).map(describe);
  const again = (await inheritedDescriptors()).map(describe);
  console.log(JSON.stringify({ first, again }));
`;

/** What a child finds that has these, and these variables. */
async function inherited(
  listen: readonly unknown[],
  env: Record<string, string>,
  permissions?: readonly string[],
): Promise<{ first: unknown[]; again: unknown[] }> {
  using folder = new TemporaryFolder();
  const file = folder.file("program.mjs");
  writeFileSync(file, program);
  const settings = JSON.stringify({ listen, env });
  // Not as the first word: a child of Deno's is looked at.
  const { status, stdout, stderr } = await run([
    "python3",
    "-ESsB",
    activator,
    settings,
    ...commandHere(file, permissions),
  ]);
  assert.equal(status, 0, stderr);
  return JSON.parse(stdout);
}

const loopback = { address: "127.0.0.1", listening: true };
const forUs = { LISTEN_PID: "$PID", LISTEN_FDS: "1" };

test("inheritedDescriptors gives what systemd passed, once", withPython, async () => {
  using folder = new TemporaryFolder();
  const path = folder.file("web.sock");
  const env = { LISTEN_PID: "$PID", LISTEN_PIDFDID: "$PIDFDID", LISTEN_FDS: "3", LISTEN_FDNAMES: "web:unix:state" };
  assert.deepEqual(await inherited([["127.0.0.1", 0], path, null], env), {
    first: [["web", 3, loopback], ["unix", 4, { address: path, listening: true }], ["state", 5, null]],
    again: [],
  });
});

test("inheritedDescriptors goes by the pidfd of this process where systemd gives its number", withPython, async () => {
  const [alone, wrong] = await Promise.all([
    inherited([["127.0.0.1", 0]], { LISTEN_PIDFDID: "$PIDFDID", LISTEN_FDS: "1" }),
    inherited([["127.0.0.1", 0]], { ...forUs, LISTEN_PIDFDID: "4" }),
  ]);
  assert.deepEqual(alone.first, [["", 3, loopback]]);
  assert.deepEqual(wrong.first, []);
});

onDeno("inheritedDescriptors needs no permission but --allow-ffi", async () => {
  const { first, again } = await inherited([["127.0.0.1", 0]], forUs, ["--allow-ffi"]);
  assert.deepEqual([first, again], [[["", 3, loopback]], []]);
});

/** This process with variables of its own. */
function withVariables(variables: Record<string, string>): { seam: Runtime; left: Map<string, string> } {
  const left = new Map(Object.entries(variables));
  return { seam: { ...runtime, env: (name) => left.get(name), unsetEnv: (name) => void left.delete(name) }, left };
}

function listener(address: SocketAddress = anyPort, ipv6Only = false): OwnedDescriptor {
  return bindListener(runtime, address, { port: 0, ipv6Only });
}

test("inheritedDescriptors makes each socket close-on-exec and non-blocking, and says what it is", () => {
  using socket = listener();
  const { number } = socket;
  const identity = identify(runtime, number);
  libc.fcntl(number, F_SETFD, 0);
  libc.fcntl(number, F_SETFL, libc.fcntl(number, F_GETFL, 0) & ~O_NONBLOCK);
  const { seam, left } = withVariables({ SERVER_STARTER_PORT: `127.0.0.1:80=${number}` });
  const [found] = inheritedDescriptors(seam);
  socket.take();
  using descriptor = found!.descriptor;
  assert.deepEqual([descriptor.number, found!.identity, left.size], [number, identity, 0]);
  assert.equal(libc.fcntl(number, F_GETFD, 0), FD_CLOEXEC);
  assert.equal(libc.fcntl(number, F_GETFL, 0) & O_NONBLOCK, O_NONBLOCK);
});

test("inheritedDescriptors takes einhorn's from the parent process, and from no other", () => {
  using socket = listener();
  const variables = { EINHORN_FD_COUNT: "1", EINHORN_FD_0: String(socket.number) };
  const other = withVariables({ ...variables, EINHORN_MASTER_PID: String(process.pid) });
  assert.deepEqual([inheritedDescriptors(other.seam), other.left.size], [[], 3]);
  const parent = withVariables({ ...variables, EINHORN_MASTER_PID: String(process.ppid) });
  disposeAll(inheritedDescriptors(parent.seam).map(({ descriptor }) => descriptor));
  assert.equal(libc.fcntl(socket.take(), F_GETFD, 0) < 0, true);
  assert.equal(parent.left.size, 0);
});

test("inheritedDescriptors throws for a descriptor that is closed or no socket", () => {
  using file = openNull();
  const of = (number: number) => inheritedDescriptors(withVariables({ NGINX: `${number};` }).seam);
  assert.throws(() => of(file.number), takeoverError("ERR_TAKEOVER_NOT_SOCKET"));
  assert.throws(() => of(19_999), takeoverError("ERR_TAKEOVER_CLOSED"));
});

/** A socket as systemd passes it. */
function passed(name: string, descriptor: OwnedDescriptor): InheritedDescriptor {
  return { name, source: "systemd", descriptor, identity: identify(runtime, descriptor.number), isSupervised: true };
}

/** Claims in order, and closes everything. The number of each that was given. */
function claims(
  sockets: readonly InheritedDescriptor[],
  wanted: readonly (readonly [string, SocketAddress])[],
  isOwnStore = false,
): (number | undefined)[] {
  using foreign = new ForeignSockets(runtime, sockets, isOwnStore);
  return wanted.map(([name, address]) => {
    const found = foreign.claim(name, address);
    const index = sockets.findIndex(({ descriptor }) => descriptor === found?.descriptor);
    found?.descriptor[Symbol.dispose]();
    return found ? index : undefined;
  });
}

const addressOf = ({ identity }: InheritedDescriptor): SocketAddress => identity!.address;

test("ForeignSockets.claim gives the socket of that name wherever it is, else the one at that address, each once", () => {
  const sockets = [passed("admin", listener()), passed("web", listener())];
  const [admin] = sockets.map(addressOf);
  assert.deepEqual(claims(sockets, [["web", admin!], ["other", admin!], ["admin", admin!]]), [1, 0, undefined]);
});

test("ForeignSockets.claim prefers among sockets of one name the one at that address", () => {
  const sockets = [passed("web", listener()), passed("web", listener())];
  const [first, second] = sockets.map(addressOf);
  assert.deepEqual(claims(sockets, [["web", second!], ["web", first!]]), [1, 0]);
});

test("ForeignSockets.claim takes port 0 for no address", () => {
  assert.deepEqual(claims([passed("admin", listener())], [["web", anyPort], ["admin", anyPort]]), [undefined, 0]);
});

test("ForeignSockets.claim wants a socket that the program stored to be where it listens now", () => {
  const sockets = [passed("web", listener())];
  const moved = { ...anyPort, port: 1 };
  assert.deepEqual(claims(sockets, [["web", moved], ["web", addressOf(sockets[0]!)]], true), [undefined, 0]);
});

test("ForeignSockets.claim gives nothing but stream listeners of the kind that is wanted", () => {
  using folder = new TemporaryFolder();
  const unix = { family: "unix", path: folder.file("web.sock") } as const;
  const datagram = new OwnedDescriptor(runtime, openSocket(runtime, "inet", "dgram"));
  bindSocket(runtime, datagram.number, anyPort);
  const sockets = [passed("file", openNull()), passed("datagram", datagram), passed("web", listener(unix))];
  assert.deepEqual(claims(sockets, [["file", anyPort], ["datagram", anyPort], ["web", anyPort], ["other", unix]]), [
    undefined,
    undefined,
    undefined,
    2,
  ]);
});

test("serves takes a dual stack listener for one at 0.0.0.0, and an IPv6 one not", () => {
  const everywhere = { family: "inet6", hostname: "::", port: 0 } as const;
  using dual = listener(everywhere);
  using only = listener(everywhere, true);
  const does = (descriptor: OwnedDescriptor, hostname: string, port?: number) => {
    const identity = identify(runtime, descriptor.number)!;
    const { port: own } = identity.address as { port: number };
    return serves(runtime, { descriptor, identity }, { family: "inet", hostname, port: port ?? own });
  };
  assert.deepEqual([does(dual, "0.0.0.0"), does(dual, "0.0.0.0", 0)], [true, true]);
  assert.deepEqual([does(dual, "127.0.0.1"), does(dual, "0.0.0.0", 1), does(only, "0.0.0.0")], [false, false, false]);
});

/** Connects, and waits for the greeting. */
function greeting(address: SocketAddress): Promise<string> {
  return new Promise((resolve, reject) => {
    const { hostname, port } = address as { hostname: string; port: number };
    const socket = net.connect({ host: hostname, port }, () => {}).once("error", reject);
    socket.once("data", (bytes) => socket.destroy() && resolve(String(bytes)));
  });
}

test("Takeover.listen opens what was passed, which accepts from ready on; ready closes what nobody opened", async () => {
  using folder = new TemporaryFolder();
  const web = passed("web", listener());
  const spare = passed("spare", listener());
  const sparePort = spare.descriptor.number;
  const takeover = await Takeover.begin(runtime, folder.file("t.sock"), { inherit: [web, spare] });
  let server: net.Server | undefined;
  await takeover.listen("web", { port: 0, hostname: "127.0.0.1" }, (at) => {
    return server = net.createServer((socket) => socket.end("hello")).listen(at);
  });
  assert.deepEqual([takeover.supervised, takeover.inherited, takeover.generation], [["web"], [], 1]);
  assert.deepEqual(takeover.addr("web"), addressOf(web));
  const first = greeting(addressOf(web));
  await takeover.ready();
  assert.equal(await first, "hello");
  assert.notEqual(identify(runtime, sparePort)?.cookie, spare.identity!.cookie);
  await takeover.close();
  await new Promise((resolve) => server!.close(resolve));
});

test("Takeover.listenGroup opens more where the listener is that was passed", async () => {
  using folder = new TemporaryFolder();
  const address = { family: "inet6", hostname: "::1", port: 0 } as const;
  const web = passed("web", bindListener(runtime, address, { port: 0, reusePort: true, ipv6Only: true }));
  const takeover = await Takeover.begin(runtime, folder.file("t.sock"), { inherit: [web], notify: false });
  const servers: net.Server[] = [];
  await takeover.listenGroup("web", { port: 0, hostname: "127.0.0.1", count: 2 }, (at) => {
    return servers[servers.push(net.createServer().listen(at)) - 1];
  });
  assert.deepEqual([takeover.addr("web"), takeover.addr("web.2")], [addressOf(web), addressOf(web)]);
  await takeover.close();
  for (const server of servers) await new Promise((resolve) => server.close(resolve));
});

test("Takeover.begin closes what was passed when it fails", async () => {
  const web = passed("web", listener());
  const copy = new OwnedDescriptor(runtime, duplicate(runtime, web.descriptor.number));
  await assert.rejects(
    Takeover.begin(runtime, "/nowhere/t.sock", { inherit: [web] }),
    takeoverError("ERR_TAKEOVER_PATH"),
  );
  assert.equal(web.descriptor.number, -1);
  copy[Symbol.dispose]();
});
