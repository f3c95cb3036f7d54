"""A peer that breaks the protocol in one named way.

`NAME[:ARGUMENT…]`, the same for both roles where both have it. The role is the
honest one: successor when somebody answers on the path, else incumbent.

    send:STEP:FRAME        goes on honestly through STEP, then sends that JSON head
    send-all:STEP:FRAMES   the same with a JSON array of heads, all in one write
    send-raw:STEP:BYTES    the same with bytes by their name (steps.py)
    close:STEP             goes on honestly through STEP, then closes its connections
    hold:STEP              goes on honestly through STEP, then only listens
    die:STEP               (incumbent) goes on honestly through STEP, then ends
    moves:NAME             goes on honestly through the lease, and breaks the moves (bad_moves.py)

and what bad_successor.py and bad_incumbent.py have besides.

A successor reports every frame that it gets (`refused` for a refuse), an
incumbent `aborted`; both `closed` when the other side has ended the connection.
"""

from bad_incumbent import INCUMBENT, HostileListeners, meet
from bad_successor import SUCCESSOR
from successor import Successor
from wire import connect, say


def run(text, settings):
    """Misbehaves in the way that is named."""
    name, _, argument = text.partition(":")
    connection = connect(settings.path)
    if connection:
        SUCCESSOR[name](Successor(settings.path, connection), argument)
        return 0
    listeners = HostileListeners(settings)
    say("listening", addr=f"{settings.host}:{listeners.web.getsockname()[1]}")
    while True:
        meet(listeners, INCUMBENT[name], argument)
