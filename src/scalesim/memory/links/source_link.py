"""The source link: a link that also reads attachments (adapter files, say) from their sources, on
threads of its own.

It wraps the link between the pools, whose copies never wait for a disk. Pages that are read for the
device go through bounce pages, a few pages of host memory kept for this purpose, and from there
like any other copy: pinned where the host pool is pinned, behind the same fences.

Near sources are read one after the other, as a read of a file keeps a core busy. Reads of far ones
mostly wait, so a few run side by side, and no near one waits for them.

    source --a reading thread--> bounce pages --inner link--> device pages
    source --a reading thread--> host pages
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from scalesim.core import Bytes2D, Fence
from scalesim.errors import AdapterError, AttachmentError
from scalesim.foreign import Foreign, words_of
from scalesim.memory.links.link import (
    MAX_CHUNK_BYTES,
    Copies,
    InMemorySource,
    Link,
    LinkAround,
    PageSource,
)

BOUNCE_BYTES = 2 * MAX_CHUNK_BYTES  # one chunk is written while one is copied
FAR_READS = 8  # at once; each holds a whole attachment in memory until its pages are written
CLOSE_S = 1.0  # the longest that closing waits for sources that are being read
_WAIT_S = 0.002  # between two polls of the inner link, while a read is under way
_WEIGHT = 0.1  # of the newest read in the rate
_ASSUMED_BYTES_PER_S = 2e8  # until measured: a disk's, with unpacking

WritePages = Callable[[Sequence[int], Bytes2D], None]
"""Writes rows, uint8 ``[n, page_bytes]``, to ``n`` host pages; returns when they are written."""


def num_bounce_pages(page_bytes: int) -> int:
    """The number of bounce pages that a host pool has behind its own pages, for ``SourceLink``."""
    return max(2, BOUNCE_BYTES // page_bytes)


@dataclass(eq=False, slots=True)
class _Read:
    """One ticket: a read from a source. ``rows`` are the pages as read; the first ``done`` of them
    were taken by parts, and ``num_parts`` parts are on their way to the device."""

    ticket: int
    copies: Copies
    after: Fence | None
    urgent: bool
    rows: Bytes2D | None = None
    done: int = 0
    num_parts: int = 0
    error: Exception | None = None

    @property
    def is_forwarded(self) -> bool:
        return self.error is not None or self.done == self.copies.num_pages

    def rows_of(self, whole: Bytes2D) -> Bytes2D:
        return whole[self.copies.first : self.copies.first + self.copies.num_pages]


@dataclass(eq=False, slots=True)
class _BouncePart:
    """Some pages of a read on their way through bounce pages: written there first, then copied to
    the device."""

    read: _Read
    rows: Bytes2D
    copies: Copies
    tickets: set[int] = field(default_factory=set)


@dataclass(eq=False, slots=True)
class _Reads:
    """Reads that are taken in turn, at most ``limit`` at once: ``queue`` has those that wait,
    ``begun`` those of which pages are missing yet."""

    limit: int
    queue: deque[_Read] = field(default_factory=deque)
    begun: list[_Read] = field(default_factory=list)
    threads: list[threading.Thread] = field(default_factory=list)  # started by the first read


class SourceLink(LinkAround):
    """Reads copies that have a source, and gives the others to the inner ``link``. Tickets of reads
    are negative.

    write : puts rows into host pages; called on a reading thread.
    bounce : host pages that nobody else uses, for reads to the device.
    threaded : if False, each ``poll`` does a piece of the reading on its caller's thread, so that a
        test repeats exactly.
    """

    def __init__(
        self, link: Link, write: WritePages, bounce: Sequence[int], *, threaded: bool = True
    ) -> None:
        super().__init__(link)
        self.read_rate = _ASSUMED_BYTES_PER_S  # bytes a second, as measured
        self.write, self.threaded = write, threaded
        self._changed = threading.Condition()  # guards the fields down to ``_closed``
        self.bounce = list(bounce)
        self._lanes = {False: _Reads(1), True: _Reads(FAR_READS)}  # by whether a source is far
        self._written: list[_BouncePart] = []  # ready for the inner link
        self._done: list[tuple[int, Exception | None]] = []
        self._closed = False
        self._asking: set[threading.Thread] = set()  # that are within a source, and touch no pool
        # The engine's thread alone uses the fields below.
        self._in_flight: dict[int, _BouncePart] = {}  # by ticket of the inner link
        self._ended: list[tuple[int, Exception | None]] = []
        self._open = 0
        self._last = 0

    def submit(
        self, copies: Copies, after: Fence | None = None, *, urgent: bool = False
    ) -> list[int]:
        if copies.source is None:
            return self.link.submit(copies, after, urgent=urgent)
        self._last -= 1
        read = _Read(self._last, copies, after, urgent)
        self._open += 1
        lane = self._lanes[copies.source.is_far]
        with self._changed:
            if urgent:
                lane.queue.appendleft(read)
            else:
                lane.queue.append(read)
            self._changed.notify_all()
        if self.threaded and not lane.threads:
            lane.threads += [
                threading.Thread(target=self._run, args=(lane,), name="scalesim-read", daemon=True)
                for _ in range(lane.limit)
            ]
            for thread in lane.threads:
                thread.start()
        return [read.ticket]

    def poll(self) -> list[tuple[int, Exception | None]]:
        if not self._open and not self._ended:
            return self.link.poll()
        if not self.threaded:
            self.work()
        self._pump()
        ended, self._ended = self._ended, []
        self._open -= sum(ticket < 0 for ticket, _ in ended)
        return ended

    def cancel(self, ticket: int) -> bool:
        if ticket > 0:
            return self.link.cancel(ticket)
        with self._changed:
            for lane in self._lanes.values():
                for read in lane.queue:
                    if read.ticket == ticket:
                        lane.queue.remove(read)
                        self._open -= 1
                        return True
        return False

    def wait(self, timeout_s: float) -> bool:
        end_s = time.monotonic() + timeout_s
        while self._open:
            if not self.threaded:
                self.work()
            self._pump()
            if self._ended:
                return True
            if time.monotonic() > end_s:
                return False
            if not self.link.wait(_WAIT_S) and self.threaded:
                with self._changed:
                    self._changed.wait_for(lambda: self._written or self._done, _WAIT_S)
        return bool(self._ended) or self.link.wait(max(0.0, end_s - time.monotonic()))

    def close(self) -> None:
        """A source may never answer: its thread is left behind, and touches nothing any more."""
        end_s = time.monotonic() + CLOSE_S
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in (thread for lane in self._lanes.values() for thread in lane.threads):
            while thread.is_alive() and (thread not in self._asking or time.monotonic() < end_s):
                thread.join(_WAIT_S)
        self.link.close()

    # -- on the engine's thread ---------------------------------------------------------------

    def _pump(self) -> None:
        """Give written bounce pages to the inner link, and take in what has ended."""
        with self._changed:
            written, self._written = self._written, []
            self._ended += self._done
            self._done = []
        for part in written:
            tickets = self.link.submit(part.copies, part.read.after, urgent=part.read.urgent)
            part.tickets.update(tickets)
            self._in_flight.update(dict.fromkeys(tickets, part))
        for ticket, error in self.link.poll():
            part_of = self._in_flight.pop(ticket, None)
            if part_of is None:
                self._ended.append((ticket, error))
            else:
                self._copied(part_of, ticket, error)

    def _copied(self, part: _BouncePart, ticket: int, error: Exception | None) -> None:
        """One ticket of ``part`` has ended in the inner link."""
        part.tickets.discard(ticket)
        read = part.read
        with self._changed:
            read.error = read.error or error
            if not part.tickets:
                read.num_parts -= 1
                self.bounce += part.copies.host_pages
                self._settle(read)
                self._changed.notify_all()
            self._ended += self._done
            self._done = []

    # -- on the reading threads ---------------------------------------------------------------

    def _run(self, lane: _Reads) -> None:
        while True:
            with self._changed:
                while (piece := self._next(lane)) is None and not self._closed:
                    self._changed.wait()
                if piece is None or self._closed:
                    return
            self._do(*piece)

    def work(self) -> None:
        """Do the next piece of reading, near and far, if one can be done now: fetch a source, or
        fill free bounce pages."""
        for lane in self._lanes.values():
            with self._changed:
                piece = self._next(lane)
            if piece is not None:
                self._do(*piece)

    def _next(self, lane: _Reads) -> tuple[_Read, _BouncePart | None] | None:
        """A read that was fetched, and its next part; or one that is to be fetched; ``None`` while
        there is nothing to do. The caller holds the lock."""
        while True:
            for read in lane.begun:
                if read.rows is not None and self.bounce and not read.is_forwarded:
                    return read, self._claim(read, read.rows)
            if not lane.queue or len(lane.begun) == lane.limit:
                return None
            read = lane.queue.popleft()
            lane.begun.append(read)
            if read.rows is None:
                return read, None

    def _do(self, read: _Read, part: _BouncePart | None) -> None:
        """Fetch the source of ``read``, or write ``part`` of it into its bounce pages."""
        error: Exception | None = None
        with Foreign() as raised:
            if part is None:
                self._fetch(read)
            else:
                self.write(part.copies.host_pages, part.rows)
        if isinstance(raised.error, AttachmentError):
            error = raised.error
        elif raised.error is not None:
            error = AdapterError(f"its source could not be read: {words_of(raised.error)}")
            error.__cause__ = raised.error
        with self._changed:
            read.error = read.error or error
            if part is not None and error is None:
                self._written.append(part)
            elif part is not None:
                read.num_parts -= 1
                self.bounce += part.copies.host_pages
            self._settle(read)
            self._changed.notify_all()

    def _claim(self, read: _Read, rows: Bytes2D) -> _BouncePart:
        """Take the next part of ``read``, as large as free bounce pages allow."""
        max_pages = max(1, MAX_CHUNK_BYTES // rows.shape[1])
        first, count = read.done, min(len(rows) - read.done, len(self.bounce), max_pages)
        pages, self.bounce = self.bounce[:count], self.bounce[count:]
        read.done += count
        read.num_parts += 1
        device = read.copies.device_pages[first : read.done]
        return _BouncePart(read, rows[first : read.done], Copies("in", device, pages))

    def _fetch(self, read: _Read) -> None:
        """Read the source, also for other reads of the same source that wait."""
        source = read.copies.source
        assert source is not None
        start = time.perf_counter()
        whole = self._asked(source)
        if whole is None:
            return
        seconds = max(time.perf_counter() - start, 1e-9)
        if not isinstance(source, InMemorySource) and source.read_s is None:
            self.read_rate += _WEIGHT * (whole.nbytes / seconds - self.read_rate)
        if read.copies.direction == "out":
            self.write(read.copies.host_pages, read.rows_of(whole))
        with self._changed:
            if read.copies.direction == "out":
                read.done = read.copies.num_pages
            else:
                read.rows = read.rows_of(whole)
            for other in self._lane_of(read).queue:
                if other.copies.source is source and other.copies.direction == "in":
                    other.rows = other.rows_of(whole)

    def _asked(self, source: PageSource) -> Bytes2D | None:
        """The pages of ``source``; ``None`` if the link was closed meanwhile."""
        thread = threading.current_thread()
        with self._changed:
            self._asking.add(thread)
        try:
            whole = source.read()
        finally:
            with self._changed:
                is_wanted = not self._closed
                if is_wanted:
                    self._asking.discard(thread)
        return whole if is_wanted else None

    def _lane_of(self, read: _Read) -> _Reads:
        assert read.copies.source is not None
        return self._lanes[read.copies.source.is_far]

    def _settle(self, read: _Read) -> None:
        """Report ``read`` if it is over. The caller holds the lock."""
        if not read.is_forwarded:
            return
        begun = self._lane_of(read).begun
        if read in begun:
            begun.remove(read)
        if not read.num_parts:
            self._done.append((read.ticket, read.error))
