"""Schedules: which of the things that may happen on a device and its links happens next, or none.

A hostile world asks one whenever its host has done something. They are the adversaries known to
find races: first in first out and last in first out, random walks, random priorities with a few
change points (PCT, Burckhardt et al., ASPLOS 2010), one queue starved, bursts. All by seed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Protocol

from scalesim.testing.hostile_link import DeviceEvent, Queue


class Schedule(Protocol):
    def pick(self, events: Sequence[DeviceEvent], *, must: bool) -> int | None:
        """The index of what happens next; ``None``: the host goes on first. With ``must`` the host
        waits, and something has to happen. ``events`` is not empty."""
        ...


class Fair:
    """Everything that may happen does, the oldest first: no faults, no delays."""

    def pick(self, events: Sequence[DeviceEvent], *, must: bool) -> int | None:
        return min(range(len(events)), key=lambda index: events[index].number)


class RandomWalk:
    """Any event; ``pace`` is the chance that another one comes before the host goes on."""

    def __init__(self, seed: int, pace: float = 0.5) -> None:
        self._random, self._pace = random.Random(seed), pace

    def pick(self, events: Sequence[DeviceEvent], *, must: bool) -> int | None:
        if not must and self._random.random() > self._pace:
            return None
        return self._random.randrange(len(events))


class Ordered:
    """The oldest event first, or the newest: then the oldest is delayed for as long as may be."""

    def __init__(self, seed: int, *, newest: bool, pace: float = 0.5) -> None:
        self._random, self._newest, self._pace = random.Random(seed), newest, pace

    def pick(self, events: Sequence[DeviceEvent], *, must: bool) -> int | None:
        if not must and self._random.random() > self._pace:
            return None
        sign = -1 if self._newest else 1
        return min(range(len(events)), key=lambda index: sign * events[index].number)


class Starve:
    """One queue moves only when nothing else can and the host waits."""

    def __init__(self, seed: int, queue: Queue) -> None:
        self._random, self._queue = random.Random(seed), queue

    def pick(self, events: Sequence[DeviceEvent], *, must: bool) -> int | None:
        others = [i for i, event in enumerate(events) if event.queue != self._queue]
        if others and (must or self._random.random() < 0.7):
            return self._random.choice(others)
        return self._random.randrange(len(events)) if must else None


class Burst:
    """Nothing for up to ``quiet`` iterations of the host, then everything at once."""

    def __init__(self, seed: int, quiet: int = 12) -> None:
        self._random, self._quiet = random.Random(seed), quiet
        self._left = 0

    def pick(self, events: Sequence[DeviceEvent], *, must: bool) -> int | None:
        if self._left > 0 and not must:
            self._left -= 1
            if self._left:
                return None
        elif not must and self._random.random() < 0.05:
            self._left = 1 + self._random.randrange(self._quiet)
            return None
        return self._random.randrange(len(events))


class Priorities:
    """Each copy, each step and the host has a random priority, and the highest goes on; at a few
    points of the run, whoever is highest becomes the lowest."""

    def __init__(self, seed: int, changes: int = 3, length: int = 400) -> None:
        self._random = random.Random(seed)
        self._priority: dict[object, float] = {}
        self._changes = {self._random.randrange(length) for _ in range(changes)}
        self._picks = 0

    def pick(self, events: Sequence[DeviceEvent], *, must: bool) -> int | None:
        self._picks += 1
        runners: list[object] = [self._thread(event) for event in events]
        if not must:
            runners.append("host")
        for runner in runners:
            self._priority.setdefault(runner, self._random.random())
        best = max(range(len(runners)), key=lambda index: self._priority[runners[index]])
        if self._picks in self._changes:
            self._priority[runners[best]] = -float(self._picks)
        if best < len(events):
            return best
        # a host of the highest priority would never let anything happen: it goes on for a while
        self._priority["host"] -= 0.02 + 0.1 * self._random.random()
        return None

    @staticmethod
    def _thread(event: DeviceEvent) -> object:
        return "compute" if event.queue == "compute" else event.number


SCHEDULES: dict[str, Callable[[int], Schedule]] = {
    "random": RandomWalk,
    "rare": lambda seed: RandomWalk(seed, pace=0.15),
    "fifo": lambda seed: Ordered(seed, newest=False),
    "lifo": lambda seed: Ordered(seed, newest=True),
    "starve-in": lambda seed: Starve(seed, "in"),
    "starve-out": lambda seed: Starve(seed, "out"),
    "starve-compute": lambda seed: Starve(seed, "compute"),
    "starve-seen": lambda seed: Starve(seed, "seen"),
    "burst": Burst,
    "priorities-1": lambda seed: Priorities(seed, changes=1),
    "priorities-3": Priorities,
}
"""By name: what makes each, from a seed."""
