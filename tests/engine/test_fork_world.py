"""Forked worlds: one moment, two courses; no page is copied, and none is left."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from scalesim.distance.learned.learned import Learned
from scalesim.engine.engine import Engine
from scalesim.errors import (
    ConfigError,
    EngineClosedError,
    RequestCancelledError,
    RequestError,
    UnknownAgentError,
)
from scalesim.memory.audit.integrity import check_integrity
from scalesim.trace.file import read_trace
from tests.snapshot.village import Village, parts, settled

ROOMY = {"device_pages": 600, "host_pages": 0, "policy": "lru-recompute"}


def held(engine: Engine) -> int:
    settled(engine)
    return sum(tier.num_pages - tier.num_free for tier in engine.memory.tiers.values())


@pytest.mark.parametrize("seed", range(3))
def test_a_fork_without_interventions_is_the_control(seed: int) -> None:
    with Engine(parts()) as engine:
        control = Village(seed=seed)
        control.play(engine, 2)
        expected = control.copy().play(engine, 3)
    with Engine(parts()) as engine:
        village = Village(seed=seed)
        village.play(engine, 2)
        other = village.copy()
        with engine.fork_world() as fork:
            assert fork.clock.now == 2
            mine, theirs = [], []
            for _ in range(3):
                mine += village.play(engine)
                theirs += other.play(fork)
            assert mine == theirs == expected
            assert settled(engine) == fork.clock.now == 5
    check_integrity(engine.parts.memory)


def test_nothing_is_copied_and_nothing_is_left() -> None:
    with Engine(parts(**ROOMY)) as engine:
        village = Village()
        village.play(engine, 3)
        before, counters = held(engine), engine.parts.memory.counters
        copied = counters.copied_pages, counters.saved_pages, counters.loaded_pages
        forks = [engine.fork_world() for _ in range(3)]
        assert held(engine) == before
        assert (counters.copied_pages, counters.saved_pages, counters.loaded_pages) == copied
        for number, fork in enumerate(forks):
            Village(seed=number, tick=3, texts=village.copy().texts).play(fork, 2)
        assert held(engine) > before
        for fork in forks:
            fork.close()
        assert held(engine) == before
        assert {view.id for view in engine.memory.census().agents} == {
            f"a{agent}" for agent in range(8)
        }
        engine.forget([f"a{agent}" for agent in range(8)])
        assert held(engine) == 0


def test_forks_share_what_is_equal_until_they_differ() -> None:
    with Engine(parts(**ROOMY)) as engine:
        prompt = list(range(40))
        engine.agent("ada").generate(prompt, max_tokens=4)
        with engine.fork_world() as fork:
            reply = fork.agent("ada").generate([*prompt, 3], max_tokens=4)
            assert reply.usage.cached_tokens == len(prompt)
            engine.forget("ada")
            again = fork.agent("ada").generate([*prompt, 3], max_tokens=4)
            assert again.usage.cached_tokens >= len(prompt)  # it owns what it shares
            assert held(engine) > 0
        assert held(engine) == 0


def test_a_tail_is_written_by_one_alone() -> None:
    """The last block of a prompt is not full: each world continues a page of its own."""
    with Engine(parts(**ROOMY)) as engine:
        ada = engine.agent("ada")
        said = list(ada.generate(list(range(10)), max_tokens=4).token_ids)
        texts = [*range(10), *said]
        with engine.fork_world() as fork:
            ours = ada.generate([*texts, 100], max_tokens=9)
            theirs = fork.agent("ada").generate([*texts, 200], max_tokens=9)
            again = ada.generate([*texts, 100, *ours.token_ids], max_tokens=4)
            other = fork.agent("ada").generate([*texts, 200, *theirs.token_ids], max_tokens=4)
    with Engine(parts(**ROOMY)) as engine:
        ada = engine.agent("ada")
        for prompt, reply in (
            ([*texts, 100], ours), ([*texts, 200], theirs),
            ([*texts, 100, *ours.token_ids], again), ([*texts, 200, *theirs.token_ids], other),
        ):  # fmt: skip
            assert (
                ada.generate(prompt, max_tokens=len(reply.token_ids)).token_ids == reply.token_ids
            )


def test_each_world_has_names_hints_and_a_clock_of_its_own() -> None:
    with Engine(parts(), sources=[Learned()]) as engine:
        engine.agent("ada").generate([1] * 9, max_tokens=2)
        engine.agent("bob").generate([2] * 9, max_tokens=2)
        engine.expect("ada", 7)
        engine.tick(3)
        fork = engine.fork_world(sources=[Learned()])
        inner = fork.fork_world()
        fork.tick(2)
        fork.expect("ada", 30)
        fork.agent("eve").generate([3] * 9, max_tokens=2)
        assert settled(engine) == 3 and fork.clock.now == 5 and inner.clock.now == 3
        with pytest.raises(UnknownAgentError):
            engine.expect("eve", 1)
        with pytest.raises(UnknownAgentError):
            inner.expect("eve", 1)
        fork.forget("bob")
        with pytest.raises(UnknownAgentError):
            fork.expect("bob", 1)
        engine.agent("bob").expect(1)
        inner.agent("bob").generate([2] * 12, max_tokens=2)
        assert fork.agent("ada").fork("ada's twin").id == "ada's twin"
        assert "learned" in fork.source_scores() and "learned" not in inner.source_scores()
        fork.wake("ada")
        assert fork.why("eve") is None
        with pytest.raises(RequestError, match="goes forward"):
            fork.tick(to=1)
        with pytest.raises(ConfigError, match="named"):
            fork.add_source(Learned())
        fork.close()
        assert inner.agent("ada").generate([1] * 12, max_tokens=2).token_ids
        inner.close()


def test_equal_requests_are_counted_by_each_world() -> None:
    def ask(world: object) -> tuple[int, ...]:
        request = world.agent("ada").request([1, 2, 3], max_tokens=6, temperature=1.0)  # type: ignore[attr-defined]
        [reply] = engine.run([request]) if world is engine else fork.run([request])
        return tuple(reply.token_ids)  # type: ignore[union-attr]

    with Engine(parts()) as engine:
        first = ask(engine)
        engine.tick()
        with engine.fork_world() as fork:
            theirs = [ask(fork), ask(fork)]
            assert [ask(engine), ask(engine)] == theirs
            assert len({first, *theirs}) == 3


def test_closing() -> None:
    with Engine(parts()) as engine:
        engine.agent("ada").generate([1] * 9, max_tokens=2)
        fork = engine.fork_world()
        ada = fork.agent("ada")
        stream = fork.stream(ada.request([1] * 12, max_tokens=150, ignore_eos=True))
        next(iter(stream))
        fork.close()
        with pytest.raises(RequestCancelledError):
            list(stream)
        fork.close()
        with pytest.raises(UnknownAgentError):
            ada.generate([1], max_tokens=1)
        for act in (
            lambda: fork.agent("ada"), lambda: fork.tick(), fork.fork_world,
            lambda: fork.generate(engine.agent("ada").request([1], max_tokens=1)),
            lambda: fork.expect("ada", 1), lambda: fork.wake("ada"), lambda: fork.fork("ada", "b"),
            lambda: fork.add_source(Learned()),
        ):  # fmt: skip
            with pytest.raises(EngineClosedError, match="forked world is closed"):
                act()
        left = engine.fork_world()
    left.close()  # after its engine
    with pytest.raises(EngineClosedError):
        left.tick()


def test_sources_are_free_again_when_their_world_is_closed() -> None:
    with Engine(parts()) as engine:
        first, second = Learned(), Learned(name="late")
        fork = engine.fork_world(sources=[first])
        with pytest.raises(ConfigError, match="listens to source 'learned' already"):
            engine.add_source(first)
        fork.close()
        with pytest.raises(EngineClosedError):
            fork.add_source(second)
        with engine.fork_world(sources=[first, second]):
            pass


def test_a_trace_and_a_census_are_of_the_engines_own_world(tmp_path: Path) -> None:
    with Engine(parts(), record=tmp_path / "trace.jsonl") as engine:
        engine.agent("ada").generate([1] * 9, max_tokens=2)
        with engine.fork_world() as fork:
            fork.agent("ada").generate([2] * 9, max_tokens=2)
            fork.agent("eve").generate([3] * 9, max_tokens=2)
            fork.tick()
            assert [view.id for view in engine.memory.census().agents] == ["ada"]
            under = asyncio.run(engine.memory.agents_under_async([3] * 8))
            assert under == []
        engine.agent("bob").generate([4] * 9, max_tokens=2)
        engine.tick()
    ticks = read_trace(tmp_path / "trace.jsonl")
    calls = [call.agent for tick in ticks for call in tick.calls]
    assert calls == ["ada", "bob"]


def test_a_snapshot_after_a_fork_said_the_same(tmp_path: Path) -> None:
    """Both worlds have a tail of the same tokens. The fork's is not the snapshot's."""
    with Engine(parts()) as engine:
        village = Village()
        village.play(engine)
        with engine.fork_world() as fork:
            village.copy().play(fork)
            village.play(engine)
            taken = engine.snapshot(tmp_path)
            expected = village.copy().play(engine)
    with Engine.restore(tmp_path, parts()) as engine:
        restored = engine.restored
        assert restored is not None and restored.num_pages == taken.num_pages
        check_integrity(engine.parts.memory)
        assert village.play(engine) == expected


def test_a_snapshot_is_of_the_engines_own_world(tmp_path: Path) -> None:
    with Engine(parts()) as engine:
        village = Village()
        village.play(engine, 2)
        alone = engine.snapshot(tmp_path / "alone")
        with engine.fork_world() as fork:
            Village(seed=9).play(fork, 2)
            taken = engine.snapshot(tmp_path, data=village.data())
            assert taken.num_pages <= alone.num_pages  # and none of the fork's
            expected = village.play(engine, 2)
    with Engine.restore(tmp_path, parts()) as engine:
        assert engine.restored is not None and engine.restored.num_agents == 8
        check_integrity(engine.parts.memory)
        assert Village.of(engine.restored.data).play(engine, 2) == expected
