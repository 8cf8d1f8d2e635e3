"""An engine that was restored goes on as the one that was left would have: texts bit for bit."""

from __future__ import annotations

import os
import threading
import warnings
from copy import deepcopy
from pathlib import Path

import pytest

from scalesim.distance.learned.learned import Learned
from scalesim.distance.sources.plan import Plan
from scalesim.engine.engine import Engine
from scalesim.errors import ConfigError, EngineClosedError, SnapshotError, SnapshotWarning
from scalesim.memory.audit.integrity import check_integrity
from tests.snapshot.village import Village, parts, settled


def begun(folder: Path, village: Village, ticks: int = 3) -> list[list[list[int]]]:
    """Play, take a snapshot, and play on: what was said after the snapshot."""
    with Engine(parts()) as engine:
        village.play(engine, ticks)
        engine.snapshot(folder, data=village.data())
        return village.play(engine, 3)


@pytest.mark.parametrize("seed", range(3))
def test_restored_is_as_going_on(tmp_path: Path, seed: int) -> None:
    expected = begun(tmp_path, Village(seed=seed))
    with Engine.restore(tmp_path, parts()) as engine:
        assert engine.restored is not None and engine.restored.num_missing == 0
        check_integrity(engine.parts.memory)  # nothing runs yet
        village = Village.of(engine.restored.data)
        assert engine.clock.now == village.tick == 3
        assert village.play(engine, 3) == expected
        assert engine.stats.cached_tokens > 0
    check_integrity(engine.parts.memory)


def test_kv_is_found_again(tmp_path: Path) -> None:
    """The first calls after a restore find what they would have found."""
    village = Village()
    with Engine(parts(device_pages=200, host_pages=0, policy="lru-recompute")) as engine:
        village.play(engine, 3)
        taken = engine.snapshot(tmp_path, data=village.data())
        before = engine.stats.cached_tokens
        village.play(engine)
        found = engine.stats.cached_tokens - before
    roomy = parts(device_pages=200, host_pages=0, policy="lru-recompute")
    with Engine.restore(tmp_path, roomy) as engine:
        assert engine.restored is not None
        assert engine.restored.num_pages == taken.num_pages > 0
        Village.of(engine.restored.data).play(engine)
        assert engine.stats.cached_tokens == found > 0


@pytest.mark.parametrize("other", [{"block_size": 8}, {"vocab_size": 513}])
def test_another_layout_or_model_computes_kv_again(tmp_path: Path, other: dict[str, int]) -> None:
    expected = begun(tmp_path, Village())
    with pytest.warns(SnapshotWarning, match="computed again: it is of another model"):
        engine = Engine.restore(tmp_path, parts(**other))
    with engine:
        assert engine.restored is not None and engine.restored.num_pages == 0
        assert engine.clock.now == 3 and engine.restored.num_agents == 8
        said = Village.of(engine.restored.data).play(engine, 3)
    if "block_size" in other:  # the same model: the same texts
        assert said == expected


def test_smaller_pools_take_what_they_can(tmp_path: Path) -> None:
    expected = begun(tmp_path, Village())
    with pytest.warns(SnapshotWarning, match="no room"):
        engine = Engine.restore(tmp_path, parts(device_pages=24, host_pages=8))
    with engine:
        assert engine.restored is not None and engine.restored.num_pages > 0
        check_integrity(engine.parts.memory)
        assert Village.of(engine.restored.data).play(engine, 3) == expected
    check_integrity(engine.parts.memory)


def test_pages_are_written_once(tmp_path: Path) -> None:
    village = Village()
    with Engine(parts(device_pages=400, host_pages=400)) as engine:
        village.play(engine, 3)
        first = engine.snapshot(tmp_path)
        again = engine.snapshot(tmp_path)
        assert (again.num_pages, again.num_new_pages) == (first.num_pages, 0)
        village.play(engine)
        later = engine.snapshot(tmp_path, data=village.data())
        assert 0 < later.num_new_pages < later.num_pages
    with Engine(parts()) as other:  # another engine goes on with the folder's pages
        other.snapshot(tmp_path / "other")
    with Engine.restore(tmp_path, parts(device_pages=400, host_pages=400)) as engine:
        assert engine.restored is not None and engine.restored.generation == later.generation
        assert engine.snapshot(tmp_path, data=village.data()).num_new_pages == 0
        expected = village.play(engine, 2)
    with Engine.restore(tmp_path, parts(device_pages=400, host_pages=400)) as engine:
        assert engine.restored is not None and engine.restored.num_missing == 0
        assert Village.of(engine.restored.data).play(engine, 2) == expected


