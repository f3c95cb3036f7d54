/**
 * TLS servers on Node: a session of the old process resumes with the new one.
 *
 * @module
 */

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import test from "node:test";
import { connect, type TLSSocket } from "node:tls";
import { Server } from "../support/server.ts";

const port = 24_771;

/** One request, and the session's ticket, if there came one. */
async function ask(session?: Buffer | undefined): Promise<{ generation: string; isResumed: boolean; session?: Buffer | undefined }> {
  const socket = connect({ host: "127.0.0.1", port, rejectUnauthorized: false, ...session && { session } });
  const tickets: Buffer[] = [];
  socket.on("session", (ticket) => tickets.push(ticket));
  const [generation, isResumed] = await Promise.all([answered(socket), isReused(socket)]);
  return { generation, isResumed, session: tickets[0] };
}

/** A socket that has ended says so no more. */
function isReused(socket: TLSSocket): Promise<boolean> {
  return new Promise((resolve) => socket.once("secureConnect", () => resolve(socket.isSessionReused())));
}

async function answered(socket: TLSSocket): Promise<string> {
  socket.write("GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
  let text = "";
  for await (const chunk of socket) text += chunk;
  return text.split("\r\n\r\n")[1]!.replace(/^\w+\r\n(\w+)[\s\S]*$/, "$1");
}

test("listen gives a TLS server its predecessor's ticket keys: sessions of clients resume", async () => {
  const folder = mkdtempSync(join(tmpdir(), "takeover-test-"));
  const [KEY, CERTIFICATE] = [join(folder, "key.pem"), join(folder, "certificate.pem")];
  const made = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
  execFileSync("openssl", [...made, "-keyout", KEY, "-out", CERTIFICATE, "-subj", "/CN=localhost"], { stdio: "ignore" });
  const env = { PORT: `${port}`, TAKEOVER: join(folder, "takeover.sock"), KEY, CERTIFICATE };
  try {
    await using first = new Server("node", "test/fixtures/tls.ts", env);
    await first.event("ready");
    const begun = await ask();
    assert.deepEqual([begun.generation, begun.isResumed, begun.session !== undefined], ["1", false, true]);
    const again = await ask(begun.session);
    assert.deepEqual([again.generation, again.isResumed], ["1", true]);

    await using second = new Server("node", "test/fixtures/tls.ts", env);
    await second.event("ready");
    const resumed = await ask(begun.session);
    assert.deepEqual([resumed.generation, resumed.isResumed], ["2", true]);
    // One that knows nothing of the first process's keys does not resume.
    await first.ended;
    second.signal("SIGKILL");
    await second.ended;
    await using stranger = new Server("node", "test/fixtures/tls.ts", env);
    await stranger.event("ready");
    assert.equal((await ask(begun.session)).isResumed, false);
  } finally {
    rmSync(folder, { recursive: true });
  }
});
