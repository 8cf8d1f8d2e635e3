"""The order in which keys leave a tier: what is used last first, each prompt from its end.

Groups of keys stand in a heap by next use, and the keys of a group in a heap of their own. So a
hint moves one entry for each group of its agent, however many keys that has, and nothing is ever
sorted as a whole. Both heaps are lazy: a change is noted, and costs something when it is looked at.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from heapq import heapify, heappop, heappush, heapreplace
from itertools import count as numbers

from scalesim.memory.eviction.lazy_heap import LazyHeap
from scalesim.order.key_table import KeyTable
from scalesim.order.owners import Key, KeyGroup


class LeavingOrder:
    """A set of keys; ``pop`` takes the one that leaves first.

    First leaves the group that is used last (with ``soonest``, first); of a group, the keys of its
    oldest call, and of these the deepest. ``add`` and ``pop`` cost O(log n), ``discard`` O(1).
    """

    def __init__(self, keys: KeyTable, *, soonest: bool = False) -> None:
        self._keys = keys
        self._groups: LazyHeap[KeyGroup] = LazyHeap(soonest=soonest)
        self._changed: dict[KeyGroup, None] = {}  # not at their place in the heap; the newest last
        self._shelves: dict[KeyGroup, _Shelf] = {}
        self._at: dict[Key, _Shelf] = {}
        self._seq = numbers(1).__next__
        keys.attach(self)

    def __len__(self) -> int:
        return len(self._at)

    def __contains__(self, key: Key) -> bool:
        return key in self._at

    def add(self, key: Key) -> None:
        """Add ``key``, or move it to its place."""
        self.add_all((key,))

    def add_all(self, keys: Iterable[Key]) -> None:
        """``add`` for each of ``keys``, which mostly are of one group."""
        shelf: _Shelf | None = None
        at, find, owned_of, seq = self._at, self._keys.find, self._keys.owned, self._seq
        for key in keys:
            owned = find(key) or owned_of(key)
            group = owned.group
            before = at.get(key)
            if before is not None:
                if before.group is group:
                    continue
                self.discard(key)
            if shelf is None or shelf.group is not group:
                shelf = self._shelves.get(group) or self._open(group)
                shelf.tidy()
                live, entered, heap = shelf.live, shelf.entered, shelf.heap
            at[key] = shelf
            live.add(key)
            if key not in entered:
                entered.add(key)
                heappush(heap, (owned.stamp, -owned.depth, seq(), key))

    def discard(self, key: Key) -> bool:
        """Remove ``key``. Returns whether it was there."""
        shelf = self._at.pop(key, None)
        if shelf is None:
            return False
        shelf.live.discard(key)
        if not shelf.live:
            self._close(shelf)
        return True

    def peek(self) -> Key | None:
        """The key that leaves first; ``None`` if there is none."""
        shelf = self._first()
        return None if shelf is None else shelf.first()

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
        while len(taken) < count and (shelf := self._first()) is not None:
            found = shelf.take(count - len(taken))  # taking changes no group's next use
            for key in found:
                del self._at[key]
            if spared:
                passed += [key for key in found if key in spared]
                found = [key for key in found if key not in spared]
            taken += found
            if not shelf.live:
                self._close(shelf)
        if passed:
            self.add_all(passed)
        return taken

    def num_before(self, key: Key, limit: int) -> int:
        """How many keys, up to ``limit``, leave before ``key``, which may be elsewhere."""
        own, now, count = self._keys.owned(key).group, self._keys.clock.now, 0
        use = own.next_use()
        passed: list[KeyGroup] = []
        while count < limit and (shelf := self._first()) is not None:
            if shelf.group is own:
                before = (self._keys.leaves_before(other, key) for other in shelf.live)
                count += sum(before)
                break
            if not use.sooner_than(shelf.group.next_use(), now):
                break
            count += len(shelf.live)
            passed.append(shelf.group)
            self._groups.discard(shelf.group)
        self._changed.update(dict.fromkeys(passed))
        return min(count, limit)

    def clear(self) -> None:
        """Remove all keys."""
        for key in list(self._at):
            self.discard(key)

    def _first(self) -> _Shelf | None:
        """The shelf of the group that leaves first."""
        for group in self._changed:
            if group in self._shelves:
                self._groups.add(group, group.next_use())
        self._changed.clear()
        found = self._groups.peek(self._keys.clock.now)
        return None if found is None else self._shelves[found]

    def _open(self, group: KeyGroup) -> _Shelf:
        shelf = self._shelves[group] = _Shelf(group, self._keys)
        self._note(group)
        return shelf

    def _note(self, group: KeyGroup) -> None:
        self._changed.pop(group, None)
        self._changed[group] = None

    def _close(self, shelf: _Shelf) -> None:
        del self._shelves[shelf.group]
        self._groups.discard(shelf.group)

    # -- told by the table -----------------------------------------------------------------------

    def group_changed(self, group: KeyGroup) -> None:
        """The next use of ``group`` is another."""
        if group in self._shelves:
            self._note(group)

    def keys_moved(self, keys: Iterable[Key]) -> None:
        """``keys`` belong to other groups."""
        if here := [key for key in keys if key in self._at]:
            self.add_all(here)


class _Shelf:
    """The keys of one group, ``live``, in a heap by their last call and depth.

    A key's place only ever goes back, as it is used again. So an entry that is older than its key
    stands too far in front, and is put to its place when it comes to the head; and a key that is
    removed and put back needs no second entry. ``entered`` are the keys with an entry.
    """

    __slots__ = ("_keys", "entered", "group", "heap", "live")

    def __init__(self, group: KeyGroup, keys: KeyTable) -> None:
        self.group, self._keys = group, keys
        self.live: set[Key] = set()
        self.entered: set[Key] = set()
        self.heap: list[tuple[int, int, int, Key]] = []  # stamp, -depth, a number for ties, key

    def tidy(self) -> None:
        """Drop the entries of keys that are not live, once there are many."""
        if len(self.heap) > 2 * len(self.live) + 16:
            self.heap = [entry for entry in self.heap if entry[3] in self.live]
            self.entered = set(self.live)
            heapify(self.heap)

    def take(self, count: int) -> list[Key]:
        """Remove the first ``count`` keys, or all if there are no more."""
        heap, live, entered, first = self.heap, self.live, self.entered, self.first
        found: list[Key] = []
        while live and len(found) < count:
            key = first()
            heappop(heap)
            live.remove(key)
            entered.remove(key)
            found.append(key)
        return found

    def first(self) -> Key:
        """The first key, which stays; its entry is at the head."""
        heap, find = self.heap, self._keys.find
        while True:
            stamp, depth, tie, key = heap[0]
            if key not in self.live:
                heappop(heap)
                self.entered.remove(key)
                continue
            owned = find(key) or self._keys.owned(key)
            if stamp == owned.stamp and depth == -owned.depth:
                return key
            heapreplace(heap, (owned.stamp, -owned.depth, tie, key))
