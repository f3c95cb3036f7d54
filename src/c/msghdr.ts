/**
 * `struct msghdr` with one `iovec`: what sendmsg(2) and recvmsg(2) take.
 *
 * @module
 */

import type { Abi } from "./abi.ts";
import { allocate, type Bytes, readField, viewOf, writeField } from "./bytes.ts";
import { sockaddrSize } from "./sockaddr.ts";

/** Gives the address of a buffer made by `allocate`. */
export type AddressOf = (bytes: Bytes) => bigint;

/**
 * A msghdr over a data, a control and an address buffer that stay the same from
 * call to call, so that a message costs no allocation and no address look-up.
 */
export class Msghdr {
  /** The struct itself: the second argument of sendmsg(2) and recvmsg(2). */
  readonly bytes: Bytes;
  readonly data: Bytes;
  readonly control: Bytes;
  /** A `sockaddr`, for sockets that are not connected. */
  readonly name: Bytes = allocate(sockaddrSize);
  readonly #abi: Abi;
  readonly #view: DataView;
  readonly #iovec: Bytes;
  readonly #iovecView: DataView;
  readonly #dataAddress: bigint;
  readonly #controlAddress: bigint;
  readonly #nameAddress: bigint;

  constructor(abi: Abi, addressOf: AddressOf, data: Bytes, control: Bytes) {
    this.#abi = abi;
    this.data = data;
    this.control = control;
    this.bytes = allocate(abi.msghdr.size);
    this.#view = viewOf(this.bytes);
    this.#iovec = allocate(abi.iovec.size);
    this.#iovecView = viewOf(this.#iovec);
    this.#dataAddress = addressOf(data);
    this.#controlAddress = addressOf(control);
    this.#nameAddress = addressOf(this.name);
    writeField(this.#view, abi.msghdr.iov, addressOf(this.#iovec));
    writeField(this.#view, abi.msghdr.iovlen, 1);
  }

  /**
   * Aims the struct at a part of its buffers, before a call.
   *
   * @param dataOffset Bytes of the data buffer to skip.
   * @param dataSize Bytes of data to send, or room to receive.
   * @param controlSize `msg_controllen` in bytes; 0 for no control data.
   * @param nameSize `msg_namelen` in bytes; 0 for no address.
   */
  aim(dataOffset: number, dataSize: number, controlSize: number, nameSize = 0): void {
    const { msghdr, iovec } = this.#abi;
    writeField(this.#iovecView, iovec.base, this.#dataAddress + BigInt(dataOffset));
    writeField(this.#iovecView, iovec.len, dataSize);
    writeField(this.#view, msghdr.control, controlSize > 0 ? this.#controlAddress : 0n);
    writeField(this.#view, msghdr.controllen, controlSize);
    writeField(this.#view, msghdr.name, nameSize > 0 ? this.#nameAddress : 0n);
    writeField(this.#view, msghdr.namelen, nameSize);
    writeField(this.#view, msghdr.flags, 0);
  }

  /** `msg_flags` after recvmsg(2), without `MSG_CMSG_CLOEXEC`, which Linux echoes. */
  get flags(): number {
    return readField(this.#view, this.#abi.msghdr.flags) & ~this.#abi.constants.MSG_CMSG_CLOEXEC;
  }

  /** The sender's address that recvmsg(2) wrote; empty for a connected socket. */
  get sender(): Uint8Array {
    return this.name.subarray(0, readField(this.#view, this.#abi.msghdr.namelen));
  }

  /**
   * The control data that recvmsg(2) wrote. Its length is read back from the
   * struct: what lies behind it in the buffer is from an earlier call.
   */
  get received(): Uint8Array {
    const size = readField(this.#view, this.#abi.msghdr.controllen);
    return this.control.subarray(0, Math.min(size, this.control.length));
  }
}
