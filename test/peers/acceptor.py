"""A listener that other processes may hold too, and that can be paused."""

import os
import select
import threading


class Acceptor:
    """Accepts on a listener that other processes may hold too. Starts paused."""

    def __init__(self, listener, handle):
        self.listener = listener
        self.open_count = 0
        self._handle = handle
        self._lock = threading.Lock()
        self._running = threading.Event()
        self._wake, self._woken = os.pipe()
        threading.Thread(target=self._run, daemon=True).start()

    def resume(self):
        self._running.set()

    def pause(self):
        """Returns once nothing is accepted any more."""
        self._running.clear()
        os.write(self._woken, b"!")
        with self._lock:
            pass

    def close(self):
        """Closes this process's copy of the listener."""
        self.pause()
        self.listener.close()

    def _run(self):
        while True:
            self._running.wait()
            readable, _, _ = select.select([self.listener, self._wake], [], [])
            if self._wake in readable:
                os.read(self._wake, 1)
            connection = self._accept()
            if connection:
                threading.Thread(target=self._serve, args=[connection], daemon=True).start()

    def _accept(self):
        with self._lock:
            if not self._running.is_set():
                return None
            try:
                connection, _ = self.listener.accept()
            except BlockingIOError:
                # Another process that has the listener was faster.
                return None
            self.open_count += 1
            return connection

    def _serve(self, connection):
        try:
            self._handle(connection)
        finally:
            with self._lock:
                self.open_count -= 1
