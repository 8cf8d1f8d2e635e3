"""Belady's bound: the fewest pages that any policy could bring back, given the order of calls.

The result is a true lower bound of the pages that a policy loaded or recomputed, so whatever is
uncertain is decided in the policy's favour. The bound shares no code with the planner or the
memory: it depends on the calls' content alone.
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
    """The pages of one request, in a list in order of admission.

    The first ``num_read`` of the page ids are the prompt's, which the request needs from its
    admission on; the next one has the prompt's last token, and is computed then. The other pages
    come later. The request ended before request ``until`` was admitted (0: before the next one),
    and kept its pages until then, unless it was ``preempted``.
    """

    pages: tuple[int, ...]
    num_read: int
    until: int = 0
    preempted: bool = False

    @property
    def read(self) -> tuple[int, ...]:
        return self.pages[: self.num_read]

    @property
    def begun(self) -> tuple[int, ...]:
        """The pages that the request holds from its admission on, read or computed."""
        return self.pages[: self.num_read + 1]


def page_ids(tokens: bytes, page_bytes: int, known: dict[int, int]) -> tuple[int, ...]:
    """An id for each whole page of ``tokens``; equal ids mean equal tokens up to the page's end."""
    ids, chain = [], 0
    for start in range(0, len(tokens) - page_bytes + 1, page_bytes):
        chain = xxhash.xxh3_64_intdigest(tokens[start : start + page_bytes], seed=chain)
        ids.append(known.setdefault(chain, len(known)))
    return tuple(ids)


def reads_again(accesses: Sequence[Access]) -> list[list[int]]:
    """For each access, the pages that it reads and that an earlier access had."""
    seen: set[int] = set()
    found = []
    for access in accesses:
        found.append([page for page in access.read if page in seen])
        seen.update(access.pages)
    return found


def belady_loads(
    accesses: Sequence[Access], capacity: int, start: int = 0, cached: Iterable[int] = ()
) -> list[int]:
    """The number of pages that each access from ``start`` on must bring back into a cache of
    ``capacity`` pages, which holds ``cached`` then, if the page with the latest next read is
    evicted (Belady 1966). No other choice of victims needs fewer in sum.

    Pages that no access had before are computed, and not counted. A request keeps its prompt's
    pages while it runs, as it could not run without: what is read takes room, and so does what is
    computed. How far its answer has come when another request is admitted, nobody knows: a page of
    an answer enters the cache at the request's end, or at its next read if that is earlier, and
    takes no room before.
    """
    again = reads_again(accesses)
    cache = _Cache(capacity)
    for index in range(len(accesses) - 1, -1, -1):
        for page in again[index]:
            cache.reads[page].append(index)
    cache.offer(cached, start)
    cache.make_room()
    released: dict[int, list[int]] = defaultdict(list)
    offered: dict[int, list[int]] = defaultdict(list)
    loads = []
    for index in range(start, len(accesses)):
        access = accesses[index]
        for ended in released.pop(index, ()):
            cache.release(accesses[ended].begun)
        cache.offer(offered.pop(index, ()), index)
        loads.append(cache.count_missing(again[index]))
        cache.hold(access.begun, index)
        cache.make_room()
        until = max(access.until, index + 1)
        released[index + 1 if access.preempted else until].append(index)
        for page in set(access.pages).difference(access.begun):
            offered[min(until, cache.next_read(page, index + 1))].append(page)
    return loads


class _Cache:
    """A cache under Belady's rule. ``reads`` has each page's future reads, last first; ``_held``
    the next read of each cached page. The heap orders the same entries, farthest first, among
    outdated ones."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self.reads: defaultdict[int, list[int]] = defaultdict(list)
        self._held: dict[int, int] = {}
        self._pins: Counter[int] = Counter()
        self._heap: list[tuple[int, int]] = []

    def next_read(self, page: int, now: int) -> int:
        """The first read of ``page`` at ``now`` or later; earlier reads are dropped."""
        reads = self.reads.get(page, [])
        while reads and reads[-1] < now:
            reads.pop()
        return reads[-1] if reads else NEVER

    def offer(self, pages: Iterable[int], now: int) -> None:
        """Add ``pages`` to the cache for free."""
        for page in pages:
            self._hold(page, now)

    def count_missing(self, pages: Iterable[int]) -> int:
        """How many of ``pages`` are not in the cache."""
        return sum(page not in self._held for page in pages)

    def hold(self, pages: Iterable[int], now: int) -> None:
        """Put ``pages`` into the cache, and pin them."""
        for page in pages:
            self._pins[page] += 1
            self._hold(page, now + 1)

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
