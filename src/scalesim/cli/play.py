"""One run of the demo's world on one engine, driven as a simulation would drive it, and its score.

Knows nothing of screens, nor of other plays: who holds several moves each by a round in turn.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from statistics import median
from typing import TypeVar

from scalesim.cli.world import Turn, World
from scalesim.engine.engine import Engine, EngineStats
from scalesim.memory.counters import Counters
from scalesim.requests.reply import Reply
from scalesim.requests.request import Request
from scalesim.sampling.params import SamplingParams

Counts = TypeVar("Counts", EngineStats, Counters)


@dataclass(frozen=True, slots=True)
class Said:
    """One utterance: in which step, by whom, its tokens, and a hash over the logits behind them."""

    step: int
    who: str
    token_ids: tuple[int, ...]
    logits: int

    @property
    def text(self) -> str:
        """What can be shown of noise: a dot for every byte that is no printable ASCII."""
        return "".join(chr(i) if 32 <= i < 127 else "·" for i in self.token_ids)


@dataclass(frozen=True, slots=True)
class Score:
    """What one policy did, the warm-up not counted: the engine's own counts, and ours of time.

    ``turn_cpu_s``: processor time a turn, all threads together, in the median round: what else the
    machine does makes a round last longer, and few of them cost more.
    """

    policy: str
    steps: int
    turn_cpu_s: float
    engine: EngineStats
    memory: Counters
    page_bytes: int
    speakers: int = 0  # agents who spoke, summed over the steps

    @property
    def hits(self) -> float:
        """Share of the blocks asked for that were found on the device."""
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
    """``warm_up`` gives everyone a turn, once; then each ``round`` plays one of the world's.
    ``said`` is the record, ``score`` what it took."""

    def __init__(self, engine: Engine, world: World, policy: str, page_bytes: int) -> None:
        self.engine, self.world = engine, world
        self.policy, self.page_bytes = policy, page_bytes
        self.said: list[Said] = []
        self._agents = [engine.agent(person.name) for person in world.people]
        self._steps, self._speakers = 0, 0
        self._turn_cpu_s: list[float] = []  # by round
        self._in_step: set[int] = set()  # who has spoken
        self._before = self._counts()

    def warm_up(self) -> None:
        self._ask(self.world.opening(), max_tokens=1)
        self._tell()
        self._before = self._counts()

    def round(self) -> bool:
        """Play the next round of the world's step; after the last, end the step: ``False``."""
        start = time.process_time()
        turns = self.world.round()
        if not turns:
            self._end_step()
            return False
        self._play(turns)
        self._turn_cpu_s.append((time.process_time() - start) / len(turns))
        return True

    @property
    def score(self) -> Score:
        stats, memory = self._before
        return Score(
            self.policy,
            self._steps,
            median(self._turn_cpu_s or [0.0]),
            since(self.engine.stats, stats),
            since(self.engine.parts.memory.counters, memory),
            self.page_bytes,
            self._speakers,
        )

    def _counts(self) -> tuple[EngineStats, Counters]:
        return replace(self.engine.stats), replace(self.engine.parts.memory.counters)

    def _play(self, turns: Sequence[Turn]) -> None:
        world = self.world
        replies = self._ask(turns, world.config.reply_len)
        self.said += [
            Said(world.now, world.people[turn.who].name, reply.token_ids, reply.digest)
            for turn, reply in zip(turns, replies, strict=True)
        ]
        world.hear(turns, [spoken(reply) for reply in replies])
        self._tell()
        self._in_step |= {turn.who for turn in turns}

    def _end_step(self) -> None:
        self._steps += 1
        self._speakers += len(self._in_step)
        self._in_step.clear()
        self.world.end_step()
        self.engine.advance()

    def _tell(self) -> None:
        """Plans are known as soon as they are made: whoever speaks late can give way at once."""
        distances = self.world.expected()
        self.engine.expect({self._agents[who].id: steps for who, steps in distances.items()})

    def _ask(self, turns: Sequence[Turn], max_tokens: int) -> list[Reply]:
        params = SamplingParams(max_tokens=max_tokens)
        requests = [Request(turn.prompt, self._agents[turn.who].id, params) for turn in turns]
        return [reply for reply in self.engine.run(requests) if isinstance(reply, Reply)]


def spoken(reply: Reply) -> bytes:
    """The utterance as bytes, without the token that ended it."""
    return bytes(token for token in reply.token_ids if token < 256)


def since(now: Counts, before: Counts) -> Counts:
    """What was counted after ``before``, a copy of the same counts."""
    names = [field.name for field in fields(now)]
    return type(now)(**{name: getattr(now, name) - getattr(before, name) for name in names})
