"""The key table: who owns which key, and in which order keys leave a tier.

What a call uses is its agent's. Keys of several agents have all of them for owners; what an agent
has left behind, and what no agent has named, are groups of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from itertools import filterfalse
from typing import Protocol

from scalesim.distance.clock import Clock
from scalesim.memory.tree.next_use import NextUse
from scalesim.memory.tree.owner import MANY_OWNERS
from scalesim.order.owners import Key, KeyGroup, KeyOwner, OwnedKey


class OrderOfKeys(Protocol):
    """What is told of changes in the table."""

    def group_changed(self, group: KeyGroup) -> None:
        """The next use of ``group`` is another."""

    def keys_moved(self, keys: Iterable[Key]) -> None:
        """``keys`` belong to other groups."""


class KeyTable:
    """Keys with their owners. A key is here while a call that uses it is open, and as long as a
    tier holds it: tiers say what they hold through ``watch``, and ``left`` when a key is gone.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._keys: dict[Key, OwnedKey] = {}
        self.find = self._keys.get  # ``owned``, without making a stray of what nobody owns
        self._shared: dict[frozenset[KeyOwner], KeyGroup] = {}  # of several agents
        self._crowd = KeyGroup(())
        self._strays = KeyOwner(None)  # owns what a tier holds and no call has named
        self._orders: list[OrderOfKeys] = []
        self._held: list[Callable[[], Container[Key]]] = []
        self._seq = 0

    def __len__(self) -> int:
        return len(self._keys)

    def watch(self, held: Callable[[], Container[Key]]) -> None:
        """A tier holds the keys of ``held()``. Asked often: the tier first that holds most."""
        self._held.append(held)

    def attach(self, order: OrderOfKeys) -> None:
        """Tell ``order`` of changes from now on."""
        self._orders.append(order)

    # -- keys ------------------------------------------------------------------------------------

    def owned(self, key: Key) -> OwnedKey:
        """The key's owner and place. A key that no call has named is a stray from now on: strays
        go by when they were seen first."""
        owned = self._keys.get(key)
        if owned is None:
            self.use(self._strays)
            owned = self._keys[key] = OwnedKey(self._strays.alone)
            owned.stamp = self._strays.last_seq
            self._strays.alone.num_keys += 1
            self.tell(self._strays)
        return owned

    def astray(self, keys: Iterable[Key]) -> list[Key]:
        """``left`` for the ``keys`` of a call that ends. Returns those that a tier holds and nobody
        owns: they had left, and were computed again."""
        gone = set(self._not_held(keys))
        for key in gone:
            self._drop(key)
        find, nobodys = self._keys.get, self._strays.alone
        return [
            key
            for key in keys
            if ((owned := find(key)) is None or owned.group is nobodys) and key not in gone
        ]

    def left(self, keys: Iterable[Key]) -> None:
        """``keys`` may have left a tier: those that no tier holds any more have no owner."""
        for key in self._not_held(keys):
            self._drop(key)

    def leaves_before(self, key: Key, other: Key) -> bool:
        """Whether ``key`` leaves a tier before ``other`` does."""
        one, two = self.owned(key), self.owned(other)
        if one.group is two.group:
            return (one.stamp, -one.depth) < (two.stamp, -two.depth)
        now = self.clock.now
        return two.group.next_use().sooner_than(one.group.next_use(), now)

    def next_use(self, key: Key) -> NextUse | None:
        """When ``key`` is used next; ``None`` for a key that nobody owns. An agent with an open
        call uses its keys now."""
        owned = self._keys.get(key)
        return None if owned is None else owned.group.next_use()

    # -- owners ----------------------------------------------------------------------------------

    def use(self, owner: KeyOwner) -> None:
        """``owner`` calls now."""
        owner.last_use, owner.last_seq = self.clock.now, self.next_seq()

    def tell(self, owner: KeyOwner) -> None:
        """Tell the orders that the next use of ``owner`` is another."""
        for group in owner.groups:
            if group.num_keys:
                for order in self._orders:
                    order.group_changed(group)

    def next_seq(self) -> int:
        """The next sequence number of what is told; sequence numbers break ties."""
        self._seq += 1
        return self._seq

    def own(self, owner: KeyOwner, depths: Mapping[Key, int]) -> None:
        """A call of ``owner`` uses the keys of ``depths``, which are their places in the prompt."""
        seq, alone, moved = self.next_seq(), owner.alone, []
        for key, depth in depths.items():
            owned = self._keys.get(key)
            if owned is None:
                owned = self._keys[key] = OwnedKey(alone)
                alone.num_keys += 1
            elif owned.group is not alone:  # else nothing but the stamp changes: nearly always
                before = owned.group
                if owner not in before.owners or before.is_past:
                    self._join(owned, owner)
                    if owned.group is not before:
                        moved.append(key)
            owned.depth, owned.stamp = depth, seq
        self._tell_moved(moved)
        if self._crowd.num_keys:
            self._crowd.last_use, self._crowd.last_seq = self.clock.now, seq
            for order in self._orders:
                order.group_changed(self._crowd)

    def leave(self, owner: KeyOwner, keys: Iterable[Key]) -> None:
        """``owner`` does not expect to use ``keys`` again."""
        moved = []
        for key in keys:
            owned = self._keys.get(key)
            if owned is None or owned.group.is_past or owner not in owned.group.owners:
                continue
            others = {other for other in owned.group.owners if other is not owner}
            self._move(owned, self._group_of(others) if others else owner.past)
            moved.append(key)
        self._tell_moved(moved)

    def _tell_moved(self, keys: Sequence[Key]) -> None:
        if keys:
            for order in self._orders:
                order.keys_moved(keys)

    def _not_held(self, keys: Iterable[Key]) -> Iterable[Key]:
        """Those of ``keys`` that no tier holds."""
        for held in self._held:
            keys = list(filterfalse(held().__contains__, keys))
            if not keys:
                break
        return keys

    def _join(self, owned: OwnedKey, owner: KeyOwner) -> None:
        """``owner`` is one more owner of a key, or takes over a key that is nobody's."""
        group = owned.group
        if group.is_nobodys:
            self._move(owned, owner.alone)
        elif group.owners and owner.name is not None:
            self._move(owned, self._group_of({*group.owners, owner}))

    def _group_of(self, owners: set[KeyOwner]) -> KeyGroup:
        if len(owners) > MANY_OWNERS:
            return self._crowd
        if len(owners) == 1:
            [owner] = owners
            return owner.alone
        them = frozenset(owners)
        group = self._shared.get(them)
        if group is None:
            group = self._shared[them] = KeyGroup(tuple(owners))
            for owner in owners:
                owner.groups.add(group)
        return group

    def _move(self, owned: OwnedKey, group: KeyGroup) -> None:
        group.num_keys += 1
        self._drop_from(owned.group)
        owned.group = group

    def _drop(self, key: Key) -> None:
        owned = self._keys.pop(key, None)
        if owned is not None:
            self._drop_from(owned.group)

    def _drop_from(self, group: KeyGroup) -> None:
        group.num_keys -= 1
        if not group.num_keys and len(group.owners) > 1:
            del self._shared[frozenset(group.owners)]
            for owner in group.owners:
                owner.groups.discard(group)
