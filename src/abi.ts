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

/** Where a field lies in a C struct, in bytes. */
export interface Field {
  /** Bytes from the start of the struct. */
  readonly offset: number;
  /** Width in bytes: 1, 2, 4 or 8. */
  readonly size: number;
}

/** `struct msghdr` (recvmsg(2)). */
export interface MsghdrLayout {
  readonly size: number;
  readonly name: Field;
  readonly namelen: Field;
  readonly iov: Field;
  readonly iovlen: Field;
  readonly control: Field;
  readonly controllen: Field;
  readonly flags: Field;
}

/** `struct iovec` (readv(2)). */
export interface IovecLayout {
  readonly size: number;
  readonly base: Field;
  readonly len: Field;
}

/** `struct cmsghdr` (cmsg(3)); `align` is what `CMSG_ALIGN` rounds up to. */
export interface CmsghdrLayout {
  readonly size: number;
  readonly align: number;
  readonly len: Field;
  readonly level: Field;
  readonly type: Field;
}

/** `struct sockaddr_in`, `sockaddr_in6` and `sockaddr_un`. */
export interface SockaddrLayout {
  /** BSD systems put a `sa_len` byte first and have a one-byte family. */
  readonly family: Field;
  readonly length: Field | null;
  readonly in: { readonly size: number; readonly port: number; readonly address: number };
  readonly in6: {
    readonly size: number;
    readonly port: number;
    readonly flowinfo: number;
    readonly address: number;
    readonly scope: number;
  };
  readonly un: { readonly size: number; readonly path: number; readonly pathSize: number };
}

/** `struct epoll_event` (epoll_ctl(2)): packed on x86-64 only. */
export interface EpollEventLayout {
  readonly size: number;
  readonly events: Field;
  readonly data: Field;
}

/** `struct statx` (statx(2)): the same on every architecture. */
export interface StatxLayout {
  readonly size: number;
  readonly uid: Field;
  readonly mode: Field;
  readonly inode: Field;
}

/** The constants that differ between platforms, by their C names. */
export interface Constants {
  readonly AF_UNIX: number;
  readonly AF_INET: number;
  readonly AF_INET6: number;
  readonly SOCK_STREAM: number;
  readonly SOCK_DGRAM: number;
  readonly SOL_SOCKET: number;
  readonly SO_REUSEADDR: number;
  readonly SO_TYPE: number;
  readonly SO_ERROR: number;
  readonly SO_ACCEPTCONN: number;
  readonly SO_REUSEPORT: number;
  readonly SCM_RIGHTS: number;
  readonly IPPROTO_IPV6: number;
  readonly IPV6_V6ONLY: number;
  readonly MSG_DONTWAIT: number;
  readonly MSG_NOSIGNAL: number;
  readonly MSG_TRUNC: number;
  readonly MSG_CTRUNC: number;
  readonly MSG_CMSG_CLOEXEC: number;
  readonly O_RDONLY: number;
  readonly O_RDWR: number;
  readonly O_CREAT: number;
  readonly O_NONBLOCK: number;
  readonly O_CLOEXEC: number;
  readonly O_DIRECTORY: number;
  readonly O_NOFOLLOW: number;
  readonly F_GETFD: number;
  readonly F_SETFD: number;
  readonly F_GETFL: number;
  readonly F_SETFL: number;
  readonly FD_CLOEXEC: number;
  readonly RLIMIT_NOFILE: number;
  readonly LOCK_EX: number;
  readonly LOCK_NB: number;
}

/** Everything that code has to know about one platform's C interface. */
export interface Abi {
  readonly platform: "linux" | "darwin";
  readonly arch: "x64" | "arm64";
  /** What the dynamic loader knows libc as; the first that loads is taken. */
  readonly libraries: readonly string[];
  /** The C function that returns the address of errno. */
  readonly errnoLocation: string;
  readonly msghdr: MsghdrLayout;
  readonly iovec: IovecLayout;
  readonly cmsghdr: CmsghdrLayout;
  readonly sockaddr: SockaddrLayout;
  readonly epollEvent: EpollEventLayout;
  readonly statx: StatxLayout;
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

const sockaddrIn = { size: 16, port: 2, address: 4 };
const sockaddrIn6 = { size: 28, port: 2, flowinfo: 4, address: 8, scope: 24 };

const linuxSockaddr: SockaddrLayout = {
  family: { offset: 0, size: 2 },
  length: null,
  in: sockaddrIn,
  in6: sockaddrIn6,
  un: { size: 110, path: 2, pathSize: 108 },
};

const darwinSockaddr: SockaddrLayout = {
  family: { offset: 1, size: 1 },
  length: { offset: 0, size: 1 },
  in: sockaddrIn,
  in6: sockaddrIn6,
  un: { size: 106, path: 2, pathSize: 104 },
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

const linuxConstants: Constants = {
  AF_UNIX: 1,
  AF_INET: 2,
  AF_INET6: 10,
  SOCK_STREAM: 1,
  SOCK_DGRAM: 2,
  SOL_SOCKET: 1,
  SO_REUSEADDR: 2,
  SO_TYPE: 3,
  SO_ERROR: 4,
  SO_ACCEPTCONN: 30,
  SO_REUSEPORT: 15,
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
  SOL_SOCKET: 0xffff,
  SO_REUSEADDR: 0x4,
  SO_TYPE: 0x1008,
  SO_ERROR: 0x1007,
  SO_ACCEPTCONN: 0x2,
  SO_REUSEPORT: 0x200,
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
 * @throws {RangeError} When the platform is none of the four known.
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
  throw new RangeError(
    `Cannot describe libc on ${platform} ${arch}: expected linux or darwin on x64 or arm64`,
  );
}
