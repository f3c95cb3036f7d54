/**
 * A first process with flows at the endpoint "game", in a socket of node:dgram,
 * and successors in the same process, under another name.
 *
 * @module
 */

import type dgram from "node:dgram";
import { once } from "node:events";
import type { InetAddress } from "../../src/c/sockaddr.ts";
import type { Flows } from "../../src/handover/endpoint_flows.ts";
import type { FlowOptions, OpenedFlows } from "../../src/handover/flow_options.ts";
import { randomHex, Succession } from "../../src/handover/successor.ts";
import { Takeover } from "../../src/handover/takeover.ts";
import { defaultLimits, type Limits } from "../../src/limits.ts";
import type { Runtime } from "../../src/runtime.ts";
import type { OwnedDescriptor } from "../../src/sockets/descriptors.ts";
import { connectPath } from "../../src/sockets/listener.ts";
import { TemporaryFolder } from "../unit/children.ts";
import { nodeDatagram } from "./ends.ts";
import { runtime } from "./support.ts";

/** What a test has. */
export interface FlowScene {
  readonly path: string;
  readonly takeover: Takeover;
  readonly flows: Flows;
  /** Where it is. */
  readonly to: InetAddress;
  /** First bytes of what the socket of node:dgram has read. */
  readonly read: number[];
  /** First bytes of what `datagram` was called with. */
  readonly served: number[];
  /** What the events have told. */
  readonly opened: OpenedFlows[];
  readonly unserved: { readonly code: string; readonly message: string }[];
  readonly abandoned: { readonly code: string; readonly message: string }[];
}

/** How it is made. */
export interface FlowSceneOptions {
  readonly hostname?: string;
  readonly limits?: Partial<Limits>;
  readonly seen?: Runtime;
}

/** Runs something with a first process that is ready, and ends it. */
export async function flowScene(
  options: Omit<FlowOptions, "datagram"> & Partial<FlowOptions>,
  use: (scene: FlowScene) => Promise<void>,
  { hostname = "127.0.0.1", limits = {}, seen = runtime }: FlowSceneOptions = {},
): Promise<void> {
  using folder = new TemporaryFolder();
  const path = folder.file("control.sock");
  const takeover = await Takeover.begin(seen, path, { notify: false, limits: { drainMs: 20_000, ...limits } });
  const { read, served, opened, unserved, abandoned }: Record<string, never[]> = {
    ...{ read: [], served: [], opened: [], unserved: [], abandoned: [] },
  };
  takeover.on("flows", (event) => opened!.push(event as never));
  takeover.on("unserved", (event) => unserved!.push(event as never));
  takeover.on("abandoned", (event) => abandoned!.push(event as never));
  const datagram = (bytes: Uint8Array) => void served!.push(bytes[0] as never);
  let flows: Flows | null = null;
  let socket: dgram.Socket | null = null;
  try {
    socket = await takeover.bind("game", { hostname, port: 0 }, (at, given) => {
      flows = given;
      return nodeDatagram.open(at);
    }, { flows: { datagram, ...options } });
    socket.on("message", (bytes) => read!.push(bytes[0] as never));
    await takeover.ready();
    const to = takeover.addr("game") as InetAddress;
    await use({ path, takeover, flows: flows!, to, read: read!, served: served!, opened: opened!, unserved: unserved!, abandoned: abandoned! });
  } finally {
    await takeover.close();
    await takeover.drained();
    if (socket) {
      const closed = once(socket, "close");
      socket.close();
      await closed;
    }
  }
}

/** A successor that has everything, and has not said ready. */
export async function succeed(path: string, seen = runtime): Promise<Succession> {
  const options = { runtime: seen, limits: defaultLimits, path, instance: randomHex(), allowUsers: [], require: [] };
  return await Succession.begin(connectPath(runtime, path)!, options);
}

/** Takes the endpoint's socket, as a process does that serves it. */
export function claim(succession: Succession): OwnedDescriptor {
  const { descriptor } = succession.endpoints.get("game")!;
  succession.endpoints.delete("game");
  return descriptor;
}

/** The same runtime where a call may have another result; null is the true one's. */
export function changed<K extends keyof Runtime["libc"]>(
  name: K,
  result: (...args: Parameters<Runtime["libc"][K]>) => ReturnType<Runtime["libc"][K]> | null,
): Runtime {
  const call = runtime.libc[name] as (...args: unknown[]) => unknown;
  const other = (...args: unknown[]) => (result as (...args: unknown[]) => unknown)(...args) ?? call(...args);
  return { ...runtime, libc: { ...runtime.libc, [name]: other } };
}