def test_a_folder_keeps_two_generations_and_few_files(tmp_path: Path) -> None:
    village = Village()
    with Engine(parts()) as engine:
        for _ in range(24):
            village.play(engine)
            engine.snapshot(tmp_path, data=village.data())
        names = sorted(os.listdir(tmp_path))
        assert [name for name in names if name.startswith("snapshot")] == [
            "snapshot-00000023", "snapshot-00000024",
        ]  # fmt: skip
        assert len([name for name in names if name.startswith("pages")]) <= 32
        expected = village.play(engine, 2)
    with Engine.restore(tmp_path, parts()) as engine:
        assert engine.restored is not None and engine.restored.num_damaged == 0
        assert Village.of(engine.restored.data).play(engine, 2) == expected


def test_what_was_said_and_learned_is_restored(tmp_path: Path) -> None:
    village = Village(agents=24)
    plan = Plan()
    with Engine(parts(device_pages=400, host_pages=0), sources=[Learned(seed=3), plan]) as engine:
        village.play(engine, 2)
        plan.follow("a1", 5, 7)
        engine.expect("a2", 40)
        village.play(engine, 12)
        engine.memory.pin("a3", 600)
        settled(engine)
        engine.snapshot(tmp_path, data=village.data())
        scores, census = deepcopy(engine.source_scores()), dict(next_uses(engine))
        village.play(engine, 8)
        later = dict(next_uses(engine)), engine.source_scores()
    sources = [Learned(seed=3), Plan()]
    with Engine.restore(tmp_path, parts(device_pages=400, host_pages=0), sources=sources) as engine:
        assert engine.source_scores() == scores
        assert dict(next_uses(engine)) == census
        assert engine.memory.view("a3").pinned_s > 500
        assert engine.restored is not None
        Village.of(engine.restored.data).play(engine, 8)
        assert (dict(next_uses(engine)), engine.source_scores()) == later


def next_uses(engine: Engine) -> list[tuple[str | int, float | None]]:
    return [(view.id, view.pages.next_use) for view in engine.memory.census().agents]


def test_sources_that_are_not_given_are_missed(tmp_path: Path) -> None:
    with Engine(parts(), sources=[Learned()]) as engine:
        Village().play(engine, 2)
        engine.snapshot(tmp_path)
    with pytest.warns(SnapshotWarning, match="'learned'"):
        Engine.restore(tmp_path, parts()).close()
    with pytest.warns(SnapshotWarning, match="'learned'"):
        Engine.restore(tmp_path, parts(), sources=[Learned(day=24)]).close()


def test_calls_that_are_open_are_made_again(tmp_path: Path) -> None:
    """Equal requests draw other tokens each time; what was asked in the open tick is asked anew."""
    with Engine(parts()) as engine:
        agent = engine.agent("ada")
        asked = [agent.request([1, 2, 3], max_tokens=6, temperature=1.0) for _ in range(4)]
        before = engine.run(asked[:1])
        engine.tick()
        stream = engine.stream(agent.request([5] * 9, max_tokens=40, ignore_eos=True))
        next(iter(stream))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            engine.snapshot(tmp_path)
        second = engine.run(asked[1:2])
        stream.close()
    with Engine.restore(tmp_path, parts()) as engine:
        agent = engine.agent("ada")
        again = engine.run([agent.request([1, 2, 3], max_tokens=6, temperature=1.0)])
        assert said(again) == said(second) != said(before)


