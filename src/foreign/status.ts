/**
 * What /proc/PID/stat says of a process and its threads, and who started whom.
 *
 * @module
 */

import { numbersIn, readFile } from "../sockets/descriptors.ts";
import { isSystemError } from "../errors.ts";
import type { Runtime } from "../runtime.ts";

/** What /proc/PID/stat says (proc(5)), as far as it is needed. */
export interface ProcessStatus {
  /** `R`, `S`, `T` for stopped, `Z` for one that has ended and was not waited for. */
  readonly state: string;
  /** The pid of its parent. */
  readonly parent: number;
  /** When it started, in clock ticks since the machine did. With the pid it names a process. */
  readonly startTime: number;
}

/** More than the one line that there is. */
const lineSize = 4_096;

/**
 * The fields of /proc/PID/stat. The second one is the program's name in
 * brackets, in which there may be brackets and spaces.
 */
export function parseStatus(stat: string): ProcessStatus {
  const fields = stat.slice(stat.lastIndexOf(")") + 2).trim().split(" ");
  return { state: fields[0]!, parent: Number(fields[1]), startTime: Number(fields[19]) };
}

/** The pids of all processes whose parent, or parent's parent and so on, a process is; this process left out. */
export function descendantsOf(runtime: Runtime, pid: number): number[] {
  const own = runtime.libc.getpid();
  const pids = numbersIn(runtime, "/proc");
  const parents = new Map(pids.map((each) => [each, parentOf(runtime, each)]));
  const found = [pid];
  for (const ancestor of found) {
    for (const [child, parent] of parents) if (parent === ancestor && child !== own) found.push(child);
  }
  return found.slice(1);
}

/**
 * What a file named stat says, of a process or of one of its threads.
 *
 * @throws {SystemError} `ENOENT` or `ESRCH` when it has gone.
 */
export function statusAt(runtime: Runtime, path: string): ProcessStatus {
  return parseStatus(readFile(runtime, path, lineSize));
}

/** Whether a thread does not run: it is stopped, traced, or has ended. */
export function isStill(runtime: Runtime, path: string): boolean {
  const status = statusIfThere(runtime, path);
  return status === null || "TtZXx".includes(status.state);
}

function parentOf(runtime: Runtime, pid: number): number {
  return statusIfThere(runtime, `/proc/${pid}/stat`)?.parent ?? -1;
}

/** Null when it has ended, or is another user's and hidden (proc(5), hidepid). */
function statusIfThere(runtime: Runtime, path: string): ProcessStatus | null {
  try {
    return statusAt(runtime, path);
  } catch (error) {
    if (isSystemError(error, "ENOENT", "ESRCH", "EPERM", "EACCES")) return null;
    throw error;
  }
}
