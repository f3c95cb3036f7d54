/**
 * What src/abi.ts says of this machine's C interface, beside what a C compiler
 * says of it.
 *
 * @module
 */

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import process from "node:process";
import test from "node:test";
import { abiOf, type Field, type Layout } from "../../src/c/abi.ts";
import {
  cmsgAlign,
  cmsgFirst,
  cmsgLen,
  cmsgNext,
  cmsgSpace,
  credentialsMessage,
  decodeAncillary,
  encodeControl,
  rightsMessage,
} from "../../src/c/cmsg.ts";
import { errnoName, errnoOf } from "../../src/c/errno.ts";
import { run, TemporaryFolder } from "./children.ts";
import { takeoverError } from "./support.ts";

const { platform } = process;
const isKnown = platform === "linux" || platform === "darwin";
const hasGcc = spawnSync("gcc", ["--version"]).status === 0;
/** In CI a missing compiler is a failure: the test then runs, and says so. */
const withGcc = { skip: !hasGcc && process.env.CI !== "true" ? "gcc is not installed" : false };

/** C expressions by the names under which their values are compared. */
type Expressions = Record<string, string>;
type Values = Record<string, number>;

const headers = [
  ...["stddef", "stdio", "errno", "fcntl", "sys/socket", "sys/uio", "sys/un", "sys/file", "sys/resource", "sys/stat", "poll"],
  ...["netinet/in", "netinet/tcp", "net/if"],
  ...(platform === "linux" ? ["sys/epoll", "sys/ioctl", "linux/sockios", "linux/stat", "dirent", "netinet/udp"] : []),
];

/** What the headers of older systems lack, as Linux's own say it (include/linux/socket.h, asm-generic/socket.h). */
const newer: Values = { SCM_SECURITY: 3, SCM_PIDFD: 4, SO_PASSPIDFD: 76, SO_PEERPIDFD: 77 };

/** Compiles and runs a program that prints the value of every expression. */
async function valuesOf(expressions: Expressions): Promise<Values> {
  const prints = Object.entries(expressions).map(([name, c]) => `printf("${name} %lld\\n", (long long)(${c}));`);
  const lines = (await outputOf(prints.join("\n"))).split("\n");
  return Object.fromEntries(lines.map((line) => line.split(" ")).map(([k, v]) => [k, Number(v)]));
}

/** Compiles and runs a program, and gives what it prints. */
async function outputOf(body: string): Promise<string> {
  using folder = new TemporaryFolder();
  const program = [
    "#define _GNU_SOURCE",
    ...headers.map((header) => `#include <${header}.h>`),
    ...Object.entries(newer).map(([name, value]) => `#ifndef ${name}\n#define ${name} ${value}\n#endif`),
    "#define FIELD_SIZE(type, field) sizeof(((type *)0)->field)",
    `int main(void) { ${body} return 0; }`,
  ];
  writeFileSync(folder.file("abi.c"), program.join("\n"));
  const compiled = await run(["gcc", "-o", folder.file("abi"), folder.file("abi.c")]);
  assert.equal(compiled.status, 0, compiled.stderr);
  const { status, stdout } = await run([folder.file("abi")]);
  assert.equal(status, 0);
  return stdout.trim();
}

/** A struct's size, and the place of each of its fields. */
function structIn(type: string, layout: Layout<never>, fields: Record<string, string>): [Expressions, Values] {
  const expressions: Expressions = { [`${type}.size`]: `sizeof(${type})` };
  const values: Values = { [`${type}.size`]: layout.size };
  for (const [name, cName] of Object.entries(fields)) {
    const { offset, size } = (layout as unknown as Record<string, Field>)[name]!;
    expressions[`${type}.${name}.offset`] = `offsetof(${type}, ${cName})`;
    expressions[`${type}.${name}.size`] = `FIELD_SIZE(${type}, ${cName})`;
    Object.assign(values, { [`${type}.${name}.offset`]: offset, [`${type}.${name}.size`]: size });
  }
  return [withoutSpaces(expressions), withoutSpaces(values)];
}

function withoutSpaces<T>(record: Record<string, T>): Record<string, T> {
  return Object.fromEntries(Object.entries(record).map(([name, value]) => [name.replaceAll(" ", "_"), value]));
}

/** Compares structs, and sees that no field of a layout was left out. */
async function agreeOn(...structs: [string, Layout<never>, Record<string, string>][]): Promise<void> {
  for (const [type, layout, fields] of structs) {
    const listed = Object.keys(layout).filter((name) => !["size", "align"].includes(name));
    assert.deepEqual(Object.keys(fields).toSorted(), listed.toSorted(), type);
  }
  const pairs = structs.map(([type, layout, fields]) => structIn(type, layout, fields));
  const values = await valuesOf(Object.assign({}, ...pairs.map(([expressions]) => expressions)));
  assert.deepEqual(values, Object.assign({}, ...pairs.map(([, expected]) => expected)));
}

