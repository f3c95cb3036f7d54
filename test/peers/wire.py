"""The wire protocol of socket-takeover: frames, batches, and the names of sockets.

A second implementation, written from the protocol and not from the library, so
that what both agree on is the protocol.

    frame   "STKO" | head size 4 BE | body size 4 BE | head: a JSON object | body
    batch   "STKD" | number 4 BE | count 4 BE | zero 4, with SCM_RIGHTS beside it
"""

import json
import os
import platform
import resource
import select
import socket
import struct
import sys
import threading
import time

HEADER = struct.Struct(">4sII")
MAGIC = b"STKO"
BATCH_HEAD = struct.Struct(">4sIII")
BATCH_MAGIC = b"STKD"
VERSION = 1
RUNTIME = f"python {platform.python_version()}"

# Linux's SCM_MAX_FD (unix(7)), and its SO_COOKIE, which the socket module has no name for.
DESCRIPTORS_PER_MESSAGE = 253
# Room for more than may come, so that too many are noticed by their number.
RECEIVABLE_COUNT = 512
SO_COOKIE = 57

# How long each side waits, in seconds.
HELLO_S = 5
OFFER_S = 10
BATCH_S = 10
READY_S = 300
LEASE_S = 10
RELEASE_S = 10
SILENCE_MS = 5_000

HEAD_LIMIT = 4 * 1024 * 1024
SPARE_COUNT = 32

# In place of a field: leave it out.
OMITTED = object()


class TakeoverError(Exception):
    """What ended a hand-over, with the protocol's stable code."""

    def __init__(self, code, message):
        super().__init__(message)
        self.code = code
        self.message = message


class Lost(TakeoverError):
    """The other process has gone, as opposed to having said no."""

    def __init__(self):
        super().__init__("ERR_TAKEOVER_LOST", "The other process has ended the connection")


def say(event, **more):
    """Prints one event as a JSON line, as the example server does."""
    line = json.dumps({"event": event, "pid": os.getpid(), "runtime": "python", **more})
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def changed(head, changes):
    """A frame's head with other fields."""
    return {name: value for name, value in {**head, **changes}.items() if value is not OMITTED}


def encode(head, body=b""):
    """A frame as bytes."""
    text = json.dumps(head).encode()
    return HEADER.pack(MAGIC, len(text), len(body)) + text + body


def sizes_of(header, body_limit):
    """How long the head and the body behind a header are."""
    magic, head_size, body_size = HEADER.unpack(header)
    if magic != MAGIC:
        raise TakeoverError("ERR_TAKEOVER_PROTOCOL", "A frame does not start with STKO")
    if head_size > HEAD_LIMIT or body_size > body_limit:
        raise TakeoverError("ERR_TAKEOVER_LIMIT", f"A frame of {head_size} and {body_size} bytes is too large")
    return head_size, body_size


def head_of(text):
    """A frame's head."""
    try:
        head = json.loads(text)
    except ValueError as error:
        raise TakeoverError("ERR_TAKEOVER_PROTOCOL", "A frame's head is not JSON") from error
    if not isinstance(head, dict):
        raise TakeoverError("ERR_TAKEOVER_PROTOCOL", "A frame's head is no object")
    return head


class Frames:
    """Frames over a connected stream. Several threads may send."""

    def __init__(self, connection):
        self.connection = connection
        self._lock = threading.Lock()

    def send(self, head):
        self.send_bytes(encode(head))

    def send_bytes(self, data):
        with self._lock:
            try:
                self.connection.sendall(data)
            except OSError:
                # It has gone, which the next receive says; what it said before can still be read.
                pass

    def receive(self, seconds, *expected):
        """The next frame's head, which has to be of an expected type."""
        head = self.next(seconds)
        kind = head.get("type")
        if kind in ("refuse", "abort"):
            raise TakeoverError(head["code"], head["message"])
        if kind not in expected:
            raise TakeoverError("ERR_TAKEOVER_PROTOCOL", f"Expected {' or '.join(expected)}, got {kind}")
        return head

    def next(self, seconds):
        """The next frame's head, whatever it is."""
        until = None if seconds is None else time.monotonic() + seconds
        head_size, _ = sizes_of(self._exactly(HEADER.size, until), 0)
        return head_of(self._exactly(head_size, until))

    def close(self):
        self.connection.close()

    def _exactly(self, size, until):
        data = b""
        while len(data) < size:
            data += self._some(size - len(data), until)
        return data

    def _some(self, size, until):
        remaining = None if until is None else max(0, until - time.monotonic())
        # Not settimeout: another thread sends on the same socket.
        readable, _, _ = select.select([self.connection], [], [], remaining)
        if not readable:
            raise TakeoverError("ERR_TAKEOVER_TIMEOUT", "The other process does not answer")
        try:
            data = self.connection.recv(size)
        except ConnectionResetError as error:
            raise Lost() from error
        if not data:
            raise Lost()
        return data


