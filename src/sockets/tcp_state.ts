/**
 * What the kernel knows of a TCP connection: `struct tcp_info` (linux/tcp.h),
 * as far as it is used here. Linux only.
 *
 * @module
 */

import { allocate, readField, viewOf } from "../c/bytes.ts";
import type { Runtime } from "../runtime.ts";

/** Linux's TCP_INFO (tcp(7)). */
const IPPROTO_TCP = 6;
const TCP_INFO = 11;

/** Linux 4.19 and later know all of these; earlier ones leave the last at zero. */
const tcpInfo = {
  size: 216,
  state: { offset: 0, size: 1 },
  last_data_sent: { offset: 44, size: 4 },
  last_data_recv: { offset: 52, size: 4 },
  total_retrans: { offset: 100, size: 4 },
  bytes_received: { offset: 128, size: 8 },
  notsent_bytes: { offset: 144, size: 4 },
  data_segs_out: { offset: 156, size: 4 },
  bytes_sent: { offset: 200, size: 8 },
  bytes_retrans: { offset: 208, size: 8 },
} as const;

/** The states of a TCP socket, by their names in the kernel (include/net/tcp_states.h). */
export type TcpState =
  | "TCP_ESTABLISHED"
  | "TCP_SYN_SENT"
  | "TCP_SYN_RECV"
  | "TCP_FIN_WAIT1"
  | "TCP_FIN_WAIT2"
  | "TCP_TIME_WAIT"
  | "TCP_CLOSE"
  | "TCP_CLOSE_WAIT"
  | "TCP_LAST_ACK"
  | "TCP_LISTEN"
  | "TCP_CLOSING"
  | "TCP_NEW_SYN_RECV";

const states: readonly TcpState[] = [
  "TCP_ESTABLISHED",
  "TCP_SYN_SENT",
  "TCP_SYN_RECV",
  "TCP_FIN_WAIT1",
  "TCP_FIN_WAIT2",
  "TCP_TIME_WAIT",
  "TCP_CLOSE",
  "TCP_CLOSE_WAIT",
  "TCP_LAST_ACK",
  "TCP_LISTEN",
  "TCP_CLOSING",
  "TCP_NEW_SYN_RECV",
];

/** A TCP connection at one moment. */
export interface TcpInfo {
  /** Null for a state that is not known by name. */
  readonly state: TcpState | null;
  /** Milliseconds since the last byte came, in ticks of the kernel (CONFIG_HZ: 1 to 10 ms). */
  readonly sinceReceivedMs: number;
  /** Milliseconds since the last byte was sent, for the first time or again; in the same ticks. */
  readonly sinceSentMs: number;
  /** Bytes that have come in order, whether they were read or not. */
  readonly receivedSize: number;
  /** Bytes that were written, whether they have been sent or not. */
  readonly writtenSize: number;
  /** Segments with data that were sent. */
  readonly sentSegmentCount: number;
  /** Whether a segment had to be sent again. */
  readonly hasRetransmitted: boolean;
}

/** Asks for the state of a TCP socket; null for anything else, and on macOS. */
export function tcpInfoOf({ abi, libc }: Runtime, descriptor: number): TcpInfo | null {
  if (abi.platform !== "linux") return null;
  const info = allocate(tcpInfo.size);
  const size = allocate(4);
  viewOf(size).setUint32(0, info.length, true);
  if (libc.getsockopt(descriptor, IPPROTO_TCP, TCP_INFO, info, size) < 0) return null;
  const view = viewOf(info);
  const { bytes_sent, bytes_retrans, notsent_bytes } = tcpInfo;
  return {
    state: states[readField(view, tcpInfo.state) - 1] ?? null,
    sinceReceivedMs: readField(view, tcpInfo.last_data_recv),
    sinceSentMs: readField(view, tcpInfo.last_data_sent),
    receivedSize: readField(view, tcpInfo.bytes_received),
    writtenSize: readField(view, bytes_sent) - readField(view, bytes_retrans) + readField(view, notsent_bytes),
    sentSegmentCount: readField(view, tcpInfo.data_segs_out),
    hasRetransmitted: readField(view, tcpInfo.total_retrans) > 0,
  };
}
