/**
 * Which strategy an endpoint's flows have: the incumbent's, where there is one,
 * else the best that the application has means for and this machine gives.
 *
 * @module
 */

import { errnoOf } from "../c/errno.ts";
import { formatAddress, type InetAddress } from "../c/sockaddr.ts";
import { isSystemError, SystemError, TakeoverError } from "../errors.ts";
import type { Limits } from "../limits.ts";
import type { Runtime } from "../runtime.ts";
import type { OwnedDescriptor } from "../sockets/descriptors.ts";
import type { SocketIdentity } from "../sockets/socket.ts";
import { tryPinning } from "../steering/pinned.ts";
import { ReuseportGroup } from "../steering/reuseport.ts";
import type { Unopened } from "./binding.ts";
import { reported } from "./events.ts";
import { type FlowOptions, type FlowStrategy, hasMeans, means, strategies } from "./flow_options.ts";
import { trySteering } from "./steered.ts";

/** Where an endpoint's socket is from: the incumbent, somewhere else, or bound right now. */
export type SocketOrigin = "inherited" | "given" | "new";

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
  /** Whether this process reads its socket on when it has a successor, which has another. */
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

/** A strategy that could not be had, and why. */
export interface RefusedStrategy {
  /** Which. */
  readonly strategy: FlowStrategy;
  /** The code of the error. */
  readonly code: string;
  /** Its message. */
  readonly message: string;
}

/** What was chosen. */
export interface ChosenStrategy {
  readonly strategy: FlowStrategy;
  /** What would have been better. */
  readonly refused: readonly RefusedStrategy[];
}

/**
 * Chooses for a socket that nobody has flows of yet.
 *
 * @param isShared Whether the application itself lets others bind the address.
 * @throws {TakeoverError} The last refusal, when none is left.
 * @throws {SystemError} `EADDRINUSE` when another program of this user has the address.
 */
export function chooseStrategy(
  runtime: Runtime,
  socket: Unopened,
  origin: SocketOrigin,
  options: FlowOptions,
  isShared: boolean,
): ChosenStrategy {
  const wanted = strategies.filter((each) => hasMeans(options, each));
  if (origin === "new" && !isShared && wanted[0] !== "forwarded") checkNobodyElse(runtime, socket);
  const refused: RefusedStrategy[] = [];
  let last: unknown = null;
  for (const strategy of wanted) {
    try {
      attempt(runtime, strategy, socket, options);
      return { strategy, refused };
    } catch (error) {
      if (!isRefusal(error)) throw error;
      refused.push({ strategy, ...reported(error) });
      last = error;
    }
  }
  throw last;
}

/**
 * Takes an incumbent's strategy: what is there goes on.
 *
 * @param strategy As the incumbent says; nothing has been taken of it yet.
 * @throws {TakeoverError} `ERR_TAKEOVER_STATE` when the application has no means for it; the machine's refusal.
 */
export function inheritedStrategy(
  runtime: Runtime,
  name: string,
  strategy: string,
  options: FlowOptions,
): ChosenStrategy {
  const known = strategies.find((each) => each === strategy);
  if (!known || !hasMeans(options, known)) throw withoutMeans(name, strategy);
  if (known === "steered") trySteering(runtime, options.tag!);
  return { strategy: known, refused: [] };
}

/** The error for a successor that would not go on with what its incumbent does. */
export function withoutMeans(name: string, strategy: string): TakeoverError {
  const known = strategies.find((each) => each === strategy);
  const expected = known ? `flows with the option ${means[known]}` : `one of ${strategies.join(", ")}`;
  const remedy = known ? "add it" : "go through a release that knows both";
  return new TakeoverError(
    "ERR_TAKEOVER_STATE",
    `Cannot bind ${JSON.stringify(name)}: the incumbent's flows are ${JSON.stringify(strategy.slice(0, 80))}, ` +
      `expected ${expected}; ${remedy}. The incumbent serves on`,
  );
}

function attempt(runtime: Runtime, strategy: FlowStrategy, { descriptor }: Unopened, options: FlowOptions): void {
  if (strategy === "forwarded") return;
  // One throws for a socket that is in no group, the other for a group with others in it, whose order nobody knows.
  checkAlone(new ReuseportGroup(runtime, [descriptor.number]));
  if (strategy === "steered") trySteering(runtime, options.tag!);
  else tryPinning(runtime, descriptor.number);
}

/** Without tables to ask nobody can tell. */
function checkAlone(group: ReuseportGroup): void {
  try {
    group.check();
  } catch (error) {
    if (!(error instanceof TakeoverError && error.code === "ERR_TAKEOVER_UNSUPPORTED")) throw error;
  }
}

/** SO_REUSEPORT is for the strategy alone: without it a second server of this user would find the address taken. */
function checkNobodyElse(runtime: Runtime, { descriptor, identity }: Unopened): void {
  const { platform } = runtime.abi;
  if (platform !== "linux") return;
  try {
    checkAlone(new ReuseportGroup(runtime, [descriptor.number]));
  } catch (error) {
    if (!(error instanceof TakeoverError && error.code === "ERR_TAKEOVER_STATE")) throw error;
    throw new SystemError("EADDRINUSE", -errnoOf(platform, "EADDRINUSE"), "bind", formatAddress(identity.address));
  }
}

/** What the machine or the socket does not give, as opposed to what is wrong. */
function isRefusal(error: unknown): boolean {
  return error instanceof TakeoverError || isSystemError(error, "EACCES", "EPERM", "EADDRINUSE");
}
