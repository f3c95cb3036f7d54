import assert from "node:assert/strict";
import { allocate, viewOf } from "../../src/c/bytes.ts";
import { OwnedDescriptor } from "../../src/sockets/descriptors.ts";
import { copyOptions } from "../../src/sockets/datagram_options.ts";
import { openSocket } from "../../src/sockets/socket.ts";
import { runtime, test } from "./support.ts";

const { libc } = runtime;

function set(descriptor: number, level: number, name: number, wanted: number): void {
  const value = allocate(4);
  viewOf(value).setInt32(0, wanted, true);
  assert.equal(libc.setsockopt(descriptor, level, name, value, 4), 0, `${level} ${name}`);
}

function get(descriptor: number, level: number, name: number): number {
  const [value, size] = [allocate(4), allocate(4)];
  viewOf(size).setUint32(0, 4, true);
  assert.equal(libc.getsockopt(descriptor, level, name, value, size), 0, `${level} ${name}`);
  return viewOf(value).getInt32(0, true);
}

const open = (family: "inet" | "inet6") => new OwnedDescriptor(runtime, openSocket(runtime, family, "dgram"));

/** What is set is another than the default, and the other socket has it afterwards. */
function copies(family: "inet" | "inet6", wanted: readonly (readonly [level: number, name: number, value: number])[]): void {
  using from = open(family);
  using to = open(family);
  for (const [level, name, value] of wanted) {
    assert.notEqual(get(to.number, level, name), value, `${level} ${name} is not the default`);
    set(from.number, level, name, value);
  }
  const found = wanted.map(([level, name]) => get(from.number, level, name));
  copyOptions(runtime, family, from.number, to.number);
  assert.deepEqual(wanted.map(([level, name]) => get(to.number, level, name)), found);
}

/** As C has it, which the unit tests check. */
const [socketLevel, inetLevel, udpLevel, inet6Level] = [1, 0, 17, 41];
const of = (level: number, values: Record<number, number>) => {
  return Object.entries(values).map(([name, value]) => [level, Number(name), value] as const);
};

/** SO_MARK takes CAP_NET_ADMIN. */
const mark = 36;
const mayMark = (() => {
  using socket = open("inet");
  return libc.setsockopt(socket.number, socketLevel, mark, allocate(4), 4) === 0;
})();

/** SO_BROADCAST, SO_SNDBUF, SO_PRIORITY, SO_TIMESTAMPNS, SO_RXQ_OVFL. */
const socketOptions = of(socketLevel, { 6: 1, 7: 100_000, 12: 3, 35: 1, 40: 1, ...mayMark ? { [mark]: 7 } : {} });

/** IP_TOS, IP_TTL, IP_PKTINFO, IP_MTU_DISCOVER, IP_RECVERR, IP_RECVTTL, IP_RECVTOS, IP_FREEBIND. */
const inetOptions = of(inetLevel, { 1: 0x10, 2: 33, 8: 1, 10: 2, 11: 1, 12: 1, 13: 1, 15: 1 });

/** IP_MULTICAST_IF (127.0.0.1), IP_MULTICAST_TTL, IP_MULTICAST_LOOP. */
const multicastOptions = of(inetLevel, { 32: 0x0100007f, 33: 5, 34: 0 });

/** UDP_GRO. */
const udpOptions = of(udpLevel, { 104: 1 });

/**
 * IPV6_UNICAST_HOPS, IPV6_MULTICAST_IF (lo), IPV6_MULTICAST_HOPS, IPV6_MULTICAST_LOOP, IPV6_MTU_DISCOVER,
 * IPV6_RECVERR, IPV6_RECVPKTINFO, IPV6_RECVHOPLIMIT, IPV6_RECVTCLASS, IPV6_TCLASS.
 */
const inet6Options = of(inet6Level, { 16: 33, 17: 1, 18: 5, 19: 0, 23: 2, 25: 1, 49: 1, 51: 1, 66: 1, 67: 0x20 });

const anyOptions = [...socketOptions, ...inetOptions, ...udpOptions];

test("copyOptions copies what an application has set on an IPv4 socket", () =>
  copies("inet", [...anyOptions, ...multicastOptions]));

test("copyOptions copies what an application has set on an IPv6 socket", () =>
  copies("inet6", [...anyOptions, ...inet6Options]));
