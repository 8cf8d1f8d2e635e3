"""A link that also reads sources (adapter files), on a thread of its own, off the engine's.

Wraps the link between the pools, whose copies never wait for a disk. Decides nothing.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from scalesim.core import Bytes2D, Fence
from scalesim.errors import AdapterError
from scalesim.memory.links import Copies, Direction, Link, Timeline

_WAIT_S = 0.002  # between two looks at the other link, while a read is under way

Write = Callable[[Sequence[int], Bytes2D], None]
"""Puts rows of bytes into pages of one pool; returns when they are there."""


class SourceLink:
    """Copies with a source are read and written here, the others go to ``link``. Tickets of reads
    are negative. ``write_device`` and ``write_host`` are called on the reading thread."""

    def __init__(
        self, link: Link, write_device: Write, write_host: Write, timeline: Timeline
    ) -> None:
        self._link, self._timeline = link, timeline
        self._write: dict[Direction, Write] = {"in": write_device, "out": write_host}
        self._changed = threading.Condition()
        self._queue: deque[tuple[int, Copies, Fence | None]] = deque()
        self._done: list[tuple[int, Exception | None]] = []
        self._open = 0
        self._last = 0
        self._closed = False
        self._thread: threading.Thread | None = None  # started by the first read

    def submit(
        self, copies: Copies, after: Fence | None = None, *, urgent: bool = False
    ) -> list[int]:
        if copies.source is None:
            return self._link.submit(copies, after, urgent=urgent)
        with self._changed:
            self._last -= 1
            job = (self._last, copies, after)
            if urgent:
                self._queue.appendleft(job)
            else:
                self._queue.append(job)
            self._open += 1
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="scalesim-read", daemon=True)
                self._thread.start()
            self._changed.notify_all()
            return [job[0]]

    def poll(self) -> list[tuple[int, Exception | None]]:
        if not self._done:
            return self._link.poll()
        with self._changed:
            done, self._done = self._done, []
            self._open -= len(done)
        return done + self._link.poll()

    def cancel(self, ticket: int) -> bool:
        if ticket > 0:
            return self._link.cancel(ticket)
        with self._changed:
            for job in self._queue:
                if job[0] == ticket:
                    self._queue.remove(job)
                    self._open -= 1
                    return True
        return False

    def wait(self, timeout_s: float) -> bool:
        end_s = time.monotonic() + timeout_s
        while self._open:
            with self._changed:
                if self._done or self._changed.wait_for(lambda: self._done, _WAIT_S):
                    return True
            if self._link.wait(0.0) or time.monotonic() > end_s:
                return bool(self._done) or self._link.wait(0.0)
        return self._link.wait(max(0.0, end_s - time.monotonic()))

    def queued_bytes(self, direction: Direction) -> int:
        return self._link.queued_bytes(direction)

    def rate(self, direction: Direction) -> float:
        return self._link.rate(direction)

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
        self._link.close()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closed)
                if self._closed:
                    return
                ticket, copies, after = self._queue.popleft()
            error: Exception | None = None
            try:
                self._read(copies, after)
            except AdapterError as found:
                error = found
            except Exception as found:
                error = AdapterError(f"an adapter could not be read: {found!r}")
                error.__cause__ = found
            with self._changed:
                self._done.append((ticket, error))
                self._changed.notify_all()

    def _read(self, copies: Copies, after: Fence | None) -> None:
        assert copies.source is not None
        rows = copies.source.read()[copies.first : copies.first + copies.num_pages]
        while after is not None and not self._timeline.wait(after, timeout_s=0.1):
            if self._closed:
                raise AdapterError("the engine was closed")
        inward = copies.direction == "in"
        self._write[copies.direction](copies.device_pages if inward else copies.host_pages, rows)
