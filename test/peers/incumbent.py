"""The incumbent's side of a hand-over, one method a step.

Every method that sends takes `changes`: other values for the fields of its
frame, so that a broken incumbent is an honest one with one thing wrong.
"""

import os

from wire import (
    BATCH_S, HELLO_S, READY_S, RUNTIME, SILENCE_MS, SPARE_COUNT, VERSION, TakeoverError, batch_head, batches_of,
    changed, entry_of, send_descriptors,
)


class Incumbent:
    """One hand-over from this process."""

    def __init__(self, frames, endpoints, generation, joined, moves=False):
        """`endpoints`: (kind, name, socket), the control socket first; `joined(token)`: the second connection;
        `moves`: whether there are connections that can move."""
        self.frames = frames
        self.endpoints = endpoints
        self.generation = generation
        self.hello = None
        self.second = None
        self._moves = moves
        self._joined = joined

    @property
    def moves(self):
        """Whether both sides have said so."""
        return self._moves and self.hello.get("moves") is True

    def take_hello(self, head=None):
        """hello"""
        self.hello = head or self.frames.receive(HELLO_S, "hello")

    def check_version(self):
        """Refuses a successor that cannot be talked to."""
        versions = self.hello["versions"]
        if not versions["min"] <= VERSION <= versions["max"]:
            raise TakeoverError("ERR_TAKEOVER_VERSION", f"This peer speaks version {VERSION}, the successor {versions}")

    def check_wishes(self):
        """Refuses a successor that wants what there is not, before anything is sent."""
        names = [name for _, name, _ in self.endpoints]
        if any(name not in names for name in self.hello["require"]):
            raise TakeoverError("ERR_TAKEOVER_UNKNOWN_NAME", f"The successor requires {self.hello['require']}")
        if self.hello["room"] < len(self.endpoints) + SPARE_COUNT:
            raise TakeoverError("ERR_TAKEOVER_NO_ROOM", f"The successor has room for {self.hello['room']}")

    def send_offer(self, **changes):
        """offer"""
        self.frames.send(self.offer(**changes))

    def offer(self, **changes):
        return changed({
            "type": "offer",
            "version": VERSION,
            "pid": os.getpid(),
            "runtime": RUNTIME,
            "generation": self.generation,
            "endpoints": [entry_of(*endpoint) for endpoint in self.endpoints],
            "moves": self.moves,
        }, changes)

    def take_join(self):
        """join, on the second connection"""
        self.second = self._joined(self.hello["token"])

    def send_batches(self):
        """batch, received, until everything is there"""
        for number, endpoints in enumerate(batches_of(self.endpoints)):
            count = len(endpoints)
            self.send_batch(number, [sock.fileno() for _, _, sock in endpoints])
            answer = self.frames.receive(BATCH_S, "received")
            if (answer["number"], answer["count"]) != (number, count):
                raise TakeoverError("ERR_TAKEOVER_PROTOCOL", f"Batch {number} was acknowledged as {answer}")
        if not self.moves:
            self.second.close()

    def send_batch(self, number, descriptors, head=None, /, **changes):
        count = len(descriptors)
        send_descriptors(self.second, head or batch_head(number, count), descriptors)
        self.frames.send(changed({"type": "batch", "number": number, "count": count}, changes))

    def take_ready(self):
        """ready"""
        claimed = self.frames.receive(READY_S, "ready")["claimed"]
        names = [name for kind, name, _ in self.endpoints if kind == "listener"]
        if any(name not in names for name in claimed):
            raise TakeoverError("ERR_TAKEOVER_UNKNOWN_NAME", f"The successor claims {claimed}, this peer has {names}")
        return claimed

    def send_lease(self, **changes):
        """lease"""
        self.frames.send(changed({"type": "lease", "silenceMs": SILENCE_MS}, changes))

    def follow_lease(self):
        """alive, until settled; raises when the successor is lost, silent or gives up"""
        while self.follow_once()["type"] != "settled":
            pass

    def follow_once(self):
        try:
            return self.frames.receive(SILENCE_MS / 1_000, "alive", "settled")
        except TakeoverError as error:
            if error.code != "ERR_TAKEOVER_TIMEOUT":
                raise
            message = f"The successor was silent for {SILENCE_MS} ms"
            raise TakeoverError("ERR_TAKEOVER_REVOKED", message) from error

    def send_released(self):
        """released"""
        self.frames.send({"type": "released"})
        self.frames.close()

    def refuse(self, error):
        """refuse"""
        self.frames.send({"type": "refuse", "code": error.code, "message": error.message})
        self.frames.close()
