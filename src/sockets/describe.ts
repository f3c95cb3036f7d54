/**
 * What a descriptor is, as the kernel says it.
 *
 * @module
 */

import { allocate, readField, viewOf } from "../c/bytes.ts";
import type { SocketAddress } from "../c/sockaddr.ts";
import { TakeoverError } from "../errors.ts";
import type { Runtime } from "../runtime.ts";
import { cString, linkOf, OwnedDescriptor } from "./descriptors.ts";
import type { Descriptor } from "../sockets/descriptors.ts";
import { cookieOf, integerOption, isListening, localAddress, peerAddress } from "./socket.ts";
import { tcpInfoOf, type TcpState } from "./tcp_state.ts";

export type { TcpState } from "./tcp_state.ts";

/** What a descriptor can stand for. */
export type DescriptorKind =
  | "socket"
  | "pipe"
  | "file"
  | "folder"
  | "character device"
  | "block device"
  | "symbolic link"
  | "epoll"
  | "eventfd"
  | "timerfd"
  | "signalfd"
  | "inotify"
  | "fanotify"
  | "pidfd"
  | "io_uring"
  | "memfd"
  | "other";

/** What {@linkcode describe} says of a descriptor. */
export interface Description {
  /** Its number. */
  readonly descriptor: number;
  /** What it stands for; macOS tells sockets from everything else only. */
  readonly kind: DescriptorKind;
  /** A socket's address family (`SO_DOMAIN`); null when it is no socket. */
  readonly family: "unix" | "inet" | "inet6" | "netlink" | "packet" | "vsock" | "other" | null;
  /** A socket's type (`SO_TYPE`); null when it is no socket. */
  readonly type: "stream" | "dgram" | "seqpacket" | "raw" | "other" | null;
  /** A socket's protocol (`SO_PROTOCOL`); null when its family has only one, or it is no socket. */
  readonly protocol: "tcp" | "udp" | "mptcp" | "sctp" | "udplite" | "icmp" | "icmpv6" | "other" | null;
  /** Whether it accepts connections (`SO_ACCEPTCONN`). */
  readonly listening: boolean;
  /** Where it is bound (getsockname(2)); null when it is no IP or Unix socket. */
  readonly local: SocketAddress | null;
  /** Where it is connected to (getpeername(2)); null when it is not. */
  readonly peer: SocketAddress | null;
  /** `SO_COOKIE` in hexadecimal, which names a socket for its whole life; empty where there is none. */
  readonly cookie: string;
  /** The state of a TCP socket; null for anything else, and on macOS. */
  readonly tcpState: TcpState | null;
  /** `O_NONBLOCK`, which all copies of a socket share. */
  readonly nonBlocking: boolean;
  /** `FD_CLOEXEC`, which every descriptor has of its own. */
  readonly closeOnExec: boolean;
}

/** Linux's options of SOL_SOCKET (asm-generic/socket.h). */
const SO_PROTOCOL = 38;
const SO_DOMAIN = 39;

/** Linux's statx(2). */
const AT_EMPTY_PATH = 0x1000;
const STATX_TYPE = 1;
const S_IFMT = 0o170000;

/** The file types of inode(7). */
const fileKinds: Readonly<Record<number, DescriptorKind>> = {
  0o140000: "socket",
  0o120000: "symbolic link",
  0o100000: "file",
  0o060000: "block device",
  0o040000: "folder",
  0o020000: "character device",
  0o010000: "pipe",
};

/** What has no file type: the name that /proc shows, for instance `anon_inode:[eventpoll]`. */
const namedKinds: Readonly<Record<string, DescriptorKind>> = {
  eventpoll: "epoll",
  eventfd: "eventfd",
  timerfd: "timerfd",
  signalfd: "signalfd",
  inotify: "inotify",
  fanotify: "fanotify",
  pidfd: "pidfd",
  io_uring: "io_uring",
};

/** Linux's address families, socket types and protocols by number. */
const families: Readonly<Record<number, Description["family"]>> = {
  1: "unix",
  2: "inet",
  10: "inet6",
  16: "netlink",
  17: "packet",
  40: "vsock",
};
const types: Readonly<Record<number, Description["type"]>> = { 1: "stream", 2: "dgram", 3: "raw", 5: "seqpacket" };
const protocols: Readonly<Record<number, Description["protocol"]>> = {
  0: null,
  1: "icmp",
  6: "tcp",
  17: "udp",
  58: "icmpv6",
  132: "sctp",
  136: "udplite",
  262: "mptcp",
};

