"""Runs of pages: the parts of an attachment that each lie on consecutive device pages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate


class PageRuns(tuple[int, ...]):
    """The lengths of the parts, in blocks. A part is on the device whole, or not at all; without
    parts, pages may lie anywhere."""

    __slots__ = ()

    def spans(self) -> Iterator[tuple[int, int]]:
        """(first block, length) of each part."""
        return zip(accumulate(self[:-1], initial=0), self, strict=False)

    def missing(self, first: int) -> list[tuple[int, int]]:
        """(offset, length) of each part from block ``first`` on, counted from there."""
        return [(start - first, length) for start, length in self.spans() if start >= first]

    def start_of(self, block: int) -> int:
        """The first block of the part that has ``block``; ``block`` itself behind the last."""
        if not self:
            return block
        inside = (start for start, length in self.spans() if start <= block < start + length)
        return next(inside, block)

    def heads(self, pages: Sequence[int]) -> list[int]:
        """The first page of each part of ``pages``, which are all there."""
        return [pages[start] for start, _ in self.spans()]


NO_RUNS = PageRuns()
