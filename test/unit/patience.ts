/**
 * Bun ends a test after five seconds, which a busy machine can need for any of
 * them; Deno and Node do not.
 *
 * @module
 */

const bunTest = "bun:test";

if ("Bun" in globalThis) (await import(bunTest)).setDefaultTimeout(120_000);
