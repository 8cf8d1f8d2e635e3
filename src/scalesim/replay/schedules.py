"""Schedules: the times at which agents act, for each workload.

Times are in ticks; the fraction is the place in the tick's queue. All calls of a tick come at its
beginning, so the fraction is below a thousandth: it tells the order, and takes no time. ``after``
is called once for each act, in order of time, and may draw; so a schedule is a function of its seed
alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import numpy.typing as npt

DAY_W1 = 288  # ticks of 300 s
DAY_W2 = 24  # ticks of an hour
_BUFFER = 4096
ORDER = 1e-3


class Schedule(ABC):
    """The times of agents' acts."""

    @abstractmethod
    def mean_gap(self, agent: int) -> float:
        """The mean number of ticks between two acts of the agent."""

    def first(self, agent: int) -> float:
        """The time of the agent's first act."""
        return self.after(agent, 0.0)

    @abstractmethod
    def after(self, agent: int, now: float) -> float:
        """The time of the agent's next act after an act at ``now``; at least one tick later."""

    def rounds(self, agent: int, time: int) -> int:
        """The number of calls of an act at ``time`` beyond the usual burst."""
        return 0


class _Draws:
    """Uniform numbers, drawn in bulk."""

    def __init__(self, *seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._left: list[float] = []

    def __call__(self) -> float:
        if not self._left:
            self._left = self._rng.random(_BUFFER).tolist()
        return self._left.pop()


class _Spaced(Schedule):
    """A schedule with fixed places in the tick, and gaps that the subclass draws."""

    def __init__(self, num_agents: int, seed: int, mean: float) -> None:
        self._mean, self._num_agents = mean, num_agents
        self._draw = _Draws(seed, 11)

    def mean_gap(self, agent: int) -> float:
        return self._mean

    def place(self, agent: int) -> float:
        return ORDER * agent / self._num_agents

    def first(self, agent: int) -> float:
        return 1 + int(self._draw() * self._mean) + self.place(agent)

    def after(self, agent: int, now: float) -> float:
        return int(now) + self.gap(agent, int(now)) + self.place(agent)

    @abstractmethod
    def gap(self, agent: int, time: int) -> int: ...


class Plans(_Spaced):
    """W1: an action takes 1-3 ticks (a short way), 4 (shopping), 9 (a way across town), 12-36
    (work) or 12-96 (sleep, the most common one at night). By day, some 6 % of the agents act in a
    tick."""

    def __init__(self, num_agents: int, seed: int) -> None:
        super().__init__(num_agents, seed, 16.0)

    def gap(self, agent: int, time: int) -> int:
        kind, size = self._draw(), self._draw()
        asleep = time % DAY_W1 >= DAY_W1 * 5 // 6
        if asleep and kind < 0.8:
            return 12 + int(size * 85)
        if kind < 0.25:
            return 1 + int(size * 3)
        if kind < 0.35:
            return 4
        if kind < 0.50:
            return 9
        return 12 + int(size * 25)


class Feed(Schedule):
    """W2: in each tick an agent acts with its own probability, which is higher at busy hours (by a
    factor of up to seven over the day). Acts are drawn ahead, so the next one is known when this
    one ends."""

    def __init__(self, rates: npt.NDArray[np.float64], seed: int) -> None:
        self._rates = rates
        self._draws = _Draws(seed, 13)
        phase = 2 * np.pi * np.arange(DAY_W2) / DAY_W2
        busy = 4.0 + 3.0 * np.sin(phase)
        self._hazard = np.concatenate([[0.0], np.cumsum(np.tile(busy / busy.mean(), 64))])

    def mean_gap(self, agent: int) -> float:
        return 1.0 / float(self._rates[agent])

    def after(self, agent: int, now: float) -> float:
        """The tick in which the sum of hazards, from the next tick on, exceeds an exponential
        draw."""
        needed = -np.log1p(-self._draws()) / self._rates[agent]
        day, hour = divmod(int(now) + 1, DAY_W2)
        days, in_day = divmod(needed + self._hazard[hour], self._hazard[DAY_W2])
        hours = int(np.searchsorted(self._hazard[: DAY_W2 + 1], in_day, side="right")) - 1
        return (day + int(days)) * DAY_W2 + hours + ORDER * agent / len(self._rates)


class Town(_Spaced):
    """W3: actions of 5 to 60 minutes (30-360 ticks). Some acts open a conversation, in which the
    agent speaks every other tick, at most eight times, and in 15 % of cases fewer times."""

    def __init__(self, num_agents: int, seed: int) -> None:
        super().__init__(num_agents, seed, 60.0)
        self._to_say: dict[int, int] = {}

    def gap(self, agent: int, time: int) -> int:
        num_left = self._to_say.get(agent, 0)
        if num_left:
            self._to_say[agent] = 0 if self._draw() < 0.15 / 8 else num_left - 1
            return 2
        if self._draw() < 0.15:
            self._to_say[agent] = 7
        return int(30 * 12 ** self._draw())


class Shares(_Spaced):
    """The paper's schedule: a fifth of the agents acts in each tick. ``independent``: after an
    action of one to nine ticks. ``interaction``: after an action or an earlier encounter. ``path``:
    every fifth tick, in a fixed order."""

    def __init__(self, num_agents: int, seed: int, kind: str) -> None:
        super().__init__(num_agents, seed, 5.0)
        self._kind = kind

    def gap(self, agent: int, time: int) -> int:
        if self._kind == "path":
            return 5
        if self._kind == "independent":
            return 1 + int(self._draw() * 9)
        return 1 + min(int(self._draw() * 14), int(self._draw() * 14))


class Rounds(Schedule):
    """W4: all agents act in each tick, in a fixed or a shuffled order; every third tick has one
    more call, for reflection."""

    def __init__(self, num_agents: int, seed: int, shuffled: bool) -> None:
        self._num_agents, self._shuffled = num_agents, shuffled
        self._draw = _Draws(seed, 17)

    def mean_gap(self, agent: int) -> float:
        return 1.0

    def after(self, agent: int, now: float) -> float:
        place = self._draw() if self._shuffled else agent / self._num_agents
        return int(now) + 1 + ORDER * place

    def rounds(self, agent: int, time: int) -> int:
        return int(time % 3 == 0)


class TurnTaking(Schedule):
    """W5: agent 0, the game master, acts in each tick; the others take turns, one per tick, in a
    fixed order or in a permutation drawn ahead for each cycle."""

    def __init__(self, num_agents: int, seed: int, shuffled: bool) -> None:
        self._entities, self._seed, self._shuffled = max(1, num_agents - 1), seed, shuffled
        self._orders: dict[int, list[int]] = {}

    def mean_gap(self, agent: int) -> float:
        return 1.0 if agent == 0 else float(self._entities)

    def first(self, agent: int) -> float:
        return 1.0 if agent == 0 else 1.0 + ORDER + self._place(agent, 0)

    def after(self, agent: int, now: float) -> float:
        if agent == 0:
            return now + 1.0
        cycle = (int(now) - 1) // self._entities + 1
        return 1.0 + ORDER + cycle * self._entities + self._place(agent, cycle)

    def _place(self, agent: int, cycle: int) -> int:
        if not self._shuffled:
            return agent - 1
        if cycle not in self._orders:
            rng = np.random.default_rng((self._seed, 19, cycle))
            self._orders[cycle] = rng.permutation(self._entities).tolist()
            self._orders.pop(cycle - 2, None)
        return self._orders[cycle][agent - 1]
