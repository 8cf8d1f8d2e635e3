"""The files of a snapshot: what was written is read back, and nothing else is taken for it."""

from __future__ import annotations

import math
import os
import random
from contextlib import AbstractContextManager, ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalesim.errors import SnapshotError
from scalesim.snapshot.block_index import MAX_FILES, BlockIndex, places_from_front
from scalesim.snapshot.block_keys import BlockKeys
from scalesim.snapshot.folder import Folder
from scalesim.snapshot.generations import Generations
from scalesim.snapshot.page_file import PageFileReader, PageFileWriter, PagePlace
from scalesim.snapshot.seal import VERSION, seal, unseal
from scalesim.snapshot.values import decode, encode
from tests.snapshot.dying import living_child

plain = st.none() | st.booleans() | st.integers(-(2**256), 2**256) | st.text() | st.floats()
arrays = st.sampled_from(["<i8", "<f8", "<f4", "|b1", "<u8", "|u1"]).flatmap(
    lambda kind: st.lists(st.integers(0, 1), max_size=5).map(lambda v: np.array(v, kind))
)
names = st.text(max_size=8).filter(lambda name: name != "$array")
values = st.recursive(
    plain | st.binary() | arrays,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4),
    max_leaves=12,
)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and np.array_equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float) and math.isnan(a):
        return isinstance(b, float) and math.isnan(b)
    return type(a) is type(b) and bool(a == b)


@given(values)
def test_values_come_back(value: Any) -> None:
    assert same(value, decode(encode(value)))


@given(st.binary(max_size=80))
def test_other_bytes_are_no_values(raw: bytes) -> None:
    with suppress(SnapshotError):
        decode(raw)


@pytest.mark.parametrize(
    "document",
    [b'{"$array":["<i8",3]}', b'{"$array":["O",1]}', b'{"$array":["<i8",-1]}', b'{"$array":7}',
     b'{"$array":["<i8",4611686018427387904,8]}', b"[" * 100_000, b'{"$array":[]}', b"\xff"],
)  # fmt: skip
def test_references_to_nothing_are_refused(document: bytes) -> None:
    with pytest.raises(SnapshotError, match="cannot be read"):
        decode(len(document).to_bytes(8, "little") + document)


def test_what_has_no_place_is_refused() -> None:
    for value in (object(), {1, 2}, np.array([None]), np.array(["a"])):
        with pytest.raises(TypeError, match="no place in a snapshot"):
            encode({"value": value})


