/**
 * Programs of the type BPF_PROG_TYPE_SK_REUSEPORT, for processes that may load
 * them (CAP_BPF and CAP_NET_ADMIN). Beside classic BPF they offer two things:
 * members are chosen by keys of our own instead of by the kernel's order, and
 * a listener that closes leaves its connections to the others, whatever
 * `net.ipv4.tcp_migrate_req` says (Linux 5.14).
 *
 * ```text
 * union bpf_attr, BPF_MAP_CREATE        type 4 | key size 4 | value size 4 | entries 4 | flags 4
 *                 BPF_MAP_UPDATE_ELEM   map 4 | 0 | key 8, a pointer | value 8, a pointer | flags 8
 *                 BPF_PROG_LOAD         type 4 | count 4 | instructions 8 | license 8 | … | attach type 4 at 68
 * ```
 *
 * @module
 */

import { allocate, type Bytes, viewOf } from "../c/bytes.ts";
import { checked, SystemError, TakeoverError } from "../errors.ts";
import type { Runtime } from "../runtime.ts";
import { cString, OwnedDescriptor, owning } from "../sockets/descriptors.ts";
import { attachLoadedToGroup } from "./attach.ts";
import {
  addTo,
  assembleExtended,
  callHelper,
  copyRegister,
  exit,
  type ExtendedLine,
  jumpWhen,
  loadFrom,
  loadMap,
  maskRegister,
  moduloRegister,
  setRegister,
  storeTo,
  toHostOrder,
} from "./ebpf.ts";
import type { Tag } from "./programs.ts";

/** Whether this process may load such programs. */
export interface SkReuseportSupport {
  readonly isPossible: boolean;
  /** The errno's name that says why not: `EPERM` without the capabilities, `ENOSYS` without bpf(2); or null. */
  readonly code: string | null;
}

/** Members of a group by keys of our own. */
export interface MemberMap extends Disposable {
  /** The map's descriptor, which stays its own. */
  readonly descriptor: number;
  /** Puts a member under a key, in place of the one before; it leaves the map when it is closed. */
  set(key: number, member: number): void;
}

/** The system call by architecture, its commands, and what they make (linux/bpf.h). */
const systemCalls = { x64: 321, arm64: 280 } as const;
const commands = { createMap: 0, updateElement: 2, loadProgram: 5 } as const;
const memberMapType = 20;
const programType = 21;
const selectOrMigrate = 40;
const helpers = { loadBytes: 26, selectMember: 82 } as const;

const attributeSize = 120;
const attachTypeOffset = 68;

/** The answer of a program that does not drop the packet: where it has chosen nobody, the kernel's hash does. */
const pass = 1;

const udpHeaderSize = 8;
const license = "MIT";
const mostKeys = 65_535;

/** Tries to load a program, and closes it. */
export function canLoadSkReuseport(runtime: Runtime): SkReuseportSupport {
  try {
    owning(loadProgram(runtime, leastProgram), () => {});
    return { isPossible: true, code: null };
  } catch (error) {
    if (error instanceof SystemError) return { isPossible: false, code: error.code };
    throw error;
  }
}

/**
 * Sends all new connections of a group of listeners to those of a map, each
 * source to one of them, and with them the connections of a member that closes,
 * queued and half open. It takes the place of the group's program.
 *
 * @param descriptor Any listener of the group.
 * @param members Made by {@linkcode openMemberMap}, under the keys from 0 on;
 *   the program keeps it.
 * @param count How many they are.
 * @throws {SystemError} `EPERM` when this process may not; see {@linkcode canLoadSkReuseport}.
 */
export function steerAmong(runtime: Runtime, descriptor: number, members: MemberMap, count: number): void {
  const program = loadProgram(runtime, assembleExtended(spreading(members.descriptor, count)));
  owning(program, ({ number }) => attachLoadedToGroup(runtime, descriptor, number));
}

/**
 * Steers a group of datagram sockets by a tag of the payload: to the member
 * whose key the tag is, else to the one under the key `otherwise`, else to
 * whom the kernel's hash chooses. Members come and go in the map alone; the
 * kernel's order does not matter, and the program stays.
 *
 * @param descriptor Any socket of the group.
 * @param members Made by {@linkcode openMemberMap}; the program keeps it.
 * @throws {SystemError} As {@linkcode steerAmong}.
 *
 * @example
 * ```ts
 * const members = openMemberMap(runtime, 256);
 * members.set(generation, socket.number);
 * steerByMap(runtime, socket.number, members, { offset: 0, size: 1 }, generation);
 * ```
 */
export function steerByMap(
  runtime: Runtime,
  descriptor: number,
  members: MemberMap,
  tag: Tag,
  otherwise: number,
): void {
  const program = loadProgram(runtime, assembleExtended(choosing(members.descriptor, tag, otherwise)));
  owning(program, ({ number }) => attachLoadedToGroup(runtime, descriptor, number));
}

