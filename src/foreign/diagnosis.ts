/**
 * What a doctor found: one {@linkcode Check} for each thing that decides
 * whether a takeover works, and the text for people.
 *
 * @module
 */

/** `good`: as it should be. `limited`: it works, but not all, or it cannot be told. `bad`: it does not work. */
export type CheckStatus = "good" | "limited" | "bad";

/** What is looked at. The last three are about the path, and missing without one. */
export type CheckName =
  /** The runtime's version, beside those that were tested. */
  | "runtime"
  /** What libc is called through. */
  | "ffi"
  /** What Deno permits; missing elsewhere. */
  | "permissions"
  /** The kernel's version, and what it lacks. */
  | "kernel"
  /** How many descriptors may be open, and in flight. */
  | "descriptors"
  /** Whether /proc tells of this process's descriptors. */
  | "proc"
  /** Whether there are pidfds, and copies through them. */
  | "pidfd"
  /** Whether descriptors may be taken out of other processes. */
  | "ptrace"
  /** Whether a program may be loaded that chooses among listeners. */
  | "bpf"
  /** Whether connections that wait move when one listener of a group closes. */
  | "migration"
  /** How many connections can wait while nobody accepts. */
  | "queues"
  /** Namespaces and system call filters. */
  | "container"
  /** The path's length, and the folder that it is in. */
  | "folder"
  /** The file system that this folder is in. */
  | "filesystem"
  /** What is at the path now, and who answers there. */
  | "path";

/** One thing that was looked at. */
export interface Check {
  /** What was looked at. */
  readonly name: CheckName;
  /** How it is. */
  readonly status: CheckStatus;
  /** What there is, with numbers. */
  readonly found: string;
  /** What follows from it for a takeover. */
  readonly means: string;
  /** What to do; empty when nothing is to be done. */
  readonly advice: string;
}

/** All that was looked at. */
export interface Diagnosis {
  /** The worst of the checks. */
  readonly status: CheckStatus;
  /** The path of the control socket, or null when none was given. */
  readonly path: string | null;
  /** The checks, each name once. */
  readonly checks: readonly Check[];
}

const fromGoodToBad: readonly CheckStatus[] = ["good", "limited", "bad"];

/** Columns of a terminal; longer lines are broken between words. */
const columnCount = 100;

/** Puts checks together. */
export function diagnosisOf(path: string | null, checks: readonly Check[]): Diagnosis {
  const worst = Math.max(0, ...checks.map(({ status }) => fromGoodToBad.indexOf(status)));
  return { status: fromGoodToBad[worst]!, path, checks };
}

/**
 * A diagnosis as text for people: a line for each check that is good, and what
 * the others mean and what to do below theirs. It has no colours, and no
 * control characters of whatever was found.
 *
 * @param diagnosis What `doctor` gave.
 * @returns Lines of at most 100 columns where the words permit; the last one
 *   ends with a newline.
 *
 * @example
 * ```ts ignore
 * console.log(formatDiagnosis(await doctor("/run/shop/takeover.sock")));
 * ```
 */
export function formatDiagnosis(diagnosis: Diagnosis): string {
  const { checks } = diagnosis;
  const widest = Math.max(0, ...checks.map(({ name }) => name.length));
  const counts = fromGoodToBad.map((each) => `${checks.filter(({ status }) => status === each).length} ${each}`);
  return [...checks.flatMap((check) => linesOf(check, widest)), "", counts.join(", "), ""].join("\n");
}

function linesOf({ name, status, found, means, advice }: Check, widest: number): string[] {
  const head = `${status.padEnd(7)}  ${name.padEnd(widest)}  `;
  const texts = status === "good" ? [found] : [found, means, advice && `> ${advice}`];
  const lines = texts.filter((text) => text !== "").flatMap((text) => wrapped(plain(text), columnCount - head.length));
  return lines.map((line, index) => (index === 0 ? head : " ".repeat(head.length)) + line);
}

function wrapped(text: string, width: number): string[] {
  const lines = [""];
  for (const word of text.split(" ")) {
    const line = lines.at(-1)!;
    if (line === "" || line.length + 1 + word.length <= width) {
      lines[lines.length - 1] = line === "" ? word : `${line} ${word}`;
    } else lines.push(word);
  }
  return lines;
}

/** The name of a file can have anything in it, what moves a terminal's cursor too. */
function plain(text: string): string {
  return text.replace(/[\p{Cc}\p{Cf}\u2028\u2029]/gu, "?");
}
