/**
 * The C structs and constants of each platform, as records of sizes and
 * offsets. Nothing here is computed: every number is what a C compiler says
 * (`test/abi.test.ts` asks one), and code that encodes a struct reads it from
 * a record instead of knowing it.
 *
 * ```text
 * struct msghdr        Linux (LP64)          macOS
 *   msg_name           0   8 bytes           0   8
 *   msg_namelen        8   4 (+4 padding)    8   4 (+4)
 *   msg_iov            16  8                 16  8
 *   msg_iovlen         24  8                 24  4 (+4)
 *   msg_control        32  8                 32  8
 *   msg_controllen     40  8                 40  4
 *   msg_flags          48  4 (+4)            44  4
 * struct cmsghdr
 *   cmsg_len           0   8                 0   4
 *   cmsg_level         8   4                 4   4
 *   cmsg_type          12  4                 8   4
 *   data               16, aligned to 8      12, aligned to 4
 * ```
 *
 * musl declares `msg_iovlen`, `msg_controllen` and `cmsg_len` as 32 bits plus
 * padding. On little-endian machines these are the same bytes as glibc's as
 * long as the padding is zero, which it is: every buffer starts zeroed.
 *
 * @module
 */

import { TakeoverError } from "../errors.ts";

/** Where a field lies in a C struct, in bytes. */
export interface Field {
  /** Bytes from the start of the struct. */
  readonly offset: number;
  /** Width in bytes; 1, 2, 4 or 8 for an integer. */
  readonly size: number;
}

/** A C struct: its size in bytes, and its fields by their C names without prefix. */
export type Layout<Fields extends string> = { readonly size: number } & Readonly<Record<Fields, Field>>;

/** `struct msghdr` (recvmsg(2)). */
export type MsghdrLayout = Layout<
  "name" | "namelen" | "iov" | "iovlen" | "control" | "controllen" | "flags"
>;

/** `struct iovec` (readv(2)). */
export type IovecLayout = Layout<"base" | "len">;

/** `struct cmsghdr` (cmsg(3)); `align` is what `CMSG_ALIGN` rounds up to. */
export type CmsghdrLayout = Layout<"len" | "level" | "type"> & { readonly align: number };

/** `struct sockaddr_in` (ip(7)). */
export type SockaddrInLayout = Layout<"port" | "address">;

/** `struct sockaddr_in6` (ipv6(7)). */
export type SockaddrIn6Layout = Layout<"port" | "flowinfo" | "address" | "scope">;

/** `struct sockaddr_un` (unix(7)). */
export type SockaddrUnLayout = Layout<"path">;

/** The three addresses, and what they begin with. */
export interface SockaddrLayout {
  /** `sa_family`. */
  readonly family: Field;
  /** `sa_len`, which only BSD systems have. */
  readonly length: Field | null;
  /** IPv4. */
  readonly in: SockaddrInLayout;
  /** IPv6. */
  readonly in6: SockaddrIn6Layout;
  /** Unix. */
  readonly un: SockaddrUnLayout;
}

/** `struct epoll_event` (epoll_ctl(2)): packed on x86-64 only. */
export type EpollEventLayout = Layout<"events" | "data">;

/** `struct statx` (statx(2)): the same on every architecture. */
export type StatxLayout = Layout<"uid" | "mode" | "inode">;

/** `struct ucred` (unix(7)). */
export type UcredLayout = Layout<"pid" | "uid" | "gid">;

/** The constants that differ between platforms, by their C names. */
export type Constants = Readonly<Record<ConstantName, number>>;

/** A constant's C name. */
export type ConstantName =
  | "AF_UNIX"
  | "AF_INET"
  | "AF_INET6"
  | "SOCK_STREAM"
  | "SOCK_DGRAM"
  | "SOCK_SEQPACKET"
  | "SOL_SOCKET"
  | "SO_REUSEADDR"
  | "SO_TYPE"
  | "SO_ACCEPTCONN"
  | "SCM_RIGHTS"
  | "IPPROTO_IPV6"
  | "IPV6_V6ONLY"
  | "MSG_DONTWAIT"
  | "MSG_NOSIGNAL"
  | "MSG_TRUNC"
  | "MSG_CTRUNC"
  | "MSG_CMSG_CLOEXEC"
  | "O_RDONLY"
  | "O_RDWR"
  | "O_CREAT"
  | "O_NONBLOCK"
  | "O_CLOEXEC"
  | "O_DIRECTORY"
  | "O_NOFOLLOW"
  | "F_GETFD"
  | "F_SETFD"
  | "F_GETFL"
  | "F_SETFL"
  | "F_DUPFD_CLOEXEC"
  | "FD_CLOEXEC"
  | "RLIMIT_NOFILE"
  | "LOCK_EX"
  | "LOCK_NB";

