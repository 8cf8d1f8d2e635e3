"""Kinds of a user's own: their values lie in the engine's pools, and come back from there or from
their origin, whatever memory does meanwhile."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scalesim import StateKind
from scalesim.engine.engine import Engine
from scalesim.errors import StateError, StateLostError
from tests.engine.test_same_texts import check_empty
from tests.engine.world import PAGE_BYTES, tiny_engine
from tests.inside import between_steps, let_copies_end


class Board:
    """A map of bytes, ``cells``; with a ``path``, from a file there."""

    def __init__(self, cells: np.ndarray[Any, Any], path: str | None = None) -> None:
        self.cells, self.path = cells, path

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Board) and np.array_equal(self.cells, other.cells)

    __hash__ = None  # type: ignore[assignment]


class BoardKind(StateKind):
    name = "board"

    def __init__(self) -> None:
        self.num_reads = 0

    def form(self, value: Any) -> Any:
        return list(value.cells.shape) if isinstance(value, Board) else None

    def num_bytes(self, form: Any) -> int:
        return int(np.prod(form))

    def pack(self, value: Board) -> Any:
        return value.cells.tobytes()

    def view(self, form: Any, data: Any, origin: Any) -> Board:
        return Board(data.cpu().numpy().reshape(form), origin)

    def origin(self, value: Board) -> str | None:
        return value.path

    def reread(self, origin: str) -> Board:
        self.num_reads += 1
        return Board(np.load(origin), origin)


def board(folder: Path | None, seed: int, num_pages: int = 2) -> Board:
    cells = np.random.default_rng(seed).integers(0, 256, (num_pages, PAGE_BYTES - 7), np.uint8)
    if folder is None:
        return Board(cells)
    np.save(folder / f"{seed}-{num_pages}.npy", cells)
    return Board(cells, str(folder / f"{seed}-{num_pages}.npy"))


@pytest.mark.parametrize("policy", ["deadline", "lru-swap", "lru-recompute"])
def test_values_with_an_origin_are_those_of_a_dictionary(policy: str, tmp_path: Path) -> None:
    """Under pressure on both tiers; also where there is no host pool."""
    rng = random.Random(3)
    with tiny_engine(device_pages=12, host_pages=14, policy=policy) as engine:
        kind = BoardKind()
        engine.register_kind(kind)
        model: dict[str, dict[str, Board]] = {name: {} for name in "abc"}
        for turn in range(80):
            name, key = rng.choice(list(model)), rng.choice("xy")
            agent, known = engine.agent(name), model[name]
            what = rng.choice(["set", "set", "delete", "call", "call", "fork", "forget"])
            if what == "set":
                known[key] = board(tmp_path, rng.randrange(4), rng.randint(1, 3))
                agent.state[key] = known[key]
            elif what == "delete" and known.pop(key, None) is not None:
                del agent.state[key]
            elif what == "call":
                agent.expect(rng.randint(0, 2))
                agent.generate(f"{name} {turn % 3} " * 20, max_tokens=3)
                engine.tick()
            elif what == "fork" and len(model) < 5:
                agent.fork(f"{name}{turn}")
                model[f"{name}{turn}"] = dict(known)
            elif what == "forget" and len(model) > 2:
                agent.forget()
                del model[name]
            for name, known in model.items():
                state = engine.agent(name).state
                assert set(state) == set(known)
                assert all(state[key] == known[key] for key in known)
        assert kind.num_reads > 0
        engine.forget(list(model))
        between_steps(engine, engine.parts.memory.drain)
        between_steps(engine, engine.parts.memory.poll)
        between_steps(engine, lambda: check_empty(engine))


def test_equal_content_is_held_once_and_loaded_before_its_agents_call(tmp_path: Path) -> None:
    with tiny_engine(device_pages=14, host_pages=60) as engine:
        engine.register_kind(BoardKind())
        one, other = board(tmp_path, 1, 3), board(tmp_path, 1, 3)
        np.save(tmp_path / "other.npy", one.cells)
        other.path = str(tmp_path / "other.npy")
        ada, bob = engine.agent("ada"), engine.agent("bob")
        ada.state["board"] = ada.state["again"] = one
        bob.state["board"] = other
        memory = engine.parts.memory
        (segment,) = {blob.segment for blob in memory.blobs.of("ada").values()}
        assert {blob.segment for blob in memory.blobs.of("bob").values()} == {segment}
        assert engine.memory.view("ada").pages.total == 3 and memory.blobs.num_pages == 0
        ada.expect(1)
        bob.generate("hello " * 5, max_tokens=2)
        let_copies_end(engine)
        assert segment.is_ready and ada.state["board"] == one
        del ada.state["board"]
        assert bob.state["board"] == one == ada.state["again"]


def test_what_is_at_the_origin_may_change_only_with_an_assignment(tmp_path: Path) -> None:
    with tiny_engine(policy="lru-recompute") as engine:
        engine.register_kind(BoardKind())
        state = engine.agent("ada").state
        state["board"] = found = board(tmp_path, 1)
        assert found.path is not None
        with state.active():
            assert state["board"] == found  # unchanged: nothing to write
        changed = "'board' was changed in place, and is read again"
        with pytest.raises(StateError, match=changed), state.active():
            state["board"].cells[0, 0] ^= 1
        assert state["board"] == found
        np.save(found.path, found.cells + 1)
        with pytest.raises(StateError, match="changed since it was added; assign it again"):
            state["board"]
        Path(found.path).unlink()
        with pytest.raises(StateError, match=r"'board' cannot be read again from .*FileNotFound"):
            state["board"]
        with state.active():
            state["board"] = board(tmp_path, 2)
        assert state["board"] == board(tmp_path, 2)


def test_what_was_changed_in_a_block_is_written_where_it_was_assigned_or_has_no_origin_now(
    tmp_path: Path,
) -> None:
    with tiny_engine(host_pages=60) as engine:
        engine.register_kind(BoardKind())
        state = engine.agent("ada").state
        state["board"] = board(tmp_path, 1)
        with state.active():
            state["board"].path = None  # its own from here on
        assert state["board"].path is None and state["board"] == board(tmp_path, 1)
        state["board"] = board(tmp_path, 1)
        with state.active():
            found = state["board"]
            found.cells[:] = 5
            found.path = None
        assert (state["board"].cells == 5).all()
        state["board"] = board(tmp_path, 1)
        with state.active():
            found = state["board"]
            found.cells[:] = 6
            np.save(found.path, found.cells)
            state["board"] = found
        assert (state["board"].cells == 6).all() and state["board"].path is not None


def test_a_value_that_was_just_assigned_is_not_read_from_its_origin(tmp_path: Path) -> None:
    """Its pages are on their way to the host; whoever asks for it waits for them."""
    with tiny_engine(host_pages=60) as engine:
        kind = BoardKind()
        engine.register_kind(kind)
        for turn in range(40):
            state = engine.agent(turn).state
            state["board"] = expected = board(tmp_path, turn % 7)
            assert state["board"] == expected
            assert engine.why(turn) is None  # nothing was missing
        assert kind.num_reads == 0


def test_an_origin_that_did_not_answer_is_read_ahead_again_once_a_next_use_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Flaky(BoardKind):
        answers = True

        def reread(self, origin: str) -> Board:
            found = super().reread(origin)
            if not self.answers:
                raise OSError("no answer")
            return found

    with tiny_engine(device_pages=40, host_pages=4) as engine:
        kind = Flaky()
        engine.register_kind(kind)
        ada, memory = engine.agent("ada"), engine.parts.memory
        ada.state["board"] = board(tmp_path, 1, 3)
        ada.state["board"]  # the pages are there
        engine.agent("bob").state["kept"] = board(None, 2, 3)  # takes their place
        segment = memory.blobs.find("ada", "board").segment
        assert not segment.host and not segment.device
        del engine.agent("bob").state["kept"]
        kind.answers = False
        for _ in range(12):
            ada.expect(1)
            engine.agent("bob").generate("hello", max_tokens=4)
            engine.tick()
            let_copies_end(engine)
        failed = kind.num_reads
        assert failed >= 3 and not segment.host and not segment.device
        assert "could not be read ahead from their source, 3 times" in caplog.text
        kind.answers = True
        for _ in range(12):
            ada.expect(1)
            engine.agent("bob").generate("hello", max_tokens=4)
            engine.tick()
            let_copies_end(engine)
        assert segment.is_ready and kind.num_reads == failed + 1
        used = engine.stats.prefetch_used_bytes
        assert ada.state["board"] == board(tmp_path, 1, 3)
        assert engine.stats.prefetch_used_bytes == used + 3 * PAGE_BYTES


def test_a_value_without_an_origin_is_kept_and_changed_in_place() -> None:
    with tiny_engine() as engine:
        engine.register_kind(BoardKind())
        state = engine.agent("ada").state
        state["board"], state["tensor"] = board(None, 1), torch.ones(2)
        with state.active():
            state["board"].cells[:] = 3
        assert (state["board"].cells == 3).all() and state.sizes["board"] == 2 * (PAGE_BYTES - 7)
        between_steps(engine, engine.parts.memory.reset)
        with pytest.raises(StateLostError):
            state["board"]


def test_a_fault_loses_no_value_with_an_origin(tmp_path: Path) -> None:
    with tiny_engine() as engine:
        engine.register_kind(BoardKind())
        state = engine.agent("ada").state
        state["board"], state["kept"] = board(tmp_path, 1), torch.ones(1)
        between_steps(engine, engine.parts.memory.reset)
        assert state["board"] == board(tmp_path, 1)
        with pytest.raises(StateLostError):
            state["kept"]


def test_a_snapshot_has_the_origin_and_finds_the_kind_by_name(tmp_path: Path) -> None:
    where = tmp_path / "snapshot"
    with tiny_engine() as engine:
        engine.register_kind(BoardKind())
        ada = engine.agent("ada")
        ada.state["board"], ada.state["kept"] = board(tmp_path, 1), board(None, 2)
        ada.fork("bob").state["board"] = board(tmp_path, 3)
        engine.snapshot(where)
    assert sum(len(file.read_bytes()) for file in where.glob("*")) < 4 * 2 * PAGE_BYTES
    with Engine.restore(where, tiny_engine().parts) as engine:
        ada, bob = engine.agent("ada"), engine.agent("bob")
        for name in ("board", "kept"):
            with pytest.raises(StateError, match="no kind 'board' is registered here"):
                ada.state[name]
        engine.register_kind(BoardKind())
        assert ada.state["board"] == board(tmp_path, 1) and bob.state["board"] == board(tmp_path, 3)
        assert ada.state["kept"] == bob.state["kept"] == board(None, 2)


class Said(StateKind):
    """A kind that says what it is given, of the value that is its name."""

    def __init__(self, name: str, **said: Any) -> None:
        self.name = name
        self._said = {"form": (), "num_bytes": 3, "pack": b"abc", "origin": None, **said}

    def form(self, value: Any) -> Any:
        return self._said["form"] if value == self.name else None

    def num_bytes(self, form: Any) -> Any:
        return self._said["num_bytes"]

    def pack(self, value: Any) -> Any:
        return self._said["pack"]

    def view(self, form: Any, data: Any, origin: Any) -> str:
        return self.name

    def identity(self, form: Any, data: Any) -> Any:
        return self._said.get("identity") or super().identity(form, data)

    def origin(self, value: Any) -> Any:
        return self._said["origin"]

    def reread(self, origin: Any) -> Any:
        return self._said["reread"]

    def reread_s(self, origin: Any) -> float:
        return float(self._said.get("reread_s", 0.0))


def nested(depth: int) -> Any:
    return (nested(depth - 1),) if depth else ()


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"num_bytes": 4}, r"packs 3 bytes .* num_bytes\(\) tells 4"),
    ({"num_bytes": 3.0}, r"num_bytes\(\) of kind 'wrong'=3.0 must be a whole number"),
    ({"pack": [1, 2, 3]}, r"pack\(\) of kind 'wrong' gives \[1, 2, 3\]: give bytes"),
    ({"pack": np.array([None])}, r"pack\(\) of kind 'wrong' gives .*: give bytes"),
    ({"form": (object(),)}, r"form of kind 'wrong' has .*: give texts"),
    ({"form": nested(40)}, r"form of kind 'wrong' has .* at most 32 deep"),
    ({"form": (float("nan"),)}, r"form of kind 'wrong' has nan: .* finite numbers"),
    ({"form": 10**5000}, r"form of kind 'wrong' has .* bits"),
    ({"origin": b"1"}, r"origin of kind 'wrong' has .*: give texts"),
    ({"origin": 1, "reread_s": float("nan")}, r"reread_s\(\)=nan must be finite"),
    ({"origin": 1, "identity": "a" * 16}, r"identity\(\) of kind 'wrong' gives 'a+': give 16 b"),
]


def test_what_a_kind_says_wrongly_is_refused(tmp_path: Path) -> None:
    for said, told in WRONG:
        with tiny_engine() as engine:
            engine.register_kind(Said("wrong", **said))
            state = engine.agent("ada").state
            with pytest.raises(StateError, match=told):
                state["x"] = "wrong"
            state["tensor"] = torch.ones(1)
            assert list(state) == ["tensor"]
            engine.snapshot(tmp_path / "snapshot")  # nothing of it is left in the books


def test_numbers_of_numpy_are_numbers(tmp_path: Path) -> None:
    kind = Said("right", num_bytes=np.int64(3), form=(np.float32(0.5), np.int8(1), np.bool_(True)))
    with tiny_engine() as engine:
        engine.register_kind(kind)
        engine.agent("ada").state["x"] = "right"
        engine.snapshot(tmp_path / "snapshot")
    with Engine.restore(tmp_path / "snapshot", tiny_engine().parts) as engine:
        engine.register_kind(kind)
        assert engine.agent("ada").state["x"] == "right"


def test_a_reread_that_gives_no_value_of_the_kind_says_so() -> None:
    with tiny_engine(policy="lru-recompute") as engine:
        engine.register_kind(Said("gone", origin=1, reread=None))
        state = engine.agent("ada").state
        state["x"] = "gone"
        with pytest.raises(StateError, match=r"state 'x': None is no value of kind 'gone'"):
            state["x"]


def test_kinds_are_registered_once() -> None:
    with tiny_engine() as engine:
        kind = Said("right")
        engine.register_kind(kind)
        engine.register_kind(kind)  # changes nothing
        with pytest.raises(StateError, match="'right' is registered already"):
            engine.register_kind(Said("right"))
        for wrong in (BoardKind, Said(""), "board"):
            with pytest.raises(StateError, match=r"kind"):
                engine.register_kind(wrong)  # type: ignore[arg-type]


def test_why_names_values_that_no_pool_has(tmp_path: Path) -> None:
    with tiny_engine(device_pages=12, policy="lru-recompute") as engine:
        engine.register_kind(BoardKind())
        ada = engine.agent("ada")
        ada.state["board"] = board(tmp_path, 1)
        assert engine.why("ada") is None
        assert ada.state["board"] == board(tmp_path, 1)
        miss = engine.why("ada")
        assert miss is not None and (miss.cause, miss.waits) == ("no hint", (("values", 2),))
        assert "waited for: 2 pages of values" in str(miss)
