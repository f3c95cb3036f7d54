#!/usr/bin/env python3
"""An HTTP server that takes over and is taken over from, in Python.

It speaks the wire protocol on its own and does what examples/http.ts does: the
same environment (PORT, HOST, TAKEOVER, SETTLE_MS, DRAIN_MS), the same events as
JSON lines, the same exit status. With ECHO=1 it is examples/echo.ts instead,
whose connections move. `--misbehave NAME` breaks the protocol in one
named way instead (misbehave.py); `--user UID` runs as another user.
"""

import fcntl
import functools
import json
import os
import queue
import signal
import socket
import sys
import threading
import time

from acceptor import Acceptor
from echo import Echo
from incumbent import Incumbent
from moves import Arrivals, Departures
from successor import Successor
from wire import HELLO_S, Frames, Lost, TakeoverError, address_of, check_user, connect, raise_limit, say


class Settings:
    """What the environment says."""

    def __init__(self, environment):
        self.path = environment["TAKEOVER"]
        self.host = environment.get("HOST", "127.0.0.1")
        self.port = int(environment.get("PORT", 8080))
        self.settle_s = int(environment.get("SETTLE_MS", 10_000)) / 1_000
        self.drain_s = int(environment.get("DRAIN_MS", 30_000)) / 1_000
        self.is_echo = "ECHO" in environment


class Peer:
    """This process among its generations."""

    def __init__(self, settings):
        self.settings = settings
        self.generation = 1
        self.control = None
        self.web = None
        self.over = threading.Event()
        self.status = 0
        self.echo = None
        self._departures = None
        self._unsettled = False
        self._session = None
        self._session_lock = threading.Lock()

    def run(self):
        signal.signal(signal.SIGTERM, lambda *_: self.over.set())
        try:
            self._begin()
        except TakeoverError as error:
            return self._refused(error)
        while not self.over.wait(0.5):
            pass
        if self.status == 0:
            self._drain()
        return self.status

    def _begin(self):
        while True:
            connection, lock = connect(self.settings.path), None
            if connection is None:
                connection, lock = self._locked()
            if connection is None:
                return self._become_first(lock)
            if lock:
                release(self.settings.path, lock)
            successor = Successor(self.settings.path, connection, self.settings.is_echo)
            try:
                return self._become_successor(successor)
            except Lost:
                # It left a path on which nobody answers: meet again.
                successor.frames.close()
            except TakeoverError as error:
                successor.give_up(error)
                raise

    def _locked(self):
        """The lock, under which nobody else binds the path, and whoever bound it meanwhile."""
        path = f"{self.settings.path}.lock"
        while True:
            lock = open(path, "wb")
            fcntl.flock(lock, fcntl.LOCK_EX)
            # Its last holder removed it before letting go: then it is another file by now.
            if os.path.exists(path) and os.path.samestat(os.fstat(lock.fileno()), os.stat(path)):
                return connect(self.settings.path), lock
            lock.close()

    def _become_first(self, lock):
        path = self.settings.path
        if os.path.lexists(path):
            os.unlink(path)
        self._open(bind_control(path), bind_web(self.settings))
        release(path, lock)
        self._ready(inherited=False)

    def _become_successor(self, successor):
        successor.greet()
        successor.take_offer()
        successor.join()
        successor.take_batches()
        self.generation = successor.offer["generation"] + 1
        control, web = self._choose(successor)
        try:
            successor.say_ready(claimed=["web"] if web else [])
            successor.take_lease()
        except Lost:
            # It died with everything handed over: this process serves alone.
            pass
        self._unsettled = True
        self._open(control, web or bind_web(self.settings))
        self._ready(inherited=web is not None)
        if successor.moves:
            Arrivals(successor.second, self.echo, self._arrived).start()
        threading.Thread(target=successor.keep_alive, daemon=True).start()
        threading.Thread(target=self._settle, args=[successor], daemon=True).start()

    def _choose(self, successor):
        """The control socket, and the web listener if it is where it is wanted; the others are closed."""
        names = [entry["name"] for entry in successor.offer["endpoints"]]
        control, *others = successor.sockets
        web = None
        for name, sock in zip(names[1:], others):
            if name == "web" and self.settings.port in (0, address_of(sock).get("port")):
                web = sock
            else:
                sock.close()
        return control, web

    def _open(self, control, web):
        if self.settings.is_echo:
            raise_limit()
            self.echo = Echo(f"{os.getpid()} {self.generation}")
        self.control = Acceptor(control, self._answer)
        self.web = Acceptor(web, self.echo.add if self.echo else self._serve)
        self.web.resume()
        self.control.resume()

    def _ready(self, inherited):
        hostname, port = self.web.listener.getsockname()[:2]
        self._say("ready", inherited=inherited, addr=f"{hostname}:{port}")

    def _arrived(self, count, unread_size):
        self._say("arrived", count=count, unreadSize=unread_size)

    def _settle(self, successor):
        start = time.monotonic()
        try:
            successor.settle_after(self.settings.settle_s)
        except TakeoverError as error:
            self.web.pause()
            self.control.pause()
            self.status = self._refused(error)
            self.over.set()
            return
        self._unsettled = False
        self._say("settled", role="successor", leaseMs=elapsed_ms(start))

    def _answer(self, connection):
        """A connection to the control socket: a hello, or the second one of the hand-over in progress."""
        frames = Frames(connection)
        incumbent = Incumbent(frames, self._endpoints(), self.generation, self._joined, self.echo is not None)
        try:
            check_user(connection)
            head = frames.receive(HELLO_S, "hello", "join")
            if head["type"] == "join":
                return self._join(head["token"], connection)
            incumbent.take_hello(head)
            incumbent.check_version()
            self._begin_session(head["token"])
            try:
                incumbent.check_wishes()
                self._hand_over(incumbent)
            finally:
                self._session = None
        except TakeoverError as error:
            incumbent.refuse(error)

    def _endpoints(self):
        return [("control", "", self.control.listener), ("listener", "web", self.web.listener)]

    def _begin_session(self, token):
        with self._session_lock:
            if self._session or self._unsettled:
                raise TakeoverError("ERR_TAKEOVER_BUSY", "A hand-over is in progress")
            self._session = (token, queue.Queue())

    def _join(self, token, connection):
        session = self._session
        if session is None or session[0] != token:
            raise TakeoverError("ERR_TAKEOVER_PROTOCOL", "The token is of no hand-over in progress")
        session[1].put(connection)

    def _joined(self, _token):
        try:
            return self._session[1].get(timeout=HELLO_S)
        except queue.Empty as error:
            raise TakeoverError("ERR_TAKEOVER_TIMEOUT", "The second connection does not come") from error

    def _hand_over(self, incumbent):
        incumbent.send_offer()
        incumbent.take_join()
        incumbent.send_batches()
        claimed = incumbent.take_ready()
        self.control.pause()
        if "web" in claimed:
            self.web.pause()
        start = time.monotonic()
        to = {"pid": incumbent.hello["pid"], "runtime": incumbent.hello["runtime"], "generation": self.generation + 1}
        self._say("released", to=to)
        try:
            incumbent.send_lease()
            if incumbent.moves:
                self._departures = Departures(incumbent.second, self.echo)
                self._departures.start()
            incumbent.follow_lease()
        except TakeoverError as error:
            self.web.resume()
            self.control.resume()
            self._say("resumed", code=error.code)
            raise
        incumbent.send_released()
        self.control.close()
        self.web.close()
        self._say("settled", role="incumbent", leaseMs=elapsed_ms(start))
        self.over.set()

    def _serve(self, connection):
        """One request, whatever it asks for; the connection ends with the answer."""
        with connection:
            connection.settimeout(self.settings.drain_s)
            try:
                read_head(connection)
                who = {"runtime": "python", "generation": self.generation, "pid": os.getpid()}
                connection.sendall(response(json.dumps(who).encode()))
            except OSError:
                pass

    def _drain(self):
        if self.web.listener.fileno() >= 0:
            # Nobody has taken over: nobody can any more.
            self.web.close()
            self.control.close()
            os.unlink(self.settings.path)
        start = time.monotonic()
        if self._departures:
            # What is on its way is nobody's to count.
            self._departures.join(self.settings.drain_s)
        while self._open_count() > 0 and time.monotonic() - start < self.settings.drain_s:
            time.sleep(0.01)
        moved = self._departures.moved_count if self._departures else 0
        self._say("drained", remaining=self._open_count(), moved=moved, ms=elapsed_ms(start))

    def _open_count(self):
        return self.web.open_count + (self.echo.count if self.echo else 0)

    def _refused(self, error):
        say("refused", code=error.code, message=error.message)
        return 1

    def _say(self, event, **more):
        say(event, generation=self.generation, **more)


