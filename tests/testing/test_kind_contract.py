"""The contract of a kind of state: a right kind passes, and each rule is broken by a kind that lies
in that way. The clock is one that only reading moves."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scalesim.cli import main
from scalesim.memory.kinds import StateKind
from scalesim.model.adapters.folder import AdapterFolders
from scalesim.model.adapters.layout import LayoutTable
from scalesim.model.values import TENSORS
from scalesim.testing.contracts import BrokenRuleError
from scalesim.testing.kind_contract import KIND_RULES, try_kind
from tests.docs.pages import DOCS, blocks_of
from tests.model.adapter_folders import write_adapter
from tests.model.conftest import TINY


class Series:
    """Numbers that follow from a seed."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.numbers = np.random.default_rng(seed).integers(0, 99, 1 + seed % 40)


class SeriesKind(StateKind):
    name = "series"

    def __init__(self) -> None:
        self.now_s = 0.0

    def form(self, value: Any) -> Any:
        return len(value.numbers) if isinstance(value, Series) else None

    def num_bytes(self, form: Any) -> int:
        return 8 * int(form)

    def pack(self, value: Any) -> Any:
        return value.numbers

    def view(self, form: Any, data: Any, origin: Any) -> Any:
        found = Series(origin)
        found.numbers = data.numpy().view(np.int64)
        return found

    def origin(self, value: Any) -> Any:
        return value.seed

    def reread(self, origin: Any) -> Any:
        self.now_s += 2.0
        return Series(origin)

    def reread_s(self, origin: Any) -> float | None:
        return 1.0

    def sample(self, rng: random.Random) -> Any:
        return Series(rng.randrange(1000))


def attempt(kind: SeriesKind) -> None:
    for seed in range(3):
        try_kind(kind, seed, time_s=lambda: kind.now_s)


class Nameless(SeriesKind):
    name = ""


class ClaimsAll(SeriesKind):
    def form(self, value: Any) -> Any:
        return super().form(value) or 1


class ClaimsArrays(SeriesKind):
    def form(self, value: Any) -> Any:
        return value.shape[0] if isinstance(value, np.ndarray) else super().form(value)


class PacksAList(SeriesKind):
    def pack(self, value: Any) -> Any:
        return list(value.numbers)


class RereadsNothing(SeriesKind):
    def reread(self, origin: Any) -> Any:
        return None


class ClaimsNothing(SeriesKind):
    def form(self, value: Any) -> Any:
        return None


class FormOfAnArray(SeriesKind):
    def form(self, value: Any) -> Any:
        return value.numbers[:1] if isinstance(value, Series) else None


class TellsTooLittle(SeriesKind):
    def num_bytes(self, form: Any) -> int:
        return 8 * int(form) - 8


class PacksTheTime(SeriesKind):
    count = 0

    def pack(self, value: Any) -> Any:
        self.count += 1
        return np.append(value.numbers[1:], self.count)


class ViewsAnother(SeriesKind):
    def view(self, form: Any, data: Any, origin: Any) -> Any:
        data[0] ^= 1
        return super().view(form, data, origin)


class ForgetsTheOrigin(SeriesKind):
    def view(self, form: Any, data: Any, origin: Any) -> Any:
        found = super().view(form, data, origin)
        found.seed = None
        return found


class OneIdentity(SeriesKind):
    def identity(self, form: Any, data: Any) -> bytes:
        return bytes(16)


class IdentityOfTheForm(SeriesKind):
    def identity(self, form: Any, data: Any) -> bytes:
        return int(form).to_bytes(16, "little")


class IdentityOfTheHead(SeriesKind):
    def identity(self, form: Any, data: Any) -> bytes:
        return super().identity(form, data[:8])


class IdentityOfTheSum(SeriesKind):
    def identity(self, form: Any, data: Any) -> bytes:
        return super().identity(form, np.array([data.sum()]))


class IdentityOfTheBytes(SeriesKind):
    """Of a form with a word more, which two values of the same bytes differ in."""

    def form(self, value: Any) -> Any:
        return (len(value.numbers), value.seed % 3) if isinstance(value, Series) else None

    def num_bytes(self, form: Any) -> int:
        return super().num_bytes(form[0])

    def identity(self, form: Any, data: Any) -> bytes:
        return super().identity((), data)


class LongIdentity(SeriesKind):
    def identity(self, form: Any, data: Any) -> bytes:
        return super().identity(form, data) * 2


class RereadsAnother(SeriesKind):
    def reread(self, origin: Any) -> Any:
        return Series(origin + 40)


