"""The link of a GPU: DMA copies between the device pool and pinned host memory, on one stream for
each direction.

``engine.build`` makes it, and the engine's thread calls it. It needs no thread of its own:
``Depth`` keeps enough copies in flight to last until the next poll. Four orderings must hold, and
this is what keeps each of them:

    write before copy-out       residency saves only what a collected step wrote
    copy-out before reuse       residency frees pages only when ``poll`` has reported their copy
    last read before copy-in    the stream waits for ``after``, on the device
    copy-in before first read   a request starts only when ``poll`` has reported its loads

So a ticket is reported only when the host has seen its event.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from scalesim.core import Fence
from scalesim.device.streams import Device, Event, Fences, Stream
from scalesim.memory.links.dma import ChunkQueue, Depth, DmaChunk, dma_pieces
from scalesim.memory.links.link import Copies, Direction, LinkError, jobs_of

_WEIGHT = 0.1  # of the newest copy in the rate
_ASSUMED_BYTES_PER_S = 20e9  # until measured


class HostPages(Protocol):
    """Pinned host memory. ``pages`` is a uint8 tensor ``[num_pages, page_bytes]``, registered with
    the driver in pieces of ``seam_pages`` pages."""

    pages: Any
    seam_pages: int

    def close(self) -> None: ...


@dataclass(slots=True)
class _CopyInFlight:
    """A chunk that a stream is copying, with the events of its begin and end."""

    chunk: DmaChunk
    began: Event
    ended: Event


class _Lane:
    """One direction: its stream, the chunks that wait, the copies in flight, and the measured
    rate."""

    def __init__(self, stream: Stream) -> None:
        self.stream, self.queue = stream, ChunkQueue()
        self.in_flight: deque[_CopyInFlight] = deque()
        self.rate = _ASSUMED_BYTES_PER_S

    def observe(self, num_bytes: int, seconds: float) -> None:
        if seconds > 0:
            self.rate += _WEIGHT * (num_bytes / seconds - self.rate)


class CudaLink:
    """A ``Link`` between ``device_pages``, a uint8 tensor ``[num_pages, page_bytes]``, and
    ``host``, which the link owns and closes. ``fences`` has the events of the compute queue's
    steps."""

    def __init__(
        self,
        device: Device,
        device_pages: Any,
        host: HostPages,
        fences: Fences,
        time_s: Callable[[], float] = time.perf_counter,
    ) -> None:
        assert device_pages.shape[1] == host.pages.shape[1], "pages of two sizes"
        self.device_pages = device_pages
        self._device, self._host, self._fences = device, host, fences
        self._page_bytes = int(device_pages.shape[1])
        self._lanes: dict[Direction, _Lane] = {
            "in": _Lane(device.stream("in")),
            "out": _Lane(device.stream("out")),
        }
        self._time_s, self._depth = time_s, Depth()
        self._tickets = itertools.count(1)
        self._ended: list[tuple[int, Exception | None]] = []

    def submit(
        self, copies: Copies, after: Fence | None = None, *, urgent: bool = False
    ) -> list[int]:
        seam_pages = self._host.seam_pages
        chunks = [
            DmaChunk(
                job.ticket, job.copies, after, job.num_bytes, dma_pieces(job.copies, seam_pages)
            )
            for job in jobs_of(copies, after, self._page_bytes, self._tickets)
        ]
        self._lanes[copies.direction].queue.add(chunks, urgent=urgent)
        self._start(self._lanes[copies.direction])
        return [chunk.ticket for chunk in chunks]

    def poll(self) -> list[tuple[int, Exception | None]]:
        self._depth.polled(self._time_s())
        self._pump()
        ended, self._ended = self._ended, []
        return ended

    def cancel(self, ticket: int) -> bool:
        return any(lane.queue.cancel(ticket) for lane in self._lanes.values())

    def wait(self, timeout_s: float) -> bool:
        until_s = self._time_s() + timeout_s
        while True:
            self._pump()
            busy = any(lane.in_flight for lane in self._lanes.values())
            if self._ended or not busy or self._time_s() >= until_s:
                return bool(self._ended)
            self._device.pause()

    def queued_bytes(self, direction: Direction) -> int:
        return self._lanes[direction].queue.queued_bytes

    def rate(self, direction: Direction) -> float:
        return self._lanes[direction].rate

    def close(self) -> None:
        for lane in self._lanes.values():
            lane.stream.record().synchronize()
            lane.in_flight.clear()
        self._host.close()

    def _pump(self) -> None:
        for lane in self._lanes.values():
            while lane.in_flight and lane.in_flight[0].ended.query():
                copy = lane.in_flight.popleft()
                lane.queue.ended(copy.chunk)
                lane.observe(copy.chunk.num_bytes, copy.ended.elapsed_s(copy.began))
                self._ended.append((copy.chunk.ticket, None))
            self._start(lane)

    def _start(self, lane: _Lane) -> None:
        depth_bytes = self._depth.num_bytes(lane.rate)
        for chunk in lane.queue.start(
            depth_bytes, lambda chunk: self._fences.is_launched(chunk.after)
        ):
            event = self._fences.event(chunk.after)
            if event is not None:
                lane.stream.wait(event)
            began = lane.stream.record(timed=True)
            try:
                self._copy(lane.stream, chunk)
            except RuntimeError as error:  # the driver refused a copy
                lane.stream.record().synchronize()  # copies before the refused one still run
                lane.queue.ended(chunk)
                failed = LinkError(f"copy {chunk.copies.direction} of {chunk.num_bytes} bytes")
                failed.__cause__ = error
                self._ended.append((chunk.ticket, failed))
                continue
            lane.in_flight.append(_CopyInFlight(chunk, began, lane.stream.record(timed=True)))

    def _copy(self, stream: Stream, chunk: DmaChunk) -> None:
        if chunk.copies.direction == "in":
            stream.copy_rows(self.device_pages, self._host.pages, chunk.pieces)
        else:
            rows = [(host, device, count) for device, host, count in chunk.pieces]
            stream.copy_rows(self._host.pages, self.device_pages, rows)