def release(path, lock):
    """Lets the lock beside the path go; removed first, so that a waiter knows."""
    os.unlink(f"{path}.lock")
    lock.close()


def bind_control(path):
    """The control socket. On Linux the path gets the mode of the socket."""
    control = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    os.fchmod(control.fileno(), 0o600)
    control.bind(path)
    return listening(control)


def bind_web(settings):
    web = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    web.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    web.bind((settings.host, settings.port))
    return listening(web)


def listening(sock):
    """All copies of a listener share this flag, and an event loop elsewhere depends on it."""
    sock.setblocking(False)
    sock.listen(4_096)
    return sock


def read_head(connection):
    data = b""
    while b"\r\n\r\n" not in data:
        part = connection.recv(65_536)
        if not part:
            raise ConnectionResetError
        data += part


def response(body):
    fields = ["Content-Type: application/json", f"Content-Length: {len(body)}", "Connection: close"]
    return "\r\n".join(["HTTP/1.1 200 OK", *fields, "", ""]).encode() + body


def elapsed_ms(start):
    return round((time.monotonic() - start) * 1_000)


def become(user):
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)


def option(name):
    """The word behind an option. argparse would take longer to load than most tests take."""
    return sys.argv[sys.argv.index(name) + 1] if name in sys.argv else None


def main():
    settings, user, misbehaviour = Settings(os.environ), option("--user"), option("--misbehave")
    run = Peer(settings).run
    if misbehaviour:
        import misbehave
        run = functools.partial(misbehave.run, misbehaviour, settings)
    if user:
        become(int(user))
    return run()


if __name__ == "__main__":
    sys.exit(main())
