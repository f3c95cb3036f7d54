"""A peer that breaks the protocol in one named way.

`NAME[:ARGUMENT…]`, the same for both roles where both have it. The role is the
honest one: successor when somebody answers on the path, else incumbent.

    send:STEP:FRAME        goes on honestly through STEP, then sends that JSON head
    send-all:STEP:FRAMES   the same with a JSON array of heads, all in one write
    send-raw:STEP:BYTES    the same with bytes by their name below
    close:STEP             goes on honestly through STEP, then closes its connections
    hold:STEP              goes on honestly through STEP, then only listens
    die:STEP               (incumbent) goes on honestly through STEP, then ends

A successor reports every frame that it gets (`refused` for a refuse), an
incumbent `aborted`; both `closed` when the other side has ended the connection.
"""

import json
import os
import select
import socket
import sys
import time

from incumbent import Incumbent
from successor import Successor
from wire import (
    HEADER, HELLO_S, MAGIC, OMITTED, Frames, TakeoverError, batch_head, connect, cookie_of, encode, say,
    send_descriptors,
)

# Bytes that are no frame of this protocol, and one half of a frame that is.
RAW = {
    "wrong-magic": b"STKX" + encode({"type": "hello"})[4:],
    "http": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "huge-head": HEADER.pack(MAGIC, 0xFFFFFFFF, 0),
    "body": encode({"type": "hello"}, b"body"),
    "empty-head": HEADER.pack(MAGIC, 0, 0),
    "not-json": HEADER.pack(MAGIC, 8, 0) + b"not json",
    "bad-utf8": HEADER.pack(MAGIC, 16, 0) + b'{"type":"he\xfflo"}',
    "array": encode(["hello"]),
    "null": encode(None),
    "deep-head": HEADER.pack(MAGIC, 2_000_000, 0) + b"[" * 1_000_000 + b"]" * 1_000_000,
    "deep-type": HEADER.pack(MAGIC, 2_000_009, 0) + b'{"type":' + b"[" * 1_000_000 + b"]" * 1_000_000 + b"}",
    "half-header": MAGIC + b"\0\0",
    "half-head": encode({"type": "hello", "pid": 1})[:-10],
}


def run(text, settings):
    """Misbehaves in the way that is named."""
    name, _, argument = text.partition(":")
    connection = connect(settings.path)
    if connection:
        SUCCESSOR[name](Successor(settings.path, connection), argument)
        return 0
    path, listeners = settings.path, HostileListeners(settings)
    say("listening", addr=f"{settings.host}:{listeners.web.getsockname()[1]}", path=path)
    while True:
        meet(listeners, INCUMBENT[name], argument)


def listen_to(frames, verb):
    """Reports what the other side says until it ends the connection."""
    while True:
        try:
            head = frames.next(None)
        except TakeoverError as error:
            say("closed", code=error.code)
            return
        kind = head.pop("type")
        if kind in ("refuse", "abort"):
            say(verb, **head)
        elif kind != "alive":
            say(kind, **{name: value for name, value in head.items() if name not in ("pid", "runtime")})


def split(argument):
    step, _, rest = argument.partition(":")
    return step, rest


def walk(steps, side, last):
    """The honest steps up to one of them, that one included."""
    if last not in [name for name, _ in steps]:
        sys.exit(f"no step {last}")
    for name, step in steps:
        step(side)
        if name == last:
            return


# The successor's part.

def take_first_batch(successor):
    successor.take_batch(0, successor.offer["endpoints"][:253])


def acknowledge_first_batch(successor):
    successor.frames.send(successor.received(0, len(successor.sockets)))


SUCCESSOR_STEPS = [
    ("connect", lambda successor: None),
    ("hello", Successor.greet),
    ("offer", Successor.take_offer),
    ("join", Successor.join),
    ("batch", take_first_batch),
    ("received", acknowledge_first_batch),
    ("ready", Successor.say_ready),
    ("lease", Successor.take_lease),
    ("settled", lambda successor: successor.frames.send({"type": "settled"})),
]


def successor_refused(successor):
    listen_to(successor.frames, "refused")


def successor_send(successor, argument):
    step, frame = split(argument)
    walk(SUCCESSOR_STEPS, successor, step)
    successor.frames.send(json.loads(frame))
    successor_refused(successor)


def successor_send_all(successor, argument):
    step, frames = split(argument)
    walk(SUCCESSOR_STEPS, successor, step)
    successor.frames.send_bytes(b"".join(encode(frame) for frame in json.loads(frames)))
    successor_refused(successor)


def successor_send_raw(successor, argument):
    step, name = split(argument)
    walk(SUCCESSOR_STEPS, successor, step)
    successor.frames.send_bytes(RAW[name])
    if name.startswith("half"):
        return
    successor_refused(successor)


def successor_close(successor, step):
    walk(SUCCESSOR_STEPS, successor, step)


def successor_hold(successor, step):
    walk(SUCCESSOR_STEPS, successor, step)
    say("holding")
    successor_refused(successor)


