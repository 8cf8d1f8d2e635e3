"""A lazy heap: items ordered by next use, with nothing to do when time passes.

Known next uses are absolute times, so time passing does not change their order. Unknown next uses
are ordered by last use and count as ``now + (now - last use)``, so a known and an unknown one may
change places as time passes. Therefore there are two heaps, and only their heads are compared.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable
from typing import Generic, TypeVar

from scalesim.memory.tree.next_use import NextUse

T = TypeVar("T", bound=Hashable)


class LazyHeap(Generic[T]):
    """A set of items, each with its ``NextUse``. ``peek(now)`` gives the item that is used last
    (with ``soonest``, first).

    A heap cannot delete from its middle, so an entry counts only while it is the newest of its
    item; stale entries are skipped, and removed when they outnumber the live ones. ``add`` costs
    O(log n), ``discard`` O(1).
    """

    def __init__(self, *, soonest: bool = False) -> None:
        self._sign = 1 if soonest else -1
        self._live: dict[T, tuple[int, NextUse]] = {}
        self._known: list[tuple[float, int, int, T]] = []
        self._unknown: list[tuple[float, int, int, T]] = []
        self._entries = 0

    def __len__(self) -> int:
        return len(self._live)

    def __contains__(self, item: T) -> bool:
        return item in self._live

    def add(self, item: T, next_use: NextUse) -> None:
        """Add ``item``, or move it to ``next_use``."""
        entry = self._live.get(item)
        if entry is not None and entry[1] == next_use:
            return
        self._entries += 1
        self._live[item] = (self._entries, next_use)
        heap = self._unknown if next_use.time is None else self._known
        heapq.heappush(heap, self._entry(item, self._entries, next_use))
        if len(heap) > 2 * len(self._live) + 64:
            self._sweep()

    def discard(self, item: T) -> None:
        """Remove ``item``, if it is there."""
        self._live.pop(item, None)

    def peek(self, now: float) -> T | None:
        """The item that is used last (with ``soonest``, first), as of ``now``; ``None`` if there is
        none."""
        known = self._head(self._known) if self._known else None
        unknown = self._head(self._unknown) if self._unknown else None
        if known is None or unknown is None:
            return known if unknown is None else unknown
        first = self._live[known][1].sooner_than(self._live[unknown][1], now)
        return known if first == (self._sign > 0) else unknown

    def _entry(self, item: T, entry: int, next_use: NextUse) -> tuple[float, int, int, T]:
        if next_use.time is not None:
            return (self._sign * next_use.time, self._sign * next_use.seq, entry, item)
        # of unknown next uses, the most recently used item comes first
        return (-self._sign * next_use.last_use, -self._sign * next_use.last_seq, entry, item)

    def _head(self, heap: list[tuple[float, int, int, T]]) -> T | None:
        """The live item at the head of ``heap``; removes stale entries before it."""
        while heap:
            _, _, entry, item = heap[0]
            live = self._live.get(item)
            if live is not None and live[0] == entry:
                return item
            heapq.heappop(heap)
        return None

    def _sweep(self) -> None:
        """Rebuild both heaps without stale entries."""
        self._known.clear()
        self._unknown.clear()
        for item, (entry, next_use) in self._live.items():
            heap = self._unknown if next_use.time is None else self._known
            heap.append(self._entry(item, entry, next_use))
        heapq.heapify(self._known)
        heapq.heapify(self._unknown)
