"""Descriptors over a Unix socket with Python's own socket.send_fds and recv_fds.

    peer.py send|receive stream|seqpacket|dgram PATH BATCHES

BATCHES says how many messages of how many descriptors: 2000x1,15x253. Every
descriptor holds its number as text, and has one byte of its message, the
number modulo 256; here it is a pipe. The receiver listens, says "ready", checks all of it, and
says how many there were.
"""

import os
import socket
import sys

TYPES = {"stream": socket.SOCK_STREAM, "seqpacket": socket.SOCK_SEQPACKET, "dgram": socket.SOCK_DGRAM}
MOST = 253


def batches(text):
    first = 0
    for part in text.split(","):
        count, size = map(int, part.split("x"))
        for _ in range(count):
            yield range(first, first + size)
            first += size


def holding(number):
    reader, writer = os.pipe()
    os.write(writer, str(number).encode())
    os.close(writer)
    return reader


def send(peer, numbers):
    files = [holding(number) for number in numbers]
    socket.send_fds(peer, [bytes(number % 256 for number in numbers)], files)
    for file in files:
        os.close(file)


def receive(peer, numbers):
    data, files, flags, _ = socket.recv_fds(peer, 4096, MOST)
    assert data == bytes(number % 256 for number in numbers), f"the bytes at {numbers} are {data!r}"
    assert len(files) == len(numbers), f"{len(files)} descriptors at {numbers}"
    assert not flags & (socket.MSG_CTRUNC | socket.MSG_TRUNC), f"flags {flags:#x}"
    for file, number in zip(files, numbers):
        assert os.read(file, 16) == str(number).encode(), f"descriptor {number} holds something else"
        os.close(file)


def main(role, kind, path, plan):
    peer = socket.socket(socket.AF_UNIX, TYPES[kind])
    peer.settimeout(60)
    if role == "send":
        peer.connect(path)
        for numbers in batches(plan):
            send(peer, numbers)
        return
    peer.bind(path)
    if kind != "dgram":
        peer.listen()
    print("ready", flush=True)
    if kind != "dgram":
        peer, _ = peer.accept()
        peer.settimeout(60)
    total = 0
    for numbers in batches(plan):
        receive(peer, numbers)
        total += len(numbers)
    assert kind == "dgram" or peer.recv(1) == b"", "something came after the last message"
    print(total, "descriptors")


main(*sys.argv[1:])
