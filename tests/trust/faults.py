"""Nth-call faults: every part of the engine fails at its N-th call, once or for ever.

SQLite's way (sqlite.org/testing.html, 3.1 and 3.2): a fault point is a method of a part; the same
workload runs again and again, and the N-th call of one point raises, for every point and every N
that the workload reaches. Nothing in the engine knows of it: the parts are found by a walk through
an engine, and the public methods of their classes are wrapped from here.

After a fault once, every agent must have said what it says without faults, and the same workload
must complete again on the same engine. Under a fault for ever, an agent has said that, or has got a
typed error; no call stays open, and no page is lost while the engine lives. ``python -m tests.long
faults`` runs them all.
"""

from __future__ import annotations

import inspect
import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any
from unittest.mock import patch

from scalesim.errors import AdapterError
from scalesim.memory.links.link import Link
from scalesim.requests.call import TextObserver
from scalesim.testing.hostile_link import HostileLink
from scalesim.testing.tag_runner import TagRunner
from tests.inside import reachable
from tests.trust.workload import Lost, TagFolder, Text, Workload

Mode = str
MODES = ("once", "for ever")
ROOMS = ("memory", "scheduler", "sampling", "distance", "trace", "model")
"""Where the parts are that may fail at any call. What is in ``engine`` has to catch that."""


class Injected(RuntimeError):
    """What a fault point raises."""


@dataclass(frozen=True)
class Point:
    """``method`` of ``owner`` raises, before it does anything, or (``late``) when it has done it.
    ``copies``: no call fails, but the copy that it moves. ``error`` is what the contract of
    ``method`` lets it raise, where it names one."""

    owner: type
    method: str
    late: bool = False
    copies: bool = False
    error: type[Exception] = Injected


def may_land(link: HostileLink) -> bool:
    """Whether a piece of a copy can be next. A fault in a step without one would wait for the first
    step that has: that is the same run."""
    return any(event.queue != "seen" for event in link.events())


def methods_of(made: type) -> list[str]:
    return [name for name, method in vars(made).items()
            if inspect.isfunction(method) and not name.startswith("_")
            and not inspect.isgeneratorfunction(method)]  # fmt: skip


@cache
def points() -> dict[str, Point]:
    """Every public method of every part, which fails before it does anything or afterwards; and
    what only fails in ways that its contract names: a link and a runner, which leave nothing behind
    when they raise, an adapter's source, a request's own callback."""
    with Workload() as workload:
        found_in = reachable(workload.engine, but=(HostileLink, TagRunner))
        made_of = {made for _, part in found_in for made in type(part).__mro__}
    rooms = tuple(f"scalesim.{room}." for room in ROOMS)
    ours = {made for made in made_of if made.__module__.startswith(rooms)}
    found = {
        f"{made.__name__}.{name}{', done' * late}": Point(made, name, late)
        for made in ours
        for name in methods_of(made)
        for late in (False, True)
    }
    found |= {f"link: {name}": Point(HostileLink, name) for name in methods_of(Link)}
    found |= {
        "runner: launch": Point(TagRunner, "launch"),
        "runner: collect": Point(TagRunner, "collect", late=True),
        "adapter source": Point(TagFolder, "read", error=AdapterError),
        "a copy": Point(HostileLink, "step", copies=True),
        "stop strings": Point(TextObserver, "push"),
    }
    return dict(sorted(found.items()))


@dataclass
class Fault:
    """The N-th call fails; ``nth`` 0: none does, calls are only counted."""

    nth: int = 0
    mode: Mode = "once"
    calls: int = 0

    def strikes(self) -> bool:
        self.calls += 1
        return 0 < self.nth <= self.calls and (self.mode == "for ever" or self.calls == self.nth)


@contextmanager
def planted(point: Point, fault: Fault) -> Iterator[None]:
    """``point`` fails as ``fault`` says."""
    method = getattr(point.owner, point.method)

    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        strikes = (not point.copies or may_land(self)) and fault.strikes()
        if strikes and point.copies:
            self.failures += 1
        elif strikes and not point.late:
            raise point.error(f"{point.owner.__name__}.{point.method}, call {fault.calls}")
        result = method(self, *args, **kwargs)
        if strikes and point.late:
            raise point.error(f"{point.owner.__name__}.{point.method}, call {fault.calls}, done")
        return result

    with patch.object(point.owner, point.method, wrapped):
        yield


def reach(steps_in_flight: int = 1) -> Counter[str]:
    """How often the workload calls each point."""
    faults = {name: Fault() for name in points()}
    with Workload(steps_in_flight=steps_in_flight) as workload, ExitStack() as stack:
        for name, point in points().items():
            stack.enter_context(planted(point, faults[name]))
        workload.play()
    return Counter({name: fault.calls for name, fault in faults.items()})


@dataclass(frozen=True)
class Outcome:
    """What one faulted run came to. ``hit``: agents that ended with a typed error."""

    restarts: int
    hit: int
    died: bool
    lost_pages: int


def run(
    point: Point,
    nth: int,
    mode: Mode,
    texts: dict[str, list[Text]],
    steps_in_flight: int = 1,
    *,
    seed: int = 0,
) -> Outcome:
    """One faulted run, judged. Raises ``Lost``."""
    fault = Fault(nth, mode)
    logging.getLogger("scalesim").setLevel(logging.CRITICAL)
    try:
        with Workload(seed, steps_in_flight) as workload:
            with planted(point, fault):
                _compare(workload, workload.play(), texts)
            if workload.dead is None and mode == "once":
                if workload.errors:
                    raise Lost(f"one fault cost {workload.errors}")
                if (again := workload.play("again ")) != texts or workload.errors:
                    raise Lost(f"the next run says {again}, {workload.errors}")
            elif mode == "once":
                raise Lost(f"one fault cost the engine: {workload.dead!r}")
            if workload.dead is None:
                workload.settle()
    finally:
        logging.getLogger("scalesim").setLevel(logging.NOTSET)
    stats, died = workload.engine.stats, workload.dead is not None
    return Outcome(stats.restarts, len(workload.errors), died, stats.lost_pages)


def _compare(workload: Workload, said: dict[str, list[Text]], texts: dict[str, list[Text]]) -> None:
    for agent, expected in texts.items():
        mine = said.get(agent, [])
        if agent not in workload.errors:
            if mine != expected:
                raise Lost(f"{agent} said {mine}, not {expected}")
        elif mine != expected[: len(mine)]:
            raise Lost(f"{agent} said {mine} before its error, not {expected}")
        elif isinstance(workload.errors[agent], Lost):
            raise workload.errors[agent]
