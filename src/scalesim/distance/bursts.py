"""Bursts: how many calls an agent makes one after the other within a tick.

Learned from the bursts of all agents in the last ticks. An agent's own bursts are too few: with
them, the order of service was worse, on a real town's day as on bursts of one length. Where nearly
all bursts have one call, an agent that calls a second time has more to say than one that begins.
"""

from __future__ import annotations

from collections import Counter
from itertools import accumulate

from scalesim.core import AgentId
from scalesim.distance.state import PlainState, put, taken

MAX_CALLS = 64
"""Longer bursts count as this long."""
_KEPT = 0.9  # of what was counted, from tick to tick


class Bursts:
    """Counts calls; those that are open together count as one."""

    def __init__(self) -> None:
        self._to_come = [1.0] * MAX_CALLS  # by calls that were made before: this one and later ones
        self._lengths = [0.0] * (MAX_CALLS + 1)  # bursts of each length, the newer the weightier
        self._calls: Counter[AgentId] = Counter()  # in this tick
        self._open: Counter[AgentId] = Counter()

    def expected(self, agent: AgentId) -> float:
        """How many calls ``agent`` is expected to make in this tick, from the one on that comes
        now: at least 1."""
        made = self._calls.get(agent, 0) - (agent in self._open)
        return self._to_come[min(made, MAX_CALLS - 1)]

    def called(self, agent: AgentId) -> None:
        if not self._open[agent]:
            self._calls[agent] += 1
        self._open[agent] += 1

    def ended(self, agent: AgentId) -> None:
        self._open[agent] -= 1
        if not self._open[agent]:
            del self._open[agent]

    def tick(self) -> None:
        """The bursts of this tick are over; a call that is still open begins one in the next."""
        if not self._calls:
            return
        lengths = Counter(self._calls.values())
        self._calls = Counter(dict.fromkeys(self._open, 1))
        self._lengths = [_KEPT * count for count in self._lengths]
        for length, count in lengths.items():
            self._lengths[min(length, MAX_CALLS)] += count
        # longer[n]: bursts of more than n calls; behind[n]: their calls behind the first n
        longer = list(accumulate(reversed(self._lengths[1:])))[::-1]
        behind = list(accumulate(reversed(longer)))[::-1]
        self._to_come = [
            calls / bursts if bursts > 1e-6 else 1.0
            for calls, bursts in zip(behind, longer, strict=True)
        ]

    def state(self) -> PlainState:
        """What was learned, and how many calls each agent made in this tick and ended."""
        made = {agent: n - (agent in self._open) for agent, n in self._calls.items()}
        learned = taken(self, "_to_come", "_lengths")
        return {**learned, "made": [[agent, n] for agent, n in made.items() if n > 0]}

    def restore(self, state: PlainState) -> None:
        """Have what ``state`` gave; no call is open."""
        put(self, state, "_to_come", "_lengths")
        self._calls = Counter(dict(state["made"]))
        self._open = Counter()

    def forget(self, agent: AgentId) -> None:
        self._calls.pop(agent, None)
        self._open.pop(agent, None)
