"""What broken peers do once connections move: on the second connection, after an honest lease. See misbehave.py.

    moves:NAME   (both roles) goes on honestly through the lease, says on the second connection what is
                 named so below, reports what comes back, and goes on honestly with the first. An
                 incumbent waits for a line on its stdin before it does so
"""

import os
import select
import socket
import sys

from moves import PARTY, MoveFrames
from steps import RAW
from wire import HEADER, MAGIC, Lost, TakeoverError, close_all, cookie_of, encode, say, send_descriptors


class Bait:
    """A connection that can be sent."""

    def __init__(self):
        self.ours, self.client = socket.socketpair()
        self.cookie = cookie_of(self.ours)
        self.number = self.ours.fileno()

    def announced(self, **changes):
        return {"cookie": self.cookie, "state": {"state": {"count": 0}, "allowHalfOpen": True}, "unread": 0, **changes}


def move(number, connections, body=b"", **changes):
    return encode({"type": "move", "number": number, **PARTY, "connections": connections, **changes}, body)


def listen(frames):
    """Reports what the other side says, and closes what comes with it."""
    while True:
        try:
            head, _ = frames.receive()
        except Lost:
            say("second closed")
            return
        descriptors = frames.take(len(head.get("connections", [])))
        close_all(descriptors)
        say("said", type=head["type"], code=head.get("code"), count=len(descriptors),
            refused=[refusal["code"] for refusal in head.get("refused", [])])


def raw(data):
    return lambda frames: frames.connection.sendall(data)


def others(frames):
    """Descriptors that are not the connections that were announced, and one that is."""
    baits = [Bait() for _ in range(5)]
    descriptors = [os.pipe()[0], epoll(), listening(), other_connection(), baits[-1].number]
    send_descriptors(frames.connection, move(0, [bait.announced() for bait in baits]), descriptors)
    report_and_end(frames)


def report_and_end(frames):
    frames.connection.settimeout(None)
    head, _ = frames.receive()
    say("said", type=head["type"], code=None, count=0, refused=[refusal["code"] for refusal in head["refused"]])
    frames.send({"type": "done"})


def fewer(frames):
    one, other = Bait(), Bait()
    send_descriptors(frames.connection, move(0, [one.announced(), other.announced()]), [one.number])
    report_and_end(frames)


def more(frames):
    bait = Bait()
    send_descriptors(frames.connection, move(0, [bait.announced()]), [bait.number] * 3)


def lies(frames):
    bait = Bait()
    send_descriptors(frames.connection, move(0, [bait.announced(unread=2 ** 40)], b"four"), [bait.number])


def endless(frames):
    """Moves without an end, and no yours."""
    for number in range(1_000):
        bait = Bait()
        try:
            send_descriptors(frames.connection, move(number, [bait.announced()]), [bait.number])
        except Lost:
            break
        bait.ours.close()
    frames.connection.settimeout(None)


def crowded(frames):
    """Descriptors with every byte of a frame that has no end."""
    nothing = os.open("/dev/null", os.O_RDONLY)
    frames.connection.sendall(HEADER.pack(MAGIC, 1_000, 0))
    try:
        for _ in range(1_000):
            send_descriptors(frames.connection, b" ", [nothing] * 253)
    except Lost:
        pass
    frames.connection.settimeout(None)


def listening():
    listener = socket.create_server(("127.0.0.1", 0))
    return listener.detach()


def epoll():
    with select.epoll() as instance:
        return os.dup(instance.fileno())


def other_connection():
    one, other = socket.socketpair()
    other.detach()
    return one.detach()


INCUMBENT_MOVES = {
    "wrong-magic": raw(RAW["wrong-magic"]),
    "huge-head": raw(RAW["huge-head"]),
    "huge-body": raw(HEADER.pack(MAGIC, 2, 0xFFFFFFFF) + b"{}"),
    "yours": raw(encode({"type": "yours", "number": 0})),
    "fewer": fewer,
    "more": more,
    "lies": lies,
    "endless": endless,
    "crowded": crowded,
    "others": others,
}


def takes(room=1_000_000_000):
    return {"type": "takes", "room": room, "parties": [PARTY]}


def kept(number=0, **changes):
    return {"type": "kept", "number": number, "room": 9, "refused": [], **changes}


def after_a_move(*heads):
    """Takes what comes, and answers so."""
    def send(frames):
        frames.send(takes())
        head, _ = frames.receive()
        close_all(frames.take(len(head["connections"])))
        for answer in heads:
            frames.send(answer)
    return send


def flood(frames):
    frames.connection.sendall(encode(takes(0)) * 20_000)
    frames.send({"type": "abort", "code": "ERR_TAKEOVER_STATE", "message": "enough"})


SUCCESSOR_MOVES = {
    "close": after_a_move({"type": "abort", "code": "ERR_TAKEOVER_STATE", "message": "no"}),
    "flood": flood,
    "kept-nothing": raw(encode(kept())),
    "kept-other": after_a_move(kept(7)),
    "kept-index": after_a_move(kept(refused=[{"index": 3, "code": "ERR_TAKEOVER_ADOPT", "message": ""}])),
    "kept-text": after_a_move(kept("0")),
    "body": raw(encode(takes(), b"body")),
    "huge-head": raw(RAW["huge-head"]),
    "yours": after_a_move({"type": "yours", "number": 0}),
}


def incumbent_moves(incumbent, name):
    frames = MoveFrames(incumbent.second)
    # Its takes, by which it says that it is there.
    frames.receive()
    say("holding")
    sys.stdin.readline()
    try:
        INCUMBENT_MOVES[name](frames)
    except (OSError, TakeoverError) as error:
        say("stopped", message=str(error))
    listen(frames)
    frames.close()


def successor_moves(successor, name):
    frames = MoveFrames(successor.second)
    try:
        SUCCESSOR_MOVES[name](frames)
    except (OSError, TakeoverError) as error:
        say("stopped", message=str(error))
    listen(frames)
    frames.close()
