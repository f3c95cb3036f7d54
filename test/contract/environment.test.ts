/** What a process takes out of its environment is gone for all of it. */

import assert from "node:assert/strict";
import { runHere } from "../unit/children.ts";
import { onDeno } from "./support.ts";

onDeno("Runtime.unsetEnv without --allow-env takes a variable away from every runtime object", async () => {
  const { status, stdout, stderr } = await runHere(
    `
    import { openRuntime } from "${new URL("../../runtimes/deno.ts", import.meta.url)}";
    const [first, second] = [await openRuntime(), await openRuntime()];
    console.log(JSON.stringify([first.env("HOME"), second.env("HOME")].map((value) => typeof value)));
    first.unsetEnv("HOME");
    console.log(JSON.stringify([first, second, await openRuntime()].map(({ env }) => env("HOME") ?? null)));
    `,
    ["--allow-ffi"],
  );
  assert.deepEqual({ status, stdout, stderr }, {
    status: 0,
    stdout: '["string","string"]\n[null,null,null]\n',
    stderr: "",
  });
});
