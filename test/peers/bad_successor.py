"""Broken successors by name. See misbehave.py."""

import json
import os
import select
import socket
import time

from bad_moves import successor_moves
from steps import RAW, listen_to, split, walk
from successor import Successor
from wire import DESCRIPTORS_PER_MESSAGE, OMITTED, Frames, connect, encode, say


def take_first_batch(successor):
    successor.take_batch(0, successor.offer["endpoints"][:DESCRIPTORS_PER_MESSAGE])


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


def successor_with_moves(successor, name):
    """Honest up to the lease on the first connection, and not on the second."""
    successor = Successor(successor.path, successor.frames.connection, moves=True)
    walk(SUCCESSOR_STEPS, successor, "lease")
    successor_moves(successor, name)


SUCCESSOR = {
    "moves": successor_with_moves,
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
