"""Copy threads: the half of a link that keeps queues and runs one thread for each direction.

A subclass says how pages are copied: between two arrays (``ThreadLink``), or between host memory
and the slots of the disk tier (``DiskThreads``).
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Mapping

from scalesim.core import Fence
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

_WEIGHT = 0.1  # of the newest copy in the rate of its direction


class CopyThreads:
    """A ``Link`` with one thread for each of the directions in ``rates``, which has the rate that
    each is taken to have until one was measured. Pages have ``page_bytes`` bytes.

    ``timeline`` tells which fences of the compute queue were reached; without one, copies wait for
    none. Tickets are numbered from ``first_ticket`` on.

    ``bandwidth``: the most bytes a second in each direction; ``None`` for as fast as it goes.
    Copies of a direction follow one another: a copy that was faster than its bytes allow ends when
    they allow it, and the thread sleeps till then. So a copy costs what it costs on a slower link,
    and no processor time beyond the copying. The next copy is due at that moment, or when it was
    submitted, though the thread woke later: a slow link loses no time to a busy processor.

    A link that is paused begins no copy, ends none, and takes none of that time for copying: rates
    and ends are as if the pause had not been.
    """

    def __init__(
        self,
        page_bytes: int,
        rates: Mapping[Direction, float],
        timeline: Timeline | None = None,
        bandwidth: float | None = None,
        first_ticket: int = 1,
    ) -> None:
        self._page_bytes, self._timeline, self._bandwidth = page_bytes, timeline, bandwidth
        self._changed = threading.Condition()
        self._queues: dict[Direction, JobQueue[Job]] = {each: JobQueue() for each in rates}
        most = float("inf") if bandwidth is None else bandwidth
        self._rates = {direction: min(rate, most) for direction, rate in rates.items()}
        self._filled_s = dict.fromkeys(rates, 0.0)  # when a queue got its first job, by ``time_s``
        self._done: list[tuple[int, Exception | None]] = []
        self._tickets = itertools.count(first_ticket)
        self._open = 0
        self._closed = False
        self._paused_at_s: float | None = None  # by the performance counter; None: it runs
        self._pauses_s = 0.0  # all that are over
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
            if not self._queues[copies.direction].waiting:
                self._filled_s[copies.direction] = self.time_s()
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

    @property
    def is_idle(self) -> bool:
        """Whether every ticket was reported or cancelled."""
        return not self._open

    def queued_bytes(self, direction: Direction) -> int:
        return self._queues[direction].queued_bytes

    def rate(self, direction: Direction) -> float:
        return self._rates[direction]

    def pause(self) -> None:
        """Stand still until ``resume``. What has begun, at most 16 MiB each way, is copied still,
        and ends later. Whoever waits for a copy meanwhile waits for ``resume``."""
        with self._changed:
            if self._paused_at_s is None:
                self._paused_at_s = time.perf_counter()
                self._changed.notify_all()

    def resume(self) -> None:
        """Go on after ``pause``; without one, nothing changes."""
        with self._changed:
            if self._paused_at_s is not None:
                self._pauses_s += time.perf_counter() - self._paused_at_s
                self._paused_at_s = None
                self._changed.notify_all()

    def time_s(self) -> float:
        """Seconds on the link's clock, which stands still while the link is paused."""
        with self._changed:  # the two belong together
            now_s = time.perf_counter() if self._paused_at_s is None else self._paused_at_s
            return now_s - self._pauses_s

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def copy(self, copies: Copies) -> None:
        """Copy the pages of ``copies``. Called on a thread of the link; whatever it raises fails
        the copy."""
        raise NotImplementedError

    def _run(self, direction: Direction) -> None:
        queue = self._queues[direction]
        end_s = 0.0
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: (queue.waiting and self._paused_at_s is None) or self._closed
                )
                if self._closed:
                    return
                job, filled_s = queue.waiting.popleft(), self._filled_s[direction]
            was_reached = self._is_reached(job.after)
            if not (was_reached or self._reaches(job.after)):
                return
            error: Exception | None = None
            start_s = due_s = self.time_s()
            if self._bandwidth is not None and was_reached:
                due_s = max(end_s, filled_s)
            with Foreign() as raised:
                self.copy(job.copies)
            if raised.error is not None:
                error = LinkError(f"copy {direction} of {job.copies.num_pages} pages failed")
                error.__cause__ = raised.error
            with self._changed:
                least_s = 0.0 if self._bandwidth is None else job.num_bytes / self._bandwidth
                seconds = max(least_s, self.time_s() - start_s)
                end_s = due_s + seconds
                self._sleep_until(end_s)
                queue.queued_bytes -= job.num_bytes
                if error is None:
                    self._rates[direction] += _WEIGHT * (
                        job.num_bytes / max(seconds, 1e-9) - self._rates[direction]
                    )
                self._done.append((job.ticket, error))
                self._changed.notify_all()

    def _is_reached(self, fence: Fence | None) -> bool:
        return fence is None or self._timeline is None or self._timeline.has_reached(fence)

    def _reaches(self, fence: Fence | None) -> bool:
        """Wait until ``fence`` is reached; False if the link closes before."""
        if fence is None or self._timeline is None:
            return True
        while not self._timeline.wait(fence, timeout_s=0.1):
            if self._closed:
                return False
        return True

    def _sleep_until(self, end_s: float) -> None:
        """Sleep until ``end_s`` on the link's clock, and while the link is paused even if ``end_s``
        is over: a copy may take longer than its bytes. Ends when the link closes."""
        with self._changed:
            while not self._closed:
                if self._paused_at_s is not None:
                    self._changed.wait()
                elif (left_s := end_s - self.time_s()) > 0.0:
                    self._changed.wait(left_s)
                else:
                    return
