/**
 * What the kernel's tables say of sockets (sock_diag(7)): who is in a
 * SO_REUSEPORT group, whoever opened it, which handshakes wait for their last
 * packet, and how many connections wait to be accepted. Any user may ask. The
 * tables are those of the network namespace that this process is in.
 *
 * ```text
 * struct nlmsghdr          length 4 | type 2 | flags 2 | sequence 4 | port 4
 * struct inet_diag_sockid  sport 2 BE | dport 2 BE | source 16 | destination 16 | interface 4 | cookie 8
 * struct inet_diag_req_v2  family 1 | protocol 1 | extensions 1 | 0 | states 4 | sockid 48
 * struct inet_diag_msg     family 1 | state 1 | timer 1 | retransmits 1 | sockid 48 | expires 4
 *                          receive queue 4 | … | inode 4                                          72 in all
 * struct unix_diag_req     family 1 | protocol 1 | 0 | states 4 | inode 4 | show 4 | cookie 8         24 in all
 * struct unix_diag_msg     family 1 | type 1 | state 1 | 0 | inode 4 | cookie 8                       16 in all
 *                          then attributes: length 2 | type 2 | of RQLEN: receive queue 4 | backlog 4
 * ```
 *
 * @module
 */

import { allocate, type Bytes, toHex, viewOf } from "../c/bytes.ts";
import { errnoName } from "../c/errno.ts";
import { formatInet6, type InetAddress } from "../c/sockaddr.ts";
import { checked, isSystemError, SystemError, TakeoverError } from "../errors.ts";
import type { Runtime } from "../runtime.ts";
import { OwnedDescriptor, owning } from "../sockets/descriptors.ts";

/** What a group carries. */
export type GroupType = "stream" | "dgram";

/** A socket in the kernel's table. */
export interface ListedSocket {
  /** As `SO_COOKIE` gives it, in hexadecimal. */
  readonly cookie: string;
  /** Where it is bound, without a scope. */
  readonly local: InetAddress;
  /** Its two addresses and ports, as bytes in hexadecimal. */
  readonly pair: string;
  /** Of a listener: how many connections wait to be accepted. */
  readonly waitingCount: number;
}

/** Linux's numbers (linux/netlink.h, linux/sock_diag.h). */
const netlink = { family: 16, sockDiag: 4, raw: 3 | 0o2000000 | 0o4000 } as const;
const messages = { error: 2, done: 3, byFamily: 20 } as const;
const dumpFlags = 0x301;

const headerSize = 16;
const inetRequestSize = 56;
const socketIdOffset = 4;
const cookieOffset = 40;
const pairSize = 36;
const receiveQueueOffset = 56;
const inetMessageSize = 72;

/** The same of a request for Unix sockets, and of what comes back (linux/unix_diag.h). */
const unixRequestSize = 24;
const unixMessageSize = 16;
const unixShown = { queueLength: 16 } as const;
const unixAttribute = { queueLength: 4 } as const;

/** One answer of a dump is at most this long (net/netlink/af_netlink.c). */
const answerSize = 32 * 1024;

const protocols = { stream: 6, dgram: 17 } as const;
const families = { unix: 1, inet: 2, inet6: 10 } as const;

/** The states that the kernel's tables have them in (include/net/tcp_states.h); UDP borrows TCP_CLOSE. */
const states = { listening: 10, unconnected: 7, halfOpen: 3 } as const;

/**
 * Everybody in the group at an address: the sockets that listen there, or the
 * datagram sockets that are bound there and not connected.
 *
 * @param address Where they are bound, exactly.
 * @returns In no order that means anything.
 * @throws {TakeoverError} `ERR_TAKEOVER_UNSUPPORTED` where the kernel has no
 *   tables to ask, or this process may not.
 */
export function listedMembers(runtime: Runtime, address: InetAddress, type: GroupType): ListedSocket[] {
  const state = type === "stream" ? states.listening : states.unconnected;
  const found = dumpInet(runtime, address.family, type, state, address.port);
  return found.filter(({ local }) => local.hostname === address.hostname && local.port === address.port);
}

/**
 * The handshakes that wait for the client's last packet (SYN_RECV) at an
 * address where somebody listens, or at all addresses of its port when that is
 * everywhere. Which listener of a group will get the connection is not told.
 *
 * @throws {TakeoverError} As {@linkcode listedMembers}.
 */
export function halfOpenPairs(runtime: Runtime, address: InetAddress): Set<string> {
  const found = dumpInet(runtime, "inet", "stream", states.halfOpen, address.port);
  if (address.family === "inet6") found.push(...dumpInet(runtime, "inet6", "stream", states.halfOpen, address.port));
  const [hostname] = address.hostname.split("%");
  const isThere = ({ local }: ListedSocket) => local.hostname === hostname;
  // One address of IPv4 can be written as one of IPv6; the kernel has it in either table.
  const isAnywhere = ["0.0.0.0", "::"].includes(hostname!) || hostname!.startsWith("::ffff:");
  return new Set(found.filter((each) => isAnywhere || isThere(each)).map(({ pair }) => pair));
}

