/**
 * Datagrams on their way from the process that reads the socket to the one that
 * knows their flow: each with the address of its true sender.
 *
 * ```text
 * own      version 1 = 1 | family 1 = 4 or 6 | port 2 | address 4 or 16 | scope 4, of family 6 | size 2 | payload
 *          any number of these in one packet
 * mvfst    version 4 = 1 | size 2 | sockaddr, as this machine lays it out | time 8 | payload
 *          one in a packet (mvfst, quic/server/QuicServerPacketRouter)
 * ```
 *
 * Numbers are in network order.
 *
 * @module
 */

import type { Abi } from "../c/abi.ts";
import { allocate, type Bytes, viewOf } from "../c/bytes.ts";
import { decodeSockaddr, encodeSockaddr, formatInet6, type InetAddress, parseInet, parseInet6 } from "../c/sockaddr.ts";
import { TakeoverError } from "../errors.ts";

/** A datagram, and who sent it. */
export interface ForwardedDatagram {
  /** At most 65,527. */
  readonly bytes: Uint8Array;
  /** Whom the answer goes to. */
  readonly peer: InetAddress;
}

/** How datagrams are written into packets. */
export interface ForwardFormat {
  /** Whether a packet may have several. */
  readonly isBatched: boolean;
  /** One datagram as bytes; throws for one that cannot be. */
  encode(datagram: ForwardedDatagram): Bytes;
  /** All datagrams of a packet; throws `ERR_TAKEOVER_PROTOCOL` when one of them is malformed. */
  decode(packet: Bytes): ForwardedDatagram[];
}

/** The name of a format, as a process says which it reads. */
export type FormatName = "own" | "mvfst";

/** The longest payload of UDP (RFC 768, over IPv6). */
export const longestDatagramSize = 65_527;

/** The longest frame of any format, in bytes. */
export const longestFrameSize: number = longestDatagramSize + 64;

const ownVersion = 1;
const ownHeads = {
  inet: { family: 4, addressSize: 4, size: 10 },
  inet6: { family: 6, addressSize: 16, size: 26 },
} as const;
const addressOffset = 4;
const scopeOffset = 20;

const mvfstVersion = 1;
const mvfstAddressOffset = 6;
const mvfstTimeSize = 8;

/** The format between two processes of this library. */
export const ownFormat: ForwardFormat = {
  isBatched: true,
  encode: encodeOwn,
  decode(packet) {
    const found: ForwardedDatagram[] = [];
    for (let at = 0; at < packet.length;) {
      const { datagram, size } = decodeOwn(packet.subarray(at));
      found.push(datagram);
      at += size;
    }
    return found;
  },
};

/**
 * mvfst's format, for a server that is built on it.
 *
 * @param now The time that a datagram came, in the sender's own clock.
 */
export function mvfstFormat(abi: Abi, now: () => bigint): ForwardFormat {
  return {
    isBatched: false,
    encode(datagram) {
      checkSize(datagram);
      const address = encodeSockaddr(abi, datagram.peer);
      const payloadOffset = mvfstAddressOffset + address.length + mvfstTimeSize;
      const packet = allocate(payloadOffset + datagram.bytes.length);
      const view = viewOf(packet);
      view.setUint32(0, mvfstVersion);
      view.setUint16(4, address.length);
      packet.set(address, mvfstAddressOffset);
      view.setBigUint64(mvfstAddressOffset + address.length, BigInt.asUintN(64, now()));
      packet.set(datagram.bytes, payloadOffset);
      return packet;
    },
    decode: (packet) => [decodeMvfst(abi, packet)],
  };
}

/** All formats. */
const formats: Readonly<Record<FormatName, (abi: Abi) => ForwardFormat>> = {
  own: () => ownFormat,
  mvfst: (abi) => mvfstFormat(abi, () => BigInt(Date.now()) * 1_000_000n),
};

