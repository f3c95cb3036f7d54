/**
 * Incumbents for hostile successors: one on each runtime, that live through all
 * the tests of a suite and have to be the same after each.
 *
 * @module
 */

import assert from "node:assert/strict";
import { after, before } from "node:test";
import { type RuntimeName, runtimes, type Server, type ServerEvent, startHttp } from "../support/server.ts";
import {
  assertReport,
  descriptorsOf,
  endOf,
  get,
  hasNoMoreDescriptors,
  onEvery,
  portOf,
  Scratch,
  stableDescriptors,
  startPeer,
  until,
} from "./hostile_peers.ts";

/** An incumbent on one runtime. */
export interface Scene extends AsyncDisposable {
  readonly runtime: RuntimeName;
  readonly server: Server;
  readonly env: Record<string, string>;
  readonly port: number;
}

async function incumbentOn(runtime: RuntimeName): Promise<Scene> {
  await using stack = new AsyncDisposableStack();
  const scratch = stack.use(await Scratch.make());
  const env = { TAKEOVER: scratch.path, PORT: "0", SETTLE_MS: "100", DRAIN_MS: "5000" };
  const server = stack.use(startHttp(runtime, env));
  const port = portOf(await server.event("ready"));
  const scene = { runtime, server, env, port };
  // What a runtime opens once and keeps is open after this.
  await outcomeOf(scene, "close:received");
  await outcomeOf(scene, "send-raw:connect:http");
  await stableDescriptors(server.pid);
  const held = stack.move();
  return { ...scene, [Symbol.asyncDispose]: () => held.disposeAsync() };
}

/** Waits until the incumbent has said that it accepts again, and why. */
export async function hasResumed({ server }: Scene, code: string): Promise<void> {
  const isThere = await until(
    () => Promise.resolve(server.events.some((event) => event.event === "resumed" && event.code === code)),
    (found) => found,
  );
  assert.ok(isThere, `${server.runtime} did not say resumed with ${code}`);
}

/** Lets a peer misbehave to its end. */
async function outcomeOf(
  { env, port }: Pick<Scene, "env" | "port">,
  misbehave: string,
): Promise<ServerEvent | undefined> {
  await using peer = startPeer(env, { misbehave });
  assert.equal(await endOf(peer), 0, peer.stderr);
  await get(port);
  return peer.events.at(-1)?.event === "closed" ? peer.events.at(-2) : peer.events.at(-1);
}

/** The same, and afterwards the incumbent is as it was. */
export async function harmless(scene: Scene, misbehave: string): Promise<ServerEvent | undefined> {
  const descriptors = await descriptorsOf(scene.server.pid);
  const outcome = await outcomeOf(scene, misbehave);
  await hasNoMoreDescriptors(scene.server.pid, descriptors);
  return outcome;
}

/** The same, and the incumbent has refused with this code and this sentence. */
export async function assertRefusal(scene: Scene, misbehave: string, code: string, sentence: RegExp): Promise<void> {
  const refusal = await harmless(scene, misbehave);
  assert.equal(refusal?.event, "refused", `${misbehave}: ${JSON.stringify(refusal)}`);
  assertReport(refusal!, code, sentence);
}

/** Three incumbents, one a runtime, for the tests of a suite. */
export function incumbents(): Scene[] {
  const scenes: Scene[] = [];
  before(() => onEvery(runtimes, async (runtime) => void scenes.push(await incumbentOn(runtime))));
  after(() => Promise.all(scenes.map((scene) => scene[Symbol.asyncDispose]())));
  return scenes;
}
