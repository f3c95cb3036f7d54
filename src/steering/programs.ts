/**
 * Programs for groups of sockets (SO_REUSEPORT): which member a packet is for,
 * by its slot, the member's place in the kernel's order. An answer that is no
 * slot of the group leaves the choice to the kernel's hash, so a slot that was
 * there a moment ago loses nothing: the packet goes to some other member.
 *
 * All of them see a packet from behind the UDP or TCP header, and the IP
 * header besides. Of connections they see the first packet (SYN): what follows
 * belongs to the listener that got it.
 *
 * @module
 */

import { parseInet, parseInet6, type InetAddress } from "../c/sockaddr.ts";
import { viewOf } from "../c/bytes.ts";
import { TakeoverError } from "../errors.ts";
import {
  answer,
  compute,
  jump,
  jumpIf,
  type Line,
  load,
  loadHeaderLength,
  loadIndexed,
  loadKnown,
  loadLength,
  type LoadSize,
  moveToX,
  networkHeader,
} from "./bpf.ts";

/** Where packets go: to one slot, or spread over several, each source always to the same one. */
export type Destination = number | readonly number[];

/** A number in the payload that says who issued it. */
export interface Tag {
  /** Where it begins, in bytes behind the UDP header; 0 to 65,506. */
  readonly offset: number;
  /** Its bytes, in network order. */
  readonly size: LoadSize;
  /** The bits of it that count; all when left out. */
  readonly mask?: number;
}

/** Who gets which tag. */
export interface TagRoutes {
  /** The slot for each value of the tag, after the mask. */
  readonly slots: ReadonlyMap<number, Destination>;
  /** Where everything else goes, and every packet that is too short to have a tag. */
  readonly otherwise: Destination;
}

/** The tag in a QUIC connection id (RFC 9000, 17.2 and 17.3): a server puts a number into those that it issues. */
export interface QuicTag extends Omit<Tag, "offset"> {
  /** Where the tag begins in the connection id; 0 to 19. */
  readonly offset: number;
  /**
   * The length of the ids that the server issues, 1 to 20. A packet with a
   * long header and an id of another length has the client's own id, a random
   * one, and goes where everything else goes.
   */
  readonly idLength: number;
}

/** The longest payload of UDP over IPv4 less the UDP header, and the longest connection id. */
const payloadSize = 65_507;
const longestIdLength = 20;

/** The most members of a group (net/core/sock_reuseport.c). */
const slotLimit = 65_535;

/** Ethernet's number for IPv6, and where the headers have what is used here. */
const ethernetInet6 = 0x86dd;
const inetSourceOffset = networkHeader + 12;
const inet6SourceOffset = networkHeader + 8;
const inet6HeaderSize = 40;

/** Knuth's multiplier: it spreads neighbours, and its upper bits depend on all the lower ones. */
const spreadingFactor = 0x9e3779b1;

/**
 * Everything to one slot, or spread over some: to keep a new member out of the
 * group's traffic until it is ready, or an old one that is to be closed.
 *
 * @example
 * ```ts
 * attachToGroup(runtime, listener, assemble(everythingTo([0, 1, 3])));
 * ```
 */
export function everythingTo(destination: Destination): Line[] {
  return send(destination, "all");
}

/**
 * By a tag at a fixed place of the datagram: each generation gets the flows
 * whose tags it has issued.
 *
 * @throws {TakeoverError} `ERR_TAKEOVER_RANGE` for a tag that no datagram can
 *   have, a value that the mask or size cannot give, or a slot that is none.
 *
 * @example
 * ```ts
 * byTag({ offset: 0, size: 1 }, { slots: new Map([[1, 0], [2, 1]]), otherwise: 1 });
 * ```
 */
export function byTag(tag: Tag, routes: TagRoutes): Line[] {
  checkTag(tag, payloadSize);
  return [
    loadLength(),
    jumpIf("greaterOrEqual", tag.offset + tag.size, "tagged", null),
    jump("otherwise"),
    "tagged",
    load(tag.size, tag.offset),
    ...choose(tag, routes),
  ];
}

/**
 * By the tag of the QUIC connection id. The first packets of a connection have
 * an id that the client made up; one whose length is the server's own may
 * look like a tag by chance, and then an older generation gets the new
 * connection. Ids of a length that clients do not choose (they take 8, mostly)
 * keep that from happening.
 *
 * @throws {TakeoverError} As {@linkcode byTag}.
 */
export function byQuicTag(tag: QuicTag, routes: TagRoutes): Line[] {
  const { idLength, offset, size } = tag;
  if (!(Number.isInteger(idLength) && idLength >= 1 && idLength <= longestIdLength)) {
    throw outOfRange(`connection ids of ${idLength} bytes`, `1 to ${longestIdLength}`);
  }
  checkTag(tag, idLength);
  return [
    loadLength(),
    jumpIf("greaterOrEqual", 1 + idLength, "long enough", null),
    jump("otherwise"),
    "long enough",
    load(1, 0),
    // The uppermost bit tells the two headers apart (RFC 8999, 5).
    jumpIf("anyBit", 0x80, null, "short"),
    loadLength(),
    jumpIf("greaterOrEqual", 6 + idLength, "long", null),
    jump("otherwise"),
    "long",
    load(1, 5),
    jumpIf("equal", idLength, "own", null),
    jump("otherwise"),
    "own",
    load(size, 6 + offset),
    jump("tag"),
    "short",
    load(size, 1 + offset),
    "tag",
    ...choose(tag, routes),
  ];
}

