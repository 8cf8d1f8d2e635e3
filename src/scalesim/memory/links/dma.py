"""Planning of DMA copies: in which order chunks are copied, how they are cut, and how many are in
flight at once.

No tensors and no device are involved: ``CudaLink`` acts on the plans, and property tests run them
alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from scalesim.memory.links.link import MAX_CHUNK_BYTES, Copies, Job, JobQueue

MAX_PIECES = 512
"""DMA copies in flight on one stream. Above some 1000, a call to the driver blocks for 180 µs
instead of 2 (vLLM PR 29013)."""
MIN_DEPTH_BYTES = 4 * MAX_CHUNK_BYTES
_WEIGHT = 0.1  # of the newest gap in the moving average


DmaCopy: TypeAlias = tuple[int, int, int]
"""(device page, host page, number of pages) of one DMA copy: pages consecutive on both sides."""


def dma_pieces(copies: Copies, seam_pages: int) -> list[DmaCopy]:
    """``copies`` as DMA copies. No copy crosses a multiple of ``seam_pages`` on the host, where one
    registration of pinned memory ends and the next begins."""
    pieces = []
    for piece in copies.pieces():
        device, host, count = piece
        room = seam_pages - host % seam_pages
        while count > room:
            pieces.append((device, host, room))
            device, host, count = device + room, host + room, count - room
            piece, room = (device, host, count), seam_pages
        pieces.append(piece)
    return pieces


@dataclass(frozen=True, slots=True)
class DmaChunk(Job):
    """A job cut into DMA copies."""

    pieces: list[DmaCopy]


class Depth:
    """How many bytes to have in flight: what the link copies until it is polled again.

    Fewer bytes would leave the link idle between two iterations of the engine's loop; more would
    make urgent copies wait longer. Never less than four chunks.
    """

    def __init__(self) -> None:
        self._iteration_s = 0.0
        self._last_s: float | None = None

    def polled(self, now_s: float) -> None:
        """The link is polled at ``now_s`` seconds. A gap longer than the average counts at once."""
        if self._last_s is not None:
            gap_s = min(now_s - self._last_s, 0.1)
            self._iteration_s += max(
                _WEIGHT * (gap_s - self._iteration_s), gap_s - self._iteration_s
            )
        self._last_s = now_s

    def num_bytes(self, bytes_per_s: float) -> int:
        """Bytes to have in flight on a link of ``bytes_per_s``."""
        return max(MIN_DEPTH_BYTES, int(1.5 * self._iteration_s * bytes_per_s))


class ChunkQueue(JobQueue[DmaChunk]):
    """The chunks of one direction, and how many bytes and DMA copies of them are in flight."""

    def __init__(self) -> None:
        super().__init__()
        self._bytes_in_flight = self._pieces_in_flight = 0

    def start(self, depth_bytes: int, may_start: Callable[[DmaChunk], bool]) -> Iterator[DmaChunk]:
        """The chunks to start now, in order. With nothing in flight, a chunk of any size may
        start."""
        while self.waiting and may_start(self.waiting[0]):
            chunk = self.waiting[0]
            num_bytes = self._bytes_in_flight + chunk.num_bytes
            num_pieces = self._pieces_in_flight + len(chunk.pieces)
            if self._pieces_in_flight and (num_bytes > depth_bytes or num_pieces > MAX_PIECES):
                return
            self.waiting.popleft()
            self._bytes_in_flight, self._pieces_in_flight = num_bytes, num_pieces
            yield chunk

    def ended(self, chunk: DmaChunk) -> None:
        """The copy of ``chunk`` has ended."""
        self._bytes_in_flight -= chunk.num_bytes
        self._pieces_in_flight -= len(chunk.pieces)
        self.queued_bytes -= chunk.num_bytes
