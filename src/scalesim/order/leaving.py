"""The order in which keys leave a tier: what is used last first, each prompt from its end.

Groups of keys stand in a heap by next use, and the keys of a group in a heap of their own. So a
hint moves one entry for each group of its agent, however many keys that has, and nothing is ever
sorted as a whole.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection

from scalesim.memory.eviction.lazy_heap import LazyHeap
from scalesim.order.key_table import KeyTable
from scalesim.order.owners import Key, KeyGroup, OwnedKey


class LeavingOrder:
    """A set of keys; ``pop`` takes the one that leaves first.

    First leaves the group that is used last (with ``soonest``, first); of a group, the keys of its
    oldest call, and of these the deepest. ``add`` and ``pop`` cost O(log n), ``discard`` O(1).
    """

    def __init__(self, keys: KeyTable, *, soonest: bool = False) -> None:
        self._keys = keys
        self._groups: LazyHeap[KeyGroup] = LazyHeap(soonest=soonest)
        self._shelves: dict[KeyGroup, _Shelf] = {}
        self._at: dict[Key, KeyGroup] = {}
        keys.attach(self)

    def __len__(self) -> int:
        return len(self._at)

    def __contains__(self, key: Key) -> bool:
        return key in self._at

    def add(self, key: Key) -> None:
        """Add ``key``, or move it to its place."""
        owned = self._keys.owned(key)
        group = owned.group
        if self._at.get(key, group) is not group:
            self.discard(key)
        shelf = self._shelves.get(group)
        if shelf is None:
            shelf = self._shelves[group] = _Shelf()
            self._groups.add(group, group.next_use())
        shelf.put(key, owned)
        self._at[key] = group

    def discard(self, key: Key) -> None:
        """Remove ``key``, if it is there."""
        group = self._at.pop(key, None)
        if group is not None:
            shelf = self._shelves[group]
            del shelf.live[key]
            if not shelf.live:
                del self._shelves[group]
                self._groups.discard(group)

    def peek(self) -> Key | None:
        """The key that leaves first; ``None`` if there is none."""
        group = self._groups.peek(self._keys.clock.now)
        return None if group is None else self._shelves[group].first()

    def pop(self) -> Key | None:
        """Remove the key that leaves first, and return it; ``None`` if there is none."""
        key = self.peek()
        if key is not None:
            self.discard(key)
        return key

    def take(self, count: int, spared: Collection[Key] = ()) -> list[Key]:
        """Remove the first ``count`` keys, or fewer if there are no more, without ``spared``.
        Returns them in their order; ``add`` puts back what is not wanted."""
        taken: list[Key] = []
        passed: list[Key] = []
        while len(taken) < count and (key := self.pop()) is not None:
            (passed if key in spared else taken).append(key)
        for key in passed:
            self.add(key)
        return taken

    def clear(self) -> None:
        """Remove all keys."""
        for key in list(self._at):
            self.discard(key)

    # -- told by the table -----------------------------------------------------------------------

    def group_changed(self, group: KeyGroup) -> None:
        """The next use of ``group`` is another."""
        if group in self._shelves:
            self._groups.add(group, group.next_use())

    def key_changed(self, key: Key) -> None:
        """``key`` belongs to another group, or was used."""
        if key in self._at:
            self.add(key)


class _Shelf:
    """The keys of one group. An entry of the heap counts while it is what ``live`` has."""

    __slots__ = ("_heap", "_seq", "live")

    def __init__(self) -> None:
        self.live: dict[Key, tuple[int, int, int]] = {}
        self._heap: list[tuple[int, int, int, Key]] = []
        self._seq = 0

    def put(self, key: Key, owned: OwnedKey) -> None:
        place = self.live.get(key)
        if place is not None and place[:2] == (owned.stamp, -owned.depth):
            return
        self._seq += 1
        self.live[key] = place = (owned.stamp, -owned.depth, self._seq)
        heapq.heappush(self._heap, (*place, key))
        if len(self._heap) > 2 * len(self.live) + 16:
            self._heap = [(*at, each) for each, at in self.live.items()]
            heapq.heapify(self._heap)

    def first(self) -> Key:
        while True:
            *place, key = self._heap[0]
            if self.live.get(key) == tuple(place):
                return key
            heapq.heappop(self._heap)
