"""A lazy heap: items by estimated next use, without a sort and without new keys on a tick.

Known next uses are absolute times, so the passing of time changes nothing. Unknown next uses are
ordered by last use, and count as ``now + (now - last use)``: a known and an unknown one change
places as time passes, so there are two heaps, and only their heads are compared.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable
from typing import Generic, TypeVar

from scalesim.memory.tree.use import UseTime

T = TypeVar("T", bound=Hashable)


class LazyHeap(Generic[T]):
    """A set of items with their ``UseTime``; ``peek(now)`` is the farthest one (the soonest, if
    ``soonest``).

    An entry of a heap counts only while it is its item's newest: a heap cannot delete from its
    middle. ``add`` and ``discard`` cost O(log n) and O(1); stale entries are swept when they
    outnumber the live ones.
    """

    def __init__(self, *, soonest: bool = False) -> None:
        self._sign = 1 if soonest else -1
        self._live: dict[T, tuple[int, UseTime]] = {}
        self._known: list[tuple[float, int, int, T]] = []
        self._unknown: list[tuple[float, int, int, T]] = []
        self._entries = 0

    def __len__(self) -> int:
        return len(self._live)

    def __contains__(self, item: T) -> bool:
        return item in self._live

    def add(self, item: T, use: UseTime) -> None:
        """Add, or move to ``use``."""
        entry = self._live.get(item)
        if entry is not None and entry[1] == use:
            return
        self._entries += 1
        self._live[item] = (self._entries, use)
        heap = self._unknown if use.next_use is None else self._known
        heapq.heappush(heap, self._entry(item, self._entries, use))
        if len(heap) > 2 * len(self._live) + 64:
            self._sweep()

    def discard(self, item: T) -> None:
        self._live.pop(item, None)

    def peek(self, now: float) -> T | None:
        known, unknown = self._head(self._known), self._head(self._unknown)
        if known is None or unknown is None:
            return known if unknown is None else unknown
        first = self._live[known][1].sooner_than(self._live[unknown][1], now)
        return known if first == (self._sign > 0) else unknown

    def _entry(self, item: T, entry: int, use: UseTime) -> tuple[float, int, int, T]:
        if use.next_use is not None:
            return (self._sign * use.next_use, self._sign * use.next_seq, entry, item)
        # the sooner an unknown one is expected, the later it was used
        return (-self._sign * use.last_use, -self._sign * use.last_seq, entry, item)

    def _head(self, heap: list[tuple[float, int, int, T]]) -> T | None:
        while heap:
            _, _, entry, item = heap[0]
            live = self._live.get(item)
            if live is not None and live[0] == entry:
                return item
            heapq.heappop(heap)
        return None

    def _sweep(self) -> None:
        self._known.clear()
        self._unknown.clear()
        for item, (entry, use) in self._live.items():
            heap = self._unknown if use.next_use is None else self._known
            heap.append(self._entry(item, entry, use))
        heapq.heapify(self._known)
        heapq.heapify(self._unknown)