class RereadsOnce(SeriesKind):
    """The same content the first time only."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[int] = set()

    def reread(self, origin: Any) -> Any:
        found = super().reread(origin)
        if origin in self.seen:
            found.numbers = found.numbers + 1
        self.seen.add(origin)
        return found


class NeverRereads(SeriesKind):
    def reread(self, origin: Any) -> Any:
        return StateKind.reread(self, origin)


class HasNoReread(SeriesKind):
    reread = StateKind.reread


class TellsTooCheap(SeriesKind):
    def reread_s(self, origin: Any) -> float | None:
        return 0.3


class TellsTooDear(SeriesKind):
    def reread_s(self, origin: Any) -> float | None:
        return 9.0


class TellsNoNumber(SeriesKind):
    def reread_s(self, origin: Any) -> float | None:
        return float("nan")


LIES: list[tuple[type[SeriesKind], str]] = [
    (Nameless, "name"),
    (ClaimsAll, "claims"),
    (ClaimsArrays, "claims"),
    (ClaimsNothing, "claims"),
    (RereadsNothing, "claims"),
    (FormOfAnArray, "plain"),
    (TellsTooLittle, "size"),
    (PacksAList, "size"),
    (PacksTheTime, "stable"),
    (ViewsAnother, "view"),
    (ForgetsTheOrigin, "view"),
    (OneIdentity, "identity"),
    (IdentityOfTheForm, "identity"),
    (IdentityOfTheHead, "identity"),
    (IdentityOfTheSum, "identity"),
    (IdentityOfTheBytes, "identity"),
    (LongIdentity, "identity"),
    (RereadsAnother, "reread"),
    (RereadsOnce, "reread"),
    (NeverRereads, "errors"),
    (HasNoReread, "reread"),
    (TellsTooCheap, "cost"),
    (TellsTooDear, "cost"),
    (TellsNoNumber, "cost"),
]


@pytest.mark.parametrize(("kind", "rule"), LIES, ids=[lie.__name__ for lie, _ in LIES])
def test_each_lie_is_caught_by_its_rule(kind: type[SeriesKind], rule: str) -> None:
    with pytest.raises(BrokenRuleError) as caught:
        attempt(kind())
    assert caught.value.rule == rule, caught.value
    assert caught.value.operations


def test_every_rule_is_broken_by_somebody() -> None:
    assert {rule for _, rule in LIES} - {"errors"} == set(KIND_RULES)


def test_a_right_kind_passes() -> None:
    attempt(SeriesKind())


class DiaryKind(StateKind):
    """Texts as they are."""

    name = "diary"

    def form(self, value: Any) -> Any:
        return len(value.encode()) if isinstance(value, str) else None

    def num_bytes(self, form: Any) -> int:
        return int(form)

    def pack(self, value: str) -> bytes:
        return value.encode()

    def view(self, form: Any, data: Any, origin: Any) -> str:
        return bytes(data.numpy()).decode()

    def sample(self, rng: random.Random) -> str:
        return "it rained " * rng.randrange(9)


def test_a_kind_may_be_of_a_type_that_others_have() -> None:
    try_kind(DiaryKind(), 0)


def test_our_own_kinds_pass(tmp_path: Path) -> None:
    try_kind(TENSORS, 0, 200)
    folders = AdapterFolders(TINY, torch.float32, 4096, LayoutTable())
    paths = [
        write_adapter(tmp_path / str(seed), TINY, rank, seed=seed)
        for seed, rank in enumerate((2, 4, 4))
    ]
    try_kind(folders, 0, 6, sample=lambda rng: folders.reread(rng.choice(paths)))


def test_the_kind_of_the_documentation_passes() -> None:
    code = blocks_of(DOCS / "kinds.md")[0].code
    names: dict[str, Any] = {}
    exec(code[: code.index("engine = ")], names)
    assert len(code[: code.index("engine = ")].split("class MapKind")[1].splitlines()) <= 32
    names["MapKind"].reread_s = lambda self, origin: None  # its clock is the machine's
    try_kind(names["MapKind"](), 0)


@pytest.mark.parametrize("kind", ["SeriesKind", "TellsTooLittle"])
def test_the_command(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["check", "kind", f"{__name__}:{kind}Untimed", "--walks", "3"])
    said = capsys.readouterr().out
    if kind == "SeriesKind":
        assert code == 0 and "60 values" in said and "nothing found" in said
    else:
        assert code == 1 and "rule 'size'" in said and "again: scalesim check kind" in said


class SeriesKindUntimed(SeriesKind):
    reread_s = StateKind.reread_s


class TellsTooLittleUntimed(TellsTooLittle):
    reread_s = StateKind.reread_s
