"""An engine above a disk or an object store: the same texts, also where that is slow, full, damaged
or gone."""

from __future__ import annotations

import errno
import logging
import os
import random
import shutil
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from scalesim.engine.build import parts_for, with_settings
from scalesim.engine.engine import Engine
from scalesim.errors import ConfigError
from tests.engine.test_same_texts import FULL, TURNS, unlimited
from tests.engine.world import BLOCK, PAGE_BYTES, TOKENIZER, said, tiny_engine, tiny_model

QUARTER, EIGHTH = FULL // 4, FULL // 8


@pytest.fixture
def remote() -> str:
    """The URL of an object store in memory."""
    return "memory://bucket/state"


def engine_above(folder: Path | str, **settings: Any) -> Engine:
    given = {
        "device_pages": QUARTER,
        "host_pages": EIGHTH,
        "disk": folder,
        "disk_memory": "8MB",
        "policy": "lru-swap",  # reads from the disk whatever else would be sooner
        "digests": True,
    }
    return tiny_engine(**{**given, **settings})


def play(engine: Engine, hook: Callable[[int], None] = lambda turn: None) -> None:
    """All turns, with ``hook(turn)`` before each hint; every text must be that of an engine with
    room for all."""

    def hint(agent: int, turn: int) -> float:
        hook(turn)
        return 1.0

    assert said(TURNS.play(engine, hint)) == unlimited()


@pytest.mark.parametrize("host_pages", [QUARTER, EIGHTH, TURNS.pages_per_agent])
@pytest.mark.parametrize("policy", ["deadline", "lru-swap", "lru-recompute", "resident"])
def test_every_policy_gives_the_texts_of_unlimited_memory(
    policy: str, host_pages: int, tmp_path: Path
) -> None:
    with engine_above(tmp_path / "disk", policy=policy, host_pages=host_pages) as engine:
        play(engine)
        uses_disk = policy in ("deadline", "lru-swap")
        assert ("disk" in engine.memory.tiers) == uses_disk
        stats = engine.stats
        assert bool(stats.spilled_bytes and stats.unspilled_bytes) == uses_disk
        if uses_disk:
            census = engine.memory.census()
            assert sum(view.pages.disk for view in census.agents) > 0
    assert not list(tmp_path.glob("disk/slots-*"))


@pytest.mark.parametrize("policy", ["deadline", "lru-swap"])
def test_an_object_store_gives_the_texts_of_unlimited_memory(policy: str, remote: str) -> None:
    with engine_above(remote, policy=policy) as engine:
        play(engine)
        stats = engine.stats
        assert stats.spilled_bytes and stats.unspilled_bytes
        assert sum(view.pages.disk for view in engine.memory.census().agents) > 0
        assert MemoryFileSystem.store
    assert not MemoryFileSystem.store


@pytest.mark.parametrize("what", ["damaged", "gone", "unreadable", "unwritable"])
def test_an_object_store_that_breaks_is_done_without(
    what: str, remote: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: object, *arguments: object, **options: object) -> None:
        raise ConnectionError("refused")

    def hurt(turn: int) -> None:
        store = MemoryFileSystem()
        for path in list(store.store):
            if what == "gone":
                store.rm_file(path)
            elif what == "damaged":
                store.pipe_file(path, b"x" * store.size(path))

    with caplog.at_level(logging.WARNING), engine_above(remote) as engine:
        if what in ("unreadable", "unwritable"):
            call = "cat_file" if what == "unreadable" else "pipe_file"
            monkeypatch.setattr(MemoryFileSystem, call, refuse)
        play(engine, hurt)
        assert engine.stats.restarts == 0
        monkeypatch.undo()
    told = "going on without" if what.startswith("un") else "damaged state is computed again"
    assert caplog.text.count(told) == 1
    assert f"disk {remote}" in caplog.text


@pytest.mark.parametrize(("policy", "is_used"), [("deadline", False), ("lru-swap", True)])
def test_a_slow_disk_gives_the_same_texts(policy: str, is_used: bool, tmp_path: Path) -> None:
    """A prefill takes less time than this disk: a policy that weighs does without."""
    rate = 100 * PAGE_BYTES
    with engine_above(tmp_path, policy=policy, disk_bandwidth=rate) as engine:
        play(engine)
        assert (engine.stats.unspilled_bytes > 0) == is_used


def flip(folder: Path, rng: random.Random) -> None:
    """Flip a bit in every block of every slot."""
    for path in folder.glob("slots-*"):
        with path.open("r+b") as file:
            data = bytearray(file.read())
            for start in range(0, len(data), 1024):
                data[start + rng.randrange(1024)] ^= 1 << rng.randrange(8)
            file.seek(0)
            file.write(data)


def test_damaged_pages_are_computed_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rng = random.Random(0)
    with caplog.at_level(logging.WARNING), engine_above(tmp_path) as engine:
        play(engine, lambda turn: flip(tmp_path, rng))
        assert engine.stats.unspilled_bytes > 0
    assert caplog.text.count("damaged state is computed again") == 1


