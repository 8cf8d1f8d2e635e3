"""The kit itself: it passes what is right, finds planted faults, and says what it was not given."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from scalesim_kernels import select
from scalesim_kernels.__main__ import main
from scalesim_kernels.conformance import PROBLEMS, Verdict, check_op
from scalesim_kernels.conformance.paged import far_pages, make_case, same_bits, spread
from scalesim_kernels.conformance.pairwise import pairwise
from torch import Tensor

from .paged_cases import SHAPES

pytestmark = [
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]
CPU, REFERENCE = select("cpu"), select("reference")
FP32 = (torch.float32,)
EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


@pytest.mark.parametrize("op", PROBLEMS)
def test_the_cpu_set_conforms(op: str) -> None:
    assert [v for v in check_op(CPU, op, dtypes=FP32) if v.faults] == []


def faults(op: str, function: Callable[..., Any]) -> str:
    verdicts: list[Verdict] = list(check_op(replace(REFERENCE, **{op: function}), op, dtypes=FP32))
    return "; ".join(sorted({fault for verdict in verdicts for fault in verdict.faults}))


def test_reading_one_position_too_many() -> None:
    def decode(
        q: Tensor, pool: Tensor, layer: int, batch: Any, plan: Any, *rest: Any, **options: Any
    ) -> None:  # fmt: skip
        longer = replace(batch, positions=batch.positions + 1)
        longer = replace(longer, context_lens=batch.context_lens + 1)
        try:
            REFERENCE.paged_decode(q, pool, layer, longer, plan, *rest, **options)
        except IndexError:  # the next block is a stale entry, and the reference follows it
            REFERENCE.paged_decode(q, pool, layer, batch, plan, *rest, **options)

    assert "not finite" in faults("paged_decode", decode)


def test_masking_after_the_product() -> None:
    """``0 * NaN``: probabilities of zero do not remove garbage values."""

    def decode(
        q: Tensor, pool: Tensor, layer: int, batch: Any, plan: Any, scale: float, out: Tensor
    ) -> None:
        block_size, group = pool.shape[4], q.shape[1] // pool.shape[3]
        for seq in range(batch.num_decodes):
            length = int(batch.context_lens[seq])
            pages = batch.block_table[int(batch.seq_rows[seq]), : -(-length // block_size)].long()
            k, v = pool[pages, layer].permute(1, 2, 0, 3, 4).flatten(2, 3)
            k, v = k.repeat_interleave(group, 0), v.repeat_interleave(group, 0)
            scores = torch.einsum("hd,hnd->hn", q[seq], k) * scale
            scores[:, length:] = float("-inf")
            out[seq] = torch.einsum("hn,hnd->hd", scores.softmax(-1), v)

    assert "not finite" in faults("paged_decode", decode)


def test_writing_the_other_phases_rows() -> None:
    def prefill(*args: Any, **options: Any) -> None:
        REFERENCE.paged_prefill(*args, **options)
        args[-1][: args[3].num_decodes] = 0

    assert "other rows written" in faults("paged_prefill", prefill)


def test_writing_another_slot() -> None:
    def store(qkv: Tensor, pool: Tensor, *args: Any) -> Tensor:
        pool[0, 0, 0, 0, 0, 0] = 5
        return REFERENCE.qk_norm_rope_store(qkv, pool, *args)

    assert "other slots written" in faults("qk_norm_rope_store", store)


def test_offsets_of_32_bits() -> None:
    def copy(pool: Tensor, src: Tensor, dst: Tensor) -> None:
        page = pool[0].numel()
        flat = pool.view(-1)
        for a, b in zip(src.tolist(), dst.tolist(), strict=True):
            begin = a * page % 2**31, b * page % 2**31
            flat[begin[1] : begin[1] + page] = flat[begin[0] : begin[0] + page].clone()

    assert "pool" in faults("copy_pages", copy)


def test_a_row_that_looks_at_its_neighbours() -> None:
    def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return REFERENCE.linear(x, weight, bias) * (1 + 1e-7 * len(x))

    assert "neighbours" in faults("linear", linear)


def test_cuts_that_keep_one_tie_too_many() -> None:
    def sample(logits: Tensor, t: Tensor, k: Tensor, *args: Tensor) -> Tensor:
        return REFERENCE.sample(logits, t, torch.where(k > 0, k + 1, k), *args)

    assert "tokens" in faults("sample", sample)


def test_what_raises_is_a_fault() -> None:
    def silu(_: Tensor) -> Tensor:
        raise RuntimeError("no such thing\nand more")

    assert faults("silu_mul", silu) == "RuntimeError: no such thing"


def test_pairwise_holds_every_pair() -> None:
    factors = {"a": (1, 2, 3), "b": "xy", "c": (True, False), "d": range(5)}
    cases = pairwise(factors)
    assert len(cases) < 25
    for first, second in itertools.combinations(factors, 2):
        pairs = {(case[first], case[second]) for case in cases}
        assert pairs == set(itertools.product(factors[first], factors[second]))
    assert cases == pairwise(factors)


def test_spread_changes_nothing_but_the_place() -> None:
    case = make_case(SHAPES[2])
    ids = far_pages(len(case.pool), case.pool[0].numel())
    batch, pool = spread(case.batch, case.pool, ids)
    assert int(ids[1]) * case.pool[0].numel() > 2**31
    q = torch.randn(case.num_tokens, case.num_heads, case.shape.head_dim)
    results = []
    for where in ((case.batch, case.pool), (batch, pool)):
        out = torch.zeros(q.shape)
        REFERENCE.paged_prefill(q, where[1], 1, where[0], None, 0.3, out)
        results.append(out)
    assert same_bits(*results)


def test_the_example_kernel(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    arguments = ["check", "my_kernel:paged_decode", "--op", "paged_decode", "--dtypes", "fp32"]
    assert main([*arguments, "--cases", "3", "--time"]) == 0
    table = capsys.readouterr().out
    assert "paged_decode" in table
    assert " ms  " in table


def test_a_failing_set_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    target = "tests.kernels.test_conformance_kit:slightly_wrong"
    assert main(["check", target, "--op", "silu_mul", "--dtypes", "fp32"]) == 1
    shown = capsys.readouterr().out
    assert "relative error" in shown
    assert "limit 1e-05" in shown
    assert "width=33" in shown


def slightly_wrong(gate_up: Tensor) -> Tensor:
    return REFERENCE.silu_mul(gate_up) * 1.0001


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nonsense"], "neither a set (auto, cpu, cuda, triton, reference) nor of the form"),
        (["no_such_module:f", "--op", "sample"], "there is no module 'no_such_module'"),
        (["scalesim_kernels.pages:copy", "--op", "copy_pages"], "no function 'copy' there; it has"),
        (["scalesim_kernels.rows:norm_launch", "--op", "softmax"], "--op softmax: known are paged"),
        (["scalesim_kernels.philox:uniform"], "missing 2 required positional arguments"),
        (["cpu", "--dtypes", "fp8"], "--dtypes fp8: known are fp32"),
    ],
)
def test_commands_that_make_no_sense(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", *arguments]) == 2
    assert words in capsys.readouterr().err
