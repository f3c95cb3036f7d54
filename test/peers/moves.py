"""Both sides of the second connection once connections move on it, from PROTOCOL.md alone."""

import os
import socket
import threading

from wire import (
    DESCRIPTORS_PER_MESSAGE, HEADER, RECEIVABLE_COUNT, SPARE_COUNT, Lost, TakeoverError, close_all, cookie_of, encode,
    free_descriptor_count, head_of, send_descriptors, sizes_of,
)

PARTY = {"name": "web", "kind": "raw"}
BODY_LIMIT = 20 * 1024 * 1024
WINDOW_COUNT = 2
WINDOW_SIZE = 65_536


class MoveFrames:
    """Frames with bodies and descriptors."""

    def __init__(self, connection):
        self.connection = connection
        connection.settimeout(None)
        self._data = b""
        self._descriptors = []

    def send(self, head):
        try:
            self.connection.sendall(encode(head))
        except OSError:
            # It has gone, which the next receive says; what it said before can still be read.
            pass

    def receive(self):
        """The next frame's head and body; Lost at the end."""
        while True:
            if len(self._data) >= HEADER.size:
                head_size, body_size = sizes_of(self._data[:HEADER.size], BODY_LIMIT)
                body_at = HEADER.size + head_size
                end = body_at + body_size
                if len(self._data) >= end:
                    head, body = head_of(self._data[HEADER.size:body_at]), self._data[body_at:end]
                    self._data = self._data[end:]
                    return head, body
            self._read()

    def take(self, count):
        """The descriptors of a move; fewer when some are missing."""
        taken, self._descriptors = self._descriptors[:count], self._descriptors[count:]
        return taken

    def close(self):
        close_all(self.take(len(self._descriptors)))
        self.connection.close()

    def _read(self):
        try:
            data, descriptors, _, _ = socket.recv_fds(self.connection, 65_536, RECEIVABLE_COUNT)
        except ConnectionResetError:
            # What it said before that is still there.
            return
        self._descriptors += descriptors
        if not data:
            raise Lost()
        self._data += data


class Departures(threading.Thread):
    """The incumbent's side: everything that the echo server has goes."""

    def __init__(self, connection, echo):
        super().__init__(daemon=True)
        self.moved_count = 0
        self._frames = MoveFrames(connection)
        self._echo = echo
        # (number, size, lines)
        self._unanswered = []
        self._number = 0
        self._room = 0

    def run(self):
        try:
            while self._echo.count > 0 or self._unanswered:
                head, _ = self._frames.receive()
                {"takes": self._take, "kept": self._let_go}[head["type"]](head)
                while self._send_next():
                    pass
            self._frames.send({"type": "done"})
        except (TakeoverError, KeyError):
            # Whatever it was: what is not yours stays, and the successor is told first.
            self._frames.send({"type": "back"})
            for _, _, lines in self._unanswered:
                for line in lines:
                    self._echo.put_back(line)
        self._frames.close()

    def _take(self, head):
        self._room = head["room"] if PARTY in head["parties"] else 0

    def _send_next(self):
        on_the_way = sum(len(lines) for _, _, lines in self._unanswered)
        size_on_the_way = sum(size for _, size, _ in self._unanswered)
        limit = min(DESCRIPTORS_PER_MESSAGE, self._room - on_the_way)
        if limit <= 0 or len(self._unanswered) == WINDOW_COUNT:
            return False
        lines = self._echo.take(limit)
        if not lines:
            return False
        frame = encode(self._move(lines), b"".join(line.begun for line in lines))
        if self._unanswered and size_on_the_way + len(frame) > WINDOW_SIZE:
            for line in lines:
                self._echo.put_back(line)
            return False
        self._unanswered.append((self._number, len(frame), lines))
        self._number += 1
        send_descriptors(self._frames.connection, frame, [line.connection.fileno() for line in lines])
        self._frames.connection.settimeout(None)
        return True

    def _move(self, lines):
        return {
            "type": "move",
            "number": self._number,
            **PARTY,
            "connections": [
                {
                    "cookie": cookie_of(line.connection),
                    "state": {"state": {"count": line.count}, "allowHalfOpen": True},
                    "unread": len(line.begun),
                } for line in lines
            ],
        }

    def _let_go(self, head):
        number, _, lines = self._unanswered[0]
        if head["number"] != number:
            raise TakeoverError("ERR_TAKEOVER_PROTOCOL", f"Move {head['number']} was not due")
        self._room = head["room"]
        self._frames.connection.sendall(encode({"type": "yours", "number": number}))
        self._unanswered.pop(0)
        refused = {refusal["index"] for refusal in head["refused"]}
        for index, line in enumerate(lines):
            if index in refused:
                self._echo.put_back(line)
            else:
                line.connection.close()
                self.moved_count += 1


