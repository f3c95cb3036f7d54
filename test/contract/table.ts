/**
 * The descriptor table as it is when nothing happens.
 *
 * @module
 */

import { linkOf, openDescriptors } from "../../src/descriptors.ts";
import { runtime } from "./seam.ts";

/** Descriptors, and what each of them is. */
export type Table = ReadonlyMap<number, string>;

/** The table of this moment. */
export function descriptorTable(): Table {
  return new Map(openDescriptors(runtime).map((number) => [number, linkOf(runtime, number)]));
}

/**
 * The table without what comes and goes: threads of the runtimes open files
 * for a moment, for instance to see how much memory there is.
 */
export async function steadyTable(): Promise<Table> {
  for (let table = descriptorTable();;) {
    await new Promise((resolve) => setTimeout(resolve, 3));
    const next = descriptorTable();
    if (sameTable(table, next)) return next;
    table = next;
  }
}

/** Whether two tables have the same entries. */
export function sameTable(a: Table, b: Table): boolean {
  return a.size === b.size && [...a].every(([number, link]) => b.get(number) === link);
}

/** What one table has and the other has not. */
export function difference(table: Table, other: Table): string {
  return [...table].filter(([number, link]) => other.get(number) !== link).map(([n, link]) => `${n} ${link}`).join(
    "\n",
  );
}