/** Everything that code has to know about one platform's C interface. */
export interface Abi {
  /** As `process.platform` says it. */
  readonly platform: "linux" | "darwin";
  /** As `process.arch` says it. */
  readonly arch: "x64" | "arm64";
  /** What the dynamic loader knows libc as; the first that loads is taken. */
  readonly libraries: readonly string[];
  /** The C function that returns the address of errno. */
  readonly errnoLocation: string;
  /** For sendmsg(2) and recvmsg(2). */
  readonly msghdr: MsghdrLayout;
  /** What a msghdr points to for data. */
  readonly iovec: IovecLayout;
  /** What heads a control message. */
  readonly cmsghdr: CmsghdrLayout;
  /** Socket addresses. */
  readonly sockaddr: SockaddrLayout;
  /** For epoll_ctl(2); unused on macOS. */
  readonly epollEvent: EpollEventLayout;
  /** For statx(2); unused on macOS. */
  readonly statx: StatxLayout;
  /** For `SCM_CREDENTIALS` and `SO_PEERCRED`; unused on macOS. */
  readonly ucred: UcredLayout;
  /** By their C names. */
  readonly constants: Constants;
  /** The most descriptors that one message carries (Linux: `SCM_MAX_FD`). */
  readonly descriptorsPerMessage: number;
}

const linuxMsghdr: MsghdrLayout = {
  size: 56,
  name: { offset: 0, size: 8 },
  namelen: { offset: 8, size: 4 },
  iov: { offset: 16, size: 8 },
  iovlen: { offset: 24, size: 8 },
  control: { offset: 32, size: 8 },
  controllen: { offset: 40, size: 8 },
  flags: { offset: 48, size: 4 },
};

const darwinMsghdr: MsghdrLayout = {
  size: 48,
  name: { offset: 0, size: 8 },
  namelen: { offset: 8, size: 4 },
  iov: { offset: 16, size: 8 },
  iovlen: { offset: 24, size: 4 },
  control: { offset: 32, size: 8 },
  controllen: { offset: 40, size: 4 },
  flags: { offset: 44, size: 4 },
};

const iovec: IovecLayout = {
  size: 16,
  base: { offset: 0, size: 8 },
  len: { offset: 8, size: 8 },
};

const linuxCmsghdr: CmsghdrLayout = {
  size: 16,
  align: 8,
  len: { offset: 0, size: 8 },
  level: { offset: 8, size: 4 },
  type: { offset: 12, size: 4 },
};

const darwinCmsghdr: CmsghdrLayout = {
  size: 12,
  align: 4,
  len: { offset: 0, size: 4 },
  level: { offset: 4, size: 4 },
  type: { offset: 8, size: 4 },
};

const sockaddrIn: SockaddrInLayout = {
  size: 16,
  port: { offset: 2, size: 2 },
  address: { offset: 4, size: 4 },
};

const sockaddrIn6: SockaddrIn6Layout = {
  size: 28,
  port: { offset: 2, size: 2 },
  flowinfo: { offset: 4, size: 4 },
  address: { offset: 8, size: 16 },
  scope: { offset: 24, size: 4 },
};

const linuxSockaddr: SockaddrLayout = {
  family: { offset: 0, size: 2 },
  length: null,
  in: sockaddrIn,
  in6: sockaddrIn6,
  un: { size: 110, path: { offset: 2, size: 108 } },
};

const darwinSockaddr: SockaddrLayout = {
  family: { offset: 1, size: 1 },
  length: { offset: 0, size: 1 },
  in: sockaddrIn,
  in6: sockaddrIn6,
  un: { size: 106, path: { offset: 2, size: 104 } },
};

const packedEpollEvent: EpollEventLayout = {
  size: 12,
  events: { offset: 0, size: 4 },
  data: { offset: 4, size: 8 },
};

const alignedEpollEvent: EpollEventLayout = {
  size: 16,
  events: { offset: 0, size: 4 },
  data: { offset: 8, size: 8 },
};

const statx: StatxLayout = {
  size: 256,
  uid: { offset: 20, size: 4 },
  mode: { offset: 28, size: 2 },
  inode: { offset: 32, size: 8 },
};

const ucred: UcredLayout = {
  size: 12,
  pid: { offset: 0, size: 4 },
  uid: { offset: 4, size: 4 },
  gid: { offset: 8, size: 4 },
};

