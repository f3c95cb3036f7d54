/**
 * What a child process found, as one JSON line.
 *
 * @module
 */

import process from "node:process";

/** Tries something: a word for what came of it, or the error. */
export async function outcomeOf(attempt: () => unknown): Promise<Record<string, unknown>> {
  try {
    return { code: await attempt() };
  } catch (error) {
    const { name, code, message, cause } = error as Error & { code?: string; cause?: { code?: string } };
    return { name, code: code ?? name, message, ...(cause?.code === undefined ? {} : { cause: cause.code }) };
  }
}

/** Prints it, and ends. */
export function report(found: Record<string, unknown>): never {
  console.log(JSON.stringify(found));
  process.exit(0);
}
