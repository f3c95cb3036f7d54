/**
 * Replaces a running server without losing a connection: hands its open sockets
 * to the next process over a Unix domain socket (SCM_RIGHTS), whichever of
 * Deno, Bun and Node either of them runs on.
 *
 * @example
 * ```ts ignore
 * import { takeOver } from "@socket-takeover/socket-takeover";
 *
 * await using takeover = await takeOver("/run/shop/takeover.sock");
 * const handler = takeover.fetch(() => new Response("hello"));
 * const server = await takeover.listen("web", { port: 8080 }, (at) => Deno.serve(at, handler));
 * await takeover.ready();
 * await takeover.released.catch(() => {});
 * await takeover.drained();
 * await server.shutdown();
 * ```
 *
 * @module
 */

export { takeOver } from "./api/takeover.ts";
export { openRuntime } from "./api/runtime.ts";
export {
  bindChannel,
  channelPair,
  connectChannel,
  listenChannel,
  openAcceptor,
  waitReadable,
  wrapChannel,
} from "./api/channels.ts";
export { adoptConnection, adoptDatagram, adoptListener, describe, descriptorOf, detach } from "./api/natives.ts";
export { doctor } from "./api/doctor.ts";
export { inheritedDescriptors, openNotifier, seize, serveToHaproxy, socketsFromHaproxy } from "./api/foreign.ts";

export { Takeover } from "./src/handover/takeover.ts";
export type { StateOptions, TakeoverOptions } from "./src/handover/options.ts";
export type { Connections, ConnectionsOptions, Luggage, Moved, Served } from "./src/connections/raw.ts";
export type { BunHandlers, BunUpgradeOptions, MovableWebSockets, Opening } from "./src/connections/websockets.ts";
export type { WebSocketOptions } from "./src/connections/websocket_connection.ts";
export type { Json } from "./src/connections/movable.ts";
export type { Progress } from "./src/handover/departures.ts";
export type { ConnectionCounts, DrainOutcome } from "./src/handover/moves.ts";
export type { Steering } from "./src/steering/keep_away.ts";
export type { Displaced } from "./src/handover/displacing.ts";
export type { QueueCounts } from "./src/handover/queue_counts.ts";
export type { OfferedState } from "./src/handover/messages.ts";
export type { PassedDescriptor } from "./src/handover/foreign_sockets.ts";
export type {
  EndpointAddress,
  GroupEndpoint,
  TcpEndpoint,
  TcpOpening,
  UnixEndpoint,
  UnixOpening,
} from "./src/sockets/address.ts";
export type { Flows } from "./src/handover/endpoint_flows.ts";
export type { FlowOptions, FlowStrategy, OpenedFlows, RefusedStrategy } from "./src/handover/flow_options.ts";
export type { DatagramAddress, UdpEndpoint, UnixDatagramEndpoint } from "./src/sockets/address.ts";
export type { Drained, FetchHandler, RequestListener } from "./src/handover/drain.ts";
export { formatDiagnosis } from "./src/foreign/diagnosis.ts";
export type { Check, CheckName, CheckStatus, Diagnosis } from "./src/foreign/diagnosis.ts";
export type { DoctorOptions } from "./src/foreign/doctor.ts";
export type { InheritedDescriptor, InheritedSource } from "./src/foreign/activation.ts";
export type { HaproxyOptions, HaproxySocket } from "./src/foreign/haproxy.ts";
export type { HaproxyRecord } from "./src/foreign/haproxy_records.ts";
export { HaproxyService } from "./src/foreign/haproxy_service.ts";
export type { HaproxyListener, HaproxyServiceOptions } from "./src/foreign/haproxy_service.ts";
export type { SocketIdentity } from "./src/sockets/socket.ts";
export { Notifier } from "./src/foreign/notify.ts";
export type { NotifierOptions, StoreOptions } from "./src/foreign/notify.ts";
export type { Abi, Bytes } from "./src/c/cmsg.ts";
export type { Credentials } from "./src/c/cmsg.ts";
export { Acceptor } from "./src/channels/acceptor.ts";
export type { AcceptorOptions } from "./src/channels/acceptor.ts";
export type { AdoptOptions, DatagramOpening, UnixDatagramOpening } from "./src/natives/adopt.ts";
export type { Description, DescriptorKind, TcpState } from "./src/sockets/describe.ts";
export type { Detached, DetachOptions } from "./src/natives/detach.ts";
export { OwnedDescriptor } from "./src/sockets/descriptors.ts";
export { FdChannel } from "./src/channels/fd_channel.ts";
export { FdMessage } from "./src/channels/fd_message.ts";
export type { ReceiveOptions } from "./src/channels/fd_message.ts";
export type { SendOptions } from "./src/channels/sending.ts";
export type { Descriptor } from "./src/sockets/descriptors.ts";
export { FdListener } from "./src/channels/fd_listener.ts";
export type { FdChannelOptions, FdListenerOptions } from "./src/channels/fd_listener.ts";
export type { WaitOptions } from "./src/channels/readiness.ts";
export type { SocketType } from "./src/sockets/socket.ts";
export type { PathOptions } from "./src/channels/unix_path.ts";
export type { ForeignSocket } from "./src/foreign/foreign_socket.ts";
export { Seized } from "./src/foreign/seize.ts";
export type { SeizeOptions } from "./src/foreign/choice.ts";
export type { Retired, RetireOptions } from "./src/foreign/retire.ts";
export type { Signal } from "./src/foreign/process.ts";
export { SystemError, TakeoverError, TruncatedError } from "./src/errors.ts";
export type { TakeoverErrorCode } from "./src/errors.ts";
export type { Outcome, TakeoverEvents, TakeoverEventType, TakeoverListener } from "./src/handover/events.ts";
export { defaultLimits } from "./src/limits.ts";
export type { Limits } from "./src/limits.ts";
export type { Peer } from "./src/handover/messages.ts";
export type {
  ControlListener,
  ControlStream,
  HttpSocket,
  NativeObject,
  ReadAhead,
  Runtime,
  SocketDirections,
  StreamHandlers,
} from "./src/runtime.ts";
export { functions } from "./src/c/libc.ts";
export type { Argument, Arguments, CType, FunctionName, Libc } from "./src/c/libc.ts";
export type { QuicTag, Tag } from "./src/steering/programs.ts";
export type { FormatName } from "./src/steering/forward_frames.ts";
export type { LoadSize } from "./src/steering/bpf.ts";
export { formatAddress } from "./src/c/sockaddr.ts";
export type { InetAddress, SocketAddress, UnixAddress } from "./src/c/sockaddr.ts";
