"""What a run of the demo records for its report and its timeline."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from scalesim.cli.play import Play
from scalesim.cli.scenery import residency

_INTERVAL_S = 0.02


@dataclass(frozen=True, slots=True)
class LinkSample:
    """A policy's engine at ``at_s``: pages of the device pool in use, bytes that wait for the link,
    pages loaded and saved since its start."""

    at_s: float
    policy: str
    device_pages: int
    queued_in: int
    queued_out: int
    loaded_pages: int
    saved_pages: int


@dataclass(frozen=True, slots=True)
class RoundSpan:
    """A round of a policy: when, in which tick, which agents were asked, by their place in the
    village's order, and where the state of each agent lay at the end, in that order and by the
    names of ``scenery.MARKS``."""

    begin_s: float
    end_s: float
    policy: str
    tick: int
    asked: tuple[int, ...]
    states: tuple[str, ...]


@dataclass(slots=True)
class DemoLog:
    """Rounds and samples in order of time; seconds since the beginning."""

    rounds: list[RoundSpan] = field(default_factory=list)
    samples: list[LinkSample] = field(default_factory=list)


class DemoWatch:
    """Records rounds, and samples the engine that plays one every 20 ms, on a thread of its own.
    The samples are plain reads: the engine does not wait for them."""

    def __init__(self) -> None:
        self.log = DemoLog()
        self._begin = time.perf_counter()

    @contextmanager
    def round(self, play: Play) -> Iterator[None]:
        """Record what happens inside, which is a round of ``play``."""
        tick, before = play.village.now, len(play.said)
        ended = threading.Event()
        sampler = threading.Thread(target=self._sample_until, args=(ended, play), daemon=True)
        begin = self._now()
        sampler.start()
        try:
            yield
        finally:
            ended.set()
            sampler.join()
        end = self._now()
        views = play.states
        states = tuple(
            residency(views[name]) if name in views else "nowhere" for name in play.names
        )
        asked = tuple(play.names.index(said.who) for said in play.said[before:])
        self.log.rounds.append(RoundSpan(begin, end, play.policy, tick, asked, states))

    def _sample_until(self, ended: threading.Event, play: Play) -> None:
        while True:
            self.log.samples.append(self._sample(play))
            if ended.wait(_INTERVAL_S):
                self.log.samples.append(self._sample(play))
                return

    def _sample(self, play: Play) -> LinkSample:
        view, counters = play.engine.memory, play.engine.parts.memory.counters
        device, queued = view.tiers["device"], view.queued_bytes
        return LinkSample(
            self._now(),
            play.policy,
            device.num_pages - device.num_free,
            queued["in"],
            queued["out"],
            counters.loaded_pages,
            counters.saved_pages,
        )

    def _now(self) -> float:
        return time.perf_counter() - self._begin
