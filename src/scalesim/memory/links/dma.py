"""What a link does before it touches bytes: which copies go next, cut how, and how many at once.

Pure planning, no tensor, no device: ``CudaLink`` acts on it, property tests run it alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from scalesim.core import Fence
from scalesim.memory.links.link import MAX_CHUNK_BYTES, Copies

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
class DmaChunk:
    """One ticket's copies, not started yet."""

    ticket: int
    copies: Copies
    pieces: list[DmaCopy]
    after: Fence | None
    num_bytes: int


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


class ChunkQueue:
    """One direction's chunks: those that wait, urgent ones first, and those that were started."""

    def __init__(self) -> None:
        self.queued_bytes = 0  # not ended
        self._flying_bytes = self._flying_pieces = 0
        self._waiting: deque[DmaChunk] = deque()

    def add(self, chunks: list[DmaChunk], *, urgent: bool) -> None:
        """Urgent chunks keep their own order, and stand before all that wait."""
        if urgent:
            self._waiting.extendleft(reversed(chunks))
        else:
            self._waiting.extend(chunks)
        self.queued_bytes += sum(chunk.num_bytes for chunk in chunks)

    def cancel(self, ticket: int) -> bool:
        for chunk in self._waiting:
            if chunk.ticket == ticket:
                self._waiting.remove(chunk)
                self.queued_bytes -= chunk.num_bytes
                return True
        return False

    def start(self, depth_bytes: int, may_start: Callable[[DmaChunk], bool]) -> Iterator[DmaChunk]:
        """The chunks to start now, in order. A chunk alone is never too large."""
        while self._waiting and may_start(self._waiting[0]):
            chunk = self._waiting[0]
            num_bytes = self._flying_bytes + chunk.num_bytes
            num_pieces = self._flying_pieces + len(chunk.pieces)
            if self._flying_pieces and (num_bytes > depth_bytes or num_pieces > MAX_PIECES):
                return
            self._waiting.popleft()
            self._flying_bytes, self._flying_pieces = num_bytes, num_pieces
            yield chunk

    def ended(self, chunk: DmaChunk) -> None:
        self._flying_bytes -= chunk.num_bytes
        self._flying_pieces -= len(chunk.pieces)
        self.queued_bytes -= chunk.num_bytes
