/**
 * Sockets into the servers of this process: endpoints into the application's,
 * the control socket into the runtime's own.
 *
 * @module
 */

import type { DatagramAddress, EndpointAddress } from "../sockets/address.ts";
import { bindEndpoint, isOfKind, type OpenedKind, type Unopened } from "./binding.ts";
import type { ControlListener, ControlStream, Runtime } from "../runtime.ts";
import { adoptPaused } from "../natives/datagram.ts";
import { DatagramEndpoint } from "../natives/datagram_endpoint.ts";
import { Endpoint } from "../natives/endpoint.ts";
import { type ForeignSockets, serves } from "./foreign_sockets.ts";
import type { Limits } from "../limits.ts";
import { adopt, type Adopted } from "../natives/graft.ts";
import type { SocketOrigin } from "./flow_strategy.ts";
import type { OwnPaths } from "./own_paths.ts";
import type { SocketAddress } from "../c/sockaddr.ts";
import type { Succession } from "./successor.ts";

/** Where the sockets of endpoints come from. */
export interface Sources {
  readonly runtime: Runtime;
  readonly limits: Limits;
  readonly succession: Succession | null;
  readonly foreign: ForeignSockets;
  /** What has a path is noted there. */
  readonly paths: OwnPaths;
}

/** An endpoint in its server, paused where that is possible. */
export interface Opened<T> {
  /** What the application's callback returned. */
  readonly native: T;
  readonly endpoint: Endpoint;
  /** Whether nobody had its socket before. */
  readonly isNew: boolean;
}

/**
 * Opens an endpoint: with the incumbent's socket of that name, else one from
 * elsewhere, else a new one. When that fails, a socket that was there before
 * goes back to where it came from, for the next try.
 *
 * @param kind Whether it is to listen, or to receive datagrams.
 * @param wanted The address, resolved.
 * @param address The same as the application gave it.
 * @param inspect Sees the socket before the application's callback is called.
 * @throws What `inspect` does, and as `Takeover.listen` and `Takeover.bind`.
 */
export async function openEndpoint<T>(
  { runtime, limits, succession, foreign, paths }: Sources,
  kind: OpenedKind,
  name: string,
  wanted: SocketAddress,
  address: EndpointAddress | DatagramAddress,
  open: (at: never) => T,
  inspect: (socket: Unopened, origin: SocketOrigin) => void = () => {},
): Promise<Opened<Awaited<T>>> {
  const inherited = succession?.endpoints.get(name);
  const isInherited = inherited !== undefined && isOfKind(inherited.identity, kind) &&
    serves(runtime, inherited, wanted);
  if (isInherited) succession!.endpoints.delete(name);
  const claimed = isInherited ? null : foreign.claim(name, wanted, kind);
  const given = isInherited ? inherited : claimed;
  const { descriptor, identity } = given ?? bindEndpoint(runtime, wanted, address, kind, succession?.endpoints);
  paths.take(identity.address);
  let adopted: Adopted<Awaited<T>>;
  try {
    inspect({ descriptor, identity }, isInherited ? "inherited" : given ? "given" : "new");
    adopted = await (kind === "datagram" ? adoptPaused : adopt)(runtime, limits, name, descriptor, identity, open);
  } catch (error) {
    if (isInherited) succession!.giveBack(name, inherited);
    else if (claimed) foreign.giveBack(claimed);
    else {
      // Nobody will ever answer on a path that was bound for it.
      if (identity.address.family === "unix") paths.remove(identity.address.path);
      descriptor[Symbol.dispose]();
    }
    throw error;
  }
  const { native, descriptor: held, registrations } = adopted;
  const parts = {
    name,
    descriptor: held,
    identity,
    registrations,
    paused: registrations.length > 0,
    isSupervised: given?.isSupervised === true,
  };
  const endpoint = kind === "datagram"
    ? new DatagramEndpoint(runtime, parts, native)
    : new Endpoint(runtime, { ...parts, kind });
  return { native, endpoint, isNew: given === null };
}

/** The control socket, which accepts from here on. */
export interface OpenedControl {
  readonly listener: ControlListener;
  readonly endpoint: Endpoint;
}

/** Gives the control socket to the runtime. */
export async function openControl(
  runtime: Runtime,
  { descriptor, identity }: Unopened,
  accept: (stream: ControlStream) => void,
): Promise<OpenedControl> {
  const listener = await runtime.adoptListener(descriptor.take(), accept);
  const endpoint = new Endpoint(runtime, {
    kind: "control",
    name: "",
    descriptor: listener.descriptor,
    identity,
    registrations: [],
    paused: false,
    isSupervised: false,
  });
  return { listener, endpoint };
}