const linuxConstants: Constants = {
  AF_UNIX: 1,
  AF_INET: 2,
  AF_INET6: 10,
  SOCK_STREAM: 1,
  SOCK_DGRAM: 2,
  SOCK_SEQPACKET: 5,
  SOL_SOCKET: 1,
  SO_REUSEADDR: 2,
  SO_TYPE: 3,
  SO_ACCEPTCONN: 30,
  SCM_RIGHTS: 1,
  IPPROTO_IPV6: 41,
  IPV6_V6ONLY: 26,
  MSG_DONTWAIT: 0x40,
  MSG_NOSIGNAL: 0x4000,
  MSG_TRUNC: 0x20,
  MSG_CTRUNC: 0x8,
  MSG_CMSG_CLOEXEC: 0x40000000,
  O_RDONLY: 0,
  O_RDWR: 2,
  O_CREAT: 0o100,
  O_NONBLOCK: 0o4000,
  O_CLOEXEC: 0o2000000,
  O_DIRECTORY: 0o200000,
  O_NOFOLLOW: 0o400000,
  F_GETFD: 1,
  F_SETFD: 2,
  F_GETFL: 3,
  F_SETFL: 4,
  F_DUPFD_CLOEXEC: 1030,
  FD_CLOEXEC: 1,
  RLIMIT_NOFILE: 7,
  LOCK_EX: 2,
  LOCK_NB: 4,
};

/** arm64 swaps four open(2) flags (arch/arm64/include/uapi/asm/fcntl.h). */
const linuxArmConstants: Constants = {
  ...linuxConstants,
  O_DIRECTORY: 0o40000,
  O_NOFOLLOW: 0o100000,
};

const darwinConstants: Constants = {
  AF_UNIX: 1,
  AF_INET: 2,
  AF_INET6: 30,
  SOCK_STREAM: 1,
  SOCK_DGRAM: 2,
  SOCK_SEQPACKET: 5,
  SOL_SOCKET: 0xffff,
  SO_REUSEADDR: 0x4,
  SO_TYPE: 0x1008,
  SO_ACCEPTCONN: 0x2,
  SCM_RIGHTS: 1,
  IPPROTO_IPV6: 41,
  IPV6_V6ONLY: 27,
  MSG_DONTWAIT: 0x80,
  MSG_NOSIGNAL: 0x80000,
  MSG_TRUNC: 0x10,
  MSG_CTRUNC: 0x20,
  MSG_CMSG_CLOEXEC: 0,
  O_RDONLY: 0,
  O_RDWR: 2,
  O_CREAT: 0x200,
  O_NONBLOCK: 0x4,
  O_CLOEXEC: 0x1000000,
  O_DIRECTORY: 0x100000,
  O_NOFOLLOW: 0x100,
  F_GETFD: 1,
  F_SETFD: 2,
  F_GETFL: 3,
  F_SETFL: 4,
  F_DUPFD_CLOEXEC: 67,
  FD_CLOEXEC: 1,
  RLIMIT_NOFILE: 8,
  LOCK_EX: 2,
  LOCK_NB: 4,
};

const linux = {
  platform: "linux",
  errnoLocation: "__errno_location",
  msghdr: linuxMsghdr,
  iovec,
  cmsghdr: linuxCmsghdr,
  sockaddr: linuxSockaddr,
  statx,
  ucred,
  descriptorsPerMessage: 253,
} as const;

const abis: readonly Abi[] = [
  {
    ...linux,
    arch: "x64",
    libraries: ["libc.so.6", "libc.musl-x86_64.so.1"],
    epollEvent: packedEpollEvent,
    constants: linuxConstants,
  },
  {
    ...linux,
    arch: "arm64",
    libraries: ["libc.so.6", "libc.musl-aarch64.so.1"],
    epollEvent: alignedEpollEvent,
    constants: linuxArmConstants,
  },
  ...(["x64", "arm64"] as const).map((arch): Abi => ({
    platform: "darwin",
    arch,
    libraries: ["/usr/lib/libSystem.B.dylib"],
    errnoLocation: "__error",
    msghdr: darwinMsghdr,
    iovec,
    cmsghdr: darwinCmsghdr,
    sockaddr: darwinSockaddr,
    epollEvent: alignedEpollEvent,
    statx,
    ucred,
    constants: darwinConstants,
    descriptorsPerMessage: 253,
  })),
];

/**
 * The record of a platform.
 *
 * @param platform `linux` or `darwin`, as Node's `process.platform` names them.
 * @param arch `x64` or `arm64`, as Node's `process.arch` names them.
 * @returns The layouts and constants of that platform's libc.
 * @throws {TakeoverError} `ERR_TAKEOVER_UNSUPPORTED` when it is none of the four known.
 *
 * @example
 * ```ts
 * import { abiOf } from "@socket-takeover/socket-takeover/cmsg";
 *
 * console.log(abiOf("linux", "x64").msghdr.size); // 56
 * ```
 */
export function abiOf(platform: string, arch: string): Abi {
  const abi = abis.find((each) => each.platform === platform && each.arch === arch);
  if (abi) return abi;
  throw new TakeoverError(
    "ERR_TAKEOVER_UNSUPPORTED",
    `Cannot describe libc on ${platform} ${arch}: expected linux or darwin on x64 or arm64`,
  );
}
