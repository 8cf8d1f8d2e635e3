"""The virtual link: copies in virtual time, for replays and tests."""

from __future__ import annotations

import heapq
import itertools

from scalesim.core import Fence
from scalesim.memory.links.link import Copies, Direction, Job, JobQueue, jobs_of


class VirtualLink:
    """A ``Link`` in virtual time: each direction copies ``bytes_per_s``, one chunk after the other;
    to and from the disk ``disk_bytes_per_s``.

    ``advance_to`` moves the clock. ``after`` counts as reached, since virtual compute ends within
    its step.
    """

    def __init__(self, page_bytes: int, bytes_per_s: float, disk_bytes_per_s: float = 0.0) -> None:
        self.now_s = 0.0
        self._page_bytes = page_bytes
        self._rates: dict[Direction, float] = {
            "in": bytes_per_s,
            "out": bytes_per_s,
            "up": disk_bytes_per_s,
            "down": disk_bytes_per_s,
        }
        self._queues: dict[Direction, JobQueue[Job]] = {each: JobQueue() for each in self._rates}
        self._busy: list[tuple[float, int, Direction, Job]] = []  # at most one a direction
        self._done: list[tuple[int, Exception | None]] = []
        self._tickets = itertools.count(1)

    def submit(
        self, copies: Copies, after: Fence | None = None, *, urgent: bool = False
    ) -> list[int]:
        jobs = jobs_of(copies, after, self._page_bytes, self._tickets)
        self._queues[copies.direction].add(jobs, urgent=urgent)
        self._start(copies.direction, self.now_s)
        return [job.ticket for job in jobs]

    def poll(self) -> list[tuple[int, Exception | None]]:
        done, self._done = self._done, []
        return done

    def cancel(self, ticket: int) -> bool:
        return any(queue.cancel(ticket) for queue in self._queues.values())

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
            self.copy(job.copies)
            self._queues[direction].queued_bytes -= job.num_bytes
            self._done.append((ticket, None))
            self._start(direction, end_s)
        self.now_s = max(self.now_s, now_s)

    def queued_bytes(self, direction: Direction) -> int:
        return self._queues[direction].queued_bytes

    def rate(self, direction: Direction) -> float:
        return self._rates[direction]

    def close(self) -> None:
        pass

    def _start(self, direction: Direction, now_s: float) -> None:
        waiting = self._queues[direction].waiting
        if waiting and not any(busy[2] == direction for busy in self._busy):
            job = waiting.popleft()
            end_s = now_s + job.num_bytes / self._rates[direction]
            heapq.heappush(self._busy, (end_s, job.ticket, direction, job))

    def copy(self, copies: Copies) -> None:
        """Called at the moment a chunk ends. No bytes move; a subclass may move them."""