/**
 * How many connections wait at each Unix listener, by its inode.
 *
 * @throws {TakeoverError} As {@linkcode listedMembers}.
 */
export function unixWaitingCounts(runtime: Runtime): Map<number, number> {
  const request = allocate(unixRequestSize);
  const view = viewOf(request);
  view.setUint8(0, families.unix);
  view.setUint32(4, 1 << states.listening, true);
  view.setUint32(12, unixShown.queueLength, true);
  return new Map(dump(runtime, "all Unix listeners", request, unixMessageSize, (message) => {
    return [viewOf(message).getUint32(4, true), queueLengthIn(message.subarray(unixMessageSize))];
  }));
}

function queueLengthIn(attributes: Bytes): number {
  const view = viewOf(attributes);
  for (let at = 0; at + 8 <= attributes.length;) {
    const length = view.getUint16(at, true);
    if (view.getUint16(at + 2, true) === unixAttribute.queueLength) return view.getUint32(at + 4, true);
    at += Math.max((length + 3) & ~3, 4);
  }
  return 0;
}

function dumpInet(
  runtime: Runtime,
  family: InetAddress["family"],
  type: GroupType,
  state: number,
  port: number,
): ListedSocket[] {
  const request = allocate(inetRequestSize);
  const view = viewOf(request);
  view.setUint8(0, families[family]);
  view.setUint8(1, protocols[type]);
  view.setUint32(4, 1 << state, true);
  view.setUint16(8, port);
  return dump(runtime, `the sockets of the port ${port}`, request, inetMessageSize, decode);
}

/** Everything that a request brings. A message is as long as `leastSize`, or it is none of those. */
function dump<T>(
  runtime: Runtime,
  what: string,
  request: Bytes,
  leastSize: number,
  decode: (message: Bytes) => T,
): T[] {
  const { abi, libc } = runtime;
  try {
    const number = checked(abi, "socket", libc.socket(netlink.family, netlink.raw, netlink.sockDiag));
    return owning(new OwnedDescriptor(runtime, number), () => {
      const message = withHeader(request);
      checked(abi, "write", libc.write(number, message, message.length));
      return answers(runtime, number, leastSize, decode);
    });
  } catch (cause) {
    if (!isSystemError(cause, "ENOENT", "EPERM", "EACCES", "EAFNOSUPPORT", "EPROTONOSUPPORT", "EINVAL")) throw cause;
    throw new TakeoverError(
      "ERR_TAKEOVER_UNSUPPORTED",
      `Cannot see ${what}: expected the kernel's sock_diag (NETLINK_SOCK_DIAG), and leave to ask it`,
      { cause },
    );
  }
}

function withHeader(request: Bytes): Bytes {
  const message = allocate(headerSize + request.length);
  const view = viewOf(message);
  view.setUint32(0, message.length, true);
  view.setUint16(4, messages.byFamily, true);
  view.setUint16(6, dumpFlags, true);
  message.set(request, headerSize);
  return message;
}

/** The kernel makes each part of the answer while it is read, so that none has to be waited for. */
function answers<T>(
  { abi, libc }: Runtime,
  number: number,
  leastSize: number,
  decode: (message: Bytes) => T,
): T[] {
  const found: T[] = [];
  const bytes = allocate(answerSize);
  for (;;) {
    const size = checked(abi, "read", libc.read(number, bytes, bytes.length));
    const view = viewOf(bytes.subarray(0, size));
    for (let at = 0; at + headerSize <= size;) {
      const length = view.getUint32(at, true);
      const type = view.getUint16(at + 4, true);
      if (type === messages.done) return found;
      if (type === messages.error) throw failure(abi.platform, view.getInt32(at + headerSize, true));
      if (length < headerSize + leastSize) break;
      found.push(decode(bytes.subarray(at + headerSize, at + length)));
      at += (length + 3) & ~3;
    }
  }
}

function decode(message: Bytes): ListedSocket {
  const id = message.subarray(socketIdOffset);
  const view = viewOf(id);
  const family = message[0] === families.inet ? "inet" : "inet6";
  const hostname = family === "inet" ? id.subarray(4, 8).join(".") : formatInet6(id.subarray(4, 20));
  return {
    cookie: view.getBigUint64(cookieOffset, true).toString(16).padStart(16, "0"),
    local: { family, hostname, port: view.getUint16(0) },
    pair: toHex(id.subarray(0, pairSize)),
    waitingCount: viewOf(message).getUint32(receiveQueueOffset, true),
  };
}

function failure(platform: "linux" | "darwin", result: number): SystemError {
  return new SystemError(errnoName(platform, -result), result, "read");
}
