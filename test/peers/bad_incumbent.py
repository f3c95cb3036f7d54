"""Broken incumbents by name. See misbehave.py."""

import json
import os
import select
import socket
import sys
import time

from bad_moves import incumbent_moves
from incumbent import Incumbent
from steps import RAW, listen_to, split, walk
from wire import (
    DESCRIPTORS_PER_MESSAGE, HELLO_S, OMITTED, Frames, TakeoverError, batch_head, cookie_of, encode, say,
    send_descriptors,
)


class HostileListeners:
    """The sockets of an incumbent that serves nothing."""

    def __init__(self, settings):
        self.path = settings.path
        self.control = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.control.bind(settings.path)
        os.chmod(settings.path, 0o666)
        self.control.listen(64)
        self.web = self.web_listener((settings.host, settings.port))

    @staticmethod
    def web_listener(address):
        """Another one at the same address is possible, and is another socket."""
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(address)
        listener.listen(64)
        return listener

    def accept(self):
        return self.control.accept()[0]

    def accept_unread(self):
        """The second connection with the join still unread: closing it resets it."""
        connection = self.accept()
        select.select([connection], [], [])
        return connection

    def accept_join(self, token):
        while True:
            connection = self.accept()
            head = Frames(connection).receive(HELLO_S, "join")
            if head["token"] == token:
                return connection


def meet(listeners, misbehave, argument):
    """Misbehaves towards one connection after the other: a successor that was lost comes again."""
    endpoints = [("control", "", listeners.control), ("listener", "web", listeners.web)]
    has_connections = misbehave is incumbent_with_moves
    incumbent = Incumbent(Frames(listeners.accept()), endpoints, 1, listeners.accept_join, has_connections)
    incumbent.listeners = listeners
    try:
        misbehave(incumbent, argument)
    except (TakeoverError, OSError) as error:
        say("lost", message=str(error))
    incumbent.frames.close()
    if incumbent.second:
        incumbent.second.close()


def send_first_batch(incumbent):
    incumbent.send_batch(0, [sock.fileno() for _, _, sock in incumbent.endpoints])


INCUMBENT_STEPS = [
    ("connect", lambda incumbent: None),
    ("hello", Incumbent.take_hello),
    ("offer", Incumbent.send_offer),
    ("join", Incumbent.take_join),
    ("batch", send_first_batch),
    ("received", lambda incumbent: incumbent.frames.receive(HELLO_S, "received")),
    ("ready", Incumbent.take_ready),
    ("lease", Incumbent.send_lease),
    ("settled", Incumbent.follow_lease),
]


def incumbent_aborted(incumbent):
    listen_to(incumbent.frames, "aborted")


def incumbent_send(incumbent, argument):
    step, frame = split(argument)
    walk(INCUMBENT_STEPS, incumbent, step)
    incumbent.frames.send(json.loads(frame))
    incumbent_aborted(incumbent)


def incumbent_send_all(incumbent, argument):
    step, frames = split(argument)
    walk(INCUMBENT_STEPS, incumbent, step)
    incumbent.frames.send_bytes(b"".join(encode(frame) for frame in json.loads(frames)))
    incumbent_aborted(incumbent)


def incumbent_send_raw(incumbent, argument):
    step, name = split(argument)
    walk(INCUMBENT_STEPS, incumbent, step)
    incumbent.frames.send_bytes(RAW[name])
    if not name.startswith("half"):
        incumbent_aborted(incumbent)


def incumbent_close(incumbent, step):
    walk(INCUMBENT_STEPS, incumbent, step)


def incumbent_die(incumbent, step):
    walk(INCUMBENT_STEPS, incumbent, step)
    os._exit(0)


def incumbent_hold(incumbent, step):
    walk(INCUMBENT_STEPS, incumbent, step)
    say("holding")
    incumbent_aborted(incumbent)


def incumbent_offer_with(incumbent, fields):
    incumbent.take_hello()
    incumbent.send_offer(**json.loads(fields))
    incumbent_aborted(incumbent)


def incumbent_offer_without(incumbent, field):
    incumbent.take_hello()
    incumbent.send_offer(**{field: OMITTED})
    incumbent_aborted(incumbent)


def incumbent_manifest(incumbent, name):
    """An offer whose manifest cannot be right."""
    incumbent.take_hello()
    control, web = incumbent.offer()["endpoints"]
    incumbent.send_offer(endpoints=MANIFESTS[name](control, web))
    incumbent_aborted(incumbent)


