"""The page pool: the allocator of one tier's pages. Knows page ids, and nothing of what pages hold.

A page is either free or allocated. A free page carries a fence: the last step that may still use
the page, recorded when it was freed.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from scalesim.core import Bools


class Pool(Protocol):
    """A page allocator of the pages ``first … num_pages - 1``. ``PagePool`` is the engine's.

    ``allocate`` returns ``count`` page ids or, if fewer are free, ``None`` and changes nothing.
    ``claim`` allocates these very pages, which are free. ``free`` takes back allocated pages, and
    raises ``AssertionError`` for others; its ``fence`` is the last step that may still use the
    pages, and is kept until they are freed again. ``fence(pages)`` is the highest of these steps,
    -1 for none. ``free_mask()``, bool ``[num_pages]``, says which pages are free. ``check`` raises
    ``AssertionError`` if the allocator's own records disagree.
    """

    num_pages: int
    first: int
    num_free: int

    @property
    def num_usable(self) -> int: ...

    @property
    def num_used(self) -> int: ...

    def allocate(self, count: int) -> list[int] | None: ...

    def claim(self, pages: Sequence[int]) -> None: ...

    def free(self, pages: Sequence[int], fence: int = -1) -> None: ...

    def fence(self, pages: Sequence[int]) -> int: ...

    def free_mask(self) -> Bools: ...

    def check(self) -> None: ...


class MakePool(Protocol):
    """Makes the pool of a tier."""

    def __call__(self, num_pages: int, *, first: int = 0) -> Pool: ...


class PagePool:
    """The allocator of the pages ``first … num_pages - 1``; ids below ``first`` are never
    allocated.

    Free pages are kept as maximal runs, in bins by length, so that an allocation is one run
    wherever one is long enough: consecutive pages are copied as one piece. All choices are
    deterministic.
    """

    def __init__(self, num_pages: int, *, first: int = 0) -> None:
        self.num_pages = num_pages
        self.first = first
        self.num_free = 0
        self._fence = array("i", [-1]) * num_pages
        self._is_free = bytearray(num_pages)
        self._length_at: dict[int, int] = {}  # run start -> length
        self._start_before: dict[int, int] = {}  # run end (exclusive) -> start
        self._bins: list[dict[int, None]] = [{} for _ in range(num_pages.bit_length() + 1)]
        self._filled_bins = 0  # bit k: bin k (lengths of k bits) is not empty
        if num_pages > first:
            self._free_run(first, num_pages)

    @property
    def num_usable(self) -> int:
        return self.num_pages - self.first

    @property
    def num_used(self) -> int:
        return self.num_usable - self.num_free

    def allocate(self, count: int) -> list[int] | None:
        """Allocate ``count`` pages: their ids, ascending within each run. Returns ``None``, with
        nothing changed, if fewer are free."""
        if count > self.num_free:
            return None
        pages: list[int] = []
        wanted = count
        while wanted:
            start, length = self._best_run(wanted)
            take = min(length, wanted)
            if take == length:
                self._remove_run(start, length)
            else:
                self._shorten_run(start, length, length - take)
            end = start + length
            pages.extend(range(end - take, end))
            self._is_free[end - take : end] = bytes(take)
            wanted -= take
        self.num_free -= count
        return pages

    def claim(self, pages: Sequence[int]) -> None:
        """Allocate ``pages``, which are free. O(free runs)."""
        for start, end in runs(pages):
            first = max((at for at in self._length_at if at <= start), default=-1)
            length = self._length_at.get(first, 0)
            assert first >= 0 and end <= first + length, f"pages {start}..{end - 1} are not free"
            self._remove_run(first, length)
            if first < start:
                self._add_run(first, start - first)
            if end < first + length:
                self._add_run(end, first + length - end)
            self._is_free[start:end] = bytes(end - start)
            self.num_free -= end - start

    def free(self, pages: Sequence[int], fence: int = -1) -> None:
        """Free ``pages``. ``fence`` is the last step launched, which may still use them."""
        for start, end in runs(pages):
            assert self.first <= start and end <= self.num_pages, (start, end, self.num_pages)
            free_already = self._is_free.find(1, start, end)
            assert free_already < 0, f"page {free_already} of {start}..{end - 1} is free already"
            self._fence[start:end] = array("i", [fence]) * (end - start)
            self._free_run(start, end)

    def fence_free(self, pages: Sequence[int], fence: int) -> None:
        """Raise the fence of ``pages``, which are free: step ``fence`` may use them all the
        same."""
        assert all(self._is_free[page] for page in pages), pages
        for page in pages:
            self._fence[page] = fence

    def fence(self, pages: Sequence[int]) -> int:
        """The last step that may still use any of ``pages``; -1 for none."""
        return max(map(self._fence.__getitem__, pages), default=-1)

    def free_mask(self) -> Bools:
        """Which pages are free, bool ``[num_pages]``. A copy, a byte for each page."""
        return np.array(self._is_free, np.bool_)

    def check(self) -> None:
        """Assert that the runs, the flags and the count agree. O(pages)."""
        from_runs = bytearray(self.num_pages)
        for start, length in self._length_at.items():
            end = start + length
            assert self._start_before[end] == start, (start, end)
            assert start in self._bins[length.bit_length()], (start, length)
            assert from_runs.find(1, start, end) < 0, f"runs overlap at {start}..{end - 1}"
            from_runs[start:end] = b"\1" * length
            assert end not in self._length_at, f"runs {start} and {end} are not joined"
        assert from_runs == self._is_free, "free runs and free flags differ"
        assert from_runs.count(1) == self.num_free, (from_runs.count(1), self.num_free)
        assert len(self._start_before) == len(self._length_at) == sum(map(len, self._bins))

    def _best_run(self, wanted: int) -> tuple[int, int]:
        """(start, length) of a run of at least ``wanted`` pages, or of one of the longest runs if
        none is known."""
        size = wanted.bit_length()
        longer = self._filled_bins >> (size + 1)
        if longer:
            return self._newest(size + (longer & -longer).bit_length())
        for start in reversed(self._bins[size]):
            if self._length_at[start] >= wanted:
                return start, self._length_at[start]
        return self._newest(self._filled_bins.bit_length() - 1)

    def _newest(self, size: int) -> tuple[int, int]:
        start = next(reversed(self._bins[size]))
        return start, self._length_at[start]

    def _free_run(self, start: int, end: int) -> None:
        length = end - start
        self._is_free[start:end] = b"\1" * length
        self.num_free += length
        before = self._start_before.get(start)
        if before is not None:
            self._remove_run(before, start - before)
            start = before
        after = self._length_at.get(end)
        if after is not None:
            self._remove_run(end, after)
            end += after
        self._add_run(start, end - start)

    def _add_run(self, start: int, length: int) -> None:
        self._length_at[start] = length
        self._start_before[start + length] = start
        size = length.bit_length()
        self._bins[size][start] = None
        self._filled_bins |= 1 << size

    def _shorten_run(self, start: int, length: int, num_kept: int) -> None:
        """Keep the first ``num_kept`` pages of a run. It stays in its bin if that has the new
        length too."""
        if num_kept.bit_length() != length.bit_length():
            self._remove_run(start, length)
            self._add_run(start, num_kept)
            return
        del self._start_before[start + length]
        self._start_before[start + num_kept] = start
        self._length_at[start] = num_kept

    def _remove_run(self, start: int, length: int) -> None:
        del self._length_at[start]
        del self._start_before[start + length]
        size = length.bit_length()
        del self._bins[size][start]
        if not self._bins[size]:
            self._filled_bins &= ~(1 << size)


def runs(pages: Sequence[int]) -> list[tuple[int, int]]:
    """``[start, end)`` of each maximal ascending run of ``pages``, in the order given: 4 5 6 2 →
    (4, 7), (2, 3)."""
    if not pages:
        return []
    if pages == list(range(pages[0], pages[0] + len(pages))):  # the common case, fast
        return [(pages[0], pages[0] + len(pages))]
    found: list[tuple[int, int]] = []
    start = end = -1
    for page in pages:
        if page == end:
            end += 1
        else:
            if end > start:
                found.append((start, end))
            start, end = page, page + 1
    if end > start:
        found.append((start, end))
    return found


def paired_runs(pages: Sequence[int], others: Sequence[int]) -> list[tuple[int, int, int]]:
    """(page, other page, count) of each run of pairs that is consecutive on both sides."""
    found: list[tuple[int, int, int]] = []
    first, other_first, count = 0, 0, 0
    for page, other in zip(pages, others, strict=True):
        if count and page == first + count and other == other_first + count:
            count += 1
            continue
        if count:
            found.append((first, other_first, count))
        first, other_first, count = page, other, 1
    if count:
        found.append((first, other_first, count))
    return found
