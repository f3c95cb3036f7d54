/**
 * What the kernel's tables say of the sockets of one port (sock_diag(7)): who
 * is in a SO_REUSEPORT group, whoever opened it, and which handshakes wait for
 * their last packet. Any user may ask. The tables are those of the network
 * namespace that this process is in.
 *
 * ```text
 * struct nlmsghdr          length 4 | type 2 | flags 2 | sequence 4 | port 4
 * struct inet_diag_sockid  sport 2 BE | dport 2 BE | source 16 | destination 16 | interface 4 | cookie 8
 * struct inet_diag_req_v2  family 1 | protocol 1 | extensions 1 | 0 | states 4 | sockid 48
 * struct inet_diag_msg     family 1 | state 1 | timer 1 | retransmits 1 | sockid 48 | … | inode 4     72 in all
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
}

/** Linux's numbers (linux/netlink.h, linux/sock_diag.h). */
const netlink = { family: 16, sockDiag: 4, raw: 3 | 0o2000000 | 0o4000 } as const;
const messages = { error: 2, done: 3, byFamily: 20 } as const;
const dumpFlags = 0x301;

const headerSize = 16;
const requestSize = 72;
const socketIdOffset = 4;
const cookieOffset = 40;
const pairSize = 36;
const leastSize = 72;

/** One answer of a dump is at most this long (net/netlink/af_netlink.c). */
const answerSize = 32 * 1024;

const protocols = { stream: 6, dgram: 17 } as const;
const families = { inet: 2, inet6: 10 } as const;

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
  const found = dump(runtime, address.family, type, state, address.port);
  return found.filter(({ local }) => local.hostname === address.hostname && local.port === address.port);
}

/**
 * The handshakes of a TCP port that wait for the client's last packet
 * (SYN_RECV), by their addresses. Which listener of a group will get the
 * connection is not told.
 *
 * @throws {TakeoverError} As {@linkcode listedMembers}.
 */
export function halfOpenPairs(runtime: Runtime, { family, port }: InetAddress): Set<string> {
  const found = dump(runtime, "inet", "stream", states.halfOpen, port);
  if (family === "inet6") found.push(...dump(runtime, "inet6", "stream", states.halfOpen, port));
  return new Set(found.map(({ pair }) => pair));
}

function dump(
  runtime: Runtime,
  family: InetAddress["family"],
  type: GroupType,
  state: number,
  port: number,
): ListedSocket[] {
  const { abi, libc } = runtime;
  try {
    const number = checked(abi, "socket", libc.socket(netlink.family, netlink.raw, netlink.sockDiag));
    return owning(new OwnedDescriptor(runtime, number), () => {
      const request = encodeRequest(family, type, state, port);
      checked(abi, "write", libc.write(number, request, request.length));
      return answers(runtime, number);
    });
  } catch (cause) {
    if (!isSystemError(cause, "ENOENT", "EPERM", "EACCES", "EAFNOSUPPORT", "EPROTONOSUPPORT", "EINVAL")) throw cause;
    throw new TakeoverError(
      "ERR_TAKEOVER_UNSUPPORTED",
      `Cannot see the sockets of the port ${port}: expected the kernel's inet_diag (NETLINK_SOCK_DIAG), ` +
        "and leave to ask it",
      { cause },
    );
  }
}

function encodeRequest(family: InetAddress["family"], type: GroupType, state: number, port: number): Bytes {
  const request = allocate(requestSize);
  const view = viewOf(request);
  view.setUint32(0, requestSize, true);
  view.setUint16(4, messages.byFamily, true);
  view.setUint16(6, dumpFlags, true);
  view.setUint8(headerSize, families[family]);
  view.setUint8(headerSize + 1, protocols[type]);
  view.setUint32(headerSize + 4, 1 << state, true);
  view.setUint16(headerSize + 8, port);
  return request;
}

/** The kernel makes each part of the answer while it is read, so that none has to be waited for. */
function answers({ abi, libc }: Runtime, number: number): ListedSocket[] {
  const found: ListedSocket[] = [];
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
  };
}

function failure(platform: "linux" | "darwin", result: number): SystemError {
  return new SystemError(errnoName(platform, -result), result, "read");
}
