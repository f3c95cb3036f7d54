/**
 * An endpoint in a native server, as an application has one.
 *
 * @module
 */

import type { InetAddress, SocketAddress } from "../../src/c/sockaddr.ts";
import { defaultLimits } from "../../src/limits.ts";
import { Endpoint } from "../../src/natives/endpoint.ts";
import { adopt, type Open } from "../../src/natives/graft.ts";
import type { EndpointAddress } from "../../src/sockets/address.ts";
import type { OwnedDescriptor } from "../../src/sockets/descriptors.ts";
import { bindListener } from "../../src/sockets/listener.ts";
import { duplicateOver, identify, type SocketIdentity } from "../../src/sockets/socket.ts";
import type { Native } from "./natives.ts";
import { openNull, runtime } from "./support.ts";

/** An address that only this library's tests use. */
export const loopback: InetAddress = { family: "inet", hostname: "127.83.79.68", port: 0 };

/** An endpoint in a server that answers, and another copy of its socket, as a successor has one. */
export interface Served<T> {
  readonly endpoint: Endpoint;
  readonly server: T;
  readonly identity: SocketIdentity;
  readonly copy: OwnedDescriptor;
}

/** Opens one; it accepts. */
export async function served<T>(
  native: Native<T>,
  address: SocketAddress = loopback,
  options: EndpointAddress = { port: 0 },
): Promise<Served<T>> {
  const socket = bindListener(runtime, address, options);
  const identity = identify(runtime, socket.number)!;
  const copy = openNull();
  duplicateOver(runtime, socket.number, copy.number);
  const adopted = await adopt(runtime, defaultLimits, "web", socket, identity, native.open as Open<T>);
  const { descriptor, registrations } = adopted;
  const parts = { kind: "listener", name: "web", descriptor, identity, registrations, paused: true, isSupervised: false } as const;
  const endpoint = new Endpoint(runtime, parts);
  endpoint.resume();
  return { endpoint, server: adopted.native as T, identity, copy };
}