/**
 * Says what a descriptor is, and touches nothing.
 *
 * @param descriptor A number, or an owned descriptor; it stays the caller's.
 * @throws {TakeoverError} `ERR_TAKEOVER_CLOSED` when it is closed,
 *   `ERR_TAKEOVER_RANGE` when the number cannot be a descriptor.
 */
export function describe(runtime: Runtime, descriptor: Descriptor): Description {
  const number = checkedNumber(runtime, descriptor);
  const { abi: { constants }, libc } = runtime;
  const kind = kindOf(runtime, number);
  const common = {
    descriptor: number,
    kind,
    nonBlocking: (libc.fcntl(number, constants.F_GETFL, 0) & constants.O_NONBLOCK) !== 0,
    closeOnExec: (libc.fcntl(number, constants.F_GETFD, 0) & constants.FD_CLOEXEC) !== 0,
  };
  return kind === "socket" ? { ...common, ...socketOf(runtime, number) } : { ...common, ...noSocket };
}

/**
 * The number of a descriptor that is open.
 *
 * @throws {TakeoverError} `ERR_TAKEOVER_CLOSED`, `ERR_TAKEOVER_RANGE`.
 */
export function checkedNumber({ abi, libc }: Runtime, descriptor: Descriptor): number {
  const isOwned = descriptor instanceof OwnedDescriptor;
  const number = isOwned ? descriptor.number : descriptor;
  if (isOwned && number < 0) {
    throw new TakeoverError(
      "ERR_TAKEOVER_CLOSED",
      "Cannot use the descriptor: it was taken or closed before; pass one that is open",
    );
  }
  if (!(Number.isInteger(number) && number >= 0 && number <= 0x7fffffff)) {
    throw new TakeoverError(
      "ERR_TAKEOVER_RANGE",
      `Cannot use ${String(number)} as a descriptor: expected an integer from 0 to 2147483647`,
    );
  }
  if (libc.fcntl(number, abi.constants.F_GETFD, 0) < 0) {
    throw new TakeoverError(
      "ERR_TAKEOVER_CLOSED",
      `Cannot use the descriptor ${number}: it is closed; pass one that is open`,
    );
  }
  return number;
}

const noSocket = {
  family: null,
  type: null,
  protocol: null,
  listening: false,
  local: null,
  peer: null,
  cookie: "",
  tcpState: null,
} as const;

function socketOf(
  runtime: Runtime,
  descriptor: number,
): Omit<Description, "descriptor" | "kind" | "nonBlocking" | "closeOnExec"> {
  const { constants, platform } = runtime.abi;
  const isLinux = platform === "linux";
  const local = localAddress(runtime, descriptor);
  const family = isLinux ? families[integerOption(runtime, descriptor, SO_DOMAIN)] : local?.family;
  const protocol = isLinux ? protocols[integerOption(runtime, descriptor, SO_PROTOCOL)] : null;
  return {
    family: family ?? "other",
    type: types[integerOption(runtime, descriptor, constants.SO_TYPE)] ?? "other",
    protocol: protocol === undefined ? "other" : protocol,
    listening: isListening(runtime, descriptor),
    local,
    peer: peerAddress(runtime, descriptor),
    cookie: cookieOf(runtime, descriptor),
    tcpState: isLinux && protocol === "tcp" ? tcpInfoOf(runtime, descriptor)?.state ?? null : null,
  };
}

function kindOf(runtime: Runtime, descriptor: number): DescriptorKind {
  const { abi, libc } = runtime;
  if (abi.platform !== "linux") {
    return integerOption(runtime, descriptor, abi.constants.SO_TYPE) < 0 ? "other" : "socket";
  }
  const status = allocate(abi.statx.size);
  const result = libc.statx(descriptor, cString(""), AT_EMPTY_PATH, STATX_TYPE, status);
  const kind = result < 0 ? undefined : fileKinds[readField(viewOf(status), abi.statx.mode) & S_IFMT];
  if (kind !== undefined && kind !== "file") return kind;
  // A pidfd is a file to statx from Linux 6.9 on (fs/pidfs.c), and so is a memfd(2).
  const link = linkOf(runtime, descriptor);
  const name = /^(?:anon_inode:)?\[?(\w+)\]?(?::\[\d+\])?$/.exec(link)?.[1] ?? "";
  return namedKinds[name] ?? (link.startsWith("/memfd:") ? "memfd" : kind ?? "other");
}
