/**
 * Datagram sockets in native objects that are to be paused, resumed and let go.
 *
 * @module
 */

import type { SocketAddress } from "../c/sockaddr.ts";
import type { Limits } from "../limits.ts";
import type { Runtime } from "../runtime.ts";
import { OwnedDescriptor, owning } from "../sockets/descriptors.ts";
import { canPause } from "../sockets/event_loop.ts";
import { isAtRest, registerMuted } from "../sockets/muting.ts";
import { bindSocket, connectSocket, localAddress, openSocket, type SocketIdentity } from "../sockets/socket.ts";
import { adoptDatagram, checkHeld } from "./adopt.ts";
import { type Adopted, graft, type Open } from "./graft.ts";
import { remember } from "./natives.ts";
import { datagramPlaceholder, placeholderAddress } from "./placeholder.ts";

/**
 * Opens a native object and puts a datagram socket into it. On Linux the object
 * comes back paused: it can send, and what comes waits in the socket.
 *
 * @param name The endpoint's, for messages.
 * @param socket Taken on success, else still the caller's.
 * @param identity What the object must hold afterwards.
 * @param open The application's callback.
 * @throws {TakeoverError} `ERR_TAKEOVER_ADOPT` when the object did not take the
 *   address it was given, or holds another socket afterwards.
 */
export async function adoptPaused<T>(
  runtime: Runtime,
  { openMs }: Pick<Limits, "openMs">,
  name: string,
  socket: OwnedDescriptor,
  { address, cookie }: Pick<SocketIdentity, "address" | "cookie">,
  open: Open<T>,
): Promise<Adopted<Awaited<T>>> {
  if (!canPause(runtime)) return await adoptRunning(runtime, socket, open);
  const what = `the endpoint ${JSON.stringify(name)} into its socket`;
  const placeholder = datagramPlaceholder(runtime, address.family);
  let adopted: Adopted<Awaited<T>>;
  try {
    adopted = await graft(runtime, {
      what,
      openMs,
      socket: socket.number,
      cookie,
      placeholder,
      extras: {},
      isReady: (_, registrations) => isAtRest(registrations()),
      open,
    });
  } finally {
    placeholder[Symbol.dispose]();
  }
  registerMuted(runtime, adopted.registrations);
  checkHeld(runtime, { what, cookie, local: address, peer: null }, adopted.descriptor);
  socket[Symbol.dispose]();
  runtime.present(adopted.native, address);
  remember(adopted.native, adopted.descriptor, cookie);
  return adopted;
}

/**
 * A datagram socket that nobody knows, of the same family, connected to itself,
 * so that it hears nobody: what a native object is left with when its true
 * socket has gone.
 */
export function deadDatagram(runtime: Runtime, family: SocketAddress["family"]): OwnedDescriptor {
  return owning(new OwnedDescriptor(runtime, openSocket(runtime, family, "dgram")), (socket) => {
    const { number } = socket;
    bindSocket(runtime, number, family === "inet6" ? { family, hostname: "::1", port: 0 } : placeholderAddress(family, null));
    connectSocket(runtime, number, localAddress(runtime, number)!);
    return new OwnedDescriptor(runtime, socket.take());
  });
}

/** Where there is no epoll nothing can be paused. Untested: there is no macOS here. */
async function adoptRunning<T>(runtime: Runtime, socket: OwnedDescriptor, open: Open<T>): Promise<Adopted<Awaited<T>>> {
  const descriptor = socket.number;
  const native = await adoptDatagram(runtime, socket, open as Open<Awaited<T>>);
  return { native: native as Awaited<T>, descriptor, registrations: [] };
}
