import assert from "node:assert/strict";
import { runHere } from "../unit/children.ts";
import { onDeno } from "./support.ts";

const folder = new URL("../..", import.meta.url);

/** What an error says of itself that a program on Deno meets with these permissions. */
async function errorWith(permissions: readonly string[], program: string): Promise<Record<string, unknown>> {
  const { status, stdout, stderr } = await runHere(
    `import { openRuntime, takeOver } from "${new URL("mod.ts", folder)}";
    try {
      ${program}
      console.log(JSON.stringify({}));
    } catch ({ name, code, message, cause }) {
      console.log(JSON.stringify({ name, code, message, cause: cause?.name }));
    }`,
    permissions,
  );
  assert.equal(status, 0, stderr);
  return JSON.parse(stdout) as Record<string, unknown>;
}

function deniesBoth({ name, code, message, cause }: Record<string, unknown>): void {
  assert.deepEqual({ name, code, cause }, {
    name: "TakeoverError",
    code: "ERR_TAKEOVER_PERMISSION",
    cause: "NotCapable",
  });
  assert.match(message as string, /--allow-ffi/);
  assert.match(message as string, /--allow-net/);
}

onDeno("openRuntime throws ERR_TAKEOVER_PERMISSION without --allow-ffi, and names both permissions", async () => {
  deniesBoth(await errorWith([], "await openRuntime();"));
  deniesBoth(await errorWith(["--allow-net"], "await openRuntime();"));
});

onDeno("openRuntime throws ERR_TAKEOVER_PERMISSION when --allow-ffi names another file", async () => {
  deniesBoth(await errorWith(["--allow-net", "--allow-ffi=libc.so.6"], "await openRuntime();"));
});

onDeno("openRuntime needs --allow-ffi and nothing else", async () => {
  assert.deepEqual(await errorWith(["--allow-ffi"], "await openRuntime();"), {});
});

onDeno("takeOver needs --allow-ffi and --allow-net and nothing else", async () => {
  const program = `
    const path = "/tmp/takeover-test-" + (await openRuntime()).libc.getpid() + ".sock";
    const takeover = await takeOver(path);
    const server = await takeover.listen("web", { hostname: "127.0.0.1", port: 0 }, (at) =>
      Deno.serve({ ...at, onListen() {} }, () => new Response()));
    await takeover.ready();
    await takeover.close();
    await server.shutdown();`;
  assert.deepEqual(await errorWith(["--allow-ffi", "--allow-net"], program), {});
});
