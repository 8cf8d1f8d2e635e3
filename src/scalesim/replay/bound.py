"""The fewest pages that any policy could bring back: Belady's rule, in the order of the calls.

A true lower bound of what a policy loaded or computed again, so whatever is uncertain is decided in
favour of the policy. Shares nothing with the planner or the memory: it sees content only.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import xxhash

NEVER = 1 << 60


@dataclass(frozen=True, slots=True)
class Access:
    """One request, at its place in the order of admission: the ids of its pages; the first
    ``num_read`` are its prompt's, which it needs from its admission on, the others it computes. It
    ended before request ``until`` was admitted (0: before the next one), and until then kept what
    it read, unless it was ``preempted`` in between."""

    pages: tuple[int, ...]
    num_read: int
    until: int = 0
    preempted: bool = False

    @property
    def read(self) -> tuple[int, ...]:
        return self.pages[: self.num_read]


def page_ids(tokens: bytes, page_bytes: int, known: dict[int, int]) -> tuple[int, ...]:
    """An id for each whole page of ``tokens``: equal ids, equal tokens up to there."""
    ids, chain = [], 0
    for start in range(0, len(tokens) - page_bytes + 1, page_bytes):
        chain = xxhash.xxh3_64_intdigest(tokens[start : start + page_bytes], seed=chain)
        ids.append(known.setdefault(chain, len(known)))
    return tuple(ids)


def reads_again(accesses: Sequence[Access]) -> list[list[int]]:
    """Of each access, the pages that it reads and that were in an access before it."""
    seen: set[int] = set()
    found = []
    for access in accesses:
        found.append([page for page in access.read if page in seen])
        seen.update(access.pages)
    return found


def belady_loads(accesses: Sequence[Access], capacity: int, start: int = 0) -> list[int]:
    """Pages that each access from ``start`` on must bring back into ``capacity`` pages where always
    the page that is read last makes room (Belady 1966). No choice of victims needs fewer in sum.

    What was never there before is computed, and not counted. What a request computes can be had for
    nothing at its end, or at the first later read where that comes sooner, and takes no room before
    that. At ``start`` anything may be there that an earlier access had.
    """
    again = reads_again(accesses)
    cache = _Cache(capacity)
    for index in range(len(accesses) - 1, -1, -1):
        for page in again[index]:
            cache.reads[page].append(index)
    for access in accesses[:start]:
        cache.offer(access.pages, start)
    cache.make_room()
    released: dict[int, list[int]] = defaultdict(list)
    offered: dict[int, list[int]] = defaultdict(list)
    loads = []
    for index in range(start, len(accesses)):
        access = accesses[index]
        for ended in released.pop(index, ()):
            cache.release(again[ended])
        cache.offer(offered.pop(index, ()), index)
        loads.append(cache.read(again[index], index))
        cache.make_room()
        until = max(access.until, index + 1)
        released[index + 1 if access.preempted else until].append(index)
        for page in set(access.pages).difference(again[index]):
            offered[min(until, cache.next_read(page, index + 1))].append(page)
    return loads


class _Cache:
    """``reads``: by page, the places of its reads to come, last first. ``held``: by page, the next
    of them; the heap has the same, farthest first, and what is no longer so."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self.reads: defaultdict[int, list[int]] = defaultdict(list)
        self._held: dict[int, int] = {}
        self._pins: Counter[int] = Counter()
        self._heap: list[tuple[int, int]] = []

    def next_read(self, page: int, now: int) -> int:
        """The first read of ``page`` at ``now`` or later; reads before that are forgotten."""
        reads = self.reads.get(page, [])
        while reads and reads[-1] < now:
            reads.pop()
        return reads[-1] if reads else NEVER

    def offer(self, pages: Iterable[int], now: int) -> None:
        """``pages`` are there for nothing, for those who keep them."""
        for page in pages:
            self._hold(page, now)

    def read(self, pages: Sequence[int], now: int) -> int:
        """Pin ``pages``; how many of them were not held."""
        count = sum(page not in self._held for page in pages)
        for page in pages:
            self._pins[page] += 1
            self._hold(page, now + 1)
        return count

    def release(self, pages: Iterable[int]) -> None:
        for page in pages:
            self._pins[page] -= 1
            heapq.heappush(self._heap, (-self._held[page], page))

    def make_room(self) -> None:
        while len(self._held) > self._capacity and self._heap:
            next_read, page = heapq.heappop(self._heap)
            if self._held.get(page) == -next_read and not self._pins[page]:
                del self._held[page]

    def _hold(self, page: int, now: int) -> None:
        self._held[page] = next_read = self.next_read(page, now)
        heapq.heappush(self._heap, (-next_read, page))
