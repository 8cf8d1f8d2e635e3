"""The call board: which agents call next, and which keys each of them will need.

Hints and calls come in; what leaves a cache first is read from the orders (``leaving.py``) over
its keys. Nothing here reads a clock of the machine: two boards that are told the same give the
same orders. On one thread.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from scalesim.core import AgentId
from scalesim.distance.clock import Clock
from scalesim.distance.distances import Change, Distances
from scalesim.distance.estimates import Source
from scalesim.memory.eviction.lazy_heap import LazyHeap
from scalesim.memory.tree.next_use import NextUse
from scalesim.memory.tree.owner import ReuseStats
from scalesim.order.key_table import KeyTable
from scalesim.order.owners import Key, KeyOwner

MAX_BOARD_AGENTS = 100_000


class OpenCall(NamedTuple):
    """A call that has begun; ``path`` has its keys so far, in the order of the prompt, and their
    places."""

    owner: KeyOwner
    path: dict[Key, int]


class CallBoard:
    """Agents with their next uses; ``keys`` has the keys that they own. Beyond ``max_agents``, the
    agent that called longest ago is forgotten.
    """

    def __init__(self, *, max_agents: int = MAX_BOARD_AGENTS) -> None:
        self.clock = Clock()
        self.keys = KeyTable(self.clock)
        self.distances = Distances(self.clock)
        self._max_agents = max_agents
        self._agents: OrderedDict[AgentId, KeyOwner] = OrderedDict()
        self._calls: dict[str, OpenCall] = {}
        self._reuse = ReuseStats()  # of all agents
        self._reuse.continuation_rate = 0.5  # nothing is known of prompts that have not come yet
        self._coming: LazyHeap[KeyOwner] = LazyHeap(soonest=True)

    @property
    def num_agents(self) -> int:
        """Agents that have called, or were spoken of."""
        return len(self._agents)

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
            paths, owner.paths, owner.expected = owner.paths, (), ()
            for path in paths:
                self.keys.leave(owner, path)
        self._apply(self.distances.forget(gone))
        return len(gone)

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

    def begin(self, call: str, agent: AgentId | None, next_call: float | None = None) -> None:
        """The call ``call`` of ``agent`` has begun; of nobody's with ``None``. Twice is once.
        ``next_call`` is ``expect`` of the agent behind this call, at a time of the clock."""
        if call in self._calls:
            return
        owner = KeyOwner(None) if agent is None else self._owner(agent)
        self._calls[call] = OpenCall(owner, {})
        self.keys.use(owner)
        owner.num_open += 1
        if agent is not None:
            # told for each call: not coming any more
            self._apply(self.distances.called(agent, next_call=next_call))

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
        news = dict(zip(keys, depths, strict=True))
        if path:
            news = {key: depth for key, depth in news.items() if key not in path}
        if not news:
            return
        path.update(news)
        self.keys.own(owner, news)

    def end(self, call: str) -> None:
        """The call is over, for whatever reason. No effect for a call that is not open."""
        found = self._calls.pop(call, None)
        if found is None:
            return
        owner, path = found
        owner.num_open -= 1
        self.keys.use(owner)
        if astray := self.keys.astray(path):
            self.keys.own(owner, {key: path[key] for key in astray})
        if owner.name is not None and path:
            self.keys.leave(owner, owner.remember(path, self._reuse))
        if owner.name is None or owner.name not in self._agents:
            self.keys.tell(owner)
        elif changes := self.distances.ended(owner.name):
            self._apply(changes)
        else:
            self._place(owner)
            self.keys.tell(owner)

    # -- within ----------------------------------------------------------------------------------

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
                owner.next_use, owner.next_seq = next_use, self.keys.next_seq()
                self._place(owner)
                self.keys.tell(owner)

    def _place(self, owner: KeyOwner) -> None:
        """Put ``owner`` among those that call next, if it may be one of them."""
        if owner.next_use is None or owner.num_open:
            self._coming.discard(owner)
        else:
            self._coming.add(owner, owner.known_next_use())
