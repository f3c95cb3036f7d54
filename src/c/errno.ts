/**
 * errno values by name (errno(3)), for the messages and codes of errors.
 *
 * @module
 */

const common: Readonly<Record<string, number>> = {
  EPERM: 1, ENOENT: 2, ESRCH: 3, EINTR: 4, EIO: 5, ENXIO: 6, EBADF: 9, ECHILD: 10,
  ENOMEM: 12, EACCES: 13, EFAULT: 14, EBUSY: 16, EEXIST: 17, EXDEV: 18, ENODEV: 19,
  ENOTDIR: 20, EISDIR: 21, EINVAL: 22, ENFILE: 23, EMFILE: 24, ENOTTY: 25, EFBIG: 27,
  ENOSPC: 28, ESPIPE: 29, EROFS: 30, EMLINK: 31, EPIPE: 32, EDOM: 33, ERANGE: 34,
};

const linux: Readonly<Record<string, number>> = {
  ...common,
  EAGAIN: 11, EDEADLK: 35, ENAMETOOLONG: 36, ENOSYS: 38, ENOTEMPTY: 39, ELOOP: 40,
  ENODATA: 61, EPROTO: 71, EOVERFLOW: 75, ENOTSOCK: 88, EDESTADDRREQ: 89, EMSGSIZE: 90, EPROTOTYPE: 91,
  ENOPROTOOPT: 92, EPROTONOSUPPORT: 93, EOPNOTSUPP: 95, EAFNOSUPPORT: 97, EADDRINUSE: 98,
  EADDRNOTAVAIL: 99, ENETDOWN: 100, ENETUNREACH: 101, ECONNABORTED: 103, ECONNRESET: 104,
  ENOBUFS: 105, EISCONN: 106, ENOTCONN: 107, ETOOMANYREFS: 109, ETIMEDOUT: 110,
  ECONNREFUSED: 111, EHOSTUNREACH: 113, EALREADY: 114, EINPROGRESS: 115,
};

const darwin: Readonly<Record<string, number>> = {
  ...common,
  EAGAIN: 35, EDEADLK: 11, EINPROGRESS: 36, EALREADY: 37, ENOTSOCK: 38, EDESTADDRREQ: 39,
  EMSGSIZE: 40, EPROTOTYPE: 41, ENOPROTOOPT: 42, EPROTONOSUPPORT: 43, EOPNOTSUPP: 102,
  EAFNOSUPPORT: 47, EADDRINUSE: 48, EADDRNOTAVAIL: 49, ENETDOWN: 50, ENETUNREACH: 51,
  ECONNABORTED: 53, ECONNRESET: 54, ENOBUFS: 55, EISCONN: 56, ENOTCONN: 57, ETOOMANYREFS: 59,
  ETIMEDOUT: 60, ECONNREFUSED: 61, ELOOP: 62, ENAMETOOLONG: 63, EHOSTUNREACH: 65,
  ENOTEMPTY: 66, ENOSYS: 78, EOVERFLOW: 84, EPROTO: 100,
};

const tables = { linux, darwin };

/** The number of an errno name on a platform, for instance 11 for `EAGAIN` on Linux. */
export function errnoOf(platform: "linux" | "darwin", name: string): number {
  return tables[platform][name]!;
}

/** The name of an errno on a platform, or `E` and the number for one not listed. */
export function errnoName(platform: "linux" | "darwin", errno: number): string {
  const found = Object.entries(tables[platform]).find(([, value]) => value === errno);
  return found ? found[0] : `E${errno}`;
}
