"""Slot objects: what is written comes back, or an error does; in any store that fsspec knows."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from scalesim.core import Bytes2D
from scalesim.errors import ConfigError
from scalesim.memory.disk.disk_link import DiskThreads
from scalesim.memory.disk.slot_objects import SlotObjects
from scalesim.memory.disk.slot_store import BadSlotError
from scalesim.memory.links.link import Copies, LinkError

PAGE = 256
Remote = MemoryFileSystem


@pytest.fixture
def url() -> str:
    """A prefix of a store in memory, which is the process's."""
    return "memory://bucket/state"


@pytest.fixture
def store(url: str) -> SlotObjects:
    return SlotObjects(url, PAGE, 8)


def pool(num_pages: int, seed: int) -> Bytes2D:
    return np.random.default_rng(seed).integers(0, 256, (num_pages, PAGE), np.uint8)


def object_of(slot: int) -> str:
    return f"/bucket/state/slots-{slot:010d}"


@pytest.mark.parametrize("scheme", ["memory", "file"])
def test_what_is_written_is_read(scheme: str, url: str, tmp_path: Path) -> None:
    """In any order, and written again; nothing is left of it."""
    where = url if scheme == "memory" else f"file://{tmp_path}/new/prefix"
    store = SlotObjects(where, PAGE, 17)
    rng, source, target = random.Random(1), pool(20, 1), pool(20, 2)
    holds: dict[int, int] = {}
    for _ in range(30):
        slots = rng.sample(range(17), rng.randint(1, 17))
        pages = [rng.randrange(20) for _ in slots]
        store.write(slots, source, pages)
        holds.update(zip(slots, pages, strict=True))
        wanted = rng.sample(sorted(holds), rng.randint(1, len(holds)))
        places = rng.sample(range(20), len(wanted))
        store.read(wanted, target, places)
        assert (target[places] == source[[holds[slot] for slot in wanted]]).all()
    left = list(tmp_path.glob("new/prefix/*")) if scheme == "file" else list(Remote.store)
    assert len(left) == len(holds)
    store.close()
    assert not list(tmp_path.glob("new/prefix/*")) and not Remote.store


def test_what_another_process_left_is_removed_and_nothing_else(url: str) -> None:
    others = ["/bucket/state/notes", "/bucket/state/slots-1", "/bucket/slots-0000000003"]
    remote = Remote()
    for path in (*others, object_of(3), object_of(70)):
        remote.pipe_file(path, b"left")
    SlotObjects(url, PAGE, 8).close()
    assert sorted(remote.store) == sorted(others)


Harm = Callable[[bytes], "bytes | None"]


@pytest.mark.parametrize(
    "harm",
    [
        lambda row: bytes([row[0] ^ 1]) + row[1:],
        lambda row: row[:-1],
        lambda row: row[:0],
        lambda row: row[::-1],  # as of an earlier write, in a store that answers late
        lambda row: None,
    ],
    ids=["flipped", "cut", "empty", "stale", "gone"],
)
def test_damage_is_a_miss(store: SlotObjects, harm: Harm) -> None:
    source, target = pool(4, 3), pool(4, 4)
    before = target.copy()
    store.write(range(4), source, range(4))
    remote = Remote()
    harmed = harm(source[2].tobytes())
    remote.rm_file(object_of(2))
    if harmed is not None:
        remote.pipe_file(object_of(2), harmed)
    with pytest.raises(BadSlotError, match="slot 2"):
        store.read(range(4), target, range(4))
    assert (target == before).all()
    store.read([0, 3], target, [1, 2])
    assert (target[[1, 2]] == source[[0, 3]]).all()
    store.close()
    assert not remote.store


def test_a_copy_is_of_what_has_the_checksum_asked_for(store: SlotObjects) -> None:
    """As is asked by a snapshot, which reads after it has looked."""
    source = pool(5, 8)
    store.write(range(4), source, range(4))
    asked = store.checksums(range(4))
    store.write([1], source, [4])
    Remote().rm_file(object_of(3))
    rows, sound = store.copy(range(4), asked)
    assert sound == [True, False, True, False]
    assert (rows[[0, 2]] == source[[0, 2]]).all()


def test_more_than_was_written_is_not_read(store: SlotObjects) -> None:
    source, target = pool(1, 5), pool(1, 6)
    store.write([0], source, [0])
    Remote().pipe_file(object_of(0), source[0].tobytes() + bytes(PAGE))
    store.read([0], target, [0])
    assert (target == source).all()


def refusing(error: Exception) -> Callable[..., Any]:
    def refuse(self: object, *arguments: object, **options: object) -> Any:
        raise error

    return refuse


@pytest.mark.parametrize(
    "error", [PermissionError("denied"), TimeoutError(), RuntimeError("no route"), ValueError()]
)
def test_what_a_client_raises_is_an_error_of_the_system(
    error: Exception, store: SlotObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clients raise classes of their own."""
    store.write([0], pool(1, 0), [0])
    monkeypatch.setattr(Remote, "pipe_file", refusing(error))
    with pytest.raises(OSError, match=type(error).__name__):
        store.write([0], pool(1, 0), [0])
    for name in ("cat_file", "cat_ranges"):
        monkeypatch.setattr(Remote, name, refusing(error))
        with pytest.raises(OSError, match=type(error).__name__):
            store.read([0], pool(1, 0), [0])


def test_a_store_that_failed_is_tried_again(
    store: SlotObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("scalesim.memory.disk.disk_link.time.perf_counter", lambda: now[0])
    threads = DiskThreads(store, pool(4, 0))
    down = Copies("down", [], [0], disk_pages=[0])
    up = Copies("up", [], [0], disk_pages=[0])
    threads.copy(down)
    with monkeypatch.context() as broken:
        broken.setattr(Remote, "cat_ranges", refusing(ConnectionError("reset")))
        with pytest.raises(OSError, match="reset"):
            threads.copy(up)
    assert threads.rate("up") == 0.0 and threads.rate("down") > 0.0
    with pytest.raises(LinkError, match="given up"):
        threads.copy(up)
    now[0] += store.retry_s
    assert threads.rate("up") > 0.0
    threads.copy(up)
    threads.close()


@pytest.mark.parametrize(
    ("where", "says"),
    [("nosuchscheme://a/b", "Protocol not known"), ("memory://bucket/state", "denied")],
)
def test_a_store_that_cannot_be_used_is_refused(
    where: str, says: str, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setattr(Remote, "pipe_file", refusing(PermissionError("denied")))
    with pytest.raises(ConfigError, match=says) as raised:
        SlotObjects(where, PAGE, 8)
    assert where in str(raised.value)
