"""Links: what carries pages between the device pool and the host pool. The seam, and two
implementations.

``ThreadLink`` copies numpy pools on a thread of its own: truly asynchronous on a CPU.
``VirtualLink`` moves no time but virtual time, for replay and for tests. Neither decides anything.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from scalesim.core import Bytes2D, Fence
from scalesim.errors import ScaleSimError
from scalesim.foreign import Foreign
from scalesim.memory.pool import runs

Direction = Literal["in", "out"]
MAX_CHUNK_BYTES = 16 << 20  # one ticket: large enough for full rate, small enough to wait behind


class LinkError(ScaleSimError):
    """A copy did not arrive. The page it read from is untouched."""


class Source(Protocol):
    """Gives the pages of what is read, not computed. Called on a link's thread, or on any other."""

    def read(self) -> Bytes2D:
        """``[num_pages, page_bytes]``, the same bytes each time. Raises ``AdapterError``."""
        ...


@dataclass(frozen=True, slots=True)
class Held:
    """A source that is in memory already."""

    pages: Bytes2D

    def read(self) -> Bytes2D:
        return self.pages


@dataclass(frozen=True, slots=True)
class Copies:
    """Pages to copy, pairwise: ``"in"`` host to device, ``"out"`` device to host.

    With a ``source``, its pages from ``first`` on are copied instead of the other tier's, whose
    list is empty: ``"in"`` to the device, ``"out"`` to the host.
    """

    direction: Direction
    device_pages: Sequence[int]
    host_pages: Sequence[int]
    source: Source | None = None
    first: int = 0

    @property
    def num_pages(self) -> int:
        return max(len(self.device_pages), len(self.host_pages))

    def pieces(self) -> list[tuple[int, int, int]]:
        """(device page, host page, count) of each run that is consecutive on both sides."""
        found: list[tuple[int, int, int]] = []
        start = 0
        for first, end in runs(self.device_pages):
            done = 0
            for host_first, host_end in runs(self.host_pages[start : start + end - first]):
                found.append((first + done, host_first, host_end - host_first))
                done += host_end - host_first
            start += end - first
        return found


class Link(Protocol):
    """Moves pages asynchronously. A ticket ends once, as done or failed, and is then reported by
    ``poll``; one that was cancelled is not reported.

    ``submit`` cuts the copies into chunks of at most 16 MiB, a ticket each, and starts none before
    ``after`` is reached. Urgent copies overtake those that have not started. ``cancel`` succeeds
    only for what has not started. ``wait`` blocks until ``poll`` would report something, or nothing
    is left.
    """

    def submit(
        self, copies: Copies, after: Fence | None = None, *, urgent: bool = False
    ) -> list[int]: ...

    def poll(self) -> list[tuple[int, Exception | None]]: ...

    def cancel(self, ticket: int) -> bool: ...

    def wait(self, timeout_s: float) -> bool: ...

    def queued_bytes(self, direction: Direction) -> int: ...

    def rate(self, direction: Direction) -> float:
        """Bytes a second, as measured or stated."""
        ...

    def close(self) -> None: ...


class LinkAround:
    """What is put around ``link`` to see, or to change, what goes through it: the rest is the
    link's own."""

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


class Timeline:
    """How far a queue of device work has come, for those who wait on its fences from another
    thread."""

    def __init__(self) -> None:
        self._reached = -1
        self._changed = threading.Condition()

    def reach(self, seq: int) -> None:
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
        with self._changed:
            return self._changed.wait_for(lambda: self.has_reached(fence), timeout_s)


