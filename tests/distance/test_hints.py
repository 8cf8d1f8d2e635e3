"""What says nothing is counted and told once; bulk is one by one; no source breaks anything."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalesim.distance import NOTHING, Estimates, Learned, Source
from scalesim.distance.clock import Clock
from scalesim.distance.distances import Distances
from scalesim.engine.engine import Engine
from scalesim.errors import ConfigError, HintWarning, RequestError
from scalesim.testing.tag_parts import tag_parts
from tests.inside import part


class Says(Source):
    """Says what it is given, one batch for each time that it is asked."""

    def __init__(self, *batches: Any, name: str = "says") -> None:
        super().__init__()
        self.name = name
        self.batches = list(batches)

    def changes(self, now: float) -> Estimates:
        return self.batches.pop(0) if self.batches else NOTHING


def engine(*sources: Source) -> Engine:
    return Engine(tag_parts(device_pages=40, host_pages=40), sources=sources)


def call(made: Engine, *ids: Any) -> None:
    calls = [made.submit(made.agent(id).request([1, 2, 3], max_tokens=2)) for id in ids]
    while not all(each.done for each in calls):
        made.step()


TIMES = st.sampled_from([math.nan, math.inf, -math.inf, -3.0, 0.0, 1e300, "soon", None, 10**400])
SURE = st.sampled_from([0.0, 0.02, 0.5, 1.0, 7.0, -1.0, math.nan, "high", None])
ROUND = st.lists(
    st.tuples(st.integers(0, 9), TIMES | st.floats(-5, 40), SURE | st.floats(0, 1)),
    min_size=1,
    max_size=64,
)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.lists(st.tuples(ROUND, st.floats(0.0, 3.0), st.integers(0, 9)), max_size=6))
def test_estimates_at_once_are_estimates_one_by_one(
    rounds: list[tuple[list[tuple[int, Any, Any]], float, int]],
) -> None:
    """Agents named again in one batch included: next uses, what was told, and what was ignored."""
    told: list[dict[Any, float | None]] = [{}, {}]
    sources, both = [Says(), Says()], [Distances(Clock()), Distances(Clock())]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HintWarning)
        for source, distances in zip(sources, both, strict=True):
            distances.add(source)
        for batch, ticks, caller in rounds:
            sources[0].batches = [Estimates(*zip(*batch, strict=True))]
            sources[1].batches = [Estimates((a,), (at,), (sure,)) for a, at, sure in batch]
            for index, distances in enumerate(both):
                while sources[index].batches:
                    told[index].update(distances.poll())
                told[index].update(distances.called(caller))
                told[index].update(distances.ended(caller))
                told[index].update(distances.tick(0.0, to=distances.clock.now + ticks))
            uses = [[distances.next_use(a) for a in range(10)] for distances in both]
            assert uses[0] == uses[1]
            assert [told[0].get(a) for a in range(10)] == [told[1].get(a) for a in range(10)]
            scores = [distances.scores()["says"] for distances in both]
            assert scores[0].ignored == scores[1].ignored
            assert not scores[0].silent.startswith("it failed")


class Raises(Source):
    name = "raises"

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where

    def _at(self, where: str) -> None:
        if where == self.where:
            raise RuntimeError(where)

    def changes(self, now: float) -> Estimates:
        self._at("changes")
        return NOTHING

    def called(self, agent: Any, now: float) -> None:
        self._at("called")

    def forget(self, agents: Any) -> None:
        self._at("forget")

    def why_silent(self) -> str:
        self._at("why_silent")
        return ""


class Unspeakable:
    def __repr__(self) -> str:
        raise RuntimeError("no repr")

    def __float__(self) -> float:
        raise RuntimeError("no number")


def endless() -> Any:
    while True:
        yield 1


MISBEHAVING: dict[str, Callable[[], Source]] = {
    **{where: partial(Raises, where) for where in ("changes", "called", "forget", "why_silent")},
    "nothing": lambda: Says(None, None),
    "a number": lambda: Says(3),
    "a generator": lambda: Says(each for each in range(3)),
    "an endless generator": lambda: Says(endless()),
    "generators within": lambda: Says(Estimates((x for x in "ab"), (x for x in (1.0, 2.0)))),  # type: ignore[arg-type]
    "two values": lambda: Says((["ada"], [1.0])),
    "too few times": lambda: Says(Estimates(["ada", "bob"], [1.0])),
    "a time for all": lambda: Says(Estimates(["ada", "bob"], 1.0)),  # type: ignore[arg-type]
    "a table": lambda: Says(Estimates(range(20), np.zeros((20, 2)))),
    "too few confidences": lambda: Says(Estimates(["ada", "bob"], [1.0, 2.0], [0.5])),
    "a list as an agent": lambda: Says(Estimates([["ada"]], [1.0])),  # type: ignore[list-item]
    "many, one a list": lambda: Says(Estimates([*range(20), []], [1.0] * 21)),  # type: ignore[list-item]
    "no agents": lambda: Says(Estimates(None, [1.0])),  # type: ignore[arg-type]
    "words": lambda: Says(Estimates(["ada", "bob"], ["soon", "later"])),  # type: ignore[list-item]
    "unspeakable times": lambda: Says(Estimates(["ada"], [Unspeakable()])),  # type: ignore[list-item]
    "unspeakable agents": lambda: Says(Estimates([Unspeakable()], [0.0])),  # type: ignore[list-item]
    "a confidence that is a word": lambda: Says(Estimates(["ada"], [1.0], "high")),  # type: ignore[arg-type]
    "one agent often": lambda: Says(Estimates(["ada"] * 40, [5.0, math.nan] * 20)),
    "agents that nobody has": lambda: Says(*(Estimates([f"x{n}"], [n]) for n in range(9))),
    "None as an agent": lambda: Says(Estimates([None], [1.0])),  # type: ignore[list-item]
}  # fmt: skip


@pytest.mark.parametrize("kind", MISBEHAVING)
def test_no_source_breaks_anything(kind: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HintWarning)
        with engine(MISBEHAVING[kind](), Learned()) as made:  # ``integrity`` is "raise"
            for _ in range(12):
                call(made, "ada", "bob")
                made.tick()
            made.forget("bob")
            call(made, "ada", "eve")
            made.source_scores()
            made.why("ada")
            made.parts.memory.hint([("ada", 3.0)])
            call(made, "ada")
            assert made.stats.restarts == 0 and made.stats.calls == 27
            assert set(made.parts.memory.owners.agents) == {"ada", "eve"}


def test_two_of_one_name_are_refused_at_once() -> None:
    """As where a notebook's cell is run twice, before the engine has heard of the first."""
    with engine() as made:
        made.add_source(Says(name="plan"))
        for name in ("plan", "declared", "wake"):
            with pytest.raises(ConfigError, match=f"named '{name}' already"):
                made.add_source(Says(name=name))
        call(made, "ada")
        assert list(made.source_scores()) == ["declared", "wake", "plan"]
    with pytest.raises(ConfigError, match="'plan'"):
        engine(Says(name="plan"), Says(name="plan"))


