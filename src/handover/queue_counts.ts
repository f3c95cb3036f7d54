/**
 * What became of those who were connecting to listeners that were closed for
 * good.
 *
 * @module
 */

/** Connections that waited where listeners were closed for good. */
export interface QueueCounts {
  /** They were accepted and served before. */
  readonly served: number;
  /** They went on to the other listeners of the group. */
  readonly migrated: number;
  /** Their handshakes had not ended in time, or nobody could accept them. */
  readonly reset: number;
}

/** Nobody was connecting. */
export const noQueues: QueueCounts = { served: 0, migrated: 0, reset: 0 };

/** Of several listeners. */
export function sumOfQueues(all: readonly QueueCounts[]): QueueCounts {
  const sum = (key: keyof QueueCounts) => all.reduce((total, counts) => total + counts[key], 0);
  return { served: sum("served"), migrated: sum("migrated"), reset: sum("reset") };
}