def chunked(copies: Copies, page_bytes: int) -> list[Copies]:
    """``copies`` cut into chunks of at most ``MAX_CHUNK_BYTES`` (at least a page)."""
    step = max(1, MAX_CHUNK_BYTES // page_bytes)
    return [
        Copies(
            copies.direction,
            copies.device_pages[start : start + step],
            copies.host_pages[start : start + step],
            copies.source,
            copies.first + start,
        )
        for start in range(0, copies.num_pages, step)
    ]


@dataclass(slots=True)
class _Job:
    ticket: int
    copies: Copies
    after: Fence | None
    num_bytes: int


class ThreadLink:
    """One thread a direction between two numpy pools ``[num_pages, page_bytes]`` of uint8.

    The copy is numpy's, which lets the interpreter go meanwhile. ``timeline`` answers for the
    fences of the compute queue.
    """

    def __init__(self, device: Bytes2D, host: Bytes2D, timeline: Timeline) -> None:
        assert device.shape[1] == host.shape[1], (device.shape, host.shape)
        self._device, self._host, self._timeline = device, host, timeline
        self._page_bytes = device.shape[1]
        self._changed = threading.Condition()
        self._queues: dict[Direction, deque[_Job]] = {"in": deque(), "out": deque()}
        self._queued: dict[Direction, int] = {"in": 0, "out": 0}
        self._rates: dict[Direction, float] = {"in": 4e9, "out": 4e9}  # until measured
        self._done: list[tuple[int, Exception | None]] = []
        self._tickets = itertools.count(1)
        self._open = 0
        self._closed = False
        self._threads = [
            threading.Thread(target=self._run, args=(way,), name=f"scalesim-{way}", daemon=True)
            for way in self._queues
        ]
        for thread in self._threads:
            thread.start()

    def submit(
        self, copies: Copies, after: Fence | None = None, *, urgent: bool = False
    ) -> list[int]:
        jobs = [
            _Job(next(self._tickets), chunk, after, chunk.num_pages * self._page_bytes)
            for chunk in chunked(copies, self._page_bytes)
        ]
        with self._changed:
            queue = self._queues[copies.direction]
            if urgent:
                queue.extendleft(reversed(jobs))
            else:
                queue.extend(jobs)
            self._queued[copies.direction] += sum(job.num_bytes for job in jobs)
            self._open += len(jobs)
            self._changed.notify_all()
        return [job.ticket for job in jobs]

    def poll(self) -> list[tuple[int, Exception | None]]:
        if not self._done:  # a plain read: nothing to report is the common case
            return []
        with self._changed:
            done, self._done = self._done, []
            self._open -= len(done)
        return done

    def cancel(self, ticket: int) -> bool:
        with self._changed:
            for way, queue in self._queues.items():
                for job in queue:
                    if job.ticket == ticket:
                        queue.remove(job)
                        self._queued[way] -= job.num_bytes
                        self._open -= 1
                        return True
        return False

    def wait(self, timeout_s: float) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._done or not self._open, timeout_s)
            return bool(self._done)

    def queued_bytes(self, direction: Direction) -> int:
        return self._queued[direction]

    def rate(self, direction: Direction) -> float:
        return self._rates[direction]

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _run(self, way: Direction) -> None:
        queue = self._queues[way]
        while True:
            with self._changed:
                self._changed.wait_for(lambda: queue or self._closed)
                if self._closed:
                    return
                job = queue.popleft()
            while job.after is not None and not self._timeline.wait(job.after, timeout_s=0.1):
                if self._closed:
                    return
            error: Exception | None = None
            start = time.perf_counter()
            with Foreign() as raised:
                self._copy(job.copies)
            if raised.error is not None:
                error = LinkError(f"copy {way} of {len(job.copies.device_pages)} pages failed")
                error.__cause__ = raised.error
            seconds = time.perf_counter() - start
            with self._changed:
                self._queued[way] -= job.num_bytes
                if error is None:
                    self._rates[way] += 0.1 * (
                        job.num_bytes / max(seconds, 1e-9) - self._rates[way]
                    )
                self._done.append((job.ticket, error))
                self._changed.notify_all()

    def _copy(self, copies: Copies) -> None:
        for device, host, count in copies.pieces():
            on_device = self._device[device : device + count]
            on_host = self._host[host : host + count]
            if copies.direction == "in":
                on_device[:] = on_host
            else:
                on_host[:] = on_device


class VirtualLink:
    """A link in virtual time: each direction carries ``bytes_per_s``, one chunk after the other.

    ``advance_to`` moves its clock. Bytes are copied only where pools are given, and then at the
    moment a chunk ends. ``after`` is taken as reached: virtual compute ends within its step.
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
        self._busy: list[tuple[float, int, Direction, _Job]] = []  # at most one a direction
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
        for way, queue in self._waiting.items():
            for job in queue:
                if job.ticket == ticket:
                    queue.remove(job)
                    self._queued[way] -= job.num_bytes
                    return True
        return False

    def wait(self, timeout_s: float) -> bool:
        """Virtual time runs on to the next completion, at most ``timeout_s`` from now."""
        if not self._done and self._busy:
            self.advance_to(min(self._busy[0][0], self.now_s + timeout_s))
        return bool(self._done)

    def next_completion_s(self) -> float | None:
        return self._busy[0][0] if self._busy else None

    @property
    def has_news(self) -> bool:
        """Whether ``poll`` would report something."""
        return bool(self._done)

    def advance_to(self, now_s: float) -> None:
        while self._busy and self._busy[0][0] <= now_s:
            end_s, ticket, way, job = heapq.heappop(self._busy)
            self._copy(job.copies)
            self._queued[way] -= job.num_bytes
            self._done.append((ticket, None))
            self._start(way, end_s)
        self.now_s = max(self.now_s, now_s)

    def queued_bytes(self, direction: Direction) -> int:
        return self._queued[direction]

    def rate(self, direction: Direction) -> float:
        return self._rate

    def close(self) -> None:
        pass

    def _start(self, way: Direction, now_s: float) -> None:
        if self._waiting[way] and not any(busy[2] == way for busy in self._busy):
            job = self._waiting[way].popleft()
            seconds = self._latency_s + job.num_bytes / self._rate
            heapq.heappush(self._busy, (now_s + seconds, job.ticket, way, job))

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