test("abiOf knows this machine", () => {
  assert.equal(isKnown, true);
  assert.equal(abiOf(platform, process.arch).platform, platform);
});

test("abiOf throws for a platform or an architecture that it does not know", () => {
  for (const [os, arch] of [["win32", "x64"], ["linux", "ia32"], ["freebsd", "arm64"]] as const) {
    assert.throws(() => abiOf(os, arch), {
      ...takeoverError("ERR_TAKEOVER_UNSUPPORTED"),
      message: `Cannot describe libc on ${os} ${arch}: expected linux or darwin on x64 or arm64`,
    });
  }
});

test("abiOf has the messages' structs as C lays them out", withGcc, async () => {
  const { msghdr, iovec, cmsghdr } = abiOf(platform, process.arch);
  const msghdrNames = ["name", "namelen", "iov", "iovlen", "control", "controllen", "flags"];
  await agreeOn(
    ["struct msghdr", msghdr, Object.fromEntries(msghdrNames.map((name) => [name, `msg_${name}`]))],
    ["struct iovec", iovec, { base: "iov_base", len: "iov_len" }],
    ["struct cmsghdr", cmsghdr, { len: "cmsg_len", level: "cmsg_level", type: "cmsg_type" }],
  );
});

test("abiOf has the addresses as C lays them out", withGcc, async () => {
  const { sockaddr } = abiOf(platform, process.arch);
  const { length } = sockaddr;
  const head = { size: 16, family: sockaddr.family, ...(length ? { length } : {}) };
  const in6 = { port: "sin6_port", flowinfo: "sin6_flowinfo", address: "sin6_addr", scope: "sin6_scope_id" };
  await agreeOn(
    ["struct sockaddr", head, { family: "sa_family", ...(length ? { length: "sa_len" } : {}) }],
    ["struct sockaddr_in", sockaddr.in, { port: "sin_port", address: "sin_addr" }],
    ["struct sockaddr_in6", sockaddr.in6, in6],
    ["struct sockaddr_un", sockaddr.un, { path: "sun_path" }],
  );
});

const onLinux = { skip: withGcc.skip || (platform === "linux" ? false : "only Linux has these") };

test("abiOf has Linux's own structs as C lays them out", onLinux, async () => {
  const { epollEvent, statx, ucred } = abiOf(platform, process.arch);
  await agreeOn(
    ["struct epoll_event", epollEvent, { events: "events", data: "data" }],
    ["struct statx", statx, { uid: "stx_uid", mode: "stx_mode", inode: "stx_ino" }],
    ["struct ucred", ucred, { pid: "pid", uid: "uid", gid: "gid" }],
  );
});

test("abiOf has the constants that C has", withGcc, async () => {
  const { constants } = abiOf(platform, process.arch);
  const missing = platform === "darwin" ? ["MSG_CMSG_CLOEXEC"] : [];
  const names = Object.keys(constants).filter((name) => !missing.includes(name));
  const expected = Object.fromEntries(names.map((name) => [name, constants[name as keyof typeof constants]]));
  assert.deepEqual(await valuesOf(Object.fromEntries(names.map((name) => [name, name]))), expected);
});

test("abiOf names the function that gives the address of errno", withGcc, async () => {
  const { errnoLocation } = abiOf(platform, process.arch);
  assert.deepEqual(await valuesOf({ same: `${errnoLocation}() == &errno` }), { same: 1 });
});

test("cmsgAlign, cmsgLen and cmsgSpace give what C's macros give", withGcc, async () => {
  const abi = abiOf(platform, process.arch);
  const expressions: Expressions = { align: "CMSG_SPACE(1) - CMSG_LEN(0)" };
  const expected: Values = { align: cmsgAlign(abi, 1) };
  for (const length of [0, 1, 3, 4, 5, 8, 12, 1012, 2048]) {
    Object.assign(expressions, {
      [`len${length}`]: `CMSG_LEN(${length})`,
      [`space${length}`]: `CMSG_SPACE(${length})`,
    });
    Object.assign(expected, { [`len${length}`]: cmsgLen(abi, length), [`space${length}`]: cmsgSpace(abi, length) });
  }
  assert.deepEqual(await valuesOf(expressions), expected);
});

/** Declarations for C's own walk over a control buffer. */
const cWalk = `
  struct msghdr message = { .msg_control = control, .msg_controllen = sizeof control };
  struct cmsghdr *at;
  struct ucred sender = { 4711, 1000, 4294967294 };
  int descriptors[3] = { 3, 260, 2147483647 };
`;

const sent = { descriptors: [3, 260, 2_147_483_647], credentials: { pid: 4_711, uid: 1_000, gid: 4_294_967_294 } };

