import assert from "node:assert/strict";
import test from "node:test";
import { Emitter } from "../../src/handover/events.ts";
import { runHere } from "./children.ts";

const ready = { generation: 1, inherited: [] };

test("Emitter.emit calls the listeners of the type, in the order in which they came", () => {
  const emitter = new Emitter();
  const heard: unknown[] = [];
  emitter.on("ready", (event) => heard.push("first", event));
  emitter.on("ready", () => heard.push("second"));
  emitter.on("drained", () => heard.push("drained"));
  emitter.emit("ready", ready);
  assert.deepEqual(heard, ["first", ready, "second"]);
});

test("Emitter.emit does nothing when nobody listens", () => {
  assert.doesNotThrow(() => new Emitter().emit("ready", ready));
});

test("Emitter.on gives a function that takes the listener out", () => {
  const emitter = new Emitter();
  const heard: string[] = [];
  const off = emitter.on("ready", () => heard.push("first"));
  emitter.on("ready", () => heard.push("second"));
  off();
  off();
  emitter.emit("ready", ready);
  assert.deepEqual(heard, ["second"]);
});

test("Emitter.on lets a listener take itself out while it is called", () => {
  const emitter = new Emitter();
  const heard: string[] = [];
  const off = emitter.on("ready", () => {
    heard.push("once");
    off();
  });
  emitter.on("ready", () => heard.push("always"));
  emitter.emit("ready", ready);
  emitter.emit("ready", ready);
  assert.deepEqual(heard, ["once", "always", "always"]);
});

test("Emitter.emit calls the others when a listener throws, which becomes an unhandled rejection", async () => {
  const { stdout, status } = await runHere(`
    import process from "node:process";
    import { Emitter } from "${new URL("../../src/handover/events.ts", import.meta.url)}";
    process.on("unhandledRejection", (error) => console.log("rejection " + error.message));
    const emitter = new Emitter();
    emitter.on("ready", () => { throw new Error("thrown"); });
    emitter.on("ready", () => console.log("second"));
    emitter.emit("ready", {});
    console.log("emitted");
  `);
  assert.deepEqual([status, ...stdout.trim().split("\n")], [0, "second", "emitted", "rejection thrown"]);
});
