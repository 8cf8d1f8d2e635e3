"""The CPU set's LoRA ops against the reference, over pages whose other bytes are NaN and Inf: any
ranks, groups and padding; bits of a token that do not depend on its neighbours."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scalesim_kernels import LoraBatch, LoraDirectory, LoraSite, select

from tests.kernels.paged_cases import STALE, garbage

SITE = LoraSite(0, 96, (128, 40, 40))
LAYERS, MAX_RANK = 2, 70
POOL = (40, LAYERS, 2, 2, 16, 16)  # 2048 elements a page
PAGE = 2048
RANKS = [(1, 1, 1), (16, 0, 3), (0, 0, 0), (70, 5, 64), (8, 8, 8), (0, 0, 2)]


class Case:
    """Adapters of these ``RANKS`` in scattered pages; groups of ``counts`` tokens use them."""

    def __init__(self, counts: list[int], *, seed: int = 0, multiple: int = 16) -> None:
        rng = np.random.default_rng(seed)
        self.pool = garbage(POOL, seed)
        flat = self.pool.view(len(self.pool), -1)
        free = rng.permutation(np.arange(1, len(flat))).tolist()
        table = np.full((len(RANKS) + 2, 20), STALE, np.int64)
        a_at = np.full((len(RANKS), LAYERS, 7, MAX_RANK), STALE, np.int64)
        b_at, ranks = a_at.copy(), np.zeros((len(RANKS), LAYERS, 7), np.int32)
        scales = rng.uniform(0.5, 2, ranks.shape).astype(np.float32)
        for layout, of_slices in enumerate(RANKS):
            end = 0
            for i, rank in enumerate(of_slices):
                ranks[layout, 1, i] = rank
                for at, width in ((a_at, SITE.in_width), (b_at, SITE.out_widths[i])):
                    for j in range(rank):
                        stride = -(-width // 64) * 64
                        if end % PAGE + stride > PAGE:
                            end += PAGE - end % PAGE
                        at[layout, 1, i, j] = end
                        block, offset = divmod(end, PAGE)
                        if table[layout + 1, block] == STALE:
                            table[layout + 1, block] = free.pop()
                        page = flat[table[layout + 1, block]]
                        page[offset : offset + width] = torch.from_numpy(
                            rng.standard_normal(width).astype(np.float32)
                        )
                        end += stride
        directory = LoraDirectory(*map(torch.from_numpy, (a_at, b_at, ranks, scales)))
        room = [-(-count // multiple) * multiple for count in counts]
        starts = np.concatenate(([0], np.cumsum(room))).astype(np.int32)
        self.x = torch.from_numpy(rng.standard_normal((sum(counts) + 5, 96)).astype(np.float32))
        order = rng.permutation(len(self.x))[: sum(counts)]
        tokens, used = np.zeros(starts[-1], np.int32), 0
        for start, size, count in zip(starts[:-1], room, counts, strict=True):
            tokens[start : start + size] = order[used]
            tokens[start : start + count] = order[used : used + count]
            used += count
        rows = np.arange(1, len(counts) + 1, dtype=np.int32)
        self.lora = LoraBatch(
            directory,
            torch.from_numpy(table.astype(np.int32)),
            *map(torch.from_numpy, (tokens, starts, np.array(counts, np.int32), rows, rows - 1)),
        )
        self.out = torch.from_numpy(rng.standard_normal((len(self.x), 208)).astype(np.float32))

    def run(self, name: str, lora: LoraBatch | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        kernels, lora, out = select(name), lora or self.lora, self.out.clone()
        h = kernels.lora_shrink(self.x.clone(), self.pool, 1, SITE, lora)
        kernels.lora_expand(h.clone(), self.pool, 1, SITE, lora, out)
        return h, out


def valid(lora: LoraBatch, h: torch.Tensor) -> torch.Tensor:
    """Only what the contract specifies; the rest is zero."""
    kept = torch.zeros_like(h)
    columns = (lora.starts.tolist(), lora.counts.tolist(), lora.layouts.tolist())
    for start, count, layout in zip(columns[0][:-1], *columns[1:], strict=True):
        for i, rank in enumerate(RANKS[layout]):
            kept[start : start + count, i, :rank] = h[start : start + count, i, :rank]
    return kept


@pytest.mark.parametrize(
    "counts", [[1], [1, 1, 1, 1, 1, 1], [5, 17, 2, 40, 1, 16], [3, 0, 2, 9]], ids=str
)
def test_cpu_set_equals_the_reference(counts: list[int]) -> None:
    case = Case(counts)
    (h, out), (want_h, want) = case.run("cpu"), case.run("reference")
    torch.testing.assert_close(valid(case.lora, h), valid(case.lora, want_h), rtol=2e-5, atol=2e-5)
    torch.testing.assert_close(out, want, rtol=2e-5, atol=1e-4)
    untouched = sorted(set(range(len(case.x))) - set(case.lora.tokens.tolist()))
    assert torch.equal(out[untouched], case.out[untouched])
    base_only = case.lora.tokens[case.lora.starts[2]].item() if len(counts) > 2 else untouched[0]
    assert torch.equal(out[base_only], case.out[base_only]), "rank 0 is the base, bit for bit"


def test_a_padded_group_does_nothing() -> None:
    case = Case([2, 3])
    rows = torch.tensor([1, 0], dtype=torch.int32)
    fields: dict[str, Any] = {name: getattr(case.lora, name) for name in case.lora.__slots__}
    some = LoraBatch(**{**fields, "rows": rows})
    for name in ("cpu", "reference"):
        _, out = case.run(name, some)
        theirs = case.lora.tokens[case.lora.starts[1] : case.lora.starts[1] + 3].long()
        assert torch.equal(out[theirs], case.out[theirs])


@pytest.mark.parametrize("layout", [0, 1, 3, 4, 5])
def test_bits_do_not_depend_on_neighbours(layout: int) -> None:
    """One token alone, and among any number of others of its own adapter and of others."""
    case = Case([33] * len(RANKS), seed=3)
    lora = case.lora
    start = int(lora.starts[layout])
    token = int(lora.tokens[start])
    _, together = case.run("cpu")
    for count in (1, 2, 15, 16, 17, 31):
        mine = lora.tokens[start : start + count].clone()
        padded = -(-count // 16) * 16
        mine = torch.cat((mine.roll(count // 2), mine[:1].expand(padded - count)))
        some = LoraBatch(
            lora.directory, lora.block_table, mine, torch.tensor([0, padded]).int(),
            torch.tensor([count]).int(), lora.rows[layout : layout + 1].clone(),
            lora.layouts[layout : layout + 1].clone(),
        )  # fmt: skip
        _, alone = case.run("cpu", some)
        assert torch.equal(alone[token], together[token]), f"{count} tokens"


def test_nan_in_one_token_stays_there() -> None:
    case = Case([5, 5, 5, 5])
    bad = int(case.lora.tokens[2])
    case.x[bad] = float("nan")
    for name in ("cpu", "reference"):
        _, out = case.run(name)
        wrong = set(out.isnan().any(1).nonzero().flatten().tolist())
        assert wrong == {bad}
