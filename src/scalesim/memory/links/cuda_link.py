"""The link of a GPU: pages by DMA between the device pool and pinned host memory, on two streams.

Made by ``engine.build``; the engine's thread calls it, and no other thread is needed: what ``dma``
keeps in flight lasts until it is looked at again. The four orderings, and who keeps them:

    write before copy-out       residency saves only what a collected step wrote
    copy-out before reuse       residency frees pages only when ``poll`` has reported their copy
    last read before copy-in    the stream waits for ``after``, on the device
    copy-in before first read   a request starts only when ``poll`` has reported its loads

So what ``poll`` reports must have ended: a ticket ends when the host has seen its event.
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

_WEIGHT = 0.1
_ASSUMED_BYTES_PER_S = 20e9  # until measured


class HostPages(Protocol):
    """``pages``: a uint8 tensor ``[num_pages, page_bytes]`` of pinned memory; pieces of it that are
    ``seam_pages`` long are registered with the driver one by one."""

    pages: Any
    seam_pages: int

    def close(self) -> None: ...


@dataclass(slots=True)
class _CopyInFlight:
    chunk: DmaChunk
    began: Event
    ended: Event


class _Way:
    """One direction: its stream, what waits for it, and what it carries now."""

    def __init__(self, stream: Stream) -> None:
        self.stream, self.queue = stream, ChunkQueue()
        self.flights: deque[_CopyInFlight] = deque()
        self.rate = _ASSUMED_BYTES_PER_S

    def observe(self, num_bytes: int, seconds: float) -> None:
        if seconds > 0:
            self.rate += _WEIGHT * (num_bytes / seconds - self.rate)


class CudaLink:
    """A ``Link`` between ``device_pages``, a uint8 tensor ``[num_pages, page_bytes]``, and
    ``host``, which it owns and closes. ``fences`` knows the events of the compute queue's steps."""

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
        self._ways: dict[Direction, _Way] = {
            "in": _Way(device.stream("in")),
            "out": _Way(device.stream("out")),
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
        self._ways[copies.direction].queue.add(chunks, urgent=urgent)
        self._start(self._ways[copies.direction])
        return [chunk.ticket for chunk in chunks]

    def poll(self) -> list[tuple[int, Exception | None]]:
        self._depth.looked(self._time_s())
        self._pump()
        ended, self._ended = self._ended, []
        return ended

    def cancel(self, ticket: int) -> bool:
        return any(way.queue.cancel(ticket) for way in self._ways.values())

    def wait(self, timeout_s: float) -> bool:
        until_s = self._time_s() + timeout_s
        while True:
            self._pump()
            busy = any(way.flights for way in self._ways.values())
            if self._ended or not busy or self._time_s() >= until_s:
                return bool(self._ended)
            self._device.pause()

    def queued_bytes(self, direction: Direction) -> int:
        return self._ways[direction].queue.queued_bytes

    def rate(self, direction: Direction) -> float:
        return self._ways[direction].rate

    def close(self) -> None:
        for way in self._ways.values():
            way.stream.record().synchronize()
            way.flights.clear()
        self._host.close()

    def _pump(self) -> None:
        for way in self._ways.values():
            while way.flights and way.flights[0].ended.query():
                flight = way.flights.popleft()
                way.queue.ended(flight.chunk)
                way.observe(flight.chunk.num_bytes, flight.ended.elapsed_s(flight.began))
                self._ended.append((flight.chunk.ticket, None))
            self._start(way)

    def _start(self, way: _Way) -> None:
        depth_bytes = self._depth.num_bytes(way.rate)
        for chunk in way.queue.start(
            depth_bytes, lambda copy: self._fences.is_launched(copy.after)
        ):
            event = self._fences.event(chunk.after)
            if event is not None:
                way.stream.wait(event)
            began = way.stream.record(timed=True)
            try:
                self._copy(way.stream, chunk)
            except RuntimeError as error:  # the driver refused a piece
                way.stream.record().synchronize()  # those before it still run
                way.queue.ended(chunk)
                failed = LinkError(f"copy {chunk.copies.direction} of {chunk.num_bytes} bytes")
                failed.__cause__ = error
                self._ended.append((chunk.ticket, failed))
                continue
            way.flights.append(_CopyInFlight(chunk, began, way.stream.record(timed=True)))

    def _copy(self, stream: Stream, chunk: DmaChunk) -> None:
        inward = chunk.copies.direction == "in"
        for piece in chunk.pieces:
            on_device = self.device_pages[piece.device_page : piece.device_page + piece.count]
            on_host = self._host.pages[piece.host_page : piece.host_page + piece.count]
            stream.copy(on_device, on_host) if inward else stream.copy(on_host, on_device)
