"""The CPU set's LoRA ops against the reference, over pages whose other bytes are NaN and Inf: any
ranks, groups and padding; bits of a token that do not depend on its neighbours."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scalesim_kernels import LoraBatch, LoraSite, select
from scalesim_kernels.conformance.lora import RANKS, make_lora_case
from scalesim_kernels.cpu import cpu_kernels
from scalesim_kernels.lora_tiles import lora_tiles

SITE = LoraSite(0, 96, (128, 40, 40))
PLAIN = "without numba"
FORMS = ["cpu", PLAIN]


class Case:
    """The kit's case, run by name of a set."""

    def __init__(self, counts: list[int], *, seed: int = 0) -> None:
        case = make_lora_case(tuple(counts), site=SITE, seed=seed)
        self.lora, self.pool, self.x, self.out = case.lora, case.pool, case.x, case.out
        self.specified = case.specified

    def run(self, name: str, lora: LoraBatch | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        kernels = cpu_kernels(compiled=False) if name == PLAIN else select(name)
        lora, out = lora or self.lora, self.out.clone()
        h = kernels.lora_shrink(self.x.clone(), self.pool, 1, SITE, lora)
        kernels.lora_expand(h.clone(), self.pool, 1, SITE, lora, out)
        return h, out


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "counts", [[1], [1, 1, 1, 1, 1, 1], [5, 17, 2, 40, 1, 16], [3, 0, 2, 9]], ids=str
)
def test_cpu_set_equals_the_reference(counts: list[int], form: str) -> None:
    case = Case(counts)
    (h, out), (want_h, want) = case.run(form), case.run("reference")
    torch.testing.assert_close(h[case.specified], want_h[case.specified], rtol=2e-5, atol=2e-5)
    torch.testing.assert_close(out, want, rtol=2e-5, atol=1e-4)
    untouched = sorted(set(range(len(case.x))) - set(case.lora.tokens.tolist()))
    assert torch.equal(out[untouched], case.out[untouched])
    base_only = case.lora.tokens[case.lora.starts[2]].item() if len(counts) > 2 else untouched[0]
    assert torch.equal(out[base_only], case.out[base_only]), "rank 0 is the base, bit for bit"


def test_a_padded_group_does_nothing() -> None:
    case = Case([2, 3])
    rows = torch.tensor([1, 0], dtype=torch.int32)
    fields: dict[str, Any] = {name: getattr(case.lora, name) for name in case.lora.__slots__}
    tiles = torch.from_numpy(
        lora_tiles(case.lora.starts[:-1], case.lora.counts, rows, case.lora.layouts)
    )
    some = LoraBatch(**{**fields, "rows": rows, "tiles": tiles})
    for name in (*FORMS, "reference"):
        _, out = case.run(name, some)
        theirs = case.lora.tokens[case.lora.starts[1] : case.lora.starts[1] + 3].long()
        assert torch.equal(out[theirs], case.out[theirs])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("layout", [0, 1, 3, 4, 5])
def test_bits_do_not_depend_on_neighbours(layout: int, form: str) -> None:
    """One token alone, and among any number of others of its own adapter and of others."""
    case = Case([33] * len(RANKS), seed=3)
    lora = case.lora
    start = int(lora.starts[layout])
    token = int(lora.tokens[start])
    _, together = case.run(form)
    for count in (1, 2, 15, 16, 17, 31):
        mine = lora.tokens[start : start + count].clone()
        padded = -(-count // 16) * 16
        mine = torch.cat((mine.roll(count // 2), mine[:1].expand(padded - count)))
        some = LoraBatch(
            lora.directory, lora.block_table, mine, torch.tensor([0, padded]).int(),
            torch.tensor([count]).int(), lora.rows[layout : layout + 1].clone(),
            lora.layouts[layout : layout + 1].clone(),
            torch.from_numpy(lora_tiles([0], [count], lora.rows[layout : layout + 1],
                                        lora.layouts[layout : layout + 1])),
        )  # fmt: skip
        _, alone = case.run(form, some)
        assert torch.equal(alone[token], together[token]), f"{count} tokens"


def test_nan_in_one_token_stays_there() -> None:
    case = Case([5, 5, 5, 5])
    bad = int(case.lora.tokens[2])
    case.x[bad] = float("nan")
    for name in (*FORMS, "reference"):
        _, out = case.run(name)
        wrong = set(out.isnan().any(1).nonzero().flatten().tolist())
        assert wrong == {bad}
