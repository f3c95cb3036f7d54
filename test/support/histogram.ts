/**
 * Latencies without a list of them: counts in buckets of one percent's width.
 *
 * @module
 */

const growth = Math.log(1.01);

/** Milliseconds, from a microsecond on. */
export class Histogram {
  readonly #buckets = new Map<number, number>();
  #count = 0;
  /** The largest value. */
  max = 0;

  /** Counts a value in. */
  add(ms: number): void {
    const bucket = Math.ceil(Math.log(Math.max(ms, 0.001) * 1_000) / growth);
    this.#buckets.set(bucket, (this.#buckets.get(bucket) ?? 0) + 1);
    this.#count++;
    this.max = Math.max(this.max, ms);
  }

  /** The value that this share of all values does not exceed, 1 % exact. */
  at(share: number): number {
    let left = Math.ceil(this.#count * share);
    for (const bucket of [...this.#buckets.keys()].sort((a, b) => a - b)) {
      left -= this.#buckets.get(bucket)!;
      if (left <= 0) return Math.min(Math.exp(bucket * growth) / 1_000, this.max);
    }
    return 0;
  }
}
