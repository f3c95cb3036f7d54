import assert from "node:assert/strict";
import test from "node:test";
import { ForeignProcess } from "../../src/foreign/process.ts";
import { seizeFrom } from "../../src/foreign/seize.ts";
import { parseStatus } from "../../src/foreign/status.ts";
import { bindTable } from "../../src/c/libc.ts";
import { darwin, fakeRuntime, linux, takeoverError } from "./support.ts";

/** The rest of a line of /proc/PID/stat behind the program's name, Linux 6.18. */
const rest = "S 4711 4242 4242 0 -1 4194560 902 0 0 0 12 3 0 0 20 0 11 0 987654 1080123392 11520 184467";

test("parseStatus gives the state, the parent and the time of the start", () => {
  assert.deepEqual(parseStatus(`4242 (node) ${rest}`), { state: "S", parent: 4_711, startTime: 987_654 });
});

test("parseStatus takes a program's name for a name, whatever is in it", () => {
  const expected = { state: "S", parent: 4_711, startTime: 987_654 };
  assert.deepEqual(parseStatus(`4242 (a b) T 1 2) ${rest}\n`), expected);
  assert.deepEqual(parseStatus(`4242 () ${rest}`), expected);
});

test("seizeFrom refuses what is no pid, no port and no address before it calls libc", () => {
  const runtime = fakeRuntime({ libc: bindTable(linux, { getpid: () => 99 }, () => 0) });
  for (const pid of [0, -1, 1.5, NaN, 2 ** 23, "1" as unknown as number]) {
    assert.throws(() => seizeFrom(runtime, { pid }), takeoverError("ERR_TAKEOVER_RANGE"));
  }
  for (const port of [0, -1, 65_536, 1.5, "80" as unknown as number]) {
    assert.throws(() => seizeFrom(runtime, { pid: 1, port }), takeoverError("ERR_TAKEOVER_ADDRESS"));
  }
  for (const address of ["", 80 as unknown as string]) {
    assert.throws(() => seizeFrom(runtime, { pid: 1, address }), takeoverError("ERR_TAKEOVER_ADDRESS"));
  }
  assert.throws(() => seizeFrom(runtime, { pid: 99 }), takeoverError("ERR_TAKEOVER_SELF"));
});

test("seizeFrom is not supported on macOS, nor where pidfd_open is missing", () => {
  assert.throws(() => seizeFrom(fakeRuntime({ abi: darwin }), { pid: 1 }), takeoverError("ERR_TAKEOVER_UNSUPPORTED"));
  assert.throws(() => seizeFrom(fakeRuntime(), { pid: 1 }), takeoverError("ERR_TAKEOVER_UNSUPPORTED"));
});

test("ForeignProcess says that there is no such process, also when the number is a thread's", () => {
  for (const errno of [3, 22, 2]) {
    const libc = bindTable(linux, { syscall: () => -1 }, () => errno);
    assert.throws(() => new ForeignProcess(fakeRuntime({ libc }), 4_711), takeoverError("ERR_TAKEOVER_PROCESS"));
  }
});

test("ForeignProcess passes another error on", () => {
  const libc = bindTable(linux, { syscall: () => -1 }, () => 24);
  assert.throws(() => new ForeignProcess(fakeRuntime({ libc }), 4_711), { name: "SystemError", code: "EMFILE" });
});