def successor_stay(successor, _):
    """Is refused, and does not close its end."""
    successor.frames.send({"type": "ready"})
    head = successor.frames.next(None)
    say("refused", code=head["code"], message=head["message"])
    wait_for_ever()


def successor_hello_with(successor, fields):
    successor.greet(**json.loads(fields))
    successor_refused_or_offered(successor)


def successor_hello_without(successor, field):
    successor.greet(**{field: OMITTED})
    successor_refused(successor)


def successor_refused_or_offered(successor):
    head = successor.frames.next(None)
    if head["type"] == "offer":
        say("offered", version=head["version"])
    else:
        say("refused", code=head["code"], message=head["message"])


def successor_wrong_token(successor, _):
    """Another token is refused on its own connection; the right one still comes through."""
    walk(SUCCESSOR_STEPS, successor, "offer")
    successor.join(token="0" * 32)
    listen_to(Frames(successor.second), "refused")
    successor.join()
    take_first_batch(successor)
    say("batch", count=len(successor.sockets))


def successor_join_twice(successor, _):
    """Joins again with the right token, and holds on to both connections after it is refused."""
    walk(SUCCESSOR_STEPS, successor, "join")
    first = successor.second
    successor.join()
    successor.second, second = first, successor.second
    take_first_batch(successor)
    successor.frames.send({"type": "hello"})
    successor_refused(successor)
    first.close()
    wait_for_ever(second)


def successor_late_join(successor, _):
    """Joins again once the batches are through, and holds on to that connection."""
    walk(SUCCESSOR_STEPS, successor, "received")
    successor.second.close()
    successor.join()
    successor.frames.send({"type": "settled"})
    successor_refused(successor)
    wait_for_ever(successor.second)


def successor_ready_before_batches(successor, _):
    walk(SUCCESSOR_STEPS, successor, "offer")
    successor.say_ready()
    successor.join()
    successor_refused(successor)


def successor_say_nothing(successor, count):
    """So many connections that say nothing."""
    others = [connect(successor.path) for _ in range(int(count) - 1)]
    say("holding")
    for frames in [successor.frames, *map(Frames, others)]:
        listen_to(frames, "refused")


def successor_dribble(successor, _):
    """One byte a second of a hello that is right."""
    say("holding")
    for byte in encode(successor.hello()):
        successor.frames.send_bytes(bytes([byte]))
        readable, _, _ = select.select([successor.frames.connection], [], [], 1)
        if readable:
            return successor_refused(successor)


def successor_descriptors(successor, argument):
    """Sends that many descriptors with one frame where none are due, and is then out of order."""
    step, count = split(argument)
    descriptors = [os.open("/dev/null", os.O_RDONLY) for _ in range(int(count))]
    steps = [name for name, _ in SUCCESSOR_STEPS]
    walk(SUCCESSOR_STEPS, successor, steps[steps.index(step) - 1])
    if step == "join":
        successor.second = connect(successor.path)
        socket.send_fds(successor.second, [encode({"type": "join", "token": successor.token})], descriptors)
    elif step == "batch":
        socket.send_fds(successor.second, [b"!"], descriptors)
    else:
        frame = successor.hello() if step == "hello" else successor.received(0, len(successor.sockets))
        socket.send_fds(successor.frames.connection, [encode(frame)], descriptors)
    successor.frames.send({"type": "settled"})
    successor_refused(successor)


SUCCESSOR = {
    "send": successor_send,
    "send-all": successor_send_all,
    "send-raw": successor_send_raw,
    "close": successor_close,
    "hold": successor_hold,
    "stay": successor_stay,
    "hello-with": successor_hello_with,
    "hello-without": successor_hello_without,
    "wrong-token": successor_wrong_token,
    "join-twice": successor_join_twice,
    "late-join": successor_late_join,
    "ready-before-batches": successor_ready_before_batches,
    "say-nothing": successor_say_nothing,
    "dribble": successor_dribble,
    "descriptors": successor_descriptors,
}


def wait_for_ever(*_held):
    while True:
        time.sleep(60)


# The incumbent's part.

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
    incumbent = Incumbent(Frames(listeners.accept()), endpoints, 1, listeners.accept_join)
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
    "other-kind": lambda control, web: [control, {**web, "kind": "datagram"}],
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
    """An honest hand-over of that many more listeners, of which the second half may die with the incumbent."""
    count, last = split(argument)
    extra = [("listener", str(number), incumbent.listeners.web_listener(("127.0.0.1", 0))) for number in range(int(count))]
    incumbent.endpoints += extra
    incumbent.take_hello()
    incumbent.send_offer()
    incumbent.take_join()
    if last == "die":
        incumbent.send_batch(0, [sock.fileno() for _, _, sock in incumbent.endpoints[:253]])
        incumbent.frames.receive(HELLO_S, "received")
        os._exit(0)
    incumbent.send_batches()
    say("received", count=len(incumbent.endpoints))
    incumbent_aborted(incumbent)


INCUMBENT = {
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
