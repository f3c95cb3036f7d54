/**
 * Handshakes that stay half open: nftables drops a client's last ACK and
 * whatever it sends behind it, until it is told to let it through. The client
 * has its SYN-ACK and believes that it is connected; the listener has neither a
 * connection nor forgotten it (SYN_RECV), and the client sends again.
 *
 * @module
 */

import { spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";

/** Ours alone, and of this network namespace. */
const table = "inet socket_takeover_half_open";

/** Of a request that the kernel has for a listener (include/net/tcp_states.h). */
const SYN_RECV = "03";

/** Why handshakes cannot be kept half open here, or false. */
export function whyNotHalfOpen(): string | false {
  const { error, status, stderr } = spawnSync("nft", ["list", "tables"], { encoding: "utf8" });
  if (error) return "nft is not installed (Debian's package nftables)";
  return status === 0 ? false : `nft may not be used here: ${stderr.trim()}`;
}

/** Drops what would complete handshakes with a port, from when it is made until it is disposed of. */
export class HalfOpen implements Disposable {
  readonly #port: number;
  #isOver = false;

  constructor(port: number) {
    this.#port = port;
    nft(`table ${table} {
      chain input {
        type filter hook input priority filter
        tcp dport ${port} tcp flags & (syn | ack) == ack drop
      }
    }`);
  }

  /** How many handshakes the kernel has half open for the port (proc(5), /proc/net/tcp). */
  get count(): number {
    const port = this.#port.toString(16).toUpperCase().padStart(4, "0");
    const states = readFileSync("/proc/net/tcp", "utf8").matchAll(/^ *\d+: [0-9A-F]+:([0-9A-F]+) \S+ ([0-9A-F]{2}) /gm);
    return [...states].filter(([, at, state]) => at === port && state === SYN_RECV).length;
  }

  /** Lets everything through: what a client sends again arrives. */
  [Symbol.dispose](): void {
    if (this.#isOver) return;
    this.#isOver = true;
    nft(`delete table ${table}`);
  }
}

function nft(commands: string): void {
  const { error, status, stderr } = spawnSync("nft", ["-f", "-"], { input: commands, encoding: "utf8" });
  if (error) throw error;
  if (status !== 0) throw new Error(`nft: ${stderr}`);
}
