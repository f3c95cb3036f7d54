/**
 * Zeroed memory that C may point into, and integers in it, in the byte order
 * of the machine (every supported one is little-endian).
 *
 * @module
 */

import type { Field } from "./abi.ts";

/** Bytes on a buffer of their own, as every C struct here is kept. */
export type Bytes = Uint8Array<ArrayBuffer>;

/**
 * Allocates zeroed bytes whose address does not move: a small typed array made
 * with `new Uint8Array(n)` may live on the garbage collector's moving heap, one
 * over an ArrayBuffer of its own does not.
 *
 * @param size In bytes; 0 gives one byte, so that there is an address.
 */
export function allocate(size: number): Bytes {
  return new Uint8Array(new ArrayBuffer(Math.max(size, 1)));
}

/** A view over exactly these bytes. */
export function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

/** Writes an unsigned integer of the field's width at `base` + its offset. */
export function writeField(view: DataView, field: Field, value: number | bigint, base = 0): void {
  const at = base + field.offset;
  if (field.size === 8) view.setBigUint64(at, BigInt(value), true);
  else if (field.size === 4) view.setUint32(at, Number(value), true);
  else if (field.size === 2) view.setUint16(at, Number(value), true);
  else view.setUint8(at, Number(value));
}

/** Reads an unsigned integer of the field's width at `base` + its offset. */
export function readField(view: DataView, field: Field, base = 0): number {
  const at = base + field.offset;
  if (field.size === 8) return Number(view.getBigUint64(at, true));
  if (field.size === 4) return view.getUint32(at, true);
  if (field.size === 2) return view.getUint16(at, true);
  return view.getUint8(at);
}

/** Lower-case hexadecimal, two digits a byte. */
export function toHex(bytes: Uint8Array): string {
  let text = "";
  for (const byte of bytes) text += byte.toString(16).padStart(2, "0");
  return text;
}

/** The bytes up to the first NUL, or all of them. */
export function untilNul(bytes: Uint8Array): Uint8Array {
  const end = bytes.indexOf(0);
  return end < 0 ? bytes : bytes.subarray(0, end);
}
