import assert from "node:assert/strict";
import test from "node:test";
import type { Abi } from "../../src/c/abi.ts";
import {
  decodeSockaddr,
  encodeSockaddr,
  formatAddress,
  type InetAddress,
  parseInet,
  parseInet6,
  sameAddress,
  sockaddrSize,
  type SocketAddress,
} from "../../src/c/sockaddr.ts";
import { darwin, linux, takeoverError } from "./support.ts";

function comesBack(abi: Abi, address: SocketAddress): void {
  assert.deepEqual(decodeSockaddr(abi, encodeSockaddr(abi, address)), address);
}

/** How an IPv6 address is written after it went through the kernel's form. */
function canonical(hostname: string): string {
  const bytes = encodeSockaddr(linux, { family: "inet6", hostname, port: 1 });
  return (decodeSockaddr(linux, bytes) as InetAddress).hostname;
}

function unix(path: string): SocketAddress {
  return { family: "unix", path };
}

test("encodeSockaddr lays an IPv4 address out as Linux expects it", () => {
  const bytes = encodeSockaddr(linux, { family: "inet", hostname: "127.0.0.1", port: 8080 });
  assert.deepEqual([...bytes], [2, 0, 0x1f, 0x90, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
});

test("encodeSockaddr lays an IPv6 address out as Linux expects it", () => {
  const bytes = encodeSockaddr(linux, { family: "inet6", hostname: "fe80::1", port: 80, scope: 3 });
  assert.deepEqual([...bytes], [
    ...[10, 0, 0, 80, 0, 0, 0, 0],
    ...[0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
    ...[3, 0, 0, 0],
  ]);
});

test("encodeSockaddr begins with sa_len and a family of one byte on macOS", () => {
  assert.deepEqual([...encodeSockaddr(darwin, { family: "inet", hostname: "1.2.3.4", port: 1 }).slice(0, 8)], [
    ...[16, 2, 0, 1, 1, 2, 3, 4],
  ]);
  assert.deepEqual([...encodeSockaddr(darwin, { family: "inet6", hostname: "::", port: 1 }).slice(0, 4)], [
    28,
    30,
    0,
    1,
  ]);
  assert.deepEqual([...encodeSockaddr(darwin, unix("/a"))], [5, 1, 47, 97, 0]);
});

test("encodeSockaddr ends a Unix path with its NUL", () => {
  assert.deepEqual([...encodeSockaddr(linux, unix("/a"))], [1, 0, 47, 97, 0]);
});

test("encodeSockaddr does not end an abstract name with a NUL", () => {
  assert.deepEqual([...encodeSockaddr(linux, unix("\0a"))], [1, 0, 0, 97]);
});

test("encodeSockaddr gives the family alone for an empty path, which the kernel names", () => {
  assert.deepEqual([...encodeSockaddr(linux, unix(""))], [1, 0]);
});

test("decodeSockaddr gives back every kind of address on Linux", () => {
  comesBack(linux, { family: "inet", hostname: "192.0.2.255", port: 65535 });
  comesBack(linux, { family: "inet", hostname: "0.0.0.0", port: 0 });
  comesBack(linux, { family: "inet6", hostname: "2001:db8::1", port: 443 });
  comesBack(linux, { family: "inet6", hostname: "fe80::1", port: 443, scope: 2 });
  comesBack(linux, unix("/run/shop/takeover.sock"));
  comesBack(linux, unix("\0shop"));
  comesBack(linux, unix(""));
});

test("decodeSockaddr gives back every kind of address on macOS", () => {
  comesBack(darwin, { family: "inet", hostname: "192.0.2.255", port: 65535 });
  comesBack(darwin, { family: "inet6", hostname: "fe80::1", port: 443, scope: 2 });
  comesBack(darwin, unix("/run/shop/takeover.sock"));
});

test("decodeSockaddr writes IPv6 in lower case without leading zeros (RFC 5952, 4.1 and 4.3)", () => {
  assert.equal(canonical("2001:0DB8:0000:0001:00AB:1:1:1"), "2001:db8:0:1:ab:1:1:1");
});

test("decodeSockaddr shortens the longest run of zeros (RFC 5952, 4.2.3)", () => {
  assert.equal(canonical("2001:0:0:1:0:0:0:1"), "2001:0:0:1::1");
});

test("decodeSockaddr shortens the first of two equal runs (RFC 5952, 4.2.3)", () => {
  assert.equal(canonical("2001:db8:0:0:1:0:0:1"), "2001:db8::1:0:0:1");
});

test("decodeSockaddr does not shorten a single zero (RFC 5952, 4.2.2)", () => {
  assert.equal(canonical("2001:db8:0:1:1:1:1:1"), "2001:db8:0:1:1:1:1:1");
});

test("decodeSockaddr shortens at either end, and all of it", () => {
  assert.equal(canonical("0:0:0:0:0:0:0:0"), "::");
  assert.equal(canonical("0:0:0:0:0:0:0:1"), "::1");
  assert.equal(canonical("1:0:0:0:0:0:0:0"), "1::");
  assert.equal(canonical("0:0:1:1:1:1:1:1"), "::1:1:1:1:1:1");
});

test("decodeSockaddr writes an IPv4-mapped address with its IPv4 part (RFC 5952, 5)", () => {
  assert.equal(canonical("::ffff:192.0.2.1"), "::ffff:192.0.2.1");
  assert.equal(canonical("::ffff:c000:201"), "::ffff:192.0.2.1");
});

test("decodeSockaddr leaves the scope out when it is 0", () => {
  const bytes = encodeSockaddr(linux, { family: "inet6", hostname: "::1", port: 1, scope: 0 });
  assert.deepEqual(decodeSockaddr(linux, bytes), { family: "inet6", hostname: "::1", port: 1 });
});

test("decodeSockaddr ends a Unix path at its NUL, or at the end of the bytes", () => {
  assert.deepEqual(decodeSockaddr(linux, Uint8Array.of(1, 0, 97, 0, 98)), unix("a"));
  assert.deepEqual(decodeSockaddr(linux, Uint8Array.of(1, 0, 97, 98)), unix("ab"));
});

test("decodeSockaddr keeps the NULs inside an abstract name", () => {
  assert.deepEqual(decodeSockaddr(linux, Uint8Array.of(1, 0, 0, 97, 0, 98)), unix("\0a\0b"));
});

test("decodeSockaddr gives null for another family", () => {
  assert.equal(decodeSockaddr(linux, Uint8Array.of(16, 0, 0, 0, 0, 0, 0, 0)), null);
});

test("decodeSockaddr gives null for IP addresses truncated at any byte", () => {
  const inet = encodeSockaddr(linux, { family: "inet", hostname: "1.2.3.4", port: 1 });
  const inet6 = encodeSockaddr(linux, { family: "inet6", hostname: "::1", port: 1 });
  for (let size = 0; size < inet.length; size++) assert.equal(decodeSockaddr(linux, inet.slice(0, size)), null);
  for (let size = 0; size < inet6.length; size++) assert.equal(decodeSockaddr(linux, inet6.slice(0, size)), null);
});

test("decodeSockaddr takes more bytes than the address needs", () => {
  const bytes = new Uint8Array(sockaddrSize);
  bytes.set(encodeSockaddr(linux, { family: "inet", hostname: "1.2.3.4", port: 5 }));
  assert.deepEqual(decodeSockaddr(linux, bytes), { family: "inet", hostname: "1.2.3.4", port: 5 });
});

test("encodeSockaddr takes a Unix path of 107 bytes and refuses 108 on Linux", () => {
  comesBack(linux, unix("/".padEnd(107, "a")));
  assert.throws(() => encodeSockaddr(linux, unix("/".padEnd(108, "a"))), {
    ...takeoverError("ERR_TAKEOVER_PATH"),
    message: /has 108 bytes, expected at most 107/,
  });
});

test("encodeSockaddr takes a Unix path of 103 bytes and refuses 104 on macOS", () => {
  comesBack(darwin, unix("/".padEnd(103, "a")));
  assert.throws(() => encodeSockaddr(darwin, unix("/".padEnd(104, "a"))), takeoverError("ERR_TAKEOVER_PATH"));
});

test("encodeSockaddr counts the bytes of a Unix path and not its characters", () => {
  comesBack(linux, unix(`/${"é".repeat(53)}`));
  assert.throws(() => encodeSockaddr(linux, unix("é".repeat(54))), takeoverError("ERR_TAKEOVER_PATH"));
});

test("encodeSockaddr takes an abstract name of 108 bytes and refuses 109", () => {
  comesBack(linux, unix("\0".padEnd(108, "a")));
  assert.throws(() => encodeSockaddr(linux, unix("\0".padEnd(109, "a"))), takeoverError("ERR_TAKEOVER_PATH"));
});

test("encodeSockaddr refuses a NUL inside a Unix path", () => {
  assert.throws(() => encodeSockaddr(linux, unix("/a\0b")), {
    ...takeoverError("ERR_TAKEOVER_PATH"),
    message: /expected no NUL in it/,
  });
});

test("encodeSockaddr refuses a port that is none", () => {
  for (const port of [-1, 65536, 0.5, NaN]) {
    for (const [family, hostname] of [["inet", "127.0.0.1"], ["inet6", "::1"]] as const) {
      assert.throws(() => encodeSockaddr(linux, { family, hostname, port }), takeoverError("ERR_TAKEOVER_ADDRESS"));
    }
  }
});

test("encodeSockaddr refuses an address of the other family, and a name", () => {
  for (const [family, hostname] of [["inet", "::1"], ["inet", "localhost"], ["inet6", "127.0.0.1"]] as const) {
    assert.throws(() => encodeSockaddr(linux, { family, hostname, port: 1 }), takeoverError("ERR_TAKEOVER_ADDRESS"));
  }
});

test("parseInet refuses what is no dotted decimal", () => {
  for (
    const text of ["", "1.2.3", "1.2.3.4.5", "256.0.0.1", "1.2.3.a", " 1.2.3.4", "1.2.3.4\n", "1..2.3", "-1.2.3.4"]
  ) {
    assert.equal(parseInet(text), null, JSON.stringify(text));
  }
});

test("parseInet6 takes every form of RFC 4291, section 2.2", () => {
  assert.deepEqual([...parseInet6("1:2:3:4:5:6:7:8")!], [0, 1, 0, 2, 0, 3, 0, 4, 0, 5, 0, 6, 0, 7, 0, 8]);
  assert.deepEqual([...parseInet6("::")!], new Array(16).fill(0));
  assert.deepEqual([...parseInet6("ABCD::")!], [0xab, 0xcd, ...new Array(14).fill(0)]);
  assert.deepEqual([...parseInet6("1:2:3:4:5:6:7::")!], [0, 1, 0, 2, 0, 3, 0, 4, 0, 5, 0, 6, 0, 7, 0, 0]);
  assert.deepEqual([...parseInet6("64:ff9b::192.0.2.33")!], [
    0,
    0x64,
    0xff,
    0x9b,
    ...new Array(8).fill(0),
    192,
    0,
    2,
    33,
  ]);
  assert.deepEqual([...parseInet6("1:2:3:4:5:6:1.2.3.4")!], [0, 1, 0, 2, 0, 3, 0, 4, 0, 5, 0, 6, 1, 2, 3, 4]);
});

test("parseInet6 refuses what is no IPv6 address", () => {
  const wrong = [
    ...["", ":", ":::", "1", "1:2:3:4:5:6:7", "1:2:3:4:5:6:7:8:9", "1:2:3:4:5:6:7:8::", "1::2::3", "12345::"],
    ...[
      "g::",
      "::1%eth0",
      "[::1]",
      ":1:2:3:4:5:6:7",
      "1:2:3:4:5:6:7:",
      "::1.2.3",
      "::256.0.0.1",
      "::1.2.3.4:5",
      "1:::2",
    ],
    ...["1.2.3.4::", "1.2.3.4::1", "::1.2.3.4::"],
  ];
  for (const text of wrong) assert.equal(parseInet6(text), null, JSON.stringify(text));
});

test("formatAddress writes addresses as a command line does", () => {
  assert.equal(formatAddress({ family: "inet", hostname: "127.0.0.1", port: 80 }), "127.0.0.1:80");
  assert.equal(formatAddress({ family: "inet6", hostname: "::1", port: 80 }), "[::1]:80");
  assert.equal(formatAddress({ family: "inet6", hostname: "fe80::1", port: 80, scope: 2 }), "[fe80::1%2]:80");
  assert.equal(formatAddress(unix("/run/x")), "/run/x");
  assert.equal(formatAddress(unix("\0shop")), "@shop");
});

test("sameAddress tells addresses apart by each of their parts", () => {
  const address = { family: "inet6", hostname: "fe80::1", port: 80, scope: 2 } as const;
  assert.equal(sameAddress(address, { ...address }), true);
  assert.equal(sameAddress(address, { ...address, port: 81 }), false);
  assert.equal(sameAddress(address, { ...address, hostname: "fe80::2" }), false);
  assert.equal(sameAddress(address, { ...address, scope: 3 }), false);
  assert.equal(sameAddress(unix("/a"), unix("/b")), false);
  assert.equal(sameAddress(unix("127.0.0.1:80"), { family: "inet", hostname: "127.0.0.1", port: 80 }), false);
});