/** By a tag wherever it is: {@linkcode byQuicTag} or {@linkcode byTag}. */
export function byEitherTag(tag: Tag | QuicTag, routes: TagRoutes): Line[] {
  return "idLength" in tag ? byQuicTag(tag, routes) : byTag(tag, routes);
}

/** Goes on at one of two labels: whether a packet comes from an address and port. */
export function ifFrom({ family, hostname, port }: InetAddress, isFrom: string, isNot: string): Line[] {
  const bytes = family === "inet" ? parseInet(hostname)! : parseInet6(hostname)!;
  const view = viewOf(bytes);
  const source = family === "inet" ? inetSourceOffset : inet6SourceOffset;
  const words = Array.from({ length: bytes.length / 4 }, (_, index): Line[] => [
    load(4, source + index * 4),
    jumpIf("equal", view.getUint32(index * 4), null, isNot),
  ]);
  return [
    loadKnown("protocol"),
    family === "inet" ? jumpIf("equal", ethernetInet6, isNot, null) : jumpIf("equal", ethernetInet6, null, isNot),
    ...words.flat(),
    ...family === "inet" ? [loadHeaderLength(networkHeader)] : [],
    family === "inet" ? loadIndexed(2, networkHeader) : load(2, networkHeader + inet6HeaderSize),
    jumpIf("equal", port, isFrom, isNot),
  ];
}

/** A is the tag. */
function choose({ size, mask }: Omit<Tag, "offset">, { slots, otherwise }: TagRoutes): Line[] {
  const all = 2 ** (size * 8) - 1;
  const bits = mask ?? all;
  const lines: Line[] = bits === all ? [] : [compute("and", bits)];
  for (const [value, destination] of slots) {
    if (!(Number.isInteger(value) && value >= 0 && value <= all && (value & bits) >>> 0 === value)) {
      throw outOfRange(`the tag ${value}`, `one of ${size} bytes that the mask 0x${bits.toString(16)} leaves`);
    }
    // What comes between can be further than a conditional jump goes.
    lines.push(jumpIf("equal", value, `tag ${value}`, null), jump(`not ${value}`), `tag ${value}`);
    lines.push(...send(destination, `tag ${value}`), `not ${value}`);
  }
  return [...lines, "otherwise", ...send(otherwise, "otherwise")];
}

/** The hash of the source is our own: the kernel's is 0 for a sender on this machine that is not connected. */
function send(destination: Destination, name: string): Line[] {
  const slots = typeof destination === "number" ? [destination] : destination;
  if (slots.length === 0) throw outOfRange("0 slots", "at least 1");
  const wrong = slots.find((slot) => !(Number.isInteger(slot) && slot >= 0 && slot < slotLimit));
  if (wrong !== undefined) throw outOfRange(`the slot ${wrong}`, `0 to ${slotLimit - 1}`);
  if (slots.length === 1) return [answer(slots[0]!)];
  const answers = slots.slice(1).flatMap((slot, index): Line[] => [
    jumpIf("equal", index + 1, null, `${name}: not ${index + 1}`),
    answer(slot),
    `${name}: not ${index + 1}`,
  ]);
  return [...sourceHash(name), compute("mod", slots.length), ...answers, answer(slots[0]!)];
}

/** A = a number that depends on the source's address and port alone. */
function sourceHash(name: string): Line[] {
  return [
    loadKnown("protocol"),
    jumpIf("equal", ethernetInet6, `${name}: IPv6`, null),
    loadHeaderLength(networkHeader),
    loadIndexed(2, networkHeader),
    compute("mul", spreadingFactor),
    moveToX(),
    load(4, inetSourceOffset),
    jump(`${name}: mix`),
    `${name}: IPv6`,
    load(2, networkHeader + inet6HeaderSize),
    compute("mul", spreadingFactor),
    moveToX(),
    load(4, inet6SourceOffset),
    compute("xor", "x"),
    moveToX(),
    load(4, inet6SourceOffset + 4),
    compute("xor", "x"),
    moveToX(),
    load(4, inet6SourceOffset + 8),
    compute("xor", "x"),
    moveToX(),
    load(4, inet6SourceOffset + 12),
    `${name}: mix`,
    compute("xor", "x"),
    compute("mul", spreadingFactor),
    compute("rsh", 16),
  ];
}

function checkTag({ offset, size, mask }: Tag, roomSize: number): void {
  if (![1, 2, 4].includes(size)) throw outOfRange(`a tag of ${size} bytes`, "1, 2 or 4");
  if (!(Number.isInteger(offset) && offset >= 0 && offset + size <= roomSize)) {
    throw outOfRange(`a tag of ${size} bytes at ${offset}`, `one that ends within ${roomSize} bytes`);
  }
  if (mask !== undefined && !(Number.isInteger(mask) && mask > 0 && mask < 2 ** (size * 8))) {
    throw outOfRange(`the mask ${mask}`, `1 to ${2 ** (size * 8) - 1}`);
  }
}

function outOfRange(what: string, expected: string): TakeoverError {
  return new TakeoverError("ERR_TAKEOVER_RANGE", `Cannot steer by ${what}: expected ${expected}`);
}
