/**
 * What a doctor tells an ordinary user: `doctor_user.ts USER PATH`. Started as
 * root with a low limit of open files.
 */

import assert from "node:assert/strict";
import process from "node:process";
import { diagnose, hostOf } from "../../src/foreign/doctor.ts";
import { report } from "./outcome.ts";
import { runtime } from "./seam.ts";

const { libc } = runtime;
const [user, path] = process.argv.slice(2) as [string, string];

/** Of this thread only, which is the one that calls libc (setresuid(2)). */
function become(id: number): void {
  const isArm = process.arch === "arm64";
  assert.equal(libc.syscall(isArm ? 149 : 119, id, id, id, 0), 0, "setresgid");
  assert.equal(libc.syscall(isArm ? 147 : 117, id, id, id, 0), 0, "setresuid");
  assert.equal(libc.geteuid(), id);
}

become(Number(user));
report({
  usual: await diagnose(hostOf(runtime), path),
  crowded: await diagnose(hostOf(runtime), null, { limits: { spareCount: 64 } }),
});
