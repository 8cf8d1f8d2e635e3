"""Validation of hints: which of the given values are usable, and which are ignored and why."""

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

FEW = 8  # up to so many hints are cheaper one by one than as arrays
_MAX_COMPARED = 4096  # names that a misspelt name is compared with


class Hints(NamedTuple):
    """The usable hints about ``n`` agents.

    ``at`` is ``[n]``, in ticks: finite, or NaN to take the last hint back. ``confidence`` is
    ``[n]``. Both are lists up to ``FEW`` hints, else arrays.
    """

    agents: Sequence[AgentId]
    at: list[float] | Times
    confidence: list[float] | Times


class Ignored(NamedTuple):
    """A hint that is ignored, and why. ``value`` is the value at fault, as it was given."""

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
    agents: Sequence[AgentId],
    at: Any,
    confidence: Any,
    *,
    of_users: bool = False,
    for_each: bool = False,
) -> tuple[Hints, list[Ignored]]:
    """The usable hints among those given, and the ignored ones.

    ``at`` has one time for each of ``agents``, ``confidence`` one value for all or one for each.
    Ignored are infinite times, and times and confidences that are no numbers. A NaN time takes the
    last hint back; with ``of_users``, a NaN time is ignored as well, and there is one confidence
    for all unless they are given ``for_each``. Raises ``ValueError`` or ``TypeError`` if the
    arguments are no such lists; then none of the hints counts.
    """
    count = len(agents)
    if not count and not len(at):
        return NO_HINTS, []
    if len(at) != count:
        raise ValueError(f"{len(at)} times for {count} agents; give one for each")
    if of_users and count <= FEW:
        return _read_few(agents, at, confidence if for_each else [confidence] * count)
    times = _numbers(at)
    if times.shape != (count,):
        raise ValueError(f"times of shape {times.shape} for {count} agents; give one for each")
    if of_users:
        times[np.isnan(times)] = np.inf
    per_agent = for_each or (
        not (of_users or isinstance(confidence, str)) and np.ndim(confidence) > 0
    )
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
    agents: Sequence[AgentId], at: Sequence[Any], confidence: Sequence[Any]
) -> tuple[Hints, list[Ignored]]:
    """``read`` for up to ``FEW`` hints of users: arrays would take twenty times as long."""
    names: list[AgentId] = []
    times: list[float] = []
    trusted: list[float] = []
    ignored = []
    for agent, value, given in zip(agents, at, confidence, strict=True):
        time, sure = number(value), number(given)
        if not math.isfinite(time):
            ignored.append(Ignored("no time", agent, value))
        elif not math.isfinite(sure):
            ignored.append(Ignored("no confidence", agent, given))
        else:
            names.append(agent)
            times.append(time)
            trusted.append(sure)
    return Hints(names, times, trusted), ignored


def number(value: Any) -> float:
    """``value`` as a float; infinity, which no usable time is, if ``value`` is no number."""
    if type(value) is float:  # nearly always
        return value
    with Foreign():  # the value may be any object, and its conversion may raise anything
        return float(value)
    return math.inf


def nearest(name: AgentId, others: Iterable[AgentId]) -> AgentId | None:
    """The closest match of ``name`` among ``others``; ``None`` if none is similar."""
    known = {shown(other).strip("'"): other for other in islice(others, _MAX_COMPARED)}
    found = difflib.get_close_matches(shown(name).strip("'"), known, 1, 0.75)
    return known[found[0]] if found else None


def _numbers(values: Sequence[Any] | npt.NDArray[Any]) -> Times:
    """A copy of ``values`` as ``[n]`` floats; infinity where a value is no number."""
    with Foreign():  # values may be any objects
        numbers = np.array(values, np.float64)
        if isinstance(values, np.ndarray) and values.dtype.kind != "O":
            return numbers
        if numbers.ndim == 1:
            for index in np.flatnonzero(np.isnan(numbers)).tolist():
                numbers[index] = number(values[index])  # numpy takes ``None`` for NaN
            return numbers
    return np.array([number(value) for value in values])
