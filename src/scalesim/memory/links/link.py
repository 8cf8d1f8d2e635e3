"""The link protocol: a link copies pages between the pools of two tiers, asynchronously.

``ThreadLink`` copies numpy pools on threads, for engines on a CPU; ``CudaLink`` copies by DMA;
``VirtualLink`` takes virtual time only, for replays and tests; ``SourceLink`` reads attachments
from their sources as well, and ``DiskLink`` copies between host and disk as well. Links decide
nothing: ``Residency`` says what is copied.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, Protocol, TypeVar

from scalesim.core import Bytes2D, Fence, TierName
from scalesim.errors import ScaleSimError
from scalesim.memory.pools.page_pool import paired_runs

Direction = Literal["in", "out", "up", "down"]
"""``"in"`` from host to device, ``"out"`` from device to host; ``"up"`` from disk to host,
``"down"`` from host to disk, where there is a disk."""
WAYS: dict[Direction, tuple[TierName, TierName]] = {
    "in": ("host", "device"),
    "out": ("device", "host"),
    "up": ("disk", "host"),
    "down": ("host", "disk"),
}
"""From where to where each direction goes."""
MAX_CHUNK_BYTES = 16 << 20  # one ticket: enough for the full rate, short enough to wait for


class LinkError(ScaleSimError):
    """A copy failed. The page that it was to read is unchanged."""


class PageSource(Protocol):
    """Gives the pages of state that is read, not computed. Called on a link's thread, or on any
    other. ``read_s``: the seconds that a read takes; ``None``: as reads have taken so far.
    ``is_far``: whether a read waits for another machine; such reads run side by side."""

    read_s: float | None = None
    is_far: bool = False

    def read(self) -> Bytes2D:
        """All pages, uint8 ``[num_pages, page_bytes]``: the same bytes each time. Raises
        ``AttachmentError``."""
        ...


@dataclass(frozen=True, slots=True)
class InMemorySource(PageSource):
    """A source whose pages are in memory already, uint8 ``[num_pages, page_bytes]``."""

    pages: Bytes2D

    def read(self) -> Bytes2D:
        return self.pages


@dataclass(frozen=True, slots=True)
class Copies:
    """Pages to copy, pairwise, between the two tiers of the direction; the list of the third tier
    is empty.

    With a ``source``, its pages from ``first`` on are copied instead of the other tier's, whose
    list is empty: ``"in"`` to the device, ``"out"`` to the host.
    """

    direction: Direction
    device_pages: Sequence[int]
    host_pages: Sequence[int]
    source: PageSource | None = None
    first: int = 0
    disk_pages: Sequence[int] = ()

    @property
    def num_pages(self) -> int:
        return max(len(self.device_pages), len(self.host_pages), len(self.disk_pages))

    def pages(self, place: TierName) -> Sequence[int]:
        """The pages of one tier."""
        of_place = {"device": self.device_pages, "host": self.host_pages, "disk": self.disk_pages}
        return of_place[place]

    def pieces(self) -> list[tuple[int, int, int]]:
        """(upper page, lower page, count) of each run of pages that is consecutive on both sides:
        device and host pages, or host and disk pages."""
        if self.direction in ("in", "out"):
            sides = self.device_pages, self.host_pages
        else:
            sides = self.host_pages, self.disk_pages
        return paired_runs(*sides)


class Link(Protocol):
    """Copies pages asynchronously. Each ticket ends once, as done or failed, and is then reported
    by ``poll``; a cancelled ticket is not reported.

    ``submit`` cuts the copies into chunks of at most 16 MiB, a ticket each, and starts none before
    ``after`` is reached. Urgent copies overtake copies that have not started. ``cancel`` succeeds
    only for a copy that has not started. ``wait`` blocks until ``poll`` would report something or
    no copy is left, at most ``timeout_s`` seconds. ``queued_bytes`` counts the bytes of one
    direction that have not ended.
    """

    def submit(
        self, copies: Copies, after: Fence | None = None, *, urgent: bool = False
    ) -> list[int]: ...

    def poll(self) -> list[tuple[int, Exception | None]]: ...

    def cancel(self, ticket: int) -> bool: ...

    def wait(self, timeout_s: float) -> bool: ...

    def queued_bytes(self, direction: Direction) -> int: ...

    def rate(self, direction: Direction) -> float:
        """The rate of one direction in bytes a second, as measured or given; 0 for a direction that
        takes no copies any more."""
        ...

    def close(self) -> None: ...


class LinkAround:
    """A wrapper that forwards every method to ``link``. Subclasses log or change what goes
    through."""

    def __init__(self, link: Link) -> None:
        self.link = link

    def submit(
        self, copies: Copies, after: Fence | None = None, *, urgent: bool = False
    ) -> list[int]:
        return self.link.submit(copies, after, urgent=urgent)

    def poll(self) -> list[tuple[int, Exception | None]]:
        return self.link.poll()

    def cancel(self, ticket: int) -> bool:
        return self.link.cancel(ticket)

    def wait(self, timeout_s: float) -> bool:
        return self.link.wait(timeout_s)

    def queued_bytes(self, direction: Direction) -> int:
        return self.link.queued_bytes(direction)

    def rate(self, direction: Direction) -> float:
        return self.link.rate(direction)

    def close(self) -> None:
        self.link.close()


def innermost(link: Link) -> Link:
    """The link within all wrappers of ``link``: the one that copies."""
    while isinstance(link, LinkAround):
        link = link.link
    return link


class Timeline:
    """How far a queue of device work has come, for threads that wait for its fences."""

    def __init__(self) -> None:
        self._reached = -1
        self._changed = threading.Condition()

    def reach(self, seq: int) -> None:
        """Record that the work up to ``seq`` is complete."""
        with self._changed:
            self._reached = max(self._reached, seq)
            self._changed.notify_all()

    @property
    def reached(self) -> int:
        """The last piece of work that is complete; -1 for none."""
        return self._reached

    def has_reached(self, fence: Fence) -> bool:
        return self._reached >= fence.seq

    def wait(self, fence: Fence, timeout_s: float) -> bool:
        """Wait until ``fence`` is reached, at most ``timeout_s`` seconds. Returns whether it is."""
        with self._changed:
            return self._changed.wait_for(lambda: self.has_reached(fence), timeout_s)


def seconds_at(rate: float, num_bytes: int) -> float:
    """Seconds that ``num_bytes`` take at ``rate``; infinite at 0, to which the rate of a link may
    fall at any moment."""
    return num_bytes / rate if rate else float("inf")


def chunked(copies: Copies, page_bytes: int) -> list[Copies]:
    """``copies`` cut into chunks of at most ``MAX_CHUNK_BYTES`` and at least one page."""
    return cut(copies, max(1, MAX_CHUNK_BYTES // page_bytes))


def cut(copies: Copies, step: int) -> list[Copies]:
    """``copies`` cut into parts of ``step`` pages; the last part may be shorter."""
    if copies.num_pages <= step:  # nearly always: a part costs as much as a submit
        return [copies] if copies.num_pages else []
    return [
        Copies(
            copies.direction,
            copies.device_pages[start : start + step],
            copies.host_pages[start : start + step],
            copies.source,
            copies.first + start,
            copies.disk_pages[start : start + step],
        )
        for start in range(0, copies.num_pages, step)
    ]


@dataclass(frozen=True, slots=True)
class Job:
    """A chunk of copies under a ticket of its own, and the fence that it waits for."""

    ticket: int
    copies: Copies
    after: Fence | None
    num_bytes: int


def jobs_of(
    copies: Copies, after: Fence | None, page_bytes: int, tickets: Iterator[int]
) -> list[Job]:
    """``copies`` as jobs, one for each chunk."""
    return [
        Job(next(tickets), chunk, after, chunk.num_pages * page_bytes)
        for chunk in chunked(copies, page_bytes)
    ]


AnyJob = TypeVar("AnyJob", bound=Job)


class JobQueue(Generic[AnyJob]):
    """The jobs of one direction: ``waiting`` to start, urgent ones first.

    ``queued_bytes`` counts the jobs that have not ended: a link subtracts a job's bytes at its end.
    """

    def __init__(self) -> None:
        self.waiting: deque[AnyJob] = deque()
        self.queued_bytes = 0

    def add(self, jobs: Sequence[AnyJob], *, urgent: bool) -> None:
        """Add jobs; urgent jobs keep their own order, and stand before all that wait."""
        if urgent:
            self.waiting.extendleft(reversed(jobs))
        else:
            self.waiting.extend(jobs)
        self.queued_bytes += sum(job.num_bytes for job in jobs)

    def cancel(self, ticket: int) -> bool:
        """Remove a job that has not started; False if no job with this ticket waits."""
        for job in self.waiting:
            if job.ticket == ticket:
                self.waiting.remove(job)
                self.queued_bytes -= job.num_bytes
                return True
        return False
