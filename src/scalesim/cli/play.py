"""A run of the demo's village on one engine, driven as a simulation would drive it, and its score.

A play does not depend on the screen or on other plays; the demo moves several plays round by round.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from importlib.util import find_spec
from itertools import cycle, islice
from pathlib import Path
from statistics import median, quantiles
from typing import TypeVar

from scalesim.engine.engine import Engine
from scalesim.engine.memory_view import AgentView
from scalesim.engine.stats import EngineStats
from scalesim.memory.counters import Counters
from scalesim.memory.links.copy_threads import CopyThreads
from scalesim.requests.reply import Reply
from scalesim.requests.request import Request
from scalesim.village.actions import SCHEMA
from scalesim.village.world import ROUND_TICKS, Question, Village

Counts = TypeVar("Counts", EngineStats, Counters)
MOST_TOKENS = 36
"""Of a text."""
_OPENING = 8  # people who are asked at once before the clock starts, so that words come soon


@dataclass(frozen=True, slots=True)
class Said:
    """A text: its tick, who said it, its tokens, and a hash of the logits behind them."""

    tick: int
    who: str
    text: str
    token_ids: tuple[int, ...]
    logits: int


@dataclass(frozen=True, slots=True)
class PlayScore:
    """The score of one policy, without the opening: the engine's counters, and times.

    ``round_s`` are the seconds that each round with questions took, with the end of the tick behind
    it; ``latency_s`` those of each call from its submission to its end. ``peak_bytes``: the most of
    the device pool that was in use.
    """

    policy: str
    engine: EngineStats
    memory: Counters
    page_bytes: int
    round_s: Sequence[float] = ()
    latency_s: Sequence[float] = ()
    peak_bytes: int = 0
    speakers: int = 0  # agents that were asked, summed over the ticks
    first_words_at: float = 0.0  # by the performance counter; in the opening
    valid_actions: float = 1.0  # the share of texts that should be an action, and are

    @property
    def hits(self) -> float:
        """The share of looked-up blocks that were found on the device."""
        memory = self.memory
        found = memory.device_blocks
        asked = found + memory.host_blocks + memory.late_blocks + memory.computed_blocks
        return found / max(asked, 1)

    @property
    def waited(self) -> float:
        """The share of calls that waited for their state."""
        return self.memory.demand_loads / max(self.engine.calls, 1)

    @property
    def calls_per_s(self) -> float:
        return self.engine.calls / max(sum(self.round_s), 1e-9)

    @property
    def prefilled_tokens(self) -> int:
        return self.engine.prompt_tokens - self.engine.cached_tokens

    def latency_at(self, share: float) -> float:
        """The latency, in seconds, that this share of the calls did not exceed."""
        if len(self.latency_s) < 2:
            return sum(self.latency_s)
        return quantiles(self.latency_s, n=100, method="inclusive")[round(share * 100) - 1]

    def times(self, other: PlayScore) -> float:
        """How many times as fast as ``other``: the median over the rounds of both."""
        pairs = zip(other.round_s, self.round_s, strict=True)
        return median(theirs / max(ours, 1e-9) for theirs, ours in pairs)


@dataclass(slots=True)
class Tally:
    """What a play counts itself."""

    round_s: list[float] = field(default_factory=list)
    latency_s: list[float] = field(default_factory=list)
    peak_pages: int = 0
    speakers: int = 0


class Play:
    """A run of ``village`` on ``engine``, whose copies are made by ``link``. ``opening`` asks
    everyone for a first action, in groups; then each ``round`` plays a round. ``said`` has all
    texts, ``score`` the cost, ``states`` where each agent's state lay, by name, when the last round
    ended. ``voices`` are folders of adapters, which the people take in turn. ``at_once``: how many
    are asked at the same time, in the order of their questions; all of a round if ``None``.

    Between its rounds a play takes no time of others, and gets none: the engine computes on the
    caller's thread alone (``Engine.step``), and its link is paused.
    """

    def __init__(
        self,
        engine: Engine,
        link: CopyThreads,
        village: Village,
        policy: str,
        page_bytes: int,
        voices: Sequence[Path] = (),
        at_once: int | None = None,
    ) -> None:
        self.engine, self.village, self._link = engine, village, link
        self._at_once = at_once
        self.policy, self.page_bytes = policy, page_bytes
        self.names = [person.villager.name for person in village.people]
        self.said: list[Said] = []
        self.states: dict[str, AgentView] = {}
        self.tally = Tally()
        adapters = islice(cycle(voices or [None]), len(self.names))
        self._agents = [
            engine.agent(name, adapter=adapter)
            for name, adapter in zip(self.names, adapters, strict=True)
        ]
        schema = SCHEMA if find_spec("llguidance") is not None else None
        self._params = {
            "act": engine.sampling(max_tokens=MOST_TOKENS, json_schema=schema),
            "say": engine.sampling(max_tokens=MOST_TOKENS, stop=("\n",)),
        }
        self._first_words_at = 0.0
        self._clock = 0.0  # when this round began
        self._in_tick: set[int] = set()  # agents that were asked in this tick
        self._due: dict[int, float] = {}  # when each agent is asked next, by the village
        self._before = self._counts()

    def opening(self) -> Iterator[None]:
        """Everybody's first action, a group at a time, and the end of that tick. Not counted."""
        questions = self.village.round()
        texts: list[str] = []
        size = self._at_once or _OPENING
        for start in range(0, len(questions), size):
            with self._turn():
                texts += self._texts(questions[start : start + size])
            yield
        self.village.hear(questions, texts)
        with self._turn():
            while questions := self.village.round():  # nobody has arrived yet
                self.village.hear(questions, self._texts(questions))
            self._end_tick()
        self._before, self.tally = self._counts(), Tally()
        yield

    def round(self) -> bool:
        """Play the next round of the village's tick; after the last, end the tick: ``False``."""
        begin = time.perf_counter()
        questions = self.village.round()
        with self._turn():
            if questions:
                self.village.hear(questions, self._texts(questions))
                self._tell()
                self._in_tick |= {question.who for question in questions}
            else:
                self.tally.speakers += len(self._in_tick)
                self._end_tick()
        seconds = time.perf_counter() - begin
        if questions or not self.tally.round_s:
            self.tally.round_s.append(seconds)
        else:
            self.tally.round_s[-1] += seconds
        view = self.engine.memory
        device = view.tiers["device"]
        used = device.num_pages - device.num_free
        self.tally.peak_pages = max(self.tally.peak_pages, used)
        return bool(questions)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """What is inside may use the engine. Its last step hears what was told, and begins loads
        as after any step."""
        self._link.resume()
        try:
            yield
            census = self.engine.memory.census()
        finally:
            self._link.pause()
        self.states = {str(view.id): view for view in census.agents}

    @property
    def score(self) -> PlayScore:
        stats, memory = self._before
        village, tally = self.village, self.tally
        return PlayScore(
            self.policy,
            since(self.engine.stats, stats),
            since(self.engine.parts.memory.counters, memory),
            self.page_bytes,
            tuple(tally.round_s),
            tuple(tally.latency_s),
            tally.peak_pages * self.page_bytes,
            tally.speakers,
            self._first_words_at,
            1.0 - village.invalid_actions / max(village.actions, 1),
        )

    def ask(self, questions: Sequence[Question]) -> list[Reply]:
        """The replies to the questions of a round, in their order."""
        size = self._at_once or len(questions)
        groups = [questions[first : first + size] for first in range(0, len(questions), size)]
        if len(groups) == 1:
            return self._ask_at_once(questions, {})
        now, share = self._clock, ROUND_TICKS / len(groups)
        turns = {one.who: now + i * share for i, group in enumerate(groups) for one in group}
        replies: list[Reply] = []
        for i, group in enumerate(groups):
            self.engine.tick(to=now + i * share)
            for question in group:
                del turns[question.who]
            replies += self._ask_at_once(group, turns)
        return replies

    def _ask_at_once(
        self, questions: Sequence[Question], later: Mapping[int, float]
    ) -> list[Reply]:
        """``later``: when those are asked whose turn in this round comes after these."""
        requests = [
            Request(
                self.village.messages(question),
                self._agents[question.who].id,
                self._params[question.kind],
                on_overflow="drop_oldest",
            )
            for question in questions
        ]
        calls = [self.engine.submit(request) for request in requests]
        # When they are asked after these calls: who has spoken makes room.
        asked = {question.who for question in questions}
        self._expect(asked, later)
        while not all(call.done for call in calls):
            self.engine.step()
        return [call.result() for call in calls]

    def _texts(self, questions: Sequence[Question]) -> list[str]:
        replies = self.ask(questions)
        texts = [(reply.text or "").strip() for reply in replies]
        self._first_words_at = self._first_words_at or time.perf_counter()
        for question, reply, text in zip(questions, replies, texts, strict=True):
            name = self.names[question.who]
            said = Said(self.village.now, name, text, reply.token_ids, reply.digest)
            self.said.append(said)
            self.tally.latency_s.append(reply.latency_s)
        return texts

    def _end_tick(self) -> None:
        self._in_tick.clear()
        self.village.end_tick()
        self._tell()

    def _tell(self) -> None:
        """Move the engine's clock to the next round, and tell the hints that changed."""
        self._clock = self.village.clock
        self.engine.tick(to=self._clock)
        self._expect()

    def _expect(
        self, asked: Collection[int] = (), later: Mapping[int, float] | None = None
    ) -> None:
        """Tell what changed, and of those that are ``asked`` when they are asked again; ``later``
        goes before what the village says."""
        changed = self.village.expected()
        self._due |= changed
        again = {who: self._due[who] for who in asked}
        next_uses = changed | again | dict(later or {})
        self.engine.expect(
            {self._agents[who].id: at for who, at in next_uses.items()}, absolute=True
        )

    def _counts(self) -> tuple[EngineStats, Counters]:
        return replace(self.engine.stats), replace(self.engine.parts.memory.counters)


def play_tick(plays: Sequence[Play], play_round: Callable[[Play], bool]) -> None:
    """Play the next tick of several plays, round by round, one after another, in alternating order:
    a slow minute of the machine affects all of them alike. ``play_round`` says whether the tick
    goes on, like ``Play.round``."""
    going = plays
    while going:
        going = [play for play in reversed(going) if play_round(play)]


def since(now: Counts, before: Counts) -> Counts:
    """The difference of counters between ``before`` and ``now``."""
    names = [field.name for field in fields(now)]
    return type(now)(**{name: getattr(now, name) - getattr(before, name) for name in names})
