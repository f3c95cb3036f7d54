import { defineConfig } from "tsup";

/** ESM and types for npm; `using` and `await using` are lowered for Node 20. */
export default defineConfig({
  entry: {
    mod: "mod.ts",
    "runtimes/deno": "runtimes/deno.ts",
    "runtimes/bun": "runtimes/bun.ts",
    "runtimes/node": "runtimes/node.ts",
    "src/c/cmsg": "src/c/cmsg.ts",
  },
  format: "esm",
  target: "node20",
  platform: "node",
  dts: true,
  clean: true,
  splitting: true,
  sourcemap: true,
  removeNodeProtocol: false,
});
