/**
 * Paths that cannot be used, what a killed process leaves behind, and other
 * users at either end.
 */

import assert from "node:assert/strict";
import { chmod, chown, mkdir, readdir, readFile, rename, symlink, writeFile } from "node:fs/promises";
import { createServer } from "node:net";
import { dirname, join } from "node:path";
import { after, before, describe, test } from "node:test";
import { runtimes, startHttp } from "../support/server.ts";
import {
  assertReport,
  descriptorsOf,
  endOf,
  get,
  hasNoMoreDescriptors,
  onEvery,
  portOf,
  Scratch,
  skipReasonForUsers,
  stableDescriptors,
  startPeer,
  Target,
} from "./hostile_peers.ts";

/** The user id of `nobody`, who owns nothing. */
const nobody = 65_534;

describe("takeOver and a path that cannot be used", () => {
  const targets: Target[] = [];
  before(async () => {
    targets.push(...runtimes.map((runtime) => new Target(runtime)));
    // What a runtime opens once and keeps is open after this.
    await onEvery(targets, async (target) => {
      await using scratch = await Scratch.make();
      assert.equal((await target.attempt(scratch.path)).code, "none");
      await stableDescriptors(target.server.pid);
    });
  });
  after(() => Promise.all(targets.map((target) => target[Symbol.asyncDispose]())));

  /** A test: with that in the folder, the path is refused, and the folder stays as it is. */
  function refuses(
    prepare: (scratch: Scratch) => Promise<string>,
    sentence: RegExp,
    code = "ERR_TAKEOVER_PATH",
  ): () => Promise<void> {
    return () =>
      onEvery(targets, async (target) => {
        await using scratch = await Scratch.make();
        const path = await prepare(scratch);
        const [files, descriptors] = [await readdir(scratch.folder), await descriptorsOf(target.server.pid)];
        assertReport(await target.attempt(path), code, sentence);
        assert.deepEqual(await readdir(scratch.folder), files);
        await hasNoMoreDescriptors(target.server.pid, descriptors);
      });
  }

  test(
    "a folder: ERR_TAKEOVER_PATH",
    refuses(async ({ path }) => {
      await mkdir(path);
      return path;
    }, /it is a folder, expected a socket or nothing/),
  );

  test(
    "a file: ERR_TAKEOVER_PATH",
    refuses(async ({ path }) => {
      await writeFile(path, "precious");
      return path;
    }, /it is a file, expected a socket or nothing/),
  );

  test(
    "a symbolic link to nothing: ERR_TAKEOVER_PATH",
    refuses(async ({ path }) => {
      await symlink("/nowhere", path);
      return path;
    }, /it is a symbolic link/),
  );

  test("a symbolic link to a control socket: ERR_TAKEOVER_PATH", () =>
    onEvery(targets, async (target) => {
      await using scratch = await Scratch.make();
      await using incumbent = startHttp("node", { TAKEOVER: scratch.path, PORT: "0" });
      await incumbent.event("ready");
      const link = join(scratch.folder, "link");
      await symlink(scratch.path, link);
      assertReport(await target.attempt(link), "ERR_TAKEOVER_PATH", /it is a symbolic link/);
    }));

  test(
    "in a folder that does not exist: ERR_TAKEOVER_PATH",
    refuses(
      ({ folder }) => Promise.resolve(join(folder, "missing/control.sock")),
      /missing does not exist; create it/,
    ),
  );

  test(
    "in a folder that is a file: ERR_TAKEOVER_PATH",
    refuses(async ({ path }) => {
      await writeFile(path, "");
      return join(path, "control.sock");
    }, /./),
  );

  test(
    "of 108 bytes: ERR_TAKEOVER_PATH",
    refuses(
      ({ folder }) => Promise.resolve(join(folder, "x".repeat(107 - folder.length))),
      /it has 108 bytes, expected at most 107/,
    ),
  );

  test(
    "in a folder that every user can write: ERR_TAKEOVER_PATH",
    refuses(async ({ folder, path }) => {
      await chmod(folder, 0o777);
      return path;
    }, /every user can replace it.*chmod o-w/),
  );

  test(
    "behind a symbolic link to a folder that every user can write: ERR_TAKEOVER_PATH",
    refuses(async ({ folder }) => {
      const open = join(folder, "open");
      await mkdir(open);
      await chmod(open, 0o777);
      await symlink(open, join(folder, "link"));
      return join(folder, "link/control.sock");
    }, /every user can replace it/),
  );

  test(
    "whose lock file is a symbolic link: ERR_TAKEOVER_PATH",
    refuses(async ({ folder, path }) => {
      await writeFile(join(folder, "precious"), "");
      await symlink(join(folder, "precious"), `${path}.lock`);
      return path;
    }, /control\.sock/),
  );

  test(
    "whose lock file is a folder: ERR_TAKEOVER_PATH",
    refuses(async ({ path }) => {
      await mkdir(`${path}.lock`);
      return path;
    }, /control\.sock/),
  );

  test("and the example ends with exit status 1, and leaves the file", () =>
    onEvery(runtimes, async (runtime) => {
      await using scratch = await Scratch.make();
      await writeFile(scratch.path, "precious");
      await using server = startHttp(runtime, { TAKEOVER: scratch.path, PORT: "0" });
      assertReport(await server.event("refused"), "ERR_TAKEOVER_PATH", /it is a file/);
      assert.equal(await endOf(server), 1);
      assert.equal(await readFile(scratch.path, "utf8"), "precious");
    }));
});

