import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";
import {
  cString,
  disposeAll,
  freeDescriptorCount,
  linkOf,
  openDescriptors,
  OwnedDescriptor,
  owning,
  readFile,
} from "../../src/sockets/descriptors.ts";
import { TemporaryFolder } from "../unit/children.ts";
import { eventually, openNull, runtime, test } from "./support.ts";

const { libc } = runtime;

/** More entries than one getdents64 into 64 KB gives. */
const manyCount = 4_000;

test("openDescriptors lists what is open, ascending and each once, and not the folder that it reads", () =>
  eventually(() => {
    const before = openDescriptors(runtime);
    assert.deepEqual(before, [...new Set(before)].toSorted((a, b) => a - b));
    assert.ok(before.every((number) => linkOf(runtime, number) !== ""));
    using file = openNull();
    assert.deepEqual(openDescriptors(runtime), [...before, file.number].toSorted((a, b) => a - b));
  }));

test("openDescriptors lists more than one read of the folder gives", () => {
  const files = Array.from({ length: manyCount }, () => openNull());
  try {
    const found = openDescriptors(runtime);
    assert.equal(new Set(found).size, found.length);
    const listed = new Set(found);
    assert.ok(files.every(({ number }) => listed.has(number)));
  } finally {
    disposeAll(files);
  }
});

test("freeDescriptorCount goes down by one with every descriptor, and up again", () =>
  eventually(() => {
    const before = freeDescriptorCount(runtime);
    assert.ok(before > 0);
    {
      using _first = openNull();
      using _second = openNull();
      assert.equal(freeDescriptorCount(runtime), before - 2);
    }
    assert.equal(freeDescriptorCount(runtime), before);
  }));

test("linkOf gives what /proc says, and an empty text for what is not open", () => {
  using file = openNull();
  assert.equal(linkOf(runtime, file.number), "/dev/null");
  assert.equal(linkOf(runtime, 100_000), "");
});

test("readFile gives a file that is larger than one read, whatever its characters", () => {
  using folder = new TemporaryFolder();
  // Three bytes a character, which no power of two divides.
  const text = "日".repeat(100_000);
  writeFileSync(folder.file("text"), text);
  assert.equal(readFile(runtime, folder.file("text")), text);
});

test("readFile gives an empty file, and throws a SystemError for a missing one", () => {
  using folder = new TemporaryFolder();
  writeFileSync(folder.file("empty"), "");
  assert.equal(readFile(runtime, folder.file("empty")), "");
  assert.throws(() => readFile(runtime, folder.file("missing")), {
    name: "SystemError",
    code: "ENOENT",
    syscall: "open",
    message: `open ENOENT ${folder.file("missing")}`,
  });
});

test("readFile closes the file when it cannot be read", () => {
  using folder = new TemporaryFolder();
  assert.throws(() => readFile(runtime, folder.path), { code: "EISDIR", syscall: "read" });
});

test("OwnedDescriptor closes its descriptor once", () => {
  const file = openNull();
  const { number } = file;
  file[Symbol.dispose]();
  assert.equal(file.number, -1);
  assert.equal(linkOf(runtime, number), "");
  using again = openNull();
  assert.equal(again.number, number);
  file[Symbol.dispose]();
  assert.equal(linkOf(runtime, number), "/dev/null");
});

test("OwnedDescriptor.take gives the descriptor away", () => {
  const file = openNull();
  const number = file.take();
  assert.equal(file.number, -1);
  file[Symbol.dispose]();
  assert.equal(linkOf(runtime, number), "/dev/null");
  using _owner = new OwnedDescriptor(runtime, number);
  assert.equal(file.take(), -1);
});

test("disposeAll closes all of them, in any order", () => {
  const files = Array.from({ length: 6 }, () => openNull());
  const shuffled = [4, 0, 1, 2, 5, 3].map((index) => files[index]!);
  disposeAll(shuffled);
  assert.deepEqual(files.map(({ number }) => number), new Array(6).fill(-1));
});

test("disposeAll leaves a descriptor alone whose number lies between theirs", () => {
  const files = Array.from({ length: 5 }, () => openNull());
  using kept = files[2]!;
  const taken = new OwnedDescriptor(runtime, files[3]!.take());
  disposeAll([files[0]!, files[1]!, files[3]!, files[4]!]);
  assert.equal(linkOf(runtime, kept.number), "/dev/null");
  assert.equal(linkOf(runtime, taken.number), "/dev/null");
  taken[Symbol.dispose]();
});

test("disposeAll takes none, and those that were closed before", () => {
  disposeAll([]);
  const closed = openNull();
  closed[Symbol.dispose]();
  disposeAll([closed, closed]);
  assert.equal(closed.number, -1);
});

test("cString ends a text with its NUL", () => {
  assert.deepEqual([...cString("é")], [0xc3, 0xa9, 0]);
  assert.equal(libc.unlink(cString("")), -2);
});

test("owning closes afterwards, when it fails, and when a promise settles, but not what was taken", async () => {
  const isOpen = (number: number) => libc.fcntl(number, runtime.abi.constants.F_GETFD, 0) >= 0;
  const numbers: number[] = [];
  assert.equal(owning(openNull(), ({ number }) => numbers.push(number)), 1);
  const failing = ({ number }: OwnedDescriptor) => {
    numbers.push(number);
    throw new Error("failed");
  };
  assert.throws(() => owning(openNull(), failing), /failed/);
  await owning(openNull(), async ({ number }) => {
    await Promise.resolve();
    assert.equal(isOpen(number), true);
    numbers.push(number);
  });
  assert.deepEqual(numbers.map(isOpen), [false, false, false]);
  const taken = owning(openNull(), (descriptor) => descriptor.take());
  assert.equal(isOpen(taken), true);
  libc.close(taken);
});
