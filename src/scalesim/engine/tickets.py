"""Tickets: whoever waits for calls holds one; calls whose ticket is gone are cancelled.

However a caller is left (an error, a cancelled task, the collector, Ctrl-C between any two
instructions), what it had begun must end: the calls, their places at the gate, the adapters that
they hold. So the ticket exists before anything else does, and what is done about it is one command
in the loop's inbox, which undoes whatever of it has happened by then. A caller that can still act
puts it there; for one that cannot, because a second Ctrl-C struck just there, the ticket's death
does. No line of Python runs for that, so nothing can interrupt it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial

from scalesim.requests.call import Call

Put = Callable[[Callable[[], object]], object]
"""``SimpleQueue.put`` of an inbox of commands."""


class Ticket:
    """Held by whoever waits for ``calls``."""

    __slots__ = ("__weakref__", "_desk", "calls")

    def __init__(self, desk: Desk, calls: list[Call]) -> None:
        self._desk, self.calls = desk, calls

    def close(self) -> None:
        """Nobody waits any more: those of the calls that have not ended are cancelled."""
        self._desk.put(partial(self._desk.abandon, self.calls))
        self.keep()

    def keep(self) -> None:
        """The calls have ended, or may go on without anybody who waits."""
        self._desk.ties.pop(id(self.calls), None)


class Desk:
    """Gives out tickets. ``abandon`` cancels calls, on the loop's thread."""

    def __init__(self, put: Put, abandon: Callable[[list[Call]], None]) -> None:
        self.put, self.abandon = put, abandon
        self.ties: dict[int, weakref.ref[Ticket]] = {}  # by the ticket's list of calls

    def ticket(self, calls: list[Call]) -> Ticket:
        ticket = Ticket(self, calls)
        # ``put`` gets the dead reference as a second argument, which a SimpleQueue ignores
        dropped = partial(self.put, partial(self._dropped, calls))
        self.ties[id(calls)] = weakref.ref(ticket, dropped)
        return ticket

    def _dropped(self, calls: list[Call]) -> None:
        self.ties.pop(id(calls), None)
        self.abandon(calls)
