"""The thread link: copies between two numpy pools on threads, for engines on a CPU."""

from __future__ import annotations

import itertools
import threading
import time

from scalesim.core import Bytes2D, Fence
from scalesim.foreign import Foreign
from scalesim.memory.links.link import (
    Copies,
    Direction,
    Job,
    JobQueue,
    LinkError,
    Timeline,
    jobs_of,
)


class ThreadLink:
    """A ``Link`` with one thread for each direction, between two numpy pools, uint8 ``[num_pages,
    page_bytes]``.

    numpy releases the interpreter lock while it copies. ``timeline`` tells which fences of the
    compute queue were reached.

    ``bandwidth``: the most bytes a second in each direction; ``None`` for as fast as memory goes.
    Copies of a direction follow one another: a copy that was faster than its bytes allow ends when
    they allow it, and the thread sleeps till then. So a copy costs what it costs on a slower link,
    and no processor time beyond the copying.
    """

    def __init__(
        self, device: Bytes2D, host: Bytes2D, timeline: Timeline, bandwidth: float | None = None
    ) -> None:
        assert device.shape[1] == host.shape[1], (device.shape, host.shape)
        self._device, self._host, self._timeline = device, host, timeline
        self._page_bytes = device.shape[1]
        self._changed = threading.Condition()
        self._queues: dict[Direction, JobQueue[Job]] = {"in": JobQueue(), "out": JobQueue()}
        self._bandwidth = bandwidth
        until_measured = 4e9 if bandwidth is None else min(4e9, bandwidth)
        self._rates: dict[Direction, float] = {"in": until_measured, "out": until_measured}
        self._done: list[tuple[int, Exception | None]] = []
        self._tickets = itertools.count(1)
        self._open = 0
        self._closed = False
        self._threads = [
            threading.Thread(
                target=self._run, args=(direction,), name=f"scalesim-{direction}", daemon=True
            )
            for direction in self._queues
        ]
        for thread in self._threads:
            thread.start()

    def submit(
        self, copies: Copies, after: Fence | None = None, *, urgent: bool = False
    ) -> list[int]:
        jobs = jobs_of(copies, after, self._page_bytes, self._tickets)
        with self._changed:
            self._queues[copies.direction].add(jobs, urgent=urgent)
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
            cancelled = any(queue.cancel(ticket) for queue in self._queues.values())
            self._open -= cancelled
        return cancelled

    def wait(self, timeout_s: float) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._done or not self._open, timeout_s)
            return bool(self._done)

    def queued_bytes(self, direction: Direction) -> int:
        return self._queues[direction].queued_bytes

    def rate(self, direction: Direction) -> float:
        return self._rates[direction]

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _run(self, direction: Direction) -> None:
        queue = self._queues[direction]
        while True:
            with self._changed:
                self._changed.wait_for(lambda: queue.waiting or self._closed)
                if self._closed:
                    return
                job = queue.waiting.popleft()
            while job.after is not None and not self._timeline.wait(job.after, timeout_s=0.1):
                if self._closed:
                    return
            error: Exception | None = None
            start = time.perf_counter()
            with Foreign() as raised:
                self.copy(job.copies)
            if raised.error is not None:
                error = LinkError(
                    f"copy {direction} of {len(job.copies.device_pages)} pages failed"
                )
                error.__cause__ = raised.error
            if self._bandwidth is not None:
                self._sleep_until(start + job.num_bytes / self._bandwidth)
            seconds = time.perf_counter() - start
            with self._changed:
                queue.queued_bytes -= job.num_bytes
                if error is None:
                    self._rates[direction] += 0.1 * (
                        job.num_bytes / max(seconds, 1e-9) - self._rates[direction]
                    )
                self._done.append((job.ticket, error))
                self._changed.notify_all()

    def _sleep_until(self, end_s: float) -> None:
        """Sleep until ``end_s`` of the performance counter, or until the link closes."""
        with self._changed:
            while not self._closed and (left_s := end_s - time.perf_counter()) > 0.0:
                self._changed.wait(left_s)

    def copy(self, copies: Copies) -> None:
        """Copy the pages of ``copies``. Called on a thread of the link."""
        for device, host, count in copies.pieces():
            on_device = self._device[device : device + count]
            on_host = self._host[host : host + count]
            if copies.direction == "in":
                on_device[:] = on_host
            else:
                on_host[:] = on_device
