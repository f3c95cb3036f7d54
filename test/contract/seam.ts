/**
 * The runtime under test.
 *
 * @module
 */

import assert from "node:assert/strict";
import process from "node:process";
import { openRuntime } from "../../mod.ts";
import type { Runtime } from "../../src/runtime.ts";

/** The seam that this runtime has. `SEAM_FFI=node:ffi` chooses that FFI on Node. */
export const runtime: Runtime = await openSeam();

async function openSeam(): Promise<Runtime> {
  const { SEAM_FFI } = process.env;
  if (SEAM_FFI === undefined) return await openRuntime();
  assert.equal(SEAM_FFI, "node:ffi", "SEAM_FFI");
  const node = await import("../../runtimes/node.ts");
  return await node.openRuntime({ ffi: SEAM_FFI });
}
