"""The page event log: what happened to pages last, and which copies are under way. A flight
recorder.

The log is filled where memory meets pages: by its pools and its link. It is read when something is
wrong (``dump``, ``LoggedLink.cancel_all``) and decides nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from scalesim.core import Fence
from scalesim.foreign import Foreign
from scalesim.memory.links.link import Copies, Link, LinkAround
from scalesim.memory.pools.page_pool import PagePool, runs

NUM_EVENTS = 4096
TIERS = ("device", "host", "disk")
PageEvent = tuple[str, "int | Exception | None", Sequence[int], Sequence[int], Sequence[int]]
"""An event: what happened, a number (of a step, fence or ticket) or an error; device, host and disk
pages."""


class PageEventLog:
    """The last ``NUM_EVENTS`` page events of an engine, in a ring buffer. ``note`` is the buffer's
    own append, so an event costs one tuple."""

    def __init__(self) -> None:
        self._events: deque[PageEvent] = deque(maxlen=NUM_EVENTS)
        self.note: Callable[[PageEvent], None] = self._events.append

    def __len__(self) -> int:
        return len(self._events)

    def step(self, number: int) -> None:
        """Record that ``number`` is the newest step that was launched."""
        self.note(("step", number, (), (), ()))

    def dump(self, last: int = NUM_EVENTS) -> str:
        """The last events as text, one line each, the newest last."""
        return "\n".join(map(_line, list(self._events)[-last:]))

    def about(self, page: int, tier: str) -> list[str]:
        """The lines that name ``page`` of the pool of ``tier``."""
        index = TIERS.index(tier)
        return [_line(event) for event in self._events if page in event[2:][index]]


class LoggedPool(PagePool):
    """A pool of ``tier`` that logs each page that it allocates or frees."""

    def __init__(self, num_pages: int, *, first: int = 0, tier: str, log: PageEventLog) -> None:
        super().__init__(num_pages, first=first)
        self._log, self._tier = log.note, TIERS.index(tier)

    def allocate(self, count: int) -> list[int] | None:
        pages = super().allocate(count)
        if pages:
            self._note("taken", None, pages)
        return pages

    def claim(self, pages: Sequence[int]) -> None:
        super().claim(pages)
        if pages:
            self._note("taken", None, pages)

    def free(self, pages: Sequence[int], fence: int = -1) -> None:
        super().free(pages, fence)
        if pages:
            self._note("freed", fence, pages)

    def _note(self, what: str, number: int | None, pages: Sequence[int]) -> None:
        of_tiers: list[Sequence[int]] = [(), (), ()]
        of_tiers[self._tier] = pages
        self._log((what, number, of_tiers[0], of_tiers[1], of_tiers[2]))


class LoggedLink(LinkAround):
    """A link that logs copies, and knows the pages of every copy that has not ended."""

    def __init__(self, link: Link, log: PageEventLog | None) -> None:
        super().__init__(link)
        self._note = _forget if log is None else log.note
        self._open: dict[int, Copies] = {}

    def submit(
        self, copies: Copies, after: Fence | None = None, *, urgent: bool = False
    ) -> list[int]:
        tickets = self.link.submit(copies, after, urgent=urgent)
        name = f"copy {copies.direction}"
        self._note((name, tickets[-1], copies.device_pages, copies.host_pages, copies.disk_pages))
        for ticket in tickets:
            self._open[ticket] = copies
        return tickets

    def poll(self) -> list[tuple[int, Exception | None]]:
        ended = self.link.poll()
        for ticket, error in ended:
            copies = self._open.pop(ticket, None)
            if error is not None and copies is not None:
                pages = copies.device_pages, copies.host_pages, copies.disk_pages
                self._note(("copy failed", error, *pages))
            else:
                self._note(("copy ended", ticket, (), (), ()))
        return ended

    def cancel(self, ticket: int) -> bool:
        cancelled = self.link.cancel(ticket)
        if cancelled:
            self._open.pop(ticket, None)
            self._note(("copy cancelled", ticket, (), (), ()))
        return cancelled

    def cancel_all(self, timeout_s: float) -> tuple[set[int], set[int], set[int]]:
        """Cancel every copy that has not started and wait for the others, whatever the link raises.
        Returns the device, host and disk pages that a copy may still use after ``timeout_s``
        seconds without an end."""
        for ticket in list(self._open):
            with Foreign():
                self.cancel(ticket)
        with Foreign():
            while self._open and self.link.wait(timeout_s):
                self.poll()
        abandoned = list(self._open.values())
        return (
            {page for copies in abandoned for page in copies.device_pages},
            {page for copies in abandoned for page in copies.host_pages},
            {page for copies in abandoned for page in copies.disk_pages},
        )


def _forget(event: PageEvent) -> None:
    """The ``note`` of a link without a log."""


def _line(event: PageEvent) -> str:
    what, number, *pages_of = event
    parts = [what if number is None else f"{what} {number}"]
    for tier, pages in zip(TIERS, pages_of, strict=True):
        if pages:
            named = (f"{a}" if b == a + 1 else f"{a}-{b - 1}" for a, b in runs(list(pages)))
            parts.append(f"{tier} {' '.join(named)}")
    return ": ".join([parts[0], ", ".join(parts[1:])]) if len(parts) > 1 else parts[0]
