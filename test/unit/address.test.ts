import assert from "node:assert/strict";
import test from "node:test";
import { type EndpointAddress, openingOf, resolveAddress, satisfies } from "../../src/sockets/address.ts";
import type { SocketAddress } from "../../src/c/sockaddr.ts";
import { fakeRuntime, takeoverError } from "./support.ts";

/** Knows one name with two addresses, and one without any. */
const runtime = fakeRuntime({
  lookup: (hostname) => {
    if (hostname === "shop.test") return Promise.resolve(["2001:db8::1", "192.0.2.1"]);
    if (hostname === "none.test") return Promise.resolve([]);
    return Promise.reject(new Error(`getaddrinfo ENOTFOUND ${hostname}`));
  },
});

const inet = (hostname: string, port: number): SocketAddress => ({ family: "inet", hostname, port });
const unix = (path: string): SocketAddress => ({ family: "unix", path });

async function refuses(address: unknown): Promise<void> {
  const resolved = resolveAddress(runtime, address as EndpointAddress);
  await assert.rejects(resolved, takeoverError("ERR_TAKEOVER_ADDRESS"), JSON.stringify(address));
}

test("resolveAddress takes every IPv4 address of the host when no name is given", async () => {
  assert.deepEqual(await resolveAddress(runtime, { port: 8080 }), inet("0.0.0.0", 8080));
});

test("resolveAddress takes numeric addresses as they are", async () => {
  assert.deepEqual(await resolveAddress(runtime, { hostname: "127.0.0.1", port: 0 }), inet("127.0.0.1", 0));
  assert.deepEqual(await resolveAddress(runtime, { hostname: "::", port: 65535 }), {
    family: "inet6",
    hostname: "::",
    port: 65535,
  });
});

test("resolveAddress gives IPv6 addresses as the kernel reports them, so that satisfies can compare", async () => {
  for (const hostname of ["0:0:0:0:0:0:0:1", "::0001", "::0.0.0.1"]) {
    const wanted = await resolveAddress(runtime, { hostname, port: 1 });
    assert.equal(satisfies({ family: "inet6", hostname: "::1", port: 1 }, wanted), true, hostname);
  }
});

test("resolveAddress takes the brackets off an IPv6 address", async () => {
  assert.deepEqual(await resolveAddress(runtime, { hostname: "[::1]", port: 1 }), {
    family: "inet6",
    hostname: "::1",
    port: 1,
  });
});

test("resolveAddress takes localhost as 127.0.0.1 without asking anybody", async () => {
  assert.deepEqual(await resolveAddress(fakeRuntime(), { hostname: "localhost", port: 1 }), inet("127.0.0.1", 1));
});

test("resolveAddress takes the first address that a name has", async () => {
  assert.deepEqual(await resolveAddress(runtime, { hostname: "shop.test", port: 1 }), {
    family: "inet6",
    hostname: "2001:db8::1",
    port: 1,
  });
});

test("resolveAddress refuses a name that does not resolve, and keeps the cause", async () => {
  await assert.rejects(resolveAddress(runtime, { hostname: "missing.test", port: 1 }), (error: Error) => {
    assert.match((error.cause as Error).message, /ENOTFOUND/);
    return true;
  });
  await refuses({ hostname: "missing.test", port: 1 });
  await refuses({ hostname: "none.test", port: 1 });
});

test("resolveAddress refuses a port that is none", async () => {
  for (const port of [-1, 65536, 0.5, NaN, "80", undefined, null]) await refuses({ port });
});

test("resolveAddress takes a Unix path as it is", async () => {
  assert.deepEqual(await resolveAddress(runtime, { path: "/run/x" }), unix("/run/x"));
});

test("resolveAddress refuses a Unix path that is none", async () => {
  for (const path of ["", 1, null, undefined]) await refuses({ path });
});

test("satisfies is true for the same address, and any port when 0 is wanted", () => {
  assert.equal(satisfies(inet("127.0.0.1", 80), inet("127.0.0.1", 80)), true);
  assert.equal(satisfies(inet("127.0.0.1", 80), inet("127.0.0.1", 0)), true);
  assert.equal(satisfies(unix("/a"), unix("/a")), true);
});

test("satisfies is false when any part differs", () => {
  assert.equal(satisfies(inet("127.0.0.1", 80), inet("127.0.0.1", 81)), false);
  assert.equal(satisfies(inet("127.0.0.1", 80), inet("0.0.0.0", 80)), false);
  assert.equal(satisfies(inet("127.0.0.1", 80), inet("0.0.0.0", 0)), false);
  assert.equal(satisfies(inet("0.0.0.0", 80), { family: "inet6", hostname: "::", port: 80 }), false);
  assert.equal(satisfies(unix("/a"), unix("/b")), false);
  assert.equal(satisfies(unix("/a"), inet("127.0.0.1", 0)), false);
  assert.equal(satisfies(inet("127.0.0.1", 80), unix("/a")), false);
});

test("openingOf says an IP address in the words of every server", () => {
  assert.deepEqual(openingOf(inet("127.0.0.1", 80)), { hostname: "127.0.0.1", host: "127.0.0.1", port: 80 });
});

test("openingOf says a Unix path in the words of every server", () => {
  assert.deepEqual(openingOf(unix("/a")), { path: "/a", unix: "/a", transport: "unix" });
});