def test_a_file_that_is_cut_is_computed_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def cut(turn: int) -> None:
        for path in tmp_path.glob("slots-*"):
            os.truncate(path, path.stat().st_size // 2)

    with caplog.at_level(logging.WARNING), engine_above(tmp_path) as engine:
        play(engine, cut)
    assert caplog.text.count("damaged state is computed again") == 1


@pytest.mark.parametrize("turn_of_loss", [-1, 1])
def test_a_folder_that_disappears_is_done_without(
    turn_of_loss: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Before anything was written; and later, when what was written can still be read."""
    folder = tmp_path / "disk"

    def lose(turn: int) -> None:
        if turn == turn_of_loss:
            shutil.rmtree(folder, ignore_errors=True)

    with caplog.at_level(logging.WARNING), engine_above(folder) as engine:
        lose(-1)
        play(engine, lose)
        assert bool(engine.stats.unspilled_bytes) == (turn_of_loss == 1)
    assert caplog.text.count("cannot be written to") == (turn_of_loss == -1)


@pytest.mark.parametrize("call", ["posix_fallocate", "pwrite", "preadv"])
def test_a_disk_that_refuses_is_done_without(
    call: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> int:
        raise OSError(errno.ENOSPC if call != "preadv" else errno.EIO, "refused")

    monkeypatch.setattr(os, call, refuse)
    with caplog.at_level(logging.WARNING), engine_above(tmp_path) as engine:
        play(engine)
        assert engine.stats.restarts == 0
    assert caplog.text.count("going on without") == 1


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"host_pages": 0}, ["host_memory=0", "through the host pool"]),
        ({"disk_memory": 512}, ["disk_memory=512", "a page takes", "give more"]),
        ({"disk_memory": "900TB"}, ["disk_memory=900TB", "free", "give less"]),
        ({"disk": __file__}, [__file__, "is no folder"]),
        ({"disk": 7}, ["disk"]),
        ({"disk": "nosuch://a/b"}, ["nosuch://a/b", "Protocol not known", "give another one"]),
        ({"disk": "memory://a", "disk_memory": "auto"}, ["disk_memory='auto'", "memory://a"]),
        ({"disk_bandwidth": "fast"}, ["disk_bandwidth"]),
        ({"disk": None}, ["disk_memory=8MB without disk"]),
        ({"disk": None, "disk_memory": "auto", "disk_bandwidth": "1GB"}, ["disk_bandwidth=1GB"]),
        ({"disk": "x/" * 3000}, ["is no folder"]),
        ({"disk": "\ud800"}, ["disk='\\ud800' must be a path"]),
    ],
)
def test_settings_that_cannot_be(
    settings: dict[str, Any], words: list[str], tmp_path: Path
) -> None:
    threads = set(threading.enumerate())
    with pytest.raises(ConfigError) as raised:
        engine_above(tmp_path, **settings)
    assert all(word in str(raised.value) for word in words), raised.value
    assert set(threading.enumerate()) <= threads


def test_a_folder_stays_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its process goes elsewhere."""
    monkeypatch.chdir(tmp_path)
    with engine_above("state") as engine:
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        play(engine)
        assert engine.stats.unspilled_bytes


def test_two_engines_do_not_share_a_folder(tmp_path: Path) -> None:
    with engine_above(tmp_path), pytest.raises(ConfigError, match="used by another engine"):
        engine_above(tmp_path)
    with engine_above(tmp_path, disk_memory="auto") as engine:
        assert engine.memory.tiers["disk"].num_pages > 100


def settings_above(disk: Path | str) -> dict[str, Any]:
    return {
        "device_memory": PAGE_BYTES * (QUARTER + 1),
        "host_memory": PAGE_BYTES * EIGHTH,
        "disk": disk,
        "disk_memory": "8MB",
        "digests": True,
        "block_size": BLOCK,
        "integrity": "raise",
    }


@cache
def said_later() -> list[Any]:
    """What is said after all turns, once more."""
    with tiny_engine(policy="resident", digests=True) as engine:
        TURNS.play(engine)
        return said(TURNS.play(engine))


@pytest.mark.parametrize("place", ["disk", "remote"])
def test_a_snapshot_has_what_is_on_the_disk_alone(place: str, tmp_path: Path, remote: str) -> None:
    """It comes back to a disk, and nothing is computed twice."""
    above = tmp_path / "a" if place == "disk" else remote
    with engine_above(above) as engine:
        TURNS.play(engine)
        held = sum(view.pages.total for view in engine.memory.census().agents)
        assert sum(view.pages.disk for view in engine.memory.census().agents) > 0
        taken = engine.snapshot(tmp_path / "snapshot")
        assert engine.snapshot(tmp_path / "snapshot").num_new_pages == 0
    below = tmp_path / "b" if place == "disk" else f"{remote}/b"
    parts = parts_for(tiny_model(), with_settings(None, settings_above(below)), tokenizer=TOKENIZER)
    with Engine.restore(tmp_path / "snapshot", parts) as engine:
        restored = engine.restored
        assert restored is not None and restored.num_missing == 0
        assert restored.num_pages == taken.num_pages >= held
        assert sum(view.pages.disk for view in engine.memory.census().agents) > 0
        assert said(TURNS.play(engine)) == said_later()


@pytest.mark.filterwarnings("ignore::scalesim.errors.SnapshotWarning")  # of what is left out
@pytest.mark.parametrize("call", ["posix_fallocate", "pwrite", "preadv"])
def test_a_snapshot_goes_on_without_a_disk_that_refuses(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it cannot be read for the snapshot, and where it cannot be written when that is
    restored: what is missing is computed again."""

    def refuse(*arguments: object) -> int:
        raise OSError(errno.EIO, "refused")

    with engine_above(tmp_path / "a") as engine:
        TURNS.play(engine)
        if call == "preadv":
            monkeypatch.setattr(os, call, refuse)
        engine.snapshot(tmp_path / "snapshot")
    monkeypatch.setattr(os, call, refuse)
    above = settings_above(tmp_path / "b")
    parts = parts_for(tiny_model(), with_settings(None, above), tokenizer=TOKENIZER)
    with Engine.restore(tmp_path / "snapshot", parts) as engine:
        assert said(TURNS.play(engine)) == said_later()
