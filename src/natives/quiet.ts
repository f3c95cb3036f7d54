/**
 * Whether a write is under way that the runtime does not tell of. One that
 * waits for room in the send buffer waits for an event of the epoll instance:
 * so it has been woken, and has written, once an event that became ready later
 * has come through.
 *
 * What a write leaves behind: on TCP the count of all bytes grows. On a Unix
 * socket the queue grows, or has been read since, which is an edge of EPOLLOUT
 * (net/unix/af_unix.c, unix_write_space).
 *
 * @module
 */

import { allocate, readField, viewOf, writeField } from "../c/bytes.ts";
import { checked } from "../errors.ts";
import type { ControlStream, Runtime } from "../runtime.ts";
import { OwnedDescriptor, owning } from "../sockets/descriptors.ts";
import { openPair } from "../sockets/socket.ts";
import { tcpInfoOf } from "../sockets/tcp_state.ts";

const EPOLL_CLOEXEC = 0o2000000;
const EPOLL_CTL_ADD = 1;
const EPOLLOUT = 4;
const EPOLLET = 0x80000000;

/** Linux's SO_MEMINFO (linux/sock_diag.h): nine unsigned; the third is what waits to be read at the other end. */
const SO_MEMINFO = 55;
const memInfo = { size: 36, wmem_alloc: { offset: 8, size: 4 } } as const;

/** How often in a row nothing may have been written, although there was room. */
const quietCount = 2;

/**
 * Whether no write waits for room in a connection's send buffer, or uses the
 * room that it has got.
 *
 * @param limitMs How long the event loop may take to come round.
 */
export async function isQuiet(runtime: Runtime, descriptor: number, limitMs: number): Promise<boolean> {
  return await owning(watchRoom(runtime, descriptor), async (room) => {
    const [end, rope] = openPair(runtime);
    return await owning(rope, async () => {
      const stream = owning(end, ({ number }) => {
        const adopted = runtime.adoptStream(number);
        end.take();
        return adopted;
      });
      try {
        return await staysQuiet(runtime, descriptor, room, ringer(runtime, stream, rope, limitMs));
      } finally {
        stream.destroy();
      }
    });
  });
}

async function staysQuiet(
  runtime: Runtime,
  descriptor: number,
  room: OwnedDescriptor,
  ring: () => Promise<boolean>,
): Promise<boolean> {
  // The stream reads from the next turn on: then a byte has to come as an event.
  await turn();
  if (!hasEvent(runtime, room)) return false;
  for (let count = 0; count < quietCount; count++) {
    const before = writtenSize(runtime, descriptor);
    if (!await ring()) return false;
    // What was woken together with the ring has its turn, too.
    await turn();
    if (hasEvent(runtime, room) || writtenSize(runtime, descriptor) !== before) return false;
  }
  return true;
}

/** Sends a byte through the event loop; false when it did not come in time. */
function ringer(
  { libc }: Runtime,
  stream: ControlStream,
  rope: OwnedDescriptor,
  limitMs: number,
): () => Promise<boolean> {
  let heard = (_isInTime: boolean) => {};
  stream.start({ data: () => heard(true), close: () => heard(false) });
  return () =>
    new Promise((resolve) => {
      const timer = setTimeout(() => resolve(false), limitMs);
      heard = (isInTime) => {
        clearTimeout(timer);
        resolve(isInTime);
      };
      libc.write(rope.number, allocate(1), 1);
    });
}

/** What changes with every write: of TCP the bytes ever written, else the bytes that wait at the other end. */
function writtenSize(runtime: Runtime, descriptor: number): number {
  const { abi, libc } = runtime;
  const tcp = tcpInfoOf(runtime, descriptor);
  if (tcp) return tcp.writtenSize;
  const info = allocate(memInfo.size);
  const size = allocate(4);
  viewOf(size).setUint32(0, info.length, true);
  checked(abi, "getsockopt", libc.getsockopt(descriptor, abi.constants.SOL_SOCKET, SO_MEMINFO, info, size));
  return readField(viewOf(info), memInfo.wmem_alloc);
}

/** An epoll instance that says when there is room, and then only when there is more. */
function watchRoom(runtime: Runtime, descriptor: number): OwnedDescriptor {
  const { abi, libc } = runtime;
  const event = allocate(abi.epollEvent.size);
  writeField(viewOf(event), abi.epollEvent.events, EPOLLOUT | EPOLLET);
  const epoll = new OwnedDescriptor(runtime, checked(abi, "epoll_create1", libc.epoll_create1(EPOLL_CLOEXEC)));
  return owning(epoll, ({ number }) => {
    checked(abi, "epoll_ctl", libc.epoll_ctl(number, EPOLL_CTL_ADD, descriptor, event));
    return new OwnedDescriptor(runtime, epoll.take());
  });
}

function hasEvent({ abi, libc }: Runtime, { number }: OwnedDescriptor): boolean {
  return libc.epoll_wait(number, allocate(abi.epollEvent.size), 1, 0) > 0;
}

function turn(): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, 0));
}
