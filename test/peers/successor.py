"""The successor's side of a hand-over, one method a step.

Every method that sends takes `changes`: other values for the fields of its
frame, so that a broken successor is an honest one with one thing wrong.
"""

import os
import threading

from wire import (
    BATCH_S, LEASE_S, OFFER_S, RELEASE_S, RUNTIME, VERSION, Frames, Lost, TakeoverError, batches_of, changed,
    check_user, connect, encode, free_descriptor_count, receive_batch, verified,
)

INSTANCE = os.urandom(16).hex()


class Successor:
    """One hand-over to this process."""

    def __init__(self, path, connection, moves=False):
        """`moves`: whether it takes connections."""
        self.path = path
        self.frames = Frames(connection)
        self.token = os.urandom(16).hex()
        self.offer = None
        self.second = None
        # The control socket first, then what else has come, in the manifest's order.
        self.sockets = []
        self.silence_ms = 0
        self._moves = moves
        self._ended = threading.Event()

    def greet(self, **changes):
        """hello"""
        check_user(self.frames.connection)
        self.frames.send(self.hello(**changes))

    def hello(self, **changes):
        return changed({
            "type": "hello",
            "versions": {"min": VERSION, "max": VERSION},
            "token": self.token,
            "instance": INSTANCE,
            "pid": os.getpid(),
            "runtime": RUNTIME,
            "room": free_descriptor_count(),
            "require": [],
            "moves": self._moves,
        }, changes)

    @property
    def moves(self):
        """Whether both sides have said so."""
        return self._moves and self.offer.get("moves") is True

    def take_offer(self):
        """offer"""
        self.offer = self.frames.receive(OFFER_S, "offer")
        endpoints = self.offer["endpoints"]
        if self.offer["version"] != VERSION:
            raise TakeoverError("ERR_TAKEOVER_VERSION", f"The incumbent speaks version {self.offer['version']}")
        if [entry["kind"] for entry in endpoints].index("control") != 0:
            raise TakeoverError("ERR_TAKEOVER_PROTOCOL", "The control socket is not the first of the manifest")

    def join(self, **changes):
        """join, on the second connection"""
        self.second = connect(self.path)
        if self.second is None:
            raise Lost()
        check_user(self.second)
        self.second.sendall(encode(changed({"type": "join", "token": self.token}, changes)))

    def take_batches(self):
        """batch, received, until everything is here"""
        for number, entries in enumerate(batches_of(self.offer["endpoints"])):
            try:
                self.take_batch(number, entries)
                self.frames.send(self.received(number, len(entries)))
            except Lost:
                # With the control socket it can go on alone.
                if not self.sockets:
                    raise
                return
        if not self.moves:
            self.second.close()

    def take_batch(self, number, entries):
        announced = self.frames.receive(BATCH_S, "batch")
        if (announced["number"], announced["count"]) != (number, len(entries)):
            raise TakeoverError("ERR_TAKEOVER_PROTOCOL", f"Batch {announced} was not due")
        descriptors = receive_batch(self.second, number, len(entries))
        self.sockets += [verified(descriptor, entry) for descriptor, entry in zip(descriptors, entries)]

    def received(self, number, count, **changes):
        return changed({"type": "received", "number": number, "count": count}, changes)

    def say_ready(self, **changes):
        """ready"""
        self.frames.send(changed({"type": "ready", "claimed": ["web"]}, changes))

    def take_lease(self):
        """lease"""
        self.silence_ms = self.frames.receive(LEASE_S, "lease")["silenceMs"]

    def keep_alive(self):
        """Says alive, five times as often as it has to, until the lease has ended."""
        while not self._ended.wait(max(1, self.silence_ms) / 5_000):
            self.frames.send({"type": "alive"})

    def settle_after(self, seconds):
        """settled after that time, and the incumbent's last word; raises when it revokes the lease."""
        settling = threading.Timer(seconds, self.frames.send, [{"type": "settled"}])
        settling.daemon = True
        settling.start()
        try:
            self.frames.receive(seconds + RELEASE_S, "released")
        except TakeoverError as error:
            # Nobody is left who could revoke it, or nobody who does it in time.
            if error.code not in ("ERR_TAKEOVER_LOST", "ERR_TAKEOVER_TIMEOUT"):
                raise
        finally:
            settling.cancel()
            self._ended.set()
            self.frames.close()

    def give_up(self, error):
        """abort"""
        self.frames.send({"type": "abort", "code": error.code, "message": error.message})
        self.frames.close()
        for sock in self.sockets:
            sock.close()
