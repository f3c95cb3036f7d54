"""Lines in, `N PID GENERATION` out, as examples/echo.ts does it; connections come and go with their counts."""

import os
import selectors
import socket
import threading


class Line:
    """One connection: how many lines it has had, and the beginning of the next."""

    def __init__(self, connection, count=0):
        self.connection = connection
        self.count = count
        self.begun = b""


class Echo:
    """All connections of this process, in one thread."""

    def __init__(self, who):
        self._who = who
        self._lines = {}
        self._lock = threading.Lock()
        self._selector = selectors.DefaultSelector()
        self._woken, self._wake = os.pipe()
        self._selector.register(self._woken, selectors.EVENT_READ, None)
        threading.Thread(target=self._run, daemon=True).start()

    @property
    def count(self):
        return len(self._lines)

    def add(self, connection, count=0, unread=b""):
        """Serves a connection; what was read of it elsewhere comes before what it holds."""
        connection.setblocking(False)
        line = Line(connection, count)
        with self._lock:
            self._lines[connection.fileno()] = line
            self._feed(line, unread)
            self._selector.register(connection, selectors.EVENT_READ, line)
        os.write(self._wake, b"!")

    def take(self, limit):
        """At most that many connections, which nobody reads or writes from here on."""
        with self._lock:
            taken = list(self._lines.values())[:limit]
            for line in taken:
                self._forget(line)
            return taken

    def put_back(self, line):
        """It stays after all."""
        unread, line.begun = line.begun, b""
        self.add(line.connection, line.count, unread)

    def _forget(self, line):
        del self._lines[line.connection.fileno()]
        self._selector.unregister(line.connection)

    def _run(self):
        while True:
            for key, _ in self._selector.select():
                if key.data is None:
                    os.read(self._woken, 65_536)
                    continue
                with self._lock:
                    # It may have been taken since.
                    if self._lines.get(key.fd) is key.data:
                        self._read(key.data)

    def _read(self, line):
        try:
            data = line.connection.recv(65_536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            return self._feed(line, data)
        self._forget(line)
        line.connection.close()

    def _feed(self, line, data):
        *whole, line.begun = (line.begun + data).split(b"\n")
        answers = []
        for _ in whole:
            line.count += 1
            answers.append(f"{line.count} {self._who}\n")
        if answers:
            # A client that reads nothing has no place here.
            line.connection.send("".join(answers).encode(), socket.MSG_NOSIGNAL)
