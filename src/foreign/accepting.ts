/**
 * Another process's accepting, stopped and started from here (Linux). Its epoll
 * instances are copied, and what it registered for its listeners is taken out
 * of them; connections then wait in the queue, for whoever else has the socket.
 *
 * The kernel knows a registration by the open socket and the descriptor it had
 * in epoll_ctl(2) (fs/eventpoll.c, ep_find). So the socket has to have that
 * very number here too, which is possible only if nothing else of this process
 * has it: another thread of the runtime may use what is there at any moment.
 * That is why the numbers are kept as soon as they are known.
 *
 * @module
 */

import { OwnedDescriptor, owning } from "../sockets/descriptors.ts";
import { parseRegistrations, register, type Registration, unregister } from "../sockets/event_loop.ts";
import type { ForeignProcess } from "./process.ts";
import type { Runtime } from "../runtime.ts";

/** A registration, its numbers those of the process that has it. */
interface ForeignRegistration {
  readonly process: ForeignProcess;
  readonly registration: Registration;
}

/** How often it is looked again whether a process has put back what was taken out. */
const passCount = 5;

/** Whether some processes accept on some sockets. */
export class Accepting implements Disposable {
  readonly #runtime: Runtime;
  readonly #links: ReadonlySet<string>;
  /** The sockets under the numbers that they have in the other process. */
  readonly #kept = new Map<number, { readonly link: string; readonly descriptor: OwnedDescriptor }>();
  readonly #removed: ForeignRegistration[] = [];

  /** @param links The sockets, as /proc calls them. */
  constructor(runtime: Runtime, links: ReadonlySet<string>) {
    this.#runtime = runtime;
    this.#links = links;
  }

  /**
   * Keeps the numbers that {@linkcode pause} will need, as far as they are free.
   *
   * @returns Whether there are any, and all were free.
   */
  keepNumbers(processes: readonly ForeignProcess[]): boolean {
    const found = this.#registrationsOf(processes);
    return found.length > 0 && found.map((each) => this.#keep(each)).every(Boolean);
  }

  /**
   * Takes the sockets out of the processes' epoll instances; what is out stays
   * out.
   *
   * @returns Whether they accept nothing more. False when they have no epoll
   *   instance for the sockets, or a number is not free; nothing has changed then.
   */
  pause(processes: readonly ForeignProcess[]): boolean {
    for (let pass = 0; pass < passCount; pass++) {
      const found = this.#registrationsOf(processes);
      if (found.length === 0) return this.#removed.length > 0;
      if (!found.map((each) => this.#keep(each)).every(Boolean)) break;
      for (const each of found) if (this.#change(each, unregister)) this.#removed.push(each);
    }
    this.resume();
    return false;
  }

  /** Puts back what was taken out, where the process still runs. What fails is still out, and can be put back later. */
  resume(): void {
    for (; this.#removed.length > 0; this.#removed.shift()) this.#change(this.#removed[0]!, register);
  }

  /** Gives the numbers up; what is out stays out. */
  [Symbol.dispose](): void {
    for (const { descriptor } of this.#kept.values()) descriptor[Symbol.dispose]();
    this.#kept.clear();
  }

  #registrationsOf(processes: readonly ForeignProcess[]): ForeignRegistration[] {
    return processes.filter((process) => process.alive).flatMap((process) => {
      const table = process.descriptors();
      const epolls = [...table].filter(([, link]) => link === "anon_inode:[eventpoll]").map(([number]) => number);
      return epolls.flatMap((epoll) => parseRegistrations(epoll, process.fdinfo(epoll)))
        .filter(({ descriptor }) => this.#links.has(table.get(descriptor) ?? ""))
        .map((registration) => ({ process, registration }));
    });
  }

  /** Puts the socket under the number it has there, if that is free. */
  #keep({ process, registration: { descriptor: number } }: ForeignRegistration): boolean {
    const link = process.link(number);
    const kept = this.#kept.get(number);
    if (kept) return kept.link === link;
    const copy = process.copy(number);
    if (!copy) return false;
    return owning(copy, (socket) => {
      if (socket.number === number) socket.take();
      else if (!this.#duplicateAt(socket.number, number)) return false;
      this.#kept.set(number, { link, descriptor: new OwnedDescriptor(this.#runtime, number) });
      return true;
    });
  }

  /** The lowest free number from there on is that number, or it is not free (fcntl(2), F_DUPFD). */
  #duplicateAt(descriptor: number, number: number): boolean {
    const { abi, libc } = this.#runtime;
    const result = libc.fcntl(descriptor, abi.constants.F_DUPFD_CLOEXEC, number);
    if (result >= 0 && result !== number) libc.close(result);
    return result === number;
  }

  #change(
    { process, registration }: ForeignRegistration,
    change: (runtime: Runtime, registrations: readonly Registration[]) => readonly Registration[] | void,
  ): boolean {
    const epoll = process.copy(registration.epoll);
    if (!epoll) return false;
    return owning(epoll, ({ number }) => {
      const changed = change(this.#runtime, [{ ...registration, epoll: number }]);
      return changed === undefined || changed.length > 0;
    });
  }
}