def send_descriptors(connection, data, descriptors):
    """One message with descriptors; the rest of the bytes follows a short write."""
    connection.settimeout(BATCH_S)
    try:
        sent = socket.send_fds(connection, [data], descriptors)
        connection.sendall(data[sent:])
    except (BrokenPipeError, ConnectionResetError) as error:
        raise Lost() from error


def batch_head(number, count, magic=BATCH_MAGIC):
    """The head of a batch."""
    return BATCH_HEAD.pack(magic, number, count, 0)


def receive_batch(connection, number, count):
    """The descriptors of an announced batch. All are closed unless they are what was announced."""
    connection.settimeout(BATCH_S)
    data, descriptors = b"", []
    try:
        while len(data) < BATCH_HEAD.size:
            part, received, flags, _ = socket.recv_fds(connection, BATCH_HEAD.size - len(data), RECEIVABLE_COUNT)
            descriptors += received
            if flags & socket.MSG_CTRUNC:
                raise TakeoverError("ERR_TAKEOVER_TRUNCATED", "Descriptors were lost on the way in")
            if not part:
                raise Lost()
            data += part
        if data != batch_head(number, count) or len(descriptors) != count:
            raise TakeoverError("ERR_TAKEOVER_PROTOCOL", f"Batch {number} is not what was announced")
    except BaseException:
        close_all(descriptors)
        raise
    return descriptors


def close_all(descriptors):
    for descriptor in descriptors:
        os.close(descriptor)


def batches_of(items):
    """Items in the portions that fit a message."""
    size = DESCRIPTORS_PER_MESSAGE
    return [items[at:at + size] for at in range(0, len(items), size)]


def cookie_of(sock):
    """SO_COOKIE as 16 hexadecimal digits."""
    return sock.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8)[::-1].hex()


def address_of(sock):
    """Where a socket is bound."""
    name = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        return {"family": "unix", "path": name.decode() if isinstance(name, bytes) else name}
    family = "inet" if sock.family == socket.AF_INET else "inet6"
    address = {"family": family, "hostname": name[0], "port": name[1]}
    return {**address, "scope": name[3]} if family == "inet6" and name[3] else address


def entry_of(kind, name, sock):
    """A socket's line in the manifest."""
    return {"kind": kind, "name": name, "address": address_of(sock), "cookie": cookie_of(sock)}


def verified(descriptor, entry):
    """The listening socket that was offered; anything else is closed."""
    try:
        sock = socket.socket(fileno=descriptor)
    except OSError as error:
        os.close(descriptor)
        raise TakeoverError("ERR_TAKEOVER_DESCRIPTOR", f"Expected {entry}, got no socket") from error
    listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
    found = {**entry, "address": address_of(sock), "cookie": cookie_of(sock)}
    if not listens or sock.type != socket.SOCK_STREAM or found != entry:
        sock.close()
        raise TakeoverError("ERR_TAKEOVER_DESCRIPTOR", f"Expected {entry}, got {found}")
    os.set_inheritable(sock.fileno(), False)
    return sock


def peer_user(connection):
    """The user at the other end (unix(7), SO_PEERCRED)."""
    _, uid, _ = struct.unpack("iII", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return uid


def check_user(connection):
    if peer_user(connection) != os.geteuid():
        raise TakeoverError("ERR_TAKEOVER_USER", f"The other process runs as user {peer_user(connection)}")


def connect(path):
    """A connection to the control socket, or None when nobody listens."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(path)
        return connection
    except (FileNotFoundError, ConnectionRefusedError):
        connection.close()
        return None


def raise_limit():
    """As many descriptors as this process may have; the runtimes do the same."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def free_descriptor_count():
    """How many more descriptors this process may open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(0, soft - len(os.listdir("/proc/self/fd")))
