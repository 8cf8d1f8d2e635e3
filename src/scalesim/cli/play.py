"""A run of the demo's world on one engine, driven as a simulation would drive it, and its score.

A play does not depend on the screen or on other plays; the demo moves several plays round by round.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from statistics import median
from typing import TypeVar

from scalesim.cli.world import Utterance, World
from scalesim.engine.engine import Engine
from scalesim.engine.stats import EngineStats
from scalesim.memory.counters import Counters
from scalesim.requests.reply import Reply
from scalesim.requests.request import Request
from scalesim.sampling.params import SamplingParams

Counts = TypeVar("Counts", EngineStats, Counters)


@dataclass(frozen=True, slots=True)
class Said:
    """An utterance: its tick, its speaker, its tokens, and a hash of the logits behind them."""

    tick: int
    who: str
    token_ids: tuple[int, ...]
    logits: int

    @property
    def text(self) -> str:
        """The tokens as text, with a dot for every byte that is not printable ASCII."""
        return "".join(chr(i) if 32 <= i < 127 else "·" for i in self.token_ids)


@dataclass(frozen=True, slots=True)
class PlayScore:
    """The score of one policy, without the warm-up: the engine's counters, and times.

    ``call_cpu_s`` is the processor time per utterance, over all threads, in the median round. Other
    load on the machine makes rounds take longer, but hardly changes this figure.
    """

    policy: str
    ticks: int
    call_cpu_s: float
    engine: EngineStats
    memory: Counters
    page_bytes: int
    speakers: int = 0  # agents that spoke, summed over the ticks

    @property
    def hits(self) -> float:
        """The share of looked-up blocks that were found on the device."""
        memory = self.memory
        found = memory.device_blocks
        asked = found + memory.host_blocks + memory.late_blocks + memory.computed_blocks
        return found / max(asked, 1)

    @property
    def moved_bytes(self) -> int:
        return (self.memory.loaded_pages + self.memory.saved_pages) * self.page_bytes

    @property
    def prefilled_tokens(self) -> int:
        return self.engine.prompt_tokens - self.engine.cached_tokens


class Play:
    """A run of ``world`` on ``engine``. ``warm_up`` generates one utterance of every agent; then
    each ``round`` plays a round of the world. ``said`` has all utterances, ``score`` the cost."""

    def __init__(self, engine: Engine, world: World, policy: str, page_bytes: int) -> None:
        self.engine, self.world = engine, world
        self.policy, self.page_bytes = policy, page_bytes
        self.said: list[Said] = []
        self._agents = [engine.agent(person.name) for person in world.people]
        self._ticks, self._speakers = 0, 0
        self._call_cpu_s: list[float] = []  # by round
        self._in_tick: set[int] = set()  # agents that have spoken in this tick
        self._before = self._counts()

    def warm_up(self) -> None:
        self.ask(self.world.opening(), max_tokens=1)
        self._tell()
        self._before = self._counts()

    def round(self) -> bool:
        """Play the next round of the world's tick; after the last, end the tick: ``False``."""
        start = time.process_time()
        utterances = self.world.round()
        if not utterances:
            self._end_tick()
            return False
        self._play(utterances)
        self._call_cpu_s.append((time.process_time() - start) / len(utterances))
        return True

    @property
    def score(self) -> PlayScore:
        stats, memory = self._before
        return PlayScore(
            self.policy,
            self._ticks,
            median(self._call_cpu_s or [0.0]),
            since(self.engine.stats, stats),
            since(self.engine.parts.memory.counters, memory),
            self.page_bytes,
            self._speakers,
        )

    def _counts(self) -> tuple[EngineStats, Counters]:
        return replace(self.engine.stats), replace(self.engine.parts.memory.counters)

    def _play(self, utterances: Sequence[Utterance]) -> None:
        world = self.world
        replies = self.ask(utterances, world.config.reply_len)
        self.said += [
            Said(world.now, world.people[utterance.who].name, reply.token_ids, reply.digest)
            for utterance, reply in zip(utterances, replies, strict=True)
        ]
        world.hear(utterances, [spoken(reply) for reply in replies])
        self._tell()
        self._in_tick |= {utterance.who for utterance in utterances}

    def _end_tick(self) -> None:
        self._ticks += 1
        self._speakers += len(self._in_tick)
        self._in_tick.clear()
        self.world.end_tick()
        self.engine.tick()

    def _tell(self) -> None:
        """Give the engine the changed hints at once, so that agents that speak late can be evicted
        first."""
        distances = self.world.expected()
        self.engine.expect({self._agents[who].id: ticks for who, ticks in distances.items()})

    def ask(self, utterances: Sequence[Utterance], max_tokens: int) -> list[Reply]:
        params = SamplingParams(max_tokens=max_tokens)
        requests = [
            Request(utterance.prompt, self._agents[utterance.who].id, params)
            for utterance in utterances
        ]
        return [reply for reply in self.engine.run(requests) if isinstance(reply, Reply)]


def spoken(reply: Reply) -> bytes:
    """The utterance as bytes, without the token that ended it."""
    return bytes(token for token in reply.token_ids if token < 256)


def since(now: Counts, before: Counts) -> Counts:
    """The difference of counters between ``before`` and ``now``."""
    names = [field.name for field in fields(now)]
    return type(now)(**{name: getattr(now, name) - getattr(before, name) for name in names})
