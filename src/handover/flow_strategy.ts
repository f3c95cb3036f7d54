/**
 * Which strategy an endpoint's flows have: the incumbent's, where there is one,
 * else the best that the application has means for and this machine gives.
 *
 * @module
 */

import { errnoOf } from "../c/errno.ts";
import { formatAddress } from "../c/sockaddr.ts";
import { isSystemError, SystemError, TakeoverError } from "../errors.ts";
import type { Runtime } from "../runtime.ts";
import { tryPinning } from "../steering/pinned.ts";
import { ReuseportGroup } from "../steering/reuseport.ts";
import type { Unopened } from "./binding.ts";
import { reported } from "./events.ts";
import { type FlowOptions, type FlowStrategy, hasMeans, means, type RefusedStrategy, strategies } from "./flow_options.ts";
import { bindRefusals, tryMember, trySteering } from "./steered.ts";

/** Where an endpoint's socket is from: the incumbent, somewhere else, or bound right now. */
export type SocketOrigin = "inherited" | "given" | "new";

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
  const group = new ReuseportGroup(runtime, [descriptor.number]);
  checkAlone(group);
  try {
    if (strategy === "connected") return tryPinning(runtime, descriptor.number);
    trySteering(runtime, options.tag!);
    tryMember(group);
  } catch (error) {
    detach(group);
    throw error;
  }
}

/** Whoever else joins is to get a share again. Linux before 5.3 has no way to it. */
function detach(group: ReuseportGroup): void {
  try {
    group.release();
  } catch (error) {
    if (!(error instanceof SystemError)) throw error;
  }
}

/** Without tables to ask nobody can tell. */
function checkAlone(group: ReuseportGroup): void {
  try {
    group.check();
  } catch (error) {
    if (!(error instanceof TakeoverError && error.code === "ERR_TAKEOVER_UNSUPPORTED")) throw error;
  }
}

/** Two that begin at the same moment have both found the address free, and see each other here. */
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
  return error instanceof TakeoverError || isSystemError(error, ...bindRefusals);
}
