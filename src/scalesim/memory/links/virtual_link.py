"""The virtual link: copies in virtual time, for replays and tests."""

from __future__ import annotations

import heapq
import itertools
from collections import deque

from scalesim.core import Bytes2D, Fence
from scalesim.memory.links.link import Copies, Direction, chunked
from scalesim.memory.links.thread_link import _Job


class VirtualLink:
    """A ``Link`` in virtual time: each direction copies ``bytes_per_s``, one chunk after the other,
    with ``latency_s`` seconds before each chunk.

    ``advance_to`` moves the clock. Bytes are copied only if ``pools`` (device, host) are given, at
    the moment at which their chunk ends. ``after`` counts as reached, since virtual compute ends
    within its step.
    """

    def __init__(
        self,
        page_bytes: int,
        bytes_per_s: float,
        pools: tuple[Bytes2D, Bytes2D] | None = None,
        latency_s: float = 0.0,
    ) -> None:
        self.now_s = 0.0
        self._page_bytes, self._rate, self._latency_s = page_bytes, bytes_per_s, latency_s
        self._pools = pools
        self._waiting: dict[Direction, deque[_Job]] = {"in": deque(), "out": deque()}
        self._queued: dict[Direction, int] = {"in": 0, "out": 0}
        self._busy: list[tuple[float, int, Direction, _Job]] = []  # at most one for each direction
        self._done: list[tuple[int, Exception | None]] = []
        self._tickets = itertools.count(1)

    def submit(
        self, copies: Copies, after: Fence | None = None, *, urgent: bool = False
    ) -> list[int]:
        jobs = [
            _Job(next(self._tickets), chunk, after, chunk.num_pages * self._page_bytes)
            for chunk in chunked(copies, self._page_bytes)
        ]
        self._queued[copies.direction] += sum(job.num_bytes for job in jobs)
        queue = self._waiting[copies.direction]
        if urgent:
            queue.extendleft(reversed(jobs))
        else:
            queue.extend(jobs)
        self._start(copies.direction, self.now_s)
        return [job.ticket for job in jobs]

    def poll(self) -> list[tuple[int, Exception | None]]:
        done, self._done = self._done, []
        return done

    def cancel(self, ticket: int) -> bool:
        for direction, queue in self._waiting.items():
            for job in queue:
                if job.ticket == ticket:
                    queue.remove(job)
                    self._queued[direction] -= job.num_bytes
                    return True
        return False

    def wait(self, timeout_s: float) -> bool:
        """Move virtual time on to the next end of a copy, at most ``timeout_s`` seconds."""
        if not self._done and self._busy:
            self.advance_to(min(self._busy[0][0], self.now_s + timeout_s))
        return bool(self._done)

    @property
    def has_news(self) -> bool:
        """Whether ``poll`` would report something."""
        return bool(self._done)

    def advance_to(self, now_s: float) -> None:
        """Move the clock to ``now_s`` seconds; copies that end before are done."""
        while self._busy and self._busy[0][0] <= now_s:
            end_s, ticket, direction, job = heapq.heappop(self._busy)
            self._copy(job.copies)
            self._queued[direction] -= job.num_bytes
            self._done.append((ticket, None))
            self._start(direction, end_s)
        self.now_s = max(self.now_s, now_s)

    def queued_bytes(self, direction: Direction) -> int:
        return self._queued[direction]

    def rate(self, direction: Direction) -> float:
        return self._rate

    def close(self) -> None:
        pass

    def _start(self, direction: Direction, now_s: float) -> None:
        if self._waiting[direction] and not any(busy[2] == direction for busy in self._busy):
            job = self._waiting[direction].popleft()
            seconds = self._latency_s + job.num_bytes / self._rate
            heapq.heappush(self._busy, (now_s + seconds, job.ticket, direction, job))

    def _copy(self, copies: Copies) -> None:
        if self._pools is None:
            return
        device, host = self._pools
        if copies.source is not None:
            rows = copies.source.read()[copies.first : copies.first + copies.num_pages]
            pool, pages = (
                (device, copies.device_pages)
                if copies.direction == "in"
                else (host, copies.host_pages)
            )
            pool[list(pages)] = rows
        elif copies.direction == "in":
            device[list(copies.device_pages)] = host[list(copies.host_pages)]
        else:
            host[list(copies.host_pages)] = device[list(copies.device_pages)]
