/**
 * What HAProxy's `_getsocks` has on the wire (its src/cli.c sends, src/sock.c
 * receives), without the sockets themselves:
 *
 * ```text
 * client   "_getsocks\n"
 * server   i32 count                                    in the machine's byte order
 * server   a batch of at most 252 records, in one message with as many descriptors
 * client   i32, how many descriptors came before the batch; nobody reads the value
 *          … until there are as many as the count says
 *
 * record   u8 size | network namespace | u8 size | interface | 4 bytes, zero since HAProxy 2.3
 * ```
 *
 * @module
 */

import { allocate, type Bytes, viewOf } from "../c/bytes.ts";

/** What HAProxy says of a listener beside the socket; empty texts when nothing. */
export interface HaproxyRecord {
  /** The network namespace that its configuration names (`namespace`). */
  readonly namespace: string;
  /** The interface that it is bound to (`interface`). */
  readonly interface: string;
}

/** The command, with the end of its line. */
export const command = "_getsocks";
/** HAProxy's MAX_SEND_FD (include/haproxy/compat.h). */
export const batchCount = 252;
/** The count, and an acknowledgement. */
export const integerSize = 4;
/** The most bytes of a namespace's name, a file name (`NAME_MAX`), and of an interface's (`IFNAMSIZ`, less its NUL). */
export const namespaceSize = 255;
export const interfaceSize = 15;

/** A signed integer as it is sent. */
export function encodeInteger(value: number): Bytes {
  const bytes = allocate(integerSize);
  viewOf(bytes).setInt32(0, value, true);
  return bytes;
}

/** The signed integer that {@linkcode integerSize} bytes are. */
export function decodeInteger(bytes: Uint8Array): number {
  return viewOf(bytes).getInt32(0, true);
}

/** A record to bytes, or null when a name is too long for it. */
export function encodeRecord(record: HaproxyRecord): Uint8Array | null {
  const namespace = new TextEncoder().encode(record.namespace);
  const device = new TextEncoder().encode(record.interface);
  if (namespace.length > namespaceSize || device.length > interfaceSize) return null;
  const bytes = new Uint8Array(1 + namespace.length + 1 + device.length + integerSize);
  bytes[0] = namespace.length;
  bytes.set(namespace, 1);
  bytes[1 + namespace.length] = device.length;
  bytes.set(device, 2 + namespace.length);
  return bytes;
}

/** Cuts a stream of bytes into records. It never keeps more than one unfinished record. */
export class RecordReader {
  #rest: Uint8Array = new Uint8Array(0);

  /** Whether the bytes so far end in the middle of a record. */
  get isMidway(): boolean {
    return this.#rest.length > 0;
  }

  /** Takes the next bytes, and gives the records that are whole by now. */
  push(bytes: Uint8Array): HaproxyRecord[] {
    const all = new Uint8Array(this.#rest.length + bytes.length);
    all.set(this.#rest);
    all.set(bytes, this.#rest.length);
    const records: HaproxyRecord[] = [];
    let at = 0;
    for (let size = sizeAt(all, at); size !== null; size = sizeAt(all, at)) {
      records.push(recordOf(all.subarray(at, at + size)));
      at += size;
    }
    this.#rest = all.slice(at);
    return records;
  }
}

/** How many bytes the record at an offset has, or null when they are not all there. */
function sizeAt(bytes: Uint8Array, at: number): number | null {
  if (at >= bytes.length) return null;
  const interfaceAt = at + 1 + bytes[at]!;
  if (interfaceAt >= bytes.length) return null;
  const end = interfaceAt + 1 + bytes[interfaceAt]! + integerSize;
  return end <= bytes.length ? end - at : null;
}

function recordOf(bytes: Uint8Array): HaproxyRecord {
  const interfaceAt = 1 + bytes[0]!;
  return {
    namespace: new TextDecoder().decode(bytes.subarray(1, interfaceAt)),
    interface: new TextDecoder().decode(bytes.subarray(interfaceAt + 1, interfaceAt + 1 + bytes[interfaceAt]!)),
  };
}
