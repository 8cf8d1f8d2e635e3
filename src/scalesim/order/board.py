"""The call board: which agents call next, and which keys each of them will need.

Hints and calls come in; what leaves a cache first is read from the orders (``leaving.py``) that
are attached. Nothing here reads a clock of the machine: two boards that are told the same give the
same orders. On one thread.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

from scalesim.core import AgentId
from scalesim.distance.clock import Clock
from scalesim.distance.distances import Change, Distances
from scalesim.distance.estimates import Source
from scalesim.memory.eviction.lazy_heap import LazyHeap
from scalesim.memory.tree.next_use import NextUse
from scalesim.memory.tree.owner import MANY_OWNERS
from scalesim.order.owners import Key, KeyGroup, KeyOwner, OwnedKey

MAX_BOARD_AGENTS = 100_000


class OrderOfKeys(Protocol):
    """What is told of changes on the board."""

    def group_changed(self, group: KeyGroup) -> None:
        """The next use of ``group`` is another."""

    def key_changed(self, key: Key) -> None:
        """``key`` belongs to another group, or was used."""


class OpenCall(NamedTuple):
    """A call that has begun; ``path`` has its keys so far, in the order of the prompt, and their
    places."""

    owner: KeyOwner
    path: dict[Key, int]


class CallBoard:
    """Agents with their next uses, and the owners of keys.

    A key has owners while a call that uses it is open, and as long as a tier holds it: tiers say
    what they hold through ``watch``, and ``left`` when a key is gone. Beyond ``max_agents``, the
    agent that called longest ago is forgotten.
    """

    def __init__(self, *, max_agents: int = MAX_BOARD_AGENTS) -> None:
        self.clock = Clock()
        self.distances = Distances(self.clock)
        self._max_agents = max_agents
        self._agents: OrderedDict[AgentId, KeyOwner] = OrderedDict()
        self._keys: dict[Key, OwnedKey] = {}
        self._calls: dict[str, OpenCall] = {}
        self._shared: dict[frozenset[KeyOwner], KeyGroup] = {}  # of several agents
        self._crowd = KeyGroup(())
        self._strays = KeyOwner(None)  # owns what a tier holds and no call has named
        self._coming: LazyHeap[KeyOwner] = LazyHeap(soonest=True)
        self._orders: list[OrderOfKeys] = []
        self._holds: list[Callable[[Key], bool]] = []
        self._seq = 0

    @property
    def num_agents(self) -> int:
        """Agents that have called, or were spoken of."""
        return len(self._agents)

    @property
    def num_keys(self) -> int:
        """Keys that have an owner."""
        return len(self._keys)

    def watch(self, holds: Callable[[Key], bool]) -> None:
        """A tier holds those keys for which ``holds`` is true."""
        self._holds.append(holds)

    def attach(self, order: OrderOfKeys) -> None:
        """Tell ``order`` of changes from now on."""
        self._orders.append(order)

    # -- what is said of agents ------------------------------------------------------------------

    def expect(
        self,
        times: Mapping[AgentId, float],
        confidence: float | Mapping[AgentId, float] = 1.0,
        *,
        absolute: bool = True,
    ) -> None:
        """Each agent calls next at its time of the clock, or so many ticks from now. ``confidence``
        is one for all, or one for each. What is no finite number is ignored and counted."""
        for agent in times:
            self._owner(agent)
        offset = 0.0 if absolute else self.clock.now
        self._apply(self.distances.expect_all(times, confidence, offset=offset))

    def tick(self, n: float = 1.0, *, to: float | None = None) -> None:
        """Move the clock by ``n`` ticks or to the time ``to``. A time that has passed is ignored:
        requests that overtake each other carry older times."""
        if to is None or to > self.clock.now:
            self._apply(self.distances.tick(0.0, n, to=to))  # how long a tick takes: not asked

    def listen(self, source: Source) -> None:
        """Ask ``source`` for its predictions from now on."""
        self._apply(self.distances.add(source))

    def forget(self, agents: Iterable[AgentId]) -> int:
        """``agents`` will not call again: their keys leave first. Agents with an open call stay.
        Returns how many were forgotten."""
        gone = [agent for agent in dict.fromkeys(agents) if agent in self._agents]
        gone = [agent for agent in gone if not self._agents[agent].num_open]
        for agent in gone:
            owner = self._agents.pop(agent)
            self._coming.discard(owner)
            paths, owner.paths = owner.paths, []
            for path in paths:
                self._leave(owner, path)
        self._apply(self.distances.forget(gone))
        return len(gone)

    def next_use(self, key: Key) -> NextUse | None:
        """When ``key`` is used next; ``None`` for a key that nobody owns. An agent with an open
        call uses its keys now."""
        owned = self._keys.get(key)
        return None if owned is None else owned.group.next_use()

    def agent_use(self, agent: AgentId) -> NextUse | None:
        """When ``agent`` calls next; ``None`` for one that the board does not know."""
        owner = self._agents.get(agent)
        return None if owner is None else owner.known_next_use()

    def use_behind(self, call: str) -> NextUse:
        """When the agent of the open call ``call`` calls next, after this call."""
        owner = self._calls[call].owner
        time = None if owner.name is None else self.distances.behind_calls(owner.name)
        return NextUse(time, 0 if time is None else owner.next_seq, owner.last_use, owner.last_seq)

    def soonest(self, limit: int) -> list[KeyOwner]:
        """The agents without an open call that call next, at most ``limit``, the soonest first."""
        found: list[KeyOwner] = []
        while len(found) < limit and (owner := self._coming.peek(self.clock.now)) is not None:
            self._coming.discard(owner)
            found.append(owner)
        for owner in found:
            self._coming.add(owner, owner.known_next_use())
        return found

    # -- calls -----------------------------------------------------------------------------------

    def begin(self, call: str, agent: AgentId | None) -> None:
        """The call ``call`` of ``agent`` has begun; of nobody's with ``None``. Twice is once."""
        if call in self._calls:
            return
        owner = KeyOwner(None) if agent is None else self._owner(agent)
        self._calls[call] = OpenCall(owner, {})
        self._use(owner)
        owner.num_open += 1
        owner.num_calls += 1
        if agent is not None:
            self._coming.discard(owner)
            self._apply(self.distances.called(agent))

    def used(self, call: str, keys: Sequence[Key], depths: Sequence[int] | None = None) -> None:
        """The open call ``call`` uses ``keys``, in the order of the prompt. ``depths`` are their
        places in the prompt, if the call has not named all keys from the beginning. Keys that it
        has named before change nothing. No effect for a call that has not begun."""
        found = self._calls.get(call)
        if found is None:
            return
        owner, path = found
        if depths is None:
            depths = range(len(path), len(path) + len(keys))
        news = {key: depth for key, depth in zip(keys, depths, strict=True) if key not in path}
        if not news:
            return
        if not path and owner.name is not None:
            self._begin_path(owner, path, list(news))
        path.update(news)
        self._own(owner, news)

    def end(self, call: str) -> None:
        """The call is over, for whatever reason. No effect for a call that is not open."""
        found = self._calls.pop(call, None)
        if found is None:
            return
        owner, path = found
        owner.num_open -= 1
        self._use(owner)
        for index, kept in enumerate(owner.paths):
            if kept is path:
                owner.paths[index] = tuple(path)  # an eighth of the dictionary's size
        for key in path:
            self.left(key)
        self._own(owner, {key: depth for key, depth in path.items() if self._is_astray(key)})
        if owner.name is not None and owner.name in self._agents:
            self._apply(self.distances.ended(owner.name))
            self._place(owner)
        self._tell(owner)

    # -- keys ------------------------------------------------------------------------------------

    def owned(self, key: Key) -> OwnedKey:
        """The key's owner and place. A key that no call has named is a stray from now on: strays
        go by when they were seen first."""
        owned = self._keys.get(key)
        if owned is None:
            self._use(self._strays)
            owned = self._keys[key] = OwnedKey(self._strays.alone)
            owned.stamp = self._strays.last_seq
            self._strays.alone.num_keys += 1
            self._tell(self._strays)
        return owned

    def left(self, key: Key) -> None:
        """``key`` may have left a tier: if no tier holds it any more, it has no owner."""
        if key in self._keys and not self._is_held(key):
            self._drop_from(self._keys.pop(key).group)

    def leaves_before(self, key: Key, other: Key) -> bool:
        """Whether ``key`` leaves a tier before ``other`` does."""
        one, two = self.owned(key), self.owned(other)
        if one.group is two.group:
            return (one.stamp, -one.depth) < (two.stamp, -two.depth)
        now = self.clock.now
        return two.group.next_use().sooner_than(one.group.next_use(), now)

    # -- within ----------------------------------------------------------------------------------

    def _is_held(self, key: Key) -> bool:
        return any(holds(key) for holds in self._holds)

    def _is_astray(self, key: Key) -> bool:
        """Whether a tier holds ``key`` and nobody owns it: it had left, and was computed again."""
        owned = self._keys.get(key)
        return self._is_held(key) if owned is None else owned.group is self._strays.alone

    def _next_seq(self) -> int:
        self._seq += 1
        return self._seq

    def _use(self, owner: KeyOwner) -> None:
        owner.last_use, owner.last_seq = self.clock.now, self._next_seq()

    def _owner(self, agent: AgentId) -> KeyOwner:
        owner = self._agents.get(agent)
        if owner is None:
            owner = self._agents[agent] = KeyOwner(agent)
            if len(self._agents) > self._max_agents:
                closed = (name for name, other in self._agents.items() if not other.num_open)
                self.forget([next(closed)])  # at least the new one
        else:
            self._agents.move_to_end(agent)
        return owner

    def _apply(self, changes: list[Change]) -> None:
        """Take in new next uses, in their order: of equal ones, what is told first is sooner."""
        for agent, next_use in changes:
            owner = self._agents.get(agent)
            if owner is not None:
                owner.next_use, owner.next_seq = next_use, self._next_seq()
                self._place(owner)
                self._tell(owner)

    def _place(self, owner: KeyOwner) -> None:
        """Put ``owner`` among those that call next, if it may be one of them."""
        if owner.next_use is None or owner.num_open:
            self._coming.discard(owner)
        else:
            self._coming.add(owner, owner.known_next_use())

    def _tell(self, owner: KeyOwner) -> None:
        for order in self._orders:
            for group in owner.groups:
                if group.num_keys:
                    order.group_changed(group)

    def _begin_path(self, owner: KeyOwner, path: dict[Key, int], keys: Sequence[Key]) -> None:
        """``path`` with its first ``keys`` becomes the newest of the agent's; what only older ones
        had, and the agent is not likely to use again, is left behind."""
        for key in reversed(keys):
            owned = self._keys.get(key)
            if owned is not None and owner in owned.group.owners:
                owner.observe_return(key)
                break
        owner.paths.insert(0, path)
        dropped = owner.paths[owner.num_kept() :]
        del owner.paths[owner.num_kept() :]
        if dropped:
            kept = set(keys).union(*owner.paths)
            for old in dropped:
                self._leave(owner, [key for key in old if key not in kept])

    def _own(self, owner: KeyOwner, depths: Mapping[Key, int]) -> None:
        seq = self._next_seq()
        for key, depth in depths.items():
            owned = self._keys.get(key)
            if owned is None:
                owned = self._keys[key] = OwnedKey(owner.alone)
                owner.alone.num_keys += 1
            elif owner not in owned.group.owners or owned.group.is_past:
                self._join(owned, owner)
            owned.depth, owned.stamp = depth, seq
            for order in self._orders:
                order.key_changed(key)
        if self._crowd.num_keys:
            self._crowd.last_use, self._crowd.last_seq = self.clock.now, seq
            for order in self._orders:
                order.group_changed(self._crowd)

    def _join(self, owned: OwnedKey, owner: KeyOwner) -> None:
        """``owner`` is one more owner of a key, or takes over a key that is nobody's."""
        group = owned.group
        if group.is_nobodys:
            self._move(owned, owner.alone)
        elif group.owners and owner.name is not None:
            self._move(owned, self._group_of({*group.owners, owner}))

    def _leave(self, owner: KeyOwner, keys: Iterable[Key]) -> None:
        """``owner`` does not expect to use ``keys`` again."""
        for key in keys:
            owned = self._keys.get(key)
            if owned is None or owned.group.is_past or owner not in owned.group.owners:
                continue
            others = {other for other in owned.group.owners if other is not owner}
            self._move(owned, self._group_of(others) if others else owner.past)
            for order in self._orders:
                order.key_changed(key)

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

    def _drop_from(self, group: KeyGroup) -> None:
        group.num_keys -= 1
        if not group.num_keys and len(group.owners) > 1:
            del self._shared[frozenset(group.owners)]
            for owner in group.owners:
                owner.groups.discard(group)