def test_the_open_tick_is_asked_anew(tmp_path: Path) -> None:
    with Engine(parts()) as engine:  # its steps are driven here, so that the call stays open
        agent = engine.agent("ada")
        engine.tick()
        call = engine.submit(agent.request([1, 2, 3], max_tokens=6, temperature=1.0))
        while not call.done:
            engine.step()
        first = [call.result()]  # in the tick in which the snapshot is taken, while
        other = engine.submit(agent.request([5] * 9, max_tokens=40))  # a call is open
        engine.step()
        engine.snapshot(tmp_path)
        assert not other.done
        engine.cancel(other)
        while not other.done:
            engine.step()
        engine.snapshot(tmp_path / "closed")
    with Engine.restore(tmp_path, parts()) as engine:
        request = engine.agent("ada").request([1, 2, 3], max_tokens=6, temperature=1.0)
        assert said(engine.run([request])) == said(first)
    with Engine.restore(tmp_path / "closed", parts()) as engine:
        request = engine.agent("ada").request([1, 2, 3], max_tokens=6, temperature=1.0)
        assert said(engine.run([request])) != said(first)


def said(replies: list) -> list[tuple[int, ...]]:  # type: ignore[type-arg]
    return [reply.token_ids for reply in replies]


def test_while_the_engine_runs(tmp_path: Path) -> None:
    """Snapshots from another thread, at any moment, change no text."""
    alone = Village(seed=5)
    with Engine(parts()) as engine:
        expected = alone.play(engine, 12)
    village, over, taken = Village(seed=5), threading.Event(), []
    with Engine(parts()) as engine:

        def take() -> None:
            while True:  # one at least, also where this thread begins when all is over
                taken.append(engine.snapshot(tmp_path))
                if over.is_set():
                    break

        taker = threading.Thread(target=take)
        taker.start()
        try:
            assert village.play(engine, 12) == expected
        finally:
            over.set()
            taker.join()
    assert taken
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with Engine.restore(tmp_path, parts()) as engine:
            check_integrity(engine.parts.memory)


def test_ids_are_no_paths(tmp_path: Path) -> None:
    ids = ["../../etc/passwd", "", "a/b", 2**200, -1, 1, "1", "ünï\0", "$array", "x" * 1024]
    with Engine(parts()) as engine:
        for id in ids:
            engine.agent(id).generate([1, 2, 3, 4, 5, 6], max_tokens=2)
        engine.snapshot(tmp_path / "s")
    assert sorted(os.listdir(tmp_path)) == ["s"]
    with Engine.restore(tmp_path / "s", parts()) as engine:
        assert engine.memory.unknown(ids) == []
        assert {view.id for view in engine.memory.census().agents} == set(ids)


def test_a_program_that_drives_the_steps(tmp_path: Path) -> None:
    with Engine(parts()) as engine:
        call = engine.submit(engine.agent("ada").request([1] * 10, max_tokens=4))
        while not call.done:
            engine.step()
        assert engine.snapshot(tmp_path).num_pages == 4  # the last one not full
    with Engine.restore(tmp_path, parts()) as engine:
        call = engine.submit(engine.agent("ada").request([1] * 10, max_tokens=4))
        while not call.done:
            engine.step()
        assert call.result().usage.cached_tokens > 0


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SnapshotError, match="has no snapshot"):
        Engine.restore(tmp_path, parts())
    with pytest.raises(SnapshotError, match="has no snapshot"):
        Engine.restore(tmp_path / "nowhere", parts())
    (tmp_path / "file").write_bytes(b"")
    with Engine(parts()) as engine:
        with pytest.raises(SnapshotError, match="cannot be written"):
            engine.snapshot(tmp_path / "file")
        with pytest.raises(SnapshotError, match="data="):
            engine.snapshot(tmp_path, data="text")  # type: ignore[arg-type]
        with pytest.raises(SnapshotError, match="path"):
            engine.snapshot(7)  # type: ignore[arg-type]
        engine.snapshot(tmp_path / "good")
    with pytest.raises(EngineClosedError):
        engine.snapshot(tmp_path / "good")
    with pytest.raises(ConfigError):
        Engine.restore(tmp_path / "good", parts(), seed=3)


def test_two_engines_do_not_share_a_folder(tmp_path: Path) -> None:
    with Engine(parts()) as engine:
        engine.snapshot(tmp_path)
        (tmp_path / "snapshot-00000001").write_bytes(b"nonsense")
        engine.snapshot(tmp_path)  # it knows what it wrote
    with Engine(parts()) as other, pytest.raises(SnapshotError, match="is no snapshot"):
        (tmp_path / "snapshot-00000002").write_bytes(b"nonsense" * 9)
        other.snapshot(tmp_path)  # what cannot be read is not written over