@given(st.binary(max_size=64), st.data())
def test_a_seal_shows_every_flipped_bit_and_every_cut(body: bytes, data: st.DataObject) -> None:
    whole = seal(body)
    assert unseal(whole, "it") == body
    bit = data.draw(st.integers(0, 8 * len(whole) - 1))
    flipped = bytearray(whole)
    flipped[bit // 8] ^= 1 << bit % 8
    cut = whole[: data.draw(st.integers(0, len(whole) - 1))]
    for wrong in (bytes(flipped), cut, whole + b"\0"):
        with pytest.raises(SnapshotError, match="it "):
            unseal(wrong, "it")


def test_another_version_is_told_from_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scalesim.snapshot.seal.VERSION", VERSION + 1)
    newer = seal(b"body")
    monkeypatch.undo()
    with pytest.raises(SnapshotError, match=f"version {VERSION + 1}; this release reads"):
        unseal(newer, "it")


def test_a_file_appears_whole(tmp_path: Path) -> None:
    name, folder = "snapshot-00000001", Folder(tmp_path)
    folder.write(name, b"one")
    folder.write(name, b"two")
    assert folder.read(name) == b"two" and folder.names() == [name]
    with pytest.raises(SnapshotError, match="missing"):
        folder.read("none")
    with pytest.raises(SnapshotError, match="a folder"):
        folder.read(".")


def test_pages_are_checked_one_by_one(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 256, (6, 96)).astype(np.uint8)
    folder = Folder(tmp_path)
    writer = PageFileWriter(folder.create("pages"), 3, 96)
    places = [*writer.add(rows[:4]), *writer.add(rows[4:])]
    writer.finish()
    assert [(place.file, place.row) for place in places] == [(3, row) for row in range(6)]
    with PageFileReader(folder.open("pages"), 96) as reader:
        found, sound = reader.read(places)
        assert all(sound) and np.array_equal(found, rows)
        wrong = [places[0]._replace(row=1), PagePlace(3, 99, 0), PagePlace(3, -9999, 0)]
        assert reader.read(wrong)[1] == [False] * 3
    whole = (tmp_path / "pages").read_bytes()
    random_bit = random.Random(1)
    for _ in range(40):
        at = random_bit.randrange(len(whole) - 6 * 96, len(whole))
        broken = bytearray(whole)
        broken[at] ^= 1 << random_bit.randrange(8)
        (tmp_path / "pages").write_bytes(broken)
        with PageFileReader(folder.open("pages"), 96) as reader:
            assert reader.read(places)[1].count(False) == 1
    (tmp_path / "pages").write_bytes(whole[:-1])
    with PageFileReader(folder.open("pages"), 96) as reader:
        assert reader.read(places)[1] == [True] * 5 + [False]


def test_generations(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b"
    folder = Generations(Folder(path))
    files: dict[int, set[int]] = {}
    for number in range(1, 5):
        with folder.writing() as given_number:
            assert given_number == number
            folder.new_pages(number, 8).finish()
            folder.commit(number, {"what": number})
            files[number] = {number, 1}
            folder.clean(files)
    assert sorted(os.listdir(path)) == [
        "lock", "pages-00000001", "pages-00000003", "pages-00000004", "snapshot-00000003",
        "snapshot-00000004",
    ]  # fmt: skip
    assert folder.newest().manifest == {"what": 4, "generation": 4}
    (path / "snapshot-00000004").write_bytes((path / "snapshot-00000003").read_bytes())
    found = folder.newest()  # sound, but not what its name says
    assert found.number == 3 and "not the manifest of generation 4" in found.damaged[0]
    (path / "snapshot-00000003").unlink()
    with pytest.raises(SnapshotError, match="generation 4"):
        folder.newest()
    with folder.writing() as number:
        assert number == 5  # numbers only grow


def writing(path: Path) -> AbstractContextManager[int]:
    return Generations(Folder(path)).writing()


def test_a_reader_that_others_overtake_finds_the_newest(tmp_path: Path) -> None:
    """Two generations are written after it has listed what is there, and what it saw is removed."""

    class Overtaken(Folder):
        def names(self) -> list[str]:
            found = super().names()
            if "snapshot-00000002" in found:
                for number in (3, 4):
                    writer.commit(number, {})
                writer.clean({3: set(), 4: set()})
            return found

    writer = Generations(Folder(tmp_path))
    for number in (1, 2):
        writer.commit(number, {})
    assert Generations(Overtaken(tmp_path)).newest().number == 4


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_one_writer_at_a_time(tmp_path: Path) -> None:
    refused = pytest.raises(SnapshotError, match="another engine writes")
    with writing(tmp_path), refused, writing(tmp_path):
        pass
    with ExitStack() as child:
        with writing(tmp_path):
            child.enter_context(living_child())  # it has the lock's file open as well
        with writing(tmp_path):
            pass


def test_strangers_files_stay(tmp_path: Path) -> None:
    for name in ("notes.txt", "snapshot-1", "pages-00000001x", "snapshot-00000001.txt"):
        (tmp_path / name).write_text("mine")
    (tmp_path / "snapshot-00000009.part").write_text("half")
    folder = Generations(Folder(tmp_path))
    with folder.writing() as number:
        folder.commit(number, {})
        folder.clean({number: set()})
    assert sorted(os.listdir(tmp_path)) == [
        "lock", "notes.txt", "pages-00000001x", "snapshot-00000001", "snapshot-00000001.txt",
        "snapshot-1",
    ]  # fmt: skip


class Part(NamedTuple):
    parent: int
    mark: bytes
    tokens: bytes
    block_size: int = 2


def test_a_key_stands_for_the_whole_path() -> None:
    block, keys = 8, BlockKeys("model")
    a, b = b"a" * block, b"b" * block
    whole = keys.of_image([Part(-1, b"", a + b + a)])[0]
    parts = keys.of_image([Part(-1, b"", a), Part(0, b"", b + a)])
    assert [key for part in parts for key in part] == whole  # however the path is cut
    others = [
        keys.of_image([Part(-1, b"", b + b + a)])[0],
        keys.of_image([Part(-1, b"m", a + b + a)])[0],
        BlockKeys("other").of_image([Part(-1, b"", a + b + a)])[0],
        keys.of_image([Part(-1, b"", a + b + a[:4])])[0],
    ]
    assert all(other[-1] != whole[-1] for other in others)
    assert len({whole[0], whole[2], others[0][2], others[1][2], others[2][2]}) == 5


def test_files_that_are_mostly_out_of_use_are_given_up() -> None:
    keys = [[b"%d" % number] for number in range(60)]
    places = [[PagePlace(1 + number // 20, number % 20, 0)] for number in range(60)]
    index = BlockIndex().after(1, keys, places)
    held = [key for [key] in [*keys[:9], *keys[20:31]]]
    assert {place.file for place in index.worth_keeping(held).values()} == {2}
    many = [[PagePlace(number, 0, 0)] for number in range(60)]
    kept = BlockIndex().after(1, keys, many).worth_keeping(key for [key] in keys)
    assert len(kept) == MAX_FILES - 1
    left = index.without_files({1, 3})
    assert {place.file for place in left.places.values()} == {2}
    assert left.after(2, keys[:1], places[:1]).after(3, keys[:1], places[:1]).files == {
        2: {1}, 3: {1},
    }  # fmt: skip


def test_what_is_behind_a_page_that_was_dropped_is_left_out() -> None:
    """An image is of one moment, its pages are read later: what was dropped meanwhile is a gap."""
    known = {b"%d" % number: PagePlace(1, number, 0) for number in range(6)}
    keys = [[b"0", b"1"], [b"2", b"x", b"3"], [b"4"], [b"5"], []]
    places = places_from_front(keys, [-1, 0, 1, 0, 3], known)
    assert [[place.row for place in found] for found in places] == [[0, 1], [2], [], [5], []]
    assert places_from_front([[b"x", b"0"], [b"1"]], [-1, 0], known) == [[], []]