/** A format by its name, or null for one that is not known here. */
export function formatNamed(abi: Abi, name: string): ForwardFormat | null {
  return Object.hasOwn(formats, name) ? formats[name as FormatName](abi) : null;
}

function encodeOwn(datagram: ForwardedDatagram): Bytes {
  checkSize(datagram);
  const { bytes, peer } = datagram;
  const { family, size } = ownHeads[peer.family];
  const address = peer.family === "inet" ? parseInet(peer.hostname) : parseInet6(peer.hostname);
  if (!address || !isPort(peer.port)) {
    throw new TakeoverError(
      "ERR_TAKEOVER_ADDRESS",
      `Cannot forward a datagram of ${JSON.stringify(peer)}: expected a numeric address and a port`,
    );
  }
  const frame = allocate(size + bytes.length);
  const view = viewOf(frame);
  view.setUint8(0, ownVersion);
  view.setUint8(1, family);
  view.setUint16(2, peer.port);
  frame.set(address, addressOffset);
  if (peer.family === "inet6") view.setUint32(scopeOffset, peer.scope ?? 0);
  view.setUint16(size - 2, bytes.length);
  frame.set(bytes, size);
  return frame;
}

function decodeOwn(bytes: Bytes): { datagram: ForwardedDatagram; size: number } {
  const view = viewOf(bytes);
  const version = bytes.length < ownHeads.inet.size ? NaN : view.getUint8(0);
  if (version !== ownVersion) throw malformed(`version ${version}`, `${ownVersion}`);
  const family = ([4, 6] as const).find((each) => each === view.getUint8(1));
  if (!family) throw malformed(`family ${bytes[1]}`, "4 or 6");
  const head = family === 4 ? ownHeads.inet : ownHeads.inet6;
  const size = bytes.length < head.size ? Infinity : head.size + view.getUint16(head.size - 2);
  const port = view.getUint16(2);
  if (!isPort(port)) throw malformed(`port ${port}`, "1 to 65535");
  if (size > bytes.length) throw malformed(`${bytes.length} bytes`, `${size}`);
  const address = bytes.subarray(addressOffset, addressOffset + head.addressSize);
  const scope = family === 6 ? view.getUint32(scopeOffset) : 0;
  const peer: InetAddress = family === 4
    ? { family: "inet", hostname: address.join("."), port }
    : { family: "inet6", hostname: formatInet6(address), port, ...scope > 0 && { scope } };
  return { datagram: { bytes: bytes.subarray(head.size, size), peer }, size };
}

function decodeMvfst(abi: Abi, packet: Bytes): ForwardedDatagram {
  const view = viewOf(packet);
  const version = packet.length < mvfstAddressOffset ? NaN : view.getUint32(0);
  if (version !== mvfstVersion) throw malformed(`version ${version}`, `${mvfstVersion}`);
  const addressEnd = mvfstAddressOffset + view.getUint16(4);
  const headSize = addressEnd + mvfstTimeSize;
  if (headSize > packet.length) throw malformed(`${packet.length} bytes`, `at least ${headSize}`);
  const peer = decodeSockaddr(abi, packet.subarray(mvfstAddressOffset, addressEnd));
  if (!peer || peer.family === "unix" || !isPort(peer.port)) throw malformed("no IP address and port", "the sender's");
  return { bytes: packet.subarray(headSize), peer };
}

function isPort(port: number): boolean {
  return Number.isInteger(port) && port >= 1 && port <= 65_535;
}

function checkSize({ bytes }: ForwardedDatagram): void {
  if (bytes.length <= longestDatagramSize) return;
  throw new TakeoverError(
    "ERR_TAKEOVER_LIMIT",
    `Cannot forward a datagram of ${bytes.length} bytes: expected at most ${longestDatagramSize}`,
  );
}

function malformed(what: string, expected: string): TakeoverError {
  const message = `Cannot read a forwarded datagram with ${what}: expected ${expected}`;
  return new TakeoverError("ERR_TAKEOVER_PROTOCOL", message);
}
