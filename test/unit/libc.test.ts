import assert from "node:assert/strict";
import test from "node:test";
import { abiOf } from "../../src/c/abi.ts";
import { TakeoverError } from "../../src/errors.ts";
import {
  bindTable,
  type CType,
  declarations,
  type FunctionName,
  functions,
  loadFirst,
  type RawFunction,
} from "../../src/c/libc.ts";
import { darwin, linux, takeoverError } from "./support.ts";

const types: Record<CType, string> = { int: "i32", unsigned: "u32", size_t: "usize", ssize_t: "isize", bytes: "ptr" };
const names = Object.keys(functions) as FunctionName[];
const noErrno = () => {
  throw new Error("errno was read for a call that succeeded");
};

/** A library in which every function gives back its arguments to the test. */
function recording(calls: unknown[][]): Record<string, RawFunction> {
  return Object.fromEntries(names.map((name) => [name, (...args: unknown[]) => {
    calls.push([name, ...args]);
    return 0;
  }]));
}

test("bindTable binds every function of the table", () => {
  const libc = bindTable(linux, recording([]), noErrno);
  assert.deepEqual(Object.keys(libc), names);
});

test("bindTable passes every function its arguments in order, and no other", () => {
  const calls: unknown[][] = [];
  const libc = bindTable(linux, recording(calls), noErrno) as unknown as Record<string, RawFunction>;
  const expected = names.map((name) => [name, ...functions[name].parameters.map((_, index) => index + 10)]);
  for (const [name, ...args] of expected) libc[name as string]!(...args);
  assert.deepEqual(calls, expected);
});

test("bindTable passes a result from 0 on through, and does not ask for errno", () => {
  const libc = bindTable(linux, { read: () => 7, close: () => 0 }, noErrno);
  assert.equal(libc.read(0, null, 0), 7);
  assert.equal(libc.close(0), 0);
});

test("bindTable makes a number of a bigint", () => {
  assert.equal(bindTable(linux, { recvmsg: () => 7n }, noErrno).recvmsg(0, null, 0), 7);
});

test("bindTable gives -errno for a result of -1, a bigint too", () => {
  assert.equal(bindTable(linux, { close: () => -1 }, () => 9).close(0), -9);
  assert.equal(bindTable(linux, { recvmsg: () => -1n }, () => 11).recvmsg(0, null, 0), -11);
});

test("bindTable reads errno once and right after the call that failed", () => {
  const order: string[] = [];
  const raw = () => (order.push("call"), -1);
  const libc = bindTable(linux, { getpid: raw }, () => (order.push("errno"), 1));
  libc.getpid();
  libc.getpid();
  assert.deepEqual(order, ["call", "errno", "call", "errno"]);
});

test("bindTable gives -errno at every number of parameters", () => {
  const library = Object.fromEntries(names.map((name) => [name, () => -1]));
  const libc = bindTable(linux, library, () => 22) as unknown as Record<string, RawFunction>;
  for (const name of names) assert.equal(libc[name]!(), -22, name);
});

test("bindTable gives -ENOSYS for a function that the library does not have", () => {
  assert.equal(bindTable(linux, {}, noErrno).getpeereid(0, null, null), -38);
  assert.equal(bindTable(darwin, {}, noErrno).dup3(0, 0, 0), -78);
});

test("bindTable puts variadic arguments behind eight registers on macOS arm64", () => {
  const calls: unknown[][] = [];
  const libc = bindTable(darwin, recording(calls), noErrno);
  libc.fcntl(5, 4, 99);
  libc.close(5);
  assert.deepEqual(calls, [["fcntl", 5, 4, 0, 0, 0, 0, 0, 0, 99], ["close", 5]]);
});

test("bindTable passes variadic arguments like all others elsewhere", () => {
  const calls: unknown[][] = [];
  bindTable(abiOf("darwin", "x64"), recording(calls), noErrno).fcntl(5, 4, 99);
  bindTable(abiOf("linux", "arm64"), recording(calls), noErrno).fcntl(5, 4, 99);
  assert.deepEqual(calls, [["fcntl", 5, 4, 99], ["fcntl", 5, 4, 99]]);
});

test("declarations translates every type", () => {
  const declared = declarations(linux, types);
  assert.deepEqual(declared.getsockopt, { parameters: ["i32", "i32", "i32", "ptr", "ptr"], result: "i32" });
  assert.deepEqual(declared.read, { parameters: ["i32", "ptr", "usize"], result: "isize" });
  assert.deepEqual(declared.geteuid, { parameters: [], result: "u32" });
});

test("declarations leaves out what the platform does not have", () => {
  const onLinux = Object.keys(declarations(linux, types));
  const onDarwin = Object.keys(declarations(darwin, types));
  assert.deepEqual(names.filter((name) => !onLinux.includes(name)), ["getpeereid"]);
  assert.deepEqual(names.filter((name) => !onDarwin.includes(name)), [
    "accept4",
    "dup3",
    "getdents64",
    "statx",
    "syscall",
    "epoll_create1",
    "epoll_wait",
    "epoll_ctl",
  ]);
});

test("declarations pads variadic functions on macOS arm64 only", () => {
  const padding = new Array(6).fill("i32");
  assert.deepEqual(declarations(darwin, types).fcntl!.parameters, ["i32", "i32", ...padding, "i32"]);
  assert.deepEqual(declarations(darwin, types).open!.parameters, ["ptr", "i32", ...padding, "i32"]);
  assert.deepEqual(declarations(linux, types).fcntl!.parameters, ["i32", "i32", "i32"]);
  assert.deepEqual(declarations(abiOf("darwin", "x64"), types).fcntl!.parameters, ["i32", "i32", "i32"]);
});

test("declarations leaves the table as it is", () => {
  declarations(darwin, types);
  assert.deepEqual(functions.fcntl.parameters, ["int", "int", "int"]);
});

test("loadFirst gives the first library that loads", () => {
  const asked: string[] = [];
  const loaded = loadFirst(linux, (library) => {
    asked.push(library);
    if (asked.length === 1) throw new Error("no such file");
    return library;
  });
  assert.equal(loaded, linux.libraries[1]);
  assert.deepEqual(asked, linux.libraries);
});

test("loadFirst throws ERR_TAKEOVER_UNSUPPORTED when none loads, with the last error as its cause", () => {
  const cause = new Error("no such file");
  const load = () => {
    throw cause;
  };
  assert.throws(() => loadFirst(linux, load), { ...takeoverError("ERR_TAKEOVER_UNSUPPORTED"), cause });
});

test("loadFirst passes a TakeoverError through without asking for another library", () => {
  let asked = 0;
  const denied = () => {
    asked++;
    throw new TakeoverError("ERR_TAKEOVER_PERMISSION", "denied");
  };
  assert.throws(() => loadFirst(linux, denied), takeoverError("ERR_TAKEOVER_PERMISSION"));
  assert.equal(asked, 1);
});