class Arrivals(threading.Thread):
    """The successor's side: everything that comes is served."""

    def __init__(self, connection, echo, ended):
        """`ended(count, unread_size)` is called with how many came, and how many bytes to be read again."""
        super().__init__(daemon=True)
        self._frames = MoveFrames(connection)
        self._echo = echo
        self._ended = ended
        self._count = 0
        self._unread_size = 0
        # (socket, count, unread) by the number of their move.
        self._kept = {}

    def run(self):
        self._frames.send({"type": "takes", "room": self._room(), "parties": [PARTY]})
        try:
            while self._follow(*self._frames.receive()):
                pass
        except Lost:
            # The incumbent is dead: nobody else has what has come.
            for number in sorted(self._kept):
                self._own(number)
        except TakeoverError as error:
            self._frames.send({"type": "abort", "code": error.code, "message": error.message})
        for kept in self._kept.values():
            for sock, _, _ in kept:
                sock.close()
        self._frames.close()
        self._ended(self._count, self._unread_size)

    @staticmethod
    def _room():
        return max(0, free_descriptor_count() - SPARE_COUNT)

    def _follow(self, head, body):
        if head["type"] == "move":
            self._keep(head, body)
        elif head["type"] == "yours":
            self._own(head["number"])
        elif head["type"] in ("back", "done", "refuse"):
            return False
        else:
            raise TakeoverError("ERR_TAKEOVER_PROTOCOL", f"{head['type']} was not due")
        return True

    def _keep(self, head, body):
        connections = head["connections"]
        descriptors = self._frames.take(len(connections))
        kept, refused, at = [], [], 0
        for index, connection in enumerate(connections):
            unread = body[at:at + connection["unread"]]
            at += connection["unread"]
            if len(descriptors) < len(connections):
                refused.append(refusal(index, "ERR_TAKEOVER_MISSING"))
                continue
            sock = verified_connection(descriptors[index], connection["cookie"])
            if sock is None:
                refused.append(refusal(index, "ERR_TAKEOVER_DESCRIPTOR"))
            else:
                kept.append((sock, connection["state"]["state"]["count"], unread))
        if len(descriptors) < len(connections):
            close_all(descriptors)
        self._kept[head["number"]] = kept
        self._frames.send({"type": "kept", "number": head["number"], "room": self._room(), "refused": refused})

    def _own(self, number):
        for sock, count, unread in self._kept.pop(number):
            self._echo.add(sock, count, unread)
            self._count += 1
            self._unread_size += len(unread)


def refusal(index, code):
    return {"index": index, "code": code, "message": "The Python peer does not take it"}


def verified_connection(descriptor, cookie):
    """The socket that was announced, if it is connected; anything else is closed."""
    try:
        sock = socket.socket(fileno=descriptor)
    except OSError:
        os.close(descriptor)
        return None
    try:
        sock.getpeername()
        is_right = cookie_of(sock) == cookie
    except OSError:
        is_right = False
    if is_right:
        os.set_inheritable(descriptor, False)
        return sock
    sock.close()
    return None
