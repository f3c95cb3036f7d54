import assert from "node:assert/strict";
import test from "node:test";
import { fileURLToPath } from "node:url";
import { commandHere, run } from "../unit/children.ts";

const program = fileURLToPath(new URL("full_table.ts", import.meta.url));

/** What a process makes of ten descriptors, when its table has room for only so many. */
async function receiveWithRoom(count: number): Promise<Record<string, unknown>> {
  const command = commandHere(program, ["--allow-ffi", "--allow-net", "--allow-env"]);
  const limited = ["sh", "-c", 'ulimit -n 64 && exec "$@"', "sh", ...command, String(count)];
  const { status, stdout, stderr } = await run(limited, { NODE_NO_WARNINGS: "1" });
  assert.equal(status, 0, stderr);
  const { filledCount, ...outcome } = JSON.parse(stdout) as Record<string, unknown>;
  assert.ok((filledCount as number) >= 10 && (filledCount as number) < 64, `${filledCount} descriptors were free`);
  return outcome;
}

/** The error that says how many arrived, and a table as it was before. */
function truncatedAfter(count: number): Record<string, unknown> {
  return {
    changes: [],
    code: "ERR_TAKEOVER_TRUNCATED",
    message: `Cannot receive all descriptors of a message: ${count} arrived and were closed, the kernel dropped ` +
      "the others (MSG_CTRUNC); raise the limit of open files (ulimit -n) or send fewer",
  };
}

test("DescriptorChannel.receive takes ten descriptors into a table that has room for ten", async () => {
  assert.deepEqual(await receiveWithRoom(10), { changes: [], received: 10 });
});

test("DescriptorChannel.receive throws ERR_TAKEOVER_TRUNCATED when the table has room for nine of ten", async () => {
  assert.deepEqual(await receiveWithRoom(9), truncatedAfter(9));
});

test("DescriptorChannel.receive throws ERR_TAKEOVER_TRUNCATED when the table has room for one of ten", async () => {
  assert.deepEqual(await receiveWithRoom(1), truncatedAfter(1));
});

test("DescriptorChannel.receive throws ERR_TAKEOVER_TRUNCATED when the table is full", async () => {
  assert.deepEqual(await receiveWithRoom(0), truncatedAfter(0));
});
