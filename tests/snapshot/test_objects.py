"""Snapshots in an object store: the same files as in a folder, and a store that dies at any
moment leaves the generation before or the new one."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from scalesim.engine.engine import Engine
from scalesim.errors import SnapshotError, SnapshotWarning
from tests.snapshot.dying import Dying
from tests.snapshot.village import Village, parts

URL, PREFIX = "memory://bucket/world", "/bucket/world/"
Remote = MemoryFileSystem


@pytest.mark.parametrize("scheme", ["memory", "file"])
def test_a_snapshot_in_a_store_is_that_of_a_folder(scheme: str, tmp_path: Path) -> None:
    """Texts, increments, and the files byte by byte, so that a copy of either is the other."""
    url = URL if scheme == "memory" else f"file://{tmp_path}/store"
    folder, village = tmp_path / "folder", Village(seed=4)
    roomy = partial(parts, device_pages=400)  # nothing is evicted between the two
    with Engine(roomy()) as engine:
        for _ in range(3):
            village.play(engine)
            taken = engine.snapshot(url, data=village.data())
            same = engine.snapshot(folder, data=village.data())
            assert taken._replace(path="") == same._replace(path="")
        assert taken.path == url and 0 < taken.num_new_pages < taken.num_pages
        expected = village.copy().play(engine, 2)
    left = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "lock"}
    assert objects(tmp_path / "store" if scheme == "file" else None) == left
    with Engine.restore(url, roomy()) as engine:
        assert engine.restored is not None and engine.restored.num_missing == 0
        village = Village.of(engine.restored.data)
        assert village.play(engine, 2) == expected
        assert engine.snapshot(url).num_new_pages < taken.num_pages


def objects(folder: Path | None = None) -> dict[str, bytes]:
    """What the store holds under the prefix, by name."""
    if folder is not None:
        return {path.name: path.read_bytes() for path in folder.iterdir()}
    return {path.removeprefix(PREFIX): file.getvalue() for path, file in Remote.store.items()}


def test_a_store_that_dies_leaves_generation_g_or_the_one_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After any call of its client, the engine goes on, and its next snapshot is sound."""
    village, generations, calls, is_written = Village(agents=4), [], 0, False
    with Engine(parts()) as engine:
        village.play(engine)
        newest = engine.snapshot(URL, data=village.data())
        while True:
            village.play(engine)
            with monkeypatch.context() as patch:
                dying = Dying(calls, patch)
                with warnings.catch_warnings(record=True) as warned:
                    warnings.simplefilter("always")
                    try:
                        engine.snapshot(URL, data=village.data())
                    except SnapshotError as error:
                        assert "no route to the store" in str(error)
            is_over = dying.left >= 0
            restored = restore()
            for warning in warned:
                assert restored == engine.clock.now and not is_over
                assert "is written" in str(warning.message) and "no route" in str(warning.message)
                is_written = True
            assert restored in (newest.tick, engine.clock.now)
            assert not is_over or restored == engine.clock.now
            generations.append(restored == engine.clock.now)
            newest = engine.snapshot(URL, data=village.data())
            assert restore() == newest.tick == engine.clock.now
            if is_over:
                break
            calls += 1
    assert generations[0] is False and generations == sorted(generations) and calls >= 6
    assert is_written  # what was out of use stayed for the next one


def restore() -> float:
    """The tick from which the store's newest snapshot goes on, whole."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", SnapshotWarning)
        with Engine.restore(URL, parts()) as engine:
            restored = engine.restored
            assert restored is not None and restored.num_missing == 0
            assert Village.of(restored.data).tick == engine.clock.now
            return engine.clock.now


def test_a_store_that_does_not_answer_is_no_older_snapshot(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Engine(parts()) as engine:
        village = Village(agents=4)
        for _ in range(2):
            village.play(engine)
            engine.snapshot(URL, data=village.data())
    with monkeypatch.context() as patch:
        Dying(1, patch)
        with pytest.raises(SnapshotError, match=r"cannot be read.*no route"):
            Engine.restore(URL, parts())
    with monkeypatch.context() as patch:  # the manifest came, and no page after it
        dying = Dying(2, patch)
        with (
            pytest.warns(SnapshotWarning, match="cannot be read as they were written"),
            Engine.restore(URL, parts()) as engine,
        ):
            assert engine.restored is not None and engine.restored.num_pages == 0
        assert dying.left > -8  # a try for each object, not for each page
    [manifest] = [path for path in Remote.store if path.endswith("snapshot-00000002")]
    Remote().rm_file(manifest)
    assert restore() == 1


def test_a_place_without_a_client_is_refused() -> None:
    with Engine(parts()) as engine:
        with pytest.raises(SnapshotError, match=r"nosuchscheme://a.*Protocol not known"):
            engine.snapshot("nosuchscheme://a/b")
        with pytest.raises(SnapshotError, match="memory://bucket/other has no snapshot"):
            Engine.restore("memory://bucket/other", parts())