MANIFESTS = {
    "empty": lambda control, web: [],
    "no-control": lambda control, web: [web],
    "control-twice": lambda control, web: [control, web, control],
    "control-last": lambda control, web: [web, control],
    "name-twice": lambda control, web: [control, web, web],
    "no-name": lambda control, web: [control, without(web, "name")],
    "empty-name": lambda control, web: [control, {**web, "name": ""}],
    "long-name": lambda control, web: [control, {**web, "name": "w" * 256}],
    "other-kind": lambda control, web: [control, {**web, "kind": "connection"}],
    "no-cookie": lambda control, web: [control, without(web, "cookie")],
    "short-cookie": lambda control, web: [control, {**web, "cookie": "abc"}],
    "no-address": lambda control, web: [control, without(web, "address")],
    "other-family": lambda control, web: [control, {**web, "address": {"family": "ipx"}}],
    "text-port": lambda control, web: [control, {**web, "address": {**web["address"], "port": "80"}}],
    "no-object": lambda control, web: [control, "web"],
    "too-many": lambda control, web: [control] + [{**web, "name": str(number)} for number in range(4_097)],
}


def without(entry, field):
    return {name: value for name, value in entry.items() if name != field}


def incumbent_announce(incumbent, fields):
    """A right batch, announced wrongly."""
    walk(INCUMBENT_STEPS, incumbent, "join")
    descriptors = [sock.fileno() for _, _, sock in incumbent.endpoints]
    incumbent.send_batch(0, descriptors, **json.loads(fields))
    incumbent_aborted(incumbent)


def incumbent_announce_nothing(incumbent, _):
    """A batch is announced, and nothing is sent."""
    walk(INCUMBENT_STEPS, incumbent, "join")
    say("holding")
    incumbent.frames.send({"type": "batch", "number": 0, "count": 2})
    incumbent_aborted(incumbent)


def incumbent_batch_and_refuse(incumbent, code):
    """A right batch, and right behind its announcement the refusal."""
    walk(INCUMBENT_STEPS, incumbent, "join")
    send_descriptors(incumbent.second, batch_head(0, 2), [sock.fileno() for _, _, sock in incumbent.endpoints])
    announced = encode({"type": "batch", "number": 0, "count": 2})
    refused = encode({"type": "refuse", "code": code, "message": "This one was made up for a test"})
    incumbent.frames.send_bytes(announced + refused)
    incumbent_aborted(incumbent)


def incumbent_close_descriptors(incumbent, _):
    """A batch is announced, and the connection that it should come on ends."""
    walk(INCUMBENT_STEPS, incumbent, "join")
    incumbent.second.close()
    incumbent.frames.send({"type": "batch", "number": 0, "count": 2})
    incumbent_aborted(incumbent)


def incumbent_reset_descriptors(incumbent, _):
    """The same, and the connection is reset."""
    incumbent.take_hello()
    incumbent.send_offer()
    incumbent.listeners.accept_unread().close()
    incumbent.frames.send({"type": "batch", "number": 0, "count": 2})
    incumbent_aborted(incumbent)


def incumbent_batch(incumbent, name):
    """A batch whose head or descriptors are not what was announced."""
    walk(INCUMBENT_STEPS, incumbent, "join")
    control, web = [sock.fileno() for _, _, sock in incumbent.endpoints]
    head, descriptors = BATCHES[name](control, web)
    incumbent.send_batch(0, descriptors, head, count=2)
    incumbent_aborted(incumbent)


BATCHES = {
    "fewer": lambda control, web: (batch_head(0, 2), [control]),
    "more": lambda control, web: (batch_head(0, 2), [control, web, web]),
    "many-more": lambda control, web: (batch_head(0, 2), [control] + [web] * 252),
    "none": lambda control, web: (batch_head(0, 2), []),
    "other-magic": lambda control, web: (batch_head(0, 2, b"STKO"), [control, web]),
    "other-number": lambda control, web: (batch_head(1, 2), [control, web]),
    "other-count": lambda control, web: (batch_head(0, 3), [control, web]),
    "swapped": lambda control, web: (batch_head(0, 2), [web, control]),
}


def incumbent_split_batch(incumbent, _):
    """A batch whose head comes in three parts, a descriptor with the first and with the last, which is right."""
    walk(INCUMBENT_STEPS, incumbent, "join")
    control, web = [sock.fileno() for _, _, sock in incumbent.endpoints]
    head = batch_head(0, 2)
    socket.send_fds(incumbent.second, [head[:5]], [control])
    incumbent.frames.send({"type": "batch", "number": 0, "count": 2})
    incumbent.second.sendall(head[5:9])
    time.sleep(0.1)
    socket.send_fds(incumbent.second, [head[9:]], [web])
    incumbent_aborted(incumbent)


