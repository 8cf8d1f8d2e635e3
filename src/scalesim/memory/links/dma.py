"""What a link does before it touches bytes: which copies go next, cut how, and how many at once.

Pure planning, no tensor, no device: ``CudaLink`` acts on it, property tests run it alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from scalesim.memory.links.link import MAX_CHUNK_BYTES, Copies, Job, JobQueue

MAX_PIECES = 512
"""DMA copies given to one stream and not ended. Above some 1000 a call to the driver blocks its
caller for 180 µs instead of 2 (vLLM PR 29013)."""
MIN_DEPTH_BYTES = 4 * MAX_CHUNK_BYTES
_WEIGHT = 0.1  # of the newest sample in a running value


@dataclass(frozen=True, slots=True)
class DmaCopy:
    """One DMA copy: ``count`` pages, consecutive on both sides."""

    device_page: int
    host_page: int
    count: int


def dma_pieces(copies: Copies, seam_pages: int) -> list[DmaCopy]:
    """``copies`` as DMA copies. None crosses a multiple of ``seam_pages`` on the host: that is
    where one registration of pinned memory ends and the next begins."""
    pieces = []
    for device, host, count in copies.pieces():
        while count:
            fits = min(count, seam_pages - host % seam_pages)
            pieces.append(DmaCopy(device, host, fits))
            device, host, count = device + fits, host + fits, count - fits
    return pieces


@dataclass(frozen=True, slots=True)
class DmaChunk(Job):
    """A job cut into DMA copies."""

    pieces: list[DmaCopy]


class Depth:
    """How many bytes to have in flight: what the link carries until it is looked at again.

    Less would leave it idle between two iterations of the engine's loop; more would only make
    urgent copies wait. Never less than four chunks.
    """

    def __init__(self) -> None:
        self._iteration_s = 0.0
        self._last_s: float | None = None

    def looked(self, now_s: float) -> None:
        """The link was looked at; a gap longer than those before counts at once."""
        if self._last_s is not None:
            gap_s = min(now_s - self._last_s, 0.1)
            self._iteration_s += max(
                _WEIGHT * (gap_s - self._iteration_s), gap_s - self._iteration_s
            )
        self._last_s = now_s

    def num_bytes(self, bytes_per_s: float) -> int:
        return max(MIN_DEPTH_BYTES, int(1.5 * self._iteration_s * bytes_per_s))


class ChunkQueue(JobQueue[DmaChunk]):
    """The chunks of one direction, and how many bytes and DMA copies of them are in flight."""

    def __init__(self) -> None:
        super().__init__()
        self._flying_bytes = self._flying_pieces = 0

    def start(self, depth_bytes: int, may_start: Callable[[DmaChunk], bool]) -> Iterator[DmaChunk]:
        """The chunks to start now, in order. A chunk alone is never too large."""
        while self.waiting and may_start(self.waiting[0]):
            chunk = self.waiting[0]
            num_bytes = self._flying_bytes + chunk.num_bytes
            num_pieces = self._flying_pieces + len(chunk.pieces)
            if self._flying_pieces and (num_bytes > depth_bytes or num_pieces > MAX_PIECES):
                return
            self.waiting.popleft()
            self._flying_bytes, self._flying_pieces = num_bytes, num_pieces
            yield chunk

    def ended(self, chunk: DmaChunk) -> None:
        self._flying_bytes -= chunk.num_bytes
        self._flying_pieces -= len(chunk.pieces)
        self.queued_bytes -= chunk.num_bytes