/**
 * Opens a map of members (BPF_MAP_TYPE_REUSEPORT_SOCKARRAY).
 *
 * @param keyCount Keys are 0 to one less; at most 65,535.
 * @throws {SystemError} As {@linkcode steerAmong}.
 */
export function openMemberMap(runtime: Runtime, keyCount: number): MemberMap {
  if (!(Number.isInteger(keyCount) && keyCount >= 1 && keyCount <= mostKeys)) {
    throw new TakeoverError("ERR_TAKEOVER_RANGE", `Cannot open a map of ${keyCount} members: expected 1 to ${mostKeys}`);
  }
  const attribute = allocate(attributeSize);
  const view = viewOf(attribute);
  for (const [index, field] of [memberMapType, 4, 8, keyCount].entries()) view.setUint32(index * 4, field, true);
  const map = new OwnedDescriptor(runtime, bpf(runtime, commands.createMap, attribute));
  return {
    get descriptor() {
      return map.number;
    },
    set: (key, member) => setMember(runtime, map.number, key, member),
    [Symbol.dispose]: () => map[Symbol.dispose](),
  };
}

/** Two instructions: whoever the kernel chooses. */
const leastProgram: Bytes = assembleExtended([setRegister(0, pass), exit()]);

/** Where the kernel's hash of the source is (linux/bpf.h, struct sk_reuseport_md). */
const hashOffset = 32;

/** A map never has more members than keys, and one that has closed is in it no more: then the kernel's hash chooses. */
function spreading(map: number, count: number): ExtendedLine[] {
  return [
    copyRegister(6, 1),
    loadFrom(4, 7, 6, hashOffset),
    moduloRegister(7, count),
    ...choosingKey(map),
    setRegister(0, pass),
    exit(),
  ];
}

/** The data of a packet begin with the UDP header here. */
function choosing(map: number, { offset, size, mask }: Tag, otherwise: number): ExtendedLine[] {
  return [
    copyRegister(6, 1),
    setRegister(2, udpHeaderSize + offset),
    copyRegister(3, 10),
    addTo(3, -8),
    setRegister(4, size),
    callHelper(helpers.loadBytes),
    jumpWhen("different", 0, 0, "otherwise"),
    loadFrom(size, 7, 10, -8),
    ...size === 1 ? [] : [toHostOrder(size, 7)],
    ...mask === undefined ? [] : [maskRegister(7, mask)],
    ...choosingKey(map),
    jumpWhen("equal", 0, 0, "end"),
    "otherwise",
    setRegister(7, otherwise),
    ...choosingKey(map),
    "end",
    setRegister(0, pass),
    exit(),
  ];
}

/** `bpf_sk_select_reuseport(context, map, &key, 0)`, with the key in r7. */
function choosingKey(map: number): ExtendedLine[] {
  return [
    storeTo(10, -4, 7),
    copyRegister(1, 6),
    loadMap(2, map),
    copyRegister(3, 10),
    addTo(3, -4),
    setRegister(4, 0),
    callHelper(helpers.selectMember),
  ];
}

function setMember(runtime: Runtime, map: number, key: number, member: number): void {
  const attribute = allocate(attributeSize);
  const [keyBytes, value] = [allocate(4), allocate(8)];
  viewOf(keyBytes).setUint32(0, key, true);
  viewOf(value).setBigUint64(0, BigInt(member), true);
  const view = viewOf(attribute);
  view.setUint32(0, map, true);
  view.setBigUint64(8, runtime.addressOf(keyBytes), true);
  view.setBigUint64(16, runtime.addressOf(value), true);
  bpf(runtime, commands.updateElement, attribute, keyBytes, value);
}

function loadProgram(runtime: Runtime, instructions: Bytes): OwnedDescriptor {
  const attribute = allocate(attributeSize);
  const name = cString(license);
  const view = viewOf(attribute);
  view.setUint32(0, programType, true);
  view.setUint32(4, instructions.length / 8, true);
  view.setBigUint64(8, runtime.addressOf(instructions), true);
  view.setBigUint64(16, runtime.addressOf(name), true);
  view.setUint32(attachTypeOffset, selectOrMigrate, true);
  return new OwnedDescriptor(runtime, bpf(runtime, commands.loadProgram, attribute, instructions, name));
}

/** The call knows addresses alone: what they point to is kept here while it runs. */
const kept: Bytes[] = [];

/** `bpf(command, attribute, size)` (bpf(2)), for which libc has no name. */
function bpf(runtime: Runtime, command: number, attribute: Bytes, ...pointedTo: readonly Bytes[]): number {
  const { abi, libc } = runtime;
  if (abi.platform !== "linux") throw new SystemError("ENOSYS", -38, "bpf");
  kept.push(attribute, ...pointedTo);
  const address = Number(runtime.addressOf(attribute));
  const result = libc.syscall(systemCalls[abi.arch], command, address, attribute.length, 0);
  kept.length = 0;
  return checked(abi, "bpf", result);
}
