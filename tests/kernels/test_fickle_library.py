"""Rows and tiles stand alone though the matrix library's do not: the promise is kept by how calls
are cut, not by what was once measured."""

from __future__ import annotations

from itertools import accumulate

import pytest
import torch
from scalesim_kernels import cpu_rows, select
from scalesim_kernels.cpu import cpu_kernels
from scalesim_kernels.cpu_attention import Form, Heads, ask

from .fickle import LIBRARIES, put_under
from .test_cpu_reproducible import Context
from .test_lora_ops import PLAIN
from .test_lora_ops import test_bits_do_not_depend_on_neighbours as lora_rows_stand_alone

ROWS = 300
COUNTS = (1, 17, 48, 80, ROWS)


@pytest.fixture(params=[*LIBRARIES, "the real one"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    name: str = request.param
    if name in LIBRARIES:
        put_under(monkeypatch, LIBRARIES[name])
    return name


@pytest.mark.parametrize("name", LIBRARIES)
def test_planted_libraries_are_fickle(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or what follows would show nothing."""
    put_under(monkeypatch, LIBRARIES[name])
    x, weight = torch.randn(256, 64), torch.randn(32, 64)
    some = [cpu_rows.linear(x[first:256].clone(), weight)[-1] for first in (0, 240)]
    assert not torch.equal(*some)


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize(
    ("dtype", "packed"),
    [(torch.float32, False), (torch.float32, True), (torch.bfloat16, False)],
)
@pytest.mark.parametrize("width", [33, 896])
def test_linear(width: int, packed: bool, dtype: torch.dtype) -> None:
    cpu = select("cpu")
    x, weight = torch.randn(ROWS, width).to(dtype), torch.randn(40, width).to(dtype)
    matrix = cpu.pack_weight(weight) if packed else weight
    for bias in (None, torch.randn(40).to(dtype)):
        whole = cpu.linear(x, matrix, bias)
        for rows in COUNTS:
            for first in {0, min(5, ROWS - rows), ROWS - rows}:
                got = cpu.linear(x[first : first + rows], matrix, bias)
                assert torch.equal(got, whole[first : first + rows]), (rows, first)


def one_in_each_row() -> torch.Tensor:
    """Nothing is added up, so no order of adding can be told from another."""
    return torch.zeros(24, 200).index_put_((torch.arange(24), torch.arange(24)), torch.ones(1))


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("bias", [None, torch.randn(24)])
@pytest.mark.parametrize("poor", [torch.zeros(24, 200), one_in_each_row()])
def test_poor_matrices_do_not_answer_for_others(
    poor: torch.Tensor, bias: torch.Tensor | None
) -> None:
    """A matrix of zeros agrees with itself under any library, as an adapter's often begins."""
    cpu, x = select("cpu"), torch.randn(ROWS, 200)
    cpu.linear(x[:1], poor, bias)
    weight = torch.randn(24, 200)
    whole = cpu.linear(x, weight, bias)
    for rows in COUNTS:
        assert torch.equal(cpu.linear(x[:rows], weight, bias), whole[:rows]), rows


@pytest.mark.parametrize("seed", range(8))
def test_few_results_do_not_agree_by_chance(seed: int) -> None:
    """Two columns, and a library whose last bits differ in few of the results."""

    def product(x: torch.Tensor) -> torch.Tensor:
        out = x @ weight
        odd = (out.view(torch.int32) % 8 == 0) if len(x) % 16 else torch.zeros(out.shape).bool()
        return torch.where(odd, out * (1 + 2.0**-20), out)

    weight = torch.randn((64, 2), generator=torch.Generator().manual_seed(seed))
    found = cpu_rows.agreeing_sizes(product, 64, torch.float32, 1 << 20)
    assert set(found) <= {16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024}


@pytest.mark.usefixtures("library")
def test_lora() -> None:
    lora_rows_stand_alone(3, PLAIN)


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("group", [1, 6])
def test_attention(group: int) -> None:
    """Of the form without compiled kernels, which leaves attention to the library."""
    cpu, context = cpu_kernels(compiled=False), Context(group, 2, 16, 16, length=90)
    whole = context.attend(cpu, (0, 0, 90))[0]
    for start, stop in ((0, 7), (7, 8), (60, 70), (89, 90)):
        part = (0, start, stop)
        for parts in ((part,), ((1, 30, 31), part), ((2, 20, 21), (1, 3, 4), part, (2, 30, 80))):
            if stop - start == 1 or parts[-1] == part:
                got = context.attend(cpu, *parts)[parts.index(part)]
                assert torch.equal(got, whole[start:stop]), parts


def test_what_is_asked_is_what_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The form that each library leaves."""
    found = {}
    for name, fickle in LIBRARIES.items():
        with monkeypatch.context() as patch:
            put_under(patch, fickle)
            weight = torch.randn(40, 64)
            sizes = cpu_rows.linear_product(weight).ask(64, torch.float32).sizes
            heads = Heads(2, 2, 16, torch.float32, torch.get_num_threads())
            found[name] = sizes, ask.__wrapped__(heads)
    assert found["by_count"] == ((16,), Form(small_decodes=False, together=False))
    sizes, form = found["beyond_64"]
    assert sizes[-4:] == (16, 32, 48, 64)  # of fewer rows the real library decides
    assert form == Form(small_decodes=True, together=True)
    assert found["by_place"] == ((1,), Form(small_decodes=False, together=False))


@pytest.mark.parametrize("sizes", [(1,), (16,), (16, 48, 256), (1, 2, 4, 8, 12, 16, 32, 512)])
def test_parts_cover_any_number_of_rows(sizes: tuple[int, ...]) -> None:
    for rows in (*range(1, 140), *range(140, 1200, 37)):
        parts = cpu_rows.cover(sizes, rows)
        assert set(parts) <= set(sizes)
        assert 0 <= sum(parts) - rows < min(16, sizes[0] if len(sizes) == 1 else 16)
        assert sizes == (1,) or not any(start % 16 for start in accumulate(parts[:-1]))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_elementwise_work_ends_ranges_where_vectors_do(threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        x = torch.randn(700, 192)
        whole = x.clone()
        cpu_rows.evenly(torch.Tensor.tanh_, whole)
        for rows in (1, 5, 170, 171, 341, 699):
            for first in (0, 3):
                part = x[first : first + rows].clone()
                cpu_rows.evenly(torch.Tensor.tanh_, part)
                assert torch.equal(part, whole[first : first + rows][: len(part)]), rows
    finally:
        torch.set_num_threads(before)