def incumbent_descriptor(incumbent, name):
    """Another descriptor in place of the web listener, with the address that was offered and,
    where it is a socket, with its own cookie: what it is has to give it away."""
    descriptor, cookie = DESCRIPTORS[name](incumbent.listeners)
    incumbent.take_hello()
    control, web = incumbent.offer()["endpoints"]
    incumbent.send_offer(endpoints=[control, {**web, "cookie": cookie or web["cookie"]}])
    incumbent.take_join()
    incumbent.send_batch(0, [incumbent.listeners.control.fileno(), descriptor])
    incumbent_aborted(incumbent)


def owned(sock):
    """A socket as a descriptor that stays open, with its cookie."""
    cookie = cookie_of(sock)
    return sock.detach(), cookie


def udp_socket(listeners):
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(listeners.web.getsockname())
    return owned(sock)


def accepted_connection(listeners):
    """It has the listener's own address."""
    client = socket.create_connection(listeners.web.getsockname())
    connection, _ = listeners.web.accept()
    client.detach()
    return owned(connection)


def listener_elsewhere(listeners):
    return owned(listeners.web_listener(("127.0.0.1", 0)))


def twin_listener(listeners):
    """At the same address, but not the socket that was offered."""
    twin, _ = owned(listeners.web_listener(listeners.web.getsockname()))
    return twin, None


def unix_pair(_listeners):
    one, other = socket.socketpair()
    other.detach()
    return owned(one)


def epoll_instance(_listeners):
    with select.epoll() as epoll:
        return os.dup(epoll.fileno()), None


def netlink_socket(_listeners):
    """Of a family that the protocol does not know."""
    return owned(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW))


DESCRIPTORS = {
    "pipe": lambda listeners: (os.pipe()[0], None),
    "epoll": epoll_instance,
    "file": lambda listeners: (os.open(__file__, os.O_RDONLY), None),
    "folder": lambda listeners: (os.open("/", os.O_RDONLY), None),
    "udp": udp_socket,
    "connection": accepted_connection,
    "elsewhere": listener_elsewhere,
    "twin": twin_listener,
    "pair": unix_pair,
    "netlink": netlink_socket,
    "control": lambda listeners: (listeners.control.fileno(), cookie_of(listeners.control)),
}


def incumbent_many(incumbent, argument):
    """An honest hand-over of that many more listeners; with `:die`, up to the first batch."""
    count, end = split(argument)
    for number in range(int(count)):
        listener = incumbent.listeners.web_listener(("127.0.0.1", 0))
        incumbent.endpoints.append(("listener", str(number), listener))
    incumbent.take_hello()
    incumbent.send_offer()
    incumbent.take_join()
    if end == "die":
        incumbent.send_batch(0, [sock.fileno() for _, _, sock in incumbent.endpoints[:DESCRIPTORS_PER_MESSAGE]])
        incumbent.frames.receive(HELLO_S, "received")
        os._exit(0)
    incumbent.send_batches()
    say("received", count=len(incumbent.endpoints))
    incumbent_aborted(incumbent)


def incumbent_with_moves(incumbent, name):
    """An honest hand-over on the first connection, and not on the second."""
    incumbent.take_hello()
    incumbent.send_offer()
    incumbent.take_join()
    incumbent.send_batches()
    incumbent.take_ready()
    incumbent.send_lease()
    incumbent_moves(incumbent, name)
    incumbent.follow_lease()
    incumbent.send_released()
    sys.exit(0)


INCUMBENT = {
    "moves": incumbent_with_moves,
    "send": incumbent_send,
    "send-all": incumbent_send_all,
    "send-raw": incumbent_send_raw,
    "close": incumbent_close,
    "die": incumbent_die,
    "hold": incumbent_hold,
    "offer-with": incumbent_offer_with,
    "offer-without": incumbent_offer_without,
    "manifest": incumbent_manifest,
    "announce": incumbent_announce,
    "announce-nothing": incumbent_announce_nothing,
    "batch-and-refuse": incumbent_batch_and_refuse,
    "close-descriptors": incumbent_close_descriptors,
    "reset-descriptors": incumbent_reset_descriptors,
    "batch": incumbent_batch,
    "split-batch": incumbent_split_batch,
    "descriptor": incumbent_descriptor,
    "many": incumbent_many,
}
