/**
 * Classic BPF as the kernel runs it (Documentation/networking/filter.rst), for
 * programs that see a packet from behind its UDP or TCP header.
 *
 * @module
 */

import { type Instruction, networkHeader } from "../../src/steering/bpf.ts";

/** What a program can see. */
export interface Packet {
  /** Behind the UDP or TCP header. */
  readonly payload: Uint8Array;
  /** The IP header, and what follows. */
  readonly network: Uint8Array;
  /** Of Ethernet: 0x800 or 0x86dd. */
  readonly protocol: number;
  /** What the receiver's hash is; 0 when there is none. */
  readonly receiveHash?: number;
}

const ancillary = -0x1000 >>> 0;

/** Runs a program. A load outside the packet ends it with 0. */
export function interpret(program: readonly Instruction[], packet: Packet): number {
  let [a, x] = [0, 0];
  for (let at = 0; at < program.length; at++) {
    const { code, jt, jf, k } = program[at]!;
    const operand = (code & 8) !== 0 ? x : k;
    switch (code & 7) {
      case 0: {
        const loaded = loaded4(code, k, x, packet);
        if (loaded === null) return 0;
        a = loaded;
        break;
      }
      case 1: {
        const byte = read(packet, k, 1);
        if (code !== 0xb1) throw new Error(`no such instruction: 0x${code.toString(16)}`);
        if (byte === null) return 0;
        x = (byte & 15) * 4;
        break;
      }
      case 4:
        a = computed(code & 0xf0, a, operand);
        break;
      case 5:
        if ((code & 0xf0) === 0) at += k;
        else at += isTrue(code & 0xf0, a, operand) ? jt : jf;
        break;
      case 6:
        return (code & 0x18) === 0x10 ? a : k;
      case 7:
        if (code === 0x07) x = a;
        else a = x;
        break;
      default:
        throw new Error(`no such instruction: 0x${code.toString(16)}`);
    }
  }
  throw new Error("the program has no end");
}

function loaded4(code: number, k: number, x: number, packet: Packet): number | null {
  const size = { 0: 4, 8: 2, 16: 1 }[code & 0x18]!;
  const mode = code & 0xe0;
  if (mode === 0x80) return packet.payload.length;
  if (mode === 0x40) return read(packet, (k + x) >>> 0, size);
  if (k === ancillary) return packet.protocol;
  if (k === ((ancillary + 32) >>> 0)) return packet.receiveHash ?? 0;
  return read(packet, k, size);
}

function read({ payload, network }: Packet, k: number, size: number): number | null {
  const offset = k | 0;
  const [bytes, from] = offset >= 0 ? [payload, offset] : [network, offset - networkHeader];
  if (from < 0 || from + size > bytes.length) return null;
  return bytes.subarray(from, from + size).reduce((value, byte) => value * 256 + byte, 0);
}

function computed(operation: number, a: number, b: number): number {
  switch (operation) {
    case 0x00:
      return (a + b) >>> 0;
    case 0x10:
      return (a - b) >>> 0;
    case 0x20:
      return Math.imul(a, b) >>> 0;
    case 0x30:
      return Math.floor(a / b);
    case 0x40:
      return (a | b) >>> 0;
    case 0x50:
      return (a & b) >>> 0;
    case 0x60:
      return (a << b) >>> 0;
    case 0x70:
      return a >>> b;
    case 0x90:
      return a % b;
    case 0xa0:
      return (a ^ b) >>> 0;
    default:
      throw new Error(`no such operation: 0x${operation.toString(16)}`);
  }
}

function isTrue(test: number, a: number, b: number): boolean {
  if (test === 0x10) return a === b;
  if (test === 0x20) return a > b;
  return test === 0x30 ? a >= b : (a & b) !== 0;
}

/** A packet of UDP, with a random IP header of 20 to 60 bytes, or of IPv6. */
export function udpPacket(payload: Uint8Array, source: { address: Uint8Array; port: number }, optionWords = 0): Packet {
  const isInet = source.address.length === 4;
  const headerSize = isInet ? 20 + optionWords * 4 : 40;
  const network = new Uint8Array(headerSize + 8 + payload.length);
  network[0] = isInet ? 0x40 | headerSize / 4 : 0x60;
  network.set(source.address, isInet ? 12 : 8);
  new DataView(network.buffer).setUint16(headerSize, source.port);
  network.set(payload, headerSize + 8);
  return { payload, network, protocol: isInet ? 0x800 : 0x86dd };
}