describe("takeOver and what was left behind", () => {
  /** A test: with that in the folder, a server becomes the first, and cleans up after itself. */
  function becomesFirst(prepare: (scratch: Scratch) => Promise<string>): () => Promise<void> {
    return () =>
      onEvery(runtimes, async (runtime) => {
        await using scratch = await Scratch.make();
        const path = await prepare(scratch);
        await using server = startHttp(runtime, { TAKEOVER: path, PORT: "0" });
        const ready = await server.event("ready");
        assert.deepEqual([ready.generation, ready.inherited], [1, false]);
        assert.equal((await get(portOf(ready))).pid, server.pid);
        server.signal("SIGTERM");
        assert.equal(await endOf(server), 0, server.stderr);
        assert.deepEqual(await readdir(dirname(path)), []);
      });
  }

  test(
    "a socket on which nobody answers is replaced",
    becomesFirst(async ({ folder, path }) => {
      const other = join(folder, "other.sock");
      await bindAndForget(other, path);
      return path;
    }),
  );

  test(
    "a lock file that nobody holds is taken",
    becomesFirst(async ({ path }) => {
      await writeFile(`${path}.lock`, "");
      return path;
    }),
  );

  test(
    "a path of 107 bytes can be used",
    becomesFirst(({ folder }) => Promise.resolve(join(folder, "x".repeat(106 - folder.length)))),
  );

  test(
    "a folder that every user can write but not clear, like /tmp, can be used",
    becomesFirst(async ({ folder, path }) => {
      await chmod(folder, 0o1777);
      return path;
    }),
  );
});

describe("takeOver and another user", { skip: skipReasonForUsers }, () => {
  test("as successor: ERR_TAKEOVER_USER, and the incumbent serves on", () =>
    onEvery(runtimes, async (runtime) => {
      await using scratch = await Scratch.make();
      const env = { TAKEOVER: scratch.path, PORT: "0" };
      await using incumbent = startHttp(runtime, env);
      const port = portOf(await incumbent.event("ready"));
      // The mode of the path keeps others out already.
      await chmod(scratch.path, 0o666);
      await using stranger = startPeer(env, { user: nobody, misbehave: "hold:connect" });
      assertReport(
        await stranger.event("refused"),
        "ERR_TAKEOVER_USER",
        /the successor: it runs as user 65534, expected 0/,
      );
      assert.equal(await endOf(stranger), 0);
      assert.equal((await get(port)).pid, incumbent.pid);
    }));

  test("as successor, kept out by the mode of the path", async () => {
    await using scratch = await Scratch.make();
    const env = { TAKEOVER: scratch.path, PORT: "0" };
    await using incumbent = startHttp("node", env);
    await incumbent.event("ready");
    await using stranger = startPeer(env, { user: nobody });
    assert.equal(await endOf(stranger), 1);
    assert.match(stranger.stderr, /PermissionError/);
  });

  test("as incumbent: ERR_TAKEOVER_USER, and it serves on", () =>
    onEvery(runtimes, async (runtime) => {
      await using scratch = await Scratch.make();
      await chown(scratch.folder, nobody, nobody);
      const env = { TAKEOVER: scratch.path, PORT: "0" };
      await using stranger = startPeer(env, { user: nobody });
      const port = portOf(await stranger.event("ready"));
      await using successor = startHttp(runtime, env);
      assertReport(
        await successor.event("refused"),
        "ERR_TAKEOVER_USER",
        /the incumbent: it runs as user 65534, expected 0/,
      );
      assert.equal(await endOf(successor), 1);
      assert.equal((await get(port)).pid, stranger.pid);
    }));
});

/** Leaves a socket file of which nobody holds the socket any more. */
async function bindAndForget(bound: string, left: string): Promise<void> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(bound, resolve));
  // Node removes the path that it bound; under another name it stays.
  await rename(bound, left);
  await new Promise((resolve) => server.close(resolve));
}
