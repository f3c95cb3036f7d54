"""What broken peers of both roles share: the honest steps up to one, and bytes that are no frames."""

import sys

from wire import HEADER, MAGIC, TakeoverError, encode, say

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
