/**
 * Descriptors to try things on.
 *
 * @module
 */

import { allocate, viewOf } from "../../src/c/bytes.ts";
import { OwnedDescriptor } from "../../src/sockets/descriptors.ts";
import { checked } from "../../src/errors.ts";
import { setCloseOnExec, setNonBlocking } from "../../src/sockets/socket.ts";
import { runtime } from "./seam.ts";

/** Two connected Unix streams, as openSocket makes them. */
export function socketPair(): [OwnedDescriptor, OwnedDescriptor] {
  const { abi, libc } = runtime;
  const numbers = allocate(8);
  checked(abi, "socketpair", libc.socketpair(abi.constants.AF_UNIX, abi.constants.SOCK_STREAM, 0, numbers));
  const pair = [0, 4].map((at) => new OwnedDescriptor(runtime, viewOf(numbers).getInt32(at, true)));
  for (const { number } of pair) {
    setCloseOnExec(runtime, number);
    setNonBlocking(runtime, number);
  }
  return pair as [OwnedDescriptor, OwnedDescriptor];
}

/** A descriptor that is no socket. */
export function openNull(): OwnedDescriptor {
  const { abi, libc } = runtime;
  const path = new TextEncoder().encode("/dev/null\0");
  const flags = abi.constants.O_RDWR | abi.constants.O_CLOEXEC;
  return new OwnedDescriptor(runtime, checked(abi, "open", libc.open(path, flags, 0)));
}
