"""Slot files: what is written comes back, or an error does."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

import numpy as np
import pytest

from scalesim.core import Bytes2D
from scalesim.errors import ConfigError
from scalesim.memory.disk import slot_files
from scalesim.memory.disk.slot_files import BLOCK_BYTES, SlotFiles
from scalesim.memory.disk.slot_store import BadSlotError
from tests.snapshot.dying import living_child


def pool(num_pages: int, page_bytes: int, seed: int) -> Bytes2D:
    return np.random.default_rng(seed).integers(0, 256, (num_pages, page_bytes), np.uint8)


@pytest.mark.parametrize("page_bytes", [64, BLOCK_BYTES, 3 * BLOCK_BYTES + 1])
def test_what_is_written_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page_bytes: int
) -> None:
    """In any order, over the borders of files and pieces, and written again."""
    size = slot_files.slot_bytes(page_bytes)
    monkeypatch.setattr(slot_files, "FILE_BYTES", 5 * size)
    monkeypatch.setattr(slot_files, "PIECE_BYTES", 3 * size)
    files = SlotFiles(tmp_path / "new" / "folder", page_bytes, 17)
    rng, source, target = random.Random(1), pool(20, page_bytes, 1), pool(20, page_bytes, 2)
    holds: dict[int, int] = {}
    for _ in range(30):
        slots = rng.sample(range(17), rng.randint(1, 17))
        if rng.random() < 0.5:
            slots.sort()
        pages = [rng.randrange(20) for _ in slots]
        files.write(slots, source, pages)
        holds.update(zip(slots, pages, strict=True))
        wanted = rng.sample(sorted(holds), rng.randint(1, len(holds)))
        places = rng.sample(range(20), len(wanted))
        files.read(wanted, target, places)
        assert (target[places] == source[[holds[slot] for slot in wanted]]).all()
    assert sorted(path.name for path in files.folder.iterdir()) == [
        "lock", *(f"slots-{number:05d}" for number in range(4))
    ]  # fmt: skip
    files.close()
    assert [path.name for path in files.folder.iterdir()] == ["lock"]


def test_damage_is_seen(tmp_path: Path) -> None:
    """A bit that flips anywhere in a page, and a file that was cut."""
    page_bytes, rng = 256, random.Random(2)
    files = SlotFiles(tmp_path, page_bytes, 8)
    source, target = pool(8, page_bytes, 3), pool(8, page_bytes, 4)
    files.write(range(8), source, range(8))
    path = tmp_path / "slots-00000"
    for _ in range(200):
        slot, bit = rng.randrange(8), rng.randrange(8 * page_bytes)
        with path.open("r+b") as file:
            file.seek(slot * BLOCK_BYTES + bit // 8)
            byte = file.read(1)[0]
            file.seek(slot * BLOCK_BYTES + bit // 8)
            file.write(bytes([byte ^ 1 << bit % 8]))
        with pytest.raises(BadSlotError, match=f"slot {slot} does not have its checksum"):
            files.read([slot], target, [0])
        files.write([slot], source, [slot])
        files.read([slot], target, [slot])
    os.truncate(path, 5 * BLOCK_BYTES)
    files.read([4], target, [4])
    with pytest.raises(BadSlotError, match="slots 4 to 6 are truncated"):
        files.read([4, 5, 6], target, [4, 5, 6])
    assert (target[4] == source[4]).all()
    files.close()


def test_a_copy_is_of_what_has_the_checksum_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As is asked by a snapshot, which reads after it has looked: over the borders of files, where
    a slot was written again, and when the files are closed."""
    monkeypatch.setattr(slot_files, "FILE_BYTES", 3 * BLOCK_BYTES)
    files, source = SlotFiles(tmp_path, 256, 8), pool(9, 256, 5)
    files.write(range(8), source, range(8))
    asked = files.checksums(range(8))
    files.write([2], source, [8])
    rows, sound = files.copy(range(8), asked)
    assert sound == [slot != 2 for slot in range(8)]
    assert (rows[3:] == source[3:8]).all() and (rows[:2] == source[:2]).all()
    files.close()
    assert files.copy(range(8), asked)[1] == [False] * 8


def test_a_folder_is_of_one_engine(tmp_path: Path) -> None:
    (tmp_path / "slots-00007").write_bytes(b"left by a process that was killed")
    first = SlotFiles(tmp_path, 64, 4)
    assert not (tmp_path / "slots-00007").exists()
    with pytest.raises(ConfigError, match="is used by another engine"):
        SlotFiles(tmp_path, 64, 4)
    first.close()
    SlotFiles(tmp_path, 64, 4).close()
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ConfigError, match="is no folder that can be written to"):
        SlotFiles(file, 64, 4)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_does_not_hold_the_folder(tmp_path: Path) -> None:
    files = SlotFiles(tmp_path, 64, 4)
    with living_child():
        files.close()
        SlotFiles(tmp_path, 64, 4).close()


def test_what_is_no_slot_file_is_left_alone(tmp_path: Path) -> None:
    mine = tmp_path / "slots-data.csv"
    mine.write_text("mine")
    SlotFiles(tmp_path, 64, 4).close()
    assert mine.read_text() == "mine"
    (tmp_path / "slots-00000").mkdir()
    for _ in range(2):  # the second time as well: nothing holds the lock
        with pytest.raises(ConfigError, match="is no folder that can be written to"):
            SlotFiles(tmp_path, 64, 4)


def test_a_file_that_finds_no_room_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    files = SlotFiles(tmp_path, 64, 4)
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        files.write([0], pool(1, 64, 0), [0])
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]
    monkeypatch.undo()
    files.write([0], pool(1, 64, 0), [0])
    files.close()
