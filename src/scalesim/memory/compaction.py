"""Compaction: runs of consecutive device pages, made by moving idle pages out of the way.

KV can lie on any pages, since the kernels read it through the block table; a matrix must lie in one
piece. Where no run of free pages is long enough, the window with the fewest pages in use is
chosen, and these are copied to free pages elsewhere. Only pages of segments that no lease pins and
no copy uses are moved, so nobody reads them meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

from scalesim.memory.counters import Counters
from scalesim.memory.drops import Drops
from scalesim.memory.tiers import Tier
from scalesim.memory.tree.prefix_tree import PrefixTree
from scalesim.memory.tree.segment import Segment

MovePages: TypeAlias = Callable[[Sequence[int], Sequence[int]], None]
"""Copies device pages ``(from, to)``, pairwise. What was launched before is over, or in order
before the copies; what is given to the device afterwards is in order behind them."""
_FIXED = 1 << 40  # more than any number of pages


class RunSearch(NamedTuple):
    """A search for ``length`` consecutive pages, and how memory was: how often a segment lost its
    last pin, how many copies had ended, and how many pages were free."""

    length: int
    num_unpinned: int
    num_copies_ended: int
    num_free: int

    def is_in_vain_after(self, other: RunSearch | None) -> bool:
        """Whether nothing was given back since ``other``, which found no run."""
        return other is not None and self[:3] == other[:3] and self.num_free <= other.num_free


class Compaction:
    """Finds and makes runs in the pool of ``device``. Without ``move``, runs are only found."""

    def __init__(
        self, tree: PrefixTree, device: Tier, drops: Drops, counters: Counters,
        move: MovePages | None,
    ) -> None:  # fmt: skip
        self.tree, self._device, self._drops = tree, device, drops
        self._pool, self._counters, self._move = device.pool, counters, move

    def take_run(self, length: int, held: Collection[Segment] = ()) -> list[int] | None:
        """Allocate ``length`` consecutive pages; as many are free in all. The segments ``held`` are
        pinned once, for the request that the pages are for: it has no lease yet, so that they may
        be moved all the same. Returns ``None``, with nothing changed, where every window has a page
        that cannot be moved now."""
        if (run := self._free_run(length)) is not None:
            return run
        places = self.movable(held) if self._move is not None else {}
        start = self._cheapest_window(length, places)
        if start is None:
            return None
        window = list(range(start, start + length))
        in_use = [page for page in window if page in places]
        moved = set(in_use)
        self._pool.claim([page for page in window if page not in moved])
        if in_use:
            self._empty(in_use, places)
        return window

    def _free_run(self, length: int) -> list[int] | None:
        """Allocate ``length`` consecutive pages, if the allocator knows such a run. Far cheaper
        than looking through all pages."""
        pages = self._pool.allocate(length)
        assert pages is not None, (length, self._pool.num_free)
        if pages == list(range(pages[0], pages[0] + length)):
            return pages
        self._pool.free(pages, self._pool.fence(pages))  # the newest fence of any of them
        return None

    def _empty(self, in_use: list[int], places: dict[int, tuple[Segment, int]]) -> None:
        """Move the content of the pages ``in_use`` elsewhere. The window's free pages are allocated
        already, so the targets lie outside of it."""
        targets = self._pool.allocate(len(in_use))
        assert targets is not None and self._move is not None, (in_use, self._pool.num_free)
        self._move(in_use, targets)
        for source, target in zip(in_use, targets, strict=True):
            segment, block = places[source]
            segment.move_page("device", block, target)
        self._drops.free(self._device, in_use)  # a step that was launched may still read them:
        self._pool.claim(in_use)  # they have its fence now, for which a load waits
        self._counters.compacted_pages += len(in_use)

    def movable(self, held: Collection[Segment]) -> dict[int, tuple[Segment, int]]:
        """The segment and block of each device page that may be moved. O(pages)."""
        mine = set(held)
        return {
            page: (segment, block)
            for segment in self.tree
            if not (segment.is_moving or segment.runs) and segment.pins == (segment in mine)
            for block, page in enumerate(segment.device)
        }

    def _cheapest_window(self, length: int, places: dict[int, tuple[Segment, int]]) -> int | None:
        """The first page of the window of ``length`` with the fewest pages in use, none of which is
        fixed; the lowest of several. O(pages)."""
        costs = np.full(self._pool.num_pages, _FIXED, np.int64)
        costs[self._pool.free_mask()] = 0
        costs[list(places)] = 1
        sums = np.concatenate(([0], np.cumsum(costs)))
        if length > len(costs):
            return None
        windows = sums[length:] - sums[:-length]
        start = int(windows.argmin())
        return start if windows[start] < _FIXED else None
