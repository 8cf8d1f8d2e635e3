"""The hostile link: a deterministic ``Link`` that does the worst that a link may do.

Copies start and land in any order, in pieces, late, over a scribbled destination, or fail halfway.
Bytes are read when a piece lands, never when it is submitted. Single-threaded; driven by a seed, or
by the choices of a test.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from scalesim.core import Bytes2D, Fence, TierName
from scalesim.errors import AdapterError
from scalesim.memory.links.link import (
    WAYS,
    Copies,
    Direction,
    LinkError,
    Timeline,
    cut,
)

SCRIBBLE = 0xA5
Choose = Callable[[int], int]
Queue = Literal["in", "out", "up", "down", "seen", "compute"]


class DeviceEvent(NamedTuple):
    """A possible event: a piece of copy ``number`` lands (``in`` to the device, ``out`` or ``up``
    to the host, ``down`` to the disk), the copy's end becomes visible (``seen``), or step
    ``number`` runs (``compute``)."""

    queue: Queue
    number: int


@dataclass(eq=False, slots=True)
class _Copy:
    ticket: int
    copies: Copies
    after: Fence | None
    num_bytes: int
    pieces: list[tuple[int, int]]  # [first, end) of its bytes, pages laid end to end
    started: bool = False


class HostileLink:
    """A link that copies between ``device`` and ``host`` ``[num_pages, page_bytes]`` when told to;
    and between ``host`` and a disk, once ``add_disk`` has given it one.

    ``step`` lets one piece land or one completion become visible; with ``events`` and ``do`` the
    caller chooses. ``choose(n)`` picks one of ``n``, by default from ``seed``. ``failures`` is the
    number of copies that are yet to fail, ``failure_rate`` the share of all copies that fail.
    Submissions are cut into tickets of ``max_ticket_pages`` pages; a ticket lands in at most
    ``max_pieces`` pieces.
    """

    def __init__(
        self,
        device: Bytes2D,
        host: Bytes2D,
        timeline: Timeline,
        *,
        seed: int = 0,
        choose: Choose | None = None,
        failure_rate: float = 0.0,
        max_ticket_pages: int = 2,
        max_pieces: int = 3,
        bytes_per_s: float = 1e6,
    ) -> None:
        """``timeline`` tells which fences are reached; ``bytes_per_s`` is the result of
        ``rate``."""
        self._device, self.host, self._timeline = device, host, timeline
        self._disk = host[:0]
        self._choose = choose or random.Random(seed).randrange
        self._page_bytes = device.shape[1]
        self._max_ticket_pages = max_ticket_pages
        self._max_pieces, self._bytes_per_s = max_pieces, bytes_per_s
        self._open: list[_Copy] = []
        self._late: list[tuple[int, Exception | None]] = []
        self._seen: list[tuple[int, Exception | None]] = []
        self._tickets = itertools.count(1)
        self.num_ended = 0  # reported by ``poll``
        self.failures = 0
        self.failure_rate = failure_rate

    def add_disk(self, disk: Bytes2D) -> None:
        """Copy to and from ``disk`` ``[num_pages, page_bytes]`` as well."""
        self._disk = disk

    @property
    def num_open(self) -> int:
        """Number of tickets that ``poll`` has not reported."""
        return len(self._open) + len(self._late) + len(self._seen)

    def submit(
        self, copies: Copies, after: Fence | None = None, *, urgent: bool = False
    ) -> list[int]:
        count = copies.num_pages
        if copies.source is None:
            ends = [len(copies.pages(place)) for place in WAYS[copies.direction]]
            assert ends == [count, count] and count, copies
        tickets = []
        for chunk in cut(copies, self._max_ticket_pages):
            num_bytes = chunk.num_pages * self._page_bytes
            copy = _Copy(next(self._tickets), chunk, after, num_bytes, self._pieces(num_bytes))
            self._open.append(copy)
            tickets.append(copy.ticket)
        return tickets

    def step(self) -> bool:
        """Let one piece land, or one completion become visible; False if no event is possible."""
        events = self.events()
        if not events:
            return False
        self.do(events[self._choose(len(events))])
        return True

    def events(self) -> list[DeviceEvent]:
        """The events that are possible now."""
        able = (copy for copy in self._open if copy.started or self._may_start(copy))
        landing = [DeviceEvent(copy.copies.direction, copy.ticket) for copy in able]
        return landing + [DeviceEvent("seen", ticket) for ticket, _ in self._late]

    def state(self) -> list[object]:
        """The state that determines the possible events; tickets are numbered by their order."""
        copies = [
            (copy.copies, copy.started, copy.pieces, self._may_start(copy)) for copy in self._open
        ]
        ends = [[str(error) for _, error in ended] for ended in (self._late, self._seen)]
        return [copies, ends, self.failures]

    def do(self, event: DeviceEvent) -> None:
        """Let ``event``, one of ``events()``, happen."""
        if event.queue == "seen":
            late = next(late for late in self._late if late[0] == event.number)
            self._late.remove(late)
            self._seen.append(late)
        else:
            self._land(next(copy for copy in self._open if copy.ticket == event.number))

    def poll(self) -> list[tuple[int, Exception | None]]:
        seen, self._seen = self._seen, []
        self.num_ended += len(seen)
        return seen

    def cancel(self, ticket: int) -> bool:
        for copy in self._open:
            if copy.ticket == ticket and not copy.started:
                self._open.remove(copy)
                return True
        return False

    def wait(self, timeout_s: float) -> bool:
        while not self._seen and self.step():
            pass
        return bool(self._seen)

    def queued_bytes(self, direction: Direction) -> int:
        return sum(copy.num_bytes for copy in self._open if copy.copies.direction == direction)

    def rate(self, direction: Direction) -> float:
        return self._bytes_per_s

    def close(self) -> None:
        self._open.clear()

    def _may_start(self, copy: _Copy) -> bool:
        return copy.after is None or self._timeline.has_reached(copy.after)

    def _pieces(self, num_bytes: int) -> list[tuple[int, int]]:
        num_cuts = self._choose(self._max_pieces) if self._max_pieces > 1 else 0
        cuts = sorted({0, num_bytes, *(self._choose(num_bytes) for _ in range(num_cuts))})
        return list(itertools.pairwise(cuts))

    def _land(self, copy: _Copy) -> None:
        if not copy.started:
            copy.started = True
            self._scribble(copy.copies)
        rate = self.failure_rate
        if self.failures or (rate and self._choose(1 << 16) < rate * (1 << 16)):
            self.failures = max(0, self.failures - 1)
            self._end(copy, LinkError(f"ticket {copy.ticket} was told to fail"))
            return
        try:
            self._copy(copy.copies, *copy.pieces.pop(self._choose(len(copy.pieces))))
        except AdapterError as error:
            self._end(copy, error)
            return
        if not copy.pieces:
            self._end(copy, None)

    def _end(self, copy: _Copy, error: Exception | None) -> None:
        self._open.remove(copy)
        seen = self._seen if self._choose(2) else self._late
        seen.append((copy.ticket, error))

    def _scribble(self, copies: Copies) -> None:
        """Overwrite the destination: it holds nothing valid from the start of its copy to the
        end."""
        _, to = WAYS[copies.direction]
        self._pool(to)[list(copies.pages(to))] = SCRIBBLE

    def _pool(self, place: TierName) -> Bytes2D:
        return {"device": self._device, "host": self.host, "disk": self._disk}[place]

    def _copy(self, copies: Copies, first: int, end: int) -> None:
        size = self._page_bytes
        source = None if copies.source is None else copies.source.read()
        for index in range(first // size, -(-end // size)):
            part = np.s_[max(first - index * size, 0) : min(end - index * size, size)]
            origin, to = WAYS[copies.direction]
            if source is not None:
                found = source[copies.first + index, part]
            else:
                found = self._pool(origin)[copies.pages(origin)[index], part]
            self._pool(to)[copies.pages(to)[index], part] = found
