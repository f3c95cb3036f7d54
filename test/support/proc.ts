/**
 * What the kernel says of a process: /proc/PID (proc(5)).
 *
 * @module
 */

import { existsSync, readdirSync, readFileSync, readlinkSync } from "node:fs";

/** A process's descriptors by number: what each is. */
export function descriptorsOf(pid: number): Map<number, string> {
  const table = new Map<number, string>();
  for (const name of readdirSync(`/proc/${pid}/fd`)) {
    try {
      table.set(Number(name), readlinkSync(`/proc/${pid}/fd/${name}`));
    } catch {
      // Closed between the two calls.
    }
  }
  return table;
}

/** How many descriptors there are of each kind; socket and pipe numbers left out. */
export function descriptorKinds(pid: number): Record<string, number> {
  const kinds: Record<string, number> = {};
  for (const target of descriptorsOf(pid).values()) {
    const kind = target.replace(/:\[\d+\]$/, "");
    kinds[kind] = (kinds[kind] ?? 0) + 1;
  }
  return kinds;
}

/** How many registrations the process's epoll instances have. */
export function registrationCount(pid: number): number {
  let count = 0;
  for (const [number, target] of descriptorsOf(pid)) {
    if (!target.includes("[eventpoll]")) continue;
    count += [...readFileSync(`/proc/${pid}/fdinfo/${number}`, "utf8").matchAll(/^tfd:/gm)].length;
  }
  return count;
}

/** Sockets that a child process would inherit: those without O_CLOEXEC, standard streams apart. */
export function inheritableSockets(pid: number): number[] {
  return [...descriptorsOf(pid)]
    .filter(([number, target]) => number > 2 && target.startsWith("socket:"))
    .map(([number]) => number)
    .filter((number) => {
      const flags = /^flags:\s+(\d+)$/m.exec(readFileSync(`/proc/${pid}/fdinfo/${number}`, "utf8"))!;
      return (parseInt(flags[1]!, 8) & 0o2000000) === 0;
    });
}

/** Whether a signal or a tracer has stopped it; false when it has gone. */
export function isStoppedNow(pid: number): boolean {
  try {
    return /^State:\s+t/im.test(readFileSync(`/proc/${pid}/status`, "utf8"));
  } catch {
    return false;
  }
}

/** Processor time so far, in clock ticks of 10 ms. */
export function cpuTicks(pid: number): number {
  const fields = readFileSync(`/proc/${pid}/stat`, "utf8").split(") ")[1]!.split(" ");
  return Number(fields[11]) + Number(fields[12]);
}

/** Whether it has children. */
export function childCount(pid: number): number {
  const children = `/proc/${pid}/task/${pid}/children`;
  return existsSync(children) ? readFileSync(children, "utf8").split(" ").filter(Boolean).length : 0;
}

/** Sockets in use in this network namespace, by protocol, and Unix sockets. */
export function kernelSockets(): { readonly tcp: number; readonly unix: number } {
  const tcp = /^TCP: inuse (\d+)/m.exec(readFileSync("/proc/net/sockstat", "utf8"))!;
  return { tcp: Number(tcp[1]), unix: readFileSync("/proc/net/unix", "utf8").trim().split("\n").length };
}
