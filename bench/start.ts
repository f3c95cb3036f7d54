/**
 * What the library costs a server that nobody replaces: until it listens, in
 * memory, and in processor time while it does nothing.
 *
 * @module
 */

import { existsSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { commandFor, root } from "../test/support/binaries.mjs";
import { type RuntimeName, runtimes, Server } from "../test/support/server.ts";
import {
  interleave,
  median,
  memoryOf,
  type Options,
  processorTimeOf,
  rounded,
  type Row,
  Scratch,
  sleep,
  type Table,
} from "./support.ts";

const script = "bench/servers/hello.ts";
const built = join(root, "dist/mod.js");

/** Until the first garbage is gone and the compilers are quiet. */
const restMs = 1_000;

/** A server as it is, with the library's sources, and with what npm installs. */
type Variant = "without" | "sources" | "built";

interface Contestant {
  readonly runtime: RuntimeName;
  readonly variant: Variant;
}

interface Figures {
  readonly openMs: number;
  readonly importMs: number;
  readonly bindMs: number;
  readonly residentKb: number;
  readonly idleMs: number;
}

export async function run({ quick }: Options): Promise<readonly Table[]> {
  const [roundCount, idleForMs] = quick ? [2, 300] : [9, 2_000];
  const variants: Variant[] = ["without", "sources"];
  if (existsSync(built)) variants.push("built");
  const contestants = runtimes.flatMap((runtime) => variants.map((variant) => ({ runtime, variant })));
  using scratch = new Scratch();
  const measured = new Map<Contestant, Figures[]>(contestants.map((contestant) => [contestant, []]));
  for (let round = 0; round < roundCount; round++) {
    for (const [contestant, figures] of await playRound(contestants, scratch, quick ? 200 : restMs, idleForMs)) {
      measured.get(contestant)!.push(figures);
    }
  }
  const title = `start: ${roundCount} rounds, each starts every server once; medians`;
  const notes = [
    "ratio: to the same runtime without the library; open: from spawn until the server listens",
    "import: mod.ts and what it imports; bind: openRuntime(), which loads libc; both are part of open",
    `idle: processor time of all threads over ${idleForMs} ms, from ${quick ? 200 : restMs} ms after the last start on`,
  ];
  if (!existsSync(built)) notes.push("SKIPPED the built module: dist/ is not there, run npm run build");
  return [{ title, rows: contestants.map((contestant) => rowOf(contestant, measured)), notes }];
}

/** Starts all, lets them rest side by side, asks /proc, and ends them. */
async function playRound(
  contestants: readonly Contestant[],
  scratch: Scratch,
  forMs: number,
  idleForMs: number,
): Promise<Map<Contestant, Figures>> {
  await using stack = new AsyncDisposableStack();
  const started = await interleave(contestants, 1, async (contestant) => {
    const start = performance.now();
    const server = stack.use(startServer(contestant, scratch));
    const { importMs = 0, bindMs = 0 } = await server.event("open") as { importMs?: number; bindMs?: number };
    return { server, openMs: performance.now() - start, importMs, bindMs };
  });
  await sleep(forMs);
  const processes = [...started].map(([contestant, [process]]) => ({ contestant, ...process! }));
  const before = processes.map(({ server }) => processorTimeOf(server.pid));
  await sleep(idleForMs);
  return new Map(processes.map(({ contestant, server, ...times }, at) => [contestant, {
    ...times,
    residentKb: memoryOf(server.pid, "VmRSS"),
    idleMs: processorTimeOf(server.pid) - before[at]!,
  }]));
}

function startServer({ runtime, variant }: Contestant, scratch: Scratch): Server {
  if (variant === "without") return new Server(runtime, script, {});
  const env = { TAKEOVER: join(scratch.path, `${runtime} ${variant} ${performance.now()}.sock`) };
  if (variant === "sources") return new Server(runtime, script, env);
  // Deno wants a permission for a module whose name is not in the program.
  const command = commandFor(runtime, join(root, script))
    .flatMap((word) => word === "run" ? [word, "--allow-read"] : [word]);
  return new Server(runtime, script, { ...env, MODULE: pathToFileURL(built).href }, command);
}

function rowOf(contestant: Contestant, measured: Map<Contestant, Figures[]>): Row {
  const reference = [...measured.keys()]
    .find(({ runtime, variant }) => runtime === contestant.runtime && variant === "without")!;
  const of = (which: Contestant, field: keyof Figures) => median(measured.get(which)!.map((figures) => figures[field]));
  const ratio = (field: keyof Figures) => rounded(of(contestant, field) / of(reference, field), 2);
  return {
    runtime: contestant.runtime,
    library: contestant.variant,
    "open ms": rounded(of(contestant, "openMs"), 1),
    "open ratio": ratio("openMs"),
    "import ms": rounded(of(contestant, "importMs"), 1),
    "bind ms": rounded(of(contestant, "bindMs"), 1),
    "RSS MB": rounded(of(contestant, "residentKb") / 1_024, 1),
    "RSS ratio": ratio("residentKb"),
    "idle cpu ms": rounded(of(contestant, "idleMs"), 2),
    "idle more ms": rounded(of(contestant, "idleMs") - of(reference, "idleMs"), 2),
  };
}
