/**
 * What became of a connection after it was sent: a process that is killed must
 * not take it along.
 *
 * @module
 */

import { type FdChannel, openRuntime, type OwnedDescriptor, waitReadable } from "../../mod.ts";

/** How long a process may take to be gone after its sockets have closed. */
const endingMs = 200;

/** Linux's TCP_INFO (tcp(7)) and in it tcpi_data_segs_out: what was sent with data, SYN and FIN apart. */
const IPPROTO_TCP = 6;
const TCP_INFO = 11;
const sentOffset = 156;

/**
 * Waits until the receiver of a connection closes the channel. It closes
 * without having read the message when it is killed or ends (`ECONNRESET`): the
 * connection is the sender's still. When it has read it, and is gone before
 * anything was sent to the client, nobody else will answer.
 *
 * @param channel On which the connection was sent, and nothing else.
 * @param connection The sender's copy.
 * @param limitMs After that long it is the receiver's.
 * @throws {SystemError} `ECONNRESET`.
 */
export async function whoAnswers(
  channel: FdChannel,
  connection: OwnedDescriptor,
  limitMs: number,
): Promise<"forwarded" | "returned"> {
  try {
    using _confirmation = await channel.receive({ timeoutMs: limitMs });
  } catch (error) {
    if ((error as { code?: string }).code === "ERR_TAKEOVER_TIMEOUT") return "forwarded";
    throw error;
  }
  const isLost = await sentCount(connection) === 0 && await hasEnded(channel) && await sentCount(connection) === 0;
  return isLost ? "returned" : "forwarded";
}

/** How many segments with data this connection has sent, from whichever process. */
async function sentCount({ number }: OwnedDescriptor): Promise<number> {
  const { libc } = await openRuntime();
  const info = new Uint8Array(new ArrayBuffer(160));
  const size = new Uint8Array(Uint32Array.of(info.length).buffer);
  if (libc.getsockopt(number, IPPROTO_TCP, TCP_INFO, info, size) < 0) return 0;
  return new DataView(info.buffer).getUint32(sentOffset, true);
}

/** Whether the process that listens at the other end is gone, or about to be. */
async function hasEnded(channel: FdChannel): Promise<boolean> {
  try {
    using process = channel.peerPidfd();
    await waitReadable(process.number, { timeoutMs: endingMs });
    return true;
  } catch {
    return false; // It goes on, or this kernel cannot tell (before Linux 6.5).
  }
}
