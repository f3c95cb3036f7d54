/**
 * The Unix paths of this process, each with the inode that it named when it was
 * taken: what is there later may be somebody else's.
 *
 * @module
 */

import type { SocketAddress } from "../c/sockaddr.ts";
import { inodeAt, unlinkIfSame } from "../channels/unix_path.ts";
import { SystemError } from "../errors.ts";
import type { Endpoint } from "../natives/endpoint.ts";
import type { Runtime } from "../runtime.ts";

/** Paths that are removed when this process ends its part. */
export class OwnPaths {
  readonly #runtime: Runtime;
  readonly #inodes = new Map<string, number | null>();

  constructor(runtime: Runtime) {
    this.#runtime = runtime;
  }

  /** The path of a socket that is this process's from here on; of an IP address there is none. */
  take(address: SocketAddress): void {
    if (address.family === "unix") this.#inodes.set(address.path, inodeAt(this.#runtime, address.path));
  }

  /** Removes the paths of endpoints before they are released. A service manager still listens on its own. */
  removeOf(endpoints: Iterable<Endpoint>): void {
    for (const { identity: { address }, alive, isSupervised } of endpoints) {
      if (alive && !isSupervised && address.family === "unix") this.remove(address.path);
    }
  }

  /**
   * Removes a path that was taken and still names the same inode, while the
   * socket is open. One that cannot be removed stays: nobody answers there soon,
   * and whoever comes next replaces it. It must not keep this process accepting.
   */
  remove(path: string): void {
    const inode = this.#inodes.get(path);
    if (inode === undefined) return;
    try {
      unlinkIfSame(this.#runtime, path, inode);
    } catch (error) {
      if (!(error instanceof SystemError)) throw error;
    }
  }
}
