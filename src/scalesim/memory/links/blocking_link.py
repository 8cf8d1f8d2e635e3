"""The blocking link: copies without asynchrony, to compare with."""

from __future__ import annotations

from scalesim.core import Fence
from scalesim.memory.links.link import Copies, Link, LinkAround

_LONGEST_WAIT_S = 1.0  # then it looks again


class BlockingLink(LinkAround):
    """Copies by ``link``, and returns from ``submit`` when they have ended: whoever moves state
    waits for it, and so does all that the caller would compute meanwhile.

    ``after`` must be reached without the caller's doing, as the fence of a step that has been
    launched is: a caller that waits launches none. Each ticket is reported by ``poll`` as ever.
    """

    def __init__(self, link: Link) -> None:
        super().__init__(link)
        self._ended: list[tuple[int, Exception | None]] = []

    def submit(
        self, copies: Copies, after: Fence | None = None, *, urgent: bool = False
    ) -> list[int]:
        tickets = self.link.submit(copies, after, urgent=urgent)
        left = set(tickets)
        while left:
            self.link.wait(_LONGEST_WAIT_S)
            ended = self.link.poll()
            left.difference_update(ticket for ticket, _ in ended)
            self._ended += ended
        return tickets

    def poll(self) -> list[tuple[int, Exception | None]]:
        ended, self._ended = self._ended, []
        return [*ended, *self.link.poll()]

    def wait(self, timeout_s: float) -> bool:
        return bool(self._ended) or self.link.wait(timeout_s)
