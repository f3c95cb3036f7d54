/**
 * What the kernel does for flows of datagrams, whichever way; types only.
 *
 * @module
 */

import type { InetAddress } from "../c/sockaddr.ts";
import type { Limits } from "../limits.ts";
import type { Runtime } from "../runtime.ts";
import type { OwnedDescriptor } from "../sockets/descriptors.ts";
import type { SocketIdentity } from "../sockets/socket.ts";
import type { FlowOptions } from "./flow_options.ts";

/** What an endpoint's flows are, to whoever arranges them. */
export interface FlowHost {
  readonly runtime: Runtime;
  readonly limits: Limits;
  readonly name: string;
  readonly generation: number;
  readonly options: FlowOptions;
  /** The application's callback; what it throws is told, and nothing else. */
  readonly datagram: (bytes: Uint8Array, peer: InetAddress) => void;
  /** Hears of what the application should know, and nothing depends on. */
  readonly failed: (error: unknown) => void;
  /** Whether the process of an older generation is there. */
  isThere(generation: number): boolean;
  /** Hears that flows have ended. */
  changed(): void;
}

/** A socket of a group as it travels. */
export interface TravellingMember {
  /** 0 for one that is nobody's yet. */
  readonly generation: number;
  readonly channel: OwnedDescriptor;
  /** Its place in the kernel's order; null from a process that does not say it: its place among the others. */
  readonly slot: number | null;
}

/**
 * What the kernel does for the flows of an endpoint, step by step through a
 * hand-over. Where the newest process forwards, it does nothing.
 */
export interface KernelFlows {
  /** Whether this process reads its socket on beside the successor that it has offered another. */
  readonly keepsSocket: boolean;
  /** Flows that this process still serves beside its successor. */
  readonly count: number;
  /** This process is ready: it has what is nobody else's. */
  serve(): void;
  /** An older process has ended: what was its is the newest's. */
  olderEnded(): void;
  /** What a successor is offered in place of the endpoint's own socket; null for that one. */
  spare(): { readonly descriptor: number; readonly identity: SocketIdentity } | null;
  /** Before a successor is offered anything: rejects when it cannot be told what belongs to whom. */
  check(): Promise<void>;
  /** Copies of the other sockets that a successor needs, which the caller closes. */
  travel(): TravellingMember[];
  /** A successor is ready, and waits. Rejects when it has to be refused. */
  readying(): Promise<void>;
  /** It reads from here on; the endpoint is paused, unless it keeps its socket. */
  lease(): void;
  /** It was lost. */
  resume(): void;
  /** It is there to stay. */
  release(): void;
  /** The flow of a peer has ended, or all have. */
  end(peer?: InetAddress): void;
  /** This process's part has ended. */
  close(): void;
}