class Nameless(Says):
    @property  # type: ignore[override]
    def name(self) -> Any:
        raise RuntimeError("no name")

    @name.setter
    def name(self, name: str) -> None: ...


@pytest.mark.parametrize(
    "wrong",
    [Learned, "Learned", None, Nameless(), Says(name=3), Says(name="")],  # type: ignore[arg-type]
)
def test_what_is_no_source_is_refused(wrong: Any) -> None:
    with engine() as made:
        with pytest.raises(ConfigError):
            made.add_source(wrong)
        call(made, "ada")
        assert made.stats.restarts == 0
    with pytest.raises(ConfigError):
        engine(wrong)


# -- hints that say nothing ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("at", "confidence", "reason", "shown"),
    [
        ("soon", 1.0, "no time", "'soon' is no finite number"),
        (None, 1.0, "no time", "None is no finite number"),
        (math.nan, 1.0, "no time", "nan is no finite number"),
        (math.inf, 1.0, "no time", "inf is no finite number"),
        (10**400, 1.0, "no time", "is no finite number"),
        ([3.0], 1.0, "no time", "[3.0] is no finite number"),
        (3.0, "high", "no confidence", "confidence 'high' is no number"),
        (3.0, None, "no confidence", "confidence None is no number"),
        (3.0, math.nan, "no confidence", "confidence nan is no number"),
    ],
)
def test_a_hint_in_vain_is_counted_told_once_and_shown(
    at: Any, confidence: Any, reason: Any, shown: str
) -> None:
    with engine() as made:
        call(made, "ada", "bob")
        made.expect("ada", 7.0)
        assert made.why("ada") is None
        with pytest.warns(HintWarning, match="'declared' says nothing: agent 'ada'") as told:
            made.expect({"ada": at}, confidence=confidence)
        assert len(told) == 1 and told[0].filename == __file__
        made.expect({"ada": at, "bob": 2.0}, confidence=confidence)  # told already
        score = made.source_scores()["declared"]
        num_bad = 2 if reason == "no time" else 3
        assert score.ignored == {reason: num_bad}
        assert reason == "no confidence" or shown in score.last_ignored
        made.step()
        assert part(made, Distances).next_use("ada") == 7.0  # what was said before stands
        why = made.why("ada")
        assert why is not None and why.cause == "hint ignored" and shown in str(why)
        made.forget("ada")
        made.agent("ada")
        made.step()
        assert made.why("ada") is None


