/**
 * The descriptor table as it is when nothing happens.
 *
 * @module
 */

import process from "node:process";
import { linkOf, openDescriptors } from "../../src/sockets/descriptors.ts";
import { runtime } from "./seam.ts";

/** Descriptors, and what each of them is. */
export type Table = ReadonlyMap<number, string>;

/** The table of this moment. */
export function descriptorTable(): Table {
  return new Map(openDescriptors(runtime).map((number) => [number, linkOf(runtime, number)]));
}

/** How often in a row the table has to be the same. */
const steadyCount = 3;

// Deno opens its sockets for signals with the first listener, or half a second after its start; it panics when it cannot.
const hear = (): void => {};
process.on("SIGWINCH", hear);
process.off("SIGWINCH", hear);

/**
 * The table without what comes and goes: threads of the runtimes open files
 * for a moment, for instance to see how much memory there is, and what a test
 * before has closed may still be closing.
 */
export async function steadyTable(): Promise<Table> {
  let table = descriptorTable();
  for (let same = 0; same < steadyCount;) {
    await new Promise((resolve) => setTimeout(resolve, 3));
    const next = descriptorTable();
    same = sameTable(table, next) ? same + 1 : 0;
    table = next;
  }
  return table;
}

/**
 * What a later table has and an earlier one had not, and the reverse. A file
 * that a runtime had open before may be closed: Node reads certificates in a
 * thread while it starts.
 *
 * @returns One line for each descriptor; none when nothing was leaked and
 *   nobody else's descriptor was closed.
 */
export function changes(before: Table, after: Table): string[] {
  const more = [...after].filter(([number, link]) => before.get(number) !== link);
  const fewer = [...before].filter(([number, link]) => after.get(number) !== link && !link.startsWith("/"));
  return [
    ...more.map(([number, link]) => `open: ${number} ${link}`),
    ...fewer.map(([number, link]) => `closed: ${number} ${link}`),
  ];
}

function sameTable(a: Table, b: Table): boolean {
  return a.size === b.size && [...a].every(([number, link]) => b.get(number) === link);
}
