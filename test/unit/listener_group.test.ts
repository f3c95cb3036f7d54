import assert from "node:assert/strict";
import { test } from "node:test";
import type { Unopened } from "../../src/handover/binding.ts";
import { inheritedMembers, memberNames } from "../../src/handover/listener_group.ts";
import { fakeRuntime } from "./support.ts";

const runtime = fakeRuntime();

const at = (port: number, listening = true, more: { hostname?: string; isSupervised?: boolean } = {}) => {
  const { hostname = "127.0.0.1", isSupervised = false } = more;
  const address = { family: "inet", hostname, port };
  return { identity: { type: "stream", listening, address }, isSupervised } as unknown as Unopened;
};

test("memberNames keeps the names that came, and fills up with those that are free", () => {
  assert.deepEqual(memberNames("web", [], 3), ["web", "web.2", "web.3"]);
  assert.deepEqual(memberNames("web", ["web", "web.2", "web.4"], 2), ["web", "web.2"]);
  assert.deepEqual(memberNames("web", ["web.2", "web.4"], 5), ["web.2", "web.4", "web", "web.3", "web.5"]);
});

test("inheritedMembers takes a group's members at their address in the order of their numbers", () => {
  const offered = new Map([
    ["web.10", at(80)],
    ["web", at(80)],
    ["web.2", at(80)],
    ["web.3", at(81)],
    ["web.4", at(80, false)],
    ["web.1", at(80)],
    ["web.02", at(80)],
    ["web.2a", at(80)],
    ["webs", at(80)],
    ["other", at(80)],
  ]);
  const wanted = { family: "inet", hostname: "127.0.0.1", port: 80 } as const;
  assert.deepEqual(inheritedMembers(runtime, "web", offered, wanted).map(([name]) => name), ["web", "web.2", "web.10"]);
  const anyPort = inheritedMembers(runtime, "web", offered, { ...wanted, port: 0 });
  assert.deepEqual(anyPort.map(([name]) => name), ["web", "web.2", "web.10"]);
});

test("inheritedMembers takes those of a service manager wherever they are", () => {
  const elsewhere = { hostname: "127.0.0.2", isSupervised: true };
  const offered = new Map([["web", at(80, true, elsewhere)], ["web.2", at(80, true, elsewhere)], ["web.3", at(80)]]);
  const wanted = { family: "inet", hostname: "127.0.0.1", port: 80 } as const;
  assert.deepEqual(inheritedMembers(runtime, "web", offered, wanted).map(([name]) => name), ["web", "web.2"]);
});