def test_a_name_that_nobody_has() -> None:
    """It may be made in time; when its time is over it was misspelt, and the nearest is named."""
    source = Says(Estimates(["adda", "eve", "later"], [3.0, 3.0, 50.0]))
    with engine(source) as made:
        call(made, "ada")
        assert made.source_scores()["says"].unknown == ("adda", "eve", "later")
        why = made.why("ada")
        assert why is not None and "'says' speaks of 'adda'" in str(why)
        call(made, "eve")
        made.tick(to=3.0)
        made.step()
        assert made.source_scores()["says"].ignored == {}
        with pytest.warns(HintWarning, match="agent 'adda': nobody had this name by tick 3"):
            made.tick(to=5.0)
            made.step()
        score = made.source_scores()["says"]
        assert score.ignored == {"nobody has this name": 1}
        assert score.unknown == ("later", "adda") and made.why("eve") is None
        assert set(made.parts.memory.owners.agents) == {"ada", "eve"}
        made.agent("later")
        made.tick()
        made.step()
        assert made.parts.memory.owners.agents["later"].next_use == 50.0


def test_the_clock_moves_by_ticks_or_to_a_time() -> None:
    with engine() as made:
        made.tick()
        made.tick(2.5)
        made.step()
        assert made.clock.now == 3.5
        made.tick(to=8.0)
        made.step()
        assert made.clock.now == 8.0
        with pytest.raises(RequestError, match=r"tick\(2, to=9\.0\): give a number of ticks or a"):
            made.tick(2, to=9.0)
        with pytest.raises(RequestError, match=r"tick\(to=7\.0\): the clock is at 8\.0"):
            made.tick(to=7.0)


def test_the_old_names_of_ticks_are_deprecated_and_work() -> None:
    with engine() as made:
        ada = made.agent("ada")
        with pytest.warns(DeprecationWarning, match=r"named tick\(\)") as told:
            made.advance()
        with pytest.warns(DeprecationWarning, match="named ticks=") as again:
            made.expect("ada", steps=3)
            made.step()
            assert part(made, Distances).next_use("ada") == 4.0
            ada.expect(steps=7)
            made.step()
            assert part(made, Distances).next_use("ada") == 8.0
            with pytest.raises(RequestError, match="ticks or steps"):
                ada.expect(7, steps=7)
        with pytest.warns(DeprecationWarning, match="named calls") as counts:
            assert made.stats.turns == made.stats.calls == 0
        assert {warning.filename for warning in [*told, *again, *counts]} == {__file__}


def test_nobodys_names_take_no_room_once_their_time_is_over() -> None:
    batches = [
        Estimates([f"x{tick} {n}" for n in range(20)], [tick + 1.0] * 20) for tick in range(200)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HintWarning)
        with engine(Says(*batches)) as made:
            for _ in range(220):
                made.tick()
                made.step()
            assert len(part(made, Distances).roster) < 100
            assert made.source_scores()["says"].ignored["nobody has this name"] == 4000


def test_learned_says_why_it_is_silent() -> None:
    with engine(Learned()) as made:
        names = [f"a{n}" for n in range(8)]
        call(made, *names)
        first = made.source_scores()["learned"].silent
        assert "has seen 0 pauses" in first and "needs 64" in first
        for _ in range(30):
            call(made, *names)
            made.tick()
        assert made.source_scores()["learned"].silent != first


def test_why_tells_who_was_silent_where_nothing_was_known() -> None:
    parts = tag_parts(device_pages=14, host_pages=60, policy="lru-swap")
    with Engine(parts, sources=[Learned()]) as made:
        text = list(range(150))
        for name in ("ada", "bob", "ada"):
            asked = made.agent(name).request([len(name), ord(name[0]), *text], max_tokens=2)
            one = made.submit(asked)
            while not one.done:
                made.step()
        why = made.why("ada")
        assert why is not None and why.cause == "no hint"
        assert "'learned' is silent: it has seen" in str(why)
