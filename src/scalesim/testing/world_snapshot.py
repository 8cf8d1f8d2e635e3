"""A snapshot of a memory world, taken in pieces while the world goes on."""

from __future__ import annotations

from dataclasses import dataclass, field

from scalesim.core import Bytes2D
from scalesim.memory.image import BlockRange, CopiedBlocks, LiveBlocks, MemoryImage
from scalesim.memory.pools.page_access import ArrayPages
from scalesim.testing.bed import Bed


@dataclass
class WorldSnapshot:
    """An image and, of its first segments, the ``pages`` that were still there when they were
    copied. ``copied``: pieces that are yet to be read."""

    image: MemoryImage
    live: LiveBlocks
    num_copied: int = 0
    copied: list[CopiedBlocks] = field(default_factory=list)
    pages: list[Bytes2D] = field(default_factory=list)

    def copy(self, count: int, bed: Bed) -> None:
        """Copy the blocks of the next ``count`` segments."""
        first = self.num_copied
        found = list(enumerate(self.image.segments))[first : first + count]
        ranges = [BlockRange(index, 0, segment.num_content) for index, segment in found]
        self.num_copied += len(ranges)
        pages = ArrayPages(bed.device, bed.host)  # not watched: parts of pages are unwritten
        self.copied.append(self.live.copy(ranges, pages, bed.store))

    def read(self) -> None:
        """Read what was copied."""
        for piece in self.copied:
            self.pages += piece.read()
        self.copied.clear()
