"""Hints as they were given: what can be heard of them, and what says nothing and is ignored."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from scalesim.checks import shown
from scalesim.core import AgentId
from scalesim.distance.estimates import Times
from scalesim.distance.scores import Reason
from scalesim.foreign import Foreign

FEW = 8  # hints that are cheaper one by one than as arrays
_MAX_COMPARED = 4096  # names that a misspelt one is held against


class Hints(NamedTuple):
    """What can be heard of ``n`` agents: finite times, or NaN to take back what was said; and how
    sure, as numbers. Both are ``[n]``: lists of few, else arrays."""

    agents: Sequence[AgentId]
    at: list[float] | Times
    confidence: list[float] | Times


class Ignored(NamedTuple):
    """A hint that says nothing, and why. ``value``: what was wrong, as it was given."""

    reason: Reason
    agent: AgentId
    value: Any

    def __str__(self) -> str:
        given = shown(self.value)
        rule = {
            "no time": f"{given} is no finite number of ticks",
            "no confidence": f"confidence {given} is no number from 0 to 1",
            "nobody has this name": f"nobody had this name by tick {given}, when it was to call",
        }[self.reason]
        return f"agent {shown(self.agent)}: {rule}"


NO_HINTS = Hints((), [], [])


def read(
    agents: Sequence[AgentId], at: Any, confidence: Any, *, of_users: bool = False
) -> tuple[Hints, list[Ignored]]:
    """What ``agents`` are said to do ``at`` times, one each, and what of it is ignored: infinite
    times and what is no number, and a ``confidence`` (one for all, or one each) that is none. NaN
    takes back what was said; of users, who give one confidence for all, it says nothing. Raises
    ``ValueError`` or ``TypeError`` for what are no such lists; then nothing of it counts."""
    count = len(agents)
    if not count and not len(at):
        return NO_HINTS, []
    if len(at) != count:
        raise ValueError(f"{len(at)} times for {count} agents; give one for each")
    if of_users and count <= FEW:
        return _read_few(agents, at, confidence)
    times = _numbers(at)
    if times.shape != (count,):
        raise ValueError(f"times of shape {times.shape} for {count} agents; give one for each")
    if of_users:
        times[np.isnan(times)] = np.inf
    per_agent = not (of_users or isinstance(confidence, str)) and np.ndim(confidence) > 0
    sure = np.broadcast_to(_numbers(confidence if per_agent else [confidence]), (count,))
    no_time = np.isinf(times)
    no_sure = ~(np.isfinite(sure) | np.isnan(times) | no_time)
    ignored = [Ignored("no time", agents[i], at[i]) for i in np.flatnonzero(no_time).tolist()]
    for i in np.flatnonzero(no_sure).tolist():
        ignored.append(
            Ignored("no confidence", agents[i], confidence[i] if per_agent else confidence)
        )
    if ignored:
        heard = ~(no_time | no_sure)
        agents = [agents[i] for i in np.flatnonzero(heard).tolist()]
        times, sure = times[heard], sure[heard]
    if len(agents) <= FEW:
        return Hints(agents, times.tolist(), sure.tolist()), ignored
    return Hints(agents, times, sure), ignored


def _read_few(
    agents: Sequence[AgentId], at: Sequence[Any], confidence: Any
) -> tuple[Hints, list[Ignored]]:
    """``read`` of few hints of users: arrays would take twenty times as long."""
    sure = number(confidence)
    names: list[AgentId] = []
    times: list[float] = []
    ignored = []
    for agent, value in zip(agents, at, strict=True):
        time = number(value)
        if not math.isfinite(time):
            ignored.append(Ignored("no time", agent, value))
        elif not math.isfinite(sure):
            ignored.append(Ignored("no confidence", agent, confidence))
        else:
            names.append(agent)
            times.append(time)
    return Hints(names, times, [sure] * len(names)), ignored


def number(value: Any) -> float:
    """``value`` as a number; infinite, which says nothing about a time, where it is none."""
    with Foreign():  # the value may be anybody's object
        return float(value)
    return math.inf


def nearest(name: AgentId, others: Iterable[AgentId]) -> AgentId | None:
    """Who of ``others`` may be meant by ``name``; ``None`` if none is like it."""
    known = {shown(other).strip("'"): other for other in islice(others, _MAX_COMPARED)}
    found = difflib.get_close_matches(shown(name).strip("'"), known, 1, 0.75)
    return known[found[0]] if found else None


def _numbers(values: Sequence[Any] | npt.NDArray[Any]) -> Times:
    """``[n]``, a copy; infinite where it is no number."""
    with Foreign():  # some of them may be anybody's objects
        numbers = np.array(values, np.float64)
        if isinstance(values, np.ndarray) and values.dtype.kind != "O":
            return numbers
        if numbers.ndim == 1:
            for index in np.flatnonzero(np.isnan(numbers)).tolist():
                numbers[index] = number(values[index])  # numpy takes ``None`` for NaN
            return numbers
    return np.array([number(value) for value in values])
