/**
 * Programs of the type BPF_PROG_TYPE_SK_REUSEPORT, for processes that may load
 * them: CAP_BPF is enough, as for a socket filter (kernel/bpf/syscall.c,
 * is_net_admin_prog_type). Beside classic BPF they offer two things:
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
import { checked, SystemError } from "../errors.ts";
import type { Runtime } from "../runtime.ts";
import { cString, OwnedDescriptor, owning } from "../sockets/descriptors.ts";
import { attachLoadedToGroup } from "./attach.ts";
import {
  addTo,
  callHelper,
  copyRegister,
  encodeExtended,
  exit,
  type ExtendedStep,
  loadFrom,
  loadMap,
  moduloRegister,
  setRegister,
  storeTo,
} from "./ebpf.ts";

/** The system call by architecture, its commands, and what they make (linux/bpf.h). */
const systemCalls = { x64: 321, arm64: 280 } as const;
const commands = { createMap: 0, updateElement: 2, loadProgram: 5 } as const;
const memberMapType = 20;
const programType = 21;
const selectOrMigrate = 40;
const selectMember = 82;

const attributeSize = 120;
const attachTypeOffset = 68;

/** The answer of a program that does not drop the packet: where it has chosen nobody, the kernel's hash does. */
const pass = 1;

/** Where the key lies on the program's stack. */
const keyOffset = -4;

const license = "MIT";

/**
 * Sends all new connections of a group of listeners to some of them, each
 * source to one, and with them the connections of a listener that closes,
 * queued and half open. It takes the place of the group's program.
 *
 * @param listeners This process's descriptors of those; at most 65,535.
 * @throws {SystemError} `EPERM` when this process may not, `ENOSYS` where there
 *   is no bpf(2), `EBUSY` when a program of another process knows one of them
 *   still: a socket is in one map at a time.
 */
export function steerAmong(runtime: Runtime, listeners: readonly number[]): void {
  owning(openMap(runtime, listeners.length), ({ number: map }) => {
    for (const [key, listener] of listeners.entries()) putIntoMap(runtime, map, key, listener);
    const program = loadProgram(runtime, encodeExtended(spreading(map, listeners.length)));
    owning(program, ({ number }) => attachLoadedToGroup(runtime, listeners[0]!, number));
  });
}

/** Where the kernel's hash of the source is (linux/bpf.h, struct sk_reuseport_md). */
const hashOffset = 32;

/** A map never has more members than keys, and one that has closed is in it no more: then the kernel's hash chooses. */
function spreading(map: number, count: number): ExtendedStep[] {
  return [
    loadFrom(4, 7, 1, hashOffset),
    moduloRegister(7, count),
    storeTo(10, keyOffset, 7),
    // bpf_sk_select_reuseport(context, map, &key, 0): the context is in r1 from the beginning.
    loadMap(2, map),
    copyRegister(3, 10),
    addTo(3, keyOffset),
    setRegister(4, 0),
    callHelper(selectMember),
    setRegister(0, pass),
    exit(),
  ];
}

/** BPF_MAP_TYPE_REUSEPORT_SOCKARRAY; the program that knows it keeps it. */
function openMap(runtime: Runtime, keyCount: number): OwnedDescriptor {
  const attribute = allocate(attributeSize);
  const view = viewOf(attribute);
  for (const [index, field] of [memberMapType, 4, 8, keyCount].entries()) view.setUint32(index * 4, field, true);
  return new OwnedDescriptor(runtime, bpf(runtime, commands.createMap, attribute));
}

function putIntoMap(runtime: Runtime, map: number, key: number, member: number): void {
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