test("decodeAncillary reads the control buffer that C's macros have filled", onLinux, async () => {
  const abi = abiOf(platform, process.arch);
  const put = (type: string, data: string) =>
    `at->cmsg_level = SOL_SOCKET; at->cmsg_type = ${type}; at->cmsg_len = CMSG_LEN(sizeof ${data});
    __builtin_memcpy(CMSG_DATA(at), &${data}, sizeof ${data});`;
  const printed = await outputOf(`
    _Alignas(struct cmsghdr) unsigned char control[CMSG_SPACE(sizeof(struct ucred)) + CMSG_SPACE(12)] = { 0 };
    ${cWalk}
    at = CMSG_FIRSTHDR(&message);
    ${put("SCM_CREDENTIALS", "sender")}
    printf("%d ", (int)((unsigned char *)at - control));
    at = CMSG_NXTHDR(&message, at);
    ${put("SCM_RIGHTS", "descriptors")}
    printf("%d %d\\n", (int)((unsigned char *)at - control), (int)(at->cmsg_len));
    for (unsigned i = 0; i < sizeof control; i++) printf("%d ", control[i]);`);
  const [offsets, bytes] = printed.split("\n").map((line) => line.trim().split(" ").map(Number));
  const control = Uint8Array.from(bytes!);
  assert.deepEqual(decodeAncillary(abi, control), { ...sent, pidfd: null, securityContext: null });
  const first = cmsgFirst(abi, control);
  const second = cmsgNext(abi, control, first);
  assert.deepEqual([first, second, cmsgLen(abi, 12)], offsets);
  assert.equal(cmsgNext(abi, control, second), -1);
});

test("C's macros read the control buffer that encodeControl has filled", onLinux, async () => {
  const abi = abiOf(platform, process.arch);
  const control = encodeControl(abi, [
    rightsMessage(abi, sent.descriptors),
    credentialsMessage(abi, sent.credentials),
    rightsMessage(abi, []),
  ]);
  const printed = await outputOf(`
    _Alignas(struct cmsghdr) unsigned char control[] = { ${control.join()} };
    ${cWalk}
    for (at = CMSG_FIRSTHDR(&message); at; at = CMSG_NXTHDR(&message, at)) {
      int size = (int)(at->cmsg_len - CMSG_LEN(0));
      printf("%d %d %d", at->cmsg_level == SOL_SOCKET, at->cmsg_type, size);
      if (at->cmsg_type == SCM_RIGHTS) printf(" %d", __builtin_memcmp(CMSG_DATA(at), descriptors, size));
      if (at->cmsg_type == SCM_CREDENTIALS) printf(" %d", __builtin_memcmp(CMSG_DATA(at), &sender, size));
      printf("\\n");
    }`);
  assert.deepEqual(printed.split("\n"), ["1 1 12 0", "1 2 12 0", "1 1 0 0"]);
});

test("errnoOf numbers every errno that errnoName names as C does", withGcc, async () => {
  const os = platform as "linux" | "darwin";
  const numbers = Array.from({ length: 140 }, (_, errno) => errno);
  const names = numbers.map((errno) => errnoName(os, errno)).filter((name) => !/^E\d/.test(name));
  assert.ok(names.length > 40);
  const expected = Object.fromEntries(names.map((name) => [name, errnoOf(os, name)]));
  assert.deepEqual(await valuesOf(Object.fromEntries(names.map((name) => [name, name]))), expected);
});

test("src/ has the constants of single modules as C has them", onLinux, async () => {
  const folder = new URL("../../src/", import.meta.url);
  const names = (readdirSync(folder, { recursive: true }) as string[]).filter((name) => name.endsWith(".ts"));
  const sources = names.map((name) => readFileSync(new URL(name, folder), "utf8"));
  const found = sources.flatMap((text) => [...text.matchAll(/^const ([A-Z][A-Z0-9_]+) = (-?\w+);$/gm)]);
  const expected = Object.fromEntries(found.map(([, name, value]) => [name!, Number(value)]));
  assert.ok("SO_COOKIE" in expected && "EPOLL_CTL_ADD" in expected && "AT_FDCWD" in expected);
  assert.deepEqual(await valuesOf(Object.fromEntries(Object.keys(expected).map((name) => [name, name]))), expected);
});

test(
  "src/ reads struct linux_dirent64, ucred, rlimit, pollfd and ifreq where C puts their fields",
  onLinux,
  async () => {
    const expressions = {
      reclen: "offsetof(struct dirent64, d_reclen)",
      name: "offsetof(struct dirent64, d_name)",
      ucred: "sizeof(struct ucred)",
      uid: "offsetof(struct ucred, uid)",
      rlimit: "sizeof(struct rlimit)",
      soft: "offsetof(struct rlimit, rlim_cur)",
      flags: "SOCK_CLOEXEC | SOCK_NONBLOCK",
      pollfd: "sizeof(struct pollfd)",
      events: "offsetof(struct pollfd, events)",
      ifreq: "sizeof(struct ifreq)",
      index: "offsetof(struct ifreq, ifr_ifindex)",
    };
    const fields = { reclen: 16, name: 19, ucred: 12, uid: 4, rlimit: 16, soft: 0, flags: 0o2004000 };
    assert.deepEqual(await valuesOf(expressions), { ...fields, pollfd: 8, events: 4, ifreq: 40, index: 16 });
  },
);
